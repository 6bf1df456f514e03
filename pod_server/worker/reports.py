"""Who hears of the steps of an image: their output, which of them runs, when they are done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..wire import FrameType, LogKind, encode
from .output import settle

if TYPE_CHECKING:
    from .output import Log, LogHub

__all__ = ["LoadReport", "Report", "Silent"]

#: Characters of a step that an event has room for.
_CHARS = 2000


class Report(Protocol):
    """Where the output of steps goes, and what is said of them."""

    def write(self, data: bytes) -> None:
        """Take a piece of output."""

    def afterwards(self, data: bytes) -> None:
        """Take a piece of what a step has left in the background; from any thread."""

    def notice(self, text: str) -> None:
        """Take a line about the steps."""

    def begin(self, step: str) -> None:
        """A step is being run now."""

    def end(self) -> None:
        """All steps have been run."""


class LoadReport:
    """The report to who deploys, in the log of a LOAD.

    Parameters
    ----------
    log
        The LOAD's.
    hub
        What the logs of the process share.
    """

    def __init__(self, log: Log, hub: LogHub) -> None:
        self._log = log
        self._hub = hub

    def write(self, data: bytes) -> None:
        """As `Report`."""
        self._log.write(LogKind.STDOUT, data)

    def afterwards(self, data: bytes) -> None:
        """As `Report`."""
        self._hub.service.write(LogKind.STDOUT, data)

    def notice(self, text: str) -> None:
        """As `Report`."""
        self._log.write(LogKind.NOTICE, text.encode("utf-8", "backslashreplace"))

    def begin(self, step: str) -> None:
        """As `Report`."""
        self._event(event="step", text=step[:_CHARS])

    def end(self) -> None:
        """As `Report`."""
        self._event(event="steps-done")

    def _event(self, **meta: str) -> None:
        with self._log.lock:  # so that a cancel can't leave the link locked
            settle()
            self._hub.link.send(encode(FrameType.EVENT, meta=meta))


class Silent:
    """A report of what nobody wants to read."""

    def write(self, data: bytes) -> None:
        """Nothing."""

    afterwards = write

    def notice(self, text: str) -> None:
        """Nothing."""

    begin = notice

    def end(self) -> None:
        """Nothing."""
