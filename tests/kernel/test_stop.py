"""Stop: control back within half a second, the remote side cancelled where it can be, the next call works.

The tests mostly wait, so those that are for every kernel use all of them at once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from tests.conftest import KERNELS, NEWEST, _factory
from tests.kernel.harness import Cell, Kernel
from tests.places import Place
from tests.promises import promise
from tests.waiting import until

pytestmark = pytest.mark.timed

#: The functions say when they have begun, and leave the name of what ended them in the file that they are given.
FUNCTIONS = '''
import asyncio, ctypes, re, time
from pathlib import Path
import kubetorch_jupyter as kt


def _leave(mark, error):
    Path(mark).write_text(type(error).__name__)


def sleeping(mark):
    print("go", mark)
    try:
        time.sleep(60)
    except BaseException as e:
        _leave(mark, e)
        raise


async def awaiting(mark):
    print("go", mark)
    try:
        await asyncio.sleep(60)
    except BaseException as e:
        _leave(mark, e)
        raise


def in_c(mark):
    print("go", mark)
    try:
        ctypes.CDLL(None).usleep(3_000_000)
        sum(range(1000))
    except BaseException as e:
        _leave(mark, e)
        raise


def in_c_with_the_lock(mark):
    """The worker can't even read the cancel meanwhile."""
    print("go", mark)
    time.sleep(0.1)
    try:
        ctypes.PyDLL(None).usleep(1_500_000)
        time.sleep(60)
    except BaseException as e:
        _leave(mark, e)
        raise


def sleeping_items(mark):
    yield 1
    try:
        print("go", mark)
        time.sleep(60)
        yield 2
    except BaseException as e:
        _leave(mark, e)
        raise


async def awaiting_items(mark):
    yield 1
    try:
        print("go", mark)
        await asyncio.sleep(60)
        yield 2
    except BaseException as e:
        _leave(mark, e)
        raise


def long_in_c(mark):
    print("go", mark)
    try:
        ctypes.CDLL(None).usleep(5_000_000)
        sum(range(1000))
    except BaseException as e:
        _leave(mark, e)
        raise


def in_c_items(mark):
    yield 1
    try:
        print("go", mark)
        ctypes.CDLL(None).usleep(3_000_000)
        sum(range(1000))
        yield 2
    except BaseException as e:
        _leave(mark, e)
        raise


def echo(x):
    return x


class Slow:
    def __init__(self, seconds=60):
        print("go")
        time.sleep(seconds)

    def hello(self):
        return "hello"


def deploy(*functions):
    return asyncio.gather(*[kt.fn(f).to_async(kt.Compute()) for f in functions])
