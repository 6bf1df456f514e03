"""The picture of a run: ours and the peers as multiples of the limit, and the curves of growth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

__all__ = ["draw"]

#: The same picture of the same run, byte for byte; its text stays text.
_STYLE = {"svg.hashsalt": "benchmarks", "svg.fonttype": "none", "font.size": 9, "font.family": "DejaVu Sans"}
_OURS, _LIMIT, _GOAL = "#c0392b", "#555555", "#27ae60"
_PEERS = {
    "ProcessPoolExecutor": ("s", "#7f8c8d"),
    "pyzmq": ("^", "#2980b9"),
    "Pyro5": ("v", "#8e44ad"),
    "httpx + uvicorn": ("P", "#16a085"),
    "ipyparallel": ("X", "#d68910"),
    "distributed": ("D", "#34495e"),
    "Ray": ("*", "#1f77b4"),
}
_SIZES = {"KiB": 1 << 10, "MiB": 1 << 20}


def _cost(row: Mapping[str, Any], value: float) -> float:
    """How many times the limit's cost that is."""
    return float(row["limit"] / value if row["higher is better"] else value / row["limit"])


def _said(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratios(axes: Axes, rows: list[dict[str, Any]]) -> None:
    used: dict[str, Any] = {}
    for y, row in enumerate(rows):
        axes.axhline(y, color="#eeeeee", linewidth=8, zorder=0)
        for peer, value in row["peers"].items():
            marker, colour = _PEERS[peer]
            used[peer] = axes.plot(_cost(row, value), y, marker, color=colour, markersize=7, alpha=0.85)[0]
        ours = axes.plot(_cost(row, row["ours"]), y, "o", color=_OURS, markersize=9, zorder=3)[0]
        axes.text(
            1.01,
            y,
            f"{_said(row['ours'])} / {_said(row['limit'])} {row['unit']}",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
        )
        if row["goal ratio"] is not None:
            cost = 1 / row["goal ratio"] if row["higher is better"] else row["goal ratio"]
            used["goal"] = axes.plot(cost, y, "|", color=_GOAL, markersize=13, markeredgewidth=2.5, zorder=2)[0]
    limit = axes.axvline(1, color=_LIMIT, linewidth=1.5, zorder=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} ×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(rows)), [f"{row['what']}  {row['name'].partition(' ')[0]}" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("cost as a multiple of the limit; at the right ours, and the limit")
    handles = {"limit": limit, "ours": ours, **used}
    axes.legend(handles.values(), handles.keys(), loc="lower center", bbox_to_anchor=(0.2, 1.0), ncols=5, frameon=False)


def _curve(axes: Axes, rows: list[dict[str, Any]], xs: list[float], labels: list[str], title: str) -> None:
    axes.plot(xs, [row["limit"] for row in rows], "-", color=_LIMIT, label="limit")
    axes.plot(xs, [row["ours"] for row in rows], "o-", color=_OURS, label="ours")
    axes.set_xscale("log")
    axes.set_xticks(xs, labels)
    axes.xaxis.set_minor_formatter(NullFormatter())
    if rows[0]["higher is better"]:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(bottom=min(*(row["limit"] for row in rows), *(row["ours"] for row in rows)) / 2)
    else:
        axes.set_ylim(bottom=0)  # what is to be flat is seen better so
    axes.grid(color="#eeeeee")
    axes.set_title(title, fontsize=9)
    axes.legend(frameon=False)


def draw(run: Mapping[str, Any], file: Path) -> None:
    """Write it; the file's suffix says as what."""
    with mpl.rc_context(_STYLE):
        _figure(run).savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=110)


def _figure(run: Mapping[str, Any]) -> Figure:
    rows = [row for row in run["rows"] if row["place"] == "local"]
    curves = [row for row in rows if row["name"].startswith("W11")]
    others = [row for row in rows if row not in curves]
    figure = Figure(figsize=(10.5, 0.3 * len(others) + (1.1 if not curves else 4.2)), layout="constrained")
    if curves:
        upper, lower = figure.subfigures(2, 1, height_ratios=[0.3 * len(others) + 1.1, 3.1])
    else:
        upper = figure
    if others:
        _ratios(upper.subplots(), others)
    if curves:
        axes = lower.subplots(1, 3)
        found: list[tuple[str, str]] = [
            (r"W11 service (\d+)$", "services: ms to the first result of the nth"),
            (r"W11 (\d+) at once$", "calls at once: calls/s"),
            (r"W11 (\d+ [KM]iB)$", "array there and back: GB/s"),
        ]
        for one, (pattern, title) in zip(axes, found, strict=True):
            points = [(row, match[1]) for row in curves if (match := re.match(pattern, row["name"]))]
            if points:
                _curve(one, [row for row, _ in points], [_amount(x) for _, x in points], [x for _, x in points], title)
    return figure


def _amount(said: str) -> float:
    number, _, unit = said.partition(" ")
    return float(number) * _SIZES.get(unit, 1)
