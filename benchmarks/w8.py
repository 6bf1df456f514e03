"""W8: a new service on a cluster, until its first result is there."""

from __future__ import annotations

import itertools

import kubetorch_jupyter as kt
from kubetorch_jupyter.transport.portal import get_portal

from . import bare, timing
from .functions import noop
from .places import Cluster, Place
from .rows import Goal, Row
from .w1 import quietly

__all__ = ["ROWS"]

_numbers = itertools.count()


def _limit(place: Place) -> float:
    assert isinstance(place, Cluster)
    pod = place.bare()
    try:
        return get_portal().run(pod.start(bare.ANSWERS))
    finally:
        get_portal().run(pod.end())


def _ours(place: Place) -> float:
    made: list[kt.Fn] = []

    def run() -> None:
        made.append(kt.fn(noop, name=f"bench-new-{next(_numbers)}").to(place.compute()))
        made[0]()

    with quietly():
        seconds = timing.once(run)
        made[0].teardown()
    return seconds


ROWS = [
    Row(
        "W8",
        "new service on a cluster, until its first result",
        "s",
        _limit,
        _ours,
        goals={"proxy": [Goal(1.3)]},
        places=("proxy",),
    )
]
