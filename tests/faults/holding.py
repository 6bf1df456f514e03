"""Holds hostile connections with a front, many at once, and says how the front ended them."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

from pod_server import wire
from pod_server.wire import FrameType
from tests.faults.connections import TOKEN, Attack, message, upgrade

__all__ = ["LINGERING", "hold", "hold_all", "linger_all"]

#: Connections at once.
AT_ONCE = 48
#: Seconds within which the front must have said something, or closed.
PATIENCE = 15.0


class Target(Protocol):
    """Whom we talk to."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""

    @property
    def token(self) -> bytes:
        """The right to."""


class Talk:
    """One attack's connection, as far as we understand what the front says on it."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._decoder = wire.Decoder()
        self.status = 0
        #: What GOODBYE and the close frame say.
        self.reason = self.closing = ""
        self.code: int | None = None
        self.answered = False

    async def head(self) -> int:
        """The status of an HTTP answer; 0 when there was none."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return 0
        self.status = int(head.split(b" ", 2)[1])
        return self.status

    async def listen(self) -> None:
        """Read until the front has closed, or has answered the last PING."""
        try:
            while self.code is None and not self.answered:
                first, size = await self._reader.readexactly(2)
                if size >= 126:
                    more = await self._reader.readexactly(2 if size == 126 else 8)
                    size = int.from_bytes(more, "big")
                self._understand(first & 15, await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # closed without a close frame: `code` is None

    def _understand(self, opcode: int, data: bytes) -> None:
        if opcode == 8:
            self.code = int.from_bytes(data[:2], "big") if data else 1005
            self.closing = data[2:].decode()
        elif opcode == 2:
            for frame in self._decoder.feed(data):
                if frame.type is FrameType.GOODBYE:
                    self.reason = frame.meta["reason"]
                elif frame.type is FrameType.PONG and frame.meta.get("last") == "one":
                    self.answered = True


async def hold(target: Target, attack: Attack) -> tuple[str, bool]:
    """Hold one session; what came of it, and whether that was right."""
    reader, writer = await asyncio.open_connection(*target.address)
    try:
        async with asyncio.timeout(PATIENCE):
            return await _hold(attack, target.token, reader, writer)
    except TimeoutError:
        return "the front said nothing and closed nothing", False
    except ConnectionError as e:
        # The front closes while we write: what it said before that is lost to a reset.
        return f"closed ({type(e).__name__})", attack.end != "wait" or attack.kicked or len(
            b"".join(attack.steps)
        ) > 65536
    finally:
        writer.transport.abort()


async def _hold(
    attack: Attack, token: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[str, bool]:
    first, *rest = [step.replace(TOKEN, token) for step in attack.steps]
    talk = Talk(reader)
    writer.write(first)
    if attack.what.startswith("HTTP"):
        return await _hold_http(attack, talk, reader, writer)
    if await talk.head() != 101:
        return f"no session: {talk.status}", False
    for step in rest:
        writer.write(step)
    if attack.end == "reset":
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return "reset", True
    if attack.end == "leave":
        writer.write(message(b"\x03\xe8", 8))
    elif attack.end == "fin":
        writer.write_eof()
    else:
        writer.write(message(wire.encode(FrameType.PING, 0, {"last": "one"})))
    await talk.listen()
    if attack.end != "wait":
        return f"{attack.end}: closed", True
    if talk.answered:
        return "went on", True
    if talk.code == 1000:
        return "left by its own GOODBYE", True
    if talk.code is None:
        return "closed without a word", attack.kicked
    if attack.what.startswith("WebSocket") and talk.code in (1002, 1007, 1009):
        return f"refused: {talk.code} {talk.closing[:40]}", bool(talk.closing or talk.reason)
    if talk.reason:
        return f"refused: {talk.code} {talk.reason[:60]}", talk.code == 1002
    return f"closed by {talk.code} without a reason", False


async def _hold_http(
    attack: Attack, talk: Talk, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[str, bool]:
    if attack.end == "reset":
        return "reset", True
    if attack.end == "fin":
        writer.write_eof()
        await reader.read()
        return "fin: closed", True
    status = await talk.head()
    return f"HTTP {status}", 200 <= status < 500


async def hold_all(target: Target, attacks: Iterator[Attack], wrong: list[tuple[Attack, str]]) -> Counter[str]:
    """Hold many, some at once; what came of how many of them."""
    outcomes: Counter[str] = Counter()

    async def work() -> None:
        for attack in attacks:  # shared by all of us
            outcome, right = await hold(target, attack)
            outcomes[outcome] += 1
            if not right:
                wrong.append((attack, outcome))

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    return outcomes


# -- slow ones ---------------------------------------------------------------------------------------------------------


async def linger(target: Target, how: str) -> str:
    """A connection that stays and does next to nothing; how the front ended it."""
    reader, writer = await asyncio.open_connection(*target.address)
    talk = Talk(reader)
    try:
        async with asyncio.timeout(25):
            if how == "no HELLO":
                writer.write(upgrade().replace(TOKEN, target.token))
                assert await talk.head() == 101
                await talk.listen()
                return f"{talk.code} {talk.reason}"
            if how == "half a head":
                writer.write(upgrade()[:40])
            elif how == "a slow head":
                with_patience = asyncio.ensure_future(_dribble(writer))
                try:
                    return f"HTTP {await talk.head()}"
                finally:
                    with_patience.cancel()
            elif how == "an upload nobody waits for":
                writer.write(b"PUT /bulk/up/nobody/7 HTTP/1.1\r\nX-Kubetorch-Token: " + target.token)
                writer.write(b"\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000)
            return f"HTTP {await talk.head()}"
    except TimeoutError:
        return "stays for ever"
    finally:
        writer.transport.abort()


async def _dribble(writer: asyncio.StreamWriter) -> None:
    for byte in b"GET /health HTTP/1.1\r\nX: " + b"x" * 1000:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.2)


LINGERING = {
    "nothing": "HTTP 408",
    "half a head": "HTTP 408",
    "a slow head": "HTTP 408",
    "no HELLO": "1002 the client did not introduce itself",
    "an upload nobody waits for": "HTTP 409",
}


async def linger_all(target: Target) -> dict[str, set[str]]:
    """Several of each kind, at once."""
    kinds = [how for how in LINGERING for _ in range(6)]
    ends = await asyncio.gather(*(linger(target, how) for how in kinds))
    found: dict[str, set[str]] = {}
    for how, end in zip(kinds, ends, strict=True):
        found.setdefault(how, set()).add(end)
    return found
