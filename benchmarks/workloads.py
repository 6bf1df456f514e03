"""The workloads: each gives ``(limit, ours, peer)`` of one round, through the public API, logs and all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

import kubetorch_jupyter as kt

from . import limits

__all__ = ["WORKLOADS", "Bench", "Workload"]


def noop() -> None:
    """Nothing."""


def echo(value: Any) -> Any:
    """The value."""
    return value


class Bench:
    """What the workloads share: a limit's server, a service for each function, and a process pool."""

    def __init__(self, port: int, pool: ProcessPoolExecutor) -> None:
        self.port = port
        self.pool = pool
        self.noop = kt.fn(noop).to(kt.Compute())
        self.echo = kt.fn(echo).to(kt.Compute())

    def close(self) -> None:
        """End the services."""
        self.noop.teardown()
        self.echo.teardown()


@dataclass(frozen=True)
class Workload:
    """One row: ``run(bench)`` gives limit, ours and peer in ``unit``; ``promised`` is what this version must reach."""

    name: str
    what: str
    unit: str
    higher_is_better: bool
    promised: float
    peer: str
    run: Callable[[Bench], tuple[float, float, float]]


def _median(action: Callable[[], object], n: int) -> float:
    times = []
    for _ in range(n):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return sorted(times)[n // 2]


def w2(bench: Bench) -> tuple[float, float, float]:
    """No-op call, blocking, median."""
    n = 1000
    return (
        limits.latency(bench.port, n) * 1e6,
        _median(bench.noop, n) * 1e6,
        _median(lambda: bench.pool.submit(noop).result(), n) * 1e6,
    )


def w3(bench: Bench) -> tuple[float, float, float]:
    """No-op calls, 64 in flight."""
    n, width = 5000, 64

    async def ours() -> float:
        gate = asyncio.Semaphore(width)

        async def one() -> None:
            async with gate:
                await bench.noop(async_=True)

        start = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(n)))
        return n / (time.perf_counter() - start)

    start = time.perf_counter()
    pending = {bench.pool.submit(noop) for _ in range(width)}
    submitted = width
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for _ in range(min(len(done), n - submitted)):
            pending.add(bench.pool.submit(noop))
            submitted += 1
    peer = n / (time.perf_counter() - start)
    return limits.in_flight(bench.port, n, width), asyncio.run(ours()), peer


def w4(bench: Bench) -> tuple[float, float, float]:
    """An array of 64 MiB there and back."""
    array = np.ones(64 << 20, dtype=np.uint8)
    return (
        min(limits.bulk(bench.port, array.nbytes) for _ in range(2)),
        min(_median(lambda: bench.echo(array), 1) for _ in range(2)),
        min(_median(lambda: bench.pool.submit(echo, array).result(), 1) for _ in range(2)),
    )


WORKLOADS = [
    Workload("W2", "no-op call, median", "µs", False, 1000, "ProcessPoolExecutor", w2),
    Workload("W3", "no-op calls, 64 in flight", "calls/s", True, 5000, "ProcessPoolExecutor", w3),
    Workload("W4", "64 MiB array there and back", "s", False, 0.5, "ProcessPoolExecutor", w4),
]
