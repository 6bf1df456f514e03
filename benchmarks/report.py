"""A run for people: lines while it goes, and the tables of ``docs/performance.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import machine

__all__ = ["line", "markdown", "write_docs"]

_START, _END = "<!-- benchmarks: the last full run -->", "<!-- benchmarks: its end -->"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _name(row: Mapping[str, Any]) -> str:
    return str(row["name"]) if row["place"] == "local" else f"{row['name']} ({row['place']})"


def _reached(row: Mapping[str, Any]) -> list[str]:
    words = {True: "yes", False: "NO", None: "not measured"}
    return [f"{goal['goal']}: {words[goal['reached']]}" for goal in row["goals"]]


def line(row: Mapping[str, Any]) -> str:
    """A row for the terminal."""
    low, high = row["spread"]
    parts = [
        f"{_name(row):18} {row['what']}, {row['unit']}: limit {_number(row['limit'])}, "
        f"ours {_number(row['ours'])} ({_number(low)}–{_number(high)}), ours/limit {row['ours/limit']:.2f}"
    ]
    parts += [f"{peer} {_number(value)}" for peer, value in row["peers"].items()]
    if row["best peer"] is not None:
        parts.append(f"ours/{row['best peer']} {row['ours/best peer']:.2f}")
    return "; ".join([*parts, *_reached(row), f"load {row['load']}"])


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *lines]) + "\n"


def markdown(run: Mapping[str, Any]) -> str:
    """The tables: ours beside the limit and the best peer, and all the peers."""
    rows = run["rows"]
    ours = []
    for row in rows:
        low, high = row["spread"]
        best = f"{_number(row['peers'][row['best peer']])}, {row['best peer']}" if row["best peer"] else ""
        goals = "; ".join(
            f"{goal['goal']}: " + {True: "**yes**", False: "**no**", None: "not measured"}[goal["reached"]]
            for goal in row["goals"]
        )
        ours.append(
            [
                _name(row),
                row["what"],
                f"{_number(row['limit'])} {row['unit']}",
                _number(row["ours"]),
                f"{_number(low)}–{_number(high)}",
                f"{row['ours/limit']:.2f}",
                best,
                f"{row['ours/best peer']:.2f}" if row["best peer"] else "",
                goals,
                str(row["load"]),
            ]
        )
    head = [
        "row",
        "work",
        "limit",
        "ours",
        "spread",
        "ours / limit",
        "best peer",
        "ours / best peer",
        "goals: reached?",
    ]
    several = f"; rows of {run['runs']} runs, one after the other" if run.get("runs", 1) > 1 else ""
    parts = [
        machine.described(run["machine"]) + f"; medians of {run['rounds']} rounds{several}.",
        _table([*head, "load"], ours),
    ]
    names = list(dict.fromkeys(name for row in rows for name in (*row["peers"], *row["left out"])))
    compared = [row for row in rows if row["peers"]]
    if compared:
        lines = [
            [_name(row), row["unit"], _number(row["ours"])]
            + [_number(row["peers"][name]) if name in row["peers"] else "–" for name in names]
            for row in compared
        ]
        versions = [f"{name} {run['peers'].get(name, '')}".strip() for name in names]
        parts += ["All peers of the same run:", _table(["row", "unit", "ours", *versions], lines)]
        why: dict[tuple[str, str], list[str]] = {}
        for name in names:
            for row in compared:
                if name in row["left out"]:
                    why.setdefault((name, row["left out"][name]), []).append(row["name"])
        reasons = [f"- {name} ({', '.join(where)}): {reason}." for (name, reason), where in why.items()]
        parts += ["What is left out, and why:", "\n".join(reasons)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def write_docs(page: Path, run: Mapping[str, Any]) -> None:
    """Put the tables where the page has those of the run before."""
    before, _, rest = page.read_text().partition(_START)
    _, found, after = rest.partition(_END)
    if not found:
        raise ValueError(f"{page} has no place for the table: {_START} … {_END}")
    page.write_text(f"{before}{_START}\n\n{markdown(run)}\n{_END}{after}")
