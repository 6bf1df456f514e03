"""Notices a call that blocks the event loop, and says which line does it.

While asynchronous calls run, a thread looks at the main thread's stack several times a second. The same callback there
for half a second means that no other call could go on meanwhile. Nothing is added to the loop itself.

An ``import`` blocks as well, but once in a worker's life, and from a cold disk half a second is soon over: there it
takes longer until something is said.
"""

from __future__ import annotations

import asyncio
import contextvars
import linecache
import os
import sys
import sysconfig
import threading
import time
from types import CodeType, FrameType
from typing import Any

from ..wire import LogKind
from .output import Log, current_log

__all__ = ["Watchdog"]

#: Seconds between two looks, and after how many seconds the call is told.
_PERIOD = 0.125
_BLOCKED = 0.5
_IMPORTING = 2.0

_IMPORT = "<frozen importlib._bootstrap>"
_HANDLE_RUN: CodeType = asyncio.Handle._run.__code__
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARIES = tuple({sysconfig.get_path(n) + os.sep for n in ("stdlib", "platstdlib", "purelib", "platlib")})

_sleep = time.sleep  # the interruptible one is for user code


class Watchdog:
    """Looks after one loop.

    Parameters
    ----------
    loop
        The loop, which runs in the main thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._running = 0
        self._active = False
        self._mutex = threading.Lock()
        self._wake = threading.Lock()
        self._wake.acquire()
        self._started = False
        #: Logs that have their line already; as long as the call runs, one is enough.
        self._told: list[Log] = []

    def enter(self) -> None:
        """An asynchronous call begins; on the loop."""
        with self._mutex:
            self._running += 1
            if self._active:
                return
            self._active = True
        if self._started:
            self._wake.release()
        else:
            self._started = True
            thread = threading.Thread(target=self._run, name="kt-watchdog", daemon=True)
            contextvars.Context().run(thread.start)  # it is not this call's

    def leave(self) -> None:
        """An asynchronous call has ended; on the loop."""
        self._running -= 1

    def _run(self) -> None:
        while True:
            self._watch()
            self._wake.acquire()

    def _watch(self) -> None:
        main = threading.main_thread().ident
        handle: Any = None
        importing = False
        since = 0.0
        quiet = 0
        assert main is not None
        while True:
            _sleep(_PERIOD)
            if self._running:
                quiet = 0
            else:
                quiet += 1
                if quiet > 8:
                    self._told.clear()
                    if self._park():
                        return
            found, frame = _current(sys._current_frames().get(main))
            now = time.monotonic()
            outermost = _outermost_import(frame) if frame is not None else None
            imports = outermost is not None
            if found is None or found is not handle or imports is not importing:
                handle, importing, since = found, imports, now
            elif frame is not None and now - since >= (limit := _IMPORTING if imports else _BLOCKED):
                since = float("inf")
                self._tell(handle, outermost or frame, limit)
            del found, frame, outermost

    def _park(self) -> bool:
        """Stop watching if no call runs; False when one does."""
        with self._mutex:
            if self._running:
                return False
            self._active = False
            return True

    def _tell(self, handle: Any, frame: FrameType, seconds: float) -> None:
        context: contextvars.Context | None = getattr(handle, "_context", None)
        log = context.get(current_log) if context is not None else None
        if log is None or log in self._told:
            return
        self._told.append(log)
        name, line = _user_line(frame)
        source = linecache.getline(name, line).strip()
        code = f" `{source}`" if source else ""
        if seconds == _IMPORTING:
            cure = "Import it outside of the function, so that it is loaded when that is deployed"
        else:
            cure = (
                "Await something there (for example `await asyncio.sleep(...)`, or `await asyncio.to_thread(...)` for "
                "work that blocks), or make the function a `def`: those run in threads"
            )
        text = f"The event loop was blocked for {seconds:g} s at {name}:{line}{code}; no other async call could go on. "
        text += f"{cure}.\n"
        log.write(LogKind.NOTICE, text.encode("utf-8", "backslashreplace"))


def _current(frame: FrameType | None) -> tuple[Any, FrameType | None]:
    """The handle that the loop runs now, and the innermost frame."""
    innermost = frame
    while frame is not None:
        if frame.f_code is _HANDLE_RUN:
            return frame.f_locals.get("self"), innermost
        frame = frame.f_back
    return None, None


def _outermost_import(frame: FrameType) -> FrameType | None:
    """The frame of the import that takes the time; None when it is something else that does."""
    found: FrameType | None = None
    f: FrameType | None = frame
    while f is not None and f.f_code is not _HANDLE_RUN:
        if f.f_code.co_filename == _IMPORT:
            found = f
        f = f.f_back
    return found


def _user_line(frame: FrameType) -> tuple[str, int]:
    """File and line of the innermost frame that is the user's own code; of the innermost of all when none is."""
    f: FrameType | None = frame
    while f is not None and f.f_code is not _HANDLE_RUN:
        name = f.f_code.co_filename
        if not name.startswith((_OURS, "<frozen")) and not name.startswith(_LIBRARIES):
            return name, f.f_lineno
        f = f.f_back
    return frame.f_code.co_filename, frame.f_lineno
