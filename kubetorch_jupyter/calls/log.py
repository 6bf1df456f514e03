"""What calls have printed, as text: read from the pod's records, so far or as it comes."""

from __future__ import annotations

import asyncio
import codecs
import concurrent.futures
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any

from pod_server import wire
from pod_server.wire import FrameType, LogKind

from ..errors import KubetorchError, from_wire
from ..transport.exchange import Exchange
from ..transport.portal import get_portal
from ..transport.session import Session
from .run import Bell

__all__ = ["LogPieces", "find_row", "follow_log", "read_log"]

#: About the longest piece of text that `LogPieces` gives, in characters.
_PIECE = 1 << 16

_decoder = codecs.getincrementaldecoder("utf-8")


async def find_row(session: Session, id: str) -> dict[str, Any] | None:
    """What the pod lists of that call: ``f``, ``state``, ``ended``, ``log`` …; None if it doesn't."""
    skip = 0
    while True:
        answer = await session.request("calls", skip=skip)
        rows: list[dict[str, Any]] = answer["calls"]
        for row in rows:
            if row["id"] == id:
                return row
        if not answer.get("more") or not rows:
            return None
        skip += len(rows)


async def read_log(session: Session, id: str, row: Mapping[str, Any] | None, last: int | None = None) -> str:
    """What a call has printed so far; runs on the portal.

    Parameters
    ----------
    session
        With its pod.
    id
        The call's public id.
    row
        What `find_row` gives; it says how far a call that runs has come.
    last
        About how many bytes of the end are wanted; None: all.

    Raises
    ------
    UnknownCallError, RecordExpiredError
        When the pod doesn't keep it.
    """
    until = int(row["log"]) if row is not None and not row["ended"] else None
    if until == 0:
        return ""
    texts: list[str] = []
    skip = max(0, int(row["log"]) - last) if row is not None and last is not None else 0
    await _read(session, id, texts.append, until, skip)
    return "".join(texts)


async def follow_log(session: Session, id: str, add: Callable[[str], None], skip: int = 0) -> None:
    """Give what a call prints, from the start and as it comes, until it has ended; runs on the portal.

    Parameters
    ----------
    session, id
        As for `read_log`.
    add
        Takes each piece.
    skip
        About how many bytes are left out at the start.
    """
    await _read(session, id, add, None, skip)


async def _read(session: Session, id: str, add: Callable[[str], None], until: int | None, skip: int) -> None:
    sink = _LogText(add, until, skip)
    reader = sink.reader = _LogReader(id, sink)
    session.start(reader)
    try:
        await reader.future
        sink.end()
    finally:
        sink.reader = None
        session.leave(reader)


class _LogText:
    """A sink that makes text of a log: of each stream whole characters."""

    capped = False

    def __init__(self, add: Callable[[str], None], until: int | None, skip: int) -> None:
        self._add = add
        self._decoders = {kind: _decoder("replace") for kind in LogKind}
        #: The offset to stop at, for a call that goes on, and to begin at.
        self._until = until
        self._skip = skip
        self.reader: _LogReader | None = None

    def identify(self, call_id: Callable[[], str]) -> None:
        """It was made for one call."""

    def feed(self, kind: LogKind, data: bytes) -> None:
        reader = self.reader
        at = reader.log_offset if reader is not None else 0
        if kind is not LogKind.DISPLAY and at >= self._skip:
            text = self._decoders[kind].decode(data)
            if text:
                self._add(text)
        if reader is not None and self._until is not None and at >= self._until:
            reader.stop()

    def finish(self, then: Callable[[], None]) -> None:
        then()

    def end(self) -> None:
        for decoder in self._decoders.values():
            if text := decoder.decode(b"", final=True):
                self._add(text)


class _LogReader(Exchange):
    """Reads the log of a call, and nothing else of it."""

    __slots__ = ("future",)

    def __init__(self, id: str, sink: _LogText) -> None:
        super().__init__(FrameType.RESUME, {"id": id, "log_only": True}, (), sink)
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def stop(self) -> None:
        if not self.future.done():
            self.future.set_result(None)

    def on_result(self, flags: int, meta: Mapping[str, Any], buffers: Any) -> None:
        if flags & wire.F_ERROR:
            self.on_error(from_wire(meta.get("error") or {}))
        else:
            self.stop()

    def on_error(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _Feed:
    """What has come and isn't taken yet. It doesn't know the iterator, so that the iterator can be forgotten."""

    def __init__(self) -> None:
        self.pieces: deque[str] = deque()
        self.bell = Bell()
        self.done: concurrent.futures.Future[None] | None = None

    def add(self, text: str) -> None:
        self.pieces.append(text)
        self.bell.ring()

    def end(self, future: concurrent.futures.Future[None]) -> None:
        self.done = future
        self.bell.ring()

    def ready(self) -> bool:
        return bool(self.pieces) or self.done is not None


class LogPieces(Iterator[str]):
    """Text as it comes, piece by piece; `close`, Stop and forgetting it end the reading, not what is read.

    Parameters
    ----------
    read
        A coroutine function, run on the portal: gives each piece to the function that it is called with.
    """

    def __init__(self, read: Callable[[Callable[[str], None]], Coroutine[Any, Any, None]]) -> None:
        self._feed = feed = _Feed()
        self._over = False
        self._future = get_portal().submit(read(feed.add))
        self._future.add_done_callback(feed.end)
        weakref.finalize(self, self._future.cancel).atexit = False

    def __iter__(self) -> LogPieces:
        return self

    def __next__(self) -> str:
        __tracebackhide__ = True
        feed = self._feed
        while True:
            done = feed.done  # before the pieces: they come before the end
            texts: list[str] = []
            size = 0
            while feed.pieces and size < _PIECE:
                texts.append(feed.pieces.popleft())
                size += len(texts[-1])
            if texts:
                return "".join(texts)
            if done is not None:
                error = None if self._over or done.cancelled() else done.exception()
                self._over = True
                if error is None:
                    raise StopIteration
                if isinstance(error, KubetorchError):
                    error.__traceback__ = None  # ours, on the portal
                raise error
            feed.bell.wait(feed.ready)

    def close(self) -> None:
        """Read no more; what has come can still be taken."""
        self._future.cancel()

    def __repr__(self) -> str:
        return f"<a log, {'ended' if self._feed.done is not None else 'read as it comes'}>"
