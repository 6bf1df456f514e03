"""W7 and W8: a redeploy of changed code, and a new service on a cluster."""

from __future__ import annotations

import contextlib
import io
import itertools
import time
from collections.abc import Callable, Iterator

import kubetorch_jupyter as kt
from kubetorch_jupyter.transport.portal import get_portal

from . import bare
from .functions import noop
from .places import Cluster, Place
from .rows import Workload, median

__all__ = ["WORKLOADS", "w8"]

_numbers = itertools.count()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the line that each deploy says."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _changed() -> Callable[[], int]:
    number = next(_numbers)

    def answer() -> int:
        return number

    return answer


def w7(place: Place) -> tuple[float, float, float | None]:
    place.handle(noop)
    with _quiet(), kt.fn(_changed(), name="bench-changed").to(place.compute()):
        ours = median(lambda: kt.fn(_changed(), name="bench-changed").to(place.compute()), 20)
    return place.latency(100) * 1e3, ours * 1e3, None


def w8(place: Place) -> tuple[float, float, float | None]:
    assert isinstance(place, Cluster)
    place.handle(noop)  # so that the namespace has the bundle, for both
    pod = place.bare()
    try:
        limit = get_portal().run(pod.start(bare.ANSWERS))
    finally:
        get_portal().run(pod.end())
    with _quiet():
        start = time.perf_counter()
        with kt.fn(noop, name=f"bench-new-{next(_numbers)}").to(place.compute()) as handle:
            handle()
            ours = time.perf_counter() - start
    return limit, ours, None


WORKLOADS = [
    Workload("W7", "redeploy of changed code", "ms", w7, places=("local", "proxy")),
    Workload("W8", "new service to first result", "s", w8, goals={"proxy": 1.3}, places=("proxy",)),
]
