"""Progress as text: one row of a terminal that is written over, or, where nothing can be, what stays only."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from time import monotonic

from ..streams import before_writing, midline
from .status import Status, View

__all__ = ["text_view"]

#: How long the row stays away after a call has printed something, in seconds: more of it may be under way.
_STAND_BACK = 0.2


def text_view() -> View:
    """The view for where this process prints now."""
    return _TerminalView() if _is_terminal() else _LinesView()


def _is_terminal() -> bool:
    try:
        return bool(sys.stdout.isatty()) and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):
        return False  # no stream, something file-like that doesn't know, or a closed one


def _write(text: str) -> None:
    if sys.stdout is not None:  # a process without a terminal or console has none
        sys.stdout.write(text)
        sys.stdout.flush()


class _LinesView:
    """For files, pipes and whatever else can't take anything back: the end, and notes."""

    def show(self, status: Status) -> None:
        if status.final:
            _write(f"{status.text}\n")

    def note(self, text: str) -> None:
        _write(f"{text}\n")

    def pause(self) -> None:
        """Nothing is in the way."""

    def resume(self) -> None:
        """Nothing was taken away."""


class _Terminal:
    """The last row of the terminal: all lines that are under way share it, and it makes way for whatever is printed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[_TerminalView, str] = {}
        self._drawn = False
        self._not_before = 0.0

    def show(self, view: _TerminalView, status: Status) -> None:
        with self._lock:
            if status.final:
                self._lines.pop(view, None)
                self._stay(status.text)
            else:
                self._lines[view] = status.plain()
                self._draw()

    def note(self, text: str) -> None:
        with self._lock:
            self._stay(text)

    def _stay(self, text: str) -> None:
        self._erase()
        _write(f"\n{text}\n" if midline() else f"{text}\n")
        self._draw()

    def redraw(self) -> None:
        """Show the row again, if there is one."""
        if self._lines:
            with self._lock:
                self._draw()

    def erase(self) -> None:
        """Take the row away, for somebody who prints."""
        with self._lock:
            self._erase()

    def stand_back(self) -> None:
        """As `erase`, and for a moment nothing is drawn, not even what is going to be the first row."""
        with self._lock:
            self._erase()
            self._not_before = monotonic() + _STAND_BACK

    def _erase(self) -> None:
        if self._drawn:
            self._drawn = False
            _write("\r\x1b[K")

    def _draw(self) -> None:
        texts = [text for view, text in self._lines.items() if not view.paused]
        if not texts or monotonic() < self._not_before or midline():
            return
        row = " | ".join(texts)[: shutil.get_terminal_size().columns - 1]
        self._drawn = True
        _write(f"\r{row}\x1b[K")


class _TerminalView:
    def __init__(self) -> None:
        self.paused = False

    def show(self, status: Status) -> None:
        _terminal.show(self, status)

    def note(self, text: str) -> None:
        _terminal.note(text)

    def pause(self) -> None:
        if not self.paused:
            self.paused = True
            _terminal.erase()

    def resume(self) -> None:
        self.paused = False
        _terminal.redraw()


_terminal = _Terminal()


def _stand_back() -> None:
    _terminal.stand_back()


def _after_fork() -> None:
    global _terminal
    _terminal = _Terminal()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
before_writing(_stand_back)
