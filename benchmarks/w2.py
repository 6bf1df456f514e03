"""W2: a call of a function that does nothing."""

from __future__ import annotations

from . import timing
from .functions import noop
from .places import Place
from .rows import Goal, Row

__all__ = ["ROWS"]

_N = 1000


def _ours(place: Place) -> float:
    handle = place.handle(noop)
    timing.warm(handle)
    return timing.median(handle, _N)


ROWS = [
    Row(
        "W2",
        "no-op call, median",
        "µs",
        lambda place: place.latency(_N),
        _ours,
        ("latency", _N),
        goals={"local": [Goal(6), Goal(1, against="Pyro5")], "proxy": [Goal(3)]},
        places=("local", "direct", "proxy"),
    )
]
