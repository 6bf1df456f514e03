"""The worker dies, in every way and place: a typed error with the cause, soon, and the next call works (issue case 8).

And what only looks like an end (`sys.exit`, a remote CancelledError, …) fails its own call only.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kubetorch_jupyter as kt
from tests.cells import Cells
from tests.places import Place
from tests.promises import promise

LIMIT = "300Mi"

#: Ways to die, and what the error must say of each.
WAYS: dict[str, dict[str, Any]] = {
    "exit": {"cause": "exit", "exit_code": 3},
    "kill": {"cause": "signal", "signal": int(signal.SIGKILL)},
    "segfault": {"cause": "signal", "signal": int(signal.SIGSEGV)},
    "memory": {"cause": "oom", "limit": 300 << 20},
}

DIE = """
import asyncio, ctypes, os, signal, time

def die(how):
    if how == "exit":
        os._exit(3)
    elif how == "kill":
        os.kill(os.getpid(), 9)
        time.sleep(10)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "memory":
        held = []
        while True:
            held.append(b"x" * (8 << 20))
            time.sleep(0.002)
    return os.getpid()
"""


def cells_with(source: str = "") -> Cells:
    cells = Cells()
    cells.run(DIE)
    if source:
        cells.run(source)
    return cells


def check(error: BaseException, how: str) -> None:
    """The error is the typed one, with the cause, and a message that says what to do."""
    assert isinstance(error, kt.WorkerDiedError), repr(error)
    for name, value in WAYS[how].items():
        assert getattr(error, name) == value, (name, error)
    assert error.service is not None
    assert error.service in str(error)


def timed(what: str, call: Callable[[], Any]) -> tuple[BaseException, float]:
    start = time.monotonic()
    with pytest.raises(kt.KubetorchError) as caught:
        call()
    return caught.value, time.monotonic() - start


BOTH = """
class Both:
    def plain(self, how):
        return die(how)

    async def coroutine(self, how):
        await asyncio.sleep(0)
        return die(how)

    def hold(self, s):
        time.sleep(s)

    async def hold_async(self, s):
        await asyncio.sleep(s)

    def numbers(self, s):
        yield 1
        time.sleep(s)
        yield 2
