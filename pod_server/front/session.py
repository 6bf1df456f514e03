"""One client's WebSocket: reads its frames, and writes what it may have next.

The writer *pulls*: control frames first, then from each record that has something new, in turn, as fast as the
connection takes it. Nothing is queued for a slow client but a few small frames.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol

from ..wire import MAX_FRAME, PROTOCOL, Decoder, Frame, FrameType, WireError, encode, parse_call_id
from .calls import WINDOW, count_of
from .faults import Violation
from .records import Client, Subscription

if TYPE_CHECKING:
    from .pod import Pod
    from .worker import Worker

__all__ = ["Connection", "Session"]

_log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]

#: Bytes of frames that are joined into one WebSocket message.
_MESSAGE = 256 << 10
#: Bytes of answers that may wait for a client that doesn't read.
_CONTROL_LIMIT = 4 << 20
#: Bytes that may wait for a worker that doesn't read before its clients aren't read either.
_WORKER_LIMIT = 64 << 20
#: Seconds within which a client has to introduce itself.
_INTRODUCE = 10.0
#: Seconds of silence after which a client is asked whether it is there, and how often it is asked.
_SILENCE = 5.0
_ASKED = 3


class Connection(Protocol):
    """An accepted WebSocket, used directly (`server`)."""

    #: Called with each message; None for one of text.
    on_message: Callable[[bytes | None], None] | None
    #: Called when it takes more again.
    on_writable: Callable[[], None] | None

    @property
    def takes_more(self) -> bool:
        """Whether what is written now goes to the system, and doesn't have to wait in memory."""
        ...

    def write(self, data: bytes) -> None:
        """Send a message; nothing when the connection is on its way out."""
        ...

    def hold(self, held: bool) -> None:
        """Take nothing more from it for now, or go on."""
        ...

    def abort(self) -> None:
        """Close it without waiting for anything: a black hole never lets it close in order."""
        ...


