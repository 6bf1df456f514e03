"""One WebSocket connection of a session: the `websockets` package's sans-I/O protocol on an asyncio transport.

Its asyncio client costs a task switch and a queue for each message; here a message goes from the socket to the session
in one call, and what is sent in one turn of the loop leaves in one write.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from typing import cast
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from ..errors import AuthenticationError, ConnectionFailedError
from .endpoint import Endpoint
from .tunnel import tunnel

__all__ = ["POD_HEADER", "TOKEN_HEADER", "WebSocket", "refusal"]

TOKEN_HEADER = "X-Kubetorch-Token"
POD_HEADER = "X-Kubetorch-Pod"

#: Not of the tree that users configure: on DEBUG it would write each frame, and the token, into their notebook.
_log = logging.Logger(f"{__name__}.protocol", logging.WARNING)
_log.parent = logging.getLogger(__name__)

#: The transport asks us to hold back when it has this much unsent, in bytes.
_HIGH_WATER = 1 << 20


def refusal(endpoint: Endpoint, status: int, ours: bool, detail: str = "") -> Exception:
    """The error for an HTTP status that isn't the one hoped for.

    ``ours`` says whether the pod itself gave it, and not a proxy before it.
    """
    name = f'service "{endpoint.service}"'
    more = f": {_said(detail)}" if detail else ""
    if status in (401, 403):
        if ours:
            return AuthenticationError(
                f"{name} at {endpoint.url} refused our token ({status}); it may have been deployed anew: "
                f'get a fresh handle with kt.fn(name="{endpoint.service}") or deploy it again',
                service=endpoint.service,
            )
        return AuthenticationError(
            f"the proxy before {name} at {endpoint.url} refused us ({status}{more}); check your credentials for the "
            "cluster",
            service=endpoint.service,
        )
    who = name if ours else f"what answers for {name}"
    return ConnectionFailedError(
        f"{who} at {endpoint.url} answered with status {status}{more}", service=endpoint.service, url=endpoint.url
    )


def _said(detail: str) -> str:
    """The message of a Kubernetes API server's answer; other answers as they are."""
    try:
        return str(json.loads(detail)["message"])
    except (ValueError, KeyError, TypeError):
        return detail


