"""The portal: one daemon thread whose event loop owns every connection of this process.

Blocking callers hand it work and wait on a lock; awaiting callers, on whatever loop they run, await a future that an
`Inlet` fills in batches. No user code runs here. A forked child gets a portal of its own; at the interpreter's exit
everything is closed within a second.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextvars
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ..errors import ConnectionFailedError, KubetorchError, RemoteError

__all__ = ["TICK", "Inlet", "Portal", "acquire", "drop_frames", "get_inlet", "get_portal", "in_slices"]

T = TypeVar("T")

log = logging.getLogger(__name__)

#: How long a loop that awaits us, or a thread that waits for us, may sleep, in seconds. A kernel's idle loop sees Stop
#: only when something else wakes it (https://github.com/ipython/ipykernel/issues/881). And a signal that comes after
#: the interpreter's last look and before the system call that waits (in between the thread may have to wait until
#: another one has taken the interpreter's lock) interrupts nothing: it is seen when that call returns.
TICK = 0.2
#: How long the sessions' farewells may hold up the interpreter's exit, in seconds.
_FAREWELL = 0.5


def in_slices(wait: Callable[[float], bool], timeout: float | None = None) -> bool:
    """Have `wait` wait for so many seconds at a time until it gives True, and see a signal meanwhile whenever it comes
    (`TICK`); False after ``timeout`` seconds.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = TICK if deadline is None else min(deadline - time.monotonic(), TICK)
        if wait(max(left, 0)):
            return True
        if left <= 0:
            return False


def acquire(lock: Any, timeout: float | None = None) -> bool:
    """Acquire a lock, `in_slices`."""
    return in_slices(lambda left: bool(lock.acquire(timeout=left)), timeout)