'''
#: Those that are called.
NAMES = (
    "sleeping",
    "awaiting",
    "in_c",
    "long_in_c",
    "in_c_with_the_lock",
    "sleeping_items",
    "awaiting_items",
    "in_c_items",
    "echo",
)
DEPLOY = f"""
for name, handle in zip({NAMES}, await deploy({", ".join(NAMES)})):
    globals()["remote_" + name] = handle

def service_of(name):
    return globals()["remote_" + name].service
"""


@pytest.fixture(scope="module")
def all_kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Kernel]]:
    """A kernel of each version with all the functions deployed, for all tests of this module."""
    with ExitStack() as stack:
        factory = contextmanager(_factory)
        kernels = {v: stack.enter_context(factory(v, tmp_path_factory.mktemp("stop")))() for v in KERNELS}
        for code in ("%load_ext kubetorch_jupyter", FUNCTIONS, DEPLOY):
            run_each(list(kernels.values()), code)
        yield kernels


@pytest.fixture
def stopped(all_kernels: dict[str, Kernel]) -> list[Kernel]:
    """All of them."""
    return list(all_kernels.values())


@pytest.fixture
def newest(all_kernels: dict[str, Kernel]) -> Kernel:
    """The newest one, for what is the same in all."""
    return all_kernels[NEWEST]


def run_each(kernels: Sequence[Kernel], code: str) -> list[Cell]:
    """The same cell in each kernel, to its end."""
    return [cell.wait().ok() for cell in [kernel.begin(code) for kernel in kernels]]


def stop_each(kernels: Sequence[Kernel], codes: Sequence[str], waits_for: str, what: str, count: int = 1) -> list[Cell]:
    """Begin a cell in each kernel, press Stop when all their calls have begun, and hold what is promised."""
    cells = [kernel.begin(code) for kernel, code in zip(kernels, codes, strict=True)]
    for cell in cells:
        cell.wait_for(lambda cell=cell: cell.stdout.count(waits_for) >= count, 30, f"print {waits_for!r} {count} times")
    kernels[0].rest()
    pressed: list[float] = []
    for kernel in kernels:
        pressed.append(time.monotonic())
        kernel.interrupt()
    for cell, at in zip(cells, pressed, strict=True):
        cell.wait(20)
        assert cell.replied is not None
        assert cell.error is not None, f"a stopped cell went on\n{cell}"
        assert cell.error["ename"] in ("KeyboardInterrupt", "CancelledError"), cell.error
        promise(f"control back from {what}", cell.replied - at, 0.5)
    return cells


def stop(kernel: Kernel, code: str, waits_for: str, what: str) -> Cell:
    """`stop_each` of one kernel."""
    return stop_each([kernel], [code], waits_for, what)[0]


class Marks:
    """The files in which the functions leave what ended them.

    Parameters
    ----------
    place
        Where they are.
    service
        Whose: a place of which pods see all files doesn't ask.
    """

    def __init__(self, place: Place, service: str = "") -> None:
        self._place = place
        self._service = service

    def path(self, name: str = "mark") -> str:
        return self._place.path(name)

    def read(self, path: str) -> str:
        return self._place.read(self._service, path)

    def wait(self, path: str, timeout: float) -> str:
        deadline = time.monotonic() + timeout
        while not (text := self.read(path)):
            assert time.monotonic() < deadline, f"the remote side was not cancelled within {timeout} s ({path})"
            time.sleep(0.01)
        return text


@pytest.fixture
def marks(place: Place) -> Marks:
    """Where the functions leave their marks."""
    return Marks(place)


WAYS = {
    "blocking call": "remote_{kind}({mark!r})",
    "await": "await remote_{kind}({mark!r}, async_=True)",
    "gather": "await asyncio.gather(*[remote_{kind}({mark!r} + str(i), async_=True) for i in range(3)])",
    "map": "for x in remote_{kind}.map([{mark!r} + str(i) for i in range(3)]): print(x)",
    "async map": "async for x in remote_{kind}.map([{mark!r} + str(i) for i in range(3)]): print(x)",
    "generator": "for x in remote_{kind}_items({mark!r}): pass",
    "async generator": "async for x in remote_{kind}_items({mark!r}, async_=True): pass",
    "asyncio.run": "async def main():\n    await remote_{kind}({mark!r}, async_=True)\nasyncio.run(main())",
}
MANY = ("gather", "map", "async map")
#: What ipykernel logs when Stop comes in its own code, just before the cell's or after it: then it gives no reply.
UNANSWERED = "KeyboardInterrupt caught in kernel"
#: What the remote side sees, and how long after Stop at most, in seconds.
KINDS = {"sleeping": ("Cancelled", 2), "awaiting": ("CancelledError", 2), "in_c": ("Cancelled", 6)}


@pytest.mark.parametrize("way", WAYS)
def test_stop(stopped: list[Kernel], way: str, marks: Marks) -> None:
    """In each kernel; that the remote side can't be interrupted is the slowest case."""
    check(stopped, way, "in_c", marks)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "in_c"])
@pytest.mark.parametrize("way", WAYS)
def test_stop_of_what_can_be_interrupted(newest: Kernel, way: str, kind: str, marks: Marks) -> None:
    check([newest], way, kind, marks)


def check(kernels: list[Kernel], way: str, kind: str, marks: Marks) -> None:
    paths = [marks.path(f"mark-{n}-") for n in range(len(kernels))]
    count = 3 if way in MANY else 1
    codes = [WAYS[way].format(kind=kind, mark=path) for path in paths]
    for cell in stop_each(kernels, codes, "go", f"{way}, {kind}", count):
        assert "stopped waiting" not in cell.stdout
    began = time.monotonic()
    again = run_each(kernels, "remote_echo(1) + await remote_echo(2, async_=True)")
    assert [cell.result for cell in again] == ["3"] * len(kernels)
    assert time.monotonic() - began < 6
    expected, within = KINDS[kind]
    paths = [f"{path}{i}" for path in paths for i in range(3)] if way in MANY else paths
    assert [marks.wait(path, within) for path in paths] == [expected] * count * len(kernels)
    assert [cell.stdout for cell in again] == [""] * len(kernels)


def states(kernel: Kernel, name: str) -> list[str]:
    text = kernel.run(f"[c['state'] for c in service_of({name!r}).calls() if not c.get('ended')]").result
    assert text is not None
    return list(eval(text))


def test_a_call_that_cannot_be_interrupted_is_listed_as_cancelling(newest: Kernel, marks: Marks) -> None:
    mark = marks.path()
    stop(newest, f"remote_long_in_c({mark!r})", "go", "a call in C")
    assert states(newest, "long_in_c") == ["cancelling"]
    # The same service answers meanwhile.
    assert newest.run("other = remote_long_in_c.spawn('/dev/null')\nother.id\nother.status").result == "'running'"
    newest.run("other.cancel()")
    assert marks.wait(mark, 8) == "Cancelled"
    until(lambda: not states(newest, "long_in_c"))


@pytest.mark.parametrize(
    "call", ["remote_in_c_with_the_lock({!r})", "await remote_in_c_with_the_lock({!r}, async_=True)"]
)
def test_a_call_that_holds_the_interpreter_lock(newest: Kernel, call: str, marks: Marks) -> None:
    mark = marks.path()
    stop(newest, call.format(mark), "go", "a call in C that holds the lock")
    assert marks.wait(mark, 5) == "Cancelled"


def test_twice_in_a_row(stopped: list[Kernel], marks: Marks) -> None:
    """The second Stop finds no state of the first."""
    for n in range(2):
        paths = [marks.path(f"mark-{n}-{k}") for k in range(len(stopped))]
        codes = [f"await remote_awaiting({path!r}, async_=True)" for path in paths]
        stop_each(stopped, codes, "go", f"await, time {n + 1}")
        for mark in paths:
            assert marks.wait(mark, 2) == "CancelledError"


def test_waiting_for_a_spawned_call_does_not_cancel_it(newest: Kernel, marks: Marks) -> None:
    for number, wait in enumerate(("call.result()", "await call")):
        mark = marks.path(f"mark{number}")
        began = newest.run(f"call = remote_awaiting.spawn({mark!r})").wait_text("go")
        assert began.stdout.startswith("go")
        stop(newest, f"print('wait', flush=True)\n{wait}", "wait", wait)
        assert not marks.read(mark)
        assert newest.run("call.status").result == "'running'"
        assert newest.run("call.cancel()").result == "True"
        assert marks.wait(mark, 2) == "CancelledError"


def test_stop_at_any_moment(newest: Kernel, marks: Marks) -> None:
    """While the call is made, sent, begun: the cell ends, and the next one works."""
    random_ = random.Random(7)
    calls = ["remote_sleeping({!r})", "await remote_awaiting({!r}, async_=True)", "list(remote_sleeping.map([{!r}]))"]
    slowest = 0.0
    before, unanswered = newest.log.count(UNANSWERED), 0
    for n in range(24):
        cell = newest.begin(calls[n % len(calls)].format(marks.path(f"mark{n}")))
        cell.wait_for(lambda cell=cell: cell.started, 10, "begin")
        time.sleep(random_.uniform(0, 0.02))
        pressed = time.monotonic()
        newest.interrupt()
        cell.wait_for(lambda cell=cell: cell.idle, 20, "end")
        assert cell.idle is not None
        slowest = max(slowest, cell.idle - pressed)
        if newest.log.count(UNANSWERED) > before + unanswered:
            unanswered += 1
        else:
            assert cell.wait(20).error is not None, cell
        assert newest.run("remote_echo(1)").result == "1"
    assert unanswered < 6
    promise("control back at any moment", slowest, 0.5)
    for name in ("sleeping", "awaiting"):
        deadline = time.monotonic() + 2
        while states(newest, name):
            assert time.monotonic() < deadline, "a call that was stopped runs on"


@pytest.mark.parametrize(
    "code",
    [
        "kt.cls(Slow).to(kt.Compute())",
        "await kt.cls(Slow).to_async(kt.Compute())",
        "asyncio.run(kt.cls(Slow).to_async(kt.Compute()))",
    ],
)
def test_stop_while_deploying(stopped: list[Kernel], code: str, place: Place) -> None:
    """Nothing is left of a first deploy, and what was deployed before goes on."""
    before = [place.running(kernel) for kernel in stopped]
    codes = [code] * len(stopped)
    stop_each(stopped, codes, "go", code)
    # At once, while the first one is still being removed.
    run_each(stopped, "slow = kt.cls(Slow).to(kt.Compute(), init_args={'seconds': 0})")
    assert [cell.result for cell in run_each(stopped, "slow.hello()")] == ["'hello'"] * len(stopped)
    run_each(stopped, "slow.service.teardown()")
    stop_each(stopped, codes, "go", code)
    deadline = time.monotonic() + place.patience
    for kernel, ran in zip(stopped, before, strict=True):
        while kernel.run("[s.name for s in kt.services() if 'slow' in s.name]").result != "[]":
            assert time.monotonic() < deadline, "the deploy that was stopped is still listed"
        while (runs := place.running(kernel)) != ran:
            assert time.monotonic() < deadline, f"of the deploy that was stopped there are still {set(runs) - set(ran)}"
            time.sleep(0.05)
    assert [cell.result for cell in run_each(stopped, "remote_echo(1)")] == ["1"] * len(stopped)
