"""Records, logs and their readers, with no process and no socket."""

from __future__ import annotations

import os
import random
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from pod_server.front import logs, records
from pod_server.front.logs import Log
from pod_server.front.records import CHUNK, RING, Client, Record, RecordStore, State, Subscription, on_channel
from pod_server.wire import (
    F_ENTRY,
    F_ERROR,
    Decoder,
    Frame,
    FrameType,
    LogDecoder,
    LogKind,
    encode,
    encode_log,
    new_client_id,
)

# -- logs --------------------------------------------------------------------------------------------------------------


def pieces(rng: random.Random, entry: bytes) -> list[bytes]:
    out = []
    while entry:
        n = rng.randint(1, 60 << 10)
        out.append(entry[:n])
        entry = entry[n:]
    return out


@pytest.mark.parametrize("seed", range(20))
def test_log_against_a_plain_buffer(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    log = Log(str(tmp_path / "1"), rng.choice([1 << 20, 3 << 20, 64 << 20]))
    whole = bytearray()
    entries = set()
    grown = 0
    for _ in range(200):
        entries.add(len(whole))
        entry = encode_log(LogKind.STDOUT, rng.randbytes(rng.choice([0, 5, 100, 60_000, 300_000])))
        for i, piece in enumerate(pieces(rng, entry)):
            grown += log.append(piece, i == 0)
            whole += piece
        if rng.random() < 0.02:
            before = log.size
            log.trim(rng.randint(0, 2 << 20))
            grown += log.size - before
    assert log.end == len(whole)
    assert grown == log.size
    assert log.base in entries
    start = rng.randrange(log.base, log.end)
    for begin in (0, log.base, start):
        offset, got = begin, b""
        while chunk := log.read(offset, rng.randint(1, 100_000)).data:
            got += chunk
            offset = max(offset, log.base) + len(chunk)
        assert got == whole[max(begin, log.base) :]
    assert log.read(log.end, 10) == (log.end, b"", False)
    for size in (0, 10_000, 1 << 20, 5 << 20):
        last = log.last(size)
        assert last in entries
        assert log.end - last >= size or last == log.base
    log.drop()
    assert log.last(10) == log.end
    assert os.listdir(tmp_path) == []


def test_log_stays_in_memory_while_it_is_small(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "1"), 64 << 20)
    for _ in range(100):
        log.append(encode_log(LogKind.STDOUT, b"x" * 1000), True)
    assert os.listdir(tmp_path) == []
    for _ in range(5000):
        log.append(encode_log(LogKind.STDOUT, b"x" * 1000), True)
    assert len(os.listdir(tmp_path)) >= 1


def test_log_keeps_its_limit_in_segments(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "1"), 8 << 20)
    entry = encode_log(LogKind.STDOUT, b"x" * 50_000)
    for _ in range(1000):
        log.append(entry, True)
        assert log.size <= (8 << 20) + logs.MEMORY
    assert log.size > 4 << 20
    assert log.base % len(entry) == 0
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 9 << 20


def test_log_without_a_place_to_cut_is_kept_until_there_is_one(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "1"), 1 << 20)
    log.append(encode_log(LogKind.DISPLAY, b"x" * 100)[:10], True)
    for _ in range(100):
        log.append(b"y" * 50_000, False)
    assert log.base == 0
    begin = log.end
    for _ in range(100):
        log.append(encode_log(LogKind.STDOUT, b"z" * 50_000), True)
    assert log.base >= begin
    assert log.size < 3 << 20


def test_log_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(str(tmp_path / "1"), 64 << 20)
    entry = encode_log(LogKind.STDOUT, b"x" * 50_000)
    for _ in range(30):
        log.append(entry, True)

    def full(self: Any, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logs._Segment, "append", full)
    for _ in range(100):
        log.append(entry, True)
        assert log.size <= 2 << 20
    assert log.base % len(entry) == 0
    assert os.listdir(tmp_path) == []
    assert len(LogDecoder().feed(log.read(0, 4 << 20).data)) == log.size // len(entry)
    # One entry without end: what is in its middle is no use to anybody.
    for _ in range(100):
        log.append(b"y" * 50_000, False)
    assert log.size < 1 << 20
    log.append(entry, True)
    assert log.read(0, 1 << 20) == (log.end - len(entry), entry, True)


def test_a_dropped_log_begins_again_with_an_entry(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "1"), 64 << 20)
    log.append(b"half an entry", True)
    log.drop()
    assert log.append(b"the other half", False) == 0
    assert log.append(b"new", True) == 3
    assert log.read(0, 100) == (27, b"new", True)


# -- records -----------------------------------------------------------------------------------------------------------


class Reader:
    """What a `Subscription` needs of a session."""

    def __init__(self) -> None:
        self.dirty: deque[Subscription] = deque()

    def readable(self, sub: Subscription) -> None:
        self.dirty.append(sub)