"""


@pytest.fixture(scope="module")
def both() -> Iterator[Any]:
    cells = cells_with(BOTH)
    with kt.cls(cells["Both"]).to(kt.Compute(memory_limit=LIMIT), stream_logs=False) as handle:
        yield handle


# -- in a def, in an async def -----------------------------------------------------------------------------------------


@pytest.mark.timed
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("where", ["plain", "coroutine"])
def test_death_in_a_call(both: Any, where: str, how: str) -> None:
    method = getattr(both, where)
    before = both.plain(None)
    error, took = timed(how, lambda: method(how))
    check(error, how)
    if how != "memory":  # it takes its time to hold so much
        promise(f"death by {how} in {where} is said", took, 1.0)
    start = time.monotonic()
    after = both.plain(None)
    promise("the next call after a death", time.monotonic() - start, 1.0)
    assert after != before


@pytest.mark.parametrize("how", WAYS)
def test_awaited_death(both: Any, how: str) -> None:
    async def run() -> None:
        with pytest.raises(kt.WorkerDiedError) as caught:
            await both.plain(how, async_=True)
        check(caught.value, how)
        assert await both.plain(None, async_=True)

    asyncio.run(run())


@pytest.mark.timed
@pytest.mark.parametrize("how", ["exit", "kill", "memory"])
def test_the_others_in_flight_hear_it_too(both: Any, how: str) -> None:
    ended: list[float] = []

    async def held(call: Any) -> BaseException:
        with pytest.raises(kt.WorkerDiedError) as caught:
            await call
        ended.append(time.monotonic())
        return caught.value

    async def run() -> float:
        calls = [asyncio.create_task(held(both.hold(60, async_=True))) for _ in range(4)]
        calls += [asyncio.create_task(held(both.hold_async(60, async_=True))) for _ in range(4)]
        await asyncio.sleep(0.3)
        start = time.monotonic()
        with pytest.raises(kt.WorkerDiedError):
            await both.plain(how, async_=True)
        start = start if how != "memory" else time.monotonic()
        for error in await asyncio.gather(*calls):
            check(error, how)
        return start

    start = asyncio.run(run())
    promise("the last call in flight hears of the death", max(ended) - start, 1.0)
    assert both.plain(None)


def test_spawned_calls_and_streams_hear_it_too(both: Any) -> None:
    spawned = both.hold.spawn(60)
    ids = [spawned.id]
    numbers = both.numbers(60)
    assert next(numbers) == 1
    died = both.coroutine.spawn("exit")
    for call in (spawned, died):
        with pytest.raises(kt.WorkerDiedError) as caught:
            call.result(timeout=10)
        check(caught.value, "exit")
        assert caught.value.call_id == call.id
        assert call.status == "lost"
    with pytest.raises(kt.WorkerDiedError):
        next(numbers)
    with pytest.raises(StopIteration):
        next(numbers)
    assert ids[0] == spawned.id
    assert both.plain(None)


def test_outside_of_any_call() -> None:
    """Nobody waits: the pod's events say it, and the next call runs in a new worker."""
    cells = cells_with("def later():\n    import threading\n    threading.Timer(0.2, os._exit, [7]).start()\n")
    cells.run("def pid(): return os.getpid()")
    with kt.fn(cells["later"]).to(kt.Compute(), stream_logs=False) as later:
        later()
        deadline = time.monotonic() + 10
        while not any(e["event"] == "worker-ready" for e in later.service.events()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        died = [e for e in later.service.events() if e["event"] == "worker-died"]
        assert len(died) == 1
        assert "code 7" in died[0]["text"]
        later()


# -- retries -----------------------------------------------------------------------------------------------------------

FLAKY = """
def flaky(flag, how, deaths):
    with open(flag, "a") as f:
        f.write("x")
    if os.path.getsize(flag) <= deaths:
        die(how)
    return os.path.getsize(flag)

async def flaky_async(flag, how, deaths):
    return flaky(flag, how, deaths)
"""


@pytest.mark.parametrize("name", ["flaky", "flaky_async"])
@pytest.mark.parametrize("how", ["exit", "segfault"])
def test_retries(place: Place, name: str, how: str) -> None:
    cells = cells_with(FLAKY)
    with kt.fn(cells[name], name="flaky").to(kt.Compute(), stream_logs=False) as flaky:
        assert flaky.options(retries=3)(place.path("a"), how, 2) == 3
        assert asyncio.run(flaky.options(retries=3)(place.path("b"), how, 2, async_=True)) == 3
        assert flaky.options(retries=3).spawn(place.path("c"), how, 2).result(timeout=20) == 3
        with pytest.raises(kt.WorkerDiedError):
            flaky.options(retries=1)(place.path("d"), how, 2)
        assert place.read(flaky.service_name, place.path("d")) == "xx"
        with pytest.raises(kt.WorkerDiedError):
            flaky(place.path("e"), how, 1)
        assert place.read(flaky.service_name, place.path("e")) == "x"


# -- in __init__ -------------------------------------------------------------------------------------------------------

MODEL = """
class Model:
    def __init__(self, flag, how):
        with open(flag + ".log", "a") as f:
            f.write(f"{time.time()}\\n")
        self.flag, self.count = flag, 0
        if os.path.exists(flag):
            die(how)

    def add(self):
        self.count += 1
        return self.count

    def die(self, how):
        die(how)

    async def total(self):
        return self.count
"""


@pytest.mark.timed
@pytest.mark.parametrize("how", WAYS)
def test_death_in_init_at_the_first_deploy(tmp_path: Path, how: str) -> None:
    cells = cells_with(MODEL)
    flag = tmp_path / "flag"
    flag.touch()
    remote = kt.cls(cells["Model"], name="dies-at-once")
    start = time.monotonic()
    with pytest.raises(kt.StartupError) as caught:
        remote.to(kt.Compute(memory_limit=LIMIT), init_args={"flag": str(flag), "how": how}, stream_logs=False)
    if how != "memory":
        promise(f".to says death by {how} in __init__", time.monotonic() - start, 2.0)
    assert isinstance(caught.value.__cause__, kt.WorkerDiedError)
    check(caught.value.__cause__, how)
    assert "dies-at-once" in str(caught.value)
    assert "dies-at-once" not in [s.name for s in kt.services()]
    # Once the cause is gone, the same lines work.
    flag.unlink()
    with remote.to(kt.Compute(memory_limit=LIMIT), init_args={"flag": str(flag), "how": how}, stream_logs=False):
        assert remote.add() == 1


@pytest.mark.timed
@pytest.mark.parametrize("how", WAYS)
def test_death_in_init_again_and_again(place: Place, how: str) -> None:
    cells = cells_with(MODEL)
    flag = place.path("flag")
    compute = kt.Compute(memory_limit=LIMIT)
    init_args = {"flag": flag, "how": how}
    with kt.cls(cells["Model"], name="model").to(compute, init_args=init_args, stream_logs=False) as model:

        def starts() -> int:
            return len(place.read(model.service_name, f"{flag}.log").splitlines())

        assert [model.add() for _ in range(3)] == [1, 2, 3]
        place.touch(model.service_name, flag)
        check(timed(how, lambda: model.die("exit"))[0], "exit")
        slowest = 0.0
        until = time.monotonic() + 2
        while time.monotonic() < until:
            error, took = timed(how, model.add)
            check(error, how)
            slowest = max(slowest, took)
        if how != "memory":
            promise(f"calls hear that __init__ dies again ({how})", slowest, 1.0)
        assert asyncio.run(_raises(model.total(async_=True)))
        # Not in a busy loop: calls that wait hurry it a little, nobody waiting makes it slower and slower.
        before = starts()
        assert before < 20
        time.sleep(1)
        assert starts() - before <= 2
        place.unlink(model.service_name, flag)
        start = time.monotonic()
        assert model.add() == 1  # constructed anew
        promise("it works when the cause is gone", time.monotonic() - start, 1.0)
        assert model.add() == 2


async def _raises(awaitable: Any) -> bool:
    with pytest.raises(kt.WorkerDiedError):
        await awaitable
    return True


@pytest.mark.timed
def test_init_that_raises_after_a_death(place: Place) -> None:
    cells = cells_with(
        """
        class Picky:
            def __init__(self, flag):
                if os.path.exists(flag):
                    raise ValueError("not on a Monday")
            def get(self): return 1
            def die(self): die("exit")
        """
    )
    flag = place.path("flag")
    with kt.cls(cells["Picky"]).to(kt.Compute(), init_args={"flag": flag}, stream_logs=False) as picky:
        place.touch(picky.service_name, flag)
        timed("exit", picky.die)
        error, took = timed("init", picky.get)
        assert isinstance(error, kt.StartupError)
        assert "not on a Monday" in str(error)
        promise("the new instance's error is said", took, 1.0)
        place.unlink(picky.service_name, flag)
        assert picky.get() == 1


# -- "state lost" ------------------------------------------------------------------------------------------------------


def test_state_lost_is_said_once_and_only_for_classes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cells = cells_with(MODEL)
    init_args = {"flag": str(tmp_path / "none"), "how": None}
    with kt.cls(cells["Model"], name="stateful").to(kt.Compute(), init_args=init_args) as model:
        model.add()
        with pytest.raises(kt.WorkerDiedError):
            model.die("exit")
        capfd.readouterr()
        assert model.add() == 1
        assert model.add() == 2
        out, err = capfd.readouterr()
        said = [line for line in (out + err).splitlines() if "kubetorch" in line]
        assert len(said) == 1, said
        assert "Model" in said[0]
        assert "lost" in said[0]
    cells.run("def leave(code):\n    if code: os._exit(code)\n")
    with kt.fn(cells["leave"]).to(kt.Compute()) as leave:
        with pytest.raises(kt.WorkerDiedError):
            leave(3)
        capfd.readouterr()
        leave(0)
        out, err = capfd.readouterr()
        assert "lost" not in out + err


def test_state_lost_is_said_by_a_redeploy(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cells = cells_with(MODEL)
    init_args = {"flag": str(tmp_path / "none"), "how": None}
    with kt.cls(cells["Model"], name="stateful").to(kt.Compute(), init_args=init_args) as model:
        model.add()
        cells.run(MODEL + "\n    def more(self): return 1\n")
        capfd.readouterr()
        again = kt.cls(cells["Model"], name="stateful").to(kt.Compute(), init_args=init_args)
        out, err = capfd.readouterr()
        assert [line for line in (out + err).splitlines() if "lost" in line], out + err
        assert again.add() == 1
        out, err = capfd.readouterr()
        assert "lost" not in out + err


# -- what is no end ----------------------------------------------------------------------------------------------------

RAISERS = """
import sys, concurrent.futures

KINDS = {
    "exit": lambda: sys.exit(4),
    "cancelled": lambda: throw(asyncio.CancelledError()),
    "futures": lambda: throw(concurrent.futures.CancelledError()),
    "stop": lambda: throw(StopIteration(5)),
    "stop_async": lambda: throw(StopAsyncIteration(5)),
    "interrupt": lambda: throw(KeyboardInterrupt()),
    "close": lambda: throw(GeneratorExit()),
}

def throw(error):
    raise error

class Raiser:
    def plain(self, kind):
        KINDS[kind]()

    async def coroutine(self, kind):
        await asyncio.sleep(0)
        KINDS[kind]()

    async def task(self, kind):
        async def inner():
            KINDS[kind]()
        await asyncio.create_task(inner())

    def items(self, kind):
        yield 1
        KINDS[kind]()

    async def async_items(self, kind):
        yield 1
        KINDS[kind]()

    def hold(self, s):
        time.sleep(s)
        return "held"

    async def hold_async(self, s):
        await asyncio.sleep(s)
        return "held"

    def pid(self):
        return os.getpid()
"""

#: What must be raised, by the name of its class there; Python itself makes a RuntimeError of some, in coroutines.
NAMES = {
    "exit": "SystemExit",
    "cancelled": "CancelledError",
    "futures": "CancelledError",
    "stop": "StopIteration",
    "stop_async": "StopAsyncIteration",
    "interrupt": "KeyboardInterrupt",
    "close": "GeneratorExit",
}
CONTROL = (
    SystemExit,
    asyncio.CancelledError,
    concurrent.futures.CancelledError,
    StopIteration,
    StopAsyncIteration,
    KeyboardInterrupt,
    GeneratorExit,
)


@pytest.fixture(scope="module")
def raiser() -> Iterator[Any]:
    cells = cells_with(RAISERS)
    with kt.cls(cells["Raiser"]).to(kt.Compute(), stream_logs=False) as handle:
        yield handle


def check_remote(error: BaseException, kind: str) -> None:
    """It is an error of the call, of none of the kinds that would steer the program here."""
    assert isinstance(error, Exception)
    assert not isinstance(error, CONTROL), repr(error)
    if isinstance(error, kt.RemoteError):
        assert error.type_name.rpartition(".")[2] == NAMES[kind]
    else:
        # PEP 479: a coroutine or generator can't end with these, Python turns them into this.
        assert type(error) is RuntimeError, repr(error)
        assert kind in ("stop", "stop_async")


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("where", ["plain", "coroutine", "task"])
def test_fails_its_own_call_only(raiser: Any, where: str, kind: str) -> None:
    pid = raiser.pid()
    neighbours = [raiser.hold.spawn(0.5), raiser.hold_async.spawn(0.5)]
    method = getattr(raiser, where)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is checked below
        method(kind)
    check_remote(caught.value, kind)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        method.spawn(kind).result(timeout=10)
    check_remote(caught.value, kind)

    async def awaited() -> None:
        with pytest.raises(Exception) as caught:  # noqa: PT011
            await method(kind, async_=True)
        check_remote(caught.value, kind)
        # Neither this task nor the gather is taken for cancelled.
        results = await asyncio.gather(
            method(kind, async_=True), raiser.hold_async(0, async_=True), return_exceptions=True
        )
        assert isinstance(results[0], BaseException)
        check_remote(results[0], kind)
        assert results[1] == "held"
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(awaited())
    assert [call.result(timeout=10) for call in neighbours] == ["held", "held"]
    assert raiser.pid() == pid


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("where", ["items", "async_items"])
def test_fails_its_own_stream_only(raiser: Any, where: str, kind: str) -> None:
    pid = raiser.pid()
    got: list[int] = []

    def blocking() -> None:
        for item in getattr(raiser, where)(kind):
            got.append(item)

    async def awaiting() -> None:
        async for item in getattr(raiser, where)(kind, async_=True):
            got.append(item)

    for run in [blocking] if where == "items" else [lambda: asyncio.run(awaiting())]:
        with pytest.raises(Exception) as caught:  # noqa: PT011
            run()
        check_remote(caught.value, kind)
        assert got == [1]
    assert raiser.pid() == pid


@pytest.mark.parametrize("kind", NAMES)
def test_in_init(kind: str) -> None:
    cells = cells_with(RAISERS)
    cells.run("class Fails:\n    def __init__(self, kind): KINDS[kind]()\n    def get(self): return 1\n")
    with pytest.raises(kt.StartupError) as caught:
        kt.cls(cells["Fails"]).to(kt.Compute(), init_args={"kind": kind}, stream_logs=False)
    assert caught.value.__cause__ is not None
    check_remote(caught.value.__cause__, kind)
    assert NAMES[kind] in str(caught.value)
    assert "fails" not in [s.name for s in kt.services()]


def test_no_threads_are_left(both: Any) -> None:
    both.plain(None)
    before = threading.active_count()
    for _ in range(5):
        with pytest.raises(kt.WorkerDiedError):
            both.plain("exit")
    both.plain(None)
    assert threading.active_count() <= before + 1
