"""W7: changed code under a live service, while it is called."""

from __future__ import annotations

import itertools
import threading

import kubetorch_jupyter as kt

from . import timing
from .functions import changed, noop
from .places import Local, Place
from .rows import Goal, Row
from .w1 import quietly

__all__ = ["ROWS"]

_N = 20
_numbers = itertools.count()


def _limit(place: Place) -> float:
    if isinstance(place, Local):
        return place.server.redeploy(changed, _N)
    return place.latency(100)


def _redeploy(place: Place) -> kt.Fn:
    return kt.fn(changed(next(_numbers)), name="bench-changed").to(place.compute())


def _ours(place: Place) -> float:
    place.handle(noop)
    with quietly(), _redeploy(place):
        return timing.median(lambda: _redeploy(place), _N)


def _while_called(place: Place) -> float:
    """The same with calls all the time; each of them has to be answered, by code that was or is live."""
    place.handle(noop)
    ended = threading.Event()
    answers: list[int] = []
    failures: list[BaseException] = []

    def call(handle: kt.Fn) -> None:
        try:
            while not ended.is_set():
                answers.append(handle())
        except BaseException as e:  # told below
            failures.append(e)

    with quietly(), _redeploy(place) as handle:
        caller = threading.Thread(target=call, args=(handle,))
        caller.start()
        try:
            seconds = timing.median(lambda: _redeploy(place), _N)
        finally:
            ended.set()
            caller.join()
    assert not failures, f"a call failed while its code was changed: {failures[0]!r}"
    assert answers == sorted(answers), "an old version has answered after a newer one"
    assert len(set(answers)) > 1, "the calls have seen no change"
    return seconds


ROWS = [
    Row(
        "W7",
        "redeploy of changed code",
        "ms",
        _limit,
        _ours,
        ("redeploy", _N),
        goals={"local": [Goal(plus=0.003)]},
        places=("local", "proxy"),
    ),
    Row(
        "W7 called",
        "the same while it is called, no call dropped",
        "ms",
        _limit,
        _while_called,
        goals={"local": [Goal(plus=0.003)]},
    ),
]