class WebSocket(asyncio.Protocol):
    """A connection that is open, once `open` has returned it.

    Parameters
    ----------
    endpoint
        Where to.
    headers
        The request's, without our token.
    on_data
        Called with each piece of the stream of frames.
    on_lost
        Called once when an open connection ends, with the reason for people.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        headers: Mapping[str, str],
        on_data: Callable[[bytes], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._endpoint = endpoint
        self._headers = headers
        self._on_data = on_data
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        url = "ws" + endpoint.url.removeprefix("http") + "/session"
        self._ws = ClientProtocol(parse_uri(url), max_size=None, logger=_log)
        #: Whether a proxy has refused us: it may take newer credentials.
        self.stale = False
        #: Whether the transport takes more at the moment.
        self.writable = True
        #: Called when it does again.
        self.on_writable: Callable[[], None] | None = None

    @classmethod
    async def open(
        cls,
        endpoint: Endpoint,
        headers: Mapping[str, str],
        on_data: Callable[[bytes], None],
        on_lost: Callable[[str], None],
        timeout: float,
    ) -> WebSocket:
        """Connect and shake hands, within `timeout` seconds.

        They don't count what gets newer credentials, which may be a program that asks a person.

        Raises
        ------
        OSError, ConnectionFailedError
            When nobody answers (in time: TimeoutError), or not as a pod does. Trying again may help.
        AuthenticationError
            When the token is refused.
        """
        self = cls(endpoint, headers, on_data, on_lost)
        try:
            await self._connect(timeout)
        except AuthenticationError:
            if not self.stale or endpoint.credentials is None:
                raise
            self = cls(endpoint, await endpoint.all_headers(True), on_data, on_lost)
            await self._connect(timeout)
        return self

    async def _connect(self, timeout: float) -> None:
        endpoint = self._endpoint
        parts = urlsplit(endpoint.url)
        secure = parts.scheme == "https"
        host, port = parts.hostname or "", parts.port or (443 if secure else 80)
        tls = (endpoint.tls or True) if secure else None
        name = (endpoint.tls_name or host) if secure else None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                if endpoint.proxy is None:
                    await loop.create_connection(lambda: self, host, port, ssl=tls, server_hostname=name)
                else:
                    sock = await tunnel(endpoint.proxy, host, port)
                    await loop.create_connection(lambda: self, sock=sock, ssl=tls, server_hostname=name)
                await self._opened
        except BaseException:
            self.abort()
            raise

    # -- asyncio's side ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the handshake."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        request = self._ws.connect()
        for name, value in self._headers.items():
            request.headers[name] = value
        request.headers[TOKEN_HEADER] = self._endpoint.token
        self._ws.send_request(request)
        self._write()

    def data_received(self, data: bytes) -> None:
        """Hand on what came."""
        ws = self._ws
        ws.receive_data(data)
        for event in ws.events_received():
            if isinstance(event, Frame):
                # Frames of ours may be cut and joined anywhere in the stream, so message boundaries don't matter.
                if event.opcode is Opcode.BINARY or event.opcode is Opcode.CONT:
                    self._on_data(cast(bytes, event.data))
            elif isinstance(event, Response) and not self._opened.done():
                self._answered(event)
        if ws.writes:
            self._write()
        if ws.state is State.CLOSING and ws.close_rcvd is not None and self._transport is not None:
            self._transport.close()

    def _answered(self, response: Response) -> None:
        error = self._ws.handshake_exc
        if error is None:
            self._opened.set_result(None)
        elif isinstance(error, InvalidStatus):
            ours = POD_HEADER in response.headers
            self.stale = response.status_code == 401 and not ours
            said = bytes(response.body or b"")[:2000].decode("utf-8", "replace").strip()
            self._opened.set_exception(refusal(self._endpoint, response.status_code, ours, said))
        else:
            self._opened.set_exception(self._no_pod(error))

    def _no_pod(self, error: Exception) -> ConnectionFailedError:
        why = str(error) if isinstance(error, InvalidHandshake) else f"{type(error).__name__}: {error}"
        return ConnectionFailedError(
            f'what answers for service "{self._endpoint.service}" at {self._endpoint.url} is not a pod of ours ({why})',
            service=self._endpoint.service,
            url=self._endpoint.url,
        )

    def eof_received(self) -> bool:
        """Let the transport close itself."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Say so, once."""
        was_open = self._opened.done() and not self._opened.cancelled() and self._opened.exception() is None
        if not self._opened.done():
            # The handshake may have ended in bytes that are no HTTP, or in nothing.
            why = self._ws.handshake_exc or exc or EOFError("the connection was closed")
            self._opened.set_exception(self._no_pod(why))
            self._opened.exception()  # `open` may have been cancelled: nobody else looks then
        self._transport = None
        if not self._closed.done():
            self._closed.set_result(None)
        if was_open:
            close = self._ws.close_rcvd
            if exc is not None:
                reason = str(exc) or type(exc).__name__
            elif close is not None:
                reason = f"closed with code {int(close.code)}" + (f": {close.reason}" if close.reason else "")
            else:
                reason = "the other side closed it"
            self._on_lost(reason)

    def pause_writing(self) -> None:
        """Hold back."""
        self.writable = False

    def resume_writing(self) -> None:
        """Go on."""
        self.writable = True
        if self.on_writable is not None:
            self.on_writable()

    # -- the session's side ------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send one message; nothing happens when the connection is on its way out, `on_lost` says so anyway."""
        if self._transport is None or self._ws.state is not State.OPEN:
            return
        self._ws.send_binary(data)
        self._write()

    def _write(self) -> None:
        transport = self._transport
        for data in self._ws.data_to_send():
            if transport is None or transport.is_closing():
                continue
            if data:
                transport.write(data)
            elif transport.can_write_eof():
                transport.write_eof()
            else:
                transport.close()

    def pause_reading(self) -> None:
        """Take nothing more from the socket."""
        if self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take from it again."""
        if self._transport is not None and not self._transport.is_closing() and not self._transport.is_reading():
            self._transport.resume_reading()

    def abort(self) -> None:
        """Drop it at once."""
        if self._transport is not None:
            self._transport.abort()

    async def close(self, timeout: float) -> None:
        """Close it in good order, or drop it after ``timeout`` seconds."""
        if self._transport is not None and self._ws.state is State.OPEN:
            self._ws.send_close(CloseCode.NORMAL_CLOSURE)
            self._write()
        await asyncio.wait([self._closed], timeout=timeout)
        self.abort()
