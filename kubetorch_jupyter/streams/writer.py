"""The thread that writes what calls have printed, each piece in the context of its call.

Behind a Jupyter server (`pacing`) it may have to wait before it writes more. Then the pieces of each output wait in a
line of their own, and are written in turn, so that a call that prints little isn't held up by one that prints a lot.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from time import monotonic
from typing import TYPE_CHECKING, Any

from pod_server.wire import LogKind

from ..transport.portal import get_portal
from ..transport.sharing import hold_reading
from .cap import Cut
from .pacing import STEP

if TYPE_CHECKING:
    from .output import Output

__all__ = ["before_writing", "flush", "put"]

log = logging.getLogger(__name__)

#: When this much is in line, in bytes, nothing more is taken from the pods until the line is short again.
_HOLD, _RESUME = 16 << 20, 4 << 20
#: The same for what waits for its pace: more, since that is no reason to keep other calls' results from coming in.
_HOLD_PACED = 64 << 20
#: A piece of less than this many bytes is little.
_LITTLE = 4 << 10
#: How often what waits for its pace is written, in seconds: as often as a reader can see.
_BEAT = 0.1
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


#: What stands in line: a piece of a log, or a `Cut` of one of its streams, or, with no kind, what to call when all
#: before it is written, and whether that is the end of the output.
_Entry = tuple["Output", LogKind | None, Any]


#: What has to wait for its pace. Our own lines don't, unless what stands before them does.
_PACED = (LogKind.STDOUT, LogKind.STDERR, LogKind.DISPLAY)


def _size(data: Any) -> int:
    return len(data) if isinstance(data, bytes) else 0


class _Batch:
    """What has been written since the last flush: entries of each output, calls to tell, bytes."""

    __slots__ = ("entries", "marks", "size")

    def __init__(self) -> None:
        self.entries: dict[Output, int] = {}
        self.marks: list[Callable[[], None]] = []
        self.size = 0


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
        #: What has been taken from the line and waits for its pace, in the order of the outputs' turns.
        self._waiting: OrderedDict[Output, deque[tuple[LogKind | None, Any]]] = OrderedDict()
        self._waiting_size = 0

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
                self._put += _size(data)
            much = self._put - self._done > _HOLD or self._waiting_size > _HOLD_PACED
            full = much and not self._paused
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
                timeout = self._release()
                entry = self._line.get(timeout=min(timeout, _BEAT) if self._waiting else timeout)
            except queue.Empty:
                if self._waiting:
                    self._batch(None)
                    continue
                if self._holders:
                    continue
                with self._lock:
                    if not self._line.empty():
                        continue  # it came in just now and counts on us
                    self._thread = None
                    return
            if entry is None:
                self._closed = True
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
            self._flush(due)
            for output in due:
                output.settle()
        return min((output.since + _PATIENCE - now for output in self._holders), default=_IDLE)

    def _batch(self, entry: _Entry | None) -> None:
        """Write what is in line and what waits, then flush once; calls end when theirs is flushed."""
        _make_way()
        batch = _Batch()
        taken = 0
        while entry is not None:
            output, kind, data = entry
            taken += _size(data)
            waiting = self._waiting.get(output)
            if waiting is not None:
                waiting.append((kind, data))
                self._waiting_size += _size(data)
            elif output.pace is None:
                self._write(batch, output, kind, data)
                batch.entries[output] = batch.entries.get(output, 0) + 1
            else:
                self._waiting_size += _size(data)
                entries = deque([(kind, data)])
                while entries and self._advance(batch, output, entries, ahead=True):
                    pass
                if entries:
                    # It has written less than those that wait already: its turn is next.
                    self._waiting[output] = entries
                    self._waiting.move_to_end(output, last=False)
            if taken > _BATCH:
                break
            try:
                entry = self._line.get_nowait()
            except queue.Empty:
                break
            if entry is None:
                self._closed = True  # the end of the process came while we wrote
        self._serve(batch)
        if batch.entries:
            self._flush(batch.entries)
        for output in batch.entries:
            if output.settle() and not output.muted:
                self._holders.add(output)
            else:
                self._holders.discard(output)
        for then in batch.marks:
            then()
        # Only now: a call whose output is all written ends without us, and must not overtake an item that waits here.
        for output, n in batch.entries.items():
            output.written += n
        with self._lock:
            self._done += taken
            resume = self._paused and self._put - self._done < _RESUME and self._waiting_size < _HOLD_PACED
            self._paused = self._paused and not resume
        if resume:
            get_portal().call(self._resume)

    def _resume(self) -> None:
        """Read on, unless there has come too much again since that was decided; on the portal."""
        with self._lock:
            paused = self._paused
        if not paused:
            hold_reading(False)

    def _serve(self, batch: _Batch) -> None:
        """Write what waits, each output in its turn, as far as the pace allows."""
        idle = 0
        while idle < len(self._waiting) and (batch.size <= _BATCH or self._closed):
            output, entries = next(iter(self._waiting.items()))
            idle = 0 if self._advance(batch, output, entries) else idle + 1
            if entries:
                self._waiting.move_to_end(output)
            else:
                del self._waiting[output]

    def _advance(
        self, batch: _Batch, output: Output, entries: deque[tuple[LogKind | None, Any]], ahead: bool = False
    ) -> bool:
        """Write of an output's entries up to one piece of text; False when nothing may be written now.

        Little from a call of which nothing waits goes ``ahead`` of those that print more than is let through.
        """
        moved = False
        while entries:
            kind, data = entries[0]
            pace = None if output.muted or self._closed else output.pace
            text = isinstance(data, bytes) and kind is not LogKind.DISPLAY
            paced = pace is not None and kind in _PACED and not isinstance(data, Cut)
            little = ahead and text and len(data) < _LITTLE
            if pace is not None and paced and pace.delay(display=not text, ahead=little):
                break
            piece = data[:STEP] if text and paced else data
            self._write(batch, output, kind, piece)
            moved = True
            self._waiting_size -= _size(piece)
            if text and len(piece) < len(data):
                entries[0] = kind, data[len(piece) :]
            else:
                entries.popleft()
                batch.entries[output] = batch.entries.get(output, 0) + 1
            if text and paced:
                break
        return moved

    def _write(self, batch: _Batch, output: Output, kind: LogKind | None, data: Any) -> None:
        """Write a piece, in the context of its call."""
        if kind is None:
            then, last = data
            if not output.muted:
                output.context.run(self._guarded, output, output.close if last else output.release)
            elif last:
                output.leave()
            batch.marks.append(then)
        else:
            if not output.muted:
                output.context.run(
                    self._guarded, output, output.cut if isinstance(data, Cut) else output.write, kind, data
                )
            batch.size += _size(data)

    @staticmethod
    def _flush(outputs: Collection[Output]) -> None:
        """Have what was written go out; there is one sys.stdout, so that of all contexts does.

        Where it becomes messages, not more often than is of use: ipykernel sends what stays in its streams by itself
        0.2 s later, and before a cell ends (`pacing`).
        """
        paces = {output.pace for output in outputs}
        pace = next((pace for pace in paces if pace is not None), None)
        if None in paces or pace is None or pace.flush_due():
            next(iter(outputs)).context.run(flush)

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
