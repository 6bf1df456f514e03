"""ipyparallel: a cluster of one engine on this machine, and a direct view of it."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from typing import Any

import ipyparallel
import numpy as np

from benchmarks import timing
from benchmarks.functions import changed, dense, echo, noop, spaced

VERSION = ipyparallel.__version__


class Peer:
    def __init__(self) -> None:
        self._cluster = ipyparallel.Cluster(n=1, log_level=logging.ERROR)
        self._client: Any = self._cluster.start_and_connect_sync(activate=False)
        self._view: Any = self._client[0]

    def call(self) -> None:
        self._view.apply_sync(noop)

    def latency(self, n: int) -> float:
        timing.warm(self.call)
        return timing.median(self.call, min(n, 300))  # it takes long

    def in_flight(self, n: int, width: int) -> float:
        n = min(n, 1000)  # it takes long

        def run() -> None:
            pending: deque[Any] = deque()
            for _ in range(n):
                if len(pending) == width:
                    pending.popleft().get()
                pending.append(self._view.apply_async(noop))
            for result in pending:
                result.get()

        return n / timing.once(run)

    def bulk(self, size: int) -> float:
        array = np.ones(size, dtype=np.uint8)

        def run() -> None:
            assert self._view.apply_sync(echo, array).nbytes == size

        return 2 * size / timing.best(run, 2)

    def line(self, n: int) -> float:
        return self._printed(spaced, n).delay(n)

    def lines(self, n: int) -> float:
        return timing.once(lambda: self._printed(dense, n, False))

    def _printed(self, function: Any, n: int, *more: Any) -> timing.Lines:
        lines = timing.Lines()
        with contextlib.redirect_stdout(lines):
            result = self._view.apply_async(function, n, *more)
            with result.stream_output():
                result.get()
                lines.wait(n + 1)  # the first says which engine it is
        return lines

    def redeploy(self, n: int) -> float:
        numbers = iter(range(n + 1))

        def run() -> None:
            number = next(numbers)
            assert self._view.apply_sync(changed(number)) == number

        run()
        return timing.median(run, n)

    def close(self) -> None:
        self._client.close()
        self._cluster.stop_cluster_sync()
