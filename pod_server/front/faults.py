"""RESULT frames of errors that are the front's own, and the events that people may read afterwards."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from ..wire import F_ERROR, Decoder, Frame, FrameType, encode

__all__ = ["Events", "Violation", "error_of", "failed", "failure"]


class Violation(Exception):
    """A frame that its sender may not send; its connection ends with GOODBYE.

    Parameters
    ----------
    reason
        For the GOODBYE.
    error
        The error type that the client raises, if it has one.
    """

    def __init__(self, reason: str, error: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error = error


def failure(error: dict[str, Any]) -> bytes:
    """A RESULT frame (channel 0, to be put on another) with an ``error`` object.

    Examples
    --------
    >>> from pod_server.wire import Decoder
    >>> frame, = Decoder().feed(failure({"type": "CallTimeoutError", "timeout": 2}))
    >>> frame.type.name, frame.meta["error"]["timeout"]
    ('RESULT', 2)
    """
    message = str(error.get("message", ""))
    return encode(FrameType.RESULT, 0, {"error": {**error, "message": message[:8000]}}, (), F_ERROR)


def failed(error: dict[str, Any]) -> Frame:
    """The same as a frame."""
    [frame] = Decoder().feed(failure(error))
    return frame


def error_of(frame: Frame) -> dict[str, Any]:
    """The ``error`` object of a RESULT frame; one that says nothing if it has none."""
    error = frame.meta.get("error")
    return error if isinstance(error, dict) else {"type": "StartupError", "message": ""}


class Events:
    """What happened to a pod, in order: a ring of dicts ``n time event text …``, n growing by one.

    Parameters
    ----------
    debug
        Keep the start of every call too, and many more of them.
    """

    def __init__(self, debug: bool = False) -> None:
        self._ring: deque[dict[str, Any]] = deque(maxlen=500)
        self._n = 0
        self.debug = False
        if debug:
            self.set_debug()

    def set_debug(self) -> None:
        """Keep the start of every call from here on."""
        self.debug = True
        self._ring = deque(self._ring, maxlen=200_000)

    def add(self, event: str, text: str = "", **fields: Any) -> dict[str, Any]:
        """Add one; it is given back."""
        self._n += 1
        entry = {"n": self._n, "time": time.time(), "event": event, "text": text, **fields}
        self._ring.append(entry)
        return entry

    def after(self, n: int) -> list[dict[str, Any]]:
        """Those with a larger number, oldest first."""
        return [e for e in self._ring if e["n"] > n]
