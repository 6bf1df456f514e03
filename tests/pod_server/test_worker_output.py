"""The worker's output: every byte in the log of its call, whoever wrote it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import logging
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pod_server.wire import Decoder, FrameType, LogDecoder, LogKind, encode, encode_log
from pod_server.worker.link import Link
from pod_server.worker.output import Log, LogHub
from tests.waiting import until

from .fake_front import FakeFront

THIS = sys.modules[__name__]
OUT, ERR = LogKind.STDOUT, LogKind.STDERR


@pytest.fixture(scope="module")
def front() -> Iterator[FakeFront]:
    import cloudpickle

    cloudpickle.register_pickle_by_value(THIS)
    try:
        with FakeFront() as front:
            yield front
            assert front.service.text() == ""
    finally:
        cloudpickle.unregister_pickle_by_value(THIS)


def run(front: FakeFront, function: Any, *args: Any) -> Any:
    front.deploy(function)
    record = front.start(*args)
    record.wait()
    return record


def test_exact_bytes(front: FakeFront) -> None:
    def write() -> None:
        print("a", 1, None, sep="-", end="")
        print("\r50%\r100%", flush=True)
        sys.stdout.write("é🎉\x1b[31mred\x1b[0m")
        sys.stdout.buffer.write(b"\xff\xfe\n")
        print("err", file=sys.stderr)
        sys.stdout.writelines(["x\n", "y\n"])
        sys.stdout.write("")
        os.write(sys.stdout.fileno(), b"by descriptor\n")

    record = run(front, write)
    wanted = "a-1-None\r50%\r100%\né🎉\x1b[31mred\x1b[0m".encode() + b"\xff\xfe\nx\ny\n"
    assert record.bytes(OUT) == wanted + b"by descriptor\n"
    assert record.bytes(ERR) == b"err\n"


def test_order_of_stdout_and_stderr(front: FakeFront) -> None:
    def write() -> None:
        for i in range(100):
            print(i, file=sys.stderr if i % 3 else sys.stdout)

    record = run(front, write)
    assert record.text() == "".join(f"{i}\n" for i in range(100))


def test_stream_attributes(front: FakeFront) -> None:
    def look() -> Any:
        s = sys.stdout
        with pytest_raises(TypeError):
            s.write(b"x")  # type: ignore[arg-type]
        with pytest_raises(TypeError):
            s.buffer.write("x")  # type: ignore[arg-type]
        s.close()
        s.flush()
        s.reconfigure(line_buffering=True)  # type: ignore[attr-defined]
        return s.encoding, s.isatty(), s.writable(), s.readable(), s.closed, s.name, s.line_buffering, s.buffer.fileno()

    front.deploy(look)
    assert front.call() == ("utf-8", False, True, False, False, "<stdout>", True, 1)


class pytest_raises:
    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, value: Any, tb: Any) -> bool:
        assert kind is self.kind, kind
        return True


def test_first_line_comes_at_once(front: FakeFront) -> None:
    def write(wait: float) -> float:
        at = time.monotonic()
        print("now")
        time.sleep(wait)
        print("then")
        time.sleep(wait)
        return at

    front.deploy(write)
    record = front.start(0.5)
    record.wait()
    assert len(record.times) == 2
    assert record.ended is not None
    assert record.ended - record.times[1] > 0.03
    waits = []
    for _ in range(20):  # one that nothing disturbs is enough
        record = front.start(0.01)
        at = record.wait()
        waits.append(record.times[0] - at)
    print(f"a line after {min(waits) * 1000:.2f} to {max(waits) * 1000:.2f} ms")
    assert min(waits) < 0.003


def test_100k_lines(front: FakeFront) -> None:
    def write(n: int) -> None:
        for i in range(n):
            print("line number", i)

    front.deploy(write)
    start = time.monotonic()
    record = front.start(100_000)
    record.wait()
    print(f"100,000 lines: {time.monotonic() - start:.2f} s, {len(record.times)} frames")
    assert record.text() == "".join(f"line number {i}\n" for i in range(100_000))


def test_large_lines(front: FakeFront) -> None:
    def write(size: int) -> None:
        for c in "abc":
            print(c * size)

    record = run(front, write, 1 << 20)
    assert record.text() == "".join(c * (1 << 20) + "\n" for c in "abc")


def test_concurrent_calls(front: FakeFront) -> None:
    """Each of several calls prints by itself, from threads, from tasks and from children."""

    def write(name: str) -> None:
        def lines(who: str, n: int = 1000) -> None:
            for i in range(n):
                print(f"{name} {who} {i}")
                if i % 100 == 0:
                    time.sleep(0.001)

        threads = [threading.Thread(target=lines, args=(f"thread{i}",)) for i in range(2)]
        for t in threads:
            t.start()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            list(pool.map(lines, ["pool1", "pool2"]))
        lines("itself")
        for i in range(3):
            subprocess.run(["echo", f"{name} child {i}"], check=True)
            print(f"{name} child {i}")
        for t in threads:
            t.join()

    front.deploy(write)
    records = front.start_all([(f"call{i}",) for i in range(6)])
    for i, record in enumerate(records):
        record.wait()
        lines = record.text().splitlines()
        assert len(lines) == 5 * 1000 + 6
        for who in ("thread0", "thread1", "pool1", "pool2", "itself"):
            mine = [x for x in lines if f" {who} " in x]
            assert mine == [f"call{i} {who} {k}" for k in range(1000)]
        children = [x for x in lines if " child " in x]
        assert children == [f"call{i} child {k // 2}" for k in range(6)]


def test_concurrent_async_calls(front: FakeFront) -> None:
    async def write(name: str) -> None:
        async def task(who: str) -> None:
            for i in range(100):
                print(name, who, i)
                await asyncio.sleep(0)

        loop = asyncio.get_running_loop()
        await asyncio.gather(task("a"), asyncio.create_task(task("b")))
        await asyncio.to_thread(print, name, "to_thread")
        await loop.run_in_executor(None, print, name, "executor")
        loop.call_soon(print, name, "soon")
        process = await asyncio.create_subprocess_exec("echo", f"{name} async child")
        await process.wait()
        await asyncio.sleep(0)

    front.deploy(write)
    records = front.start_all([(f"call{i}",) for i in range(10)])
    for i, record in enumerate(records):
        record.wait()
        lines = record.text().splitlines()
        assert all(line.startswith(f"call{i} ") for line in lines)
        assert len(lines) == 204
        for who in "ab":
            assert [x for x in lines if f" {who} " in x] == [f"call{i} {who} {k}" for k in range(100)]


def test_logging_and_warnings(front: FakeFront) -> None:
    def write() -> None:
        import warnings

        logging.getLogger("x").warning("logged")
        warnings.warn("warned", stacklevel=1)
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()

    record = run(front, write)
    text = record.text(ERR)
    assert "logged" in text
    assert "UserWarning: warned" in text
    assert "ZeroDivisionError" in text


def test_output_after_the_end(front: FakeFront, tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        def late() -> None:
            until((folder / "late").exists)
            print("late")
            subprocess.run(["echo", "later"], check=True)

        threading.Thread(target=late).start()
        subprocess.Popen(["sh", "-c", "until [ -e orphan ]; do sleep 0.01; done; echo orphan"], cwd=folder)
        print("early")

    record = run(front, write, tmp_path)
    assert record.text() == "early\n"
    front.deploy(lambda: print("other"))
    front.call()
    (tmp_path / "late").touch()
    record.until(lambda r: "later" in r.text())
    (tmp_path / "orphan").touch()
    record.until(lambda r: "orphan" in r.text())
    assert record.text() == "early\nlate\nlater\norphan\n"


def test_children(front: FakeFront) -> None:
    def write() -> int:
        print("1")
        subprocess.run("echo 2; echo e >&2", shell=True, check=True)
        print("3")
        assert subprocess.run(["echo", "captured"], capture_output=True, check=True).stdout == b"captured\n"
        assert subprocess.check_output(["echo", "output"]) == b"output\n"
        subprocess.run(["echo", "null"], stdout=subprocess.DEVNULL, check=True)
        subprocess.run(["echo", "4"], stdout=sys.stdout, check=True)
        subprocess.run("echo 5 >&2", shell=True, stderr=subprocess.STDOUT, check=True)
        subprocess.run("echo f >&2", shell=True, stdout=sys.stderr, check=True)
        status = os.system("echo 6; exit 3")
        assert os.popen("echo popen").read() == "popen\n"
        subprocess.run([sys.executable, "-c", "print('7' * 100000)"], check=True)
        return status

    record = run(front, write)
    assert record.result == 3 << 8
    assert record.text(OUT) == "1\n2\n3\n4\n5\n6\n" + "7" * 100_000 + "\n"
    assert record.text(ERR) == "e\nf\n"


def test_no_descriptors_are_left(front: FakeFront) -> None:
    def write() -> int:
        subprocess.run(["echo", "x"], check=True)
        return len(os.listdir("/proc/self/fd"))

    front.deploy(write)
    before = front.call()
    for _ in range(20):
        front.call()
    # Those of the last child are closed a moment after its end.
    for _ in range(50):
        now = front.call()
        if now <= before + 1:
            break
        time.sleep(0.02)
    assert now <= before + 1


def test_forked_children(front: FakeFront) -> None:
    def child(i: int) -> None:
        print("child", i)
        print("child err", i, file=sys.stderr)
        subprocess.run(["echo", f"grandchild {i}"], check=True)
        os.write(1, f"raw {i}\n".encode())

    def write() -> None:
        print("parent")
        ctx = multiprocessing.get_context("fork")
        children = [ctx.Process(target=child, args=(i,)) for i in range(3)]
        for c in children:
            c.start()
        for c in children:
            c.join()
            assert c.exitcode == 0
        print("after")

    front.deploy(write)
    records = front.start_all([(), ()])
    for record in records:
        record.wait()
        lines = record.text(OUT).splitlines()
        assert lines[0] == "parent"
        assert lines[-1] == "after"
        for i in range(3):
            assert [x for x in lines if x.endswith(f" {i}")] == [f"child {i}", f"grandchild {i}", f"raw {i}"]
        assert sorted(record.text(ERR).splitlines()) == [f"child err {i}" for i in range(3)]


def test_process_pool(front: FakeFront) -> None:
    def square(x: int) -> int:
        print("squaring", x)
        return x * x

    def write() -> list[int]:
        sys.modules["__main__"].square = square  # type: ignore[attr-defined]
        square.__qualname__, square.__module__ = "square", "__main__"
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(square, range(4))

    record = run(front, write)
    assert record.result == [0, 1, 4, 9]
    assert sorted(record.text().splitlines()) == [f"squaring {i}" for i in range(4)]


def test_fork_by_hand(front: FakeFront) -> None:
    def write() -> int:
        pid = os.fork()
        if not pid:
            print("child")
            os._exit(7)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    record = run(front, write)
    assert record.result == 7
    assert record.text() == "child\n"


@pytest.mark.parametrize("kind", ["def", "async"])
def test_child_that_comes_to_the_end_of_the_call(front: FakeFront, kind: str) -> None:
    """It ends as a script would; it doesn't answer for its parent, and it doesn't stay."""

    def write(how: str) -> int:
        pid = os.fork()
        if pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if how == "exit":
            sys.exit(5)
        if how == "text":
            sys.exit("so")
        if how == "raise":
            raise ValueError("in the child")
        return -1

    async def write_async(how: str) -> int:
        return write(how)

    front.deploy(write if kind == "def" else write_async)
    for how, code, text in [("exit", 5, ""), ("text", 1, "so\n"), ("raise", 1, "in the child"), ("return", 0, "")]:
        record = front.start(how)
        assert record.wait() == code
        assert text in record.text(ERR)


def test_c_code(front: FakeFront) -> None:
    def write(name: str) -> None:
        libc = ctypes.CDLL(None)
        libc.printf(f"{name} printf\n".encode())
        libc.printf(f"{name} unfinished".encode())
        os.write(2, f"{name} raw\n".encode())

    record = run(front, write, "a")
    assert record.text(OUT) == "a printf\na unfinished"
    assert record.text(ERR) == "a raw\n"


def test_a_finalizer_that_prints_while_its_thread_writes_to_the_front() -> None:
    """Garbage may be collected there. Another thread has the log's lock meanwhile, and waits for the connection."""
    ours, theirs = socket.socketpair()
    locked = threading.Event()

    class Collecting:
        def sendall(self, data: bytes) -> None:
            if not locked.is_set():
                other.start()
                assert locked.wait(5)
                log.write(OUT, b"finalizer\n")
            ours.sendall(data)

    link = Link(Collecting())  # type: ignore[arg-type]
    hub = LogHub(link)
    log = Log(hub, 1)

    def print_much() -> None:
        with log.lock:
            locked.set()
            log.flush(wait=True, frame=encode(FrameType.LOG, 1, None, (encode_log(OUT, b"much\n"),)))

    received: list[bytes] = []
    # More than is joined into one write, so that the other one finds enough in line to have to wait.
    link.post([encode(FrameType.PONG)] * 100_000)
    other = threading.Thread(target=print_much, daemon=True)
    writer = threading.Thread(target=link.flush, daemon=True)
    reader = threading.Thread(target=lambda: received.extend(iter(lambda: theirs.recv(1 << 18), b"")), daemon=True)
    reader.start()
    writer.start()
    for thread in (writer, other):
        thread.join(5)
        assert not thread.is_alive()
    hub.flush_all()
    ours.close()
    reader.join(5)
    theirs.close()
    frames = Decoder().feed(b"".join(received))
    text = b"".join(data for f in frames if f.buffers for _, data in LogDecoder().feed(f.buffers[0]))
    assert sorted(text.splitlines()) == [b"finalizer", b"much"]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_output_of_nobody_between_items(front: FakeFront, kind: str) -> None:
    """The pump takes it while the item goes out, each of them with a lock that the other one wants."""

    def items(n: int) -> Any:
        for i in range(n):
            for part in b"abc":
                os.write(1, b"%c%d\n" % (part, i))
            yield i

    async def items_async(n: int) -> Any:
        for i in items(n):
            yield i

    front.deploy(items if kind == "def" else items_async)
    record = front.start(1000, _meta={"gen": 1001})
    record.wait()
    assert record.items == list(range(1000))
    assert record.text() == "".join(f"{part}{i}\n" for i in range(1000) for part in "abc")


