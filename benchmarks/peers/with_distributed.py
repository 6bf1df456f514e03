"""Dask's distributed: a local cluster of one worker process with 64 threads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import distributed
import numpy as np

from benchmarks import timing
from benchmarks.functions import changed, echo, millisecond, noop

VERSION = distributed.__version__
_THREADS = 64


def _spaced(n: int) -> None:
    import time

    for _ in range(n):
        distributed.print(time.monotonic_ns())
        time.sleep(0.01)


def _dense(n: int) -> None:
    for number in range(n):
        distributed.print("line", number)


class Peer:
    def __init__(self) -> None:
        self._cluster: Any = distributed.LocalCluster(
            n_workers=1, threads_per_worker=_THREADS, processes=True, dashboard_address=None, silence_logs=40
        )
        self._client: Any = distributed.Client(self._cluster)

    def call(self) -> None:
        self._client.submit(noop, pure=False).result()

    def latency(self, n: int) -> float:
        timing.warm(self.call, 20)
        return timing.median(self.call, min(n, 200))  # it takes long

    def _many(self, function: Callable[[], None], n: int, width: int) -> float:
        def run() -> None:
            futures = [self._client.submit(function, pure=False) for _ in range(width)]
            completed = distributed.as_completed(futures)
            submitted = width
            for _ in completed:
                if submitted < n:
                    completed.add(self._client.submit(function, pure=False))
                    submitted += 1

        return timing.once(run)

    def in_flight(self, n: int, width: int) -> float:
        n = min(n, 2000)  # it takes long
        return n / self._many(noop, n, width)

    def sleeps(self, n: int, width: int) -> float:
        return self._many(millisecond, n, width)

    def bulk(self, size: int) -> float:
        array = np.ones(size, dtype=np.uint8)

        def run() -> None:
            # To the worker itself: through the scheduler it is slower.
            there = self._client.scatter(array, direct=True, hash=False)
            back = self._client.gather(self._client.submit(echo, there, pure=False), direct=True)
            assert back.nbytes == size

        return 2 * size / timing.best(run, 2)

    def line(self, n: int) -> float:
        return self._printed(_spaced, n, n).delay(n)

    def lines(self, n: int) -> float:
        return timing.once(lambda: self._printed(_dense, n, n))

    def _printed(self, function: Any, n: int, *arguments: Any) -> timing.Lines:
        lines = timing.Lines()
        with contextlib.redirect_stdout(lines):
            self._client.submit(function, *arguments, pure=False).result()
            lines.wait(n)
        return lines

    def redeploy(self, n: int) -> float:
        numbers = iter(range(n + 1))

        def run() -> None:
            number = next(numbers)
            assert self._client.submit(changed(number), pure=False).result() == number

        run()
        return timing.median(run, n)

    def close(self) -> None:
        self._client.close()
        self._cluster.close()
