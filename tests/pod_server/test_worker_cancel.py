"""Cancelling calls: at every moment, and nothing of it in the next call."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pod_server.exceptions import Cancelled
from tests.waiting import until

from .fake_front import Failed, FakeFront, Record

THIS = sys.modules[__name__]


@pytest.fixture(scope="module")
def front() -> Iterator[FakeFront]:
    import cloudpickle

    cloudpickle.register_pickle_by_value(THIS)
    try:
        with FakeFront() as front:
            yield front
            assert "Traceback" not in front.service.text()
    finally:
        cloudpickle.unregister_pickle_by_value(THIS)


def expect_cancelled(record: Record) -> None:
    """Long before it would end by itself."""
    start = time.monotonic()
    with pytest.raises(Failed) as info:
        record.wait()
    assert info.value.type == "CallCancelledError"
    assert time.monotonic() - start < 2


def was_cancelled(record: Record, otherwise: Any) -> bool:
    """Whether it was; if not, its result is checked."""
    with contextlib.suppress(Failed):
        assert record.wait() == otherwise
        return False
    assert record.meta["error"]["type"] == "CallCancelledError"
    return True


def test_sleep_ends_at_once(front: FakeFront) -> None:
    def nap() -> None:
        try:
            print("asleep")
            time.sleep(30)
        finally:
            print("cleaned up")

    front.deploy(nap)
    for _ in range(5):
        record = front.start()
        record.until(lambda r: "asleep" in r.text())
        time.sleep(0.005)
        record.cancel()
        expect_cancelled(record)
        assert record.text() == "asleep\ncleaned up\n"


def test_busy_loop(front: FakeFront) -> None:
    def spin() -> None:
        print("spinning")
        while True:
            pass

    front.deploy(spin)
    record = front.start()
    record.until(lambda r: "spinning" in r.text())
    record.cancel()
    expect_cancelled(record)


def test_a_finalizer_does_not_eat_it(front: FakeFront) -> None:
    """What is raised in one, or in a weakref's callback, Python only reports: there the cancel would be lost."""

    def spin() -> None:
        class Slow:
            def __del__(self) -> None:
                end = time.monotonic() + 0.04
                while time.monotonic() < end:
                    pass

        print("spinning")
        slow = Slow()
        del slow
        while True:
            pass

    front.deploy(spin)
    for _ in range(25):
        record = front.start()
        record.until(lambda r: "spinning" in r.text())
        record.cancel()
        expect_cancelled(record)
        assert record.text() == "spinning\n"


def test_exception_does_not_eat_it(front: FakeFront) -> None:
    def stubborn() -> None:
        print("up")
        while True:
            try:
                time.sleep(10)
            except Exception:
                print("never")

    front.deploy(stubborn)
    record = front.start()
    record.until(lambda r: "up" in r.text())
    record.cancel()
    expect_cancelled(record)
    assert "never" not in record.text()


def test_swallowed_cancel_and_later_sleep(front: FakeFront) -> None:
    def swallow() -> float:
        print("up")
        try:
            while True:
                sum(range(100))
        except Cancelled:
            print("swallowed")
        start = time.monotonic()
        time.sleep(0.2)
        print("slept", time.monotonic() - start)
        return 1

    front.deploy(swallow)
    record = front.start()
    record.until(lambda r: "up" in r.text())
    record.cancel()
    expect_cancelled(record)
    assert float(record.text().split("slept")[1]) >= 0.199


def test_error_of_the_cleanup_is_in_the_log(front: FakeFront) -> None:
    def nap() -> None:
        try:
            print("up")
            time.sleep(10)
        finally:
            raise ValueError("in the cleanup")

    front.deploy(nap)
    record = front.start()
    record.until(lambda r: "up" in r.text())
    record.cancel()
    expect_cancelled(record)
    assert "ValueError: in the cleanup" in record.text()


def test_timeout(front: FakeFront) -> None:
    front.deploy(lambda: time.sleep(10))
    record = front.start(_meta={"timeout": 0.5})
    record.cancel("timeout")
    with pytest.raises(Failed) as info:
        record.wait()
    assert info.value.type == "CallTimeoutError"
    assert info.value.error["timeout"] == 0.5


def test_async(front: FakeFront) -> None:
    async def nap() -> None:
        try:
            print("up")
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            print("cancelled")
            raise

    front.deploy(nap)
    record = front.start()
    record.until(lambda r: "up" in r.text())
    record.cancel()
    expect_cancelled(record)
    assert record.text() == "up\ncancelled\n"


