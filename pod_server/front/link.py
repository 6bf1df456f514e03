"""The Unix socket on which the zygote and the workers come: frames in, frames out, gathered per tick of the loop."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Any, cast

from ..wire import Decoder, Frame, FrameType, WireError

__all__ = ["Link", "listen"]

_log = logging.getLogger(__name__)

#: Seconds within which who connects has to say who it is.
_INTRODUCE = 10.0
_BUFFER = 1 << 20


class Link(asyncio.Protocol):
    """One connection from the zygote or a worker.

    Parameters
    ----------
    introduce
        Called with this link and the HELLO's meta; it sets `on_frames` and `on_close`, or raises `WireError` to refuse.
    """

    def __init__(self, introduce: Callable[[Link, dict[str, Any]], None]) -> None:
        self._introduce = introduce
        self._decoder = Decoder()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._scheduled = False
        self._paused = False
        self._known = False
        self._deadline: asyncio.TimerHandle | None = None
        #: Bytes that wait because the other side doesn't read.
        self.waiting = 0
        self.closed = False
        self.on_frames: Callable[[list[Frame]], None] = lambda frames: None
        self.on_close: Callable[[str | None], None] = lambda reason: None
        self._reason: str | None = None
        self._hoping: list[asyncio.Future[None]] = []

    def send(self, frame: bytes) -> None:
        """Send a frame with the others of this tick; nothing when the connection is closed."""
        if self.closed:
            return
        self._out.append(frame)
        self.waiting += len(frame)
        if not self._scheduled and not self._paused:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Send what waits and close."""
        if self._transport is not None and not self.closed:
            self._flush()
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def pid(self) -> int | None:
        """The process at the other end, if the system says."""
        if self._transport is None or not hasattr(socket, "SO_PEERCRED"):
            return None
        sock = self._transport.get_extra_info("socket")
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little")

    def _flush(self) -> None:
        self._scheduled = False
        if self._paused or self._transport is None or not self._out:
            return
        out, self._out = self._out, []
        self.waiting = 0
        self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        self._relieve()

    async def taken(self) -> None:
        """Wait until the other side has read, or the connection is closed."""
        if self.waiting and not self.closed:
            future: asyncio.Future[None] = self._loop.create_future()
            self._hoping.append(future)
            await future

    def _relieve(self) -> None:
        hoping, self._hoping = self._hoping, []
        for future in hoping:
            if not future.done():
                future.set_result(None)

    # -- asyncio.Protocol ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_BUFFER)
        sock = transport.get_extra_info("socket")
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        self._deadline = self._loop.call_later(_INTRODUCE, self._fail, "it did not say who it is")

    def data_received(self, data: bytes) -> None:
        """As `asyncio.Protocol`."""
        try:
            frames = self._decoder.feed(data)
            if not self._known and frames:
                first = frames.pop(0)
                if first.type is not FrameType.HELLO:
                    raise WireError(f"the first frame is {first.type.name}, not HELLO")
                self._introduce(self, first.meta)
                self._known = True
                if self._deadline is not None:
                    self._deadline.cancel()
            if frames:
                self.on_frames(frames)
        except WireError as e:
            self._fail(str(e))

    def pause_writing(self) -> None:
        """As `asyncio.Protocol`."""
        self._paused = True

    def resume_writing(self) -> None:
        """As `asyncio.Protocol`."""
        self._paused = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """As `asyncio.Protocol`."""
        self.closed = True
        self._out = []
        self.waiting = 0
        self._relieve()
        if self._deadline is not None:
            self._deadline.cancel()
        self.on_close(self._reason)

    def _fail(self, reason: str) -> None:
        _log.warning("a connection on front.sock was closed: %s", reason)
        self._reason = reason
        self.abort()


async def listen(path: str, introduce: Callable[[Link, dict[str, Any]], None]) -> asyncio.AbstractServer:
    """Listen on a Unix socket that only this user can connect to."""
    mask = os.umask(0o177)
    try:
        return await asyncio.get_running_loop().create_unix_server(lambda: Link(introduce), path)
    finally:
        os.umask(mask)
