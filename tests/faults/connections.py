"""Hostile connections below and beside the frames: bytes that are no WebSocket's, requests that make no sense."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["TOKEN", "Attack", "message", "requests", "upgrade", "websockets"]

#: Stands for the token in an attack's bytes, since each pod has another; a token has as many characters.
TOKEN = b"@" * 64


@dataclass(frozen=True)
class Attack:
    """One connection: what is sent, and how it ends.

    Parameters
    ----------
    what
        What is wrong with it, for people.
    steps
        The bytes. After the first step an answer is awaited (the front's 101, or what HTTP has to say).
    end
        ``"wait"``: the front must say something: go on answering, or say why it doesn't. ``"fin"``: we close our half,
        the front must close its own. ``"leave"``: a close frame. ``"reset"``: gone at once.
    kicked
        Another attack has the same client id, so the front may drop this one without a word.
    """

    what: str
    steps: tuple[bytes, ...]
    end: str = "wait"
    kicked: bool = False

    def to_hex(self) -> str:
        """For a person to copy."""
        said = [self.what, self.end, self.kicked, [step.hex() for step in self.steps]]
        return zlib.compress(json.dumps(said).encode(), 9).hex()

    @classmethod
    def from_hex(cls, text: str) -> Attack:
        """What `to_hex` printed."""
        what, end, kicked, steps = json.loads(zlib.decompress(bytes.fromhex(text)))
        return cls(what, tuple(bytes.fromhex(step) for step in steps), end, kicked)


# -- WebSocket ---------------------------------------------------------------------------------------------------------


def upgrade(path: str = "/session", headers: Sequence[bytes] = (b"X-Kubetorch-Token: " + TOKEN,)) -> bytes:
    """The head of a WebSocket's handshake."""
    lines = [
        f"GET {path} HTTP/1.1".encode(),
        b"Host: pod",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def message(data: bytes, opcode: int = 2, *, fin: bool = True, masked: bool = True, bits: int = 0) -> bytes:
    """A WebSocket frame; the mask is zero, so that the bytes can be read."""
    first = (0x80 if fin else 0) | bits << 4 | opcode
    mask = 0x80 if masked else 0
    if len(data) < 126:
        head = struct.pack("!BB", first, mask | len(data))
    elif len(data) < 65536:
        head = struct.pack("!BBH", first, mask | 126, len(data))
    else:
        head = struct.pack("!BBQ", first, mask | 127, len(data))
    return head + (b"\0\0\0\0" if masked else b"") + data


# -- attacks -----------------------------------------------------------------------------------------------------------


def websockets(r: random.Random, hello: bytes) -> Attack:
    """What is no binary message, or no WebSocket at all."""
    ways: dict[str, list[bytes]] = {
        "text": [message(b"hello", 1)],
        "text after HELLO": [message(hello), message(b"\xc3\xa9", 1)],
        "text that isn't UTF-8": [message(b"\xff\xfe", 1)],
        "fragments": [message(hello[:9], 2, fin=False), message(hello[9:], 0)],
        "text in fragments": [message(b"\xff", 1, fin=False), message(b"\xfe", 0)],
        "a continuation of nothing": [message(hello, 0)],
        "a new message inside another": [message(hello[:9], 2, fin=False), message(hello, 2)],
        "not masked": [message(hello, masked=False)],
        "reserved bits": [message(hello, bits=r.randint(1, 7))],
        "an unknown opcode": [message(hello, r.choice((3, 7, 11, 15)))],
        "a long ping": [message(b"x" * 200, 9)],
        "a ping in fragments": [message(b"x", 9, fin=False)],
        "a close that makes no sense": [
            message(hello),
            message(r.choice((b"\x00", b"\x03\xe7", b"\x03\xe8\xff")), 8),
        ],
        "a message that says it is huge": [
            b"\x82\xff" + struct.pack("!Q", r.choice((17 << 20, 2**40, 2**63))) + b"\0" * 4
        ],
        "not a WebSocket": [r.randbytes(r.choice((2, 10, 1000)))],
        "empty messages": [message(b"")] * 50 + [message(hello)] + [message(b"")] * 50,
        "pings": [message(b"x" * 125, 9) * 200, message(hello)],
    }
    what = r.choice(sorted(ways))
    loose = what in ("not a WebSocket", "a message that says it is huge", "not masked")
    return Attack(f"WebSocket: {what}", (upgrade(), *ways[what]), "fin" if loose else "wait")


def requests(r: random.Random) -> Attack:
    """Requests beside the session."""
    token = b"X-Kubetorch-Token: " + TOKEN + b"\r\n"
    host = b"Host: pod\r\n"
    ranges = (
        b"bytes=-1",
        b"bytes=5",
        b"bytes=5-1",
        b"bytes=0-0,5-9",
        b"lines=1-",
        b"bytes=" + b"9" * 400 + b"-",
        b"\xff",
    )
    get = b"GET /bulk/down/%b HTTP/1.1\r\n" % r.choice((b"f1", b"", b"..%2f..%2ftoken", b"%00", b"x" * 3000))
    post = b"POST /call/%b HTTP/1.1\r\n" % r.choice((b"work", b"nothing", b"", b"%00", b"work/more", b"x" * 30_000))
    body = r.choice(
        (
            b"",
            b"{",
            b"[]",
            b'{"args": 1}',
            b'{"args": [' + b"[" * r.choice((500, 960, 980, 3000)),
            b'{"args": [' + b"[" * (n := r.choice((300, 900, 950, 970, 985, 995))) + b"]" * n + b"]}",
            b'{"args": [' + b"9" * 5000 + b"]}",
            b'{"args": ["\\ud800"]}',
            b'{"args": [NaN]}',
            b"\xff" * 100,
        )
    )
    ways: dict[str, bytes] = {
        "a Range": get + host + token + b"Range: " + r.choice(ranges) + b"\r\n\r\n",
        "two Ranges": get + host + token + b"Range: bytes=1-\r\nRange: bytes=2-\r\n\r\n",
        "a file that isn't there": get + host + token + b"\r\n",
        "a body": post + host + token + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        "a body in bad chunks": post + host + token + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
        "two lengths": post + host + token + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabcde",
        "a negative length": post + host + token + b"Content-Length: -5\r\n\r\nabc",
        "a length and chunks": post
        + host
        + token
        + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "no HTTP": r.randbytes(r.choice((1, 30, 3000))) + b"\r\n\r\n",
        "another method": b"BREW /session HTTP/1.1\r\n" + host + token + b"\r\n",
        "a method for no route": b"DELETE /bulk/up/x/1 HTTP/1.1\r\n" + host + token + b"\r\n",
        "an upload to a bad channel": b"PUT /bulk/up/x/%b HTTP/1.1\r\n"
        % r.choice((b"-1", b"1e5", b"9" * 30, b"%D9%A1"))
        + host
        + token
        + b"Content-Length: 0\r\n\r\n",
        "another version": b"GET /health HTTP/7.3\r\n" + host + b"\r\n",
        "a head that is too long": b"GET /health HTTP/1.1\r\n" + host + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        "a session on another path": upgrade(r.choice(("/", "/sessions", "/session/", "/bulk/down/f1", "/%00"))),
        "a session with two tokens": upgrade(headers=[b"X-Kubetorch-Token: " + TOKEN] * 2),
        "a session without a token": upgrade(headers=[]),
        "a session with a bad key": upgrade().replace(b"AAAAAAAA", b"!"),
        "many requests at once": (b"GET /health HTTP/1.1\r\n" + host + b"\r\n") * 30 + b"GET /nothing HTTP/1.1\r\n\r\n",
    }
    what = r.choice(sorted(ways))
    return Attack(
        f"HTTP: {what}", (ways[what],), "fin" if what == "no HTTP" else r.choice(("wait", "wait", "fin", "reset"))
    )
