"""W10: what an idle service takes in memory, beyond what its function imports: it imports nothing."""

from __future__ import annotations

import subprocess
import sys

from . import limits, memory
from .places import Place
from .rows import Goal, Row

__all__ = ["ROWS"]

#: A client of its own with this one service, since what several services share counts for each of them in part only.
_IDLE = """
from benchmarks import memory
from benchmarks.w1 import quietly, serve_and_call
with quietly(), serve_and_call() as handle:
    front, worker = memory.front_and_worker(handle)
    found = memory.proportional(front, worker), memory.proportional(memory.zygote(worker))
print(*found)
"""


def _idle() -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", _IDLE], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    served, zygote = map(int, done.stdout.split())
    return served, zygote


def _limit(_: Place) -> float:
    return limits.idle_memory(memory.proportional)


ROWS = [
    Row(
        "W10",
        "front and worker of an idle service (PSS)",
        "MiB",
        _limit,
        lambda _: _idle()[0],
        goals={"local": [Goal(plus=40 << 20)]},
    ),
    Row(
        "W10 zygote",
        "the same, with the process that forks its workers",
        "MiB",
        _limit,
        lambda _: sum(_idle()),
    ),
]
