"""What the workers of a pod use just now: memory, processor time, GPUs. Looked at only when somebody asks."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .memory import descendants, proportional, resident

if TYPE_CHECKING:
    from .fleet import Fleet

__all__ = ["Usage", "cpu_seconds", "gpu_rows", "measure"]

#: A look is not repeated before so many seconds, and not before so many times what it took.
_FRESH = 0.4
_SHARE = 10
#: Seconds that the NVIDIA driver may take to answer, and for which its answer holds.
_DRIVER = 5.0
_GPU_FRESH = 2.0

_TICK = os.sysconf("SC_CLK_TCK")
_QUERY = ("index", "utilization.gpu", "memory.used", "memory.total")


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and of the children that it has waited for; 0 when it has ended (Linux)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            text = f.read()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    # The name in parentheses may itself hold spaces and parentheses.
    return sum(map(int, text.rpartition(b")")[2].split()[11:15])) / _TICK


def measure(pids: Sequence[int]) -> dict[str, Any]:
    """What those processes and all that descend from them hold and have used.

    Returns
    -------
    dict
        ``memory`` in bytes, as ``memory_limit`` counts it; ``cpu`` in seconds; ``at``, when that was, in seconds of a
        clock that only this machine has.
    """
    memory = 0
    cpu = 0.0
    for pid in pids:
        tree = descendants(pid)
        # Forked children share most of what they seem to hold.
        memory += sum(map(proportional if len(tree) > 1 else resident, tree))
        cpu += sum(map(cpu_seconds, tree))
    return {"memory": memory, "cpu": cpu, "at": time.monotonic()}


def gpu_rows(text: str) -> list[dict[str, Any]]:
    r"""What ``nvidia-smi`` says, as ``index``, ``use`` in per cent, ``memory`` and ``memory_total`` in bytes.

    What a device doesn't tell is None.

    Examples
    --------
    >>> gpu_rows("0, 37, 1024, 81559\n1, [N/A], 0, 81559\n")[1]
    {'index': '1', 'use': None, 'memory': 0, 'memory_total': 85520809984}
    """
    rows = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != len(_QUERY):
            continue
        use, memory, total = (int(f) if f.isdecimal() else None for f in fields[1:])
        rows.append(
            {
                "index": fields[0],
                "use": use,
                "memory": memory << 20 if memory is not None else None,
                "memory_total": total << 20 if total is not None else None,
            }
        )
    return rows


def _ask_driver(devices: Sequence[str]) -> list[dict[str, Any]]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        asked = subprocess.run(
            [program, f"--id={','.join(devices)}", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DRIVER,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []  # a broken driver: then it isn't known
    return gpu_rows(asked.stdout) if asked.returncode == 0 else []


class Usage:
    """Looks at the workers of a pod, off its loop, and at most one look at a time.

    Parameters
    ----------
    fleet
        Has the workers.
    devices
        The pod's GPUs.
    """

    def __init__(self, fleet: Fleet, devices: Sequence[str]) -> None:
        self._fleet = fleet
        self._devices = tuple(devices)
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Callable[[dict[str, Any]], None]] = []
        self._last: dict[str, Any] = {"memory": None, "cpu": None, "gpus": [], "at": None}
        self._next = 0.0
        self._gpus_next = 0.0
        self._possible = sys.platform == "linux"

    def ask(self, then: Callable[[dict[str, Any]], None]) -> None:
        """Give ``memory`` (bytes), ``cpu`` (seconds), ``at`` and ``gpus`` to `then`, now or soon.

        Who asks too often gets what was seen last.
        """
        if not self._possible or self._loop.time() < self._next:
            then(self._last)
            return
        self._waiting.append(then)
        if len(self._waiting) == 1:
            pids = [w.pid for w in self._fleet.workers.values() if w.pid is not None]
            self._loop.run_in_executor(None, self._look, pids).add_done_callback(self._seen)

    def _look(self, pids: list[int]) -> dict[str, Any]:
        begun = time.monotonic()
        seen = measure(pids)
        took = time.monotonic() - begun
        gpus = self._last["gpus"]
        if self._devices and time.monotonic() >= self._gpus_next:
            gpus = _ask_driver(self._devices)
            self._gpus_next = time.monotonic() + _GPU_FRESH
        return {**seen, "gpus": gpus, "took": took}

    def _seen(self, look: asyncio.Future[dict[str, Any]]) -> None:
        waiting, self._waiting = self._waiting, []
        if look.cancelled():
            return  # the pod ends
        seen = look.result()
        self._next = self._loop.time() + max(_FRESH, _SHARE * seen.pop("took"))
        self._last = seen
        for then in waiting:
            then(seen)
