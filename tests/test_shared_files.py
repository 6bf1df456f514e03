"""transport/shared_files.py: payloads of local pods in files, and over the connection where that can't be."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kubetorch_jupyter as kt
from kubetorch_jupyter.transport import shared_files
from kubetorch_jupyter.transport.payload import allocate
from kubetorch_jupyter.transport.shared_files import SharedFile
from pod_server.wire import INLINE_LIMIT
from tests.cells import Cells
from tests.local import Client

MIB = 1 << 20


def never() -> bool:
    return False


# -- one file ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir(mode=0o700)
    return path


def room(monkeypatch: pytest.MonkeyPatch, folder: Path, share: float) -> None:
    """So much of the folder's file system is free, and it is 64 GiB large."""
    real = os.statvfs(folder)
    blocks = (64 << 30) // real.f_frsize
    free = int(blocks * share)
    said = os.statvfs_result([*real[:2], blocks, free, free, *real[5:]])
    monkeypatch.setattr(os, "fstatvfs", lambda fd: said)


def made(folder: Path, *parts: bytes) -> SharedFile:
    file = SharedFile(str(folder))
    assert file.write([memoryview(part) for part in parts], never)
    return file


def test_written_and_taken(folder: Path) -> None:
    parts = [os.urandom(n) for n in (640, 0, 3 * MIB, 5, 2 * MIB)]
    file = made(folder, *parts)
    assert stat.S_IMODE((folder / file.name).stat().st_mode) == 0o600
    taken = file.take([len(part) for part in parts], allocate)
    assert [bytes(view) for view in taken] == parts
    assert os.listdir(folder) == []
    for view in taken:
        assert not view.readonly
        view[:1] = b"x"[: view.nbytes]


def test_what_is_most_of_the_file_is_mapped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room(monkeypatch, folder, 0.9)

    def mapped(*lens: int) -> int:
        before = len(shared_files._mappings)
        taken = made(folder, *map(bytes, lens)).take(lens, allocate)
        assert [view.nbytes for view in taken] == list(lens)
        return len(shared_files._mappings) - before

    assert mapped(64, 2 * MIB) == 1
    assert mapped(2 * MIB, 2 * MIB) == 2
    assert mapped(2 * MIB, 3 * MIB) == 1  # who keeps one buffer only must not keep the memory of many
    assert mapped(*[2 * MIB] * 5) == 0
    assert mapped(MIB - 1) == 0
    assert mapped(5, 2 * MIB) == 0  # an array of eight bytes an element would not be aligned
    monkeypatch.setattr(shared_files, "_MAPPINGS", 0)
    assert mapped(2 * MIB) == 0


def test_where_room_is_scarce_nothing_is_mapped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room(monkeypatch, folder, 0.4)
    file = made(folder, bytes(2 * MIB))
    before = len(shared_files._mappings)
    [view] = file.take([2 * MIB], allocate)
    assert len(shared_files._mappings) == before
    assert view.nbytes == 2 * MIB


def test_a_file_of_another_length_is_not_taken(folder: Path) -> None:
    file = made(folder, bytes(1000))
    with pytest.raises(ValueError, match="1000 bytes and should have 999"):
        file.take([999], allocate)
    assert os.listdir(folder) == []


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    file = SharedFile(str(folder))
    (folder / file.name).symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic link"):
        file.take([6], allocate)
    with pytest.raises(FileExistsError):
        file.write([memoryview(b"public")], never)
    assert (tmp_path / "secret").read_bytes() == b"secret"
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(NotADirectoryError):
        SharedFile(str(tmp_path / "link")).write([memoryview(b"x")], never)


def test_a_folder_that_is_not_only_ours_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = made(folder, b"abc")
    folder.chmod(0o770)
    for use in (lambda: SharedFile(str(folder)).write([memoryview(b"x")], never), lambda: file.take([3], allocate)):
        with pytest.raises(PermissionError, match="not only ours"):
            use()
    folder.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(PermissionError, match="not only ours"):
        file.take([3], allocate)


def test_cancelled_in_between(folder: Path) -> None:
    answers = iter([False, False, True])
    file = SharedFile(str(folder))
    assert not file.write([memoryview(bytes(40 * MIB))], lambda: next(answers))
    assert (folder / file.name).stat().st_size == 8 * MIB
    file.remove()
    file.remove()  # as often as one likes
    assert os.listdir(folder) == []


# -- a pod -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service() -> Iterator[kt.Cls]:
    cells = Cells()
    cells.run(
        """
        import os
        import numpy as np

        class Shared:
            def echo(self, value): return value
            def add(self, array):
                array += 1
                return array
            def items(self, n):
                for i in range(n):
                    yield np.full(2_000_000, i, dtype=np.uint8)
            def die(self, array): os._exit(3)
        """
    )
    with kt.cls(cells["Shared"]).to(kt.Compute(), stream_logs=False) as handle:
        yield handle
        assert left(handle) == []


