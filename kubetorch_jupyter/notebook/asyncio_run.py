"""``asyncio.run`` in a cell, where a loop runs already.

There the standard library's raises. Ours runs the coroutine to its end on a fresh loop, as `asyncio.run` promises, in a
helper thread, and waits for it. The kernel's own loop is not entered a second time, so no cell and no widget message
gets lost, and nothing else of asyncio is changed. Where no loop runs, the original does the work.
"""

from __future__ import annotations

import asyncio
import asyncio.runners
import contextvars
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

__all__ = ["install", "installed", "uninstall"]

#: How long Stop waits for the cancelled coroutine to end before it gives the cell back, in seconds.
_GRACE = 0.4

_original: Callable[..., Any] = asyncio.runners.run
_active = False


class _Cancellable:
    """Runs one coroutine in a helper thread, and cancels it from another."""

    def __init__(self, main: Any, options: dict[str, Any]) -> None:
        self._main = main
        self._options = options
        self._lock = threading.Lock()
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False
        self.done: Future[Any] = Future()

    def work(self) -> None:
        """Run to the end; `done` gets what comes of it."""
        try:
            main = self._entry() if asyncio.iscoroutine(self._main) else self._main
            result = _original(main, **self._options)
        except BaseException as error:  # everything, SystemExit too, belongs to the cell that waits
            self.done.set_exception(error)
        else:
            self.done.set_result(result)

    async def _entry(self) -> Any:
        with self._lock:
            self._task = asyncio.current_task()
            if self._cancelled:
                self._main.close()
                raise asyncio.CancelledError
        try:
            return await self._main
        finally:
            with self._lock:
                self._task = None

    def cancel(self) -> None:
        """Cancel the coroutine, wherever it is."""
        with self._lock:
            self._cancelled = True
            if self._task is not None:
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)


def _run(main: Any, **options: Any) -> Any:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        busy = False
    else:
        busy = True
    if not (_active and busy):
        return _original(main, **options)
    return _run_beside(main, options)


# By its name and signature it is asyncio's: so it shows in help, and a function that captured it can be pickled.
_replacement: Any = functools.wraps(asyncio.runners.run)(_run)


def _run_beside(main: Any, options: dict[str, Any]) -> Any:
    run = _Cancellable(main, options)
    # A copied context keeps what the cell set, and with it the cell that prints and displays go to. Daemon: a coroutine
    # that ignores cancelling must not keep the kernel from ending.
    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run.work,), name="asyncio.run", daemon=True).start()
    try:
        return run.done.result()
    except KeyboardInterrupt:
        if run.done.done():  # the coroutine raised it itself
            raise
        run.cancel()
        _wait(run.done)
        raise
    finally:
        # The exception holds this frame, this frame holds the future, the future holds the exception.
        del run


def _wait(done: Future[Any]) -> None:
    """Wait for `done` for a short time, whatever its outcome."""
    try:
        done.exception(timeout=_GRACE)
    except TimeoutError:
        print(
            "asyncio.run: stopped waiting. The coroutine is cancelled, but sits in a blocking call and ends after it.",
            flush=True,
        )


def install() -> None:
    """Let `asyncio.run` work where a loop runs; a second time changes nothing."""
    global _original, _active
    if asyncio.run is _replacement:
        _active = True
        return
    # What is there now may be another's (nest_asyncio's): where no loop runs, it goes on doing the work.
    _original = asyncio.run
    asyncio.run = asyncio.runners.run = _replacement
    _active = True


def uninstall() -> None:
    """Put back what `install` found; if somebody has replaced `asyncio.run` since, only step aside."""
    global _active
    _active = False
    if asyncio.run is _replacement:
        asyncio.run = _original
    if asyncio.runners.run is _replacement:
        asyncio.runners.run = _original


def installed() -> bool:
    """Whether `asyncio.run` is ours now."""
    return _active and asyncio.run is _replacement
