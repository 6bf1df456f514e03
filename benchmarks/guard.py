"""A short run that fails when something has become slow; ``tests/test_speed.py`` makes it part of ``make test``.

Ours may be at twice its goal, or at what the row says where its goal isn't reached yet (`Row.guard`). Other processes
make any single measurement several times slower, ours as well as the limit's, and never faster. So limit and ours are
measured in turn, and what counts is the best of each so far: at least three times, and on until ours is within the
bound, or hasn't been in nine. What has really become slower is so in each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import w1, w2, w3, w4, w5, w6, w9
from .places import Place
from .rows import UNITS, Row

__all__ = ["ROWS", "Check", "check"]

_LEAST, _MOST = 3, 9
#: Those with a goal that is a ratio to the limit, without what takes long.
ROWS = [row for module in (w1, w2, w3, w4, w5, w6, w9) for row in module.ROWS if "256" not in row.name]


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
    while True:
        limits.append(row.limit(place))
        ours.append(row.ours(place))
        limit = best(limits)
        found = Check(row, limit, best(ours), _bound(row, place, limit), len(ours))
        if found.rounds >= _MOST or (found.rounds >= _LEAST and found.within):
            return found


def _bound(row: Row, place: Place, limit: float) -> float:
    if row.guard is not None:
        return row.guard * limit
    bounds = [goal.bound({"limit": limit}) for goal in row.goals[place.name] if goal.against == "limit"]
    assert bounds[0] is not None
    return bounds[0] / 2 if row.higher_is_better else bounds[0] * 2
