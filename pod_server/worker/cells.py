"""The thread that a namespace's cells run on: one loop that lasts, so that a task of one cell goes on in the next.

A cell is driven step by step, and only while one of its own steps runs can it be interrupted by an exception in the
thread; where it waits, its task is cancelled. So a cancel hits the cell that it is meant for and nothing else: no other
cell's task, and not the loop. The lock is that of the call's log, for the reason that `output` gives.
"""

from __future__ import annotations

import asyncio
import asyncio.runners
import concurrent.futures
import contextvars
import functools
import threading
import types
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future
from typing import Any

from ..exceptions import Cancelled
from ..wire import LogKind
from .output import Log, current_log, settle
from .pool import sleepers
from .raising import raise_cancelled

__all__ = ["CellThread"]

#: How often a blocking wait of ours lets a cancel through, in seconds.
_SLICE = 0.05
#: After this many seconds in line a cell is told what it waits for.
_PATIENCE = 1.0


class CellThread:
    """A thread with an event loop, for one cell's code at a time and all that the cells have left running.

    Attributes
    ----------
    loop
        The loop.
    """

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        #: The cell that may be interrupted at this moment, and what ends its `time.sleep` (see `pool.Sleeper`).
        self.call: _Job | None = None
        self.nap = threading.Lock()
        self.nap.acquire()
        #: The logs of the cells that have not ended; the last is that of the newest.
        self._logs: list[Log] = []
        self._closed = False
        self._thread = threading.Thread(target=self._main, name="cells", daemon=True)
        contextvars.Context().run(self._thread.start)  # it belongs to no call

    @property
    def ident(self) -> int:
        """The thread's identity."""
        ident = self._thread.ident
        assert ident is not None
        return ident

    def _main(self) -> None:
        sleepers[threading.get_ident()] = self
        asyncio.set_event_loop(self.loop)
        self._patch_asyncio_run()
        while not self._closed:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt, Cancelled):
                continue  # of a task that a cell has left running; the others go on
        del sleepers[threading.get_ident()]
        self.loop.close()

    def close(self) -> None:
        """End the thread when what runs there lets it; what cells have left running doesn't go on."""
        self._closed = True
        self.loop.call_soon_threadsafe(self.loop.stop)

    def _patch_asyncio_run(self) -> None:
        """Let ``asyncio.run`` work in cells, as it does in the notebook: on a fresh loop in a helper thread."""
        original = asyncio.run

        @functools.wraps(original)
        def run(main: Any, **options: Any) -> Any:
            if threading.get_ident() != self.ident or not self.loop.is_running():
                return original(main, **options)
            return _run_beside(original, main, options)

        asyncio.run = asyncio.runners.run = run

    async def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        """Run a cell's coroutine there, in this context; from the worker's own loop.

        Being cancelled interrupts the cell, and waits for it: it has ended when this has.
        """
        home = asyncio.get_running_loop()
        job = _Job(self, main, home)
        log = current_log.get()
        if log is not None:
            # What a cell has left running prints in a later cell, when this one has ended, or else into the service's
            # own log.
            log.will = lambda: next((each for each in reversed(tuple(self._logs)) if each.heir is None), log.service)
            self._logs.append(log)
        self.loop.call_soon_threadsafe(contextvars.copy_context().run, job.start)
        told = home.call_later(_PATIENCE, job.tell)
        try:
            return await asyncio.shield(job.done)
        except asyncio.CancelledError:
            if not job.done.cancelled():
                # In a thread: the log's lock is held while its output is written to a front that may be slow.
                interrupting = asyncio.ensure_future(asyncio.to_thread(job.interrupt))
                while not (job.done.done() and interrupting.done()):
                    try:
                        await asyncio.shield(asyncio.wait([job.done, interrupting]))
                    except asyncio.CancelledError:
                        continue  # once is enough
                job.done.exception()  # what it ended with is the cancel, or doesn't matter any more
            raise
        finally:
            told.cancel()
            if log is not None:
                home.call_soon(self._logs.remove, log)  # when the call has ended, right after this