def left(service: kt.Cls) -> list[str]:
    """What is in the pod's folder."""
    service.echo(1)  # what was acknowledged before has been removed then
    return os.listdir(folder_of(service))


def folder_of(service: kt.Cls) -> str:
    endpoint = service.service.endpoint
    assert endpoint is not None
    assert endpoint.folder is not None
    return endpoint.folder


class Counted:
    """How many files were written and taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts = {"write": 0, "take": 0}
        for name in self.counts:
            monkeypatch.setattr(SharedFile, name, self._counting(name, getattr(SharedFile, name)))

    def _counting(self, name: str, original: Any) -> Any:
        def method(*args: Any) -> Any:
            value = original(*args)
            self.counts[name] += 1
            return value

        return method

    def __call__(self) -> tuple[int, int]:
        return self.counts["write"], self.counts["take"]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


@pytest.mark.parametrize("size", [INLINE_LIMIT // 2, INLINE_LIMIT + 1, MIB - 1, MIB + 1, (9 * MIB) + 3, 256 * MIB])
def test_there_and_back(service: kt.Cls, counted: Counted, size: int) -> None:
    array = np.resize(np.frombuffer(os.urandom(1000), dtype=np.uint8), size)
    came = service.echo(array)
    assert np.array_equal(came, array)
    came[0] = 7
    assert counted() == ((1, 1) if size > INLINE_LIMIT else (0, 0))
    assert left(service) == []


def test_what_the_pod_changes_is_not_changed_here(service: kt.Cls) -> None:
    array = np.zeros(3 * MIB)
    came = service.add(array)
    assert (came == 1).all()
    assert not array.any()


def test_several_arrays_and_items(service: kt.Cls, counted: Counted) -> None:
    value = {"a": np.arange(300_000.0), "b": [np.ones(5000), b"x" * MIB], "c": np.zeros(0), "d": "text" * 50_000}
    came = service.echo(value)
    assert np.array_equal(came["a"], value["a"])
    assert np.array_equal(came["b"][0], value["b"][0])
    assert (came["b"][1], came["c"].shape, came["d"]) == (value["b"][1], (0,), value["d"])
    for i, item in enumerate(service.items(5)):
        assert item.shape == (2_000_000,)
        assert (item == i).all()
    assert counted() == (1, 6)
    assert left(service) == []


def test_results_stay_when_their_file_has_gone(service: kt.Cls) -> None:
    kept = [service.echo(np.full(2 * MIB, i, dtype=np.uint8)) for i in range(80)]  # more than may be mapped
    assert left(service) == []
    for i, array in enumerate(kept):
        assert (array == i).all()
        array += 1
        assert (array == i + 1).all()


def test_many_at_once(service: kt.Cls, counted: Counted) -> None:
    async def main() -> None:
        arrays = [np.full(MIB + i, i, dtype=np.uint8) for i in range(40)]
        came = await asyncio.gather(*(service.echo(a, async_=True) for a in arrays))
        assert all(np.array_equal(a, b) for a, b in zip(arrays, came, strict=True))

    asyncio.run(main())
    assert counted() == (40, 40)
    assert left(service) == []


@pytest.mark.parametrize("after", [0, 1, 5])
def test_stop_while_the_file_is_written(service: kt.Cls, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    original = SharedFile.write

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def write(self: SharedFile, views: Any, cancelled: Any) -> bool:
            pieces = 0

            def counting() -> bool:
                nonlocal pieces
                if pieces == after:
                    loop.call_soon_threadsafe(task.cancel)
                    while not cancelled():
                        time.sleep(0.001)
                pieces += 1
                return bool(cancelled())

            try:
                return original(self, views, counting)
            finally:
                loop.call_soon_threadsafe(ended.set)

        monkeypatch.setattr(SharedFile, "write", write)
        task = asyncio.ensure_future(service.echo(bytes(40 * MIB), async_=True))
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(ended.wait(), 10)

    asyncio.run(main())
    monkeypatch.setattr(SharedFile, "write", original)
    assert service.echo(np.ones(MIB)).sum() == MIB
    _until_empty(service)


def _until_empty(service: kt.Cls, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while names := left(service):
        assert time.monotonic() < deadline, names
        time.sleep(0.02)


# -- over the connection instead ---------------------------------------------------------------------------------------


def test_no_room(service: kt.Cls, counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    room(monkeypatch, Path(folder_of(service)), 0.0005)
    array = np.arange(MIB)
    assert np.array_equal(service.echo(array), array)
    assert counted() == (0, 1)
    assert left(service) == []


def test_the_disk_is_full_in_the_middle(service: kt.Cls, counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.write

    def write(fd: int, data: Any) -> int:
        if len(data) == shared_files._PIECE:
            original(fd, data)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(fd, data)

    monkeypatch.setattr(os, "write", write)
    array = np.arange(2 * MIB)
    assert np.array_equal(service.echo(array), array)
    assert counted() == (0, 1)
    monkeypatch.undo()
    assert left(service) == []


def test_the_pod_refuses_the_file(service: kt.Cls, monkeypatch: pytest.MonkeyPatch) -> None:
    original = SharedFile.__init__

    def init(self: SharedFile, folder: str) -> None:
        original(self, folder)
        self.name = "other-" + self.name

    monkeypatch.setattr(SharedFile, "__init__", init)
    array = np.arange(2 * MIB)
    assert np.array_equal(service.echo(array), array)
    assert left(service) == []


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "too many"), ValueError("odd")])
def test_the_file_cannot_be_taken(service: kt.Cls, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def take(self: SharedFile, lens: object, allocate: object) -> None:
        raise error

    monkeypatch.setattr(SharedFile, "take", take)
    array = np.arange(2 * MIB)
    assert np.array_equal(service.echo(array), array)
    assert left(service) == []


def test_the_folder_is_not_to_be_seen_here(service: kt.Cls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = SharedFile.__init__
    for place in (tmp_path / "none", tmp_path):
        tmp_path.chmod(0o700)
        monkeypatch.setattr(SharedFile, "__init__", lambda self, folder, place=place: original(self, str(place)))
        array = np.arange(2 * MIB)
        assert np.array_equal(service.echo(array), array)
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    _until_empty(service, 15)  # what was lent under a name that we looked for elsewhere


# -- ends --------------------------------------------------------------------------------------------------------------


def test_the_worker_dies_with_a_payload(service: kt.Cls) -> None:
    with pytest.raises(kt.WorkerDiedError):
        service.die(np.ones(MIB))
    assert service.echo(np.ones(MIB)).sum() == MIB
    assert left(service) == []


def test_a_redeploy_of_large_code(counted: Counted) -> None:
    def large(n: int) -> Any:
        blob = np.full(n, 1, dtype=np.uint8)

        def total() -> int:
            return int(blob.sum())

        return kt.fn(total, name="t-large").to(kt.Compute(), stream_logs=False)

    assert large(MIB)() == MIB
    with large(2 * MIB) as handle:
        assert handle() == 2 * MIB
    assert counted()[0] == 2


class Held:
    """Writes the first file only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        original = SharedFile.write

        def write(file: SharedFile, *args: Any) -> bool:
            if not self.begun.is_set():
                self.begun.set()
                assert self.go_on.wait(20)
            return original(file, *args)

        monkeypatch.setattr(SharedFile, "write", write)


