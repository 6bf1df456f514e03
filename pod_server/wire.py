"""The frames that client, front, worker and zygote exchange: one definition, sans-I/O.

A frame is a fixed header, a table of buffer lengths, a small JSON object (*meta*) and the buffers themselves::

    0        4      5       6       8          16         20
    | size   | type | flags | nbuf  | channel  | meta len | nbuf x u32 lengths | meta | buffers ...
      u32      u8     u8      u16     u64        u32         all little-endian; size counts the whole frame

Frames are at most `MAX_FRAME` bytes on every hop; a payload that does not fit travels beside them (``F_BULK``). Any
number of frames may be joined into one WebSocket message or one write of a stream socket: `Decoder` takes bytes as they
come and gives the frames that are complete. It raises `WireError` for bytes that no well-behaved peer sends, and holds
at most one frame's bytes, so garbage costs the sender its connection and nobody else anything.

Log records have a framing of their own (`encode_log`, `LogDecoder`), because a log is one stream of bytes with offsets,
cut into frames wherever that is convenient.
"""

from __future__ import annotations

import enum
import json
import os
import struct
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

__all__ = [
    "F_BULK",
    "F_ENTRY",
    "F_ERROR",
    "INLINE_LIMIT",
    "MAX_FRAME",
    "PROTOCOL",
    "Decoder",
    "Frame",
    "FrameType",
    "LogDecoder",
    "LogKind",
    "WireError",
    "call_id",
    "encode",
    "encode_log",
    "join_log",
    "new_client_id",
    "parse_call_id",
]

#: Version of everything in this module; both sides name theirs first and refuse another.
PROTOCOL = 1
#: The longest frame, in bytes.
MAX_FRAME = 65536
#: The largest sum of buffers that travels inside a frame; the rest is room for the meta.
INLINE_LIMIT = 56 * 1024

#: RESULT and ITEM: the buffers hold an exception, not a value.
F_ERROR = 0x01
#: CALL, LOAD, RESULT, ITEM: the buffers travel beside the session; ``meta["lens"]`` has their lengths in bytes.
F_BULK = 0x02
#: LOG: the bytes begin with a new log entry (a log may be cut here).
F_ENTRY = 0x04

Buffer = bytes | bytearray | memoryview

#: One for all frames: `json.dumps` makes a new encoder at each call.
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_HEADER = struct.Struct("<IBBHQI")
_U32 = struct.Struct("<I")
_CHANNEL = struct.Struct("<Q")
_CHANNEL_AT = 8


class FrameType(enum.IntEnum):
    """What a frame says. ``docs/architecture.md`` has the meta of each, and who sends it to whom."""

    HELLO = 1
    WELCOME = 2
    GOODBYE = 3
    PING = 4
    PONG = 5
    CALL = 10
    RESUME = 11
    CANCEL = 12
    CREDIT = 13
    ACK = 14
    LOAD = 15
    LOG = 20
    ITEM = 21
    RESULT = 22
    REQUEST = 30
    RESPONSE = 31
    EVENT = 32
    FORK = 40
    FORKED = 41
    DIED = 42
    KILL = 43


_TYPES = {int(t): t for t in FrameType}


class WireError(Exception):
    """Bytes that are no frame; the connection that they came from can't be used any more."""


#: How deep the objects and lists of a meta may be nested: who passes it on must be able to encode it again.
_DEPTH = 100


def _parse_meta(raw: bytes) -> dict[str, Any]:
    try:
        meta = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise WireError(f"the meta of a frame is not JSON: {e}") from None
    if not isinstance(meta, dict):
        raise WireError("the meta of a frame is not a JSON object")
    # Counted first: next to no meta has that many brackets.
    if raw.count(b"{") + raw.count(b"[") > _DEPTH and _too_deep(meta):
        raise WireError(f"the meta of a frame is nested deeper than {_DEPTH}")
    return meta


def _too_deep(value: object) -> bool:
    level: list[Any] = [value]
    for _ in range(_DEPTH):
        inside: list[Any] = []
        for found in level:
            inside += found.values() if isinstance(found, dict) else found
        level = [v for v in inside if isinstance(v, (dict, list))]
        if not level:
            return False
    return True


class Frame(NamedTuple):
    """One decoded frame. ``raw`` is the frame as it came, so that it can be passed on without encoding it anew."""

    type: FrameType
    flags: int
    channel: int
    meta_raw: bytes
    buffers: list[memoryview]
    raw: bytes

    @property
    def meta(self) -> dict[str, Any]:
        """The meta, parsed at each access; `WireError` when it isn't a JSON object."""
        return _parse_meta(self.meta_raw) if self.meta_raw else {}

    def on_channel(self, channel: int) -> bytes:
        """The frame's bytes with another channel number, for the next hop."""
        raw = self.raw
        return raw[:_CHANNEL_AT] + _CHANNEL.pack(channel) + raw[_CHANNEL_AT + 8 :]


