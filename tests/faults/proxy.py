"""A TCP proxy between a client and a pod that knows where frames end, and cuts there, or at a byte, or for a while."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from kubetorch_jupyter.backends.local import LocalBackend
from kubetorch_jupyter.transport.endpoint import Endpoint
from pod_server.wire import FrameType

__all__ = ["IN", "OUT", "Cut", "Proxy", "through_proxies"]

#: From the client to the pod, and back.
OUT, IN = "out", "in"


@dataclasses.dataclass
class Cut:
    """Where to cut.

    Parameters
    ----------
    direction
        Whose bytes are counted.
    at
        Cut when so many frames (of a session) or bytes (of a transfer) have been passed on.
    how
        ``"close"``: both connections end in order. ``"hole"``: nothing is passed on any more, and after a while the
        connections are reset.
    kind
        ``"session"``, ``"up"`` or ``"down"``: which connections are counted. All that are open are cut.
    """

    direction: str
    at: int
    how: str = "close"
    kind: str = "session"


class _Connection:
    def __init__(self, pairs: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
        self.pairs = pairs
        self.kind = ""
        self.hole = False
        self.cut = asyncio.Event()


class Proxy:
    """Listens on a port of its own, in a thread of its own, and passes everything on to ``url``.

    Parameters
    ----------
    url
        Where to.
    beyond
        For TLS towards there; the frames are seen between the two.
    before
        For TLS towards the clients.

    Attributes
    ----------
    frames
        How many frames of sessions have been passed on, by direction.
    types
        Their types, in order, by direction.
    fired
        How many of the cuts have been made.
    """

    def __init__(self, url: str, *, beyond: ssl.SSLContext | None = None, before: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        self._beyond, self._before = beyond, before
        self._target = parts.hostname or "", parts.port or 80
        self._loop = asyncio.new_event_loop()
        self._connections: set[_Connection] = set()
        self._cuts: list[Cut] = []
        self._seen: Counter[tuple[str, str]] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusing = False
        self._swallowing = False
        self.hole_seconds = 0.3
        self.fired = 0
        self.frames: Counter[str] = Counter()
        self.types: dict[str, list[FrameType]] = {OUT: [], IN: []}
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="proxy", daemon=True)
        self._thread.start()
        started.wait()

    # -- from the test's thread --------------------------------------------------------------------------------------

    def arm(self, *cuts: Cut) -> None:
        """Make these cuts, one after the other, counting anew after each."""
        self._do(lambda: self._arm(cuts))

    def down(self, how: str = "close") -> None:
        """From now on nothing gets through: connections are closed (``"close"``) or swallow everything (``"hole"``)."""

        def begin() -> None:
            self._refusing, self._swallowing = how == "close", how == "hole"
            for connection in list(self._connections):
                if how == "close":
                    connection.cut.set()
                else:
                    connection.hole = True

        self._do(begin)

    def up(self) -> None:
        """The network works again; what was swallowed is gone, and those connections are reset."""

        def end() -> None:
            self._refusing = self._swallowing = False
            for connection in list(self._connections):
                if connection.hole:
                    self._reset(connection)

        self._do(end)

    def close(self) -> None:
        """End it."""
        self._do(self._stop)
        self._thread.join(5)
        self._loop.close()

    def _do(self, what: Callable[[], Any]) -> None:
        done = threading.Event()

        def run() -> None:
            try:
                what()
            finally:
                done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(5)

    # -- on its loop -------------------------------------------------------------------------------------------------

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._before))
        self.url = f"{'https' if self._before else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        self._loop.run_forever()
        server.close()
        # Their connections were reset; a task that is cancelled instead would be complained of by asyncio's streams.
        if tasks := asyncio.all_tasks(self._loop):
            self._loop.run_until_complete(asyncio.wait(tasks, timeout=2))
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(self._loop), return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))

    def _stop(self) -> None:
        for connection in list(self._connections):
            self._reset(connection)
        self._loop.stop()

    def _arm(self, cuts: tuple[Cut, ...]) -> None:
        self._cuts = list(cuts)
        self._seen.clear()
        self.frames.clear()
        self.types = {OUT: [], IN: []}
        self.fired = 0

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            there = await asyncio.open_connection(*self._target, ssl=self._beyond)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection([(reader, writer), there])
        connection.hole = self._swallowing
        self._connections.add(connection)
        pumps = [
            asyncio.ensure_future(self._pump(connection, reader, there[1], OUT)),
            asyncio.ensure_future(self._pump(connection, there[0], writer, IN)),
        ]
        ender = asyncio.ensure_future(connection.cut.wait())
        try:
            await asyncio.wait({*pumps, ender}, return_when=asyncio.FIRST_COMPLETED)
            # What has been passed on still arrives: close in order, and wait until they have seen it.
            for _, w in connection.pairs:
                with contextlib.suppress(OSError, RuntimeError):
                    if w.can_write_eof():
                        w.write_eof()
                    else:
                        w.close()
            connection.hole = True
            await asyncio.wait(pumps, timeout=0.5)
        finally:
            for task in (*pumps, ender):
                task.cancel()
            await asyncio.gather(*pumps, ender, return_exceptions=True)
            self._connections.discard(connection)
            for _, w in connection.pairs:
                w.transport.abort()

    async def _pump(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str
    ) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if direction == OUT:
                connection.kind = _kind(head) or ("session" if b"upgrade: websocket" in head.lower() else "other")
            if connection.kind == "session" and (direction == OUT or b" 101 " in head[:16]):
                self._check(connection, direction, 0)
                self._pass(connection, writer, head)
                while True:
                    raw, ends = await _message(reader)
                    at = 0
                    for end, kind in ends:
                        self._pass(connection, writer, raw[at:end])
                        at = end
                        if not connection.hole:
                            self.frames[direction] += 1
                            self.types[direction].append(kind)
                        self._check(connection, direction, 1)
                    self._pass(connection, writer, raw[at:])
                    await writer.drain()
            data = head
            while data:
                if direction == OUT:
                    connection.kind = _kind(data) or connection.kind  # connections are used again
                for start in range(0, len(data), 16384):
                    piece = data[start : start + 16384]
                    self._check(connection, direction, len(piece))
                    self._pass(connection, writer, piece)
                await writer.drain()
                data = await reader.read(65536)
        except (OSError, EOFError):
            return  # one side has ended; so does the other

    def _pass(self, connection: _Connection, writer: asyncio.StreamWriter, data: bytes) -> None:
        if not connection.hole and not connection.cut.is_set() and data:
            writer.write(data)

    def _check(self, connection: _Connection, direction: str, n: int) -> None:
        """Count, and cut where it is time to."""
        if connection.hole or connection.cut.is_set():
            return
        self._seen[connection.kind, direction] += n
        if not self._cuts:
            return
        cut = self._cuts[0]
        if cut.kind != connection.kind or cut.direction != direction or self._seen[cut.kind, direction] < cut.at:
            return
        del self._cuts[0]
        self._seen.clear()
        self.fired += 1
        for other in list(self._connections):
            if cut.how == "close":
                other.cut.set()
            elif not other.hole:
                other.hole = True
                self._loop.call_later(self.hole_seconds, self._reset, other)

    def _reset(self, connection: _Connection) -> None:
        for _, writer in connection.pairs:
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError, AttributeError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


def _kind(data: bytes) -> str | None:
    """``"up"`` or ``"down"`` when that is the head of such a transfer."""
    found = re.match(rb"(?:PUT|GET) \S*/bulk/(up|down)/", data)
    return found[1].decode() if found else None


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, list[tuple[int, FrameType]]]:
    """One WebSocket frame as it came, and where in it frames of ours end."""
    head = await reader.readexactly(2)
    size = head[1] & 0x7F
    if size == 126:
        head += await reader.readexactly(2)
        size = int.from_bytes(head[2:], "big")
    elif size == 127:
        head += await reader.readexactly(8)
        size = int.from_bytes(head[2:], "big")
    mask = b""
    if head[1] & 0x80:
        mask = await reader.readexactly(4)
    payload = await reader.readexactly(size)
    raw = head + mask + payload
    if head[0] & 0x0F not in (0, 2):
        return raw, []
    if mask:
        key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
        payload = (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")
    ends = []
    at, before = 0, len(raw) - size
    while at < size:
        length, kind = struct.unpack_from("<IB", payload, at)
        at += length
        ends.append((before + at, FrameType(kind)))
    return raw, ends


@contextlib.contextmanager
def through_proxies(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Proxy]]:
    """Every local pod that is deployed or found goes through a proxy, the same one each time; the list of them."""
    proxies: dict[str, Proxy] = {}
    listed: list[Proxy] = []
    original = LocalBackend._endpoint

    def endpoint(self: LocalBackend, record: Any) -> Endpoint:
        real = original(self, record)
        if real.url not in proxies:
            proxies[real.url] = Proxy(real.url)
            listed.append(proxies[real.url])
        # Without its folder: what is to be cut must go over the connection.
        return dataclasses.replace(real, url=proxies[real.url].url, folder=None)

    monkeypatch.setattr(LocalBackend, "_endpoint", endpoint)
    try:
        yield listed
    finally:
        monkeypatch.setattr(LocalBackend, "_endpoint", original)
        for proxy in listed:
            proxy.close()