def test_a_redeploy_while_a_payload_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def deploy(number: int) -> Any:
        def numbered(array: Any) -> tuple[int, int]:
            return number, int(array.sum())

        return kt.fn(numbered, name="t-midway").to(kt.Compute(), stream_logs=False)

    with deploy(1) as handle:
        held = Held(monkeypatch)
        call = handle.spawn(np.ones(MIB, dtype=np.uint8))
        assert held.begun.wait(10)
        deploy(2)
        held.go_on.set()
        assert call.result(timeout=20) in [(1, MIB), (2, MIB)]


def test_a_teardown_while_a_payload_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = kt.fn(_echo, name="t-midway").to(kt.Compute(), stream_logs=False)
    endpoint = handle.service.endpoint
    assert endpoint is not None
    assert endpoint.folder is not None
    held = Held(monkeypatch)
    call = handle.spawn(bytes(MIB))
    assert held.begun.wait(10)
    handle.teardown()
    held.go_on.set()
    with pytest.raises(kt.CallCancelledError, match="torn down"):
        call.result(timeout=20)
    assert not os.path.exists(endpoint.folder)


def test_a_client_that_is_killed_leaves_nothing() -> None:
    """Between the pod's answer and the mapping, and while it writes; its pod lives on."""
    with kt.fn(_echo, name="t-kept").to(kt.Compute(), stream_logs=False) as handle:
        folder = handle.service.endpoint.folder
        assert folder is not None
        for killed in ("take", "write"):
            script = f"""
                import signal
                from kubetorch_jupyter.calls import CallOptions, invoke
                from kubetorch_jupyter.transport.sharing import get_session
                from kubetorch_jupyter.transport.shared_files import SharedFile

                class Target:
                    name = label = "t-kept"
                    live, foreign = None, False
                    async def session(self):
                        return await get_session((await local_backend().find("t-kept")).endpoint)

                original = SharedFile.{killed}
                def end(self, *args):
                    if {killed!r} == "write":
                        original(self, *args)
                    os.kill(os.getpid(), signal.SIGKILL)
                SharedFile.{killed} = end
                invoke(Target(), "", (bytes(2_000_000),), {{}}, CallOptions(stream_logs=False))
            """
            with Client(script) as client:
                client.process.wait(30)
                assert client.process.returncode == -9
            assert any(name.startswith("client-") for name in os.listdir(folder)), killed
        deadline = time.monotonic() + 30
        while any(name.startswith("client-") for name in os.listdir(folder)):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def _echo(value: Any) -> Any:
    return value