def test_an_item_is_pickled_by_a_thread_that_prints(front: FakeFront) -> None:
    """The call waits for a thread that writes to the call's log, and would hold that log's lock if it sent already."""

    class Slow:
        def __reduce__(self) -> Any:
            thread = threading.Thread(target=print, args=("pickling",))
            thread.start()
            thread.join()
            return int, (1,)

    def items() -> Any:
        yield Slow()
        print("after")

    front.deploy(items)
    record = front.start(_meta={"gen": 2})
    record.wait()
    assert record.items == [1]
    assert record.text() == "pickling\nafter\n"


def test_c_code_in_two_calls_is_the_later_ones(front: FakeFront, tmp_path: Path) -> None:
    def write(name: str, folder: Path) -> None:
        print("began")
        until((folder / name).exists)
        os.write(1, f"{name}\n".encode())

    front.deploy(write)
    records = []
    for name in ("first", "second"):
        records.append(front.start(name, tmp_path))
        records[-1].until(lambda r: "began" in r.text())
    for name, record in zip(("first", "second"), records, strict=True):
        (tmp_path / name).touch()
        record.wait()
    assert [r.text() for r in records] == ["began\n", "began\nfirst\nsecond\n"]


def test_output_of_nobody_is_the_services(tmp_path: Path) -> None:
    def write(go: Path) -> None:
        def later() -> None:
            until(go.exists)
            os.write(1, b"nobody\n")

        threading.Thread(target=later).start()

    with FakeFront() as front:
        front.deploy(write)
        front.call(tmp_path / "go")
        (tmp_path / "go").touch()
        front.service.until(lambda r: r.text() == "nobody\n")


def test_print_in_a_finalizer(front: FakeFront) -> None:
    def write() -> None:
        class Noisy:
            def __init__(self, i: int) -> None:
                self.i = i
                self.me = self

            def __del__(self) -> None:
                print("gone", self.i)

        import gc

        gc.set_threshold(5)
        for i in range(2000):
            Noisy(i)
            print("made", i)
        gc.set_threshold(700)
        gc.collect()

    record = run(front, write)
    lines = record.text().splitlines()
    assert [x for x in lines if x.startswith("made")] == [f"made {i}" for i in range(2000)]
    assert sorted(int(x.split()[1]) for x in lines if x.startswith("gone")) == list(range(2000))


def test_much_from_many(front: FakeFront) -> None:
    def write(name: str) -> None:
        for i in range(10_000):
            print(name, i)

    front.deploy(write)
    start = time.monotonic()
    records = front.start_all([(f"c{i}",) for i in range(8)])
    for i, record in enumerate(records):
        record.wait()
        assert record.text() == "".join(f"c{i} {k}\n" for k in range(10_000))
    print(f"8 calls of 10,000 lines: {time.monotonic() - start:.2f} s")
