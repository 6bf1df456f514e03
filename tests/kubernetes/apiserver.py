"""An API server of the tests: a few kinds of objects with watches, tokens, certificates, a pod proxy, and its failures.

It speaks HTTP by itself on asyncio streams, in a thread of its own, so that an answer can be cut wherever a test likes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from websockets.frames import Frame, Opcode
from websockets.http11 import Request as HandshakeRequest
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from tests.ports import free_port

Answer = tuple[int, Any, dict[str, str]]


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any = None
    raw: str = ""


def status(code: int, reason: str, message: str = "", **details: Any) -> Answer:
    """An answer with a Status object."""
    body = {"kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": code}
    return code, {**body, **({"details": details} if details else {})}, {}


def forbidden(verb: str, resource: str, group: str = "", namespace: str = "team") -> Answer:
    """As RBAC says it."""
    what = f"{resource}{f'.{group}' if group else ''}"
    return status(
        403,
        "Forbidden",
        f'{what} is forbidden: User "jane" cannot {verb} resource "{resource}" in API group "{group}" in the namespace '
        f'"{namespace}"',
    )


def _merged(found: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """As a merge patch changes it (RFC 7396)."""
    result = {key: value for key, value in found.items() if patch.get(key, value) is not None}
    for key, value in patch.items():
        if isinstance(value, dict):
            result[key] = _merged(result.get(key) or {}, value)
        elif value is not None:
            result[key] = value
    return result


@dataclass
class ApiServer:
    """The server; its state may be read and changed from the test's thread."""

    tls: ssl.SSLContext | None = None
    token: str | None = "good"
    #: Answers that stand in for the next requests, whatever they ask.
    next: list[Answer | str] = field(default_factory=list)
    #: Asked for each request first; None: go on.
    rule: Callable[[Request], Answer | None] | None = None
    objects: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    #: Where a pod's proxy leads to; None: "error dialing backend".
    backend: tuple[str, int] | None = None
    port: int = 0

    def __post_init__(self) -> None:
        # Of its own, since it is given back between `stop` and `start`.
        self.port = self.port or free_port("127.0.0.1")
        self._version = 100
        self._oldest = 0
        self._history: list[tuple[int, str, str, dict[str, Any]]] = []
        self._changed: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.writers: set[asyncio.StreamWriter] = set()
        self.watches = 0
        self.forwards = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    # -- life --------------------------------------------------------------------------------------------------------

    def __enter__(self) -> ApiServer:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def do(self, coro: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coro, self._loop).result(10)

    def start(self) -> None:
        """Listen, on the same port as before."""

        async def start() -> None:
            self._changed = asyncio.Event()
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self.tls)

        self.do(start())

    def stop(self) -> None:
        """End, and break every connection."""

        async def stop() -> None:
            self._server.close()
            for task in list(self._tasks):
                task.cancel()
            for writer in list(self.writers):
                writer.transport.abort()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.sleep(0.02)

        self.do(stop())

    def cut(self, half: str = "") -> None:
        """Break every connection, perhaps in the middle of a line."""

        async def cut() -> None:
            for writer in list(self.writers):
                if half:
                    writer.write(f"{len(half):x}\r\n{half}\r\n".encode())
                    with contextlib.suppress(OSError):
                        await writer.drain()
                    await asyncio.sleep(0.02)
                writer.transport.abort()

        self.do(cut())

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    # -- objects -----------------------------------------------------------------------------------------------------

    def put(self, plural: str, obj: dict[str, Any], namespace: str = "team") -> dict[str, Any]:
        """Create or replace an object, and tell the watches."""

        async def put() -> dict[str, Any]:
            return self._put(plural, namespace, obj)

        made: dict[str, Any] = self.do(put())
        return made

    def remove(self, plural: str, name: str, namespace: str = "team") -> None:
        async def remove() -> None:
            self._remove(plural, namespace, name)

        self.do(remove())

    def forget(self) -> None:
        """Compact: whoever watches from before has to list again."""
        self._oldest = self._version

    def _put(self, plural: str, namespace: str, obj: dict[str, Any]) -> dict[str, Any]:
        key = plural, namespace, obj["metadata"]["name"]
        self._version += 1
        what = "MODIFIED" if key in self.objects else "ADDED"
        before = self.objects.get(key) or {"metadata": {"uid": f"uid-{self._version}"}}
        ours = {"resourceVersion": str(self._version), "namespace": namespace, "uid": before["metadata"]["uid"]}
        obj = {**obj, "metadata": {**ours, **obj["metadata"], "resourceVersion": ours["resourceVersion"]}}
        self.objects[key] = obj
        self._tell(what, plural, obj)
        return obj

    def _remove(self, plural: str, namespace: str, name: str) -> None:
        obj = self.objects.pop((plural, namespace, name))
        self._version += 1
        obj = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self._version)}}
        self._tell("DELETED", plural, obj)

    def _tell(self, what: str, plural: str, obj: dict[str, Any]) -> None:
        self._history.append((self._version, what, plural, obj))
        assert self._changed is not None
        self._changed.set()
        self._changed = asyncio.Event()

    # -- HTTP --------------------------------------------------------------------------------------------------------

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.split("\r\n")
                method, target, _ = first.split(" ")
                headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines) if k}
                parts = urlsplit(target)
                request = Request(method, unquote(parts.path), dict(parse_qsl(parts.query)), headers, raw=head)
                if request.path.endswith("/portforward") and self._refused(request) is None:
                    self.requests.append(request)
                    await self._forward(request, reader, writer)
                    return
                if "/proxy" in request.path and self._refused(request) is None and not self.next:
                    self.requests.append(request)
                    if await self._proxy(request, reader, writer):
                        return
                    continue
                if length := int(headers.get("content-length", 0)):
                    body = await reader.readexactly(length)
                    request.body = json.loads(body) if "json" in headers.get("content-type", "") else None
                self.requests.append(request)
                if self.next and isinstance(self.next[0], str):
                    self.next.pop(0)
                    return  # without a word
                answer = self._answer(request)
                if answer is None:
                    await self._watch(request, reader, writer)
                    return
                code, value, more = answer
                data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
                kind = "text/plain" if isinstance(value, str) else "application/json"
                extra = "".join(f"{k}: {v}\r\n" for k, v in more.items())
                writer.write(
                    f"HTTP/1.1 {code} X\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n{extra}\r\n".encode()
                    + data
                )
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has gone
        finally:
            self.writers.discard(writer)
            writer.transport.abort()

    def _refused(self, request: Request) -> Answer | None:
        if self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}":
            return status(401, "Unauthorized", "Unauthorized")
        return self.rule(request) if self.rule is not None else None

    def _answer(self, request: Request) -> Answer | None:
        """An answer, or None for a watch."""
        if self.next:
            answer = self.next.pop(0)
            assert not isinstance(answer, str)
            return answer
        refused = self._refused(request)
        if refused is not None:
            return refused
        parts = request.path.strip("/").split("/")
        if "namespaces" not in parts:
            return 200, {"status": {"allowed": True}}, {}
        namespace, plural, *rest = parts[parts.index("namespaces") + 1 :]
        name = rest[0] if rest else ""
        found = self.objects.get((plural, namespace, name))
        if request.method == "POST":
            if (plural, namespace, request.body["metadata"]["name"]) in self.objects:
                return status(409, "AlreadyExists", "already exists")
            return 201, self._put(plural, namespace, request.body), {}
        if not name:
            if request.query.get("watch"):
                if int(request.query["resourceVersion"]) < self._oldest:
                    return status(410, "Expired", "too old resource version")
                return None
            items = [obj for (p, n, _), obj in self.objects.items() if (p, n) == (plural, namespace)]
            return 200, {"kind": "List", "metadata": {"resourceVersion": str(self._version)}, "items": items}, {}
        if len(rest) > 1 and rest[1] == "log":
            return 200, "a line\nanother\n", {}
        if found is None:
            return status(404, "NotFound", f'{plural} "{name}" not found', name=name, kind=plural)
        if request.method == "DELETE":
            self._remove(plural, namespace, name)
            return 200, {"kind": "Status", "status": "Success"}, {}
        if request.method == "PATCH":
            return 200, self._put(plural, namespace, _merged(found, request.body)), {}
        return 200, found, {}

    async def _watch(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        plural = request.path.rpartition("/")[2]
        at = int(request.query["resourceVersion"])
        self.watches += 1
        gone = asyncio.ensure_future(reader.read())
        try:
            while not gone.done():
                assert self._changed is not None
                changed = self._changed
                for version, what, kind, obj in self._history:
                    if version > at:
                        at = version
                        if kind == plural:
                            line = json.dumps({"type": what, "object": obj}) + "\n"
                            writer.write(f"{len(line):x}\r\n{line}\r\n".encode())
                await writer.drain()
                waiting = asyncio.ensure_future(changed.wait())
                await asyncio.wait((gone, waiting), return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
        finally:
            self.watches -= 1
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    # -- the pod proxy -----------------------------------------------------------------------------------------------

    async def _proxy(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """As the real one, without Authorization, and never with a query; True: that was the connection's end."""
        if self.backend is None:
            length = int(request.headers.get("content-length", 0))
            await reader.readexactly(length)
            body = json.dumps(status(503, "ServiceUnavailable", "error dialing backend: connection refused")[1])
            writer.write(f"HTTP/1.1 503 X\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            return False
        there, back = await asyncio.open_connection(*self.backend)
        path = request.path.partition("/proxy")[2] or "/"
        lines = [line for line in request.raw.split("\r\n")[1:] if not line.lower().startswith("authorization:")]
        back.write(f"{request.method} {path} HTTP/1.1\r\n".encode() + "\r\n".join(lines).encode("latin-1"))
        self.writers.add(back)
        try:
            done = [asyncio.ensure_future(_pump(reader, back)), asyncio.ensure_future(_pump(there, writer))]
            await asyncio.wait(done, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.cancel()
            await asyncio.gather(*done, return_exceptions=True)
        finally:
            self.writers.discard(back)
            back.transport.abort()
        return True

    async def _forward(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A port-forward, as the kubelet speaks it: two channels, each of which begins with the port's number."""
        ws = ServerProtocol(subprotocols=[Subprotocol("v4.channel.k8s.io")], max_size=None)
        ws.receive_data(request.raw.encode("latin-1"))
        [handshake] = ws.events_received()
        assert isinstance(handshake, HandshakeRequest)
        ws.send_response(ws.accept(handshake))

        def say(channel: int, data: bytes) -> None:
            ws.send_binary(bytes([channel]) + data)
            writer.writelines(ws.data_to_send())

        number = int(request.query["ports"]).to_bytes(2, "little")
        say(0, number)
        say(1, number)
        self.forwards += 1
        try:
            if self.backend is None:
                say(1, b"failed to connect to localhost:32300 inside namespace: connection refused")
                ws.send_close(1000)
                writer.writelines(ws.data_to_send())
                await writer.drain()
                return
            there, back = await asyncio.open_connection(*self.backend)

            async def up() -> None:
                while data := await reader.read(1 << 18):
                    ws.receive_data(data)
                    for frame in ws.events_received():
                        assert isinstance(frame, Frame)
                        if frame.opcode is Opcode.BINARY:
                            assert frame.data[0] == 0
                            back.write(bytes(frame.data[1:]))
                            await back.drain()
                        elif frame.opcode is Opcode.CLOSE:
                            return

            async def down() -> None:
                while data := await there.read(32 << 10):
                    say(0, data)
                    await writer.drain()

            self.writers.add(back)
            tasks = [asyncio.ensure_future(up()), asyncio.ensure_future(down())]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.writers.discard(back)
            back.transport.abort()
        finally:
            self.forwards -= 1


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 18):
            writer.write(data)
            await writer.drain()


# -- configuration -----------------------------------------------------------------------------------------------------


def kubeconfig(path: Path, server: str, user: dict[str, Any] | None = None, **cluster: Any) -> Path:
    """A kubeconfig (JSON is YAML) with the contexts ``one`` (the current) and ``two``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {
                "current-context": "one",
                "clusters": [{"name": "c", "cluster": {"server": server, **cluster}}],
                "users": [{"name": "u", "user": {"token": "good"} if user is None else user}],
                "contexts": [
                    {"name": "one", "context": {"cluster": "c", "user": "u", "namespace": "team"}},
                    {"name": "two", "context": {"cluster": "c", "user": "u"}},
                ],
            }
        )
    )
    return path


@dataclass
class Certificates:
    """A CA, a server's certificate for 127.0.0.1 and a name, and a client's."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Certificates:
        folder.mkdir(parents=True, exist_ok=True)

        def run(*arguments: str) -> None:
            subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

        new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        run("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=test-ca", "-days", "2")
        for name, extension in (
            ("server", "subjectAltName=IP:127.0.0.1"),
            ("named", "subjectAltName=DNS:api.example"),
            ("client", "extendedKeyUsage=clientAuth"),
        ):
            run("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
            (folder / "ext").write_text(extension)
            signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "ext")
            run("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.crt")
        return cls(folder)

    def data(self, name: str) -> str:
        """A file as base64, as kubeconfigs have it."""
        return base64.b64encode((self.folder / name).read_bytes()).decode()

    def server(self, name: str = "server", *, client: bool = False) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        if client:
            context.load_verify_locations(self.folder / "ca.crt")
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@contextlib.contextmanager
def opened(path: Path, context: str | None = None) -> Iterator[Any]:
    """A `Cluster` of that kubeconfig, closed afterwards."""
    from kubetorch_jupyter.backends.kubernetes.client import Cluster
    from kubetorch_jupyter.transport.portal import get_portal

    cluster = get_portal().run(Cluster.open(str(path), context), 10)
    try:
        yield cluster
    finally:
        get_portal().run(cluster.close(), 10)
