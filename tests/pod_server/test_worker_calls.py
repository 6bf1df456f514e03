"""The worker's calls: values, errors, concurrency, large payloads, the event loop."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pod_server.wire import F_BULK, FrameType, LogKind, encode

from .fake_front import Failed, FakeFront, Record

THIS = sys.modules[__name__]


@pytest.fixture(scope="module")
def front() -> Iterator[FakeFront]:
    import cloudpickle

    cloudpickle.register_pickle_by_value(THIS)
    try:
        with FakeFront() as front:
            yield front
    finally:
        cloudpickle.unregister_pickle_by_value(THIS)


def test_hello(front: FakeFront) -> None:
    assert front.hello == {"role": "worker", "worker": 1, "pid": front.process.pid}


def test_values(front: FakeFront) -> None:
    front.deploy(lambda *args, **kwargs: (args, kwargs))
    assert front.call() == ((), {})
    assert front.call(1, [2], k={"a": b"x"}) == ((1, [2]), {"k": {"a": b"x"}})


def test_main_is_fresh(front: FakeFront) -> None:
    def look() -> Any:
        main = sys.modules["__main__"]
        return main.__name__, sorted(n for n in vars(main) if not n.startswith("__")), sys.argv

    front.deploy(look)
    assert front.call() == ("__main__", [], [""])


def test_json_and_none(front: FakeFront) -> None:
    front.deploy(lambda *args, **kwargs: [list(args), kwargs])
    record = front.start(1, "é", _meta={"ser": "json"}, k=None)
    assert record.wait() == [[1, "é"], {"k": None}]
    assert record.meta["ser"] == "json"
    body = json.dumps({"args": [1], "kwargs": {"b": 2}}).encode()
    record, data = front.frame(FrameType.CALL, {"ser": "json"}, [body])
    front.send(data)
    assert record.wait() == [[1], {"b": 2}]
    record, data = front.frame(FrameType.CALL, {"ser": "json"}, [b'{"arguments": []}'])
    front.send(data)
    with pytest.raises(Failed, match="args"):
        record.wait()

    front.deploy(lambda data: data[::-1])
    record, data = front.frame(FrameType.CALL, {"ser": "none"}, [b"abc"])
    front.send(data)
    assert record.wait() == b"cba"
    assert record.meta["ser"] == "none"


def test_json_errors_are_text_too(front: FakeFront) -> None:
    front.deploy(lambda: [][0])
    record = front.start(_meta={"ser": "json"})
    with pytest.raises(IndexError):
        record.wait()
    assert record.meta["error"]["class"] == "IndexError"
    assert "list index out of range" in record.meta["error"]["traceback"]


@pytest.mark.parametrize(
    "name", ["ValueError", "SystemExit", "KeyboardInterrupt", "GeneratorExit", "StopIteration", "CancelledError"]
)
@pytest.mark.parametrize("kind", ["def", "async"])
def test_users_exceptions_end_only_their_call(front: FakeFront, name: str, kind: str) -> None:
    def fail(name: str) -> Any:
        if name == "":
            return "fine"
        raise getattr(__import__("asyncio" if name == "CancelledError" else "builtins"), name)("mine")

    async def fail_async(name: str) -> Any:
        await asyncio.sleep(0)
        return fail(name)

    front.deploy(fail if kind == "def" else fail_async)
    records = front.start_all([("",), (name,), ("",)])
    assert records[0].wait() == records[2].wait() == "fine"
    with pytest.raises(Exception):  # noqa: B017, PT011 - what it becomes is the serializer's to test
        records[1].wait()
    assert records[1].meta["error"]["type"] == "user"
    assert front.call("") == "fine"


def test_task_that_exits_does_not_stop_the_loop(front: FakeFront) -> None:
    async def run() -> str:
        async def leave() -> None:
            sys.exit(3)

        task = asyncio.create_task(leave())
        try:
            await task
        except SystemExit as e:
            return f"exit {e.code}"
        return "?"

    front.deploy(run)
    assert front.call() == "exit 3"
    assert front.call() == "exit 3"


def test_unpicklable_result(front: FakeFront) -> None:
    front.deploy(lambda: {"lock": threading.Lock()})
    with pytest.raises(Failed) as info:
        front.call()
    assert info.value.type == "SerializationError"
    assert "_thread.lock" in info.value.error["message"]


def test_damaged_arguments(front: FakeFront) -> None:
    front.deploy(lambda: None)
    for buffers in ([b"\x80\x05garbage"], [], [b"N."]):
        record, data = front.frame(FrameType.CALL, {}, buffers)
        front.send(data)
        with pytest.raises(Failed) as info:
            record.wait()
        assert info.value.type == "SerializationError"
    assert front.call() is None


def test_64_at_once(front: FakeFront) -> None:
    class Meeting:
        def __init__(self) -> None:
            self.barrier = threading.Barrier(64)

        def meet(self) -> None:
            self.barrier.wait(10)

    front.deploy(Meeting)
    start = time.monotonic()
    for record in front.start_all([()] * 64, _f="meet"):
        record.wait()
    print(f"64 def calls that meet: {time.monotonic() - start:.2f} s")


def test_1000_async_at_once(front: FakeFront) -> None:
    class Meeting:
        def __init__(self) -> None:
            self.here = 0
            self.complete = asyncio.Event()

        async def meet(self) -> None:
            self.here += 1
            if self.here == 1000:
                self.complete.set()
            await self.complete.wait()

    front.deploy(Meeting)
    start = time.monotonic()
    for record in front.start_all([()] * 1000, _f="meet"):
        record.wait()
    print(f"1000 async calls that meet: {time.monotonic() - start:.2f} s")


def test_pool_is_bounded_and_used_again(front: FakeFront) -> None:
    def count() -> tuple[int, str]:
        time.sleep(0.001)
        return threading.active_count(), threading.current_thread().name

    front.deploy(count, concurrency=4)
    results = [r.wait() for r in front.start_all([()] * 200)]
    assert len({name for _, name in results[50:]}) <= 4
    assert len({front.call()[1] for _ in range(10)}) <= 2  # the warmest, or the one before when it isn't back yet
    front.deploy(count, concurrency=64)


@pytest.mark.parametrize("kind", ["def", "async", "mixed"])
def test_concurrency_of_one(front: FakeFront, kind: str) -> None:
    class Counter:
        def __init__(self) -> None:
            self.now = self.most = 0

        def work(self) -> None:
            self.now += 1
            self.most = max(self.most, self.now)
            time.sleep(0.005)
            self.now -= 1

        async def work_async(self) -> None:
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.005)
            self.now -= 1

        def result(self) -> int:
            return self.most

    front.deploy(Counter, concurrency=1)
    names = {"def": ["work"], "async": ["work_async"], "mixed": ["work", "work_async"]}[kind]
    records = [front.start(_f=names[i % len(names)]) for i in range(20)]
    waiting, data = front.prepare(_f="work")
    front.send(data + encode(FrameType.CANCEL, waiting.channel, {"reason": "user"}))
    for r in records:
        r.wait()
    with pytest.raises(Failed, match="Cancelled"):
        waiting.wait()
    assert front.call(_f="result") == 1
    # a call that doesn't end when it is cancelled gives its place to the next
    front.deploy(_Stuck, concurrency=1)
    stuck = front.start(_f="hang")
    stuck.until(lambda r: "hanging" in r.text())
    stuck.cancel()
    assert front.call(_f="fine") == "fine"
    assert stuck.ended is None
    front.call(_f="free")
    with pytest.raises(Failed, match="Cancelled"):
        stuck.wait()
    front.deploy(_Stuck, concurrency=64)


class _Stuck:
    def __init__(self) -> None:
        self.freed = threading.Event()

    def hang(self) -> None:
        print("hanging")
        self.freed.wait(30)

    def free(self) -> None:
        self.freed.set()

    def fine(self) -> str:
        return "fine"


def test_methods(front: FakeFront) -> None:
    class Model:
        limit = 3

        def __init__(self, a: int, *, b: int) -> None:
            self.sum = a + b

        def add(self, n: int) -> int:
            self.sum += n
            return self.sum

        async def get(self) -> int:
            await asyncio.sleep(0)
            return self.sum

        @staticmethod
        async def static() -> str:
            return "static"

        @classmethod
        def name(cls) -> str:
            return cls.__name__

    front.deploy(Model, init_args={"a": 1, "b": 2})
    assert front.call(10, _f="add") == 13
    assert front.call(_f="get") == 13
    assert front.call(_f="static") == "static"
    assert front.call(_f="name") == "Model"
    with pytest.raises(AttributeError, match="nothing"):
        front.call(_f="nothing")
    with pytest.raises(AttributeError, match="can't be called"):
        front.call(_f="limit")
    with pytest.raises(TypeError, match="add"):
        front.call(_f="add")


def test_def_that_returns_a_coroutine(front: FakeFront) -> None:
    async def inner(x: int) -> int:
        print("on", threading.current_thread() is threading.main_thread())
        await asyncio.sleep(0)
        return x + 1

    def outer(x: int) -> Any:
        return inner(x)

    front.deploy(outer)
    record = front.start(1)
    assert record.wait() == 2
    assert record.text() == "on True\n"


def test_contexts_are_apart(front: FakeFront) -> None:
    import contextvars

    def look() -> list[str]:
        var = contextvars.ContextVar("user_var", default=0)
        var.set(1)
        return [v.name for v in contextvars.copy_context()]

    front.deploy(look)
    for _ in range(3):
        assert front.call().count("user_var") == 1


def test_large_arguments_and_results(front: FakeFront) -> None:
    def double(a: Any) -> Any:
        assert a.flags.writeable
        a *= 2
        return {"a": a, "small": a[:3]}

    front.deploy(double)
    a = np.arange(4_000_000, dtype=np.float64)
    result = front.call(a)
    assert np.array_equal(result["a"], a * 2)
    assert result["a"].flags.writeable
    assert os.listdir(front.bulk) == []

    async def echo(x: Any) -> Any:
        return x

    front.deploy(echo)
    data = os.urandom(3_000_000)
    assert front.call(data) == data
    for size in (56 * 1024 - 50, 56 * 1024, 56 * 1024 + 1, 65536, 70_000):
        assert front.call(bytes(size)) == bytes(size)
    assert os.listdir(front.bulk) == []


def test_many_buffers(front: FakeFront) -> None:
    front.deploy(lambda n: [np.full(2000, i) for i in range(n)])
    result = front.call(3000)
    assert len(result) == 3000
    assert result[2999][1999] == 2999


def test_missing_bulk_file(front: FakeFront) -> None:
    front.deploy(lambda x: x)
    record = front.records[10_000] = type(front.service)(front, 10_000)
    front.send(encode(FrameType.CALL, 10_000, {"file": "../nothing", "lens": [3]}, (), F_BULK))
    with pytest.raises(Failed) as info:
        record.wait()
    assert info.value.type == "SerializationError"


def test_bulk_directory_gone(front: FakeFront) -> None:
    front.deploy(lambda: bytes(100_000))
    os.rename(front.bulk, front.bulk + "x")
    try:
        with pytest.raises(Failed, match="Make room"):
            front.call()
    finally:
        os.rename(front.bulk + "x", front.bulk)
    assert front.call() == bytes(100_000)


@pytest.mark.parametrize("letter", ["x", "ж", "\N{PILE OF POO}"])
def test_long_messages_in_any_script(front: FakeFront, letter: str) -> None:
    # In the JSON of a meta a character may take six or twelve bytes, which the payload beside it must make room for.
    def fail(n: int) -> None:
        raise ValueError(letter * n)

    async def fail_async(n: int) -> None:
        fail(n)

    for function in (fail, fail_async):
        front.deploy(function)
        for n in range(500, 5000, 250):
            with pytest.raises(ValueError, match=f"^{letter}{{{n}}}$"):
                front.call(n)
    record = front.start(20_000, _meta={"ser": "json"})
    with pytest.raises(ValueError, match=f"^{letter}{{20000}}$"):
        record.wait()
    error = record.meta["error"]
    assert error["class"] == "ValueError"
    assert error["message"] == letter * len(error["message"])
    assert error["traceback"].rstrip().endswith(letter * 2000)


def test_ping(front: FakeFront) -> None:
    front.send(encode(FrameType.PING, meta={"t": 1}))
    front.service.until(lambda r: True)
    front.deploy(lambda: 1)


def told(record: Record) -> bool:
    return any(k is LogKind.NOTICE for k, _ in record.log)


def test_blocked_loop_is_told_once(front: FakeFront, tmp_path: Path) -> None:
    async def blocks(fifo: Path) -> str:
        await asyncio.sleep(0.01)
        open(fifo).close()  # noqa: ASYNC230  # the culprit
        time.sleep(0.7)  # noqa: ASYNC251
        await asyncio.sleep(0)
        time.sleep(0.7)  # noqa: ASYNC251
        return "done"

    front.deploy(blocks)
    os.mkfifo(fifo := tmp_path / "fifo")
    record = front.start(fifo)
    try:
        record.until(told)  # while it happens: it opens what nobody writes to
    finally:
        os.close(os.open(fifo, os.O_RDWR))  # which waits for nobody itself
    assert record.wait() == "done"
    notice = [d.decode() for k, d in record.log if k is LogKind.NOTICE]
    assert len(notice) == 1
    assert "# the culprit" in notice[0]
    assert "test_worker_calls.py" in notice[0]
    assert "`def`" in notice[0]


def test_blocked_loop_in_a_task_of_the_call(front: FakeFront, tmp_path: Path) -> None:
    def spin(go: Path) -> None:
        end = time.monotonic() + 10
        while not go.exists() and time.monotonic() < end:
            sum(range(100))

    async def blocks(go: Path) -> None:
        async def child() -> None:
            spin(go)

        await asyncio.gather(asyncio.sleep(0.1), asyncio.create_task(child()))

    front.deploy(blocks)
    blocked = front.start(tmp_path / "go")
    blocked.until(told)
    time.sleep(0.2)  # the watchdog looks once more
    (tmp_path / "go").touch()
    blocked.wait()
    assert sum(k is LogKind.NOTICE for k, _ in blocked.log) == 1


@pytest.mark.parametrize(("seconds", "times"), [(0.8, 0), (10, 1)])
def test_import_in_a_call(front: FakeFront, tmp_path: Path, seconds: float, times: int) -> None:
    """It is slow only once: that is said where it takes long, and with another cure."""
    go = tmp_path / "go"
    (tmp_path / f"slow_{times}.py").write_text(
        f"import os, time\nend = time.monotonic() + {seconds}\n"
        f"while not os.path.exists({str(go)!r}) and time.monotonic() < end:\n    time.sleep(0.01)\n"
    )

    async def imports(folder: str, name: str) -> None:
        sys.path.insert(0, folder)
        importlib.import_module(name)

    front.deploy(imports)
    record = front.start(str(tmp_path), f"slow_{times}")
    if times:
        record.until(told)
        go.touch()
    record.wait()
    notices = [d.decode() for k, d in record.log if k is LogKind.NOTICE]
    assert len(notices) == times
    assert all("importlib.import_module(name)" in text and "outside of the function" in text for text in notices)


def test_busy_loop_is_not_blocked(front: FakeFront) -> None:
    async def busy() -> None:
        end = time.monotonic() + 0.8
        while time.monotonic() < end:
            await asyncio.sleep(0)

    front.deploy(busy)
    records = front.start_all([()] * 20)
    for r in records:
        r.wait()
    assert not any(k is LogKind.NOTICE for r in records for k, _ in r.log)


def test_sigint_is_ignored_and_children_have_it(front: FakeFront) -> None:
    import signal
    import subprocess

    def child() -> int:
        p = subprocess.Popen([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(20)"], stdout=-1)
        assert p.stdout is not None
        p.stdout.readline()
        p.send_signal(signal.SIGINT)
        p.stdout.close()
        return p.wait()

    front.deploy(child)
    os.kill(front.process.pid, signal.SIGINT)
    assert front.call() != 0


def test_input_says_why(front: FakeFront) -> None:
    front.deploy(lambda: input("name? "))
    with pytest.raises(EOFError, match="pod"):
        front.call()


def test_a_debugger_says_why(front: FakeFront) -> None:
    def stop(how: str) -> str:
        if how == "pdb":
            import pdb  # noqa: T100

            pdb.set_trace()  # noqa: T100
        else:
            os.environ["PYTHONBREAKPOINT"] = how
            return str(breakpoint())  # noqa: T100
        return "went on"

    front.deploy(stop)
    for how, name in (("", r"breakpoint\(\)"), ("pdb.set_trace", r"breakpoint\(\)"), ("pdb", r"pdb\.set_trace\(\)")):
        with pytest.raises(RuntimeError, match=f"^{name} can't ask anybody: this code runs in a pod"):
            front.call(how)
    # Debuggers of another kind, which wait for a connection, are the user's affair.
    assert front.call("os.getpid") == str(front.process.pid)
    assert front.call("0") == "None"


def test_end_of_the_front_ends_the_worker() -> None:
    front = FakeFront()
    try:
        front.sock.shutdown(2)
        assert front.process.wait(5) == 0
    finally:
        front.close()


def test_surroundings(tmp_path: Any) -> None:
    from .fake_front import ROOT

    def look() -> Any:
        return os.environ.get("MINE"), os.environ.get("HOME"), os.getcwd(), sys.path[0]

    env = {"PATH": os.environ["PATH"], "MINE": "x"}
    with FakeFront(env=env, cwd=str(tmp_path), sys_path=["/first", str(ROOT), *sys.path]) as front:
        front.deploy(look)
        assert front.call() == ("x", None, str(tmp_path), "/first")


def test_no_such_working_directory() -> None:
    with FakeFront(cwd="/nowhere/at/all") as front, pytest.raises(Failed, match="/nowhere/at/all") as info:
        front.deploy(lambda: 1)
    assert info.value.type == "StartupError"


def test_crash_is_in_the_services_log() -> None:
    def crash() -> None:
        import ctypes

        ctypes.string_at(0)

    with FakeFront() as front:
        front.deploy(crash)
        front.start()
        front.process.wait(10)
        with open(front.stderr_path) as f:
            text = f.read()
        assert "Segmentation fault" in text
        assert "in crash" in text


def test_output_before_exit_is_not_lost() -> None:
    def leave() -> None:
        print("one")
        print("two")
        os._exit(3)

    with FakeFront() as front:
        front.deploy(leave)
        record = front.start()
        assert front.process.wait(10) == 3
        assert front.closed.wait(5)
        assert record.text() == "one\ntwo\n"
