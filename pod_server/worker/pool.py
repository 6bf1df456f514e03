"""Threads for ``def`` calls: started when needed, kept, and used again last in, first out (the warmest first).

Not `concurrent.futures`: its hand-off costs twice as much, and a thread that doesn't come back from a cancelled call
must be replaceable.
"""

from __future__ import annotations

import collections
import contextvars
import itertools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .calls import Call

__all__ = ["Interruptible", "Pool", "PoolThread", "Sleeper", "sleepers"]


class Interruptible(Protocol):
    """What runs on a thread and may be interrupted there: a call, or a cell."""

    def raise_cancelled(self) -> None:
        """Raise `Cancelled` in it, if it runs at this moment."""
        ...


class Sleeper(Protocol):
    """A thread whose work, and `time.sleep`, can be ended."""

    @property
    def call(self) -> Interruptible | None:
        """What may be interrupted there at this moment."""
        ...

    @property
    def nap(self) -> threading.Lock:
        """Held until a sleep is to end."""
        ...


#: Such threads by identity, for those who ask from within one (`interrupt.sleep`).
sleepers: dict[int, Sleeper] = {}


class PoolThread(threading.Thread):
    """One thread of the pool.

    Attributes
    ----------
    call
        What it runs and may be interrupted in.
    nap
        A lock that is held, except when a sleep is to end because the call was cancelled.
    """

    def __init__(self, pool: Pool, number: int) -> None:
        super().__init__(name=f"call-{number}", daemon=True)
        self.pool = pool
        #: What it runs or was given to run. Set by who has taken it from the idle ones, before `wake` is released; else
        #: the pool's lock guards it.
        self.job: Call | None = None
        #: Whether that takes a place.
        self.counted = False
        self.abandoned = False
        self.call: Call | None = None
        self.nap = threading.Lock()
        self.nap.acquire()
        self.wake = threading.Lock()
        self.wake.acquire()

    def run(self) -> None:
        """Run calls until it is abandoned."""
        ident = threading.get_ident()
        sleepers[ident] = self
        try:
            self.pool.serve(self)
        finally:
            del sleepers[ident]


class Pool:
    """The threads, and the calls that wait for one.

    One thread at a time is woken for what waits; when it has taken a call and more wait, it wakes the next. So of many
    small calls that come together, two or three threads run most, one after the other. To wake a thread for each costs
    more than such a call, since all of them take turns at the interpreter's lock (no-op calls, 64 in flight: 1.6 times
    as many a second). A call that blocks holds up nobody: the next thread is on its way before it begins.

    Parameters
    ----------
    limit
        How many calls run at once.
    run
        Called in a thread of the pool with the call and the thread.
    """

    def __init__(self, limit: int, run: Callable[[Call, PoolThread], None]) -> None:
        self.limit = limit
        self._run = run
        self._lock = threading.Lock()
        self._idle: list[PoolThread] = []
        self._queue: collections.deque[Call] = collections.deque()
        self._busy = 0
        #: A thread has been woken for the queue and hasn't looked at it yet. True whenever there is a call that waits
        #: and a place for it.
        self._coming = False
        self._numbers = itertools.count(1)

    def submit(self, call: Call, *, extra: bool = False) -> None:
        """Run a call when there is a place for it; `extra`: at once, and it takes nobody's place."""
        if not extra:
            self._queue.append(call)
            self._summon()
            return
        with self._lock:
            thread = self._idle.pop() if self._idle else None
        self._wake(thread, call)

    def _summon(self) -> None:
        """Wake a thread for what waits, if there is a place for it."""
        with self._lock:
            if self._coming or not self._queue or self._busy >= self.limit:
                return
            self._coming = True
            thread = self._idle.pop() if self._idle else None
        try:
            self._wake(thread, None)
        except RuntimeError:
            self._coming = False
            if not self._busy:
                raise  # the system gives us no thread at all
            # Those that there are take what waits, one after the other.

    def _wake(self, thread: PoolThread | None, job: Call | None) -> None:
        """Have a thread run `job`, or without one what waits; a new thread when none is idle."""
        if thread is None:
            thread = PoolThread(self, next(self._numbers))
            thread.job = job
            # Maybe at the end of a call: the thread is not the call's.
            contextvars.Context().run(thread.start)
        else:
            thread.job = job
            thread.wake.release()

    def serve(self, thread: PoolThread) -> None:
        """The life of a thread."""
        run, lock, queue, wake = self._run, self._lock, self._queue, thread.wake
        job = thread.job
        while True:
            if job is None:
                with lock:
                    self._coming = False
                    job = self._take(thread)
                if queue:
                    self._summon()
            while job is not None:
                run(job, thread)
                with lock:
                    thread.job = None
                    if thread.abandoned:
                        return
                    if thread.counted:
                        self._busy -= 1
                    job = self._take(thread)
            # Not a look at `thread.job` before: whoever takes it from the idle ones sets that, and then wakes it.
            wake.acquire()
            job = thread.job

    def _take(self, thread: PoolThread) -> Call | None:
        """Give a thread a call that waits, or count it as idle; the lock is held."""
        thread.counted = bool(self._queue) and self._busy < self.limit
        if not thread.counted:
            self._idle.append(thread)
            return None
        thread.job = self._queue.popleft()
        self._busy += 1
        return thread.job

    def abandon(self, thread: PoolThread, call: Call) -> None:
        """Give the place of the thread that runs `call` to another: the call was cancelled and doesn't end.

        The thread ends with it.
        """
        with self._lock:
            if thread.job is not call or thread.abandoned:
                return
            thread.abandoned = True
            if not thread.counted:
                return
            self._busy -= 1
        self._summon()

    def resize(self, limit: int) -> None:
        """Change how many calls run at once."""
        self.limit = limit
        self._summon()
