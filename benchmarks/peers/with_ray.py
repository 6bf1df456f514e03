"""Ray: one actor with 64 threads."""

from __future__ import annotations

import contextlib
import itertools
import os
from typing import Any

# Before it is imported: else it shows one of several lines that look alike, and sends what it is used for.
os.environ |= {"RAY_DEDUP_LOGS": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_COLOR_PREFIX": "0"}
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import numpy as np
import ray

from benchmarks import functions, timing

VERSION = ray.__version__
_THREADS = 64


class Worker:
    def noop(self) -> None:
        functions.noop()

    def millisecond(self) -> None:
        functions.millisecond()

    def echo(self, value: Any) -> Any:
        return value

    def spaced(self, n: int) -> None:
        functions.spaced(n)

    def dense(self, n: int, flush: bool) -> None:
        functions.dense(n, flush)


def _actor() -> Any:
    return ray.remote(Worker).options(max_concurrency=_THREADS, num_cpus=0).remote()


class Peer:
    def __init__(self) -> None:
        ray.init(num_cpus=2, include_dashboard=False, logging_level="error", object_store_memory=2 << 30)
        self._actor = _actor()

    def call(self) -> None:
        ray.get(self._actor.noop.remote())

    def another(self) -> float:
        return timing.once(lambda: ray.get(_actor().noop.remote()))

    def latency(self, n: int) -> float:
        timing.warm(self.call)
        return timing.median(self.call, n)

    def _many(self, method: str, n: int, width: int) -> float:
        submit = getattr(self._actor, method).remote

        def run() -> None:
            pending = [submit() for _ in range(width)]
            submitted = width
            while pending:
                done, pending = ray.wait(pending, num_returns=1)
                ray.get(done)
                if submitted < n:
                    pending.append(submit())
                    submitted += 1

        return timing.once(run)

    def in_flight(self, n: int, width: int) -> float:
        n = min(n, 2000)  # it takes long
        return n / self._many("noop", n, width)

    def sleeps(self, n: int, width: int) -> float:
        return self._many("millisecond", n, width)

    def bulk(self, size: int) -> float:
        array = np.ones(size, dtype=np.uint8)

        def run() -> None:
            assert ray.get(self._actor.echo.remote(array)).nbytes == size

        return 2 * size / timing.best(run, 2)

    def line(self, n: int) -> float:
        return self._printed("spaced", n, n).delay(n)

    def lines(self, n: int) -> float:
        return timing.once(lambda: self._printed("dense", n, n, False))

    def flushed_lines(self, n: int) -> float:
        return timing.once(lambda: self._printed("dense", n, n, True))

    def _printed(self, method: str, n: int, *arguments: Any) -> timing.Lines:
        lines = timing.Lines()
        with contextlib.redirect_stdout(lines):
            ray.get(getattr(self._actor, method).remote(*arguments))
            lines.wait(n)
        return lines

    def redeploy(self, n: int) -> float:
        numbers = itertools.count()

        def run() -> None:
            number = next(numbers)
            assert ray.get(ray.remote(functions.changed(number)).remote()) == number

        run()
        return timing.median(run, n)

    def close(self) -> None:
        ray.shutdown()
