"""Where a call's output goes: the cell that made the call, exact to the byte.

A call's log comes in on the portal, which must not wait for a terminal. So the portal only puts the pieces in line, and
one thread of this module writes them, each in the context of the call it belongs to: that is how a line finds its cell
(ipykernel keeps the cell in a context variable). A call's end stands in the same line, so whoever waits for the call
goes on when its last byte has been written.
"""

from __future__ import annotations

import atexit
import codecs
import contextvars
import itertools
import json
import logging
import os
import queue
import re
import sys
import threading
from collections.abc import Callable
from typing import Any

from pod_server.wire import LogKind

from .transport.portal import get_portal
from .transport.session import hold_reading

__all__ = ["Output", "open_output", "set_output_factory"]

log = logging.getLogger(__name__)

#: When this much is in line, in bytes, nothing more is taken from the pods until the line is short again.
_HOLD, _RESUME = 16 << 20, 4 << 20
#: The writer's thread ends after this many seconds without work.
_IDLE = 10.0
#: How long the interpreter's exit waits for what is in line, in seconds.
_FAREWELL = 1.0
#: So much is written before it is flushed, in bytes.
_BATCH = 1 << 18
_COLOURS = (36, 35, 32, 33, 34, 96, 95, 92)


# -- cells -------------------------------------------------------------------------------------------------------------


class _Cell:
    """The calls that share a place on the screen: those of one cell, or of the whole process outside a notebook."""

    __slots__ = ("_numbers", "key", "partial", "running")

    def __init__(self, key: str) -> None:
        self.key = key
        self.running: set[Output] = set()
        self._numbers = itertools.count(1)
        #: Whose incomplete line stands at the end of each stream; only the writer's thread looks at it while calls run.
        self.partial: dict[str, Output] = {}

    def enter(self, output: Output) -> int:
        self.running.add(output)
        if len(self.running) > 1:
            for each in self.running:
                each.prefixed = True
        return next(self._numbers)

    def leave(self, output: Output) -> None:
        self.running.discard(output)
        if not self.running:
            # The last line stays as it is, and a later call goes on there, as it would have done here.
            self.partial.clear()
            if self.key:
                _forget(self)


_cells: dict[str, _Cell] = {}
_cells_lock = threading.Lock()


def _forget(cell: _Cell) -> None:
    if _cells.get(cell.key) is cell:  # an output may leave twice, and the key have a new cell by then
        del _cells[cell.key]


