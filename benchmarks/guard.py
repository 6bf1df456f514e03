"""A short run that fails when something has become slow; ``tests/test_speed.py`` makes it part of ``make test``.

Ours may be at twice its goal or, where that isn't reached yet, at twice the ratio of the last full run: a goal that is
missed can't be guarded, but what is reached can. ``last_run.json`` has these ratios; ``--write-docs`` writes it.

Other processes make any single measurement several times slower, ours as well as the limit's, and never faster. So
limit and ours are measured in turn, and what counts is the best of each so far: at least three times, and on until ours
is within the bound, or hasn't been in fifteen seconds. What has really become slower is so in each of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from . import w1, w2, w3, w4, w5, w6, w9
from .places import Place
from .rows import UNITS, Row

__all__ = ["LAST_RUN", "ROWS", "Check", "check", "remember"]

LAST_RUN = Path(__file__).with_name("last_run.json")
_ROUNDS = 3
#: After which a row has had its chances.
_SECONDS = 15.0
#: Those with a goal that is a ratio to the limit, without what takes long.
ROWS = [
    replace(row, limit=w5.waiting) if module is w5 else row
    for module in (w1, w2, w3, w4, w5, w6, w9)
    for row in module.ROWS
    if "256" not in row.name
]


@dataclass(frozen=True)
class Check:
    """What was found of one row; the figures in its base unit."""

    row: Row
    limit: float
    ours: float
    bound: float
    rounds: int

    @property
    def within(self) -> bool:
        """Nothing has become slow."""
        return self.ours >= self.bound if self.row.higher_is_better else self.ours <= self.bound

    def __str__(self) -> str:
        limit, ours, bound = (f"{value * UNITS[self.row.unit]:.4g}" for value in (self.limit, self.ours, self.bound))
        least = "least" if self.row.higher_is_better else "most"
        return (
            f"{self.row.name}, {self.row.what}: {ours} {self.row.unit} (limit {limit}, ratio "
            f"{self.ours / self.limit:.2f}, at {least} {bound}; {self.rounds} rounds)"
        )


def check(row: Row, place: Place) -> Check:
    """Measure a row until it is within its bound, or has had its chances."""
    best = max if row.higher_is_better else min
    limits, ours = [], []
    end = time.monotonic() + _SECONDS
    while True:
        limits.append(row.limit(place))
        ours.append(row.ours(place))
        limit = best(limits)
        found = Check(row, limit, best(ours), _bound(row, place, limit), len(ours))
        if found.rounds >= _ROUNDS and (found.within or time.monotonic() > end):
            return found


def _bound(row: Row, place: Place, limit: float) -> float:
    bounds = [goal.bound({"limit": limit}) for goal in row.goals[place.name] if goal.against == "limit"]
    assert bounds[0] is not None
    if place.name == "local" and row.name in _reached():
        bounds.append(_reached()[row.name] * limit)
    return min(filter(None, bounds)) / 2 if row.higher_is_better else max(filter(None, bounds)) * 2


@cache
def _reached() -> dict[str, float]:
    """The ratios to the limit of the last full run, by row."""
    found: dict[str, float] = json.loads(LAST_RUN.read_text())
    return found


def remember(run: Mapping[str, Any]) -> None:
    """Keep the ratios of a full run, as the bounds of what doesn't reach its goals."""
    found = {row["name"]: round(row["ours/limit"], 4) for row in run["rows"] if row["place"] == "local"}
    LAST_RUN.write_text(json.dumps(found, indent=1) + "\n")
