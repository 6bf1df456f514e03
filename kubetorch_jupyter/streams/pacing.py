"""How fast output may be written where a Jupyter server passes it on: well below what the server drops.

The server counts, for each kernel, the messages and the bytes of ``stream`` messages of the last seconds (by default
three), and drops what exceeds 1,000 messages or 1,000,000 bytes a second, without a word to the kernel. Bytes are those
of the whole message as JSON. `Pace` keeps what we write, of all calls of this process together, at about two thirds of
that; the rest is for what the user's own cells print.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Hashable
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import Any

from ..config import config

__all__ = ["STEP", "Pace", "get_pace", "is_published", "json_size"]

#: So much of a text is written at once, in bytes: as prefixed empty lines, or all control characters, it becomes six to
#: thirty times as much, which still fits what is left of a window.
STEP = 16 << 10
#: Of what the server lets through in a window: so much at once, and so much of it evenly.
_BURST, _STEADY = 0.15, 0.5
#: And so much more at once, for those who print little while others have spent everything.
_AHEAD = 0.05
#: What a message costs beside its text, in bytes: its headers.
_MESSAGE = 800
#: Text is flushed at most so often, in seconds, and only if ipykernel isn't going to send it by itself, which it does
#: 0.2 s after a write. Each flush between a write and that moment makes it forget that it has planned to, so that the
#: next write plans it once more; those plans never end while writes go on, and become hundreds of messages a second.
_FLUSH_EVERY = 0.25
#: How often ipykernel sends what is written without a pause, in seconds.
_SENDS_EVERY = 0.1
#: So many streams are remembered.
_STREAMS = 1000


class _Bucket:
    """What may be spent: fills evenly, never above its size, may be overdrawn.

    Examples
    --------
    >>> now = 0.0
    >>> bucket = _Bucket(rate=10.0, size=5.0, clock=lambda: now)
    >>> bucket.spend(7)
    >>> bucket.delay()
    0.2
    >>> now = 1.0
    >>> bucket.delay()
    0.0
    """

    __slots__ = ("_at", "_clock", "level", "rate", "size")

    def __init__(self, rate: float, size: float, clock: Callable[[], float]) -> None:
        self.rate, self.size = rate, size
        self._clock = clock
        self._at = clock()
        self.level = size

    def _fill(self) -> None:
        now = self._clock()
        self.level = min(self.size, self.level + (now - self._at) * self.rate)
        self._at = now

    def spend(self, n: float) -> None:
        if self.rate:
            self._fill()
            self.level -= n

    def delay(self, overdraft: float = 0.0) -> float:
        """Seconds until there is something to spend."""
        if not self.rate:
            return 0.0  # no limit
        self._fill()
        return max(0.0, -(self.level + overdraft) / self.rate)


class Pace:
    """When more may be written; any thread.

    Parameters
    ----------
    data_rate, message_rate, window
        What the server allows: bytes and messages a second, counted over so many seconds. A rate of 0 is none.
    """

    def __init__(
        self, data_rate: float, message_rate: float, window: float, clock: Callable[[], float] = monotonic
    ) -> None:
        self.limits = data_rate, message_rate, window
        self._lock = threading.Lock()
        self._bytes = _Bucket(_STEADY * data_rate, _BURST * data_rate * window, clock)
        self._overdraft = _AHEAD * data_rate * window
        self._messages = _Bucket(_STEADY * message_rate, _BURST * message_rate * window, clock)
        self._clock = clock
        #: When each stream of each cell was last charged with a message.
        self._charged: dict[Hashable, float] = {}
        self._flushed = 0.0
        #: Whether something has been written that ipykernel had no plan to send.
        self._unplanned = False

    def delay(self, *, display: bool = False, ahead: bool = False) -> float:
        """Seconds until more text, or a display, may be written; 0 for now. A little may go ``ahead``."""
        with self._lock:
            return self._messages.delay() if display else self._bytes.delay(self._overdraft if ahead else 0.0)

    def write(self, file: Any, text: str, stream: Hashable) -> None:
        """Put text into a stream of a cell."""
        planned = getattr(file, "_flush_pending", False)
        file.write(text)
        with self._lock:
            self._bytes.spend(json_size(text))
            self._unplanned = self._unplanned or not planned
            now = self._clock()
            if now - self._charged.get(stream, 0.0) > _SENDS_EVERY:
                if len(self._charged) > _STREAMS:
                    self._charged.clear()
                self._charged[stream] = now
                self._bytes.spend(_MESSAGE)
                self._messages.spend(1)

    def displayed(self) -> None:
        """A message that is no text has been sent."""
        with self._lock:
            self._messages.spend(1)

    def flush_due(self) -> bool:
        """Whether what has been written is to be flushed now: else it is sent by itself soon."""
        with self._lock:
            now = self._clock()
            due = self._unplanned and now - self._flushed > _FLUSH_EVERY
            self._unplanned = False
            if due:
                self._flushed = now
            return due


def json_size(text: str) -> int:
    r"""The bytes of a text in a Jupyter message.

    Examples
    --------
    >>> json_size("é\n"), json_size("\x1b[31m")
    (4, 10)
    """
    return len(json.encoder.encode_basestring(text).encode("utf-8", "surrogatepass")) - 2


# -- this process ------------------------------------------------------------------------------------------------------

_pace: Pace | None = None
_lock = threading.Lock()


def get_pace() -> Pace | None:
    """The pace of what this process's cells show; None where no Jupyter server passes it on, or none that has limits.

    Raises
    ------
    ConfigError
        When a setting makes no sense.
    """
    global _pace
    name = os.environ.get("JPY_SESSION_NAME")
    # Who started the kernel says so; its parent may be a script of the kernel's specification.
    starter = os.environ.get("JPY_PARENT_PID") or str(os.getppid())
    if name is None or _is_inherited(name, starter) or not is_published(sys.stdout):
        return None
    limits = config.iopub_data_rate_limit, config.iopub_msg_rate_limit, config.rate_limit_window
    with _lock:
        if _pace is None or _pace.limits != limits:
            _pace = Pace(*limits)
        return _pace


def is_published(file: Any) -> bool:
    """Whether what is written to it becomes messages of a kernel; not so in ``%%capture``, say."""
    return hasattr(file, "pub_thread")


@lru_cache(maxsize=8)
def _is_inherited(name: str, starter: str) -> bool:
    """Whether the process that started this one has the same ``JPY_SESSION_NAME``: then we run headless in a kernel.

    So it is with ``papermill`` in a notebook's cell. A server names its kernels' sessions, and has no such name itself.
    """
    try:
        environ = Path("/proc", starter, "environ").read_bytes()
    except OSError:
        return False  # another system, or another user's: as if by a server
    return os.fsencode(f"JPY_SESSION_NAME={name}") in environ.split(b"\0")


def _after_fork() -> None:
    global _pace, _lock
    _pace = None
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
