"""What processes use: memory, processor time, GPUs. Read from the system; each look costs a little.

Used by the front where it can see the workers' processes, and by the zygote where it can't (`zygote.container`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from typing import Any

__all__ = ["ask_driver", "cpu_seconds", "descendants", "gpu_rows", "measure", "proportional", "resident"]

#: Seconds that the NVIDIA driver may take to answer.
_DRIVER = 5.0

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")
_QUERY = ("index", "utilization.gpu", "memory.used", "memory.total")


def descendants(pid: int) -> list[int]:
    """A process and all that descend from it (Linux)."""
    out = [pid]
    for parent in out:  # grows while we go through it
        try:
            threads = os.listdir(f"/proc/{parent}/task")
        except FileNotFoundError:
            continue
        for thread in threads:
            try:
                with open(f"/proc/{parent}/task/{thread}/children", "rb") as f:
                    out += map(int, f.read().split())
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended meanwhile
    return out


def resident(pid: int) -> int:
    """Bytes of memory that a process holds, what it shares with others included; 0 when it has ended."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as f:
            return int(f.read().split()[1]) * _PAGE
    except (FileNotFoundError, ProcessLookupError):
        return 0


def proportional(pid: int) -> int:
    """Bytes of memory that a process holds, what it shares divided by the number of those that share it (slow)."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as f:
            for line in f:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return 0


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


def ask_driver(devices: Sequence[str] | None) -> list[dict[str, Any]]:
    """What the NVIDIA driver says of those devices, None: of all that this process can see; see `gpu_rows`."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    which = [f"--id={','.join(devices)}"] if devices is not None else []
    try:
        asked = subprocess.run(
            [program, *which, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DRIVER,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []  # a broken driver: then it isn't known
    return gpu_rows(asked.stdout) if asked.returncode == 0 else []
