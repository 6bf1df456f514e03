"""Output of user code, to the byte, in the log of the call that it belongs to.

A context variable says whose output a write is. Each call has a `Log`; writes are only put in line there, and go out
at once after a quiet moment, else gathered by the flusher a few milliseconds later.

A log's lock has a second purpose: a cancelled ``def`` call gets its `Cancelled` exception between any two bytecodes,
and must not get it half way through a write to the front. So `interrupt` holds the lock of the call's log when it sends
the exception, and code that must not be broken off holds it too and calls `settle` first, where an exception that is
already on its way is raised.
"""

from __future__ import annotations

import builtins
import collections
import contextvars
import functools
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from ..wire import F_ENTRY, FrameType, LogKind, encode, encode_log

if TYPE_CHECKING:
    from .link import Link
    from .pipes import Readers

__all__ = ["Log", "LogHub", "Stream", "current_log", "patch_print", "settle"]

#: The log that output in this context belongs to; None: the service's own.
current_log: contextvars.ContextVar[Log | None] = contextvars.ContextVar("current_log", default=None)

#: Log bytes in one frame.
_FRAME = 60 * 1024
#: An entry of text is at most this long, so that frames hold whole entries and the front can drop whole frames.
_TEXT = _FRAME - 64
#: A line after this many quiet seconds goes out at once.
_QUIET = 0.003
#: How long the flusher gathers, in seconds.
_GATHER = 0.002
#: Above these, whoever writes sends by himself, and so is slowed down when the front is.
_MAX_PARTS = 4096
_MAX_WRITE = 256 * 1024

_sleep = time.sleep  # the interruptible one is for user code
_monotonic = time.monotonic


def settle() -> None:
    """A call, so that an asynchronous exception that is on its way to this thread is raised here and not later."""


class Log:
    """One call's output on its way to the front.

    Parameters
    ----------
    hub
        What the logs of the process share.
    channel
        The call's number; 0 is the service's own log.
    """

    __slots__ = ("_busy", "_hub", "_last", "_parts", "_queued", "channel", "figures", "heir", "lock", "readers", "will")

    def __init__(self, hub: LogHub, channel: int) -> None:
        self._hub = hub
        self.channel = channel
        self.lock = threading.RLock()
        self._parts: collections.deque[tuple[LogKind, bytes]] = collections.deque()
        self._queued = False
        self._busy = False
        self._last = 0.0
        #: Pipes of child processes that are still open.
        self.readers: Readers | None = None
        #: matplotlib's figures of this call by their number, see `mpl_backend`.
        self.figures: collections.OrderedDict[int, Any] | None = None
        #: Of a cell, see `cells`: gives the log that goes on for it when its call has ended, and that from then on.
        self.will: Callable[[], Log] | None = None
        self.heir: Callable[[], Log] | None = None

    @property
    def service(self) -> Log:
        """The service's own log."""
        return self._hub.service

    def write(self, kind: LogKind, data: bytes) -> None:
        """Put output in line; from any thread."""
        if self.heir is not None:
            self.heir().write(kind, data)
            return
        if self._hub.link.writing_here:
            # Who has our lock may wait for this very thread to have written: the flusher takes it.
            self._parts.append((kind, data))
            self._hub.enqueue(self)
            return
        if self.will is not None:
            self._write_unless_ended(kind, data)
            return
        if self.readers:
            self.drain()
        self.put(kind, data)

    def _write_unless_ended(self, kind: LogKind, data: bytes) -> None:
        """Put it in line here, or in the heir's: under the lock, or the call might end between the look and that."""
        with self.lock:
            settle()
            if self.heir is None:
                self.drain()
                self.put(kind, data)
                return
        self.heir().write(kind, data)

    def put(self, kind: LogKind, data: bytes) -> None:
        """As `write`, without a look at the child processes first."""
        parts = self._parts
        parts.append((kind, data))
        # First append, then look: the flusher clears the mark first and then takes the parts, so none stays behind.
        # A line comes as "text" and then its end; it goes out when it is complete.
        if (data[-1] == 10 or kind not in _TEXT_KINDS) and _monotonic() - self._last > _QUIET:
            self.flush()
        elif not self._queued:
            with self.lock:
                settle()
                if not self._queued:
                    self._queued = True
                    self._hub.enqueue(self)
        elif len(parts) > _MAX_PARTS or len(data) > _MAX_WRITE:
            self.flush(wait=True)

    def add(self, kind: LogKind, data: bytes) -> None:
        """Put output in line for the flusher; waits for nothing."""
        self._parts.append((kind, data))
        if not self._queued:
            self._queued = True
            self._hub.enqueue(self)

    def brake(self) -> None:
        """Wait for the front when much is in line: for who has only added to it."""
        if sum(len(data) for _, data in tuple(self._parts)) > _MAX_WRITE:
            self.flush(wait=True)

    def flush(self, wait: bool = False, frame: bytes | None = None, write: bool = True) -> None:
        """Send what is in line, and then `frame`.

        Parameters
        ----------
        wait
            Wait when much is in line to the front.
        frame
            Goes after the output: an item or the result.
        write
            False: only put it in line to the front.
        """
        link = self._hub.link
        with self.lock:
            settle()
            self._queued = False
            # A finalizer that prints may come here while this thread is in the loop below, which then takes that too.
            if not self._busy:
                self._busy = True
                try:
                    self._last = _monotonic()
                    while self._parts:
                        link.post(self._frames())
                finally:
                    self._busy = False
            if frame is not None:
                link.post((frame,))
            if write:
                link.flush(wait)

    def end(self, result: bytes) -> None:
        """Send what is in line and then the RESULT, after which nothing more comes."""
        with self.lock:
            self.flush(frame=result)
            self.heir = self.will

    def _frames(self) -> list[bytes]:
        """The frames of all that is in line; the lock is held."""
        parts = self._parts
        kind, data = parts.popleft()
        if not parts and len(data) <= _TEXT:
            return [encode(FrameType.LOG, self.channel, None, (encode_log(kind, data),), F_ENTRY)]
        entries: list[tuple[LogKind, bytes]] = []
        run = [data]
        for _ in range(len(parts)):
            k, data = parts.popleft()
            if k is kind and k in _TEXT_KINDS:
                run.append(data)
            else:
                entries.append((kind, b"".join(run)))
                kind, run = k, [data]
        entries.append((kind, b"".join(run)))
        return [encode(FrameType.LOG, self.channel, None, (chunk,), flags) for chunk, flags in cut(entries)]

    def drain(self) -> None:
        """Take what child processes have written up to now."""
        with self.lock:
            settle()
            readers = self.readers
            if readers:
                readers.drain()

    def clear(self) -> None:
        """In a forked child: forget what the parent is going to send."""
        self.lock = threading.RLock()
        self._parts.clear()
        self.readers = None


