"""W5: calls that wait."""

from __future__ import annotations

from . import timing
from .functions import millisecond
from .places import Place
from .rows import Goal, Row
from .w3 import awaited

__all__ = ["ROWS", "waiting"]

_N, _WIDTH = 1000, 40


def _limit(_: Place) -> float:
    """With nothing but the waiting."""
    return _N / _WIDTH / 1000


def waiting(_: Place) -> float:
    """The same, by threads of this process: for the guard, since a busy machine makes it slower as it does ours."""
    return timing.in_threads([millisecond] * _WIDTH, _N)


ROWS = [
    Row(
        "W5",
        "1,000 calls that sleep 1 ms, 40 at once",
        "ms",
        _limit,
        lambda place: awaited(place.handle(millisecond), _N, _WIDTH),
        ("sleeps", _N, _WIDTH),
        goals={"local": [Goal(2)]},
        places=("local", "direct", "proxy"),
    )
]
