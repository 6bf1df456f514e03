"""What a row of the table is, and how it is measured: limit, ours and peers in turn, round after round."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .peers import Kind, PeerError, running
from .places import Place

__all__ = ["UNITS", "Goal", "Result", "Row", "measure"]

#: What a base unit (seconds, calls a second, bytes, bytes a second) is multiplied by to be shown.
UNITS = {"µs": 1e6, "ms": 1e3, "s": 1.0, "calls/s": 1.0, "MiB": 1 / (1 << 20), "GB/s": 1e-9}


@dataclass(frozen=True)
class Goal:
    """What ours is to come to: ``factor`` times the limit or a peer, ``plus`` something.

    That is at most, or at least where higher is better. ``plus`` is in the row's base unit.
    """

    factor: float = 0.0
    plus: float = 0.0
    against: str = "limit"

    def bound(self, values: Mapping[str, float]) -> float | None:
        """What ours is compared with; None when the peer wasn't measured."""
        if not self.factor:
            return self.plus
        return self.factor * values[self.against] + self.plus if self.against in values else None

    def said(self, row: Row) -> str:
        """For a table."""
        sign = "≥" if row.higher_is_better else "≤"
        plus = f"{self.plus * UNITS[row.unit]:.3g} {row.unit}" if self.plus else ""
        if not self.factor:
            return f"{sign} {plus}"
        against = self.against if self.factor == 1 else f"{self.factor:g} × {self.against}"
        return f"{sign} {against}{f' + {plus}' if plus else ''}"


@dataclass(frozen=True)
class Row:
    """One line of the table. All that it measures is in base units; ``unit`` is how it is shown.

    Parameters
    ----------
    name, what, unit
        For people; the name begins with its workload's.
    limit, ours
        Measure once, in a place.
    question
        What a peer is asked for (`peers`), and its arguments; none where a comparison makes no sense.
    goals
        By place.
    """

    name: str
    what: str
    unit: str
    limit: Callable[[Place], float]
    ours: Callable[[Place], float]
    question: tuple[Any, ...] = ()
    higher_is_better: bool = False
    goals: Mapping[str, Sequence[Goal]] = field(default_factory=dict)
    places: tuple[str, ...] = ("local",)


@dataclass
class Result:
    """What was measured of one row in one place."""

    row: Row
    place: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    #: Peers without a figure, and why.
    left_out: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    load: float = 0.0

    def add(self, side: str, value: float) -> None:
        self.samples.setdefault(side, []).append(value)

    def summary(self) -> dict[str, Any]:
        """What the table and the picture are made from; the figures in the row's unit."""
        row, scale = self.row, UNITS[self.row.unit]
        middles = {side: statistics.median(values) for side, values in self.samples.items()}
        peers = {side: value * scale for side, value in middles.items() if side not in ("limit", "ours")}
        best = (max if row.higher_is_better else min)(peers, key=lambda name: peers[name], default=None)
        goals: list[dict[str, Any]] = []
        ratio = None
        for goal in row.goals.get(self.place, ()):
            bound = goal.bound(middles)
            within = None
            if bound is not None:
                within = middles["ours"] >= bound if row.higher_is_better else middles["ours"] <= bound
            goals.append({"goal": goal.said(row), "reached": within})
            if bound is not None and goal.against == "limit":
                ratio = bound / middles["limit"]
        return {
            "name": row.name,
            "place": self.place,
            "what": row.what,
            "unit": row.unit,
            "higher is better": row.higher_is_better,
            "limit": middles["limit"] * scale,
            "ours": middles["ours"] * scale,
            "spread": [min(self.samples["ours"]) * scale, max(self.samples["ours"]) * scale],
            "ours/limit": middles["ours"] / middles["limit"],
            "peers": peers,
            "best peer": best,
            "ours/best peer": middles["ours"] * scale / peers[best] if best is not None else None,
            "goals": goals,
            "goal ratio": ratio,
            "left out": self.left_out,
            "samples": {side: [value * scale for value in values] for side, values in self.samples.items()},
            "load": round(self.load, 1),
        }


def measure(rows: Sequence[Row], places: Sequence[Place], peers: Sequence[Kind], rounds: int) -> list[Result]:
    """The rows of one workload: in each round limit and ours of each row and place, then each peer by itself.

    A peer lives only while it is its turn, since some (Ray, Dask) keep the processor busy when they have nothing to do.
    A first round of ours, for caches and threads, doesn't count; peers warm up by themselves.
    """
    load = os.getloadavg()[0]
    results = [Result(row, place.name, load=load) for row in rows for place in places if place.name in row.places]
    by_name = {place.name: place for place in places}
    for number in range(rounds + 1):
        for result in results:
            place = by_name[result.place]
            limit, ours = result.row.limit(place), result.row.ours(place)
            if number:
                result.add("limit", limit)
                result.add("ours", ours)
        if number:
            asked = [result for result in results if result.row.question and result.place == "local"]
            for kind in peers if asked else ():
                _ask(kind, asked)
    return results


def _ask(kind: Kind, results: Sequence[Result]) -> None:
    """One peer's turn: it is started, asked for each row that it fits, and ended."""
    fitting = list(_fitting(kind, results))
    if not fitting:
        return
    try:
        with running(kind) as peer:
            for result in fitting:
                try:
                    result.add(kind.name, peer.ask(*result.row.question))
                    result.versions[kind.name] = peer.version
                except PeerError as e:
                    result.left_out[kind.name] = str(e)
    except PeerError as e:
        for result in fitting:
            result.left_out.setdefault(kind.name, str(e))


def _fitting(kind: Kind, results: Sequence[Result]) -> Iterator[Result]:
    for result in results:
        if reason := kind.left_out.get(result.row.question[0]):
            result.left_out[kind.name] = reason
        elif kind.name not in result.left_out:  # what failed once isn't tried again
            yield result