def subscribe(record: Record, channel: int = 9, **more: Any) -> Subscription:
    sub = Subscription(Reader(), record, channel, **more)  # type: ignore[arg-type]
    record.subs.append(sub)
    return sub


def pull(sub: Subscription) -> list[Frame]:
    """Everything that it gives now."""
    out: list[bytes] = []
    while sub.pull(out):
        assert all(len(frame) <= 65536 for frame in out)
    sub.queued = False
    return Decoder().feed(b"".join(out))


@pytest.fixture
def removed() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, removed: list[str]) -> RecordStore:
    return RecordStore(str(tmp_path), 32 << 20, 8 << 20, removed.append)


@pytest.fixture
def client() -> Client:
    return Client(new_client_id())


RESULT = encode(FrameType.RESULT, 1, {"v": 1}, [b"value"])
ENTRY = encode_log(LogKind.STDOUT, b"x" * 1000)


def test_log_items_result_in_order(store: RecordStore, client: Client) -> None:
    record = store.add(client, 5, "run")
    sub = subscribe(record, item_limit=10)
    assert pull(sub) == []
    store.append_log(record, ENTRY, True)
    store.add_item(record, encode(FrameType.ITEM, 1, {"i": 0}, [b"a"]), None)
    store.append_log(record, ENTRY * 100, True)
    store.add_item(record, encode(FrameType.ITEM, 1, {"i": 1}, [b"b"]), None)
    store.end(record, RESULT, State.DONE)
    frames = pull(sub)
    assert [f.type.name for f in frames] == ["LOG", "ITEM", "LOG", "LOG", "ITEM", "RESULT"]
    assert all(f.channel == 9 for f in frames)
    assert [f.meta["o"] for f in frames if f.type is FrameType.LOG] == [0, len(ENTRY), len(ENTRY) + CHUNK]
    assert frames[0].flags & F_ENTRY
    assert sub.done
    assert pull(sub) == []


def test_items_wait_for_credit_and_the_result_for_them(store: RecordStore, client: Client) -> None:
    record = store.add(client, 1)
    sub = subscribe(record, item_limit=1)
    for i in range(3):
        store.add_item(record, encode(FrameType.ITEM, 1, {"i": i}), f"file{i}")
    store.end(record, RESULT, State.DONE)
    assert [f.meta["i"] for f in pull(sub)] == [0]
    sub.item_limit = 3
    assert [f.type.name for f in pull(sub)] == ["ITEM", "ITEM", "RESULT"]


def test_dropped_items_and_their_files(store: RecordStore, client: Client, removed: list[str]) -> None:
    record = store.add(client, 1)
    for i in range(4):
        store.add_item(record, encode(FrameType.ITEM, 1, {"i": i}), f"file{i}")
    store.drop_items(record, 2)
    assert removed == ["file0", "file1"]
    late = subscribe(record, item_limit=10)
    assert [f.meta["i"] for f in pull(late)] == [2, 3]
    store.end(record, RESULT, State.DONE, "result")
    store.release(record)
    assert sorted(removed) == ["file0", "file1", "file2", "file3", "result"]


def test_gap_is_told(store: RecordStore, client: Client) -> None:
    record = store.add(client, 1)
    sub = subscribe(record)
    for _ in range(20_000):
        store.append_log(record, ENTRY, True)
    store.end(record, RESULT, State.DONE)
    first, *_, last = pull(sub)
    assert first.meta["gap"] is True
    assert first.meta["o"] % len(ENTRY) == 0
    assert first.flags & F_ENTRY
    assert last.type is FrameType.RESULT


def test_a_log_file_that_is_gone_is_a_gap(store: RecordStore, client: Client, tmp_path: Path) -> None:
    record = store.add(client, 1)
    sub = subscribe(record)
    for _ in range(3000):
        store.append_log(record, ENTRY, True)
    for path in tmp_path.iterdir():
        path.unlink()
    store.end(record, RESULT, State.DONE)
    frames = pull(sub)
    assert frames[0].meta["gap"] is True
    assert frames[-1].type is FrameType.RESULT


def test_released_records_keep_their_log_for_a_while(store: RecordStore, client: Client) -> None:
    record = store.add(client, 1)
    store.append_log(record, ENTRY, True)
    store.end(record, RESULT, State.DONE)
    store.release(record)
    store.release(record)
    assert store.memory == (len(ENTRY), 0)
    frames = pull(subscribe(record, log_only=True))
    assert [f.type.name for f in frames] == ["LOG", "RESULT"]
    assert frames[1].meta == {"log_only": True, "state": "done"}
    frames = pull(subscribe(record))
    assert frames[1].flags & F_ERROR
    assert frames[1].meta["error"]["type"] == "RecordExpiredError"
    for seq in range(2, RING + 2):
        other = store.add(client, seq)
        store.end(other, RESULT, State.DONE)
        store.release(other)
    assert store.by_key.get((client.id, 1)) is None
    assert store.memory == (0, 0)
    assert len(list(store)) == RING