def _shell() -> Any:
    """The running IPython shell, or None; never imports IPython."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None


def _parent_message() -> dict[str, Any] | None:
    """The message that the kernel works on, for a call that starts now; None outside a kernel."""
    kernel = getattr(_shell(), "kernel", None)
    if kernel is None or not hasattr(kernel, "get_parent"):
        return None
    parent: dict[str, Any] | None = kernel.get_parent("shell")
    return parent if parent and parent.get("header") else None


# -- one call ----------------------------------------------------------------------------------------------------------

#: Where a call's last piece ended: at a line's start, after a carriage return, inside a line.
_START, _RETURNED, _INSIDE = range(3)


class Output:
    """The output of one call; made in the caller's thread and context when the call starts.

    Parameters
    ----------
    label
        What a line's prefix calls it when several calls run in one cell.
    """

    __slots__ = (
        "_cell",
        "_decoders",
        "_fed",
        "_label",
        "_number",
        "_position",
        "context",
        "muted",
        "parent",
        "prefixed",
        "written",
    )

    def __init__(self, label: str) -> None:
        self.context = contextvars.copy_context()
        self.parent = _parent_message()
        self.prefixed = False
        #: Nobody waits for this call any more: what still comes is kept by the pod, not shown.
        self.muted = False
        self._label = label
        self._decoders: dict[str, codecs.IncrementalDecoder] = {}
        self._position: dict[str, int] = {}
        # Two counters, since the portal's and the writer's threads each have their own.
        self._fed = 0
        self.written = 0
        key = self.parent["header"]["msg_id"] if self.parent else ""
        with _cells_lock:
            cell = _cells.get(key)
            if cell is None:
                cell = _cells[key] = _Cell(key)
            self._cell = cell
            self._number = cell.enter(self)

    # -- the session's side: on the portal ---------------------------------------------------------------------------

    def feed(self, kind: LogKind, data: bytes) -> None:
        """Put a piece of the log in line."""
        if not self.muted:
            self._fed += 1
            _writer.put(self, kind, data)

    def finish(self, then: Callable[[], None]) -> None:
        """Call ``then`` when everything has been written: at once if nothing is in line."""
        if self._fed == self.written and not self._decoders:
            self.leave()
            then()
        else:
            self._fed += 1
            _writer.put(self, None, (then, True))

    def after(self, then: Callable[[], None]) -> None:
        """Call ``then`` when what has come so far has been written; more may come."""
        if self._fed == self.written:
            then()
        else:
            self._fed += 1
            _writer.put(self, None, (then, False))

    def mute(self) -> None:
        """Show nothing more of this call; any thread."""
        self.muted = True

    def leave(self) -> None:
        """Count no more as a call that runs in its cell."""
        with _cells_lock:
            self._cell.leave(self)

    # -- the writer's side: in its thread, in this call's context ----------------------------------------------------

    def write(self, kind: LogKind, data: bytes) -> None:
        """Write a piece of the log where it belongs."""
        if kind is LogKind.DISPLAY:
            self._break_lines()
            _display(json.loads(data), self.parent)
        elif kind is LogKind.NOTICE:
            if self._position.get("stderr", _START) != _START:
                self._end_line("stderr", self)
            self._write("stderr", data)
        else:
            self._write("stdout" if kind is LogKind.STDOUT else "stderr", data)

    def close(self) -> None:
        """Write what an incomplete character has left over; nothing comes after it."""
        for stream, decoder in self._decoders.items():
            rest = decoder.decode(b"", final=True)
            if rest:
                _emit(stream, rest)
        self.leave()

    def _write(self, stream: str, data: bytes) -> None:
        if self._cell.partial:
            self._break_lines()
        if self.prefixed:
            shown = self._with_prefix(stream, data)
        else:
            shown = data
            self._position[stream] = _START if data.endswith(b"\n") else _INSIDE
        if self._position[stream] == _START:
            self._cell.partial.pop(stream, None)
        else:
            self._cell.partial[stream] = self
        file = getattr(sys, stream)
        if file is None:
            return  # a process without a terminal or console
        buffer = getattr(file, "buffer", None)
        if buffer is not None and hasattr(buffer, "write"):
            file.flush()  # what the user's own prints have left in the text layer comes first
            buffer.write(shown)
            return
        decoder = self._decoders.get(stream)
        if decoder is None:
            decoder = self._decoders[stream] = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(shown)
        if text:
            file.write(text)

    def _break_lines(self) -> None:
        """End other calls' incomplete lines: those of two calls are never joined."""
        for stream, whose in list(self._cell.partial.items()):
            if whose is not self:
                self._end_line(stream, whose)

    def _end_line(self, stream: str, whose: Output) -> None:
        _emit(stream, "\n")
        self._cell.partial.pop(stream, None)
        whose._position[stream] = _START

    def _with_prefix(self, stream: str, data: bytes) -> bytes:
        prefix = self._prefix(stream)
        position = self._position.get(stream, _START)
        out: list[bytes] = []
        for piece in _PIECES.findall(data):
            if piece == b"\n":
                if position == _START:
                    out.append(prefix)
                position = _START
            elif piece == b"\r":
                # Back to the line's start, over the prefix: it is due again, before anything but the line's end.
                position = _RETURNED
            else:
                if position != _INSIDE:
                    out.append(prefix)
                position = _INSIDE
            out.append(piece)
        self._position[stream] = position
        return b"".join(out)

    def _prefix(self, stream: str) -> bytes:
        text = f"{self._label}·{self._number}"
        if self.parent is not None or _is_terminal(getattr(sys, stream)):
            text = f"\x1b[{_COLOURS[(self._number - 1) % len(_COLOURS)]}m{text}\x1b[0m"
        return f"{text} ".encode()


_PIECES = re.compile(rb"[^\r\n]+|\r|\n")


def _is_terminal(file: Any) -> bool:
    try:
        return bool(file.isatty()) and "NO_COLOR" not in os.environ
    except (AttributeError, ValueError):
        return False  # something file-like that doesn't know, or a closed one


