"""Cancelling: `Cancelled` raised in the thread of a ``def`` call, `asyncio.CancelledError` in a task.

All of it runs on one thread, made when the first call is cancelled, because it may have to wait for a call's log to be
written (see `output`), which the i/o thread must never do.
"""

from __future__ import annotations

import collections
import contextvars
import functools
import sys
import threading
import time
from queue import Empty, SimpleQueue
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from ..exceptions import Cancelled
from .calls import ENDED, NEW, RUNNING, Call, Failure
from .pool import Interruptible, sleepers

if TYPE_CHECKING:
    from .dispatch import Dispatcher

__all__ = ["Interrupter", "patch_sleep"]

#: A cancelled call that hasn't ended after this many seconds loses its place in the pool.
_PATIENCE = 0.3


class _Lost:
    """A `Cancelled` of this call was raised where nothing could come of it."""

    __slots__ = ("ident", "target")

    def __init__(self, target: Interruptible) -> None:
        self.ident = threading.get_ident()
        self.target = target


class Interrupter:
    """Cancels calls.

    Parameters
    ----------
    dispatcher
        Whose calls they are.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._queue: SimpleQueue[Call | _Lost] = SimpleQueue()
        self._started = False
        self._starting = threading.Lock()
        self._reporting: CodeType | None = None

    def cancel(self, call: Call) -> None:
        """Cancel a call whose ``reason`` says why; returns at once. Only the i/o thread calls this."""
        self._put(call)

    def _put(self, what: Call | _Lost) -> None:
        with self._starting:
            if not self._started:
                self._started = True
                # Belongs to no call, whoever needs it first.
                thread = threading.Thread(target=self._run, name="kt-interrupter", daemon=True)
                contextvars.Context().run(thread.start)
        self._queue.put(what)

    def watch_losses(self) -> None:
        """Send a `Cancelled` again that came while a finalizer or a weakref's callback ran in the call's thread.

        Python only reports what is raised in those.
        """
        report = sys.unraisablehook

        def hook(args: Any) -> None:
            sleeper = sleepers.get(threading.get_ident())
            target = sleeper.call if sleeper is not None else None
            if issubclass(args.exc_type, Cancelled) and target is not None:
                # By another thread, and when this one is out of here: it would get lost again.
                self._put(_Lost(target))
            else:
                report(args)

        self._reporting = hook.__code__
        sys.unraisablehook = hook

    def _send_again(self, lost: _Lost) -> None:
        # It gets out of there in a moment; nothing would tell us without being itself a place to get lost in.
        while _is_in(sys._current_frames().get(lost.ident), self._reporting):
            time.sleep(0.001)
        lost.target.raise_cancelled()

    def _run(self) -> None:
        waiting: collections.deque[tuple[float, Call]] = collections.deque()
        while True:
            try:
                timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
                call = self._queue.get(timeout=timeout)
            except Empty:
                late = waiting.popleft()[1]
                if late.state != ENDED:
                    self._dispatcher.abandon(late)
                continue
            if isinstance(call, _Lost):
                self._send_again(call)
            elif self._interrupt(call):
                waiting.append((time.monotonic() + _PATIENCE, call))

    def _interrupt(self, call: Call) -> bool:
        """Interrupt a call; whether it has to be looked at again."""
        with call.log.lock:
            if call.state == RUNNING:
                if call.armed is not None and not call.interrupted:
                    call.interrupted = True
                    call.raise_cancelled()
                    if call.credit is not None:
                        call.credit.put(None)
                task = call.task
                if task is not None:
                    self._dispatcher.loop.call_soon_threadsafe(task.cancel)
                return True
            if call.state != NEW:
                return False
            call.state = ENDED  # it will not begin
        self._dispatcher.finish(call, Failure(Cancelled()))
        return False


def _is_in(frame: FrameType | None, code: CodeType | None) -> bool:
    """Whether that code is among what a thread is about."""
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False


def patch_sleep() -> None:
    """Let a cancel end `time.sleep` at once in the threads of calls; elsewhere it stays what it is."""
    original = time.sleep
    monotonic = time.monotonic
    ident = threading.get_ident

    @functools.wraps(original)
    def sleep(seconds: Any, /) -> None:
        thread = sleepers.get(ident())
        if thread is None or thread.call is None or type(seconds) not in (int, float) or not 0 < seconds < 4e6:
            original(seconds)
            return
        end = monotonic() + seconds
        # The lock is free only when the call is cancelled, and then `Cancelled` is raised when this returns. If it
        # isn't, it was raised before, the function went on all the same, and what was found is the alarm of then.
        while thread.nap.acquire(True, max(0.0, end - monotonic())):
            pass

    # pickled by reference as what it stands for
    sleep.__module__ = "time"
    time.sleep = sleep
