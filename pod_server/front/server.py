"""uvicorn's protocols on a socket of ours, without its server: that one polls, and takes the process's signals.

The additions: a request's head may have 64 KiB, so that nobody without a token can fill the memory; and an
application may use an accepted WebSocket itself (``scope["kt.connection"]``), without ASGI's queues.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
from collections.abc import Callable
from typing import Any, cast

import uvicorn
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame
from websockets.protocol import State

__all__ = ["Server", "bind", "preload"]

_log = logging.getLogger(__name__)

#: Bytes of a request's line and headers.
_HEAD = 64 << 10
#: Seconds within which a head that has begun, or a new connection's first, must be complete.
_HEAD_TIME = 10.0
_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
#: Bytes of one WebSocket message.
_MESSAGE = 16 << 20
#: Seconds that an idle connection stays open: longer than the longest pause between two transfers of a session.
_KEEP_ALIVE = 600
#: Turns of the loop within which a connection that was just being accepted is open, and one that is aborted is gone.
_TURNS = 4


class _WebSocket(WebSocketsSansIOProtocol):
    """A WebSocket that its application may use directly, and whose handshake can't raise.

    It is a `session.Connection`: with `on_message` set, messages go from the socket to the application and back in a
    call each. By ASGI, each costs a dictionary, a queue or an event, and a task to be woken: a fifth of what the front
    does for a call that comes alone. How the connection ends still comes by ASGI, as ``websocket.disconnect``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.on_message: Callable[[bytes | None], None] | None = None
        self.on_writable: Callable[[], None] | None = None

    async def run_asgi(self) -> None:
        self.scope["kt.connection"] = self  # type: ignore[typeddict-unknown-key]
        await super().run_asgi()

    @property
    def takes_more(self) -> bool:
        return self.writable.is_set()

    def write(self, data: bytes) -> None:
        if self.close_sent or self.conn.state is not State.OPEN or self.transport.is_closing():
            return  # it is on its way out, and the application will hear of it
        self.conn.send_binary(data)
        self.transport.write(b"".join(self.conn.data_to_send()))

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.on_writable is not None:
            self.on_writable()

    def hold(self, held: bool) -> None:
        if held == self.read_paused or self.transport.is_closing():
            return
        self.read_paused = held
        if held:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def abort(self) -> None:
        self.transport.abort()

    async def send(self, message: Any) -> None:
        await self.writable.wait()
        if self.handshake_complete and self.close_sent:
            raise ClientDisconnected  # the server has closed it, for bytes that are no WebSocket's
        await super().send(message)
        if self.transport.is_closing():
            # The client has left in the middle of the handshake: that is no error of ours.
            self.handshake_complete = True

    def send_receive_event_to_app(self) -> None:
        if self.on_message is None or self.close_sent:
            super().send_receive_event_to_app()
            return
        frames, self.frames = self.frames, []
        if self.curr_msg_data_type == "text":
            self.on_message(None)
        else:
            self.on_message(frames[0] if len(frames) == 1 else b"".join(frames))

    def handle_text(self, event: Frame) -> None:
        # The application refuses it, whatever it says: it needn't even be text.
        super().handle_text(dataclasses.replace(event, data=b""))

    def handle_cont(self, event: Frame) -> None:
        super().handle_cont(dataclasses.replace(event, data=b"") if self.curr_msg_data_type == "text" else event)

    def data_received(self, data: bytes) -> None:
        if self.handshake_initiated:
            super().data_received(data)
            return
        try:
            super().data_received(data)
        except (AssertionError, UnicodeError) as e:
            # The request line or a header is longer than the parser takes, or not ASCII.
            _log.info("a WebSocket handshake was refused: %s", e)
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()


def _http_protocol(kind: str) -> Any:
    """The HTTP protocol class: httptools where it is installed, else h11."""
    if kind in ("auto", "httptools"):
        try:
            from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
        except ImportError:
            if kind == "httptools":
                raise
        else:
            return _limited(HttpToolsProtocol)
    return _timed()


def _timed() -> Any:
    """The protocol of h11, which limits a head's length by itself, with a limit for the time of the first."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Timed(H11Protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._late = self.loop.call_later(_HEAD_TIME, self._look)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._late is not None:
                self._late.cancel()
            super().connection_lost(exc)

        def _look(self) -> None:
            if cast(Any, self.scope) is None and not self.transport.is_closing():
                self.transport.write(_TOO_LATE)
                self.transport.close()

    return Timed


def _limited(base: Any) -> Any:
    """The protocol with a limit for a request's head; httptools itself has none."""

    class Limited(base):  # type: ignore[misc]
        _in_head = True
        _head = 0
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._have_head()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            """Close the connection if the head, begun or not, isn't complete in time."""
            if self._late is None:
                self._late = self.loop.call_later(_HEAD_TIME, self._too_late)

        def _have_head(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

        def _too_late(self) -> None:
            self._late = None
            if not self.transport.is_closing():
                self.transport.write(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                self.transport.close()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not self._in_head:
                return
            self._head += len(data)
            if self._head > _HEAD:
                self.transport.write(
                    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                )
                self.transport.close()

        def on_message_begin(self) -> None:
            self._in_head, self._head = True, 0
            self._await_head()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._have_head()
            super().on_headers_complete()

    return Limited


def preload(http: str = "auto") -> None:
    """Import what a server needs."""
    _http_protocol(http)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises
    ------
    OSError
        When the port is taken, or the host isn't ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(1024)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


class Server:
    """An ASGI application on a socket.

    Parameters
    ----------
    app
        The application.
    sock
        Bound and listening.
    headers
        Added to every answer.
    http
        ``"auto"``, ``"httptools"`` or ``"h11"``.
    """

    def __init__(self, app: Any, sock: socket.socket, headers: list[tuple[bytes, bytes]], http: str = "auto") -> None:
        self._sock = sock
        self._config = uvicorn.Config(
            app,
            http=_http_protocol(http),
            ws=_WebSocket,
            ws_max_size=_MESSAGE,
            ws_ping_interval=None,
            ws_per_message_deflate=False,
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE,
            h11_max_incomplete_event_size=_HEAD,
        )
        self._state = ServerState()
        self._state.default_headers = headers
        self._server: asyncio.AbstractServer | None = None

    async def open(self) -> None:
        """Accept connections from here on."""
        self._config.load()
        loop = asyncio.get_running_loop()

        def connect() -> asyncio.Protocol:
            protocol: asyncio.Protocol = self._config.http_protocol_class(  # type: ignore[call-arg]
                config=self._config, server_state=self._state, app_state={}, _loop=loop
            )
            return protocol

        self._server = await loop.create_server(connect, sock=self._sock)

    async def close(self, timeout: float) -> None:
        """Accept no more, close what is idle, and give what runs so many seconds."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        tasks = set(self._state.tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=timeout)
        # Who hasn't taken what was written for him, or was just being accepted, would outlive the loop.
        for _ in range(_TURNS):
            await asyncio.sleep(0)
            for connection in list(self._state.connections):
                connection.transport.abort()
