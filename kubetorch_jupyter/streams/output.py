"""One call's output: what of it is shown, with which prefixes, and in which cell."""

from __future__ import annotations

import contextvars
import itertools
import json
import logging
import os
import re
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Any

from pod_server.wire import LogKind

from ..config import config
from . import writer
from .cap import Allowance, Cap, Cut, half_character, size_text
from .pacing import Pace, get_pace, is_published

__all__ = ["Output", "midline", "open_output", "parent_message", "set_output_factory", "show_bundle"]

log = logging.getLogger(__name__)

#: Where several calls share a cell, a line's beginning waits for its end: up to so many bytes.
_LONGEST = 4 << 20
#: The same where output is paced: what is written at once must fit the pace.
_LONGEST_PACED = 64 << 10
#: All calls of one cell together show as much as so many calls may.
_CALLS = 5
#: In a cell: of the colours that JupyterLab gives these numbers, those with a contrast of 3 or more on both its white
#: and its black; no reds, which look like errors.
_CELL_COLOURS = (96, 35, 32, 93, 34, 95, 94)
#: In a terminal: those that are dark on light ones and light on dark ones.
_TERMINAL_COLOURS = (36, 35, 32, 33, 34)


# -- cells -------------------------------------------------------------------------------------------------------------


class _Cell:
    """The calls that share a place on the screen: those of one cell, or of the whole process outside a notebook."""

    __slots__ = ("_numbers", "key", "partial", "running")

    def __init__(self, key: str) -> None:
        self.key = key
        #: Weakly: one that was made and never used (a deploy that found nothing to do) counts for nothing.
        self.running: weakref.WeakSet[Output] = weakref.WeakSet()
        self._numbers = itertools.count(1)
        #: Whose incomplete line stands at the end of each stream; only the writer's thread looks at it while calls run.
        self.partial: dict[str, Output] = {}

    def enter(self, output: Output) -> int:
        self.running.add(output)
        count = len(self.running)
        output.prefixed = count > 1
        if count == 2:  # with more of them, the others have got theirs already
            for each in list(self.running):
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
#: Reentrant: an iterator that is forgotten leaves its cell while its thread collects garbage, perhaps in here.
_cells_lock = threading.RLock()


#: What the last cells may still show. Not in `_Cell`, which goes between two calls of a cell.
_allowances: OrderedDict[str, Allowance] = OrderedDict()
_ALLOWANCES = 256


def _allowance(key: str, limit: int) -> Allowance:
    found = _allowances.get(key)
    if found is None or found.limit != limit:
        found = _allowances[key] = Allowance(limit, limit)
        if len(_allowances) > _ALLOWANCES:
            _allowances.popitem(last=False)
    return found


def _forget(cell: _Cell) -> None:
    if _cells.get(cell.key) is cell:  # an output may leave twice, and the key have a new cell by then
        del _cells[cell.key]


