"""Sessions that no client of ours would hold: a recorded valid one, cut, bent and lied about in many ways.

An `Attack` is plain bytes and can be printed, kept and held again. Everything is made from one seed.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pod_server import wire
from pod_server.wire import Frame, FrameType
from tests.faults.connections import Attack, message, requests, upgrade, websockets

__all__ = ["Mutator", "raw_frame"]

#: Values that no field of a meta means.
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    -(2**63),
    2**63,
    2**64,
    10**30,
    10**300,
    -0.5,
    1.5,
    1e17,
    float("inf"),
    float("-inf"),
    float("nan"),
    "",
    "x" * 5000,
    "\x00",
    "\ud800",
    "../../etc/passwd",
    [],
    [[]],
    [1, "2", None],
    {},
    {"a": {"b": []}},
)
#: What a meta can be instead of a JSON object.
BAD_META = (
    b"[]",
    b"null",
    b"-1",
    b'"x"',
    b"{",
    b"\xff\xfe",
    b'{"n": \xc3\x28}',
    b"{}{}",
    b"\x00",
    b"[" * 30_000,
    b'{"a":' * 9_000,
    b'{"n":' + b"9" * 20_000 + b"}",
)
_CLIENT_TYPES = (
    FrameType.HELLO,
    FrameType.GOODBYE,
    FrameType.PING,
    FrameType.PONG,
    FrameType.CALL,
    FrameType.RESUME,
    FrameType.CANCEL,
    FrameType.CREDIT,
    FrameType.ACK,
    FrameType.REQUEST,
)
_OTHERS = tuple(t for t in FrameType if t not in _CLIENT_TYPES and t is not FrameType.LOAD)
_CHANNELS = (0, 1, 2, 3, 7, 1000, 2**40 - 1, 2**40, 2**63, 2**64 - 1)


# -- mutations ---------------------------------------------------------------------------------------------------------


def raw_frame(kind: int, flags: int, channel: int, meta: bytes, buffers: Sequence[bytes] = (), **lies: int) -> bytes:
    """A frame's bytes as `wire.encode` makes them, but of anything, and with other numbers in its header if told."""
    table = b"".join(struct.pack("<I", len(b)) for b in buffers)
    size = 20 + len(table) + len(meta) + sum(map(len, buffers))
    said = {"size": size, "nbuf": len(buffers), "nmeta": len(meta), **lies}
    head = struct.pack("<IBBHQI", said["size"] & 0xFFFFFFFF, kind, flags, said["nbuf"], channel, said["nmeta"])
    return head + table + meta + b"".join(buffers)


def _json(meta: dict[str, Any]) -> bytes:
    return json.dumps(meta).encode()