_TEXT_KINDS = frozenset((LogKind.STDOUT, LogKind.STDERR))


def cut(entries: Iterable[tuple[LogKind, bytes]]) -> Iterable[tuple[bytes, int]]:
    """Log bytes in pieces that fit a frame, each with its flags.

    Examples
    --------
    >>> pieces = list(cut([(LogKind.STDOUT, b"x" * 100_000), (LogKind.STDERR, b"y")]))
    >>> [(len(data), flags) for data, flags in pieces]
    [(61381, 4), (38635, 4)]
    """
    chunk = bytearray()
    for kind, data in entries:
        if kind in _TEXT_KINDS:
            pieces = [data] if len(data) <= _TEXT else [data[i : i + _TEXT] for i in range(0, len(data), _TEXT)]
        else:
            pieces = [data]
        for piece in pieces:
            if chunk and len(chunk) + len(piece) + 5 > _FRAME:
                yield bytes(chunk), F_ENTRY
                chunk.clear()
            chunk += encode_log(kind, piece)
            if len(chunk) > _FRAME:  # a large display: only its first frame begins an entry
                for i in range(0, len(chunk), _FRAME):
                    yield bytes(chunk[i : i + _FRAME]), 0 if i else F_ENTRY
                chunk.clear()
    if chunk:
        yield bytes(chunk), F_ENTRY


