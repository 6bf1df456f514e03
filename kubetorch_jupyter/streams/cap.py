"""How much of a call's output a cell shows: up to a limit, cut where nothing is broken.

Counting is done where the log comes in, so that what isn't shown takes no place in the line. Displays and notices are
always shown. Of the limit, the last eighth is standard error's: what went wrong is to be seen although a lot has been
printed before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pod_server.wire import LogKind

__all__ = ["Allowance", "Cap", "Cut", "half_character", "size_text"]

#: An escape sequence of a terminal: CSI, OSC, or two characters.
_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[^\[\]])")
_COLOUR = re.compile(rb"\x1b\[([0-9;:]*)m")
#: How far a cut may move on, so that it isn't inside of a character or a sequence; as much is kept of what was shown.
_NEAR = 256


@dataclass
class Allowance:
    """What all calls of one cell together may still show, in bytes."""

    limit: int
    left: int
    #: Whether the cell says already that it shows no more.
    told: bool = False


@dataclass(frozen=True)
class Cut:
    """Where a stream is cut for good.

    Parameters
    ----------
    closing
        What ends its colours and its line.
    first
        Whether nothing of the call was left out before.
    cell
        Whether it is the cell that has enough, not the call.
    """

    closing: bytes
    first: bool
    cell: bool


class Cap:
    r"""Decides for each piece of one call's output what of it is shown.

    Parameters
    ----------
    limit
        Bytes of the call.
    allowance
        Of its cell.

    Examples
    --------
    >>> cap = Cap(16, Allowance(100, 100))
    >>> cap.take(LogKind.STDOUT, b"one line\nanother line\n")
    (b'one line\n', Cut(closing=b'', first=True, cell=False))
    >>> cap.take(LogKind.STDOUT, b"more\n"), cap.hidden
    ((b'', None), 18)
    """

    __slots__ = ("_cut", "_open", "_tail", "allowance", "hidden", "limit", "shown")

    def __init__(self, limit: int, allowance: Allowance) -> None:
        self.limit = limit
        self.shown = 0
        #: Bytes that were left out.
        self.hidden = 0
        self.allowance = allowance
        self._cut: set[LogKind] = set()
        #: The last that was shown of each stream, and whether it has left a colour on.
        self._tail: dict[LogKind, bytes] = {}
        self._open: dict[LogKind, bool] = {}

    def take(self, kind: LogKind, data: bytes) -> tuple[bytes, Cut | None]:
        """What is shown of the next piece of a stream, and whether that is the last of it."""
        if kind in self._cut:
            self.hidden += len(data)
            return b"", None
        reserve = self.limit // 8 if kind is LogKind.STDOUT else 0
        of_call, of_cell = self.limit - self.shown - reserve, self.allowance.left - reserve
        room = max(0, min(of_call, of_cell))
        if len(data) <= room:
            self._show(kind, data)
            return data, None
        at = self._place(kind, data, room)
        if at is None:  # it is inside of a sequence or a character: the next piece has its end
            self._show(kind, data)
            return data, None
        first = not self._cut
        self._cut.add(kind)
        self._show(kind, data[:at])
        self.hidden += len(data) - at
        closing = b"\x1b[0m" if self._open.get(kind) else b""
        last = self._tail.get(kind, b"\n")
        return data[:at], Cut(closing if last.endswith(b"\n") else closing + b"\n", first, of_cell < of_call)

    def _show(self, kind: LogKind, data: bytes) -> None:
        self.shown += len(data)
        self.allowance.left -= len(data)
        if not data:
            return
        before = self._tail.get(kind, b"")
        self._tail[kind] = (before + data)[-_NEAR:] if len(data) < _NEAR else data[-_NEAR:]
        if b"\x1b" in data or b"\x1b" in before:
            for match in _COLOUR.finditer(before + data):
                self._open[kind] = match[1].strip(b"0;") != b""

    def _place(self, kind: LogKind, data: bytes, room: int) -> int | None:
        """Where to cut: after a line, else behind the character or sequence that would be broken."""
        line = data.rfind(b"\n", 0, room) + 1
        if line:
            return line
        before = self._tail.get(kind, b"")
        if not room if not before else room < _NEAR and before.endswith(b"\n"):
            return 0  # where a line begins
        text = before + data
        at = len(before) + room
        start = text.rfind(b"\x1b", max(0, at - _NEAR), at)
        if start >= 0:
            match = _SEQUENCE.match(text, start)
            if match is not None:
                at = max(at, match.end()) if match.end() - at <= _NEAR else at
            elif len(text) - start <= _NEAR:
                return None
        for _ in range(3):
            if at < len(text) and text[at] & 0xC0 == 0x80:
                at += 1
        if at == len(text) and half_character(text):
            return None
        return at - len(before)


def half_character(data: bytes) -> int:
    """How many bytes at the end are the beginning of a character of UTF-8 that goes on.

    Examples
    --------
    >>> [half_character("a🎉".encode()[:n]) for n in (1, 2, 3, 4, 5)]
    [0, 1, 2, 3, 0]
    """
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue  # inside of one: look for its first byte
        size = 4 if byte & 0xF8 == 0xF0 else 3 if byte & 0xF0 == 0xE0 else 2 if byte & 0xE0 == 0xC0 else 1
        return back if back < size else 0
    return 0


def size_text(size: int) -> str:
    """A number of bytes for people.

    Examples
    --------
    >>> size_text(2_000_000), size_text(1500)
    ('2 MB', '1.5 kB')
    """
    return f"{size / 1e6:.3g} MB" if size >= 1e6 else f"{size / 1e3:.3g} kB"