class Session:
    """One connection.

    Parameters
    ----------
    pod
        What it is a session with.
    connection
        For the messages.
    receive, send
        As ASGI has them, the connection accepted: for its end, which either side may bring about.
    """

    def __init__(
        self,
        pod: Pod,
        connection: Connection,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        self._pod = pod
        self._connection = connection
        self._receive = receive
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        self.client = Client("")
        self._known = False
        self.subs: dict[int, Subscription] = {}
        #: Records that have something for us, each once.
        self._dirty: deque[Subscription] = deque()
        self._control: deque[bytes] = deque()
        self._control_bytes = 0
        #: `_write` is going to be called.
        self._due = False
        self._closing: int | None = None
        self._goodbye = b""
        #: Done when we want to close the connection, and when everything has been written that is to go out before.
        self._ending: asyncio.Future[None] = self._loop.create_future()
        self._written: asyncio.Future[None] = self._loop.create_future()
        #: Waits while the worker doesn't read.
        self._holding: asyncio.Task[None] | None = None
        #: Done when the connection has ended.
        self.over: asyncio.Future[None] = self._loop.create_future()
        self._heard = self._loop.time()
        self._asked = 0
        self._timer: asyncio.TimerHandle | None = None

    # -- writing -------------------------------------------------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        """Send a small frame before everything else."""
        if self._closing is not None:
            return
        self._control.append(frame)
        self._control_bytes += len(frame)
        if self._control_bytes > _CONTROL_LIMIT:
            _log.warning("client %s does not read its answers", self.client.id)
            self.drop()
            return
        self._wake()

    def readable(self, sub: Subscription) -> None:
        """A record has something new for one of our readers."""
        self._dirty.append(sub)
        self._wake()

    def subscribe(self, sub: Subscription) -> None:
        """Read a record on a channel."""
        self.subs[sub.channel] = sub
        sub.record.subs.append(sub)

    def unsubscribe(self, channel: int) -> Subscription | None:
        """Read it no more."""
        sub = self.subs.pop(channel, None)
        if sub is not None:
            sub.done = True
            sub.record.subs.remove(sub)
        return sub

    def close(self, reason: str, error: str | None = None, code: int = 1000) -> None:
        """Say GOODBYE and why, after what is to be written already, then close."""
        if self._closing is None:
            meta: dict[str, Any] = {"reason": reason[:1000]}
            if error is not None:
                meta["error"] = error
            if self._known:
                meta["high_water"] = self.client.high_water
            self._goodbye = encode(FrameType.GOODBYE, 0, meta)
            self._end(code)

    def _end(self, code: int) -> None:
        """Take nothing more, and close when everything has been written."""
        if self._closing is None:
            self._closing = code
            self._ending.set_result(None)
            self._wake()

    def drop(self) -> None:
        """Close at once: the other side is gone or must not be waited for."""
        self._closing = self._closing or 1011
        if not self.over.done():
            self.over.set_result(None)
        self._connection.abort()

    def _collect(self) -> bytes:
        """The next message: control frames, then some of each record in turn; empty when there is nothing."""
        out: list[bytes] = []
        size = 0
        control = self._control
        while control and size < _MESSAGE - MAX_FRAME:
            frame = control.popleft()
            out.append(frame)
            size += len(frame)
            self._control_bytes -= len(frame)
        dirty = self._dirty
        # A client that broke the rules gets the reason and nothing else.
        while dirty and size < _MESSAGE - 2 * MAX_FRAME and not control and self._closing != 1002:
            sub = dirty.popleft()
            sub.queued = False
            if sub.done:
                continue
            got = sub.pull(out)
            size += got
            if got and not sub.done:
                sub.queued = True
                dirty.append(sub)
        return out[0] if len(out) == 1 else b"".join(out)

    def _wake(self) -> None:
        """There is something to write: in the next turn of the loop, with all that comes in this one."""
        if not self._due:
            self._due = True
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        self._due = False
        connection = self._connection
        try:
            while connection.takes_more and not self._written.done():  # else `on_writable` goes on
                data = self._collect()
                if not data:
                    data, self._goodbye = self._goodbye, b""
                if data:
                    connection.write(data)
                elif self._closing is not None:
                    self._written.set_result(None)
                else:
                    break
        except Exception:
            _log.error("a session broke", exc_info=True)
            self.drop()

    # -- reading -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the connection until it ends."""
        self._timer = self._loop.call_later(_INTRODUCE, self._watch)
        self._pod.sessions.add(self)
        self._connection.on_writable = self._wake
        self._connection.on_message = self._message
        gone = self._loop.create_task(self._gone())
        try:
            await asyncio.wait({gone, self._ending, self.over}, return_when=asyncio.FIRST_COMPLETED)
            if self._ending.done():
                # We have said goodbye: let it go out, but don't wait for a client that doesn't take it.
                await asyncio.wait({gone, self._written, self.over}, timeout=2.0, return_when=asyncio.FIRST_COMPLETED)
            if self._written.done():
                await self._send({"type": "websocket.close", "code": self._closing})
        except Exception as e:
            if not _is_disconnect(e):
                _log.error("a session broke", exc_info=e)
        finally:
            for task in (gone, self._holding):
                if task is not None:
                    task.cancel()
                    await asyncio.wait({task})
            self._ended()

    async def _gone(self) -> None:
        """Wait until the client has gone."""
        while (message := await self._receive())["type"] != "websocket.disconnect":
            self._message(message.get("bytes"))  # it came before our answer to the handshake

    def _message(self, data: bytes | None) -> None:
        """Take a message; None is one of text."""
        if self._closing is not None or (self._known and self._pod.stopped.done()):
            return  # when the pod ends nothing is begun any more, and GOODBYE tells what was read before
        self._heard = self._loop.time()
        self._asked = 0
        try:
            if data is None:
                raise Violation("a session has binary messages only")
            for frame in self._decoder.feed(data):
                self._take(frame)
        except Violation as e:
            self.close(e.reason, e.error, 1002)
        except WireError as e:
            self.close(str(e), None, 1002)
        except Exception as e:
            # A bug of ours. It costs this connection, and whoever holds it hears why.
            _log.critical("a session's frame could not be handled", exc_info=True)
            self.close(f"the pod could not handle a frame: {type(e).__name__}: {e}", None, 1011)
        worker = self._pod.supervisor.current
        if worker is not None and worker.waiting > _WORKER_LIMIT and self._holding is None:
            self._connection.hold(True)
            self._holding = self._loop.create_task(self._go_on(worker))

    async def _go_on(self, worker: Worker) -> None:
        """Take messages again when the worker has read."""
        while worker.waiting > _WORKER_LIMIT and not worker.dead:
            await worker.taken()
        self._holding = None
        self._connection.hold(False)

    def _take(self, frame: Frame) -> None:
        kind = frame.type
        if not self._known:
            if kind is not FrameType.HELLO:
                raise Violation(f"the first frame of a session is {kind.name}, not HELLO")
            self._hello(frame.meta)
            return
        if kind in _ON_CHANNELS and frame.channel == 0:
            raise Violation(f"a {kind.name} frame has no channel")
        if frame.channel >= 1 << 40:
            raise Violation("a channel number is larger than a call's can be")
        pod = self._pod
        if kind is FrameType.CALL or kind is FrameType.LOAD:
            pod.calls.start(self, frame)
        elif kind is FrameType.ACK:
            pod.calls.acknowledge(self, frame.channel, frame.meta.get("keep") is True)
        elif kind is FrameType.PING:
            self.send(encode(FrameType.PONG, 0, frame.meta))
        elif kind is FrameType.PONG:
            pass
        elif kind is FrameType.CANCEL:
            sub = self.subs.get(frame.channel)
            record = sub.record if sub is not None else pod.store.by_key.get((self.client.id, frame.channel))
            if record is not None:
                reason = frame.meta.get("reason")
                pod.calls.cancel(record, reason if reason in ("user", "timeout", "abandoned") else "user")
        elif kind is FrameType.CREDIT:
            pod.calls.credit(self, frame.channel, count_of(frame.meta, "n", WINDOW))
        elif kind is FrameType.RESUME:
            pod.calls.resume(self, frame)
        elif kind is FrameType.REQUEST:
            pod.requests.handle(self, frame.channel, frame.meta)
        elif kind is FrameType.GOODBYE:
            self._end(1000)
        else:
            raise Violation(f"a client may not send {kind.name}")

    def _hello(self, meta: dict[str, Any]) -> None:
        if meta.get("protocol") != PROTOCOL:
            raise Violation(
                f"the client speaks version {meta.get('protocol')!r} of the protocol, the pod version {PROTOCOL}",
                "VersionMismatchError",
            )
        id = meta.get("client")
        try:
            _, known, seq = parse_call_id(f"x/{id}")
        except ValueError:
            raise Violation("the client's id is not a ULID") from None
        if seq or known == "0" * 26:
            raise Violation("the client's id is not a client's")
        if self._pod.stopped.done():
            self.close("the pod is ending")
            return
        self._known = True
        client = self.client = self._pod.calls.client(known)
        old, client.session = client.session, self
        client.gone_since = None
        client.info = {key: meta.get(key) for key in ("user", "host", "pid", "notebook") if _short(meta.get(key))}
        if old is not None:
            # Its connection may be a black hole, so there is nothing to be said to it.
            old.drop()
        self.send(self._pod.welcome(client))
        self._watch()

    # -- life ----------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Ask a silent client whether it is there; give up one that doesn't answer."""
        if self._timer is not None:
            self._timer.cancel()
        if self.over.done():
            return
        if not self._known:
            self.close("the client did not introduce itself", None, 1002)
            return
        silent = self._loop.time() - self._heard
        if silent >= _SILENCE:
            if self._asked >= _ASKED:
                _log.info("client %s does not answer", self.client.id)
                self.drop()
                return
            self._asked += 1
            self.send(encode(FrameType.PING, 0, {"t": time.time()}))
            silent = 0.0
        self._timer = self._loop.call_later(_SILENCE - silent, self._watch)

    def _ended(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.over.done():
            self.over.set_result(None)
        self._closing = self._closing or 1000
        self._pod.sessions.discard(self)
        client = self.client
        if client.session is self:
            client.session = None
            client.gone_since = time.time()
        for channel in list(self.subs):
            sub = self.unsubscribe(channel)
            if sub is not None:
                self._pod.calls.left(sub.record)
        self._dirty.clear()
        self._pod.bulk.handover.expire()


_ON_CHANNELS = frozenset(
    (FrameType.CALL, FrameType.LOAD, FrameType.RESUME, FrameType.CANCEL, FrameType.CREDIT, FrameType.ACK)
)


def _short(value: object) -> bool:
    return value is None or isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= 500)


def _is_disconnect(error: BaseException) -> bool:
    """Whether that is the server's way to say that the client has gone (an OSError by the ASGI specification)."""
    return isinstance(error, OSError) or type(error).__name__ == "ClientDisconnected"
