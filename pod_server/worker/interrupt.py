"""Cancelling: `Cancelled` raised in the thread of a ``def`` call, `asyncio.CancelledError` in a task.

All of it runs on one thread, made when the first call is cancelled, because it may have to wait for a call's log to be
written (see `output`), which the i/o thread must never do.
"""

from __future__ import annotations

import collections
import ctypes
import functools
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from ..exceptions import Cancelled
from .calls import ENDED, NEW, RUNNING, Call, Failure
from .pool import sleepers

if TYPE_CHECKING:
    from .dispatch import Dispatcher

__all__ = ["Interrupter", "patch_sleep", "send_exception"]

#: A cancelled call that hasn't ended after this many seconds loses its place in the pool.
_PATIENCE = 0.3

#: ``send_exception(thread, ctypes.py_object(type))``: raised there between two bytecodes. Hold the lock of the log of
#: whom it is for.
send_exception: Callable[..., int] = ctypes.pythonapi.PyThreadState_SetAsyncExc
send_exception.argtypes = (ctypes.c_ulong, ctypes.py_object)  # type: ignore[attr-defined]


class Interrupter:
    """Cancels calls.

    Parameters
    ----------
    dispatcher
        Whose calls they are.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._queue: SimpleQueue[Call] = SimpleQueue()
        self._started = False

    def cancel(self, call: Call) -> None:
        """Cancel a call whose ``reason`` says why; returns at once. Only the i/o thread calls this."""
        if not self._started:
            self._started = True
            threading.Thread(target=self._run, name="kt-interrupter", daemon=True).start()
        self._queue.put(call)

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
            if self._interrupt(call):
                waiting.append((time.monotonic() + _PATIENCE, call))

    def _interrupt(self, call: Call) -> bool:
        """Interrupt a call; whether it has to be looked at again."""
        with call.log.lock:
            if call.state == RUNNING:
                if call.armed is not None and not call.interrupted:
                    call.interrupted = True
                    thread = call.thread
                    # Set first, then wake: who wakes finds it and raises.
                    send_exception(call.armed, ctypes.py_object(Cancelled))
                    if thread is not None and thread.nap.locked():
                        thread.nap.release()
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
