"""W2, W3, W5: small calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any

from .functions import millisecond, noop
from .places import Place
from .rows import Workload, median

__all__ = ["WORKLOADS"]


def w2(place: Place) -> tuple[float, float, float | None]:
    n = 1000
    handle = place.handle(noop)
    peer = median(lambda: place.pool.submit(noop).result(), n) * 1e6 if place.pool is not None else None  # type: ignore[union-attr]
    return place.latency(n) * 1e6, median(handle, n) * 1e6, peer


def w3(place: Place) -> tuple[float, float, float | None]:
    n, width = 5000, 64
    handle = place.handle(noop)
    peer = n / _peer(place.pool, noop, n, width) if place.pool is not None else None
    return place.in_flight(n, width), n / asyncio.run(_ours(handle, n, width)), peer


def w5(place: Place) -> tuple[float, float, float | None]:
    n, width = 1000, 40
    handle = place.handle(millisecond)
    peer = _peer(place.pool, millisecond, n, width) * 1e3 if place.pool is not None else None
    # With nothing but the waiting they would take n / width milliseconds.
    return n / width, asyncio.run(_ours(handle, n, width)) * 1e3, peer


async def _ours(handle: Any, n: int, width: int) -> float:
    """Seconds for ``n`` calls, ``width`` at once."""
    gate = asyncio.Semaphore(width)

    async def one() -> None:
        async with gate:
            await handle(async_=True)

    start = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(n)))
    return time.perf_counter() - start


def _peer(pool: ProcessPoolExecutor, function: Callable[[], None], n: int, width: int) -> float:
    start = time.perf_counter()
    pending: set[Future[None]] = {pool.submit(function) for _ in range(width)}
    submitted = width
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for _ in range(min(len(done), n - submitted)):
            pending.add(pool.submit(function))
            submitted += 1
    return time.perf_counter() - start


WORKLOADS = [
    Workload("W2", "no-op call, median", "µs", w2, promised=1000, goals={"proxy": 3.0}),
    Workload("W3", "no-op calls, 64 in flight", "calls/s", w3, higher_is_better=True, promised=5000),
    Workload("W5", "1,000 calls of 1 ms, 40 at once", "ms", w5),
]
