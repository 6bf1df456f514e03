"""W12: how late a kernel's event loop is while 64 awaited calls stream their lines into a cell.

``python -m benchmarks.w12 SECONDS`` is the control: the same sampling on the loop of a process that does nothing else.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import kubetorch_jupyter as kt

from .functions import stream
from .places import Place
from .rows import Goal, Row

__all__ = ["ROWS", "sampled", "stream_and_sample"]

_CALLS, _SECONDS, _PAUSE, _TICK = 64, 3.0, 0.05, 0.005

_CELL = """
import json, pathlib
from benchmarks.w12 import stream_and_sample
_ = pathlib.Path({result!r}).write_text(json.dumps(await stream_and_sample()))
"""


async def sampled(seconds: float) -> float:
    """Seconds by which a timer of this loop is late: of a hundred times all but the worst."""
    lags, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        await asyncio.sleep(_TICK)
        lags.append(time.perf_counter() - start - _TICK)
    return sorted(lags)[len(lags) * 99 // 100]


async def stream_and_sample() -> dict[str, Any]:
    """In the kernel: all calls at once, sampled here and in the control."""
    with await kt.fn(stream, name="bench-stream").to_async(kt.Compute()) as handle:
        await handle(0, 0, async_=True)
        calls = [asyncio.create_task(handle(_SECONDS + 1, _PAUSE, async_=True)) for _ in range(_CALLS)]
        await asyncio.sleep(0.5)
        control = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, str(_SECONDS), stdout=subprocess.PIPE
        )
        here = await sampled(_SECONDS)
        there = float((await control.communicate())[0])
        lines = sum(await asyncio.gather(*calls))
    return {"kernel": here, "control": there, "lines": lines}


def _in_a_kernel() -> dict[str, Any]:
    from jupyter_client.blocking import BlockingKernelClient
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import KernelManager

    seen: list[str] = []

    def hook(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            seen.append(message["content"]["text"])

    with tempfile.TemporaryDirectory(prefix="kt-bench-") as folder:
        # A specification of our own, so that it is this interpreter's kernel; Unix sockets, so that no port is taken.
        spec = Path(folder) / "kernels" / "bench"
        spec.mkdir(parents=True)
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "bench", "language": "python"}))
        manager = KernelManager(
            kernel_name="bench",
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(spec.parent)], ensure_native_kernel=False),
            transport="ipc",
            ip=str(Path(folder) / "socket"),
            connection_file="",
        )
        manager.start_kernel()
        client: BlockingKernelClient = manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            result = Path(folder) / "result"
            reply = client.execute_interactive(_CELL.format(result=str(result)), output_hook=hook, timeout=60)
            assert reply["content"]["status"] == "ok", reply["content"].get("evalue")
            found: dict[str, Any] = json.loads(result.read_text())
        finally:
            client.stop_channels()
            manager.shutdown_kernel()
    came = "".join(seen).count("line ")
    assert came == found["lines"], f"{came} of {found['lines']} lines came"
    return found


class _Run:
    """One run gives limit and ours, since both are sampled at the same time."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}

    def control(self, _: Place) -> float:
        self._found = _in_a_kernel()
        return float(self._found["control"])

    def kernel(self, _: Place) -> float:
        return float(self._found["kernel"])


_run = _Run()

ROWS = [
    Row(
        "W12",
        "lag of a kernel's loop while 64 calls stream, p99",
        "ms",
        _run.control,
        _run.kernel,
        goals={"local": [Goal(1, plus=0.010)]},
    )
]

if __name__ == "__main__":
    print(asyncio.run(sampled(float(sys.argv[1]))))
