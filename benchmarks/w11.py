"""W11: what growth costs: more services, more calls in flight, larger payloads.

Each curve has a row for each of its points, and a last one whose limit is ours at a smaller point: what it costs a
piece must not grow with the number of pieces.
"""

from __future__ import annotations

import statistics

import kubetorch_jupyter as kt

from . import limits, memory, timing
from .functions import noop
from .places import Place
from .rows import Goal, Row
from .w1 import quietly, serve_and_call
from .w3 import awaited
from .w4 import there_and_back

__all__ = ["ROWS"]

_SERVICES = (1, 10, 100)
_WIDTHS = (1, 8, 64, 512)
_SIZES = {"1 KiB": 1 << 10, "64 KiB": 64 << 10, "1 MiB": 1 << 20, "16 MiB": 16 << 20, "256 MiB": 256 << 20}


class _Crowd:
    """Services that are deployed one after the other; each round begins with none."""

    def __init__(self) -> None:
        self._handles: list[kt.Fn] = []
        self._took: list[float] = []
        #: Seconds of a call of the first one, when it was the only one.
        self.alone = 0.0

    def grow(self, n: int) -> float:
        """Seconds for the last of ``n`` services, the median of the last tenth."""
        if n == _SERVICES[0]:
            self.end()
        with quietly():
            while len(self._handles) < n:
                self._took.append(timing.once(lambda: self._handles.append(serve_and_call())))
        if n == _SERVICES[0]:
            self.alone = self._latency()
        return statistics.median(self._took[-max(1, n // 10) :])

    def took(self, first: int, last: int) -> float:
        """Seconds for one of these, in the median."""
        return statistics.median(self._took[first:last])

    def _latency(self) -> float:
        timing.warm(self._handles[0])
        return timing.median(self._handles[0], 500)

    def crowded(self) -> float:
        """Seconds of a call of the first one with all of them alive, which are ended then."""
        seconds = self._latency()
        self.end()
        return seconds

    def memory(self, n: int) -> float:
        """Bytes for each of the first ``n``: front, worker and zygote."""
        pids = [memory.front_and_worker(handle) for handle in self._handles[:n]]
        return memory.proportional(*(pid for pair in pids for pid in (*pair, memory.zygote(pair[1])))) / n

    def end(self) -> None:
        handles, self._handles, self._took = self._handles, [], []
        with quietly():
            for handle in handles:
                handle.teardown()


_crowd = _Crowd()


def _service(n: int) -> Row:
    return Row(
        f"W11 service {n}",
        f"service number {n}, until its first result",
        "ms",
        lambda _: limits.process("pass"),
        lambda _: _crowd.grow(n),
    )


def _width(n: int) -> Row:
    calls = max(2000, 8 * n)
    return Row(
        f"W11 {n} at once",
        f"no-op calls, {n} at once",
        "calls/s",
        lambda place: place.in_flight(calls, n),
        lambda place: _rate(place, n),
        higher_is_better=True,
    )


def _rate(place: Place, n: int) -> float:
    calls = max(2000, 8 * n) // n * n
    return calls / awaited(place.handle(noop), calls, n)


def _size(said: str) -> Row:
    size = _SIZES[said]
    return Row(
        f"W11 {said}",
        f"array of {said} there and back",
        "GB/s",
        lambda place: place.bulk(size),
        lambda place: there_and_back(place, size),
        higher_is_better=True,
    )


ROWS = [
    *map(_service, _SERVICES),
    Row(
        "W11 services",
        "one of services 91 to 100; limit: one of services 2 to 10",
        "ms",
        lambda _: _crowd.took(1, 10),
        lambda _: _crowd.took(90, 100),
        goals={"local": [Goal(1.5)]},
    ),
    Row(
        "W11 memory",
        "memory of each of 100 services (PSS, with zygote); limit: 40 MiB",
        "MiB",
        lambda _: 40 << 20,
        lambda _: _crowd.memory(_SERVICES[-1]),
        goals={"local": [Goal(1)]},
    ),
    Row(
        "W11 crowded",
        "no-op call while 100 services are there; limit: while 1 is",
        "µs",
        lambda _: _crowd.alone,
        lambda _: _crowd.crowded(),
        goals={"local": [Goal(1.5)]},
    ),
    *map(_width, _WIDTHS),
    Row(
        "W11 width",
        "no-op calls, 512 at once; limit: ours with 64",
        "calls/s",
        lambda place: _rate(place, 64),
        lambda place: _rate(place, 512),
        higher_is_better=True,
        goals={"local": [Goal(0.8)]},
    ),
    *map(_size, _SIZES),
    Row(
        "W11 size",
        "array of 256 MiB there and back; limit: ours with 16 MiB",
        "GB/s",
        lambda place: there_and_back(place, 16 << 20),
        lambda place: there_and_back(place, 256 << 20),
        higher_is_better=True,
        goals={"local": [Goal(0.8)]},
    ),
]
