"""Many calls at once: 64 `def` calls, 1,000 `async def` calls, and `concurrency=1`."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

import kubetorch_jupyter as kt
from tests.cells import Cells
from tests.promises import promise


@pytest.fixture
def cells() -> Cells:
    cells = Cells()
    cells.run(
        """
        import asyncio, time

        def wait(seconds):
            time.sleep(seconds)
            return seconds

        async def wait_async(seconds):
            await asyncio.sleep(seconds)
            return seconds

        class Spans:
            def __init__(self):
                self.spans = []

            def span(self, seconds):
                start = time.monotonic()
                time.sleep(seconds)
                self.spans.append((start, time.monotonic()))

            async def span_async(self, seconds):
                start = time.monotonic()
                await asyncio.sleep(seconds)
                self.spans.append((start, time.monotonic()))

            def seen(self):
                return sorted(self.spans)
        """
    )
    return cells


async def _at_once(handle: object, n: int, seconds: float) -> float:
    await handle(0.0, async_=True)  # type: ignore[operator]
    start = time.monotonic()
    results = await asyncio.gather(*(handle(seconds, async_=True) for _ in range(n)))  # type: ignore[operator]
    took = time.monotonic() - start
    assert results == [seconds] * n
    return took


@pytest.mark.timed
def test_64_def_calls_at_once(cells: Cells) -> None:
    with kt.fn(cells["wait"]).to(kt.Compute(), stream_logs=False) as handle:
        took = asyncio.run(_at_once(handle, 64, 0.5))
    promise("64 def calls of 0.5 s at once", took, 1.0)


@pytest.mark.timed
def test_1000_async_def_calls_at_once(cells: Cells) -> None:
    with kt.fn(cells["wait_async"]).to(kt.Compute(), stream_logs=False) as handle:
        took = asyncio.run(_at_once(handle, 1000, 0.5))
    promise("1000 async def calls of 0.5 s at once", took, 2.0)


@pytest.mark.parametrize("concurrency", [1, 2])
def test_concurrency_bounds_def_calls(cells: Cells, concurrency: int) -> None:
    with kt.cls(cells["Spans"]).to(kt.Compute(concurrency=concurrency), stream_logs=False) as spans:

        async def run() -> None:
            await asyncio.gather(*(spans.span(0.05, async_=True) for _ in range(8)))

        asyncio.run(run())
        seen = spans.seen()
    assert len(seen) == 8
    most = max(sum(start <= at < end for start, end in seen) for at, _ in seen)
    assert most == concurrency


def test_concurrency_of_one_serialises_async_def_calls_too(cells: Cells) -> None:
    with kt.cls(cells["Spans"]).to(kt.Compute(concurrency=1), stream_logs=False) as spans:

        async def run() -> None:
            await asyncio.gather(*(spans.span_async(0.05, async_=True) for _ in range(4)))
            await asyncio.gather(*(spans.span(0.05, async_=True) for _ in range(4)))

        asyncio.run(run())
        seen = spans.seen()
    assert len(seen) == 8
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(seen))
