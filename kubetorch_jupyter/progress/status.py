"""What a line says at a moment, and what shows it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

__all__ = ["State", "Status", "View", "duration", "ended_by", "why"]

#: So many characters of an error's message; the whole of it comes with the error.
_LONGEST = 200
_CELLS = 20


class State(Enum):
    """How it goes, or went."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Status:
    """What a line says at a moment.

    Parameters
    ----------
    text
        The words, on one line.
    state
        Anything but ``RUNNING`` is the end.
    share
        How much of it is done, 0 … 1, where that is known.
    """

    text: str
    state: State = State.RUNNING
    share: float | None = None

    @property
    def final(self) -> bool:
        """Whether nothing comes after it."""
        return self.state is not State.RUNNING

    def plain(self) -> str:
        """The line as text, with its bar.

        Examples
        --------
        >>> Status("3 of 4", share=0.75).plain()
        '[###############-----] 3 of 4'
        """
        if self.share is None or self.final:
            return self.text
        full = int(self.share * _CELLS)
        return f"[{'#' * full}{'-' * (_CELLS - full)}] {self.text}"


class View(Protocol):
    """Shows one line, in its cell's context, in a thread that may wait."""

    def show(self, status: Status) -> None:
        """Show it in the place of what was shown before, or leave it where that can't be taken back."""
        ...

    def note(self, text: str) -> None:
        """Write a line of its own, which stays."""
        ...

    def pause(self) -> None:
        """Take the line off the screen while the user's code may print, where that would be in the way; any thread."""
        ...

    def resume(self) -> None:
        """It may be shown again; any thread."""
        ...


def duration(seconds: float) -> str:
    """A time that goes on, no more exact than people read it.

    Examples
    --------
    >>> duration(0.314), duration(3.14159), duration(59.9), duration(125), duration(3720)
    ('0.31 s', '3.1 s', '59 s', '2 min 5 s', '1 h 2 min')
    """
    if seconds < 0.995:
        return f"{seconds:.2f} s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def why(error: BaseException) -> str:
    """An error in one short line.

    Examples
    --------
    >>> why(ValueError("no weights here"))
    'ValueError: no weights here'
    """
    try:
        message = str(error)
    except Exception as e:  # the user's own class
        message = f"its message can't be made: {type(e).__name__}"
    first = next(iter(message.strip().splitlines()), "")
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def ended_by(error: BaseException) -> State:
    """What an exception makes of what it ended: failed, or stopped by somebody."""
    stops = (KeyboardInterrupt, GeneratorExit, SystemExit, asyncio.CancelledError)
    return State.STOPPED if isinstance(error, stops) else State.FAILED
