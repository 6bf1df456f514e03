"""What processes hold in memory, as the kernel counts it (Linux)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import psutil

import kubetorch_jupyter as kt

__all__ = ["front_and_worker", "growth", "proportional", "zygote"]


def _field(path: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    assert found is not None, f"{path} has no {name}"
    return int(found[1]) << 10


def proportional(*pids: int) -> int:
    """Bytes of the processes together; what is shared is divided by the number of those that share it."""
    return sum(_field(Path(f"/proc/{pid}/smaps_rollup"), "Pss") for pid in pids)


def growth(pid: int, action: Callable[[], object]) -> int:
    """Bytes by which a process was larger at its largest, while something was done, than before."""
    status = Path(f"/proc/{pid}/status")
    before = _field(status, "VmRSS")
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # from here on the largest is this
    action()
    return _field(status, "VmHWM") - before


def front_and_worker(handle: kt.Fn) -> tuple[int, int]:
    """The two processes of a local service that see its calls."""
    worker = int(handle.service.status()["worker"])
    endpoint = handle.service.endpoint
    assert endpoint is not None
    port = int(endpoint.url.rpartition(":")[2].partition("/")[0])
    listening = psutil.net_connections("tcp")
    front = next(c.pid for c in listening if c.status == psutil.CONN_LISTEN and c.laddr.port == port)
    assert front is not None
    return front, worker


def zygote(worker: int) -> int:
    """The process that forks the service's workers."""
    return psutil.Process(worker).ppid()
