"""One WebSocket to one pod, shared by all calls of this process: multiplexed, and taken up again after a break.

Everything here runs on the portal, in one thread, so there are no locks. What is sent in one turn of the loop leaves in one
message. A connection that breaks, or on which nothing comes any more, is replaced, and every open exchange goes on from where it
was; the pod's high-water mark tells which of them it has never seen. docs/protocol.md has the rules.
"""

from __future__ import annotations

import asyncio
import copy
import os
import random
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from pod_server import wire
from pod_server.wire import Frame, FrameType

from ..config import config
from ..errors import (
    AuthenticationError,
    CallCancelledError,
    CallError,
    ConnectionFailedError,
    KubetorchError,
    PodLostError,
    VersionMismatchError,
    from_wire,
)
from .bulk import Bulk
from .endpoint import Endpoint
from .exchange import Exchange, LoadExchange, RemoteFailure, Sink
from .portal import Portal, get_portal
from .websocket import WebSocket

__all__ = ["Exchange", "RemoteFailure", "Session", "Sink", "get_session", "hold_reading"]

#: The longest message, in bytes: several frames in one.
_MESSAGE = 256 * 1024
_CONNECT_TIMEOUT = 5.0
#: How long a first connection is tried for, in seconds: the backend has said that the pod accepts sessions.
_OPEN_TIMEOUT = 10.0
_BACKOFF = 0.05, 2.0
#: A connection that has lasted this long, in seconds, is no part of the trouble before it.
_HEALTHY = 5.0
#: Silence after which we ask whether the pod is there, with calls open and without, in seconds.
_SILENCE_BUSY = 2.0
_SILENCE_IDLE = 5.0
#: So many unanswered PINGs, and the connection counts as dead.
_PINGS = 3
#: How many acknowledgements are said again after a break: the pod may have missed the last ones.
_ACKS = 512
#: Requests that may be made twice: those are repeated after a break, others fail.
_REPEATABLE = frozenset({"calls", "events", "service_log", "adopt", "teardown", "status", "touch"})


@dataclass
class _Request:
    """A REQUEST without an answer yet; repeated once after a break, so that one that breaks the pod does so twice."""

    frame: bytes
    op: str
    future: asyncio.Future[dict[str, Any]]
    repeated: bool = False