def _shell() -> Any:
    """The running IPython shell, or None; never imports IPython."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None


def parent_message() -> dict[str, Any] | None:
    """The message of the cell that a call which starts now belongs to; None outside a kernel."""
    kernel = getattr(_shell(), "kernel", None)
    if kernel is None or not hasattr(kernel, "get_parent"):
        return None
    # Where a print would go now. ipykernel 6's get_parent gives the cell that runs, also in a task of an earlier one.
    header = getattr(sys.stdout, "parent_header", None)
    if isinstance(header, dict) and header.get("msg_id"):
        return {"header": header}
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
        "__weakref__",
        "_call_id",
        "_cap",
        "_cell",
        "_dropped",
        "_fed",
        "_held",
        "_label",
        "_number",
        "_position",
        "context",
        "holding",
        "muted",
        "pace",
        "parent",
        "prefixed",
        "since",
        "written",
    )

    def __init__(self, label: str) -> None:
        self.context = contextvars.copy_context()
        self.parent = parent_message()
        self.prefixed = False
        #: Nobody waits for this call any more: what still comes is kept by the pod, not shown.
        self.muted = False
        self._label = label
        #: What of each stream has come and isn't written yet: half a character, or the beginning of a line.
        self._held: dict[str, bytes] = {}
        #: Something may be held, or not flushed yet; the writer's to set.
        self.holding = False
        #: Since when the beginning of a line has been waiting.
        self.since = 0.0
        self._position: dict[str, int] = {}
        # Two counters, since the portal's and the writer's threads each have their own.
        self._fed = 0
        self.written = 0
        key = self.parent["header"]["msg_id"] if self.parent else ""
        self._call_id: Callable[[], str] | None = None
        #: Where a Jupyter server passes on what is shown: not too fast, and not too much. Else nothing is held back.
        self.pace: Pace | None = get_pace() if self.parent else None
        limit = config.cell_log_limit if self.pace is not None else 0
        self._cap: Cap | None = None
        #: Bytes that the cap let through and that could not be shown: half a character.
        self._dropped = 0
        with _cells_lock:
            if limit:
                self._cap = Cap(limit, _allowance(key, _CALLS * limit))
            cell = _cells.get(key)
            if cell is None:
                for empty in [c for c in _cells.values() if not c.running]:
                    del _cells[empty.key]  # of outputs that were made and never used
                cell = _cells[key] = _Cell(key)
            self._cell = cell
            self._number = cell.enter(self)

    # -- the session's side: on the portal ---------------------------------------------------------------------------

    def identify(self, call_id: Callable[[], str]) -> None:
        """Take what gives the id of the call: of a retry, that is another one."""
        self._call_id = call_id

    @property
    def capped(self) -> bool:
        """Whether something of the call is left out here."""
        return self._cap is not None and self._cap.hidden > 0

    def feed(self, kind: LogKind, data: bytes) -> None:
        """Put a piece of the log in line, as far as it is to be shown."""
        if self.muted:
            return
        if self._cap is not None and (kind is LogKind.STDOUT or kind is LogKind.STDERR):
            data, cut = self._cap.take(kind, data)
            if data:
                self._put(kind, data)
            if cut is not None:
                self._fed += 1
                writer.put(self, kind, cut)
        else:
            self._put(kind, data)

    def _put(self, kind: LogKind, data: bytes) -> None:
        self._fed += 1
        writer.put(self, kind, data)

    def finish(self, then: Callable[[], None]) -> None:
        """Call ``then`` when everything has been written: at once if nothing is in line."""
        if self._fed == self.written and not self.holding and not self.capped:
            self.leave()
            then()
        else:
            self._fed += 1
            writer.put(self, None, (then, True))

    def after(self, then: Callable[[], None]) -> None:
        """Call ``then`` when what has come so far has been written; more may come."""
        if self._fed == self.written and not self.holding:
            then()
        else:
            self._fed += 1
            writer.put(self, None, (then, False))

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
            bundle = json.loads(data)
            self.release()
            if "clear" not in bundle:
                self._break_lines()
                show_bundle(bundle, self.parent)
            elif not self.prefixed:
                # Nothing stands at a line's end any more.
                self._cell.partial.clear()
                self._position.clear()
                clear_output(bundle["clear"], self.parent)
            if self.pace is not None:
                self.pace.displayed()
        elif kind is LogKind.NOTICE:
            self.release()
            if self._position.get("stderr", _START) != _START:
                self._end_line("stderr", self)
            self._write("stderr", data)
        else:
            self._write("stdout" if kind is LogKind.STDOUT else "stderr", data)

    def cut(self, kind: LogKind, cut: Cut) -> None:
        """End a stream of which nothing more is shown, and say so the first time."""
        assert self._cap is not None
        stream = "stdout" if kind is LogKind.STDOUT else "stderr"
        self.release()
        self._dropped += len(self._held.pop(stream, b""))
        if cut.closing:
            self._show(stream, cut.closing)
            # Also if it has ended no line, only a colour.
            self._position[stream] = _START
            self._cell.partial.pop(stream, None)
        if cut.first and self._cap.shown:
            if cut.cell:
                self._cap.allowance.told = True
                what = f"this cell has shown {size_text(_CALLS * self._cap.limit)}, and shows no more"
            else:
                what = f"a cell shows at most {size_text(self._cap.limit)} of a call, and this one prints more"
            self.write(LogKind.NOTICE, f"[kubetorch: {what}. All of it: {self._how()}]\n".encode())

    def _how(self) -> str:
        """How to get what is left out."""
        id = self._call_id() if self._call_id is not None else ""
        find = getattr(_shell(), "find_line_magic", None)
        return f"%kt logs {id}" if find is not None and find("kt") is not None else f'kt.logs("{id}")'

    def release(self, final: bool = False) -> None:
        """Write what is held back, but, unless it is ``final``, for half a character."""
        for stream in list(self._held):
            data = self._held.pop(stream)
            if not final:
                data = self._hold(stream, data, whole_lines=False)
            if data:
                self._show(stream, data)

    def close(self) -> None:
        """Write all that is held back, and what is missing; nothing comes after it."""
        self.release(final=True)
        if self._cap is not None and self._cap.hidden and not self._is_one_of_many():
            hidden = self._cap.hidden + self._dropped
            text = f"[kubetorch: {hidden:,} bytes that this call printed are not shown. All of it: {self._how()}]\n"
            self.write(LogKind.NOTICE, text.encode())
            self.release(final=True)
        self.leave()

    def _is_one_of_many(self) -> bool:
        """Whether nothing of it was shown because its cell has enough, which says so already."""
        assert self._cap is not None
        allowance = self._cap.allowance
        if self._cap.shown or allowance.left > allowance.limit // _CALLS:
            return False
        told, allowance.told = allowance.told, True
        return told

    def _write(self, stream: str, data: bytes) -> None:
        held = self._held.pop(stream, b"")
        if self._held:
            self.release()  # the other stream's, which came before
        data = self._hold(stream, held + data if held else data, whole_lines=self.prefixed)
        if data:
            self._show(stream, data)

    def _hold(self, stream: str, data: bytes, *, whole_lines: bool) -> bytes:
        """Keep the end of ``data`` back; gives what may be shown."""
        if not self.holding:
            self.since = monotonic()
        longest = _LONGEST if self.pace is None else _LONGEST_PACED
        end = data.rfind(b"\n") + 1 if whole_lines and len(data) < longest else len(data)
        if end == len(data):
            end -= half_character(data)
        if end < len(data):
            if end:
                self.since = monotonic()
            self._held[stream] = data[end:]
            self.holding = True
            return data[:end]
        return data

    def settle(self) -> bool:
        """What has been written is flushed; whether something is held still."""
        self.holding = bool(self._held)
        return self.holding

    def _show(self, stream: str, data: bytes) -> None:
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
        else:
            text = shown.decode("utf-8", "replace")
            if self.pace is not None and is_published(file):
                self.pace.write(file, text, (self._cell.key, stream))
            else:
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
            colours = _CELL_COLOURS if self.parent is not None else _TERMINAL_COLOURS
            text = f"\x1b[{colours[(self._number - 1) % len(colours)]}m{text}\x1b[0m"
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


def show_bundle(bundle: dict[str, Any], parent: dict[str, Any] | None) -> None:
    """Show a MIME bundle: in its cell, or as text where there are no cells."""
    data, metadata = bundle.get("data") or {}, bundle.get("metadata") or {}
    transient, update = bundle.get("transient") or {}, bool(bundle.get("update"))
    publisher = getattr(_shell(), "display_pub", None)
    if publisher is None:
        text = data.get("text/plain")
        if text is not None:
            _emit("stdout", f"{text}\n")
        return
    writer.flush()  # what was printed before stands before it
    socket, session = getattr(publisher, "pub_socket", None), getattr(publisher, "session", None)
    if parent is None or socket is None or session is None:
        publisher.publish(data=data, metadata=metadata, transient=transient, update=update)
        return
    # Not by publish(): ipykernel 6 would file it under the cell that runs now.
    content = {"data": data, "metadata": metadata, "transient": transient}
    _send(publisher, "update_display_data" if update else "display_data", content, parent)


def clear_output(clear: dict[str, Any], parent: dict[str, Any] | None) -> None:
    """Clear a cell, as `IPython.display.clear_output`; where there are no cells, nothing is."""
    publisher = getattr(_shell(), "display_pub", None)
    if parent is None or getattr(publisher, "pub_socket", None) is None:
        return
    writer.flush()  # what was printed before is to go too
    _send(publisher, "clear_output", {"wait": bool(clear.get("wait"))}, parent)


def _send(publisher: Any, kind: str, content: dict[str, Any], parent: dict[str, Any]) -> None:
    publisher.session.send(publisher.pub_socket, kind, content, parent=parent, ident=getattr(publisher, "topic", None))


def midline() -> bool:
    """Whether the last thing that calls have written is a line without its end."""
    return any(cell.partial for cell in list(_cells.values()))


def _after_fork() -> None:
    global _cells, _cells_lock
    _cells = {}
    _allowances.clear()
    _cells_lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


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
