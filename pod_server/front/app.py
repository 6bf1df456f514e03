"""The routes of a pod: authentication first, then the session, bulk transfers, and calls for ``curl``."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from ..wire import F_BULK, F_ERROR, INLINE_LIMIT, Decoder, FrameType, encode, new_client_id
from .faults import Violation
from .handover import FILE_HEADER
from .records import Client, Record
from .session import Session

if TYPE_CHECKING:
    from .pod import Pod

__all__ = ["App"]

_log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_TOKEN = b"x-kubetorch-token"
#: Bytes of the body of ``POST /call``; larger ones belong on a session.
_BODY = 64 << 20
#: A longer body is not parsed by the front, which would do nothing else meanwhile: the worker finds what is wrong.
_PARSED = 1 << 20
#: How much of an upload that is refused is still taken, in bytes and seconds.
_DISCARD_BYTES = 16 << 20
_DISCARD_SECONDS = 2.0
#: Characters of the name of what is to be called.
_NAME = 1000
#: The status of ``POST /call`` for our own errors; the user's are 500.
_STATUS = {
    "CallTimeoutError": 504,
    "CallCancelledError": 499,
    "StartupError": 503,
    "NotDeployedError": 503,
    "ServiceHealthError": 503,
    "PodTerminatedError": 503,
    "PayloadTooLargeError": 413,
    "WorkerDiedError": 502,
}


class App:
    """The ASGI application.

    Parameters
    ----------
    pod
        What it serves.
    """

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        #: Calls by HTTP belong to one client that is nobody.
        self._client = Client(new_client_id())
        self._client.info = {"user": None, "notebook": "POST /call"}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    def _refuse(self, scope: MutableMapping[str, Any]) -> int | None:
        """The status for a request without the right token; None for one that has it."""
        tokens = [value for name, value in scope["headers"] if name == _TOKEN]
        if not tokens or tokens == [b""]:
            return 401
        # All of them, so that the time doesn't depend on which is the right one.
        right = [hmac.compare_digest(token, self._pod.token) for token in tokens]
        return None if len(right) == 1 and right[0] else 403

    # -- the session ---------------------------------------------------------------------------------------------------

    async def _websocket(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        status = self._refuse(scope)
        if status is None and scope["path"] != "/session":
            status = 404
        if status is not None:
            if "websocket.http.response" in scope.get("extensions", {}):
                await send({"type": "websocket.http.response.start", "status": status, "headers": self._headers()})
                await send({"type": "websocket.http.response.body", "body": b""})
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        await send({"type": "websocket.accept"})
        await Session(self._pod, scope["kt.connection"], receive, send).run()

    def _headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"x-kubetorch-pod", self._pod.params.incarnation.encode())]

    # -- requests ------------------------------------------------------------------------------------------------------

    async def _http(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path == "/health" or path == "/ready":
            await _answer(send, 200 if path == "/health" or self._pod.supervisor.ready else 503)
            return
        status = self._refuse(scope)
        if status is not None:
            await _answer(send, status, close=True)
            return
        parts = path.split("/")
        if path.startswith("/bulk/up/") and len(parts) == 5:
            await self._put(method, parts[3], parts[4], _header(scope, FILE_HEADER), receive, send)
        elif path.startswith("/bulk/down/") and len(parts) == 4:
            if method != "GET":
                await _answer(send, 405, close=True)
            else:
                part, wanted = _header(scope, b"range") or b"", _header(scope, FILE_HEADER)
                if not await self._pod.bulk.get(parts[3], part, send, wanted):
                    await _answer(send, 404)
        elif path.startswith("/call/") and len(parts) == 3:
            await self._call(method, parts[2], receive, send)
        elif path == "/idle" and method == "GET":
            await _answer(send, 200, json.dumps(self._pod.peers.said()).encode(), b"application/json")
        elif path == "/end" and method == "POST":
            await _answer(send, 202 if self._pod.peers.told_to_end() else 409, close=True)
        else:
            await _answer(send, 404, close=True)

    async def _put(
        self, method: str, client: str, channel: str, given: bytes | None, receive: Receive, send: Send
    ) -> None:
        if method != "PUT" or not channel.isascii() or not channel.isdigit() or len(channel) > 15:
            await _answer(send, 405 if method != "PUT" else 404, close=True)
            return
        # A session comes before its uploads, but a CALL and its upload may overtake each other.
        known = self._pod.calls.clients.get(client)
        early = known is not None and int(channel) > known.high_water
        body = _Body(receive)
        status, text = await self._pod.bulk.put(client, int(channel), body, early=early, given=given)
        if status >= 400 or given is not None:
            await body.discard()
        await _answer(send, status, text.encode(), close=status >= 400 or not body.ended)

    # -- POST /call ----------------------------------------------------------------------------------------------------

    async def _call(self, method: str, name: str, receive: Receive, send: Send) -> None:
        if method != "POST":
            await _answer(send, 405, close=True)
            return
        try:
            body = await _body(receive, _BODY)
        except Violation as e:
            _log.info("POST /call: %s", e)
            return
        if body is None:
            text = f"the arguments have more than {_BODY >> 20} MiB; send them by a session (a handle in Python)"
            await _error(send, 413, "PayloadTooLargeError", text)
            return
        try:
            payload = _arguments(body) if len(body) <= _PARSED else body
        except ValueError as e:
            await _error(send, 400, "ValueError", str(e))
            return
        problem = self._pod.supervisor.refusal() if self._pod.supervisor.current is None else None
        if problem is not None:
            await _error(send, 503, problem["type"], problem["message"])
            return
        known = self._names()
        if len(name) > _NAME or (known is not None and name not in known):
            name, known = name[:_NAME], known or {}
            text = f'service "{self._pod.params.name}" has no {name!r} to call; it has {", ".join(sorted(known))}'
            await _error(send, 404, "AttributeError", text)
            return
        try:
            record = self._start(name if known is None or known[name] else "", payload)
        except OSError as e:
            await _error(send, 507, "PayloadTooLargeError", f"no room for the arguments in the pod: {e.strerror}")
            return
        try:
            if await self._ended(record, receive):
                await self._reply(record, send)
        finally:
            record.acked = True
            self._pod.calls.left(record)

    def _names(self) -> dict[str, bool] | None:
        """What can be called, and whether it is a method; None when the code didn't say."""
        code = self._pod.supervisor.code
        if code is None:
            return None
        interface = code.meta.get("interface")
        names = {name: True for name in interface if name} if isinstance(interface, dict) else {}
        if code.kind == "fn":
            names = {str(code.meta.get("name") or self._pod.params.name): False}
        return names or None

    def _start(self, f: str, payload: bytes) -> Record:
        pod, client = self._pod, self._client
        client.high_water += 1
        meta: dict[str, Any] = {"ser": "json"}
        if f:
            meta["f"] = f
        file = None
        if len(payload) > INLINE_LIMIT:
            file = pod.bulk.write(payload)
            raw = encode(FrameType.CALL, client.high_water, {**meta, "lens": [len(payload)]}, (), F_BULK)
        else:
            raw = encode(FrameType.CALL, client.high_water, meta, (payload,))
        record = pod.store.add(client, client.high_water, f)
        [record.frame] = Decoder().feed(raw)
        record.meta = record.frame.meta
        record.input = file
        pod.calls.accept(record, None, None)
        return record

    async def _ended(self, record: Record, receive: Receive) -> bool:
        """Wait for a call's end; False when the one who asked has gone (the call is cancelled then)."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        if record.ended is not None:
            return True
        record.on_end = lambda _: None if done.done() else done.set_result(None)
        gone = loop.create_task(_until_gone(receive))
        try:
            await asyncio.wait({done, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            await asyncio.wait({gone})
        if not done.done():
            self._pod.calls.cancel(record, "abandoned")
            return False
        return True

    async def _reply(self, record: Record, send: Send) -> None:
        try:
            [frame] = Decoder().feed(record.result_bytes())
            payload = bytes(frame.buffers[0]) if frame.buffers else b""
            if frame.flags & F_BULK:
                payload = await asyncio.get_running_loop().run_in_executor(None, self._read, frame.meta["file"])
        except OSError as e:
            await _error(send, 500, "OSError", f"the result can't be read: {e}")
            return
        if not frame.flags & F_ERROR:
            if frame.meta.get("n") is not None:
                await _error(send, 400, "TypeError", "a generator can't be called by HTTP; use a handle in Python")
                return
            await _answer(send, 200, b'{"result":%b}' % (payload or b"null"), b"application/json")
            return
        error = frame.meta.get("error")
        error = error if isinstance(error, dict) else {}
        kind = str(error.get("type", "RemoteError"))
        name = str(error.get("name") or error.get("class") or "RemoteError") if kind == "user" else kind
        await _error(send, _STATUS.get(kind, 500), name, str(error.get("message", "")), error.get("traceback"))

    def _read(self, name: str) -> bytes:
        """A long result; in a thread, since it may lie on a disk."""
        with open(self._pod.bulk.path(name), "rb") as f:
            return f.read()


def _arguments(body: bytes) -> bytes:
    """The payload of a call, ``[args, kwargs]``, from a request's body.

    Raises
    ------
    ValueError
        When the body isn't what it should be.

    Examples
    --------
    >>> _arguments(b'{"args": [1], "kwargs": {"b": 2}}')
    b'[[1],{"b":2}]'
    >>> _arguments(b"")
    b'[[],{}]'
    """
    expected = 'the body must be JSON like {"args": [1, 2], "kwargs": {"name": 3}}'
    if not body.strip():
        return b"[[],{}]"
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{expected}; it isn't JSON: {e}") from None
    if not isinstance(value, dict) or not value.keys() <= {"args", "kwargs"}:
        raise ValueError(f"{expected}, with no other keys")
    args, kwargs = value.get("args", []), value.get("kwargs", {})
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise ValueError(f"{expected}: args is a list and kwargs an object")
    try:
        return json.dumps([args, kwargs], separators=(",", ":")).encode()
    except RecursionError:
        raise ValueError(f"{expected}; it is nested too deeply") from None


def _header(scope: MutableMapping[str, Any], name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)


async def _body(receive: Receive, limit: int) -> bytes | None:
    """A request's body; None when it is longer than `limit` bytes."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Violation("the client went away")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Body:
    """A request's body, of which it is known whether all of it has come."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.ended = False

    async def __call__(self) -> Message:
        """Give the next message, as ASGI's ``receive``."""
        message = await self._receive()
        self.ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def discard(self) -> None:
        """Take what is still on its way, within limits: who is answered while it sends may lose the answer."""

        async def rest() -> None:
            left = _DISCARD_BYTES
            while not self.ended and left > 0:
                left -= len((await self()).get("body", b""))

        try:
            await asyncio.wait_for(rest(), _DISCARD_SECONDS)
        except asyncio.TimeoutError:
            pass  # too slow to be worth waiting for: it is answered now


async def _answer(
    send: Send, status: int, body: bytes = b"", kind: bytes = b"text/plain; charset=utf-8", *, close: bool = False
) -> None:
    headers = [(b"content-length", b"%d" % len(body))] if status != 204 else []
    if body:
        headers.append((b"content-type", kind))
    if close:
        # What is left of the request's body isn't going to be read.
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _error(send: Send, status: int, name: str, message: str, traceback: object = None) -> None:
    error = {"type": name, "message": message, "traceback": traceback if isinstance(traceback, str) else None}
    await _answer(send, status, json.dumps({"error": error}).encode(), b"application/json")