class Session:
    """The session with one pod; `get_session` gives the shared one.

    Parameters
    ----------
    endpoint
        The pod.

    Attributes
    ----------
    welcome
        What the pod said of itself when the connection was (last) made.
    listeners
        Called, on the portal, with the meta of each EVENT.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.client = wire.new_client_id()
        self.welcome: dict[str, Any] = {}
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        self._portal: Portal = get_portal()
        self._loop = self._portal.loop
        self._bulk = Bulk(endpoint)
        self._exchanges: dict[int, Exchange] = {}
        self._channel = 0
        self._requests: dict[int, _Request] = {}
        self._request = 0
        self._acks: deque[int] = deque(maxlen=_ACKS)
        self._ws: WebSocket | None = None
        self._decoder = wire.Decoder()
        self._out: list[bytes] = []
        self._flushing = False
        self._welcomed: asyncio.Future[None] | None = None
        #: Whether the pod has welcomed us on this connection: nothing but HELLO is sent before.
        self._ready = False
        #: When that was; and since when, and how often, connections have broken as soon as they were made.
        self._since = 0.0
        self._trouble: float | None = None
        self._brief = 0
        #: The first connecting, while it lasts; whoever wants the session waits for it.
        self.opening: asyncio.Task[None] | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self._heard = 0.0
        self._pings = 0
        self._timer: asyncio.TimerHandle | None = None
        self._held = False
        #: Why there is no session any more.
        self._end: KubetorchError | None = None
        self._closed = False

    # -- state -------------------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether calls may be started on it: open or reconnecting, and of this process. Any thread."""
        return not self._closed and self._portal is get_portal()

    @property
    def connected(self) -> bool:
        """Whether frames go through at this moment, as far as is known."""
        return self._ready

    @property
    def open_calls(self) -> int:
        """How many exchanges have no result yet."""
        return len(self._exchanges)

    def call_id(self, channel: int) -> str:
        """The public id of one of this session's calls. Any thread."""
        return wire.call_id(self.endpoint.service, self.client, channel)

    # -- opening and closing -----------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect.

        Raises
        ------
        ConnectionFailedError
            When the pod can't be reached within 10 s.
        AuthenticationError, VersionMismatchError
            When it doesn't want us.
        """
        try:
            await self._establish(_OPEN_TIMEOUT)
        except BaseException:
            self._shut()
            raise

    def opened(self, task: asyncio.Task[None]) -> None:
        """The first connecting has ended, this way or that."""
        self.opening = None
        if not task.cancelled():
            task.exception()  # for those who wait; there may be none left

    async def close(self) -> None:
        """Say goodbye; calls that are still open end with `CallCancelledError`."""
        if self._closed:
            return
        ws = self._ws
        if ws is not None:
            self._send(wire.encode(FrameType.GOODBYE, 0, {"reason": "the client closed the session"}))
            self._flush()
        self._ws = None
        service = self.endpoint.service
        self._lose(CallCancelledError(f'the session with service "{service}" was closed', service=service))
        if ws is not None:
            await ws.close(0.3)

    def _shut(self) -> None:
        """No more of it: timers, tasks, transfers, the registry."""
        self._closed = True
        self._portal.farewells.discard(self.close)
        sessions = _sessions(self._portal)
        if sessions.get(_key(self.endpoint)) is self:
            del sessions[_key(self.endpoint)]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reconnecting is not None and self._reconnecting is not asyncio.current_task():
            self._reconnecting.cancel()
        self._bulk.close()
        ws, self._ws = self._ws, None
        if ws is not None:
            ws.abort()

    def _lose(self, error: KubetorchError) -> None:
        """End everything that is open with an error of this kind."""
        if self._closed:
            return
        self._end = error
        self._shut()
        exchanges, self._exchanges = self._exchanges, {}
        for exchange in exchanges.values():
            exchange.end()
            exchange.on_error(self._again(exchange.channel))
        requests, self._requests = self._requests, {}
        for request in requests.values():
            if not request.future.done():
                request.future.set_exception(self._again(0))

    def _again(self, channel: int) -> KubetorchError:
        """The error that ended the session, anew for each who waits: an exception gathers its raisers' tracebacks."""
        assert self._end is not None
        error = copy.copy(self._end)
        if channel and isinstance(error, CallError):
            error.call_id = self.call_id(channel)
        return error

    # -- connecting --------------------------------------------------------------------------------------------------

    async def _establish(self, limit: float, tries: int = 0) -> None:
        """Try until it works, the pod is known to be gone, or ``limit`` seconds have passed.

        ``tries`` is how many connections have broken as soon as they were made: the pause goes on growing then.
        """
        deadline = self._loop.time() + limit
        first, longest = _BACKOFF
        pause = min(first * 2.0**tries, longest)
        if tries:
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        while True:
            try:
                await self._connect()
                return
            except (AuthenticationError, VersionMismatchError, PodLostError):
                raise
            except (OSError, KubetorchError) as e:
                service = self.endpoint.service
                reason = self.endpoint.gone() if self.endpoint.gone is not None else None
                if reason is not None:
                    raise PodLostError(service=service, reason=reason) from e
                if self._loop.time() + pause > deadline:
                    why = str(e) or type(e).__name__
                    raise ConnectionFailedError(
                        f'service "{service}" at {self.endpoint.url} could not be reached for {limit:g} s ({why}); '
                        "kt.services() lists those that are alive",
                        service=service,
                        url=self.endpoint.url,
                    ) from e
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, longest)

    async def _connect(self) -> None:
        decoder = self._decoder = wire.Decoder()
        ws: WebSocket | None = None

        # Both are bound to this connection: one that was given up may still deliver something.
        def on_data(data: bytes) -> None:
            if self._decoder is decoder and not self._closed:
                self._receive(data)

        def on_lost(reason: str) -> None:
            if self._decoder is decoder:
                self._disconnected(reason)

        welcomed = self._welcomed = self._loop.create_future()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                ws = await WebSocket.open(self.endpoint, on_data, on_lost)
                self._ws = ws
                ws.on_writable = self._flush
                ws.send(wire.encode(FrameType.HELLO, 0, _hello(self.client)))
                await welcomed
        except BaseException as e:
            self._ws = None
            self._ready = False
            self._decoder = wire.Decoder()
            if ws is not None:
                ws.abort()
            if isinstance(e, TimeoutError) and not isinstance(e, KubetorchError):
                raise ConnectionFailedError(
                    f'service "{self.endpoint.service}" at {self.endpoint.url} did not answer within '
                    f"{_CONNECT_TIMEOUT:g} s",
                    service=self.endpoint.service,
                    url=self.endpoint.url,
                ) from None
            raise
        finally:
            self._welcomed = None
            if welcomed.done() and not welcomed.cancelled():
                welcomed.exception()  # when we were cancelled in the same moment, nobody else looks

    def _on_welcome(self, meta: dict[str, Any]) -> None:
        """The pod accepts us: take up what is open, in order."""
        waiting = self._welcomed
        if waiting is None or waiting.done():
            return
        if meta.get("protocol") != wire.PROTOCOL:
            waiting.set_exception(self._mismatch(meta.get("protocol")))
            return
        before = self.welcome.get("incarnation")
        if before is not None and meta.get("incarnation") != before:
            reason = "another pod has taken its place"
            waiting.set_exception(PodLostError(service=self.endpoint.service, reason=reason))
            return
        self.welcome = meta
        self._ready = True
        self._since = self._loop.time()
        self._portal.farewells.add(self.close)
        if self._timer is None:
            self._timer = self._loop.call_later(_SILENCE_BUSY, self._watch)
        if self._held and self._ws is not None:
            self._ws.pause_reading()
        self._resume(int(meta.get("high_water", 0)))
        waiting.set_result(None)

    def _mismatch(self, theirs: Any) -> VersionMismatchError:
        return VersionMismatchError(
            f'service "{self.endpoint.service}" speaks version {theirs} of our protocol and this client version '
            f"{wire.PROTOCOL}: deploy it again with this version of kubetorch_jupyter, or use the one that deployed it",
            service=self.endpoint.service,
            what="protocol",
            client=str(wire.PROTOCOL),
            pod=str(theirs),
        )

    def _resume(self, high_water: int) -> None:
        self._out.clear()  # said to the connection that broke; what matters of it is said again
        for channel in self._acks:
            self._send(wire.encode(FrameType.ACK, channel))
        for channel, exchange in self._exchanges.items():
            if channel > high_water:
                self._send(exchange.frame())
                exchange.on_sent()
            else:
                self._send(exchange.resume_frame())
            if exchange.cancelled is not None:
                self._send(wire.encode(FrameType.CANCEL, channel, {"reason": exchange.cancelled}))
            if exchange.upload_wanted:
                self._upload(exchange)
        for request in self._requests.values():
            request.repeated = True
            self._send(request.frame)

    def _disconnected(self, reason: str) -> None:
        """The connection is gone; get another."""
        self._ws = None
        self._ready = False
        if self._closed:
            return
        if self._welcomed is not None:
            if not self._welcomed.done():
                self._welcomed.set_exception(
                    ConnectionFailedError(
                        f'service "{self.endpoint.service}" at {self.endpoint.url} closed the connection ({reason})',
                        service=self.endpoint.service,
                        url=self.endpoint.url,
                    )
                )
            return
        for number, request in list(self._requests.items()):
            if request.op in _REPEATABLE and not request.repeated:
                continue
            del self._requests[number]
            if not request.future.done():
                request.future.set_exception(
                    ConnectionFailedError(
                        f'the connection to service "{self.endpoint.service}" broke while it was asked to '
                        f"{request.op} ({reason}); whether it has done so isn't known",
                        service=self.endpoint.service,
                        url=self.endpoint.url,
                    )
                )
        now = self._loop.time()
        if self._trouble is None or now - self._since > _HEALTHY:
            self._trouble, self._brief = now, 0
        else:
            self._brief += 1
        if self._reconnecting is None:
            self._reconnecting = self._portal.own(self._reconnect(reason, self._trouble))

    async def _reconnect(self, reason: str, since: float) -> None:
        limit = float(config.reconnect_timeout)
        try:
            await self._establish(max(limit - (self._loop.time() - since), 0), self._brief)
        except PodLostError as e:
            self._lose(e)
        except ConnectionFailedError:
            why = f"no connection for {limit:g} s; the last one ended with: {reason}"
            self._lose(PodLostError(service=self.endpoint.service, reason=why))
        except KubetorchError as e:
            self._lose(e)
        finally:
            self._reconnecting = None

    # -- sending -----------------------------------------------------------------------------------------------------

    def _send(self, frame: bytes) -> None:
        if not self._ready:
            return  # said again, as far as it matters, when there is a connection
        self._out.append(frame)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        out, ws = self._out, self._ws
        if not out or ws is None:
            return
        if len(out) == 1:
            if ws.writable:
                ws.send(out.pop())
            return
        start = size = 0
        for i, frame in enumerate(out):
            if size + len(frame) > _MESSAGE:
                if not ws.writable:
                    break
                ws.send(b"".join(out[start:i]))
                start, size = i, 0
            size += len(frame)
        if ws.writable and size:
            ws.send(b"".join(out[start:]))
            start = len(out)
        del out[:start]

    # -- receiving ---------------------------------------------------------------------------------------------------

    def _receive(self, data: bytes) -> None:
        self._heard = self._loop.time()
        self._pings = 0
        try:
            for frame in self._decoder.feed(data):
                self._dispatch(frame)
        except wire.WireError as e:
            service, url = self.endpoint.service, self.endpoint.url
            error = ConnectionFailedError(
                f'what came from service "{service}" at {url} makes no sense ({e})', service=service, url=url
            )
            if self._welcomed is not None and not self._welcomed.done():
                self._welcomed.set_exception(error)
            else:
                self._lose(error)

    def _dispatch(self, frame: Frame) -> None:
        kind, channel = frame.type, frame.channel
        if kind is FrameType.RESULT:
            exchange = self._exchanges.get(channel)
            if exchange is None:
                self.acknowledge(channel)  # it missed that we have had it
            else:
                self._on_result(exchange, frame)
        elif kind is FrameType.LOG:
            exchange = self._exchanges.get(channel)
            if exchange is not None and frame.buffers:
                exchange.take_log(frame.meta, frame.buffers[0])
        elif kind is FrameType.ITEM:
            exchange = self._exchanges.get(channel)
            if exchange is not None:
                self._on_item(exchange, frame)
        elif kind is FrameType.WELCOME:
            self._on_welcome(frame.meta)
        elif kind is FrameType.PING:
            self._send(wire.encode(FrameType.PONG, 0, frame.meta))
        elif kind is FrameType.RESPONSE:
            self._on_response(channel, frame.meta)
        elif kind is FrameType.EVENT:
            meta = frame.meta
            for listener in list(self.listeners):
                listener(meta)
        elif kind is FrameType.GOODBYE:
            self._on_goodbye(frame.meta)

    def _on_goodbye(self, meta: dict[str, Any]) -> None:
        reason = str(meta.get("reason") or "the pod closed the session")
        service = self.endpoint.service
        waiting = self._welcomed
        error: KubetorchError
        if meta.get("error"):
            error = from_wire({**meta, "type": meta["error"], "message": reason}, service=service)
        elif waiting is not None:
            error = ConnectionFailedError(
                f'service "{service}" at {self.endpoint.url} refused the session: {reason}',
                service=service,
                url=self.endpoint.url,
            )
        else:
            error = PodLostError(service=service, reason=reason)
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)
        else:
            self._lose(error)

    def _on_item(self, exchange: Exchange, frame: Frame) -> None:
        meta = frame.meta
        index = int(meta.get("i", exchange.items))
        if index < exchange.items:
            return  # had it before the connection broke
        exchange.items = index + 1
        if frame.flags & wire.F_BULK:
            exchange.fetching.add(index)
            exchange.add_work(self._portal.own(self._fetch(exchange, frame, meta, index)))
        else:
            exchange.on_item(index, meta, frame.buffers)

    def _on_result(self, exchange: Exchange, frame: Frame) -> None:
        meta = frame.meta
        if frame.flags & wire.F_BULK:
            if not exchange.result_wanted:
                return  # the download of it goes on from before the break
            exchange.result_wanted = False
            exchange.fetching.add(None)
            exchange.add_work(self._portal.own(self._fetch(exchange, frame, meta, None)))
        elif exchange.fetching:
            if exchange.result_wanted:
                exchange.result_wanted = False
                exchange.result = frame.flags, meta, frame.buffers
        else:
            self._finish(exchange, frame.flags, meta, frame.buffers)

    async def _fetch(self, exchange: Exchange, frame: Frame, meta: dict[str, Any], index: int | None) -> None:
        """Download an item or (without an index) the result."""
        try:
            buffers = await self._bulk.download(f"/bulk/down/{meta['file']}", meta["lens"])
        except Exception as e:
            self._fail(exchange, e)
            return
        exchange.fetching.discard(index)
        if index is not None:
            exchange.on_item(index, meta, buffers)
        else:
            exchange.result = frame.flags, meta, buffers
        if exchange.result is not None and not exchange.fetching:
            self._finish(exchange, *exchange.result)

    def _finish(self, exchange: Exchange, flags: int, meta: Mapping[str, Any], buffers: Sequence[wire.Buffer]) -> None:
        if self._exchanges.pop(exchange.channel, None) is None:
            return
        exchange.end()
        if exchange.acknowledges:
            self.acknowledge(exchange.channel)
        exchange.on_result(flags, meta, buffers)

    def _on_response(self, number: int, meta: dict[str, Any]) -> None:
        pending = self._requests.pop(number, None)
        if pending is None:
            return
        future = pending.future
        if future.done():
            return
        if meta.get("error"):
            future.set_exception(from_wire(meta["error"], service=self.endpoint.service))
        else:
            future.set_result(meta)

    # -- liveness ----------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Ask whether the pod is there when it has been silent; give the connection up when it doesn't answer."""
        self._timer = self._loop.call_later(_SILENCE_BUSY, self._watch)
        if not self._ready or self._held:
            return
        limit = _SILENCE_BUSY if self._exchanges or self._requests else _SILENCE_IDLE
        if self._loop.time() - self._heard < limit * 0.99:
            return
        if self._pings >= _PINGS:
            self._decoder = wire.Decoder()  # nothing that this connection still says counts
            if self._ws is not None:
                self._ws.abort()
            self._disconnected(f"no answer to {_PINGS} pings")
            return
        self._pings += 1
        self._send(wire.encode(FrameType.PING, 0, {"n": self._pings}))

    def hold(self, held: bool) -> None:
        """Take nothing more from the connection for now, or go on."""
        self._held = held
        self._heard = self._loop.time()
        if self._ws is not None:
            if held:
                self._ws.pause_reading()
            else:
                self._ws.resume_reading()

    # -- what calls use ----------------------------------------------------------------------------------------------

    def start(self, exchange: Exchange) -> None:
        """Give an exchange its number and send it; its `on_result` or `on_error` will be called, once."""
        if self._closed:
            exchange.session = self
            exchange.on_error(
                self._again(0)
                if self._end is not None
                else ConnectionFailedError(
                    f'the session with service "{self.endpoint.service}" is closed', service=self.endpoint.service
                )
            )
            return
        self._channel += 1
        exchange.channel = self._channel
        exchange.session = self
        try:
            frame = exchange.frame()
        except wire.WireError as e:
            # The number is used up, which costs nothing.
            exchange.on_error(ConnectionFailedError(f"this can't be sent: {e}", service=self.endpoint.service))
            return
        self._exchanges[exchange.channel] = exchange
        if self._ready:
            self._send(frame)
            exchange.on_sent()
            if exchange.upload_wanted:
                self._upload(exchange)

    def _upload(self, exchange: Exchange) -> None:
        exchange.add_work(self._portal.own(self._put(exchange)))

    async def _put(self, exchange: Exchange) -> None:
        try:
            await self._bulk.upload(f"/bulk/up/{self.client}/{exchange.channel}", exchange.buffers)
        except Exception as e:
            self._fail(exchange, e)
            return
        exchange.settled()

    def _fail(self, exchange: Exchange, error: Exception) -> None:
        """A payload can't be brought over: the call has no result, and the pod may forget it."""
        if self._exchanges.pop(exchange.channel, None) is None:
            return
        self._send(wire.encode(FrameType.CANCEL, exchange.channel, {"reason": "abandoned"}))
        self.acknowledge(exchange.channel)
        exchange.end()
        exchange.on_error(error)

    def cancel(self, exchange: Exchange, reason: str) -> None:
        """Ask the pod to cancel; the exchange stays open until the pod has said how it ended."""
        if exchange.cancelled is None and exchange.channel in self._exchanges:
            exchange.cancelled = reason
            self._send(wire.encode(FrameType.CANCEL, exchange.channel, {"reason": reason}))

    def leave(self, exchange: Exchange) -> None:
        """Hear no more of it; what runs, runs on."""
        if self._exchanges.pop(exchange.channel, None) is not None:
            exchange.end()
            self.acknowledge(exchange.channel)

    def credit(self, exchange: Exchange, n: int) -> None:
        """Allow ``n`` more items."""
        if exchange.channel in self._exchanges:
            exchange.granted += n
            self._send(wire.encode(FrameType.CREDIT, exchange.channel, {"n": n}))

    def acknowledge(self, channel: int) -> None:
        """The record of that call may go."""
        self._acks.append(channel)
        self._send(wire.encode(FrameType.ACK, channel))

    async def load(
        self, meta: Mapping[str, Any], buffers: Sequence[wire.Buffer], output: Sink | None = None
    ) -> dict[str, Any]:
        """Send LOAD and wait for its end.

        Returns
        -------
        dict
            The RESULT's meta.

        Raises
        ------
        RemoteFailure
            When the user's code raised: its own exception, not decoded.
        KubetorchError
            As the pod, or the loss of it, says.
        """
        exchange = LoadExchange(FrameType.LOAD, dict(meta), buffers, output)
        self.start(exchange)
        try:
            return await exchange.future
        except asyncio.CancelledError:
            self.cancel(exchange, "user")
            raise

    async def request(self, op: str, **fields: Any) -> dict[str, Any]:
        """Ask the front something that isn't a call (``calls``, ``events``, ``status`` …).

        Raises
        ------
        KubetorchError
            As the front answers; `ConnectionFailedError` when the connection breaks and the request is none that may be repeated.
        """
        if self._closed:
            raise self._again(0) if self._end is not None else ConnectionFailedError("the session is closed")
        self._request += 1
        number = self._request
        frame = wire.encode(FrameType.REQUEST, number, {"op": op, **fields})
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._requests[number] = _Request(frame, op, future)
        self._send(frame)
        try:
            return await future
        finally:
            self._requests.pop(number, None)