def encode(
    type: FrameType,
    channel: int = 0,
    meta: dict[str, Any] | None = None,
    buffers: Sequence[Buffer] = (),
    flags: int = 0,
) -> bytes:
    """Encode one frame.

    Parameters
    ----------
    type, channel, flags
        As in the header. Channel 0 is the session itself.
    meta
        A JSON object, ``None`` for an empty one.
    buffers
        Bytes-like objects; their lengths are kept.

    Returns
    -------
    bytes

    Raises
    ------
    WireError
        When the frame would be longer than `MAX_FRAME`.

    Examples
    --------
    >>> frame, = Decoder().feed(encode(FrameType.PING, meta={"t": 1}))
    >>> frame.type.name, frame.meta
    ('PING', {'t': 1})
    """
    raw_meta = _to_json(meta).encode() if meta else b""
    n = len(buffers)
    if not n:
        size = 20 + len(raw_meta)
        if size > MAX_FRAME:
            raise WireError(f"a {type.name} frame of {size} bytes is longer than {MAX_FRAME}")
        return _HEADER.pack(size, type, flags, 0, channel, len(raw_meta)) + raw_meta
    lengths = [b.nbytes if isinstance(b, memoryview) else len(b) for b in buffers]
    size = 20 + 4 * n + len(raw_meta) + sum(lengths)
    if size > MAX_FRAME or n > 0xFFFF:
        raise WireError(f"a {type.name} frame of {size} bytes is longer than {MAX_FRAME}")
    head = _HEADER.pack(size, type, flags, n, channel, len(raw_meta))
    table = _U32.pack(lengths[0]) if n == 1 else struct.pack(f"<{n}I", *lengths)
    return b"".join((head, table, raw_meta, *buffers))


class Decoder:
    """Bytes in, frames out.

    Parameters
    ----------
    max_frame
        The longest frame to accept, in bytes.

    Examples
    --------
    >>> d = Decoder()
    >>> data = encode(FrameType.CALL, 7, {"f": "run"}, [b"ab", b"c"])
    >>> d.feed(data[:9])
    []
    >>> [f] = d.feed(data[9:])
    >>> f.channel, [bytes(b) for b in f.buffers]
    (7, [b'ab', b'c'])
    """

    __slots__ = ("_broken", "_max", "_rest")

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self._rest = b""
        self._max = max_frame
        self._broken: str | None = None

    def feed(self, data: Buffer) -> list[Frame]:
        """Take the next bytes of the stream.

        Raises
        ------
        WireError
            At bytes that are no frame, and at every call after that. The frames that were complete before the bad one
            are not given any more: who sends garbage has lost the right to be heard.
        """
        if self._broken is not None:
            raise WireError(self._broken)
        buf = self._rest + bytes(data) if self._rest else bytes(data)
        frames: list[Frame] = []
        pos, end = 0, len(buf)
        while end - pos >= 20:
            size, code, flags, nbuf, channel, meta_len = _HEADER.unpack_from(buf, pos)
            fixed = 20 + 4 * nbuf + meta_len
            kind = _TYPES.get(code)
            if kind is None:
                self._fail(f"no frame type has the number {code}")
            if size > self._max:
                self._fail(f"a frame of {size} bytes is longer than {self._max}")
            if fixed > size:
                self._fail(f"a frame of {size} bytes can't hold its own table and meta of {fixed}")
            if end - pos < size:
                break
            raw = buf[pos : pos + size]
            buffers: list[memoryview] = []
            at = fixed
            if nbuf:
                view = memoryview(raw)
                for (length,) in _U32.iter_unpack(view[20 : 20 + 4 * nbuf]):
                    buffers.append(view[at : at + length])
                    at += length
            if at != size:
                self._fail(f"a frame of {size} bytes has contents of {at}")
            meta_at = 20 + 4 * nbuf
            frames.append(Frame(kind, flags, channel, raw[meta_at : meta_at + meta_len], buffers, raw))  # type: ignore[arg-type]
            pos += size
        self._rest = buf[pos:]
        return frames

    @property
    def pending(self) -> int:
        """How many bytes of an incomplete frame are held."""
        return len(self._rest)

    def _fail(self, reason: str) -> None:
        self._broken = reason
        self._rest = b""
        raise WireError(reason)


