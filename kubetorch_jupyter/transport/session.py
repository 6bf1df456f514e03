"""One WebSocket to one pod, shared by all calls of this process: multiplexed, and taken up again after a break.

Everything here runs on the portal, in one thread, so there are no locks. When its connection (`transport.link`) has
been replaced, every open exchange goes on from where it was; the pod's high-water mark tells which of them it has never
seen. docs/protocol.md has the rules.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pod_server import wire
from pod_server.wire import Frame, FrameType

from ..errors import (
    CallCancelledError,
    CallError,
    ConnectionFailedError,
    KubetorchError,
    PodLostError,
    from_wire,
)
from .bulk import Bulk
from .endpoint import Endpoint
from .exchange import Exchange, LoadExchange, RemoteFailure, Sink
from .link import Link
from .notices import Notices
from .portal import Portal, get_portal

__all__ = ["Exchange", "RemoteFailure", "Session", "Sink"]

log = logging.getLogger(__name__)

#: How many acknowledgements are said again after a break: the pod may have missed the last ones.
_ACKS = 512
#: Requests that may be made again: those are repeated after a break, others fail.
_REPEATABLE = frozenset({"calls", "drain", "events", "service_log", "adopt", "teardown", "status", "touch"})
#: How often one is made at most: perhaps it is what breaks the pod, but a network may well break thrice.
_TRIES = 4


@dataclass
class _Request:
    """A REQUEST without an answer yet."""

    frame: bytes
    op: str
    future: asyncio.Future[dict[str, Any]]
    sent: int = 0


class Session:
    """The session with one pod; `transport.sharing.get_session` gives the shared one.

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
        self._acks: deque[bytes] = deque(maxlen=_ACKS)
        self._link = Link(endpoint, self.client, self, self._portal)
        self._notices = Notices(endpoint.service)
        #: Called when it is over: nobody should get it any more.
        self.on_shut: Callable[[], None] = lambda: None
        #: The first connecting, while it lasts; whoever wants the session waits for it.
        self.opening: asyncio.Task[None] | None = None
        #: Why there is no session any more.
        self._end: KubetorchError | None = None
        self._closed = False
        #: The pod has said that it ends, and takes nothing more.
        self._ending = False
        #: The container with the workers has ended, and none has come up since.
        self._stranded = False

    # -- state -------------------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether calls may be started on it: open or reconnecting, and of this process. Any thread."""
        return not self._closed and not self._ending and self._portal is get_portal()

    @property
    def draining(self) -> bool:
        """Whether new calls had better go to another pod: its place is taken, or its workers' container has ended."""
        return bool(self.welcome.get("draining")) or self._stranded

    @property
    def connected(self) -> bool:
        """Whether frames go through at this moment, as far as is known."""
        return self._link.ready

    @property
    def busy(self) -> bool:
        """Whether an answer is awaited."""
        return bool(self._exchanges or self._requests)

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
            await self._link.open()
        except BaseException:
            self._shut()
            self._link.shut()
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
        service = self.endpoint.service
        text = f'the session was closed: service "{service}" was torn down here, or this process ends'
        self._lose(CallCancelledError(text, service=service), shut=False)
        await self._link.close(wire.encode(FrameType.GOODBYE, 0, {"reason": "the client closed the session"}))

    def _shut(self) -> None:
        """No more of it: timers, tasks, transfers, the registry."""
        self._closed = True
        self._portal.farewells.discard(self.close)
        self.on_shut()
        self._bulk.close()

    def _lose(self, error: KubetorchError, *, shut: bool = True) -> None:
        """End everything that is open with an error of this kind."""
        if self._closed:
            return
        self._end = error
        self._shut()
        if shut:
            self._link.shut()
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

    # -- what the link tells -----------------------------------------------------------------------------------------

    def on_welcome(self, meta: dict[str, Any]) -> None:
        """Take up what is open, in order."""
        before = self.welcome.get("incarnation")
        if before is not None and meta.get("incarnation") != before:
            lost = self.endpoint.lost(True)
            reason = "another process answers in its place, which knows nothing of its calls"
            raise lost or PodLostError(service=self.endpoint.service, reason=reason)
        self.welcome = meta
        self._stranded = self._stranded and meta.get("state") != "ready"
        self._notices.on_welcome(meta, self._exchanges.values())
        self._portal.farewells.add(self.close)
        self._resume(int(meta.get("high_water", 0)))

    def _resume(self, high_water: int) -> None:
        for ack in self._acks:
            self._link.send(ack)
        for channel, exchange in self._exchanges.items():
            if channel > high_water:
                self._link.send(exchange.frame())
                exchange.on_sent()
            else:
                self._link.send(exchange.resume_frame())
            if exchange.cancelled is not None:
                self._link.send(wire.encode(FrameType.CANCEL, channel, {"reason": exchange.cancelled}))
            if exchange.upload_wanted:
                self._upload(exchange)
        for request in self._requests.values():
            request.sent += 1
            self._link.send(request.frame)

    def on_broken(self, reason: str) -> None:
        """Fail what can't be said again."""
        for number, request in list(self._requests.items()):
            if request.sent < (_TRIES if request.op in _REPEATABLE else 1):
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

    def on_goodbye(self, meta: dict[str, Any]) -> None:
        """Take back what the pod hasn't read: it can be begun on another one."""
        seen = meta.get("high_water")
        if isinstance(seen, int):
            for channel, exchange in self._exchanges.items():
                if channel > seen:
                    exchange.take_back()

    def on_lost(self, error: KubetorchError) -> None:
        """End what is open: there will be no other connection."""
        self._lose(error)

    def on_frame(self, frame: Frame) -> None:
        """Hand a frame to the exchange that it is about."""
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
        elif kind is FrameType.RESPONSE:
            self._on_response(channel, frame.meta)
        elif kind is FrameType.EVENT:
            meta = frame.meta
            what = meta.get("event")
            if what == "draining":
                self.welcome["draining"] = True
            elif what == "stopping":
                self._ending = True
            elif what == "worker-died":
                self._stranded = meta.get("container") is True
            elif what in ("worker-ready", "loaded"):
                self._stranded = False
            self._notices.on_event(meta, self._exchanges.values())
            for listener in list(self.listeners):
                listener(meta)

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
        if frame.flags & wire.F_ERROR and (meta.get("error") or {}).get("type") == "PodTerminatedError":
            self.welcome["draining"] = True
            lost = self.endpoint.lost(True)
            if lost is not None:  # who ended the pod knows why, and the pod doesn't
                self._fail(exchange, lost)
                return
        error = meta.get("error") if frame.flags & wire.F_ERROR else None
        if error and error.get("container") is True and self.endpoint.explain is not None:
            exchange.add_work(self._portal.own(self._explain(exchange, frame, self.endpoint.explain)))
        elif frame.flags & wire.F_BULK:
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

    async def _explain(
        self, exchange: Exchange, frame: Frame, explain: Callable[[], Awaitable[Mapping[str, Any]]]
    ) -> None:
        """Say more of the end of the worker's container than the pod can."""
        more: Mapping[str, Any] = {}
        try:
            more = await explain()
        except (KubetorchError, OSError):
            log.debug("nobody says how the container has ended", exc_info=True)
        meta = {**frame.meta, "error": {**frame.meta["error"], **more}}
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
            self.acknowledge(exchange.channel, keep=exchange.keeps_log)
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

    def hold(self, held: bool) -> None:
        """Take nothing more from the connection for now, or go on."""
        self._link.hold(held)

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
        exchange.identify()
        self._notices.on_start(exchange)
        if self._link.ready:
            self._link.send(frame)
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
        self._link.send(wire.encode(FrameType.CANCEL, exchange.channel, {"reason": "abandoned"}))
        self.acknowledge(exchange.channel)
        exchange.end()
        exchange.on_error(error)

    def cancel(self, exchange: Exchange, reason: str) -> None:
        """Ask the pod to cancel; the exchange stays open until the pod has said how it ended."""
        if exchange.cancelled is None and exchange.channel in self._exchanges:
            exchange.cancelled = reason
            self._link.send(wire.encode(FrameType.CANCEL, exchange.channel, {"reason": reason}))

    def leave(self, exchange: Exchange) -> None:
        """Hear no more of it; what runs, runs on."""
        if self._exchanges.pop(exchange.channel, None) is not None:
            exchange.end()
            self.acknowledge(exchange.channel)

    def credit(self, exchange: Exchange, n: int) -> None:
        """Allow ``n`` more items."""
        if exchange.channel in self._exchanges:
            exchange.granted += n
            self._link.send(wire.encode(FrameType.CREDIT, exchange.channel, {"n": n}))

    def acknowledge(self, channel: int, *, keep: bool = False) -> None:
        """The record of that call may go; `keep`: not its log, which wasn't shown as a whole."""
        ack = wire.encode(FrameType.ACK, channel, {"keep": True} if keep else None)
        self._acks.append(ack)
        self._link.send_lazily(ack)

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
            As the front answers; `ConnectionFailedError` when the connection breaks and it can't be asked again.
        """
        if self._closed:
            raise self._again(0) if self._end is not None else ConnectionFailedError("the session is closed")
        self._request += 1
        number = self._request
        frame = wire.encode(FrameType.REQUEST, number, {"op": op, **fields})
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._requests[number] = _Request(frame, op, future, int(self._link.ready))
        self._link.send(frame)
        try:
            return await future
        finally:
            self._requests.pop(number, None)