def test_a_log_that_was_not_shown_whole_outlives_the_ring(store: RecordStore, client: Client) -> None:
    record = store.add(client, 1)
    store.append_log(record, ENTRY, True)
    store.end(record, RESULT, State.DONE)
    store.release(record)
    store.keep(record)  # also when somebody else has read the result before
    assert store.memory == (len(ENTRY), 0), "the result goes at once"
    for seq in range(2, RING + 3):
        other = store.add(client, seq)
        store.end(other, RESULT, State.DONE)
        store.release(other)
    assert [f.type.name for f in pull(subscribe(record, log_only=True))] == ["LOG", "RESULT"]
    assert store.by_key[client.id, 1] is record
    store.sweep(time.time() + 3500)
    assert record.keep
    # After an hour it is one of the last, and goes as they do.
    store.sweep(time.time() + 3700)
    store.sweep(time.time() + 3700)
    assert len(list(store)) == RING
    for seq in range(RING + 3, 2 * RING + 3):
        other = store.add(client, seq)
        store.end(other, RESULT, State.DONE)
        store.release(other)
    assert store.by_key.get((client.id, 1)) is None
    assert store.memory == (0, 0)


def test_a_cancelled_call_stays_one(store: RecordStore, client: Client) -> None:
    record = store.add(client, 1)
    record.cancelled = "user"
    store.end(record, RESULT, State.CANCELLED)
    store.release(record)
    [frame] = pull(subscribe(record))
    assert frame.meta["error"] == {"type": "CallCancelledError", "reason": "user"}


def test_acknowledged_before_the_end(store: RecordStore, client: Client) -> None:
    record = store.add(client, 1)
    record.acked = True
    store.end(record, RESULT, State.CANCELLED)
    assert record.released


def test_the_service_budget_takes_from_what_ended_first(store: RecordStore, client: Client) -> None:
    running = store.add(client, 1)
    ended = [store.add(client, seq) for seq in range(2, 10)]
    for record in [running, *ended]:
        for _ in range(6000):
            store.append_log(record, ENTRY, True)
        if record is not running:
            store.end(record, RESULT, State.DONE)
            time.sleep(0.001)
    assert store.memory[0] <= store.budget
    sizes = [r.log.size if r.log else 0 for r in ended]
    assert sizes[0] == 0
    assert sizes[-1] == 6000 * len(ENTRY)
    assert running.log is not None
    assert running.log.size == 6000 * len(ENTRY), "what runs is cut last"
    assert store.memory[0] == sum(sizes) + running.log.size
    # Nothing has ended: then the running ones lose their oldest.
    for record in ended:
        store.forget(record)
    others = [store.add(client, seq) for seq in range(20, 26)]
    for _ in range(7000):
        for record in others:
            store.append_log(record, ENTRY, True)
    assert store.memory[0] <= store.budget


def test_results_beyond_the_budget_go_to_files(
    store: RecordStore, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "RESULTS_IN_MEMORY", 1000)
    kept = []
    for seq in range(1, 30):
        record = store.add(client, seq)
        raw = encode(FrameType.RESULT, 1, {}, [b"%d" % seq * 50])
        store.end(record, raw, State.DONE)
        kept.append((record, raw))
    assert len(list(tmp_path.glob("*.result"))) > 10
    for record, raw in kept:
        [frame] = pull(subscribe(record))
        assert frame.raw == on_channel(raw, 9)
        store.release(record)
    assert list(tmp_path.glob("*.result")) == []
    assert store.memory[1] == 0


def test_sweep(store: RecordStore, client: Client) -> None:
    plain, spawned, running = store.add(client, 1), store.add(client, 2), store.add(client, 3)
    spawned.spawn = True
    client.session = object()  # type: ignore[assignment]
    store.end(plain, RESULT, State.DONE)
    store.end(spawned, RESULT, State.DONE)
    now = time.time()
    store.sweep(now + 3500)
    assert not plain.released
    assert not spawned.released
    store.sweep(now + 3700)
    assert spawned.released
    assert not plain.released, "its client is there and may still come for it"
    client.session = None
    store.sweep(now + 3700)
    assert plain.released
    assert not running.released


def test_a_reader_is_told_once(store: RecordStore, client: Client) -> None:
    record = store.add(client, 1)
    sub = subscribe(record)
    for _ in range(5):
        store.append_log(record, ENTRY, True)
        record.notify()
    assert list(sub.session.dirty) == [sub]  # type: ignore[attr-defined]


def test_on_channel_is_as_encoded_anew() -> None:
    for channel in (0, 1, 255, 1 << 39):
        assert on_channel(RESULT, channel) == encode(FrameType.RESULT, channel, {"v": 1}, [b"value"])
        [frame] = Decoder().feed(RESULT)
        assert frame.on_channel(channel) == on_channel(RESULT, channel)
