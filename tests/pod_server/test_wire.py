"""The frames: what is encoded comes back, however it is cut; what is no frame is refused, and costs nothing else."""

from __future__ import annotations

import json
import os
import random
import struct
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pod_server import wire
from pod_server.wire import (
    F_BULK,
    F_ENTRY,
    F_ERROR,
    MAX_FRAME,
    Decoder,
    Frame,
    FrameType,
    LogDecoder,
    LogKind,
    WireError,
    call_id,
    encode,
    encode_log,
    join_log,
    new_client_id,
    parse_call_id,
)

EXAMPLES = int(os.environ.get("KT_FUZZ_EXAMPLES", "100000"))


def same(frame: Frame, type: FrameType, channel: int, meta: dict[str, Any], buffers: list[bytes], flags: int) -> bool:
    return (frame.type, frame.channel, frame.meta, [bytes(b) for b in frame.buffers], frame.flags) == (
        type,
        channel,
        meta,
        buffers,
        flags,
    )


frames = st.tuples(
    st.sampled_from(list(FrameType)),
    st.integers(0, 2**64 - 1),
    st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=20), max_size=4),
    st.lists(st.binary(max_size=200), max_size=5),
    st.sampled_from([0, F_ERROR, F_BULK, F_ENTRY]),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(frames, max_size=6), st.randoms(use_true_random=False))
def test_comes_back_however_it_is_cut(sent: list[Any], rng: random.Random) -> None:
    data = b"".join(encode(t, c, m, b, f) for t, c, m, b, f in sent)
    decoder = Decoder()
    got: list[Frame] = []
    while data:
        n = rng.randint(1, 300)
        got += decoder.feed(data[:n])
        assert decoder.pending < MAX_FRAME
        data = data[n:]
    assert decoder.pending == 0
    assert len(got) == len(sent)
    assert all(same(frame, *expected) for frame, expected in zip(got, sent, strict=True))
    assert b"".join(f.raw for f in got) == b"".join(encode(t, c, m, b, f) for t, c, m, b, f in sent)


def test_kinds_of_buffers() -> None:
    array = memoryview(bytearray(16)).cast("I")
    [frame] = Decoder().feed(bytearray(encode(FrameType.CALL, 1, None, [b"a", bytearray(b"bc"), array])))
    assert [len(b) for b in frame.buffers] == [1, 2, 16]
    assert frame.meta == {}
    [frame] = Decoder().feed(memoryview(encode(FrameType.CALL, 1, None, [array])))
    assert len(frame.buffers[0]) == 16


def test_too_long() -> None:
    room = MAX_FRAME - 20 - 4
    assert len(encode(FrameType.LOG, 1, None, [bytes(room)])) == MAX_FRAME
    with pytest.raises(WireError, match="longer"):
        encode(FrameType.LOG, 1, None, [bytes(room + 1)])
    with pytest.raises(WireError, match="longer"):
        encode(FrameType.LOG, 1, {"a": "x" * MAX_FRAME})
    with pytest.raises(WireError, match="longer"):
        encode(FrameType.LOG, 1, None, [b""] * 70_000)
    [frame] = Decoder().feed(encode(FrameType.LOG, 1, None, [b""] * 16_000))
    assert len(frame.buffers) == 16_000


HEADER = struct.Struct("<IBBHQI")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (HEADER.pack(20, 99, 0, 0, 1, 0), "no frame type"),
        (HEADER.pack(MAX_FRAME + 1, 10, 0, 0, 1, 0), "longer than"),
        (HEADER.pack(19, 10, 0, 0, 1, 0), "can't hold"),
        (HEADER.pack(0, 10, 0, 0, 1, 0), "can't hold"),
        (HEADER.pack(20, 10, 0, 1, 1, 0), "can't hold"),
        (HEADER.pack(20, 10, 0, 0, 1, 1), "can't hold"),
        (HEADER.pack(20, 10, 0, 0, 1, 2**32 - 1), "can't hold"),
        (HEADER.pack(21, 10, 0, 0, 1, 0) + b"x", "contents of"),
        (HEADER.pack(24, 10, 0, 1, 1, 0) + b"\xff" * 4, "contents of"),
    ],
)
def test_what_is_no_frame(data: bytes, reason: str) -> None:
    decoder = Decoder()
    good = encode(FrameType.PING)
    with pytest.raises(WireError, match=reason):
        decoder.feed(good + data)
    assert decoder.pending == 0
    # And it stays broken.
    with pytest.raises(WireError, match=reason):
        decoder.feed(good)


