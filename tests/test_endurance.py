"""Many calls from one client leave nothing behind: descriptors, threads, memory (issue case 15)."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import psutil

import kubetorch_jupyter as kt
from tests.cells import Cells


def _count(process: psutil.Process) -> tuple[int, int, int]:
    return process.num_fds(), process.num_threads(), process.memory_info().rss


def test_descriptors_threads_and_memory_stay() -> None:
    first, last = 10_000, 50_000
    cells = Cells()
    cells.run("import time\ndef echo(x, seconds=0):\n    time.sleep(seconds)\n    return x\n")
    with kt.fn(cells["echo"]).to(kt.Compute(), stream_logs=False) as echo:
        status = echo.service.status()
        processes = {
            "client": psutil.Process(),
            "front": psutil.Process(int(status["pid"])),
            "worker": psutil.Process(int(status["worker"])),
        }

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
        gc.collect()
        before = {name: _count(process) for name, process in processes.items()}
        asyncio.run(calls(last - first))
        gc.collect()
        after = {name: _count(process) for name, process in processes.items()}
    for name in processes:
        fds, threads, rss = (b - a for a, b in zip(before[name], after[name], strict=True))
        slope = rss / (last - first)
        print(f"{name}: {fds:+d} descriptors, {threads:+d} threads, {slope:.1f} bytes a call")
        assert fds <= 0, name
        assert threads <= 0, name
        assert slope < 100, f"{name}: {slope:.0f} bytes a call"
