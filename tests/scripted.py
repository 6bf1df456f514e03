"""A pod whose every answer a test decides: it speaks the protocol of docs/protocol.md and runs no code.

What it does with a call is a coroutine of the test; records, resuming and acknowledgements work as in the real front,
so that a session can be cut wherever a test likes. The tests of the real front and of both together are others.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from kubetorch_jupyter.calls import CallOptions
from kubetorch_jupyter.transport.endpoint import Endpoint
from kubetorch_jupyter.transport.portal import get_portal
from kubetorch_jupyter.transport.session import Session
from kubetorch_jupyter.transport.sharing import get_session
from pod_server import exceptions, serialization, wire
from pod_server.wire import FrameType, LogKind

Handler = Callable[["ScriptedCall"], Awaitable[None]]


class ScriptedCall:
    """One CALL or LOAD, as the pod keeps it."""

    def __init__(self, pod: ScriptedPod, client: str, channel: int, meta: dict[str, Any]) -> None:
        self.pod = pod
        self.client = client
        self.channel = channel
        self.meta = meta
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.buffers: list[Any] = []
        self.payload = asyncio.Event()
        self.log_bytes = b""
        self.items: list[bytes] = []
        self.credit = meta.get("gen", 0)
        self.credited = asyncio.Event()
        self.final: bytes | None = None
        self.cancelled: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.acked = False
        self.sent_items = 0

    def decode(self) -> None:
        if self.meta.get("kind") is None:
            value = serialization.loads(self.buffers, self.meta.get("ser", "pickle"))
            self.args, self.kwargs = ((value,), {}) if self.meta.get("ser") == "none" else value
        self.payload.set()

    def send(self, frame: bytes) -> None:
        if (self.client, self.channel) in self.pod.heard:  # after a break, not before it was resumed
            self.pod.send(self.client, frame)

    def log(self, data: bytes, kind: LogKind = LogKind.STDOUT) -> None:
        entry = wire.encode_log(kind, data)
        for at in range(0, len(entry), 50_000):
            part = entry[at : at + 50_000]
            meta = {"o": len(self.log_bytes)}
            self.log_bytes += part
            self.send(wire.encode(FrameType.LOG, self.channel, meta, [part], 0 if at else wire.F_ENTRY))

    async def item(self, value: Any) -> None:
        while len(self.items) >= self.credit:
            self.credited.clear()
            await self.credited.wait()
        meta: dict[str, Any] = {"i": len(self.items)}
        frame = self.pod.payload_frame(FrameType.ITEM, self.channel, meta, serialization.dumps(value))
        self.items.append(frame)
        self.send(frame)

    def end(self, frame: bytes) -> None:
        if self.final is None:
            self.final = frame
            self.pod.ended += 1
            self.send(frame)

    def result(self, value: Any = None, **meta: Any) -> None:
        buffers = serialization.dumps(value)
        self.end(self.pod.payload_frame(FrameType.RESULT, self.channel, meta, buffers))

    def finish(self) -> None:
        self.end(wire.encode(FrameType.RESULT, self.channel, {"n": len(self.items)}))

    def error(self, **error: Any) -> None:
        self.end(wire.encode(FrameType.RESULT, self.channel, {"error": error}, (), wire.F_ERROR))

    def fail(self, exc: BaseException) -> None:
        buffers = exceptions.encode(exc)
        meta = {"error": {"type": "user", "message": str(exc)}}
        self.end(wire.encode(FrameType.RESULT, self.channel, meta, buffers, wire.F_ERROR))

    def resume(self, log: int, item: int, credit: int, channel: int, log_only: bool, client: str) -> None:
        to = channel

        def on(frame: bytes) -> bytes:
            [decoded] = wire.Decoder().feed(frame)
            return decoded.on_channel(to)

        def send(frame: bytes) -> None:
            self.pod.send(client, frame)

        self.pod.heard.add((self.client, self.channel))
        for at in range(log, len(self.log_bytes), 50_000):
            part = self.log_bytes[at : at + 50_000]
            send(wire.encode(FrameType.LOG, to, {"o": at}, [part]))
        if log_only:
            if self.final is not None:
                send(wire.encode(FrameType.RESULT, to, {"log_only": True}))
            return
        for frame in self.items[item:]:
            send(on(frame))
        if self.meta.get("gen"):
            self.credit = max(self.credit, item + credit)
            self.credited.set()
        if self.final is not None:
            send(on(self.final))


class ScriptedPod:
    """The pod; everything of it runs on the loop of its own thread."""

    def __init__(self) -> None:
        self.token = "secret"
        self.incarnation = "one"
        self.protocol = wire.PROTOCOL
        self.handlers: dict[str, Handler] = {}
        self.calls: dict[tuple[str, int], ScriptedCall] = {}
        self.high_water: dict[str, int] = {}
        self.connections: dict[str, Any] = {}
        self.seen: list[tuple[FrameType, int, dict[str, Any]]] = []
        self.hellos: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.ended = 0
        self.refuse = False
        self.deaf = False
        self.unheard = 0
        self.cut_download_at: int | None = None
        self.requests: list[bytes] = []
        self.heard: set[tuple[str, int]] = set()
        self.port = 0
        self._files = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._main, daemon=True)

    # -- life --------------------------------------------------------------------------------------------------------

    def __enter__(self) -> ScriptedPod:
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        async def close() -> None:
            for session in await self._sessions():
                await session.close()

        get_portal().run(close(), 5)
        self.server.should_exit = True
        self.server.force_exit = True
        self._thread.join(10)

    async def _sessions(self) -> list[Session]:
        session = await get_session(self.endpoint, connect=False)
        return [session] if session is not None else []

    def _main(self) -> None:
        config = uvicorn.Config(
            self.app,
            host="127.0.0.1",
            port=0,
            ws="websockets-sansio",
            log_level="warning",
            lifespan="off",
            interface="asgi3",
            ws_per_message_deflate=False,
            ws_ping_interval=None,
        )
        self.server = uvicorn.Server(config)

        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            serving = asyncio.ensure_future(self.server.serve())
            while not self.server.started:
                await asyncio.sleep(0.005)
            self.port = self.server.servers[0].sockets[0].getsockname()[1]
            self._up.set()
            await serving
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        asyncio.run(serve())

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("echo", f"http://127.0.0.1:{self.port}", self.token)

    def do(self, function: Callable[[], Any]) -> Any:
        """Run something on the pod's loop and wait for it."""

        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def cut(self) -> None:
        """Break every connection; a deaf pod hears what comes on the next ones."""

        def cut() -> None:
            self.deaf = False  # here, or a client might be back before
            for queue in self.connections.values():
                queue.put_nowait(None)

        self.do(cut)

    def goodbye(self, client: str) -> None:
        """End, as a pod does that is deleted."""
        meta = {"reason": "it ends", "error": "PodTerminatedError", "high_water": self.high_water.get(client, 0)}
        self.do(lambda: self.send(client, wire.encode(FrameType.GOODBYE, 0, meta)))

    # -- protocol ----------------------------------------------------------------------------------------------------

    def send(self, client: str, frame: bytes) -> None:
        queue = self.connections.get(client)
        if queue is not None and not self.deaf:
            queue.put_nowait(frame)

    def payload_frame(self, type: FrameType, channel: int, meta: dict[str, Any], buffers: list[Any]) -> bytes:
        if serialization.nbytes(buffers) <= wire.INLINE_LIMIT:
            return wire.encode(type, channel, meta, buffers)
        self._files += 1
        name = f"f{self._files}"
        self.files[name] = b"".join(bytes(b) for b in buffers)
        meta = {**meta, "file": name, "lens": [len(memoryview(b)) for b in buffers]}
        return wire.encode(type, channel, meta, (), wire.F_BULK)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await self._session(scope, receive, send)
        elif scope["method"] == "PUT":
            await self._put(scope, receive, send)
        else:
            await self._get(scope, receive, send)

    def _allowed(self, scope: Any) -> bool:
        return dict(scope["headers"]).get(b"x-kubetorch-token") == self.token.encode()

    async def _answer(self, send: Any, status: int, body: bytes = b"") -> None:
        headers = [(b"content-length", str(len(body)).encode()), (b"x-kubetorch-pod", self.incarnation.encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _session(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if self.refuse:
            raise ConnectionResetError
        if not self._allowed(scope):
            await send(
                {"type": "websocket.http.response.start", "status": 403, "headers": [(b"x-kubetorch-pod", b"x")]}
            )
            await send({"type": "websocket.http.response.body", "body": b""})
            return
        await send({"type": "websocket.accept"})
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()

        async def write() -> None:
            while (frame := await queue.get()) is not None:
                await send({"type": "websocket.send", "bytes": frame})
            await send({"type": "websocket.close", "code": 1011})

        writer = asyncio.ensure_future(write())
        decoder = wire.Decoder()
        client = ""
        try:
            while (message := await receive())["type"] == "websocket.receive":
                if self.deaf:
                    self.unheard += 1
                    continue
                for frame in decoder.feed(message["bytes"]):
                    if frame.type is FrameType.HELLO:
                        client = frame.meta["client"]
                        self.connections[client] = queue
                        self.heard = {key for key in self.heard if key[0] != client}
                        self.hellos.append(frame.meta)
                        welcome = {
                            "protocol": self.protocol,
                            "incarnation": self.incarnation,
                            "service": "echo",
                            "high_water": self.high_water.get(client, 0),
                            "state": "ready",
                        }
                        queue.put_nowait(wire.encode(FrameType.WELCOME, 0, welcome))
                    else:
                        self._on_frame(client, frame)
        finally:
            if self.connections.get(client) is queue:
                del self.connections[client]
            queue.put_nowait(None)
            with contextlib.suppress(Exception):
                await writer

    def _on_frame(self, client: str, frame: wire.Frame) -> None:
        meta, channel = frame.meta, frame.channel
        self.seen.append((frame.type, channel, meta))
        call = self.calls.get((client, channel))
        if frame.type in (FrameType.CALL, FrameType.LOAD):
            if channel <= self.high_water.get(client, 0):
                return
            self.high_water[client] = channel
            self.heard.add((client, channel))
            call = self.calls[client, channel] = ScriptedCall(self, client, channel, meta)
            if not frame.flags & wire.F_BULK:
                call.buffers = [bytes(b) for b in frame.buffers]
                call.decode()
            name = meta.get("f") or ("load" if frame.type is FrameType.LOAD else "")
            task = asyncio.ensure_future(self._handle(self.handlers[name], call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif frame.type is FrameType.RESUME:
            if meta.get("id"):
                self.high_water[client] = max(channel, self.high_water.get(client, 0))
                _, other, seq = wire.parse_call_id(meta["id"])
                call = self.calls.get((other, seq))
            if call is None:
                error = {"error": {"type": "UnknownCallError"}}
                self.send(client, wire.encode(FrameType.RESULT, channel, error, (), wire.F_ERROR))
            else:
                call.resume(
                    meta["log"],
                    meta.get("item", 0),
                    meta.get("credit", 0),
                    channel,
                    meta.get("log_only", False),
                    client,
                )
        elif frame.type is FrameType.CANCEL:
            if call is not None and not call.cancelled.done():
                call.cancelled.set_result(meta["reason"])
        elif frame.type is FrameType.CREDIT:
            if call is not None:
                call.credit += meta["n"]
                call.credited.set()
        elif frame.type is FrameType.ACK:
            if call is not None:
                call.acked = True
        elif frame.type is FrameType.PING:
            self.send(client, wire.encode(FrameType.PONG, 0, meta))
        elif frame.type is FrameType.REQUEST:
            rows = [
                {
                    "id": wire.call_id("echo", c, n),
                    "f": k.meta.get("f", ""),
                    "log": len(k.log_bytes),
                    "ended": k.final and 1,
                }
                for (c, n), k in list(self.calls.items())[-100:]
            ]
            answer = {"calls": rows} if meta["op"] == "calls" else {"op": meta["op"]}
            self.send(client, wire.encode(FrameType.RESPONSE, channel, answer))

    async def _handle(self, handler: Handler, call: ScriptedCall) -> None:
        await call.payload.wait()
        await handler(call)

    # -- bulk --------------------------------------------------------------------------------------------------------

    async def _put(self, scope: Any, receive: Any, send: Any) -> None:
        _, _, _, client, channel = scope["path"].split("/")
        call = self.calls.get((client, int(channel)))
        if call is None or call.payload.is_set():
            await self._answer(send, 409)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        at = 0
        for n in call.meta["lens"]:
            call.buffers.append(bytes(body[at : at + n]))
            at += n
        call.decode()
        await self._answer(send, 204)

    async def _get(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        self.requests.append(headers.get(b"range", b""))
        data = self.files.get(scope["path"].rsplit("/", 1)[1])
        if data is None or not self._allowed(scope):
            await self._answer(send, 404)
            return
        start = int(headers[b"range"].split(b"=")[1].rstrip(b"-")) if b"range" in headers else 0
        answer = [(b"content-length", str(len(data) - start).encode()), (b"x-kubetorch-pod", b"x")]
        await send({"type": "http.response.start", "status": 206 if start else 200, "headers": answer})
        stop, self.cut_download_at = self.cut_download_at or len(data), None
        for at in range(start, stop, 1 << 20):
            await send({"type": "http.response.body", "body": data[at : min(at + (1 << 20), stop)], "more_body": True})
        if stop < len(data):
            raise ConnectionResetError  # in the middle of the body
        await send({"type": "http.response.body", "body": b""})


class ScriptedTarget:
    """A `Target` on a scripted pod."""

    def __init__(self, pod: ScriptedPod, label: str = "train") -> None:
        self.pod = pod
        self.name = "echo"
        self.label = label
        self.foreign = False
        self._session: Session | None = None

    @property
    def live(self) -> Session | None:
        session = self._session
        return session if session is not None and session.usable else None

    async def session(self) -> Session:
        self._session = await get_session(self.pod.endpoint)
        return self._session

    async def session_of(self, id: str) -> Session:
        return await self.session()


PLAIN = CallOptions(stream_logs=False)
SHOWN = CallOptions()