def _hello(client: str) -> dict[str, Any]:
    import cloudpickle

    return {
        "protocol": wire.PROTOCOL,
        "client": client,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "user": config.username,
        "notebook": os.environ.get("JPY_SESSION_NAME") or (os.path.basename(sys.argv[0]) if sys.argv else ""),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "cloudpickle": cloudpickle.__version__,
    }


# -- sharing -----------------------------------------------------------------------------------------------------------

_registry: dict[Portal, dict[tuple[str, str], Session]] = {}


def _key(endpoint: Endpoint) -> tuple[str, str]:
    # With the token, because another pod may get the port of one that has ended.
    return endpoint.url, endpoint.token


def _sessions(portal: Portal) -> dict[tuple[str, str], Session]:
    return _registry.setdefault(portal, {})


@overload
async def get_session(endpoint: Endpoint) -> Session: ...
@overload
async def get_session(endpoint: Endpoint, *, connect: bool) -> Session | None: ...
async def get_session(endpoint: Endpoint, *, connect: bool = True) -> Session | None:
    """The one session of this process with that pod, connected when there is none; on the portal.

    Parameters
    ----------
    endpoint
        The pod.
    connect
        Whether to make one; without, None is what there may be instead.

    Raises
    ------
    ConnectionFailedError, AuthenticationError, VersionMismatchError, PodLostError
        As `Session.open`.
    """
    portal = get_portal()
    sessions = _sessions(portal)
    session = sessions.get(_key(endpoint))
    if session is None or not session.usable:
        if not connect:
            return None
        session = sessions[_key(endpoint)] = Session(endpoint)
        session.opening = portal.loop.create_task(session.open())
        session.opening.add_done_callback(session.opened)
    if session.opening is not None:
        await asyncio.shield(session.opening)
    return session


def hold_reading(held: bool) -> None:
    """Take nothing more from any connection of this process for now, or go on; on the portal.

    What comes faster than the user's terminal takes it would otherwise fill the memory.
    """
    for session in list(_sessions(get_portal()).values()):
        session.hold(held)
