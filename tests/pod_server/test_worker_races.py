"""What two threads of a worker can do between two bytecodes of each other, forced."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import cloudpickle
import pytest

from pod_server.cells import Namespace
from pod_server.worker import commands
from pod_server.worker.calls import Call
from pod_server.worker.pool import Pool, PoolThread
from tests.waiting import until

from .fake_front import FakeFront

THIS = sys.modules[__name__]


@pytest.fixture(scope="module", autouse=True)
def _by_value() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(THIS)
    yield
    cloudpickle.unregister_pickle_by_value(THIS)


@pytest.fixture(scope="module")
def front() -> Iterator[FakeFront]:
    with FakeFront() as front:
        yield front


def the(kind: str) -> Any:
    """The one object of this worker whose class has that name."""
    import gc

    [found] = [o for o in gc.get_objects() if type(o).__name__ == kind]
    return found


# -- output ------------------------------------------------------------------------------------------------------------


def test_what_the_pump_has_read_is_still_its_calls(front: FakeFront) -> None:
    def write() -> None:
        pump = the("Pump")
        owner = pump.owner
        read = threading.Event()

        def late() -> Any:  # the pump has taken the bytes out of the pipe, and this call comes to its end meanwhile
            read.set()
            time.sleep(0.1)
            pump.owner = owner
            return owner()

        pump.owner = late
        os.write(1, b"raw\n")
        assert read.wait(5)

    front.deploy(write)
    record = front.start()
    record.wait()
    assert record.text() == "raw\n"


class Two:
    """What one writes by descriptor when the other, which began later, has taken what there was and is to end."""

    def __init__(self) -> None:
        self.begun, self.write, self.chosen = threading.Event(), threading.Event(), threading.Event()

    def first(self) -> None:
        pump = the("Pump")
        owner, settle = pump.owner, pump.settle

        def choose() -> Any:
            log = owner()
            if self.write.is_set():
                self.chosen.set()
                time.sleep(0.2)
            return log

        def settle_and_wait(log: Any) -> None:
            settle(log)
            if log is not mine and not self.write.is_set():
                self.write.set()
                assert self.chosen.wait(5)

        mine = owner()
        pump.owner, pump.settle = choose, settle_and_wait
        self.begun.set()
        assert self.write.wait(5)
        os.write(1, b"raw\n")
        assert self.chosen.wait(5)
        pump.owner, pump.settle = owner, settle

    def second(self) -> None:
        assert self.begun.wait(5)


def test_what_the_pump_gives_to_a_call_comes_before_its_result(front: FakeFront) -> None:
    front.deploy(Two, threads=8)
    first = front.start(_f="first")
    time.sleep(0.1)
    second = front.start(_f="second")
    second.wait()
    first.wait()
    assert (first.text(), second.text()) == ("", "raw\n")
    assert second.times[-1] <= cast(float, second.ended)


def test_nothing_of_a_cell_comes_after_its_result() -> None:
    source = """
import asyncio, threading
from pod_server.worker import output

go, printed = threading.Event(), threading.Event()

async def left():
    while not go.is_set():
        await asyncio.sleep(0.001)
    print("left")
    printed.set()

log, flush = output.current_log.get(), output.Log.flush

def slowly(self, wait=False, frame=None, write=True):
    flush(self, wait, frame, write)
    if self is log and frame is not None:
        output.Log.flush = flush
        go.set()
        printed.wait(0.3)

output.Log.flush = slowly
task = asyncio.create_task(left())
"""
    with FakeFront() as front:
        front.deploy(Namespace)
        record = front.start(source, "<cell 1>", source, False, _f="run")
        record.wait()
        front.service.until(lambda r: "left\n" in r.text())
        assert record.text() == ""


def test_what_a_child_wrote_before_the_process_ended() -> None:
    def leave() -> None:
        pump = the("Pump")
        owner, reading = pump.owner, threading.Event()

        def late() -> Any:
            reading.set()
            time.sleep(0.1)
            return owner()

        pump.owner = late
        os.write(1, b"raw\n")
        assert reading.wait(5)
        subprocess.run(["echo", "child"], check=True)
        os._exit(3)

    with FakeFront() as front:
        front.deploy(leave)
        record = front.start()
        assert front.closed.wait(10)
        assert sorted(record.text().splitlines()) == ["child", "raw"]


# -- cancels -----------------------------------------------------------------------------------------------------------


def test_a_cell_is_interrupted_although_what_it_waits_for_has_come(front: FakeFront) -> None:
    source = """
import asyncio, threading, time
from pod_server.worker.pool import sleepers

loop = asyncio.get_running_loop()
future, job = loop.create_future(), sleepers[threading.get_ident()].call

def both():
    future.set_result(None)
    thread = threading.Thread(target=job.interrupt)
    thread.start()
    thread.join()

loop.call_soon(both)
try:
    await future
    time.sleep(10)
finally:
    print("interrupted")
"""
    front.deploy(Namespace)
    begin = time.monotonic()
    record = front.start(source, "<cell 1>", source, False, _f="run")
    with pytest.raises(BaseException, match="ancel"):
        record.wait(15)
    assert time.monotonic() - begin < 5
    assert record.text() == "interrupted\n"


# -- threads -----------------------------------------------------------------------------------------------------------


def test_a_thread_that_is_taken_before_it_sleeps_is_idle_once() -> None:
    done = threading.Semaphore(0)
    pool = Pool(2, lambda call, thread: cast(Any, call)())
    inner = pool._lock

    def call() -> Call:
        return cast(Call, done.release)

    class Lock:
        forced = False

        def __enter__(self) -> None:
            inner.acquire()

        def __exit__(self, *_: object) -> None:
            idle = threading.current_thread() in pool._idle
            inner.release()
            if idle and not self.forced:
                self.forced = True
                taking = threading.Thread(target=lambda: pool.submit(call(), extra=True))
                taking.start()
                taking.join()

    pool._lock = cast(Any, Lock())
    pool.submit(call())
    assert all(done.acquire(timeout=10) for _ in range(2))
    until(lambda: pool._idle)
    time.sleep(0.1)
    [thread] = pool._idle
    assert isinstance(thread, PoolThread)


# -- commands ----------------------------------------------------------------------------------------------------------


def test_what_a_command_writes_just_before_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    pids: list[int] = []

    class Poll:
        """Whose first look finds nothing, and takes so long that the command ends meanwhile."""

        def __init__(self) -> None:
            self._poll = select.poll()
            self.register, self.unregister = self._poll.register, self._poll.unregister
            self._looks = 0

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            self._looks += 1
            if self._looks > 1:
                return self._poll.poll(timeout)
            with open(fifo, "w") as f:
                f.write("go\n")
            os.waitid(os.P_PID, pids[0], os.WEXITED | os.WNOWAIT)
            return []

    class Popen(commands.subprocess.Popen):  # type: ignore[type-arg, name-defined, misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            pids.append(self.pid)

    monkeypatch.setattr(commands, "select", types.SimpleNamespace(poll=Poll, POLLIN=select.POLLIN))
    monkeypatch.setattr(commands.subprocess, "Popen", Popen)
    written: list[bytes] = []
    ended = commands.run_command(
        ["/bin/sh", "-c", f"read x <{fifo}; echo last"],
        cwd="/",
        env=os.environ,
        write=written.append,
        afterwards=lambda data: pytest.fail(f"afterwards: {data!r}"),
    )
    assert (ended.tail, b"".join(written)) == (b"last\n", b"last\n")
