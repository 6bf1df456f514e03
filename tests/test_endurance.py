"""Many calls from one client leave nothing behind: descriptors, threads, memory (issue case 15)."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
from typing import Any

import pytest

import kubetorch_jupyter as kt
from tests.cells import Cells
from tests.places import Place, Usage


@pytest.fixture
def counts() -> tuple[int, int]:
    """After how many calls it is looked at, twice."""
    return 10_000, 50_000


def test_descriptors_threads_and_memory_stay(counts: tuple[int, int], place: Place) -> None:
    first, last = counts
    cells = Cells()
    cells.run("import time\ndef echo(x, seconds=0):\n    time.sleep(seconds)\n    return x\n")
    with kt.fn(cells["echo"]).to(kt.Compute(), stream_logs=False) as echo:

        def look() -> dict[str, Usage]:
            pods = place.usage(echo)
            gc.collect()
            return {**pods, "client": Usage.of(os.getpid())}

        async def calls(n: int) -> None:
            pending: set[asyncio.Task[Any]] = set()
            for i in range(n):
                pending.add(asyncio.ensure_future(echo(i, async_=True)))
                if len(pending) >= 32:
                    _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.gather(*pending)

        async def fill() -> None:
            """As many threads as there will ever be: how many the calls need by chance says nothing."""
            await asyncio.gather(*(echo(i, 0.2, async_=True) for i in range(64)))

        asyncio.run(fill())
        asyncio.run(calls(first))
        before = look()
        half = (last - first) // 2
        asyncio.run(calls(half))
        between = look()
        asyncio.run(calls(half))
        after = look()
    for name in before:
        descriptors = after[name].descriptors - before[name].descriptors
        threads = after[name].threads - before[name].threads
        # An arena or a thread's stack comes once, what is left of each call in both halves.
        memory = [usage[name].memory for usage in (before, between, after)]
        slope = min(b - a for a, b in itertools.pairwise(memory)) / half
        print(f"{name}: {descriptors:+d} descriptors, {threads:+d} threads, {slope:.1f} bytes a call")
        assert descriptors <= 0, name
        assert threads <= 0, name
        assert slope < 100, f"{name}: {slope:.0f} bytes a call"