# -- logs --------------------------------------------------------------------------------------------------------------


class LogKind(enum.IntEnum):
    """What one entry of a log is."""

    #: Bytes that went to standard output, exactly.
    STDOUT = 1
    #: Bytes that went to standard error, exactly.
    STDERR = 2
    #: A JSON object ``{"data": MIME bundle, "metadata": {}, "transient": {}, "update": bool}``.
    DISPLAY = 3
    #: A line of ours about the call (UTF-8, with its newline): a blocked loop, what was left out.
    NOTICE = 4


_ENTRY = struct.Struct("<BI")
_KINDS = {int(k): k for k in LogKind}


def encode_log(kind: LogKind, data: Buffer) -> bytes:
    """One log entry's bytes."""
    return _ENTRY.pack(kind, len(data)) + data


class LogDecoder:
    """A log's bytes in, ``(kind, data)`` out; text may come in pieces before its entry is complete.

    Entries of bytes (stdout, stderr) are handed on as they come, since nobody needs them whole; displays and notices
    only when complete.

    Examples
    --------
    >>> d = LogDecoder()
    >>> d.feed(encode_log(LogKind.STDOUT, b"hello"))
    [(<LogKind.STDOUT: 1>, b'hello')]
    """

    __slots__ = ("_kind", "_left", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._kind: LogKind | None = None
        self._left = 0

    def feed(self, data: Buffer) -> list[tuple[LogKind, bytes]]:
        """Take the next bytes of the log; `WireError` when they are none."""
        buf = self._rest + bytes(data) if self._rest else bytes(data)
        out: list[tuple[LogKind, bytes]] = []
        pos, end = 0, len(buf)
        while True:
            if self._kind is None:
                if end - pos < 5:
                    break
                code, self._left = _ENTRY.unpack_from(buf, pos)
                if code not in _KINDS:
                    raise WireError(f"no log entry has the number {code}")
                self._kind = _KINDS[code]
                pos += 5
            have = min(self._left, end - pos)
            whole = have == self._left
            if not whole and self._kind in (LogKind.DISPLAY, LogKind.NOTICE):
                break
            if have:
                out.append((self._kind, buf[pos : pos + have]))
                pos += have
                self._left -= have
            if not whole:
                break
            self._kind = None
        self._rest = buf[pos:]
        return out


# -- identities --------------------------------------------------------------------------------------------------------

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUES = {c: i for i, c in enumerate(_CROCKFORD)}
_SEQ_BITS = 40


def _to_ulid(value: int) -> str:
    return "".join(_CROCKFORD[(value >> shift) & 31] for shift in range(125, -5, -5))


def _from_ulid(text: str) -> int:
    if len(text) != 26 or text[0] > "7" or not set(text) <= _VALUES.keys():
        raise ValueError(f"{text!r} is not a ULID")
    value = 0
    for c in text:
        value = value << 5 | _VALUES[c]
    return value


def new_client_id() -> str:
    """A new client's id: a ULID (https://github.com/ulid/spec) whose last 40 bits are zero.

    A call's id is the client's plus its sequence number: identity and public id are one number, nothing needs to be
    made up or sent for a call, and ids of one client sort in the order of its calls. The time in it is the client's
    start, not the call's.
    """
    random = int.from_bytes(os.urandom(5), "big")
    return _to_ulid(int(time.time() * 1000) << 80 | random << _SEQ_BITS)


def call_id(service: str, client: str, seq: int) -> str:
    """The public id of a call: ``service/ulid``.

    Examples
    --------
    >>> call_id("train", "01JD0000000000000800000000", 3)
    'train/01JD0000000000000800000003'
    """
    return f"{service}/{_to_ulid(_from_ulid(client) + seq)}"


def parse_call_id(text: str) -> tuple[str, str, int]:
    """Service, client id and sequence number of a public id.

    Raises
    ------
    ValueError
        When it isn't ``service/ulid``.

    Examples
    --------
    >>> parse_call_id("train/01JD0000000000000800000003")
    ('train', '01JD0000000000000800000000', 3)
    """
    service, slash, ulid = text.rpartition("/")
    if not slash or not service:
        raise ValueError(f"{text!r} is not a call's id; those read service/ULID")
    value = _from_ulid(ulid)
    seq = value & ((1 << _SEQ_BITS) - 1)
    return service, _to_ulid(value - seq), seq


def join_log(entries: Iterable[tuple[LogKind, Buffer]]) -> bytes:
    """Several log entries' bytes."""
    return b"".join(encode_log(kind, data) for kind, data in entries)
