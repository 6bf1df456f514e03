"""Looks at what runs, for one side panel: a thread that looks as long as somebody asks, and never makes one wait.

What it sees is the `Looker`'s of the panel of widgets, except the log, which is read on from where it was.
"""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

from ..panel.doing import one_line
from ..panel.looking import Look, Looker, ServiceRow

__all__ = ["LogText", "Seen", "Watcher"]

#: Seconds between two looks: while a call of the selected service runs, and else.
_QUICK, _CALM = 0.25, 0.5
#: Seconds without a question after which nobody looks.
_PATIENCE = 5.0
#: Seconds that an answer may wait for the first look at what has been selected.
_FIRST = 0.15
#: Bytes of a log that are read at once, and characters of it that are kept here.
_BYTES, _CHARACTERS = 32 << 10, 64 << 10
#: Characters of a line whose start is left out that are left out as well.
_LINE = 1000

_generations = itertools.count(1)


@dataclass(frozen=True)
class LogText:
    """The end of one log, as text that only grows: what is dropped at its start still counts in offsets.

    Parameters
    ----------
    of
        Which life of a service, and which call of it.
    read
        How many bytes of it have been read.
    start
        How many characters were dropped.
    """

    of: tuple[Any, ...] = ()
    read: int = 0
    start: int = 0
    text: str = ""
    generation: int = field(default_factory=lambda: next(_generations))

    def added(self, text: str, read: int = 0) -> LogText:
        """The same with more at its end.

        Examples
        --------
        >>> log = LogText().added("one").added("two")
        >>> log.since(log.generation, 3)
        (3, 'two')
        >>> log.since(0, 3)
        (0, 'onetwo')
        """
        text = self.text + text
        surplus = max(0, len(text) - _CHARACTERS)
        return replace(self, read=read, start=self.start + surplus, text=text[surplus:])

    def since(self, generation: int, at: int) -> tuple[int, str]:
        """The text from an offset, and where it begins: from its start for who has read another one."""
        known = generation == self.generation and self.start <= at <= self.start + len(self.text)
        begin = at if known else self.start
        return begin, self.text[begin - self.start :]


def _from_line(text: str) -> str:
    r"""Text that was cut anywhere, from where a line begins; a long line from where a character does.

    Examples
    --------
    >>> _from_line("\ufffdrest of a line\nnext\n")
    'next\n'
    >>> _from_line("\ufffd" + 2000 * "x" + "\nnext")[:3]
    'xxx'
    """
    end = text.find("\n", 0, _LINE)
    return text[end + 1 :] if end >= 0 else text.lstrip("\ufffd")


class _Reader(Looker):
    """A `Looker` that reads each piece of a call's log once."""

    def __init__(self) -> None:
        super().__init__()
        self.log = LogText()

    def _log(self, row: ServiceRow, log_of: str, length: int | None) -> str:
        of = (*row.key, log_of)
        log = self.log if self.log.of == of else LogText(of)
        if length is None:  # what a service writes outside of calls, of all its replicas: as a whole
            text = super()._log(row, log_of, None)
            if text != log.text or log is not self.log:
                log = LogText(of, text=text)
        elif length != log.read:
            text, end = self._service(row).read_on(log_of, log.read, _BYTES)
            if end - log.read > _BYTES:
                text = _from_line(text)
                text = f'[kubetorch: what came before is left out here; kt.logs("{log_of}") gives all of it]\n{text}'
            log = log.added(text, end)
        self.log = log
        return ""


@dataclass(frozen=True)
class Seen:
    """One look, what it was asked for, and when it was made (`time.monotonic`)."""

    look: Look
    selected: str | None
    log_of: str | None
    log: LogText
    at: float


class Watcher:
    """Looks for one panel.

    Parameters
    ----------
    name
        The thread's.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._wanted: tuple[str | None, str | None] = (None, None)
        self._asked = 0.0
        self._hurry = False
        self._running = False
        self._seen: Seen | None = None
        self._bad = 0
        # The thread's alone.
        self._reader = _Reader()

    def ask(self, selected: str | None, log_of: str | None) -> Seen | None:
        """The newest look; None when the first one isn't made yet. Any thread; returns within `_FIRST`."""
        with self._changed:
            self._asked = time.monotonic()
            if self._wanted != (selected, log_of):
                self._wanted = selected, log_of
                self._hurry = True
            if not self._running:
                self._running = self._hurry = True
                # Daemon: a kernel must be able to end in the middle of a look.
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
            self._changed.notify_all()
            self._changed.wait_for(self._has_seen, _FIRST)
            return self._seen

    def _has_seen(self) -> bool:
        seen = self._seen
        return seen is not None and (seen.selected, seen.log_of) == self._wanted

    def soon(self) -> None:
        """Look again at once: something was done."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()

    @property
    def idle(self) -> bool:
        """Whether it has stopped, since nobody asks any more."""
        return not self._running

    def _run(self) -> None:
        while True:
            with self._changed:
                if time.monotonic() - self._asked > _PATIENCE:
                    self._running = False
                    return
                selected, log_of = self._wanted
                self._hurry = False
            at = time.monotonic()
            try:
                look = self._reader.look(selected, log_of)
            except Exception as e:  # nobody else would hear of it
                look = Look(problem=one_line(e))
            with self._changed:
                self._seen = Seen(self._told(look), selected, log_of, self._reader.log, at)
                self._changed.notify_all()
                active = any(call.active for call in look.calls)
                self._changed.wait_for(lambda: self._hurry, _QUICK if active else _CALM)

    def _told(self, look: Look) -> Look:
        """The look as it is shown: what ends between two questions is no problem, what is so twice is."""
        self._bad = self._bad + 1 if look.problem else 0
        if look.problem and not look.services and self._seen is not None:
            look = replace(look, services=self._seen.look.services)
        return replace(look, problem="") if self._bad == 1 else look