class _Job:
    """One cell on its way through the thread."""

    def __init__(self, thread: CellThread, main: Coroutine[Any, Any, Any], home: asyncio.AbstractEventLoop) -> None:
        self._thread = thread
        self._main = main
        self._home = home
        #: On the worker's loop: how the cell ended.
        self.done: asyncio.Future[Any] = home.create_future()
        log = current_log.get()
        self._lock: Any = log.lock if log is not None else threading.RLock()
        self._task: asyncio.Task[None] | None = None
        self._armed = False
        self._interrupted = False
        #: It is to be cancelled where it waits, which has not been done yet.
        self._due = False
        self._begun = False

    # -- in the thread -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Make a task of it, in the context of its call."""
        self._task = self._thread.loop.create_task(self._serve())
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # before its first step: `_serve` has seen nothing of it
            self._main.close()
            self._home.call_soon_threadsafe(self._set_exception, asyncio.CancelledError())

    async def _serve(self) -> None:
        # Every exception is caught: a task that ends with SystemExit would stop the loop.
        settled: Callable[[], None]
        try:
            value = await self._drive()
            settled = functools.partial(self._set_result, value)
        except BaseException as e:
            settled = functools.partial(self._set_exception, e)
        self._home.call_soon_threadsafe(settled)

    def _set_result(self, value: Any) -> None:
        if not self.done.done():
            self.done.set_result(value)

    def _set_exception(self, error: BaseException) -> None:
        if self.done.done():
            return
        if isinstance(error, (asyncio.CancelledError, Cancelled)) and self._interrupted:
            self.done.cancel()
        elif isinstance(error, StopIteration):
            # A future doesn't take it.
            self.done.set_exception(RuntimeError("the cell raised StopIteration"))
        else:
            self.done.set_exception(error)

    @types.coroutine
    def _drive(self) -> Generator[Any, Any, Any]:
        main = self._main
        step: Callable[[Any], Any] = main.send
        value: Any = None
        waiting: Any = None
        while True:
            try:
                self._arm()
                try:
                    waiting = step(value)
                finally:
                    try:
                        self._disarm()
                    except Cancelled:
                        self._disarm()  # it is sent once, so this one comes to its end
                        raise
            except StopIteration as e:
                return e.value
            except Cancelled as e:
                if main.cr_frame is None:  # type: ignore[attr-defined]
                    raise
                # It came when the step had ended: the cell gets it where it waits.
                if hasattr(waiting, "_asyncio_future_blocking"):
                    waiting._asyncio_future_blocking = False
                step, value = main.throw, e
                continue
            try:
                value = yield waiting
                step = main.send
            except BaseException as e:
                step, value = main.throw, e

    def _arm(self) -> None:
        with self._lock:
            if not self._begun:
                self._begun = True
                if self._interrupted:
                    self._main.close()
                    raise Cancelled
            elif self._due:
                # What it waited for was there, and the loop comes to it before it comes to our cancel.
                self._due = False
                raise Cancelled
            self._thread.call = self
            self._armed = True

    def _disarm(self) -> None:
        with self._lock:
            self._armed = False
            self._thread.call = None
            if self._interrupted:
                self._thread.nap.acquire(False)  # if nothing slept, the alarm is still set
            settle()

    # -- from the worker's other threads -----------------------------------------------------------------------------

    def interrupt(self) -> None:
        """End it: `Cancelled` in its code if that runs at this moment, else a cancel where it waits."""
        with self._lock:
            if self._interrupted or self.done.done():
                return
            self._interrupted = True
            if self._armed:
                raise_cancelled(self._thread.ident, self._thread)
            elif self._task is not None:
                self._due = True
                self._thread.loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        with self._lock:
            due, self._due = self._due, False
        if due and self._task is not None:
            self._task.cancel()

    def raise_cancelled(self) -> None:
        """Raise `Cancelled` in its code, if that runs at this moment."""
        with self._lock:
            if self._armed:
                raise_cancelled(self._thread.ident, self._thread)

    def tell(self) -> None:
        """Say, in its own output, why it hasn't begun."""
        log = current_log.get()
        if not self._begun and log is not None:
            text = "kubetorch: waiting for another cell of this namespace, which blocks (--fresh would end it)\n"
            log.write(LogKind.STDERR, text.encode())


def _run_beside(run: Callable[..., Any], main: Any, options: dict[str, Any]) -> Any:
    """``asyncio.run`` in another thread; a cancel of the cell cancels the coroutine."""
    done: Future[Any] = Future()
    tasks: list[asyncio.Task[Any]] = []

    async def entry() -> Any:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        return await main

    def work() -> None:
        try:
            result = run(entry() if asyncio.iscoroutine(main) else main, **options)
        except BaseException as e:  # all of it belongs to the cell that waits
            done.set_exception(e)
        else:
            done.set_result(result)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name="asyncio.run", daemon=True).start()
    try:
        while True:
            try:
                # In slices: an exception from outside gets into a thread between two bytecodes only.
                return done.result(timeout=_SLICE)
            except concurrent.futures.TimeoutError:
                if done.done():
                    return done.result()
    except Cancelled:
        for task in tasks:
            task.get_loop().call_soon_threadsafe(task.cancel)
        raise
