"""A port of this machine for a pod that can be reached in no other way: each connection goes through a port-forward.

It costs a listener, and a WebSocket of the API server's for each connection. What goes wrong on the way is answered in
HTTP, which is all that our clients speak there, so that the reason arrives where the connection is wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import ConnectionFailedError, KubernetesCredentialsError, KubetorchError, PodLostError
from ...transport.endpoint import Endpoint
from ...transport.portal import get_portal
from .client import Cluster, Kind
from .failures import rule, status_of
from .names import index_of

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

__all__ = ["forward"]

log = logging.getLogger(__name__)

_PROTOCOL = "v4.channel.k8s.io"
_CONNECT_TIMEOUT = 5.0
#: The most that is read at once, and that is kept in either direction while the other side is slow, in bytes.
_PIECE = 256 << 10
#: How many messages of the API server's wait for a slow reader; each is of 32 KiB.
_QUEUE = 16
#: When the client has closed its side, the pod gets so many seconds to finish what it is saying.
_LINGER = 1.0
#: So many seconds the connections get at the end of Python for their goodbyes.
_GOODBYE = 0.4
#: The channels: what the pod's port says, and what went wrong with it.
_DATA, _ERROR = 0, 1

_Key = tuple[Cluster, str, str, str]
_endpoints: weakref.WeakValueDictionary[_Key, Endpoint] = weakref.WeakValueDictionary()


async def forward(
    cluster: Cluster,
    namespace: str,
    service: str,
    pod: Mapping[str, Any],
    port: int,
    token: str,
    gone: Callable[[bool], PodLostError | None] | None,
    proxy: str | None,
) -> Endpoint:
    """An endpoint on this machine for a pod's port; the listener lives as long as somebody has the endpoint.

    Raises
    ------
    KubernetesCredentialsError
        When port-forwards are forbidden, too.
    """
    name = str(pod["metadata"]["name"])
    key = (cluster, namespace, str(pod["metadata"].get("uid") or name), token)
    known = _endpoints.get(key)
    if known is not None:
        return known
    if not await cluster.may("get", "pods", namespace, subresource="portforward"):
        lines = [rule("pods/proxy", "", "get", "create", "update"), rule("pods/portforward", "", "get", "create")]
        raise KubernetesCredentialsError(
            f"pod {name} of service {service!r} can't be reached: {cluster.user!r} may use neither the API server's "
            f'proxy nor port-forwards in namespace "{namespace}". Ask for the role "edit" there, or for a Role with '
            "one of these rules (the first is faster):\n  " + "\n  ".join(lines),
            reason="Forbidden",
            service=service,
            rule=lines[0],
        )
    known = _endpoints.get(key)  # somebody else may have been quicker
    if known is not None:
        return known
    listener = _Listener(cluster, namespace, name, port, proxy)
    number = await listener.open()
    endpoint = _endpoints.get(key)
    if endpoint is not None:
        await listener.close()
        return endpoint
    endpoint = _endpoints[key] = Endpoint(service, f"http://127.0.0.1:{number}", token, gone=gone, rank=index_of(pod))
    portal = get_portal()
    last = weakref.finalize(endpoint, lambda: portal.call(listener.drop))
    last.atexit = False  # the portal's farewells see to it
    return endpoint


class _Listener:
    """The listener and its connections; on the portal."""

    def __init__(self, cluster: Cluster, namespace: str, pod: str, port: int, proxy: str | None) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._pod = pod
        self._port = port
        self._proxy = proxy
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._portal = get_portal()

    async def open(self) -> int:
        """Listen; the port's number."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_PIECE)
        self._portal.farewells.add(self.close)
        number: int = self._server.sockets[0].getsockname()[1]
        return number

    def drop(self) -> None:
        """Nobody has the endpoint any more."""
        self._portal.farewells.discard(self.close)
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()

    async def close(self) -> None:
        """Listen no more, and end the connections when they have said goodbye."""
        if self._server is not None:
            self._server.close()
        if self._connections:
            await asyncio.wait(self._connections, timeout=_GOODBYE)
        self.drop()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._portal.own(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with contextlib.AsyncExitStack() as stack:
                try:
                    ws = await self._dial()
                except KubetorchError as e:
                    await _answer(writer, getattr(e, "status", 502), str(e))
                    return
                stack.push_async_callback(_end, ws)
                down = asyncio.ensure_future(self._down(ws, writer))
                up = asyncio.ensure_future(self._up(reader, ws))
                stack.push_async_callback(_cancel, up, down)
                await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
                if not down.done():
                    await asyncio.wait((down,), timeout=_LINGER)
        finally:
            writer.transport.abort() if writer.transport.get_write_buffer_size() == 0 else writer.close()

    # -- to the pod --------------------------------------------------------------------------------------------------

    async def _dial(self) -> ClientConnection:
        """A port-forward of its own for one connection."""
        from websockets.exceptions import InvalidStatus, WebSocketException

        try:
            try:
                return await self._connect(renew=False)
            except InvalidStatus as e:
                if e.response.status_code != 401:
                    raise
                return await self._connect(renew=True)
        except InvalidStatus as e:
            code = e.response.status_code
            said = status_of(bytes(e.response.body or b"").decode("utf-8", "replace")).get("message")
            raise _Refused(self._say(str(said or f"status {code}")), status=code) from e
        except (OSError, WebSocketException) as e:
            if isinstance(e, KubetorchError):
                raise
            raise _Refused(self._say(str(e) or type(e).__name__), status=502) from e

    async def _connect(self, *, renew: bool) -> ClientConnection:
        from websockets.asyncio.client import connect
        from websockets.typing import Subprotocol

        cluster = self._cluster
        path = Kind.POD.path(self._namespace, self._pod, "portforward")
        url = f"ws{cluster.server.removeprefix('http')}{path}?ports={self._port}"
        more: dict[str, Any] = {}
        if cluster.tls() is not None:
            more["ssl"] = cluster.tls()
            if cluster.server_name is not None:
                more["server_hostname"] = cluster.server_name
        return await connect(
            url,
            additional_headers=dict(await cluster.headers(renew=renew)),
            subprotocols=[Subprotocol(_PROTOCOL)],
            user_agent_header="kubetorch-jupyter",
            compression=None,
            proxy=self._proxy,
            open_timeout=_CONNECT_TIMEOUT,
            # What goes through has pings of its own, and the API server doesn't answer ours.
            ping_interval=None,
            close_timeout=0.2,
            max_size=None,
            max_queue=_QUEUE,
            write_limit=_PIECE,
            logger=_quiet,
            **more,
        )

    async def _up(self, reader: asyncio.StreamReader, ws: ClientConnection) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            while data := await reader.read(_PIECE):
                await ws.send(b"\0" + data)  # it waits while the socket is full
        except (OSError, ConnectionClosed) as e:
            log.debug("a port-forward to %s ended while it sent", self._pod, exc_info=e)

    async def _down(self, ws: ClientConnection, writer: asyncio.StreamWriter) -> None:
        from websockets.exceptions import ConnectionClosed

        #: Each channel begins with the port's number.
        begun: set[int] = set()
        answered = False
        try:
            async for message in ws:
                if isinstance(message, str) or not message:
                    continue
                channel = message[0]
                if channel not in begun:
                    begun.add(channel)
                    message = message[:1] + message[3:]
                if len(message) == 1:
                    continue
                if channel == _DATA:
                    answered = True
                    writer.write(memoryview(message)[1:])
                    await writer.drain()
                elif channel == _ERROR:
                    said = message[1:].decode("utf-8", "replace")
                    log.debug("a port-forward to %s: %s", self._pod, said)
                    if not answered:
                        await _answer(writer, 503, self._say(said))
                    return
        except (OSError, ConnectionClosed) as e:
            log.debug("a port-forward to %s ended while it received", self._pod, exc_info=e)

    def _say(self, what: str) -> str:
        return f"the port-forward to pod {self._pod} doesn't work: {what}"


class _Refused(ConnectionFailedError):
    """No port-forward, with the HTTP status to say so."""

    status: int = 502


#: Not of the tree that users configure: on DEBUG it would write our credentials into their notebook.
_quiet = logging.Logger(f"{__name__}.protocol", logging.CRITICAL)


async def _answer(writer: asyncio.StreamWriter, status: int, text: str) -> None:
    """Tell the client in HTTP, which it speaks, why there is nobody."""
    body = json.dumps({"kind": "Status", "message": text}).encode()
    head = f"HTTP/1.1 {status} Port-forward\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    with contextlib.suppress(OSError):  # it has gone
        writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        await writer.drain()


async def _cancel(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def _end(ws: ClientConnection) -> None:
    ws.transport.abort()
    await ws.wait_closed()
