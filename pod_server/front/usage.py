"""What the workers of a pod use just now: memory, processor time, GPUs. Looked at only when somebody asks."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..resources import ask_driver, measure

if TYPE_CHECKING:
    from .fleet import Fleet

__all__ = ["Usage"]

#: A look is not repeated before so many seconds, and not before so many times what it took.
_FRESH = 0.4
_SHARE = 10
#: Seconds for which what the NVIDIA driver has answered holds.
_GPU_FRESH = 2.0
_UNKNOWN: dict[str, Any] = {"memory": None, "cpu": None, "gpus": [], "at": None}
#: Seconds that a zygote in another container may take to answer.
_REMOTE = 8.0


class Usage:
    """Looks at the workers of a pod, off its loop, and at most one look at a time.

    Parameters
    ----------
    fleet
        Has the workers.
    devices
        The pod's GPUs.
    remote
        The processes are in another container: the zygote there is asked.
    """

    def __init__(self, fleet: Fleet, devices: Sequence[str], *, remote: bool = False) -> None:
        self._fleet = fleet
        self._remote = remote
        self._devices = tuple(devices)
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Callable[[dict[str, Any]], None]] = []
        self._last: dict[str, Any] = dict(_UNKNOWN)
        self._asking: asyncio.Task[dict[str, Any]] | None = None
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
        if len(self._waiting) > 1:
            return
        if self._remote:
            self._asking = self._loop.create_task(self._ask_zygote())
            self._asking.add_done_callback(self._seen)
        else:
            pids = [w.pid for w in self._fleet.workers.values() if w.pid is not None]
            self._loop.run_in_executor(None, self._look, pids).add_done_callback(self._seen)

    async def _ask_zygote(self) -> dict[str, Any]:
        answer = self._fleet.ask_zygote("usage")
        await asyncio.wait({answer}, timeout=_REMOTE)
        said = answer.result() if answer.done() and not answer.cancelled() else {}
        answer.cancel()
        took = said.get("took")
        seen = {key: said.get(key, default) for key, default in _UNKNOWN.items()}
        return {**seen, "took": took if isinstance(took, (int, float)) else 0.0}

    def _look(self, pids: list[int]) -> dict[str, Any]:
        begun = time.monotonic()
        seen = measure(pids)
        took = time.monotonic() - begun
        gpus = self._last["gpus"]
        if self._devices and time.monotonic() >= self._gpus_next:
            gpus = ask_driver(self._devices)
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
