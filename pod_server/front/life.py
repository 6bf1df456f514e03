"""How long a pod lives: as long as an owner does, or until nobody has called for a while."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import processes

if TYPE_CHECKING:
    from .records import Record

__all__ = ["Life"]

_log = logging.getLogger(__name__)

#: Seconds between two looks at an owner where the system can't tell us by itself.
_LOOK = 0.5
#: A time to live of more seconds is none; timers don't count that far.
_FOR_EVER = 1e8


class Life:
    """The owners and the time to live of a pod.

    Parameters
    ----------
    detach
        The pod outlives its owners.
    ttl
        Seconds without a call after which it ends; None: never.
    stop
        Called with the reason when it is time to end.
    """

    def __init__(self, detach: bool, ttl: float | None, stop: Callable[[str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._detach = detach
        self.ttl = ttl
        self._stop = stop
        #: Descriptors of the owners that live; None where the system has no pidfds.
        self._owners: dict[tuple[int, int | None], int | None] = {}
        self._looking: asyncio.TimerHandle | None = None
        #: Calls that have begun and not ended.
        self.active = 0
        self._last = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        #: Asked when this pod's time has come and others belong to the same service: it says whether, or when to ask
        #: again.
        self.agree: Callable[[], None] | None = None
        self._arm()

    # -- owners --------------------------------------------------------------------------------------------------------

    @property
    def owners(self) -> list[int]:
        """Process ids of the owners that live."""
        return [pid for pid, _ in self._owners]

    def adopt(self, pid: int, start: int | None = None) -> bool:
        """Add an owner; False when there is no such process.

        Parameters
        ----------
        pid, start
            The process, and when it began in clock ticks since boot (pids come back).
        """
        if start is None:
            start = _start_of(pid)
        if (pid, start) in self._owners:
            return True
        try:
            fd = processes.open_pidfd(pid, start)
        except ProcessLookupError:
            return False
        self._owners[pid, start] = fd
        if fd is not None:
            self._loop.add_reader(fd, self._ended, pid, start)
        elif self._looking is None:
            self._looking = self._loop.call_later(_LOOK, self._look)
        return True

    def begin(self, owners: list[int]) -> None:
        """Take on the first owners; the pod ends at once if they have ended already."""
        for pid in owners:
            self.adopt(pid)
        if owners and not self._owners and not self._detach:
            self._stop("the process that it belongs to has ended")

    def _ended(self, pid: int, start: int | None) -> None:
        fd = self._owners.pop((pid, start), None)
        if fd is not None:
            self._loop.remove_reader(fd)
            os.close(fd)
        _log.info("owner %d has ended", pid)
        if not self._owners and not self._detach:
            self._stop("the process that it belongs to has ended")

    def _look(self) -> None:
        self._looking = None
        for (pid, start), fd in list(self._owners.items()):
            if fd is None and not _alive(pid, start):
                self._ended(pid, start)
        if any(fd is None for fd in self._owners.values()):
            self._looking = self._loop.call_later(_LOOK, self._look)

    # -- time to live --------------------------------------------------------------------------------------------------

    def began(self, record: Record) -> None:
        """A call has begun."""
        self.active += 1
        self._last = self._loop.time()

    def ended(self, record: Record) -> None:
        """A call has ended."""
        self.active -= 1
        self._last = self._loop.time()

    def touch(self) -> None:
        """Count from now on, as if there had been a call."""
        self._last = self._loop.time()

    def set_ttl(self, ttl: float | None) -> None:
        """Another time to live, in seconds; None: for ever."""
        self.ttl = None if ttl is not None and ttl > _FOR_EVER else ttl
        self._arm()

    @property
    def idle(self) -> float:
        """Seconds since the last call; 0 while one runs."""
        return 0.0 if self.active else self._loop.time() - self._last

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.ttl is not None:
            # One timer that looks again when it is due, not one that is put off at each call.
            self._timer = self._loop.call_later(max(self.ttl - self.idle, 0.01), self._due)

    @property
    def due(self) -> bool:
        """Whether nobody has called this pod for its time to live."""
        return self.ttl is not None and not self.active and self.idle >= self.ttl

    def _due(self) -> None:
        self._timer = None
        if not self.due:
            self._arm()
        elif self.agree is not None:
            self.agree()
        else:
            self.expire()

    def expire(self) -> None:
        """End the pod because its time has come."""
        self._stop(f"nobody has called it for {self.ttl or 0:.0f} s (its time to live)")

    def again(self, delay: float) -> None:
        """Look again whether the time has come, in so many seconds."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay, self._due)

    def close(self) -> None:
        """Watch nothing any more."""
        for handle in (self._timer, self._looking):
            if handle is not None:
                handle.cancel()
        for fd in self._owners.values():
            if fd is not None:
                self._loop.remove_reader(fd)
                os.close(fd)
        self._owners.clear()


def _start_of(pid: int) -> int | None:
    return processes.start_of(pid) if os.path.isdir("/proc/self") else None


def _alive(pid: int, start: int | None) -> bool:
    if start is not None:
        return processes.is_alive(pid, start)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it lives as somebody else
    return True