class Mutator:
    """Makes attacks from recorded frames.

    Parameters
    ----------
    seed
        The same seed makes the same attacks.
    recorded
        The frames of a valid session, HELLO first.
    foreign
        Ids of calls of other clients.
    """

    def __init__(self, seed: int, recorded: Sequence[Frame], foreign: Sequence[str]) -> None:
        self.random = random.Random(seed)
        self._seed = seed % (1 << 32)
        [self._hello] = [f for f in recorded if f.type is FrameType.HELLO]
        self._load = next(f for f in recorded if f.type is FrameType.LOAD)
        self._frames = [f for f in recorded if f.type not in (FrameType.HELLO, FrameType.LOAD)]
        self._foreign = list(foreign)
        self._number = 0
        bent: list[tuple[Callable[[], Attack], int]] = [
            (self._bytes_bent, 30),
            (self._frames_moved, 18),
            (self._frames_bent, 24),
            (self._frames_lie, 8),
            (self._greeting, 6),
            (self._others_calls, 5),
            (self._numbers, 5),
            (self._requests, 3),
            (lambda: websockets(self.random, self.hello()), 4),
            (lambda: requests(self.random), 5),
            (self._load_bent, 1),
        ]
        self._makers = [make for make, weight in bent for _ in range(weight)]

    def attacks(self, n: int) -> Iterator[Attack]:
        """So many of them."""
        for _ in range(n):
            yield self.random.choice(self._makers)()

    # -- pieces --------------------------------------------------------------------------------------------------------

    def client(self) -> str:
        """A client id that nobody has."""
        self._number += 1
        # Far apart: a flipped bit in one must not make another.
        scattered = self._number * 0x9E3779B97F4A7C15 % (1 << 36)
        return wire._to_ulid((1 << 120) | (self._seed << 84) | (scattered << 48))

    def hello(self, client: str | None = None, **changed: Any) -> bytes:
        """A valid HELLO, or one with other fields."""
        meta = {**self._hello.meta, "client": client or self.client(), **changed}
        return raw_frame(FrameType.HELLO, 0, 0, _json(meta))

    def slice(self, most: int = 8) -> list[Frame]:
        """Some of the recorded frames, in order."""
        n = self.random.randint(1, most)
        start = self.random.randrange(max(len(self._frames) - n, 1))
        return self._frames[start : start + n]

    def session(self, what: str, frames: Sequence[bytes], end: str | None = None, **options: Any) -> Attack:
        """An attack of these frames, joined and cut into messages somehow."""
        r = self.random
        stream = b"".join(frames)
        if r.random() < 0.5:
            parts = list(frames)
        else:
            cuts = sorted(r.randrange(len(stream) + 1) for _ in range(r.randrange(4)))
            parts = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        decoder = wire.Decoder()
        try:
            for part in parts:
                decoder.feed(part)
        except wire.WireError:
            pending = 0
        else:
            pending = decoder.pending
        if end is None:
            # What is incomplete the front waits for: then it is we who end it.
            end = r.choice(("fin", "leave", "reset")) if pending or r.random() < 0.2 else "wait"
        return Attack(what, (upgrade(), *(message(part) for part in parts)), end, **options)

    def hostile(self) -> Any:
        """One of the values that nobody expects."""
        if self.random.random() < 0.1:
            value: Any = []
            for _ in range(self.random.choice((50, 500, 900, 960, 980, 990, 2000, 5000))):
                value = _Nested(value)
            return value
        return self.random.choice(HOSTILE)

    def _raw_meta(self, meta: dict[str, Any]) -> bytes:
        """A meta as JSON; what is nested too deeply for `json` is written by hand."""
        parts = []
        for key, value in meta.items():
            text = b"[" * value.depth + b"]" * value.depth if isinstance(value, _Nested) else json.dumps(value).encode()
            parts.append(json.dumps(key).encode() + b":" + text)
        return b"{" + b",".join(parts) + b"}"

    # -- kinds ---------------------------------------------------------------------------------------------------------

    def _bytes_bent(self) -> Attack:
        """Truncated, flipped, with something too much, with something missing, two spliced."""
        r = self.random
        data = bytearray(self.hello() + b"".join(f.raw for f in self.slice()))
        what = r.choice(("truncated", "flipped", "inserted", "deleted", "overwritten", "spliced", "garbage"))
        at = r.randrange(len(data))
        if what == "truncated":
            del data[at:]
        elif what == "flipped":
            for _ in range(r.choice((1, 1, 2, 8))):
                data[r.randrange(len(data))] ^= 1 << r.randrange(8)
        elif what == "inserted":
            data[at:at] = r.randbytes(r.randint(1, 40))
        elif what == "deleted":
            del data[at : at + r.randint(1, 40)]
        elif what == "overwritten":
            data[at : at + 8] = r.randbytes(8)
        elif what == "spliced":
            data[at:] = b"".join(f.raw for f in self.slice())[r.randrange(20) :]
        else:
            data[at:] = r.randbytes(r.choice((1, 19, 20, 21, 500)))
        return self.session(f"bytes {what} at {at}", [bytes(data)])

    def _frames_moved(self) -> Attack:
        """Whole frames, in another order, again, or not at all."""
        r = self.random
        frames = [f.raw for f in self.slice(12)]
        what = r.choice(("shuffled", "reversed", "doubled", "dropped", "no HELLO", "replayed", "late HELLO"))
        if what == "shuffled":
            r.shuffle(frames)
        elif what == "reversed":
            frames.reverse()
        elif what == "doubled":
            frames = [f for f in frames for _ in range(r.choice((1, 2, 3)))]
        elif what == "dropped":
            frames = [f for f in frames if r.random() < 0.6]
        elif what == "replayed":
            frames = frames * r.randint(2, 5)
        if what == "late HELLO":
            frames.insert(r.randrange(1, len(frames) + 1), self.hello())
        elif what != "no HELLO":
            frames.insert(0, self.hello())
        return self.session(f"frames {what}", frames)

    def _frames_bent(self) -> Attack:
        """One frame with another type, channel, flags, or fields that make no sense."""
        r = self.random
        frames = self.slice(6)
        at = r.randrange(len(frames))
        f = frames[at]
        kind, flags, channel, meta = f.type, f.flags, f.channel, dict(f.meta)
        buffers = [bytes(b) for b in f.buffers]
        what = r.choice(("type", "channel", "flags", "meta", "field", "field", "field", "missing field", "buffers"))
        raw = None
        if what == "type":
            kind = r.choice(_OTHERS if r.random() < 0.6 else _CLIENT_TYPES)
        elif what == "channel":
            channel = r.choice(_CHANNELS)
        elif what == "flags":
            flags = r.randrange(256)
        elif what == "meta":
            raw = r.choice(BAD_META)
        elif what == "field":
            fields = (
                "f",
                "mode",
                "ser",
                "timeout",
                "log",
                "gen",
                "lens",
                "item",
                "credit",
                "n",
                "id",
                "log_only",
                "op",
            )
            for _ in range(r.choice((1, 1, 3))):
                meta[r.choice(sorted(meta.keys() | set(fields)))] = self.hostile()
            if meta.get("op") in ("teardown", "restart", "adopt"):
                del meta["op"]
        elif what == "missing field":
            meta.pop(r.choice(sorted(meta)), None) if meta else None
        else:
            buffers = [r.randbytes(r.choice((0, 1, 100))) for _ in range(r.choice((0, 1, 2, 200)))]
        raw = self._raw_meta(meta) if raw is None else raw
        out = [self.hello(), *(g.raw for g in frames)]
        out[at + 1] = raw_frame(kind, flags, channel, raw, buffers)
        return self.session(f"{f.type.name} with another {what}", out)

    def _frames_lie(self) -> Attack:
        """A header that says something else than what follows; frames that are too long."""
        r = self.random
        f = r.choice(self._frames)
        big = r.choice((0, 19, 21, 65_536, 65_537, 2**31, 2**32 - 1))
        lie = r.choice(("size", "nbuf", "nmeta", "long", "table"))
        buffers = [bytes(b) for b in f.buffers]
        if lie == "long":
            raw = raw_frame(f.type, f.flags, f.channel, b"{}", [b"x" * r.choice((65_500, 65_515, 65_516, 200_000))])
        elif lie == "table":
            raw = raw_frame(f.type, f.flags, f.channel, f.meta_raw, [b"abcd"] * 3)
            raw = raw[:20] + struct.pack("<3I", 2**32 - 1, 2**32 - 1, 10) + raw[32:]
        else:
            value = min(big, 65_535) if lie == "nbuf" else big
            raw = raw_frame(f.type, f.flags, f.channel, f.meta_raw, buffers, **{lie: value})
        return self.session(f"{f.type.name} lies about its {lie}", [self.hello(), raw])

    def _greeting(self) -> Attack:
        """HELLOs: twice, hostile, with a foreign or broken id."""
        r = self.random
        what = r.choice(("twice", "field", "id", "protocol", "of another", "own id again"))
        rest = [f.raw for f in self.slice(3)]
        if what == "twice":
            hello = self.hello()
            return self.session("HELLO twice", [hello, hello, *rest])
        if what == "field":
            key = r.choice(("user", "host", "pid", "notebook", "python", "cloudpickle", "protocol", "client"))
            meta = {**self._hello.meta, "client": self.client(), key: self.hostile()}
            return self.session(f"HELLO with another {key}", [raw_frame(1, 0, 0, self._raw_meta(meta)), *rest])
        if what == "id":
            wrong = r.choice(("", "0" * 26, "Z" * 26, "01JD0000000000000800000001", "x", "é" * 26, "7" * 25, "8" * 26))
            return self.session("HELLO with a bad id", [self.hello(wrong or " "), *rest])
        if what == "protocol":
            return self.session("HELLO of another protocol", [self.hello(protocol=r.choice((0, 2, "1", 1.5))), *rest])
        if what == "of another":
            return self.session(
                "HELLO of a worker", [raw_frame(1, 0, 0, b'{"role":"worker","worker":1,"pid":1}'), *rest]
            )
        taken = wire._to_ulid((1 << 121) | (r.randrange(8) << 48))
        return self.session("HELLO with an id in use", [self.hello(taken), *rest], kicked=True)

    def _others_calls(self) -> Attack:
        """RESUME, ACK and CREDIT for calls of others, or of nobody."""
        r = self.random
        known = [*self._foreign, "x/01JD0000000000000800000003", "", "/", "fuzzed/", "fuzzed/" + "Z" * 26, "a" * 3000]
        frames = [self.hello()]
        for _ in range(r.randint(1, 6)):
            channel = r.choice(_CHANNELS[1:7])
            meta: dict[str, Any] = {"log": r.choice((0, 5, 10**15)), "item": r.choice((0, 3, 10**15))}
            meta["credit"] = r.choice((0, 1, 10**15))
            meta["log_only"] = r.random() < 0.5
            if r.random() < 0.8:
                meta["id"] = r.choice(known)
            frames.append(raw_frame(FrameType.RESUME, 0, channel, _json(meta)))
            if r.random() < 0.6:
                kind = r.choice((FrameType.ACK, FrameType.CREDIT))
                frames.append(raw_frame(kind, 0, channel, b'{"n":3}' if kind is FrameType.CREDIT else b""))
        return self.session("RESUME of others' calls", frames)

    def _numbers(self) -> Attack:
        """CREDITs and sequence numbers that are too large, negative, or go backwards."""
        r = self.random
        calls = [f for f in self._frames if f.type is FrameType.CALL]
        frames = [self.hello()]
        what = r.choice(("backwards", "credit", "unknown"))
        if what == "backwards":
            for channel in sorted((r.randint(1, 50) for _ in range(6)), reverse=True):
                frames.append(r.choice(calls).on_channel(channel))
        elif what == "credit":
            call = next(f for f in calls if f.meta.get("gen"))
            frames.append(call.on_channel(1))
            for _ in range(r.randint(1, 8)):
                n = r.choice((0, 1, 10**9, 10**17, 10**18, -1, 2.5, "1", None, [1], float("inf"), float("nan")))
                frames.append(raw_frame(FrameType.CREDIT, 0, r.choice((1, 1, 1, 9)), self._raw_meta({"n": n})))
        else:
            for _ in range(r.randint(1, 20)):
                kind = r.choice((FrameType.ACK, FrameType.CREDIT, FrameType.CANCEL, FrameType.RESUME))
                frames.append(raw_frame(kind, 0, r.randint(1, 10**6), b""))
        return self.session(f"numbers: {what}", frames)

    def _requests(self) -> Attack:
        """REQUESTs with operations and fields that make no sense. Those that would end the pod are anybody's right."""
        r = self.random
        frames = [self.hello()]
        for _ in range(r.randint(1, 6)):
            op = r.choice(
                ("calls", "events", "service_log", "status", "touch", "adopt", "x" * 60_000, "Status", None, 7)
            )
            meta: dict[str, Any] = {"op": op, r.choice(("skip", "after", "tail")): self.hostile()}
            if op == "adopt":
                meta["pid"] = r.choice((0, -1, 2**31, 2**63, 2**64, 10**30, "1", None, [1], True, 1.5))
                meta["start"] = r.choice((None, 0, -1, 10**30, "x"))
            frames.append(raw_frame(FrameType.REQUEST, 0, r.randrange(2**40), self._raw_meta(meta)))
        return self.session("REQUESTs", frames)

    def _load_bent(self) -> Attack:
        """Code that isn't any, and LOADs whose fields make no sense; what would be a valid deploy is left alone."""
        r = self.random
        meta: dict[str, Any] = {**self._load.meta, "version": f"v{r.random()}"}
        buffers = [bytes(b) for b in self._load.buffers]
        what = r.choice(("garbage", "garbage", "buffers", "limits", "limits", "place", "other worker", "lens", "text"))
        flags = 0
        if what == "garbage":
            buffers = [r.randbytes(len(b)) for b in buffers]
        elif what == "buffers":
            buffers = buffers[: r.randrange(len(buffers))]
        elif what == "limits":
            key = r.choice(("memory_limit", "ttl", "concurrency", "threads"))
            meta[key] = r.choice(("x", [], {}, -1, float("inf"), float("nan"), 10**400))
        elif what == "place":
            meta["worker"] = f"w{r.random()}"
            key = r.choice(("env", "cwd", "sys_path", "threads"))
            meta[key] = r.choice((5.5, "\0", [1], {"a": 1}, {"A=B": "\0"}, [[]], -1))
        elif what == "other worker":
            meta["worker"] = f"w{r.random()}"
            buffers = [r.randbytes(50) for _ in buffers]
        elif what == "lens":
            flags = wire.F_BULK
            buffers = []
            meta["lens"] = r.choice((None, [-1], ["1"], [2**40], [2**70], [], {}, [1.5]))
        else:
            key = r.choice(("kind", "name", "by", "python", "cloudpickle", "interface", "version", "worker"))
            meta[key] = r.choice(([], {}, 7, True, "x" * 20_000, {"x": ["y" * 20_000]}))
            buffers = [b"" for _ in buffers]
        raw = raw_frame(FrameType.LOAD, flags, r.choice((1, 5)), self._raw_meta(meta), buffers)
        return self.session(f"LOAD: {what}", [self.hello(), raw], "wait")


class _Nested:
    """A list in a list in a list …"""

    def __init__(self, inner: Any) -> None:
        self.depth = inner.depth + 1 if isinstance(inner, _Nested) else 1
