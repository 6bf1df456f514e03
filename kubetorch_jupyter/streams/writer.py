"""The thread that writes what calls have printed, each piece in the context of its call."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from pod_server.wire import LogKind

from ..transport.portal import get_portal
from ..transport.session import hold_reading

if TYPE_CHECKING:
    from .output import Output

__all__ = ["before_writing", "flush", "put"]

log = logging.getLogger(__name__)

#: When this much is in line, in bytes, nothing more is taken from the pods until the line is short again.
_HOLD, _RESUME = 16 << 20, 4 << 20
#: The writer's thread ends after this many seconds without work.
_IDLE = 10.0
#: How long the interpreter's exit waits for what is in line, in seconds.
_FAREWELL = 1.0
#: So much is written before it is flushed, in bytes.
_BATCH = 1 << 18
#: How long the beginning of a line waits for its end where several calls share a cell, in seconds.
_PATIENCE = 0.1


def flush() -> None:
    """Write out what Python's own streams have gathered."""
    for file in (sys.stdout, sys.stderr):
        if file is None:
            continue
        try:
            file.flush()
        except Exception as e:
            # A closed pipe or file, or whatever a stand-in for sys.stdout raises: nothing of it may end the writer.
            log.debug("the output can't be flushed: %s", e)


#: What stands in line: a piece of a log, or, with no kind, what to call when all before it is written, and whether that
#: is the end of the output.
_Entry = tuple["Output", LogKind | None, Any]


def _stay() -> None:
    """Nothing is in the way."""


_make_way: Callable[[], None] = _stay


def before_writing(make_way: Callable[[], None]) -> None:
    """Have this called before something is written: who draws on the terminal takes it away again there."""
    global _make_way
    _make_way = make_way


class _Writer:
    """The thread that writes what calls have printed; it comes with the first piece and goes when it is idle."""

    def __init__(self) -> None:
        self._line: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._put = 0
        self._done = 0
        self._paused = False
        #: Those that keep back the beginning of a line.
        self._holders: set[Output] = set()

    def put(self, output: Output, kind: LogKind | None, data: Any) -> None:
        """Put something in line; on the portal."""
        if self._closed:
            if kind is None:
                data[0]()
            return
        with self._lock:
            # Counted before it can be written, and both under the lock: or the writer would find nothing to resume in
            # the moment in which it is decided here to pause, and nobody would ever read again.
            if kind is not None:
                self._put += len(data)
            full = not self._paused and self._put - self._done > _HOLD
            self._paused = self._paused or full
            self._line.put((output, kind, data))
            if self._thread is None:
                thread = threading.Thread(target=self._main, name="kubetorch-output", daemon=True)
                thread.start()
                self._thread = thread  # only now: where the system gives no more threads, the next piece tries again
        if full:
            hold_reading(True)

    def _main(self) -> None:
        while True:
            try:
                entry = self._line.get(timeout=self._release())
            except queue.Empty:
                if self._holders:
                    continue
                with self._lock:
                    if not self._line.empty():
                        continue  # it came in just now and counts on us
                    self._thread = None
                    return
            if entry is None:
                return
            self._batch(entry)
            if self._closed:
                return

    def _release(self) -> float:
        """Show the beginnings of lines whose ends don't come; gives how long to sleep."""
        if not self._holders:
            return _IDLE
        now = monotonic()
        due = [output for output in self._holders if output.since + _PATIENCE <= now]
        if due:
            _make_way()
        for output in due:
            self._holders.discard(output)
            if not output.muted:
                output.context.run(self._guarded, output, output.release)
        if due:
            due[0].context.run(flush)
            for output in due:
                output.settle()
        return min((output.since + _PATIENCE - now for output in self._holders), default=_IDLE)

    def _batch(self, entry: _Entry | None) -> None:
        """Write what is in line, then flush once; calls end when theirs is flushed."""
        _make_way()
        written: dict[Output, int] = {}
        marks: list[tuple[Output, Callable[[], None]]] = []
        size = 0
        while entry is not None:
            output, kind, data = entry
            written[output] = written.get(output, 0) + 1
            if kind is None:
                then, last = data
                if not output.muted:
                    output.context.run(self._guarded, output, output.close if last else output.release)
                elif last:
                    output.leave()
                marks.append((output, then))
            else:
                if not output.muted:
                    output.context.run(self._guarded, output, output.write, kind, data)
                size += len(data)
            if size > _BATCH:
                break
            try:
                entry = self._line.get_nowait()
            except queue.Empty:
                break
        else:
            self._closed = True  # the end of the process came while we wrote
        for output in written:
            output.context.run(flush)
            break  # there is one sys.stdout; flushing writes out what all contexts have put in
        for output in written:
            if output.settle() and not output.muted:
                self._holders.add(output)
            else:
                self._holders.discard(output)
        for _, then in marks:
            then()
        # Only now: a call whose output is all written ends without us, and must not overtake an item that waits here.
        for output, n in written.items():
            output.written += n
        with self._lock:
            self._done += size
            resume = self._paused and self._put - self._done < _RESUME
            self._paused = self._paused and not resume
        if resume:
            get_portal().call(hold_reading, False)

    @staticmethod
    def _guarded(output: Output, write: Callable[..., None], *args: Any) -> None:
        try:
            write(*args)
        except Exception as e:
            # A closed pipe, a closed file, a broken stand-in for sys.stdout: the value is worth more than the output.
            output.muted = True
            log.warning("the output of a call can't be written: %s: %s", type(e).__name__, e)

    def close(self) -> None:
        """Write what is in line and end, within a second."""
        with self._lock:
            thread = self._thread
            if thread is None or self._closed:
                self._closed = True
                return
            self._line.put(None)
        thread.join(_FAREWELL)
        self._closed = True


_writer = _Writer()


def put(output: Output, kind: LogKind | None, data: Any) -> None:
    """Put a piece of a log in line; with no kind, a pair: what to call when all before it is written, and whether the
    output ends there. On the portal.
    """
    _writer.put(output, kind, data)


def _after_fork() -> None:
    global _writer
    _writer = _Writer()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: _writer.close())
