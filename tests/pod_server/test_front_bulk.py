"""Payloads beside the session: uploads in any order and twice, ranges, full disks, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import statistics
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pod_server.front.bulk import BulkStore, _range_start
from pod_server.wire import F_BULK, F_ERROR, Frame, FrameType

from .podtools import TOKEN, Client, Front, Worker, Zygote, played, until_async

Scenario = Callable[[Front, Zygote, Client], Coroutine[Any, Any, None]]
HEADERS = {"X-Kubetorch-Token": TOKEN}
MIB = 1 << 20


def play(scenario: Scenario, **params: Any) -> None:
    async def run(front: Front) -> None:
        async with played(front) as (zygote, client):
            await asyncio.wait_for(scenario(front, zygote, client), 60)

    with Front(**params) as front:
        asyncio.run(run(front))


def files(front: Front) -> list[str]:
    return [*os.listdir(os.path.join(front.dir, "bulk")), *os.listdir(os.path.join(front.dir, "spill"))]


def place(front: Front, name: str, data: bytes) -> None:
    """Write a file as a worker does."""
    Path(front.bulk, name).write_bytes(data)


def put(front: Front, client: str, channel: int, data: bytes, *, announce: int | None = None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=20)
    try:
        headers = {**HEADERS, "Content-Length": str(len(data) if announce is None else announce)}
        connection.request("PUT", f"/bulk/up/{client}/{channel}", body=data, headers=headers)
        if announce is not None:
            return 0  # break it off in the middle
        return connection.getresponse().status
    finally:
        connection.close()


def get(front: Front, name: str, range: str | None = None) -> tuple[int, bytes, str | None]:
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=20)
    try:
        headers = {**HEADERS, "Range": range} if range else HEADERS
        connection.request("GET", f"/bulk/down/{name}", headers=headers)
        response = connection.getresponse()
        return response.status, response.read(), response.headers["Content-Range"]
    finally:
        connection.close()


def total(data: bytes) -> bytes:
    return b"%d" % (sum(data) & 0xFFFFFFFF)


@pytest.mark.parametrize("first", ["frame", "upload"])
@pytest.mark.parametrize("where", [None, "disk"])
def test_upload(first: str, where: str | None, tmp_path: Any) -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        for size in (0, 100_000, 5 * MIB + 7):
            data = os.urandom(size)
            seq = client.seq + 1
            lens = [size // 3, 0, size - size // 3]
            if first == "frame":
                await client.call("sum", flags=F_BULK, lens=lens)
                status = await asyncio.to_thread(put, front, client.id, seq, data)
            else:
                upload = asyncio.create_task(asyncio.to_thread(put, front, client.id, seq, data))
                await asyncio.sleep(0.1)
                await client.call("sum", flags=F_BULK, lens=lens)
                status = await upload
            assert status == 204
            assert await client.value(seq) == total(data)
        await client.request("status")
        assert files(front) == []

    play(scenario, bulk_dir=str(tmp_path / "bulk") if where else None)


def test_uploads_that_nobody_waits_for() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        seq = await client.call("sum", flags=F_BULK, lens=[10])
        assert await asyncio.to_thread(put, front, client.id, seq, b"0123456789") == 204
        await client.value(seq)
        uploads = [
            asyncio.to_thread(put, front, client.id, seq, b"0123456789"),
            asyncio.to_thread(put, front, "somebody", 5, b"x" * MIB),
        ]
        assert await asyncio.gather(*uploads) == [409, 409]
        assert files(front) == []
        assert len(zygote.last.named(FrameType.CALL)) == 1

    play(scenario)


def test_upload_of_the_wrong_length() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        for size in (5, 20, 3 * MIB):
            seq = await client.call("sum", flags=F_BULK, lens=[10])
            status = await asyncio.to_thread(put, front, client.id, seq, b"x" * size)
            assert status == 400
            assert (await client.error(seq))["type"] == "SerializationError"
        assert files(front) == []

    play(scenario)


def test_broken_upload_is_sent_again() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        data = os.urandom(2 * MIB)
        seq = await client.call("sum", flags=F_BULK, lens=[len(data)])
        for part in (0, 1000, MIB):
            await asyncio.to_thread(put, front, client.id, seq, data[:part], announce=len(data))
        await until_async(lambda: files(front) == [])
        # A connection that hangs in the middle is overtaken by the next one.
        hole = http.client.HTTPConnection("127.0.0.1", front.port, timeout=20)
        hole.putrequest("PUT", f"/bulk/up/{client.id}/{seq}")
        for key, value in {**HEADERS, "Content-Length": str(len(data))}.items():
            hole.putheader(key, value)
        hole.endheaders(data[:MIB])
        await until_async(lambda: len(files(front)) == 1)
        assert await asyncio.to_thread(put, front, client.id, seq, data) == 204
        assert await client.value(seq) == total(data)
        with contextlib.suppress(ConnectionError):
            hole.send(data[MIB:])
            assert hole.getresponse().status == 409
        hole.close()
        await client.request("status")
        assert files(front) == []

    play(scenario)


def test_cancel_and_timeout_of_an_upload() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        seq = await client.call("sum", flags=F_BULK, lens=[10], timeout=0.1)
        assert (await client.error(seq))["type"] == "CallTimeoutError"
        seq = await client.call("sum", flags=F_BULK, lens=[10])
        await client.send(FrameType.CANCEL, seq, {"reason": "user"})
        assert (await client.error(seq))["type"] == "CallCancelledError"
        assert not zygote.last.named(FrameType.CALL)

    play(scenario)


def test_too_large() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        seq = await client.call("sum", flags=F_BULK, lens=[1 << 31, 1 << 31])
        error = await client.error(seq)
        assert error["type"] == "PayloadTooLargeError"
        assert await client.run("echo", b"x") == b"x"

    play(scenario)


def test_bulk_load_is_kept_for_the_next_worker() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        bundle = os.urandom(MIB)
        got: list[bytes] = []

        def load(worker: Any, frame: Any) -> None:
            path = os.path.join(front.dir, "bulk", frame.meta["file"])
            with open(path, "rb") as f:
                got.append(f.read())
            os.unlink(path)
            worker.loaded(frame)

        zygote.on_load = load
        client.seq += 1
        meta = {"version": "v2", "worker": "w1", "kind": "fn", "lens": [1000, MIB - 1000]}
        await client.send(FrameType.LOAD, client.seq, meta, (), F_BULK)
        assert await asyncio.to_thread(put, front, client.id, client.seq, bundle) == 204
        await client.value(client.seq)
        for i in range(2):
            await zygote.last.die(9)
            await client.until(lambda i=i: len([e for e in client.events if e["event"] == "worker-ready"]) == i + 1)
        assert got == [bundle] * 3
        assert len(files(front)) == 1
        # Newer code takes its place, its file goes.
        zygote.on_load = lambda worker, frame: worker.loaded(frame)
        await client.value(await client.load("v3"))
        assert files(front) == []

    play(scenario)


def test_code_that_cannot_be_handed_on_fails_its_load_only() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        # The file of the first worker's bundle goes, behind the front's back: there is nothing for the next one.
        def load(worker: Worker, frame: Frame) -> None:
            os.unlink(os.path.join(front.dir, "bulk", "f1"))
            worker.loaded(frame)

        zygote.on_load = load
        client.seq += 1
        meta = {"version": "v2", "worker": "w1", "kind": "fn", "lens": [100]}
        await client.send(FrameType.LOAD, client.seq, meta, (), F_BULK)
        assert await asyncio.to_thread(put, front, client.id, client.seq, bytes(100)) == 204
        await client.value(client.seq)
        await zygote.last.die(9)
        await client.until(lambda: any(e["event"] == "worker-died" for e in client.events))
        error = await client.error(await client.call("version"))
        assert error["type"] == "StartupError"
        assert "can't be handed to a worker" in error["message"]
        zygote.on_load = lambda worker, frame: worker.loaded(frame)
        await client.value(await client.load("v3"))
        assert await client.run("version") == b"v3"

    play(scenario)


def test_the_large_error_of_a_load_can_be_fetched() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        def refuse_at_length(worker: Worker, frame: Frame) -> None:
            with open(os.path.join(front.dir, "bulk", "traceback"), "wb") as f:
                f.write(b"x" * 100_000)
            meta = {"error": {"type": "user", "message": "deep"}, "file": "traceback", "lens": [100_000]}
            worker.result(frame.channel, meta=meta, flags=F_ERROR | F_BULK)

        zygote.on_load = refuse_at_length
        load = await client.load("v2")
        await client.result(load)
        assert await asyncio.to_thread(get, front, "traceback") == (200, b"x" * 100_000, None)
        assert (await client.error(load))["message"] == "deep"
        await client.run("version")
        assert files(front) == []

    play(scenario)


def test_files_that_a_dead_worker_never_announced_go() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        seq = await client.call("big", b"%d" % MIB)
        await client.result(seq)
        place(front, f"w{os.getpid()}-abc-7", b"half a result")
        await zygote.last.die(9)
        await client.until(lambda: any(e["event"] == "worker-ready" for e in client.events))
        assert files(front) == [client.results[seq].meta["file"]]
        await client.value(seq)

    play(scenario)


def test_download_with_ranges_until_acknowledged() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        size = 3 * MIB
        seq = await client.call("big", b"%d" % size)
        frame = await client.result(seq)
        assert frame.flags & F_BULK
        assert frame.meta["lens"] == [size]
        name = frame.meta["file"]
        status, whole, _ = await asyncio.to_thread(get, front, name)
        assert (status, len(whole)) == (200, size)
        for start in (0, 1, MIB, size - 1):
            status, data, where = await asyncio.to_thread(get, front, name, f"bytes={start}-")
            assert (status, where) == (206, f"bytes {start}-{size - 1}/{size}")
            assert data == whole[start:]
        assert (await asyncio.to_thread(get, front, name, f"bytes={size + 1}-"))[0] == 416
        assert (await asyncio.to_thread(get, front, name, "bytes=5-3"))[1] == whole
        await client.cut()
        again = await Client(front, client.id).open()
        await again.send(FrameType.RESUME, seq, {})
        assert (await again.result(seq)).meta["file"] == name
        await again.send(FrameType.ACK, seq)
        await again.request("status")
        assert (await asyncio.to_thread(get, front, name))[0] == 404
        assert files(front) == []
        await again.close()

    play(scenario)


def test_a_slow_download_keeps_nobody_waiting() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        seq = await client.call("big", b"%d" % (64 * MIB))
        name = (await client.result(seq)).meta["file"]
        before = front.memory()
        slow = http.client.HTTPConnection("127.0.0.1", front.port, timeout=20)
        slow.request("GET", f"/bulk/down/{name}", headers=HEADERS)
        response = slow.getresponse()
        threads = [threading.Thread(target=get, args=(front, name)) for _ in range(2)]
        for thread in threads:
            thread.start()
        times: list[float] = []
        while not times or any(t.is_alive() for t in threads):
            begin = time.monotonic()
            await client.run("echo", b"x")
            times.append(time.monotonic() - begin)
        median, worst = statistics.median(times), max(times)
        print(f"a call beside two downloads took {median * 1000:.1f} ms, {worst * 1000:.1f} ms at most")
        # The slowest may have waited for the downloads' threads, which are this process's.
        assert median < 0.1
        assert worst < 5
        assert front.memory() - before < 16 * MIB
        assert len(response.read()) == 64 * MIB
        slow.close()

    play(scenario)


def test_files_that_a_worker_may_not_offer() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        worker = zygote.last
        os.symlink("/etc/passwd", os.path.join(front.dir, "bulk", "link"))
        for name in ("../front.log", "/etc/passwd", "", "missing", 5, None, "link", "a\0b"):
            seq = await client.call("hang")
            await until_async(lambda: worker.calls)
            worker.result(next(iter(worker.calls)), meta={"file": name, "lens": [1]}, flags=F_BULK)
            assert (await client.error(seq))["type"] == "SerializationError"

    play(scenario)


def test_bulk_items_go_when_they_have_been_taken() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        worker = zygote.last
        seq = await client.call("hang", gen=2)
        await until_async(lambda: worker.calls)
        channel = next(iter(worker.calls))
        for i in range(2):
            place(front, f"w1-{i}", b"%d" % i * MIB)
            worker.send(FrameType.ITEM, channel, {"i": i, "file": f"w1-{i}", "lens": [MIB]}, (), F_BULK)
        await client.until(lambda: len(client.items.get(seq, [])) == 2)
        assert (await asyncio.to_thread(get, front, "w1-1"))[1] == b"1" * MIB
        await client.send(FrameType.CREDIT, seq, {"n": 1})
        await client.request("status")
        assert files(front) == ["w1-1"]
        worker.result(channel, meta={"n": 2})
        await client.value(seq)
        await client.request("status")
        assert files(front) == []

    play(scenario)


def test_no_room(tmp_path: Any) -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        seq = await client.call("sum", flags=F_BULK, lens=[3 << 30])
        status = await asyncio.to_thread(put, front, client.id, seq, b"x" * 1000)
        room = min(
            os.statvfs(p).f_bavail * os.statvfs(p).f_frsize for p in (front.dir, os.path.join(front.dir, "bulk"))
        )
        if room > 4 << 30:
            assert status == 400
            pytest.skip("there is room for 3 GiB here")
        assert status == 507
        error = await client.error(seq)
        assert error["type"] == "PayloadTooLargeError"
        assert "no room" in error["message"]
        assert files(front) == []

    play(scenario)


def test_a_full_disk_in_the_middle(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pod_server.front import bulk

    os.mkdir(tmp_path / "spill")
    store = BulkStore(str(tmp_path), str(tmp_path / "files"), "svc")
    failed: list[dict[str, Any]] = []
    done: list[str] = []

    async def run() -> None:
        store.expect("c", 1, bulk.Upload(2000, done.append, failed.append))
        pieces = [{"type": "http.request", "body": b"x" * 1000, "more_body": more} for more in (True, False)]

        async def receive() -> dict[str, Any]:
            return pieces.pop(0)

        real = bulk._write_all

        def write(fd: int, data: bytes) -> None:
            if not pieces:
                raise OSError(28, "No space left on device")
            real(fd, data)

        monkeypatch.setattr(bulk, "_write_all", write)
        assert (await store.put("c", 1, receive))[0] == 507

    asyncio.run(run())
    assert not done
    assert failed[0]["type"] == "PayloadTooLargeError"
    assert os.listdir(store.dir) == []


def test_no_room_in_memory_but_on_disk(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pod_server.front import bulk

    os.mkdir(tmp_path / "spill")
    store = BulkStore(str(tmp_path), str(tmp_path / "files"), "svc")
    full = SimpleNamespace(free=0)
    empty = SimpleNamespace(free=1 << 40)
    monkeypatch.setattr(bulk.shutil, "disk_usage", lambda path: full if path == store.dir else empty)
    name = store.write(b"abc")
    assert os.path.islink(store.path(name))
    with open(store.path(name), "rb") as f:
        assert f.read() == b"abc"
    copy = store.duplicate(name)
    os.unlink(store.path(copy))  # as a worker does
    store.remove(copy)
    with open(store.path(name), "rb") as f:
        assert f.read() == b"abc"
    store.remove(name)
    assert os.listdir(tmp_path / "spill") == []
    assert os.listdir(store.dir) == []


@pytest.mark.parametrize(
    ("header", "start"),
    [
        (b"bytes=0-", 0),
        (b"bytes=17-", 17),
        (b"bytes=1-5", None),
        (b"bytes=-5", None),
        (b"", None),
        (b"lines=1-", None),
        (b"bytes=x-", None),
    ],
)
def test_range_header(header: bytes, start: int | None) -> None:
    assert _range_start(header) == start
