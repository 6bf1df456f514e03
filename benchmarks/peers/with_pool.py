"""The standard library's ProcessPoolExecutor: two processes, forked."""

from __future__ import annotations

import multiprocessing
import os
import platform
from concurrent.futures import ProcessPoolExecutor

from benchmarks import timing
from benchmarks.functions import dense, noop, spaced

VERSION = platform.python_version()


class Peer:
    def __init__(self) -> None:
        # What the processes print comes here: they have this process's output.
        descriptor, theirs = os.pipe()
        os.dup2(theirs, 1)
        os.close(theirs)
        # This process has no threads yet, so the cheapest way is safe.
        self._pool = ProcessPoolExecutor(2, multiprocessing.get_context("fork"))
        self._pool.submit(noop).result()
        self._lines = timing.Lines()
        self._lines.read(descriptor)

    def call(self) -> None:
        self._pool.submit(noop).result()

    def another(self) -> float:
        # Not fork: this process has threads by now.
        with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
            pool.submit(noop).result()  # starts the fork server
        with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
            return timing.once(lambda: pool.submit(noop).result())

    def latency(self, n: int) -> float:
        timing.warm(self.call)
        return timing.median(self.call, n)

    def in_flight(self, n: int, width: int) -> float:
        return n / timing.pipelined(lambda: self._pool.submit(noop), n, width)

    def line(self, n: int) -> float:
        self._lines.clear()
        self._pool.submit(spaced, n).result()
        return self._lines.delay(n)

    def lines(self, n: int) -> float:
        return timing.once(lambda: self._printed(n, False))

    def flushed_lines(self, n: int) -> float:
        return timing.once(lambda: self._printed(n, True))

    def _printed(self, n: int, flush: bool) -> None:
        self._lines.clear()
        self._pool.submit(dense, n, flush).result()
        self._lines.wait(n)

    def close(self) -> None:
        self._pool.shutdown()
