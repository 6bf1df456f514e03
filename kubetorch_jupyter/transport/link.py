"""The connection of a session, kept alive: made, watched, and made anew when it breaks.

It knows how to reach the pod and how to be welcomed, and that what is sent in one turn of the loop leaves in one
message; what the frames mean is the session's matter. All of it runs on the portal.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from collections.abc import Mapping
from typing import Any, Protocol

from pod_server import wire
from pod_server.wire import Frame, FrameType

from ..config import config
from ..errors import (
    AuthenticationError,
    ConnectionFailedError,
    KubetorchError,
    PodLostError,
    VersionMismatchError,
    from_wire,
)
from ..identity import describe_client
from .endpoint import Endpoint
from .portal import Portal
from .websocket import WebSocket

__all__ = ["Link", "LinkOwner"]

log = logging.getLogger(__name__)

#: The longest message, in bytes: several frames in one.
_MESSAGE = 256 * 1024
#: How long a try to connect may take, in seconds: the first, and each later one twice as long up to the last. What
#: isn't answered at all is mostly a connection that got lost on its way, and another one is answered at once.
_FIRST_TRY, _CONNECT_TIMEOUT = 1.25, 5.0
#: How long a first connection is tried for, in seconds: the backend has said that the pod accepts sessions.
_OPEN_TIMEOUT = 10.0
#: The pause before a second try, and the longest, in seconds.
_BACKOFF = 0.05, 2.0
#: How long a frame that nobody waits for may be kept to travel with others, in seconds.
_LAZY = 0.02
#: A connection that has lasted this long, in seconds, is no part of the trouble before it.
_HEALTHY = 0.25
#: A proxy before the pod that was away until so many seconds ago may refuse everybody: an API server that has just
#: started doesn't know its accounts and roles yet.
_WAKING = 10.0
#: Silence after which we ask whether the pod is there, with calls open and without, in seconds.
_SILENCE_BUSY = 2.0
_SILENCE_IDLE = 5.0
#: So many unanswered PINGs, and the connection counts as dead.
_PINGS = 3


class LinkOwner(Protocol):
    """Who uses a link: `transport.session.Session`."""

    @property
    def busy(self) -> bool:
        """Whether an answer of the pod is awaited."""
        ...

    def on_welcome(self, meta: dict[str, Any]) -> None:
        """The pod has welcomed us, for the first time or again; what is raised ends the link."""
        ...

    def on_frame(self, frame: Frame) -> None:
        """A frame has come that isn't the link's own business."""
        ...

    def on_broken(self, reason: str) -> None:
        """The connection has broken; another is being made."""
        ...

    def on_goodbye(self, meta: dict[str, Any]) -> None:
        """The pod ends the session, and says what it has seen of it; `on_lost` follows."""
        ...

    def on_lost(self, error: KubetorchError) -> None:
        """There will be no other connection."""
        ...


class Link:
    """A connection to a pod that outlives its sockets.

    Parameters
    ----------
    endpoint
        The pod.
    client
        Our id, of HELLO.
    owner
        Who is told.
    portal
        Where it all runs.
    """

    def __init__(self, endpoint: Endpoint, client: str, owner: LinkOwner, portal: Portal) -> None:
        self._endpoint = endpoint
        self._client = client
        self._owner = owner
        self._portal = portal
        self._loop = portal.loop
        #: Whether the pod has welcomed us on this connection: nothing but HELLO is sent before.
        self.ready = False
        self._ws: WebSocket | None = None
        self._decoder = wire.Decoder()
        self._out: list[bytes] = []
        self._lazy: list[bytes] = []
        self._lazy_timer: asyncio.TimerHandle | None = None
        self._flushing = False
        self._welcomed: asyncio.Future[None] | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        #: When we were welcomed; since when, and how often, connections have broken as soon as they were made.
        self._since = 0.0
        self._trouble: float | None = None
        self._brief = 0
        self._heard = 0.0
        self._pings = 0
        self._timer: asyncio.TimerHandle | None = None
        self._held = False
        self._closed = False

    # -- connecting --------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect for the first time.

        Raises
        ------
        ConnectionFailedError, AuthenticationError, VersionMismatchError, PodLostError
            When it can't be done.
        """
        await self._establish(_OPEN_TIMEOUT)

    async def _establish(self, limit: float, tries: int = 0, away: float = float("-inf")) -> None:
        """Try until it works, the pod is known to be gone, or ``limit`` seconds have passed.

        ``tries`` is how many connections have broken as soon as they were made: the pause goes on growing then.
        ``away`` is when a connection has broken, or could not be made, for the last time.
        """
        deadline = self._loop.time() + limit
        first, longest = _BACKOFF
        pause = min(first * 2.0**tries, longest)
        patience = _FIRST_TRY
        if tries:
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        while True:
            try:
                # It isn't the pod's fault if that takes long: it may be a program that asks a person.
                begin = self._loop.time()
                headers = await self._endpoint.all_headers()
                deadline += self._loop.time() - begin
                left = max(deadline - self._loop.time(), _FIRST_TRY)
                await self._connect(headers, min(patience, _CONNECT_TIMEOUT, left))
                return
            except (VersionMismatchError, PodLostError):
                raise
            except AuthenticationError:
                if self._endpoint.credentials is None or self._loop.time() - away > _WAKING:
                    raise
            except (OSError, KubetorchError) as e:
                away = self._loop.time()
                lost = self._endpoint.lost(False)
                if lost is not None:
                    raise lost from e
                if self._loop.time() + pause > deadline:
                    why = str(e) or type(e).__name__
                    raise self._unreachable(
                        f"could not be reached for {limit:g} s ({why}); {self._endpoint.hint}"
                    ) from e
                log.info('service "%s" can\'t be reached at the moment: %s', self._endpoint.service, e)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, longest)
            patience *= 2

    def _unreachable(self, what: str) -> ConnectionFailedError:
        endpoint = self._endpoint
        return ConnectionFailedError(
            f'service "{endpoint.service}" at {endpoint.url} {what}', service=endpoint.service, url=endpoint.url
        )

    async def _connect(self, headers: Mapping[str, str], timeout: float) -> None:
        decoder = self._decoder = wire.Decoder()
        ws: WebSocket | None = None

        # Both are bound to this connection: one that was given up may still deliver something.
        def on_data(data: bytes) -> None:
            if self._decoder is decoder and not self._closed:
                self._receive(data)

        def on_lost(reason: str) -> None:
            if self._decoder is decoder:
                self._broken(reason)

        welcomed = self._welcomed = self._loop.create_future()
        try:
            ws = await WebSocket.open(self._endpoint, headers, on_data, on_lost, timeout)
            self._ws = ws
            ws.on_writable = self.flush
            ws.send(wire.encode(FrameType.HELLO, 0, _hello(self._client)))
            async with asyncio.timeout(timeout):
                await welcomed
            if not self.ready:  # it broke in the same moment
                raise self._unreachable("closed the connection")
        except BaseException as e:
            self._drop()
            if ws is not None:
                ws.abort()
            if isinstance(e, TimeoutError) and not isinstance(e, KubetorchError):
                raise self._unreachable(f"did not answer within {timeout:g} s") from None
            raise
        finally:
            self._welcomed = None
            if welcomed.done() and not welcomed.cancelled():
                welcomed.exception()  # when we were cancelled in the same moment, nobody else looks

    def _on_welcome(self, meta: dict[str, Any]) -> None:
        waiting = self._welcomed
        if waiting is None or waiting.done():
            return
        if meta.get("protocol") != wire.PROTOCOL:
            waiting.set_exception(self._mismatch(meta.get("protocol")))
            return
        self.ready = True
        self._since = self._loop.time()
        self._lazy.clear()
        self._out.clear()  # said to a connection that broke; what matters of it is said again
        try:
            self._owner.on_welcome(meta)
        except KubetorchError as e:
            self.ready = False
            waiting.set_exception(e)
            return
        if self._timer is None:
            self._timer = self._loop.call_later(_SILENCE_BUSY, self._watch)
        if self._held and self._ws is not None:
            self._ws.pause_reading()
        waiting.set_result(None)

    def _mismatch(self, theirs: Any) -> VersionMismatchError:
        return VersionMismatchError(
            f'service "{self._endpoint.service}" speaks version {theirs} of our protocol and this client version '
            f"{wire.PROTOCOL}: deploy it again with this version of kubetorch_jupyter, or use the one that deployed it",
            service=self._endpoint.service,
            what="protocol",
            client=str(wire.PROTOCOL),
            pod=str(theirs),
        )

    # -- breaking ----------------------------------------------------------------------------------------------------

    def _drop(self) -> None:
        """Forget the connection: nothing that it still says counts."""
        self._ws = None
        self.ready = False
        self._decoder = wire.Decoder()

    def _broken(self, reason: str) -> None:
        self._drop()
        if self._closed:
            return
        if self._welcomed is not None:
            if not self._welcomed.done():
                self._welcomed.set_exception(self._unreachable(f"closed the connection ({reason})"))
            return
        log.info('the connection to service "%s" has ended: %s', self._endpoint.service, reason)
        self._owner.on_broken(reason)
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
            now = self._loop.time()
            await self._establish(max(limit - (now - since), 0), self._brief, now)
        except ConnectionFailedError:
            why = f"no connection for {limit:g} s; the last one ended with: {reason}"
            self._owner.on_lost(PodLostError(service=self._endpoint.service, reason=why))
        except KubetorchError as e:
            self._owner.on_lost(e)
        finally:
            self._reconnecting = None

    def shut(self) -> None:
        """No more of it, at once."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lazy_timer is not None:
            self._lazy_timer.cancel()
            self._lazy_timer = None
        if self._reconnecting is not None and self._reconnecting is not asyncio.current_task(self._loop):
            self._reconnecting.cancel()
        ws = self._ws
        self._drop()
        if ws is not None:
            ws.abort()

    async def close(self, farewell: bytes) -> None:
        """Say a last frame and close, within a moment."""
        ws = self._ws
        if ws is None:
            self.shut()
            return
        self.send(farewell)
        self.flush()
        self._ws = None  # or `shut` would abort it
        self.shut()
        await ws.close(0.3)

    # -- sending -----------------------------------------------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        """Send a frame with the others of this turn; dropped without a connection, since it will be said again then."""
        if not self.ready:
            return
        self._out.append(frame)
        if not self._flushing:
            self._flushing = True
            self._portal.at_end_of_turn(self.flush)

    def send_lazily(self, frame: bytes) -> None:
        """Send a frame that nobody waits for with the next ones, or by itself a little later."""
        if not self.ready:
            return
        self._lazy.append(frame)
        if self._lazy_timer is None:
            self._lazy_timer = self._loop.call_later(_LAZY, self._send_lazy)

    def _send_lazy(self) -> None:
        self._lazy_timer = None
        self.flush()

    def flush(self) -> None:
        """Send what has been gathered, as far as the socket takes it."""
        self._flushing = False
        out, ws = self._out, self._ws
        if self._lazy:
            out[:0] = self._lazy
            self._lazy.clear()
        if not out or ws is None or not self.ready:
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
                kind = frame.type
                if kind is FrameType.WELCOME:
                    self._on_welcome(frame.meta)
                elif kind is FrameType.PING:
                    self.send(wire.encode(FrameType.PONG, 0, frame.meta))
                elif kind is FrameType.GOODBYE:
                    self._on_goodbye(frame.meta)
                elif kind is not FrameType.PONG:
                    self._owner.on_frame(frame)
        except Exception as e:
            # Bytes that are no frames, or frames that say nothing sensible; asking again would bring the same.
            if not isinstance(e, wire.WireError):
                log.exception("a frame of service %s could not be dealt with", self._endpoint.service)
            self._end(self._unreachable(f"sent what makes no sense: {type(e).__name__}: {e}"))

    def _on_goodbye(self, meta: dict[str, Any]) -> None:
        reason = str(meta.get("reason") or "the pod closed the session")
        service, error = self._endpoint.service, meta.get("error")
        if self._welcomed is None:
            self._owner.on_goodbye(meta)
        told: KubetorchError
        if error:
            told = from_wire({"type": error, "message": reason}, service=service)
        elif self._welcomed is not None:
            told = self._unreachable(f"refused the session: {reason}")
        else:
            told = PodLostError(service=service, reason=reason)
        # Who ended the pod knows why, and the pod doesn't.
        known = self._endpoint.lost(True) if isinstance(told, PodLostError) else None
        self._end(known or told)

    def _end(self, error: KubetorchError) -> None:
        """The pod, or what we have heard of it, leaves no hope."""
        if self._welcomed is None:
            self._owner.on_lost(error)
        elif not self._welcomed.done():
            self._welcomed.set_exception(error)

    # -- liveness ----------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Ask whether the pod is there when it has been silent; give the connection up when it doesn't answer."""
        self._timer = self._loop.call_later(_SILENCE_BUSY, self._watch)
        if not self.ready or self._held:
            return
        limit = _SILENCE_BUSY if self._owner.busy else _SILENCE_IDLE
        if self._loop.time() - self._heard < limit * 0.99:
            return
        if self._pings >= _PINGS:
            ws = self._ws
            self._broken(f"no answer to {_PINGS} pings")
            if ws is not None:
                ws.abort()
            return
        self._pings += 1
        self.send(wire.encode(FrameType.PING, 0, {"n": self._pings}))

    def hold(self, held: bool) -> None:
        """Take nothing more from the connection for now, or go on."""
        self._held = held
        self._heard = self._loop.time()
        if self._ws is not None and self.ready:  # a new connection is held when it has been welcomed, not before
            if held:
                self._ws.pause_reading()
            else:
                self._ws.resume_reading()


def _hello(client: str) -> dict[str, Any]:
    import cloudpickle

    return {
        "protocol": wire.PROTOCOL,
        "client": client,
        **describe_client(),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "cloudpickle": cloudpickle.__version__,
    }
