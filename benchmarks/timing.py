"""Measuring, for us and for the peers; the standard library only, since it runs in the peers' environments too."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

__all__ = ["Lines", "best", "in_threads", "median", "once", "pipelined", "warm"]


def once(action: Callable[[], object]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def median(action: Callable[[], object], n: int) -> float:
    """Seconds that it takes, the median of ``n``."""
    return statistics.median(once(action) for _ in range(n))


def best(action: Callable[[], object], n: int) -> float:
    """Seconds that it takes, the least of ``n``."""
    return min(once(action) for _ in range(n))


def warm(action: Callable[[], object], n: int = 100) -> None:
    """Do it without a clock, for caches and threads."""
    for _ in range(n):
        action()


def pipelined(submit: Callable[[], Future[Any]], n: int, width: int) -> float:
    """Seconds for ``n`` submissions, ``width`` of them at once."""
    start = time.perf_counter()
    pending = {submit() for _ in range(width)}
    submitted = width
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
            if submitted < n:
                pending.add(submit())
                submitted += 1
    return time.perf_counter() - start


def in_threads(actions: Sequence[Callable[[], object]], n: int) -> float:
    """Seconds for ``n`` blocking calls, one thread for each of the actions."""

    def run(action: Callable[[], object], times: int) -> None:
        for _ in range(times):
            action()

    with ThreadPoolExecutor(len(actions)) as pool:
        start = time.perf_counter()
        shares = [n // len(actions) + (i < n % len(actions)) for i in range(len(actions))]
        for done in [pool.submit(run, action, share) for action, share in zip(actions, shares, strict=True)]:
            done.result()
        return time.perf_counter() - start


class Lines:
    """Stands where output is written, and notes when it comes; or reads it from a pipe, in a thread."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, str]] = []
        self._count = 0
        self._came = threading.Condition()

    def write(self, text: str) -> int:
        now = time.monotonic_ns()
        with self._came:
            self._pieces.append((now, text))
            self._count += text.count("\n")
            self._came.notify_all()
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def isatty(self) -> bool:
        return False

    def read(self, descriptor: int) -> None:
        """Read a pipe to its end."""

        def run() -> None:
            while data := os.read(descriptor, 65536):
                self.write(data.decode())

        threading.Thread(target=run, daemon=True).start()

    def wait(self, n: int, timeout: float = 60) -> None:
        """Until that many lines have come.

        Raises
        ------
        RuntimeError
            When some are missing.
        """
        with self._came:
            if not self._came.wait_for(lambda: self._count >= n, timeout):
                raise RuntimeError(f"{self._count:,} of {n:,} lines came in {timeout:g} s")

    def clear(self) -> None:
        with self._came:
            self._pieces.clear()
            self._count = 0

    def delay(self, n: int) -> float:
        """Seconds from the time that a line says until it came, the median of ``n``."""
        self.wait(n)
        with self._came:
            # Peers write more: "(Worker pid=1) " in front of a line, "[stdout:0] " in a line of its own.
            last = [(at, line.split()[-1]) for at, text in self._pieces for line in text.splitlines() if line.split()]
        delays = [at - int(word) for at, word in last if word.isdecimal()]
        assert len(delays) == n, f"{len(delays)} of {n} lines came"
        return statistics.median(delays) / 1e9