@pytest.mark.parametrize("meta", [b"[1]", b"{", b"\xff", b"1", b"[" * 60_000, b'{"a":' * 9000])
def test_meta_that_is_no_object(meta: bytes) -> None:
    size = 20 + len(meta)
    [frame] = Decoder().feed(HEADER.pack(size, 10, 0, 0, 1, len(meta)) + meta)
    with pytest.raises(WireError, match="not"):
        _ = frame.meta


def test_meta_that_is_deep_or_wide() -> None:
    def nested(depth: int) -> dict[str, Any]:
        value: Any = 1
        for i in range(depth):
            value = [value] if i % 2 else {"a": value}
        return {"x": value}

    wide = {"rows": [[i] for i in range(500)]}
    [frame] = Decoder().feed(encode(FrameType.CALL, 1, wide))
    assert frame.meta == wide
    [frame] = Decoder().feed(encode(FrameType.CALL, 1, nested(98)))
    assert frame.meta == nested(98)
    [frame] = Decoder().feed(encode(FrameType.CALL, 1, nested(150)))
    with pytest.raises(WireError, match="deeper"):
        _ = frame.meta


def test_on_channel() -> None:
    [frame] = Decoder().feed(encode(FrameType.CALL, 3, {"f": "x"}, [b"abc"], F_ERROR))
    assert frame.on_channel(2**40) == encode(FrameType.CALL, 2**40, {"f": "x"}, [b"abc"], F_ERROR)


# -- logs --------------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from(list(LogKind)), st.binary(max_size=300)), max_size=8),
    st.randoms(use_true_random=False),
)
def test_log_comes_back(entries: list[tuple[LogKind, bytes]], rng: random.Random) -> None:
    data = join_log(entries)
    assert data == b"".join(encode_log(k, d) for k, d in entries)
    decoder = LogDecoder()
    got: list[tuple[LogKind, bytes]] = []
    while data:
        n = rng.randint(1, 50)
        got += decoder.feed(bytearray(data[:n]))
        data = data[n:]

    def text(items: list[tuple[LogKind, bytes]]) -> list[tuple[LogKind, bytes]]:
        """Bytes of one kind in a row are one piece; displays and notices come whole."""
        out: list[tuple[LogKind, bytes]] = []
        for kind, data in items:
            if not data:
                continue
            if out and out[-1][0] == kind and kind in (LogKind.STDOUT, LogKind.STDERR):
                out[-1] = (kind, out[-1][1] + data)
            else:
                out.append((kind, data))
        return out

    assert text(got) == text(entries)


def test_log_of_no_kind() -> None:
    with pytest.raises(WireError, match="no log entry"):
        LogDecoder().feed(b"\x09\x00\x00\x00\x00")


# -- identities --------------------------------------------------------------------------------------------------------


def test_ids() -> None:
    client = new_client_id()
    assert parse_call_id(call_id("svc", client, 77)) == ("svc", client, 77)
    assert call_id("svc", client, 1) < call_id("svc", client, 2) < call_id("svc", client, 2**39)
    assert len({new_client_id() for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "svc",
        "/01JD0000000000000800000003",
        "svc/",
        "svc/x",
        "svc/8" + "0" * 25,
        "svc/" + "0" * 25,
        "svc/" + "U" * 26,
        "svc/" + "0" * 27,
    ],
)
def test_bad_ids(text: str) -> None:
    with pytest.raises(ValueError, match="call's id|ULID"):
        parse_call_id(text)


# -- fuzzing -----------------------------------------------------------------------------------------------------------