class Portal:
    """A thread with an event loop; `get_portal` gives this process's.

    Examples
    --------
    >>> import asyncio
    >>> get_portal().run(asyncio.sleep(0, "done"))
    'done'
    """

    def __init__(self) -> None:
        #: Not the user's policy's loop: that one may be uvloop, which does not survive a fork.
        self.loop: asyncio.AbstractEventLoop = asyncio.SelectorEventLoop()
        self._context = contextvars.Context()
        self._inbox: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._awake = False
        self._draining = False
        self._last: list[Callable[[], object]] = []
        #: Whether the process is ending: nothing that is handed over from now on is sure to be run.
        self.closed = False
        self._tasks: set[asyncio.Task[Any]] = set()
        #: Coroutine functions to await when the process ends: sessions say goodbye here.
        self.farewells: set[Callable[[], Coroutine[Any, Any, None]]] = set()
        self._thread = threading.Thread(target=self._main, name="kubetorch-portal", daemon=True)
        self._thread.start()

    @property
    def ident(self) -> int | None:
        """The thread's identifier."""
        return self._thread.ident

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.run_until_complete(self._finish())
        self.loop.close()

    async def _finish(self) -> None:
        if self.farewells:
            tasks = [asyncio.ensure_future(farewell()) for farewell in self.farewells]
            await asyncio.wait(tasks, timeout=_FAREWELL)
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=_FAREWELL)

    # -- handing work over -------------------------------------------------------------------------------------------

    def call(self, fn: Callable[..., object], *args: Any) -> None:
        """Run ``fn(*args)`` on the portal, soon and in order; callable from any thread.

        However many calls come while the portal is busy, it is woken once.
        """
        self._inbox.append((fn, args))
        # `_drain` clears the flag before it looks into the inbox, so an item put in while the flag is set is seen.
        if not self._awake:
            self._awake = True
            try:
                self._wake()
            except RuntimeError:
                # The interpreter is ending and the loop is closed: nobody will wait for this any more.
                log.debug("the portal is closed; %r is not run", fn)
            except BaseException:
                # KeyboardInterrupt, before the portal was woken or after: others count on its having been.
                self._wake()
                raise

    def _wake(self) -> None:
        self.loop.call_soon_threadsafe(self._drain, context=self._context)

    def _drain(self) -> None:
        self._awake = False
        self._draining = True
        inbox = self._inbox
        while inbox:
            fn, args = inbox.popleft()
            _guarded(fn, *args)
        self._draining = False
        if self._last:
            last, self._last = self._last, []
            for end in last:
                _guarded(end)

    def at_end_of_turn(self, fn: Callable[[], object]) -> None:
        """Run ``fn`` when what is being handed over, or else what is ready on the loop, has been run; on the portal."""
        if self._draining:
            self._last.append(fn)  # a turn of the loop less than by `call_soon`
        else:
            self.loop.call_soon(fn)

    def own(self, coro: Coroutine[Any, Any, T], context: contextvars.Context | None = None) -> asyncio.Task[T]:
        """Run a coroutine as a task that the portal holds and, at the end, cancels; on the portal only.

        What it raises is logged, since nobody else may be looking.
        """
        task = self.loop.create_task(coro, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._owned_done)
        return task

    def _owned_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("error in a task of the portal", exc_info=error)

    def submit(self, coro: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine on the portal, in a copy of this context; cancelling the future cancels it."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        if self.closed:
            coro.close()
            future.set_exception(self.ended())
            return future
        self._start(coro, future, contextvars.copy_context())
        return future

    def _start(
        self, coro: Coroutine[Any, Any, T], future: concurrent.futures.Future[T], context: contextvars.Context
    ) -> None:
        task: asyncio.Task[T] | None = None

        def begin() -> None:
            nonlocal task
            if future.cancelled():
                coro.close()
                return
            task = self.loop.create_task(coro, context=context)
            self._tasks.add(task)
            task.add_done_callback(done)

        def done(task: asyncio.Task[T]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                future.cancel()
                future.set_running_or_notify_cancel()
            elif future.set_running_or_notify_cancel():
                error = task.exception()
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(task.result())
            else:
                task.exception()  # taken, so that asyncio doesn't report it: the waiter has gone

        def cancelled(future: concurrent.futures.Future[T]) -> None:
            if future.cancelled():
                self.call(lambda: task.cancel() if task is not None else None)

        future.add_done_callback(cancelled)
        self.call(begin)

    def run(self, coro: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine on the portal and wait for it; KeyboardInterrupt and the timeout cancel it.

        Raises
        ------
        TimeoutError
            After ``timeout`` seconds.
        """
        __tracebackhide__ = True
        if threading.get_ident() == self._thread.ident:
            coro.close()
            raise RuntimeError("a blocking call on the portal's own thread would wait for itself")
        future = self.submit(coro)
        done = threading.Lock()
        done.acquire()
        future.add_done_callback(lambda _: done.release())
        try:
            acquire(done, timeout)
            return future.result(0)
        except KubetorchError as e:
            log.debug("an error on the portal", exc_info=e)
            drop_frames(e)
            raise e
        except BaseException:
            future.cancel()  # does nothing if it was the coroutine itself that raised
            raise

    async def wrap(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the portal and await it on this loop, whichever it is.

        Stop works meanwhile, also in a kernel that is idle otherwise.
        """
        __tracebackhide__ = True
        if asyncio.get_running_loop() is self.loop:
            return await coro
        inlet = get_inlet()
        waiter = inlet.loop.create_future()
        future = self.submit(coro)
        future.add_done_callback(lambda _: inlet.post(waiter))
        inlet.enter()
        try:
            await waiter
            return future.result()
        except KubetorchError as e:
            log.debug("an error on the portal", exc_info=e)
            drop_frames(e)
            raise e
        except asyncio.CancelledError:
            future.cancel()
            raise
        finally:
            inlet.leave()

    # -- the end -----------------------------------------------------------------------------------------------------

    @staticmethod
    def ended() -> ConnectionFailedError:
        """What whoever still wants something gets when `closed`."""
        return ConnectionFailedError("Python is ending, and its connections are closed: call before the end, not in it")

    def close(self) -> None:
        """Say goodbye on every connection and end the thread; at most about a second."""
        if self.closed:
            return
        self.closed = True
        try:
            self.loop.call_soon_threadsafe(self.loop.stop)
        except RuntimeError:
            return  # the thread has ended already
        self._thread.join(2 * _FAREWELL + 0.5)


def drop_frames(error: KubetorchError) -> None:
    """Take our own frames off an error that says what happened: a cell would show a dozen of them above the message.

    Other exceptions keep theirs: those in the pod, or in the user's code, are what one looks for.
    """
    each: BaseException | None = error
    seen: set[int] = set()
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        if isinstance(each, KubetorchError) and not isinstance(each, RemoteError):
            each.__traceback__ = None
        each = each.__cause__


def _guarded(fn: Callable[..., object], *args: Any) -> None:
    """Run it, whatever it raises: what stands in line behind it is somebody else's."""
    try:
        fn(*args)
    except (Exception, asyncio.CancelledError):
        log.exception("error in a callback of the portal")


class Inlet:
    """What the portal fills the futures of one user's loop through: many at a time, with one wakeup.

    It also keeps that loop ticking while anything is awaited (one ticker a loop, not one a call).
    """

    __slots__ = ("_awake", "_done", "_handle", "_waiting", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._done: deque[asyncio.Future[None]] = deque()
        self._awake = False
        self._waiting = 0
        self._handle: asyncio.TimerHandle | None = None

    def post(self, waiter: asyncio.Future[None]) -> None:
        """Let ``waiter`` be done; from any thread."""
        self._done.append(waiter)
        if not self._awake:
            self._awake = True
            try:
                self.loop.call_soon_threadsafe(self._drain)
            except RuntimeError:
                # The loop was closed with calls of it open: their waiters are gone.
                self._done.clear()

    def _drain(self) -> None:
        self._awake = False
        done = self._done
        while done:
            waiter = done[0]
            if not waiter.done():
                waiter.set_result(None)
            done.popleft()  # only now: an interrupt between the two would cost it its wakeup

    def enter(self) -> None:
        """One more thing is awaited on this loop; in its thread."""
        self._waiting += 1
        if self._handle is None:
            self._handle = self.loop.call_later(TICK, self._tick)

    def leave(self) -> None:
        """One less; the ticker stops by itself at its next tick."""
        self._waiting -= 1

    def _tick(self) -> None:
        if self._done:
            # An interrupt in the moment of a wakeup may have cost it: in a kernel the loop, and who waits, go on.
            self._drain()
        # Arming it anew for each call would cost more than a tick too many.
        self._handle = self.loop.call_later(TICK, self._tick) if self._waiting > 0 else None


_inlets = threading.local()


def get_inlet() -> Inlet:
    """The inlet of the running loop."""
    loop = asyncio.get_running_loop()
    inlet: Inlet | None = getattr(_inlets, "inlet", None)
    if inlet is None or inlet.loop is not loop:
        # A thread that alternates between loops gets a new one at each turn; each counts its own waiters.
        inlet = _inlets.inlet = Inlet(loop)
    return inlet


_portal: Portal | None = None
_lock = threading.Lock()
#: Portals of processes that we were forked from. Never collected: closing their loops would disturb the parent's epoll.
_inherited: list[Portal] = []


def get_portal() -> Portal:
    """Give this process's portal, started when first asked for."""
    portal = _portal
    return portal if portal is not None else _make()


def _make() -> Portal:
    global _portal
    with _lock:
        if _portal is None:
            _portal = Portal()
        return _portal


def _after_fork() -> None:
    global _portal, _lock, _inlets
    if _portal is not None:
        _inherited.append(_portal)
    _portal = None
    _lock = threading.Lock()
    _inlets = threading.local()


def _at_exit() -> None:
    if _portal is not None:
        _portal.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
