"""Keeps workers inside their memory limit: looks at what their processes hold, and kills what holds too much."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING

from ..resources import descendants, proportional, resident

if TYPE_CHECKING:
    from .supervisor import Supervisor
    from .worker import Worker

__all__ = ["MemoryWatch"]

_log = logging.getLogger(__name__)

#: Seconds between two looks: while calls run, and while nothing does.
_BUSY = 0.05
_IDLE = 0.5


def _proportional(pids: list[int]) -> int:
    return sum(map(proportional, pids))


class MemoryWatch:
    """Looks at the workers that have a limit.

    Parameters
    ----------
    supervisor
        Has the workers, and kills them.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._possible = sys.platform == "linux"

    async def run(self) -> None:
        """Look, again and again."""
        if not self._possible:
            return
        while True:
            fleet = self._supervisor.fleet
            limited = [w for w in fleet.workers.values() if w.memory_limit is not None and w.pid is not None]
            for worker in limited:
                await self._check(worker)
            busy = any(w.calls or w.loaded_at is None for w in limited)
            await asyncio.sleep(_BUSY if busy else _IDLE)

    async def _check(self, worker: Worker) -> None:
        limit, pid = worker.memory_limit, worker.pid
        if limit is None or pid is None or worker.killed_for is not None:
            return
        pids = descendants(pid)
        used = sum(map(resident, pids))
        if used > limit and len(pids) > 1:
            # Forked children share most of what they seem to hold. The system looks at each of their pages for this,
            # which takes long when they are large: not on the loop.
            used = await self._loop.run_in_executor(None, _proportional, pids)
        if used > limit:
            text = f"was killed: it and its children held {used >> 20} MiB, its memory_limit is {limit >> 20} MiB"
            self._supervisor.fleet.kill(worker, {"message": text, "cause": "oom", "limit": limit})