def test_before_it_began(front: FakeFront, tmp_path: Path) -> None:
    def hold(go: Path) -> None:
        print("began")
        until(go.exists)

    async def hold_async(go: Path) -> None:
        hold(go)

    for function, running in ((hold, 2), (hold_async, 1)):
        go = tmp_path / function.__name__
        front.deploy(function, concurrency=2)
        records = front.start_all([(go,)] * running)
        for r in records:
            r.until(lambda r: "began" in r.text())
        waiting = front.start(go)
        waiting.cancel()
        expect_cancelled(waiting)
        assert waiting.text() == ""
        go.touch()
        for r in records:
            r.wait()
    front.deploy(hold, concurrency=64)


def test_unknown_call_and_twice(front: FakeFront) -> None:
    front.deploy(lambda: time.sleep(10))
    record = front.start()
    record.cancel()
    record.cancel("timeout")
    expect_cancelled(record)
    record.cancel()
    front.records[999] = record
    front.deploy(lambda: 1)
    assert front.call() == 1


def test_stuck_call_gives_its_place_away(front: FakeFront) -> None:
    class Stuck:
        def __init__(self) -> None:
            self.freed = threading.Event()

        def hang(self) -> None:
            print("hanging")
            self.freed.wait(30)

        def free(self) -> None:
            self.freed.set()

        def threads(self) -> int:
            return threading.active_count()

    front.deploy(Stuck, concurrency=2)
    before = front.call(_f="threads")
    stuck = front.start_all([(), ()], _f="hang")
    for r in stuck:
        r.until(lambda r: "hanging" in r.text())
    start = time.monotonic()
    for r in stuck:
        r.cancel()
    for r in front.start_all([(), ()], _f="threads"):
        r.wait()
    assert time.monotonic() - start > 0.2
    assert [r.ended for r in stuck] == [None, None]
    front.call(_f="free")
    for r in stuck:
        with pytest.raises(Failed, match="Cancelled"):
            r.wait()
    # the threads that were stuck end
    until(lambda: front.call(_f="threads") <= before + 3)
    front.deploy(Stuck, concurrency=64)


@pytest.mark.parametrize("kind", ["def", "async"])
def test_cancel_at_any_moment(front: FakeFront, kind: str) -> None:
    """Calls of about no length, cancelled about when they end: each ends once, and the next one is not touched."""

    def work(n: int) -> int:
        for _ in range(n):
            pass
        return n

    async def work_async(n: int) -> int:
        for _ in range(n % 7):
            await asyncio.sleep(0)
        return n

    front.deploy(work if kind == "def" else work_async, concurrency=2)
    rng = random.Random(7)
    cancelled = 0
    for i in range(400):
        n = rng.randrange(3000)
        record = front.start(n)
        if rng.random() < 0.3:
            pass
        else:
            end = time.perf_counter() + rng.random() * 0.0003
            while time.perf_counter() < end:
                pass
        record.cancel()
        following = front.start(i)
        cancelled += was_cancelled(record, n)
        assert following.wait() == i
    print(f"{kind}: {cancelled} of 400 were cancelled")
    assert front.call(5) == 5
    front.deploy(work, concurrency=64)


def test_a_load_is_cancelled_or_has_come(front: FakeFront) -> None:
    """Cancelled about when it ends: the answer says which code the calls get, and all that waits is called."""

    def work(n: int) -> int:
        return n

    def hold(n: int) -> int:
        return -n

    rng = random.Random(7)
    front.deploy(work, concurrency=2)
    here, cancelled = work, 0
    for i in range(1, 60):
        wanted = hold if here is work else work
        record = front.load(wanted, concurrency=2 + i % 3)
        end = time.perf_counter() + rng.random() * 0.003
        while time.perf_counter() < end:
            pass
        record.cancel()
        if was_cancelled(record, None):
            cancelled += 1
        else:
            here = wanted
        assert [r.wait() for r in front.start_all([(i,)] * 8)] == [here(i)] * 8
    print(f"{cancelled} of 59 were cancelled")
    front.deploy(work, concurrency=64)


def test_a_load_that_swallows_its_cancel_does_not_come(front: FakeFront) -> None:
    class Stubborn:
        def __init__(self) -> None:
            print("constructing")
            with contextlib.suppress(BaseException):
                time.sleep(10)

    def here() -> str:
        return "here"

    front.deploy(here)
    record = front.load(Stubborn)
    record.until(lambda r: r.log)
    record.cancel()
    expect_cancelled(record)
    assert front.call() == "here"


