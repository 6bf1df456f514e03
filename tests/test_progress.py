"""Progress outside of notebooks: as lines, on a terminal, and how it ends, whatever happens."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kubetorch_jupyter as kt
from kubetorch_jupyter.progress import DeployProgress, Line, Phase, State, Status, line, mapping, set_view_factory
from kubetorch_jupyter.transport.portal import get_portal
from tests.conftest import ROOT
from tests.terminal import run_in_terminal, screen
from tests.waiting import until

#: As `python -m kubetorch_jupyter` would run them; a class that is slow to construct and says so.
SLOW = """
import asyncio, sys, threading, time
import kubetorch_jupyter as kt

class Model:
    def __init__(self, seconds):
        print("weights are read")
        time.sleep(seconds)
        print("half", end="")
        time.sleep(0.3)
        print(" and whole")
    def f(self): return 1

def wait(x):
    time.sleep(0.1)
    return x
"""


def script(tmp_path: Path, code: str) -> list[str]:
    path = tmp_path / "script.py"
    path.write_text(SLOW + textwrap.dedent(code))
    return [sys.executable, "-m", "kubetorch_jupyter", str(path)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def assert_clock_stopped() -> None:
    """Nothing ticks on the portal, and nothing waits for its end."""

    async def look() -> tuple[Any, ...]:
        return line._ticker._handle, dict(line._ticker._lines), line._ticker._portal

    assert get_portal().run(look()) == (None, {}, None)


class Recorder:
    """A view that keeps what it is given, and can wait or fail."""

    def __init__(self) -> None:
        self.shown: list[tuple[float, Status]] = []
        self.notes: list[str] = []
        self.held = threading.Event()
        self.held.set()
        self.error: Exception | None = None

    def show(self, status: Status) -> None:
        self.shown.append((time.monotonic(), status))
        if self.error is not None:
            raise self.error
        self.held.wait(20)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    @property
    def texts(self) -> list[str]:
        return [status.text for _, status in self.shown]

    @property
    def last(self) -> Status:
        return self.shown[-1][1]

    def wait_end(self) -> Status:
        """The final state, where nobody else waits for it."""
        deadline = time.monotonic() + 10
        while not self.shown or not self.last.final:
            assert time.monotonic() < deadline, self.texts
            time.sleep(0.01)
        return self.last


@pytest.fixture
def view() -> Iterator[Recorder]:
    recorder = Recorder()
    set_view_factory(lambda: recorder)
    yield recorder
    recorder.held.set()
    set_view_factory(None)
    assert_clock_stopped()


# -- one line ----------------------------------------------------------------------------------------------------------


def test_what_is_fast_shows_its_first_and_its_last_state(view: Recorder) -> None:
    async def deploy() -> None:
        async with DeployProgress("t-one") as progress:
            await asyncio.sleep(0)  # the clock begins
            for phase in Phase:
                progress(phase)
            await progress.done('"t-one" is ready')

    get_portal().run(deploy())
    first, last = (status for _, status in view.shown)
    assert re.fullmatch(r'kubetorch: "t-one" is being packed, \d\.\d\d s', first.text)
    assert first == Status(first.text)
    assert last == Status('kubetorch: "t-one" is ready', State.DONE)


def test_a_deploys_line_begins_and_ends_with_it(view: Recorder) -> None:
    def quick() -> None: ...

    with kt.fn(quick).to(kt.Compute()):
        (_, first), *_, (_, last) = view.shown
    assert re.match(r'kubetorch: "quick" is being packed, \d\.\d', first.text)
    assert re.fullmatch(r'kubetorch: "quick" is ready on local pods in \d+\.\d\d s \(sent .*\)', last.text)
    assert last.state is State.DONE


def test_phases_and_time_go_on_and_stop(view: Recorder) -> None:
    async def deploy() -> None:
        async with DeployProgress("t-one") as progress:
            progress(Phase.SCHEDULING, "0/3 nodes have a GPU")
            await asyncio.sleep(0.6)
            progress(Phase.IMAGE)
            progress.note("pulled from a mirror")
            await asyncio.sleep(1.6)
            await progress.done('"t-one" is ready')
            progress(Phase.LOADING)

    get_portal().run(deploy())
    assert view.last == Status('kubetorch: "t-one" is ready', State.DONE)
    assert view.notes == ["kubetorch: pulled from a mirror"]
    pattern = r'kubetorch: "t-one" is (being scheduled, \S+ s: 0/3 nodes have a GPU|getting its image, \S+ s)'
    running = view.texts[:-1]
    assert all(re.fullmatch(pattern, text) for text in running), running
    assert len(set(running)) == len(running) >= 4
    times = [at for at, _ in view.shown]
    assert min(b - a for a, b in itertools.pairwise(times[:-1])) > 0.1  # at most 10 times a second


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (ValueError("first\nsecond"), State.FAILED, r"failed after \d\.\d\d s while loading: ValueError: first"),
        (asyncio.CancelledError(), State.STOPPED, r"was stopped after \d\.\d\d s while loading"),
        (KeyboardInterrupt(), State.STOPPED, r"was stopped after \d\.\d\d s while loading"),
    ],
)
def test_an_exception_is_the_end_of_the_line(view: Recorder, error: BaseException, state: State, text: str) -> None:
    progress = DeployProgress("t-one")
    progress(Phase.LOADING)
    with pytest.raises(type(error)), progress:
        raise error
    assert view.last.state is state
    assert re.fullmatch(f'kubetorch: "t-one" {text}', view.last.text)


def test_packing_that_fails_ends_the_line(view: Recorder) -> None:
    lock = threading.Lock()
    with pytest.raises(kt.SerializationError):
        kt.fn(lambda: lock, name="locked").to(kt.Compute())
    assert view.last.state is State.FAILED
    assert "while being packed: SerializationError" in view.last.text


def test_silence(view: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    def slow(x: int) -> int:
        import time

        time.sleep(0.3)
        return x

    with kt.fn(slow).to(kt.Compute(), stream_logs=False) as handle:
        assert list(handle.map([1, 2, 3], concurrency=1)) == [1, 2, 3]
    kt.fn(slow).to(kt.Compute(), dryrun=True)
    assert not view.shown
    assert not view.notes
    assert capsys.readouterr() == ("", "")


def test_a_view_that_fails_harms_nothing(view: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    view.error = OSError("the pipe is closed")
    with caplog.at_level(logging.WARNING), kt.fn(abs, name="t-abs").to(kt.Compute()) as handle:
        assert handle(-3) == 3
    assert len(view.shown) == 1
    assert [r.getMessage() for r in caplog.records] == ["progress can't be shown: OSError: the pipe is closed"]


def test_a_terminal_that_is_held_holds_up_nothing_for_long(view: Recorder) -> None:
    view.held.clear()
    began = time.monotonic()
    with kt.fn(abs, name="t-abs").to(kt.Compute()) as handle:
        assert time.monotonic() - began < 3
        assert handle(-3) == 3


def test_many_lines_are_shown_less_often(view: Recorder) -> None:
    lines = [Line(lambda now: Status(f"{now}")) for _ in range(50)]
    began = time.monotonic()
    for each in lines:
        each.begin()
    time.sleep(1.3)  # what is counted is what comes in it
    for each in lines:
        each.drop(Status("", State.DONE))
    get_portal().run(asyncio.sleep(0))
    # The first and the last of each, and one turn of the clock in a second.
    assert len(view.shown) <= 50 + 50 + 50 * (int(time.monotonic() - began) + 1)


# -- maps --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow() -> Iterator[Any]:
    def slow(x: int) -> int:
        import time

        time.sleep(0.05)
        if x < 0:
            raise ValueError(f"{x} is negative")
        return x

    with kt.fn(slow).to(kt.Compute(concurrency=4)) as handle:
        yield handle


def test_a_map_shows_how_far_it_is(view: Recorder, slow: Any) -> None:
    assert sum(slow.map(range(80), concurrency=4)) == 3160
    assert re.fullmatch(r"kubetorch: map of slow, 80 of 80 done, \d+ a second, \S+ s", view.last.text)
    assert view.last.state is State.DONE
    assert view.last.share == 1
    first = view.shown[0][1]
    assert 0 < (first.share or 0) < 1
    assert re.fullmatch(r"\[#+-+\] kubetorch: map of slow, \d+ of 80 done, \d+ a second, \S+ s", first.plain())


def test_a_map_that_is_brief_shows_nothing(view: Recorder, slow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "_DELAY", 5.0)
    assert list(slow.map(range(4))) == [0, 1, 2, 3]
    assert not view.shown


def test_a_map_whose_results_are_taken_slowly_says_how_long_its_calls_took(view: Recorder, slow: Any) -> None:
    for _ in slow.map(range(8)):
        time.sleep(0.1)
    match = re.fullmatch(r"kubetorch: map of slow, 8 of 8 done, (\S+) a second, (\S+) s", view.last.text)
    assert match is not None, view.last
    # Two rounds of four calls, which sleep for 0.05 s each.
    assert float(match[2]) >= 0.1
    assert float(match[1]) <= 80


def test_failed_calls_are_counted(view: Recorder, slow: Any) -> None:
    items = [1, -1] * 24
    results = list(slow.starmap(([x] for x in items), concurrency=4, return_exceptions=True))
    assert sum(isinstance(r, ValueError) for r in results) == 24
    # A generator has no length.
    assert re.fullmatch(r"kubetorch: map of slow, 48 done, 24 failed, \d+ a second, \S+ s", view.last.text)


def test_an_error_ends_a_maps_line(view: Recorder, slow: Any) -> None:
    with pytest.raises(ValueError, match="negative"):
        list(slow.map([*range(48), -1, *range(100)], concurrency=4))
    assert view.last.state is State.FAILED
    assert re.search(r"done, 1 failed, .*; ValueError: -1 is negative", view.last.text)


@pytest.mark.parametrize("how", ["close", "forget"])
def test_an_abandoned_map_ends_its_line(view: Recorder, slow: Any, how: str) -> None:
    results = slow.map(range(1000), concurrency=4)
    for x in results:
        if x == 48:
            break
    if how == "close":
        results.close()
    del results
    gc.collect()
    assert view.wait_end().state is State.STOPPED
    assert re.fullmatch(r"kubetorch: map of slow, (49|5\d) of 1000 done, \d+ a second, \S+ s; stopped", view.last.text)


def test_the_same_awaited(view: Recorder, slow: Any) -> None:
    async def all_of_it() -> int:
        return sum([x async for x in slow.map(range(48), concurrency=4)])

    async def some_of_it() -> None:
        async for x in slow.map(range(1000), concurrency=4):
            assert x < 1000

    async def stop() -> None:
        task = asyncio.create_task(some_of_it())
        await asyncio.sleep(0.8)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    assert asyncio.run(all_of_it()) == 1128
    assert re.fullmatch(r"kubetorch: map of slow, 48 of 48 done, \d+ a second, \S+ s", view.last.text)
    view.shown.clear()
    asyncio.run(stop())
    assert view.wait_end().state is State.STOPPED


def test_a_map_whose_results_nobody_takes_does_not_tick(view: Recorder, slow: Any) -> None:
    results = slow.map(range(100), concurrency=16)
    for x in results:
        if x == 40:
            break

    def still() -> bool:
        count = len(view.shown)
        time.sleep(0.6)
        return len(view.shown) == count

    until(still)  # when all that are under way have ended
    results.close()


# -- places ------------------------------------------------------------------------------------------------------------


def test_a_pipe_gets_what_stays(tmp_path: Path) -> None:
    code = """
        model = kt.cls(Model).to(kt.Compute(), init_args=[0.3])
        handle = kt.fn(wait).to(kt.Compute(concurrency=4, replicas=2))
        print(sum(handle.map(range(30), concurrency=4)))
        try:
            kt.cls(Model, name="other").to(kt.Compute(), init_args=["x"])
        except kt.StartupError:
            print("failed")
    """
    done = subprocess.run(script(tmp_path, code), capture_output=True, text=True, env=environment(), timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    expected = [
        "weights are read",
        "half and whole",
        r'kubetorch: "model" is ready on local pods in \S+ s \(sent .*\)',
        "kubetorch: replicas of the Compute mean something on Kubernetes only, and are ignored here",
        r'kubetorch: "wait" is ready on local pods in \S+ s \(sent .*\)',
        r"kubetorch: map of wait, 30 of 30 done, \d+ a second, \S+ s",
        "435",
        "weights are read",
        r'kubetorch: "other" failed after \S+ s while loading: TypeError: .*',
        "failed",
    ]
    lines = done.stdout.splitlines()
    assert len(lines) == len(expected), done.stdout
    for found, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, found), (found, pattern)


def test_a_terminal_has_one_row_that_makes_way(tmp_path: Path) -> None:
    code = """
        async def main():
            await asyncio.gather(
                kt.cls(Model, name="first").to_async(kt.Compute(), init_args=[1.2]),
                kt.cls(Model, name="second").to_async(kt.Compute(), init_args=[0.8], stream_logs=False),
                kt.fn(wait).to_async(kt.Compute(concurrency=4)),
            )
        asyncio.run(main())
        handle = kt.fn(wait).to(kt.Compute(concurrency=4))
        for x in handle.map(range(40), concurrency=4):
            if x % 10 == 9:
                print("seen", x)
    """
    written = run_in_terminal(script(tmp_path, code), environment())
    rows = screen(written)
    expected = [
        r'kubetorch: "wait" is ready on local pods in \S+ s \(sent .*\)',
        r"(first·\d )?weights are read",
        r"(first·\d )?half and whole",
        r'kubetorch: "first" is ready on local pods in \S+ s \(sent .*\)',
        'kubetorch: "wait" is unchanged: the same instance goes on',
        *(f"seen {x}" for x in (9, 19, 29, 39)),
        r"kubetorch: map of wait, 40 of 40 done, \d+ a second, \S+ s",
        "",
    ]
    assert len(rows) == len(expected), "\n".join(rows)
    if "weights" in rows[0]:  # which of the two comes first is chance
        rows[:2] = reversed(rows[:2])
    for row, pattern in zip(rows, expected, strict=True):
        assert re.fullmatch(pattern, row), (row, pattern)
    assert re.search(r'\r[^\n\r]*"first" is loading, \d\.\d+ s[^\n\r]*\x1b\[K', written)
    assert re.search(r"\r\[#+-+\] kubetorch: map of wait, \d+ of 40 done", written)


def test_the_end_of_python_ends_the_line(tmp_path: Path) -> None:
    code = """
        def deploy():
            try:
                kt.cls(Model).to(kt.Compute(), init_args=[30])
            except BaseException:
                pass
        threading.Thread(target=deploy, daemon=True).start()
        while not any(s.state == "running" for s in kt.services()):
            time.sleep(0.05)
        time.sleep(1)  # for the class to say something, and the clock to tick
    """
    began = time.monotonic()
    rows = screen(run_in_terminal(script(tmp_path, code), environment()))
    assert time.monotonic() - began < 10
    assert rows[0] == "weights are read"
    assert re.fullmatch(r'kubetorch: "model" is loading, \S+ s; stopped, because Python ended', rows[1]), rows
    assert rows[2:] == [""]