def _emit(stream: str, text: str) -> None:
    file = getattr(sys, stream)
    if file is not None:
        file.write(text)


def _flush() -> None:
    for file in (sys.stdout, sys.stderr):
        if file is None:
            continue
        try:
            file.flush()
        except (AttributeError, OSError, ValueError) as e:
            log.debug("the output can't be flushed: %s", e)


def _display(bundle: dict[str, Any], parent: dict[str, Any] | None) -> None:
    """Show a MIME bundle: in its cell, or as text where there are no cells."""
    data, metadata = bundle.get("data") or {}, bundle.get("metadata") or {}
    transient, update = bundle.get("transient") or {}, bool(bundle.get("update"))
    publisher = getattr(_shell(), "display_pub", None)
    if publisher is None:
        text = data.get("text/plain")
        if text is not None:
            _emit("stdout", f"{text}\n")
        return
    _flush()  # what was printed before stands before it
    socket, session = getattr(publisher, "pub_socket", None), getattr(publisher, "session", None)
    if parent is None or socket is None or session is None:
        publisher.publish(data=data, metadata=metadata, transient=transient, update=update)
        return
    # Not by publish(): ipykernel 6 would file it under the cell that runs now.
    session.send(
        socket,
        "update_display_data" if update else "display_data",
        {"data": data, "metadata": metadata, "transient": transient},
        parent=parent,
        ident=getattr(publisher, "topic", None),
    )


# -- the writer --------------------------------------------------------------------------------------------------------

#: What stands in line: a piece of a log, or, with no kind, what to call when all before it is written, and whether that
#: is the end of the output.
_Entry = tuple[Output, LogKind | None, Any]


class _Writer:
    """The thread that writes what calls have printed; it comes with the first piece and goes when it is idle."""

    def __init__(self) -> None:
        self._line: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._put = 0
        self._done = 0
        self._held = False

    def put(self, output: Output, kind: LogKind | None, data: Any) -> None:
        """Put something in line; on the portal."""
        if self._closed:
            if kind is None:
                data[0]()
            return
        with self._lock:
            self._line.put((output, kind, data))
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name="kubetorch-output", daemon=True)
                self._thread.start()
        if kind is not None:
            self._put += len(data)
            if not self._held and self._put - self._done > _HOLD:
                self._held = True
                hold_reading(True)

    def _main(self) -> None:
        while True:
            try:
                entry = self._line.get(timeout=_IDLE)
            except queue.Empty:
                with self._lock:
                    if not self._line.empty():
                        continue  # it came in just now and counts on us
                    self._thread = None
                    return
            if entry is None:
                return
            self._batch(entry)

    def _batch(self, entry: _Entry | None) -> None:
        """Write what is in line, then flush once; calls end when theirs is flushed."""
        written: dict[Output, int] = {}
        marks: list[tuple[Output, Callable[[], None]]] = []
        size = 0
        while entry is not None:
            output, kind, data = entry
            if kind is None:
                then, last = data
                if last:
                    output.context.run(self._guarded, output, output.close)
                marks.append((output, then))
            else:
                if not output.muted:
                    output.context.run(self._guarded, output, output.write, kind, data)
                written[output] = written.get(output, 0) + 1
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
            output.context.run(_flush)
            break  # there is one sys.stdout; flushing writes out what all contexts have put in
        for output, n in written.items():
            output.written += n
        for output, then in marks:
            then()
            output.written += 1
        self._done += size
        if self._held and self._put - self._done < _RESUME:
            self._held = False
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


def _after_fork() -> None:
    global _writer, _cells, _cells_lock
    _writer = _Writer()
    _cells = {}
    _cells_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: _writer.close())


# -- the door ----------------------------------------------------------------------------------------------------------

_factory: Callable[[str], Output] = Output


def open_output(label: str) -> Output:
    """The output for a call that starts now, in this thread and context."""
    return _factory(label)


def set_output_factory(factory: Callable[[str], Output] | None) -> None:
    """Have other outputs made: a subclass of `Output` that knows more about its place.

    Parameters
    ----------
    factory
        Takes the call's label; None for `Output` itself.
    """
    global _factory
    _factory = factory if factory is not None else Output
