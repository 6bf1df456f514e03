"""What a row of the table is, and how it is measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .places import Place

__all__ = ["Workload", "markdown", "measure", "median", "table_line"]


@dataclass(frozen=True)
class Workload:
    """One row for each place: ``run(place)`` gives limit, ours and peer in ``unit``; a peer that there isn't is None.

    ``promised`` is what this version must reach on this machine, ``goals`` what ours must be of the limit, by place:
    at most, or at least where higher is better.
    """

    name: str
    what: str
    unit: str
    run: Callable[[Place], tuple[float, float, float | None]]
    higher_is_better: bool = False
    promised: float | None = None
    goals: Mapping[str, float] = field(default_factory=dict)
    places: tuple[str, ...] = ("local", "direct", "proxy")


def measure(workload: Workload, places: list[Place], rounds: int) -> list[dict[str, Any]]:
    """The rows of one workload: limit, ours and peer of each place in turn, round after round; their medians."""
    places = [place for place in places if place.name in workload.places]
    seen: dict[str, list[tuple[float, float, float | None]]] = {place.name: [] for place in places}
    for number in range(rounds + 1):
        for place in places:
            result = workload.run(place)
            if number:  # the first is for caches and threads
                seen[place.name].append(result)
    return [_row(workload, place, seen[place.name]) for place in places]


def _row(workload: Workload, place: Place, results: list[tuple[float, float, float | None]]) -> dict[str, Any]:
    limits, ours, peers = zip(*results, strict=True)
    limit, our = statistics.median(limits), statistics.median(ours)
    peer = statistics.median(peers) if None not in peers else None
    promised = workload.promised if place.name == "local" else None
    goal = workload.goals.get(place.name)
    above = (our >= promised if workload.higher_is_better else our <= promised) if promised is not None else True
    ratio = our / limit
    within = (ratio >= goal if workload.higher_is_better else ratio <= goal) if goal is not None else True
    return {
        "name": workload.name,
        "place": place.name,
        "what": workload.what,
        "unit": workload.unit,
        "limit": limit,
        "ours": our,
        "peer": peer,
        "spread": [min(ours), max(ours)],
        "limit spread": [min(limits), max(limits)],
        "ours/limit": ratio,
        "ours/peer": our / peer if peer is not None else None,
        "promised": promised,
        "goal": goal,
        "reached": above and within,
    }


def table_line(row: Mapping[str, Any]) -> str:
    """A row for people."""
    low, high = row["spread"]
    parts = [
        f"{row['name']:3} {row['place']:6} {row['what']}, {row['unit']}: limit {_number(row['limit'])}, "
        f"ours {_number(row['ours'])} ({_number(low)}-{_number(high)}), ours/limit {row['ours/limit']:.2f}"
    ]
    if row["peer"] is not None:
        parts.append(f"ProcessPoolExecutor {_number(row['peer'])}")
    if row["promised"] is not None:
        parts.append(f"promised {_number(row['promised'])}")
    if row["goal"] is not None:
        parts.append(f"goal {row['goal']:.2f} of the limit")
    if row["promised"] is not None or row["goal"] is not None:
        parts.append("reached" if row["reached"] else "NOT REACHED")
    return "; ".join(parts)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of ``docs/performance.md``."""
    lines = ["| row | work | place | limit | ours | spread | ours/limit | goal | peer | load |", "|---" * 10 + "|"]
    for row in rows:
        low, high = row["spread"]
        goal = f"{row['goal']:.2f}" if row["goal"] is not None else ""
        if row["promised"] is not None:
            goal = f"{_number(row['promised'])} {row['unit']}"
        cells = [row["name"], row["what"], row["place"], f"{_number(row['limit'])} {row['unit']}"]
        cells += [_number(row["ours"]), f"{_number(low)}–{_number(high)}", f"{row['ours/limit']:.2f}"]
        cells += [goal and goal + ("" if row["reached"] else " (not reached)")]
        cells += ["" if row["peer"] is None else _number(row["peer"]), str(row["load"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def median(action: Callable[[], object], n: int) -> float:
    """Seconds that it takes, the median of ``n``."""
    times = []
    for _ in range(n):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return sorted(times)[n // 2]