def test_cancel_while_it_prints(front: FakeFront) -> None:
    """A cancel in the middle of a write breaks no frame and loses no line before it."""

    def chatter() -> None:
        i = 0
        while True:
            print("line", i)
            i += 1
            if i % 50 == 0:
                time.sleep(0.004)

    front.deploy(chatter)
    for _ in range(60):
        records = front.start_all([(), (), ()])
        time.sleep(random.random() * 0.01)
        for r in records:
            r.cancel()
        for r in records:
            expect_cancelled(r)
            lines = r.text().split("\n")
            for i, line in enumerate(lines[:-1]):
                assert line == f"line {i}"
            assert f"line {len(lines) - 1}".startswith(lines[-1])
    assert not front.closed.is_set()


def test_cancelled_while_user_code_runs_in_other_threads(front: FakeFront) -> None:
    def parent() -> None:
        def child() -> None:
            for i in range(20):
                print("child", i)
                time.sleep(0.01)

        t = threading.Thread(target=child)
        t.start()
        print("up")
        time.sleep(10)

    front.deploy(parent)
    record = front.start()
    record.until(lambda r: "up" in r.text())
    record.cancel()
    expect_cancelled(record)
    record.until(lambda r: "child 19\n" in r.text())  # later output still belongs to the call


def test_load_can_be_cancelled(front: FakeFront) -> None:
    class Slow:
        def __init__(self) -> None:
            print("loading")
            time.sleep(30)

    record = front.load(Slow)
    record.until(lambda r: "loading" in r.text())
    record.cancel()
    expect_cancelled(record)


# -- generators --------------------------------------------------------------------------------------------------------


def numbers(n: int) -> Iterator[int]:
    names = set()
    try:
        for i in range(n):
            names.add(threading.current_thread().name)
            print("made", i)
            yield i
    finally:
        print("closed", len(names))


async def anumbers(n: int) -> Any:
    try:
        for i in range(n):
            await asyncio.sleep(0)
            print("made", i)
            yield i
    finally:
        print("closed 1")


@pytest.mark.parametrize("generator", [numbers, anumbers])
def test_items_and_credit(front: FakeFront, generator: Any) -> None:
    front.deploy(generator)
    record = front.start(5, _meta={"gen": 100})
    assert record.wait() is None
    assert record.items == [0, 1, 2, 3, 4]
    assert record.meta == {"n": 5}
    assert record.text().endswith("closed 1\n")

    record = front.start(100, _meta={"gen": 3})
    record.until(lambda r: len(r.items) == 3)
    time.sleep(0.05)
    assert len(record.items) == 3
    assert record.text() == "made 0\nmade 1\nmade 2\n"  # it isn't driven further than was asked
    record.credit(2)
    record.until(lambda r: len(r.items) == 5)
    record.cancel()
    expect_cancelled(record)
    assert len(record.items) == 5
    assert record.meta["n"] == 5
    assert record.text().endswith("closed 1\n")

    record = front.start(1000, _meta={"gen": 0})
    for _ in range(11):
        record.credit(100)
    record.wait()
    assert record.items == list(range(1000))


def test_generator_that_fails(front: FakeFront) -> None:
    def bad() -> Iterator[int]:
        yield 1
        raise ValueError("at 2")

    async def abad() -> Any:
        yield 1
        raise ValueError("at 2")

    def unpicklable() -> Iterator[Any]:
        yield 1
        yield threading.Lock()

    for g in (bad, abad):
        front.deploy(g)
        record = front.start(_meta={"gen": 10})
        with pytest.raises(ValueError, match="at 2"):
            record.wait()
        assert record.items == [1]
        assert record.meta["n"] == 1
    front.deploy(unpicklable)
    record = front.start(_meta={"gen": 10})
    with pytest.raises(Failed, match="item 1"):
        record.wait()


def test_large_items(front: FakeFront) -> None:
    def big() -> Iterator[bytes]:
        for i in range(5):
            yield bytes([i]) * 100_000

    front.deploy(big)
    record = front.start(_meta={"gen": 10})
    record.wait()
    assert [len(x) for x in record.items] == [100_000] * 5


def test_generator_cancelled_at_any_moment(front: FakeFront) -> None:
    front.deploy(numbers)
    for i in range(100):
        record = front.start(10_000, _meta={"gen": 10_000})
        time.sleep(random.random() * 0.003)
        record.cancel()
        was_cancelled(record, None)
        assert record.items == list(range(len(record.items)))
        record = front.start(i, _meta={"gen": 10_000})
        record.wait()
        assert record.items == list(range(i))