class LogHub:
    """What all logs of the process share: the link, the flusher, the service's own log.

    Parameters
    ----------
    link
        The way to the front.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        # SimpleQueue may be used in a finalizer that runs while the same thread is inside it.
        self._queue: SimpleQueue[Log] = SimpleQueue()
        self.service = Log(self, 0)
        #: Has the flusher send a log soon.
        self.enqueue: Callable[[Log], None] = self._queue.put
        #: Whose output it is that comes from nowhere: of a thread that C code made, or of a finalizer in one of ours.
        self.owner: Callable[[], Log] = lambda: self.service

    def start(self) -> None:
        """Start the flusher."""
        threading.Thread(target=self._run, name="kt-flusher", daemon=True).start()

    def _run(self) -> None:
        while True:
            log = self._queue.get()
            _sleep(_GATHER)
            self.flush_all((log,))

    def flush_all(self, first: Iterable[Log] = ()) -> None:
        """Send what is in line in all logs that wait for the flusher."""
        logs = set(first)
        while True:
            try:
                logs.add(self._queue.get_nowait())
            except Empty:
                break
        for log in logs:
            log.flush(write=False)
        self.link.flush(wait=True)

    def current(self) -> Log:
        """The log of this context."""
        return current_log.get() or self.owner()


# -- sys.stdout and sys.stderr -----------------------------------------------------------------------------------------


class _Bytes(io.BufferedIOBase):
    """``sys.stdout.buffer``."""

    mode = "wb"

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.name = stream.name
        self.raw: Any = self

    def write(self, data: Any) -> int:
        """Write bytes."""
        if isinstance(data, str):
            raise TypeError("a bytes-like object is required, not 'str'")
        raw = bytes(data)
        if raw:
            self._stream.put(raw)
        return len(raw)

    def writable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """The descriptor, whose output has no certain owner."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """No."""
        return False

    def flush(self) -> None:
        """Nothing to do: see `Stream.flush`."""

    def close(self) -> None:
        """Nothing: the stream is everybody's."""


class Stream(io.TextIOBase):
    """``sys.stdout`` or ``sys.stderr`` of user code: what is written goes to the log of the context that writes.

    Parameters
    ----------
    hub
        Where the logs are.
    kind
        ``STDOUT`` or ``STDERR``.
    """

    encoding: str = "utf-8"
    errors: Any = "strict"
    newlines = None
    line_buffering = True
    write_through = True
    mode = "w"

    def __init__(self, hub: LogHub, kind: LogKind) -> None:
        self._hub = hub
        self.kind = kind
        self._fd = int(kind)
        self._forked = False
        self.name = "<stdout>" if kind is LogKind.STDOUT else "<stderr>"
        self.errors = "surrogateescape" if kind is LogKind.STDOUT else "backslashreplace"
        self.buffer: Any = _Bytes(self)

    def write(self, text: str) -> int:
        """Write text; gives its length in characters."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if text:
            data = text.encode("utf-8", self.errors)
            if self._forked:
                self.put(data)
            else:
                (current_log.get() or self._hub.owner()).write(self.kind, data)
        return len(text)

    def put(self, data: bytes) -> None:
        """Write bytes."""
        if not self._forked:
            (current_log.get() or self._hub.owner()).write(self.kind, data)
            return
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def after_fork(self) -> None:
        """In a forked child: write to the descriptor, which leads to the pipe of the call that forked."""
        self._forked = True

    def flush(self) -> None:
        """Nothing to do: output goes out by itself within milliseconds, and a frame for each flush would cost more."""

    def fileno(self) -> int:
        """The descriptor, whose output has no certain owner."""
        return self._fd

    def isatty(self) -> bool:
        """No."""
        return False

    def writable(self) -> bool:
        """Yes."""
        return True

    def close(self) -> None:
        """Nothing: the stream is everybody's."""

    def reconfigure(self, *, errors: str | None = None, **_: Any) -> None:
        """Take another error handler; the rest of `io.TextIOWrapper.reconfigure` has no effect."""
        if errors is not None:
            self.errors = errors


def patch_print() -> None:
    """Have `print` write what it prints at once.

    Python's own writes every value, separator and end by itself, so that lines of several threads get mixed.
    """
    original = builtins.print

    @functools.wraps(original)
    def print(*values: Any, sep: Any = " ", end: Any = "\n", file: Any = None, flush: Any = False) -> None:
        stream = sys.stdout if file is None else file
        if type(stream) is not Stream or type(sep) is not str or type(end) is not str:
            original(*values, sep=sep, end=end, file=file, flush=flush)
            return
        stream.write(sep.join([v if type(v) is str else str(v) for v in values]) + end)

    print.__module__ = "builtins"  # pickled by reference as what it stands for
    builtins.print = print