def recorded() -> list[bytes]:
    """The frames of a session as a client and a pod exchange them."""
    client = new_client_id()
    log = join_log([(LogKind.STDOUT, b"epoch 1\n"), (LogKind.DISPLAY, json.dumps({"data": {}}).encode())])
    return [
        encode(FrameType.HELLO, 0, {"protocol": wire.PROTOCOL, "client": client, "pid": 1, "host": "h"}),
        encode(FrameType.WELCOME, 0, {"protocol": wire.PROTOCOL, "incarnation": "i", "high_water": 0, "code": None}),
        encode(FrameType.LOAD, 1, {"version": "v", "worker": "w", "kind": "fn"}, [b"header", b"{}", b"", b"x" * 300]),
        encode(FrameType.LOG, 1, {"o": 0}, [log], F_ENTRY),
        encode(FrameType.RESULT, 1, {"version": "v"}),
        encode(FrameType.CALL, 2, {"f": "run", "timeout": 3, "gen": 4}, [b"pickle", b"array" * 20]),
        encode(FrameType.ITEM, 2, {"i": 0}, [b"item"]),
        encode(FrameType.CREDIT, 2, {"n": 1}),
        encode(FrameType.CANCEL, 2, {"reason": "user"}),
        encode(FrameType.RESULT, 2, {"error": {"type": "user", "message": "m"}}, [b"exception"], F_ERROR),
        encode(FrameType.CALL, 3, {"lens": [1 << 20]}, (), F_BULK),
        encode(FrameType.ACK, 2),
        encode(FrameType.RESUME, 3, {"log": 17, "item": 2, "credit": 3}),
        encode(FrameType.REQUEST, 1, {"op": "calls"}),
        encode(FrameType.RESPONSE, 1, {"calls": []}),
        encode(FrameType.EVENT, 0, {"event": "worker-died"}),
        encode(FrameType.PING, 0, {"t": 1.5}),
        encode(FrameType.GOODBYE, 0, {"reason": "done"}),
    ]


EDGES = (0, 1, 19, 20, 21, 0x7F, 0x80, 0xFF, 0xFFFF, MAX_FRAME, MAX_FRAME + 1, 2**31, 2**32 - 1)


def mutate(rng: random.Random, session: list[bytes]) -> bytes:
    part = session[rng.randrange(len(session)) :][: rng.randint(1, 4)]
    how = rng.randrange(6)
    if how == 0:
        rng.shuffle(part)
    data = bytearray(b"".join(part))
    if how == 1:
        del data[rng.randrange(len(data)) :]
    elif how == 2:
        at = rng.randrange(len(data))
        del data[at : at + rng.randint(1, 30)]
    elif how == 3:
        at = rng.randrange(len(data))
        data[at:at] = rng.randbytes(rng.choice([1, 4, 30]))
    elif how == 4:
        # A length or a count of the header says something else.
        at, size = rng.choice([(0, 4), (6, 2), (16, 4), (20, 4)])
        data[at : at + size] = (rng.choice(EDGES) & (256**size - 1)).to_bytes(size, "little")
    else:
        for _ in range(rng.randint(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def check(rng: random.Random, data: bytes) -> bool:
    """Feed it whole and in pieces: both give the same; whether it was refused."""
    outcomes = []
    for size in (len(data) or 1, rng.randint(1, 64)):
        decoder = Decoder()
        got: list[Frame] = []
        refused = False
        try:
            for i in range(0, len(data), size):
                got += decoder.feed(data[i : i + size])
                assert decoder.pending < MAX_FRAME
        except WireError:
            refused = True
            assert decoder.pending == 0
        outcomes.append((refused, got))
    (refused, whole), (also, pieces) = outcomes
    assert refused == also
    if not refused:
        assert [f.raw for f in whole] == [f.raw for f in pieces]
    for frame in pieces:
        assert len(frame.raw) <= MAX_FRAME
        assert sum(map(len, frame.buffers)) <= len(frame.raw)
        try:
            assert isinstance(frame.meta, dict)
        except WireError:
            pass  # its meta isn't an object: who wants it is told so
        if frame.type is FrameType.LOG and frame.buffers:
            try:
                LogDecoder().feed(frame.buffers[0])
            except WireError:
                pass  # no log
    return refused


def test_fuzz_mutated_sessions() -> None:
    rng = random.Random(2026)
    session = recorded()
    begin = time.monotonic()
    refused = sum(check(rng, mutate(rng, session)) for _ in range(EXAMPLES))
    took = time.monotonic() - begin
    print(f"{EXAMPLES} inputs in {took:.1f} s, {refused} refused")
    assert EXAMPLES / 20 < refused < EXAMPLES


def test_fuzz_random_bytes() -> None:
    rng = random.Random(7)
    for _ in range(EXAMPLES // 10):
        check(rng, rng.randbytes(rng.randrange(200)))


def test_a_decoder_holds_one_frame_at_most() -> None:
    decoder = Decoder()
    head = HEADER.pack(MAX_FRAME, 10, 0, 0, 1, 0)
    decoder.feed(head)
    for _ in range(100):
        assert decoder.feed(b"x" * 600) == []
    assert decoder.pending < MAX_FRAME
    with pytest.raises(WireError):
        decoder.feed(b"x" * MAX_FRAME)
