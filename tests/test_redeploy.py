"""Redeploy: what has begun ends with its own version, nothing fails, memory stays flat (issue case 11)."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest

import kubetorch_jupyter as kt
from tests.cells import Cells
from tests.places import Place
from tests.promises import promise


def _versioned(version: int) -> Any:
    cells = Cells()
    cells.run(
        f"""
        import asyncio, time
        async def work(k):
            version, began = {version}, time.monotonic()
            await asyncio.sleep(0.002 * (k % 5))
            return k, version, began
        """
    )
    return cells["work"]


@pytest.fixture
def rounds() -> int:
    """How often it is deployed anew."""
    return 100


@pytest.mark.timed
def test_redeploys_under_64_calls_in_flight(rounds: int, place: Place) -> None:
    """Each call returns the version that it began with, in the pod's own order of events."""
    handle = kt.fn(_versioned(0), name="versions").to(kt.Compute(), stream_logs=False)
    seen: list[tuple[int, int, float]] = []

    async def run() -> list[float]:
        stop = False
        took: list[float] = []

        async def caller(k: int) -> None:
            while not stop:
                value = await handle(k, async_=True)
                assert value[0] == k
                seen.append(value)

        callers = [asyncio.create_task(caller(k)) for k in range(64)]
        for version in range(1, rounds + 1):
            start = time.monotonic()
            await kt.fn(_versioned(version), name="versions").to_async(kt.Compute(), stream_logs=False)
            took.append(time.monotonic() - start)
            # A call made after the deploy has the new version.
            assert (await handle(0, async_=True))[1] == version
        stop = True
        await asyncio.gather(*callers)
        return took

    with handle:
        worker = handle.service.status()["worker"]
        took = asyncio.run(run())
        grown = []
        for _ in range(2):  # an arena or a thread's stack comes once, what is left of each redeploy each time
            memory = place.usage(handle)["worker"].memory
            asyncio.run(_more(handle, rounds))
            grown.append(place.usage(handle)["worker"].memory - memory)
        assert handle.service.status()["worker"] == worker, "a redeploy of a function must not need a new worker"
    versions = [version for _, version, _ in sorted(seen, key=lambda row: row[2])]
    assert versions == sorted(versions), "a call began with older code than one that began before it"
    assert {0, rounds} <= set(versions)
    assert min(grown) < 8 << 20, f"the worker grew by {grown} bytes in {rounds} more redeploys each"
    promise("a redeploy under load, median", sorted(took)[rounds // 2], 0.1)


async def _more(handle: kt.Fn[Any, Any], rounds: int) -> None:
    for version in range(rounds):
        await kt.fn(_versioned(1000 + version), name="versions").to_async(kt.Compute(), stream_logs=False)
        await asyncio.gather(*(handle(k, async_=True) for k in range(8)))


def _model(version: int, log: str) -> Any:
    cells = Cells()
    cells.run(
        f"""
        import os, time
        class Model:
            version = {version}
            def __init__(self, log):
                self.log = log
                self.note("init")
            def note(self, what):
                with open(self.log, "a") as f:
                    f.write(f"{{what}} {version} {{time.monotonic()}}\\n")
            def work(self):
                self.note("begin")
                time.sleep(0.01)
                self.note("end")
                return {version}
            def __del__(self):
                self.note("del")
        """
    )
    return cells["Model"]


def test_a_changed_class_never_runs_beside_the_old_one(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "log"
    log = str(file)
    args = {"log": log}
    with kt.cls(_model(0, log)).to(kt.Compute(), init_args=args, stream_logs=False) as model:

        async def run() -> list[int]:
            stop = False
            results: list[int] = []

            async def caller() -> None:
                while not stop:
                    results.append(await model.work(async_=True))

            callers = [asyncio.create_task(caller()) for _ in range(8)]
            for version in range(1, 11):
                await asyncio.sleep(0.03)
                await kt.cls(_model(version, log)).to_async(kt.Compute(), init_args=args)
            stop = True
            await asyncio.gather(*callers)
            return results

        results = asyncio.run(run())
    assert "state is lost" in capsys.readouterr().out
    assert results == sorted(results)
    assert {0, 10} <= set(results)
    running = 0
    current = -1
    for line in file.read_text().splitlines():
        what, version, _ = line.split()
        if what == "init":
            assert running == 0, "constructed while calls of the old one ran"
            current = int(version)
        elif what in ("begin", "end"):
            assert int(version) == current, "two versions ran at once"
            running += 1 if what == "begin" else -1
    assert "del 0 " in file.read_text(), "the old one was not dropped"


def test_unchanged_code_keeps_the_instance(capsys: pytest.CaptureFixture[str]) -> None:
    cells = Cells()
    source = """
        import os
        class Counter:
            def __init__(self, start): self.n = start
            def add(self): self.n += 1; return self.n
        """
    cells.run(source)
    with kt.cls(cells["Counter"]).to(kt.Compute(), init_args={"start": 5}) as counter:
        assert counter.add() == 6
        again = Cells()  # the same cells run again define other objects of the same source
        again.run(source)
        counter = kt.cls(again["Counter"]).to(kt.Compute(), init_args={"start": 5})
        assert "unchanged" in capsys.readouterr().out
        assert counter.add() == 7
        counter = kt.cls(again["Counter"]).to(kt.Compute(), init_args={"start": 1})
        assert "state is lost" in capsys.readouterr().out
        assert counter.add() == 2


def test_a_failed_redeploy_leaves_the_old_function() -> None:
    cells = Cells()
    cells.run("def f(): return 'old'\n")
    with kt.fn(cells["f"]).to(kt.Compute(), stream_logs=False) as f:
        cells.run(
            """
            class Poison:
                def __reduce__(self): return (__import__, ("not_there_at_all",))
            poison = Poison()
            def f(): return poison
            """
        )
        with pytest.raises(kt.KubetorchError, match="not_there_at_all"):
            kt.fn(cells["f"]).to(kt.Compute(), stream_logs=False)
        assert f() == "old"


def test_a_class_that_fails_leaves_the_old_class_constructed_anew(capsys: pytest.CaptureFixture[str]) -> None:
    cells = Cells()
    cells.run("class M:\n    def get(self): return 1\n")
    with kt.cls(cells["M"]).to(kt.Compute(), stream_logs=False) as m:
        cells.run("class M:\n    def __init__(self): raise OSError('no weights')\n    def get(self): return 2\n")
        with pytest.raises(kt.StartupError, match="no weights"):
            kt.cls(cells["M"]).to(kt.Compute())
        assert "goes on with the code that it had" in capsys.readouterr().out
        assert m.get() == 1
        cells.run("class M:\n    def get(self): return 3\n")
        kt.cls(cells["M"]).to(kt.Compute(), stream_logs=False)
        assert m.get() == 3


def test_changed_modules_and_environment_take_a_fresh_worker(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "localmod_redeploy.py").write_text("VALUE = 1\n")
    cells = Cells()
    cells.run(
        "import os, localmod_redeploy\n"
        "def f(): return localmod_redeploy.VALUE, os.environ.get('MY_SETTING'), os.getpid()\n"
    )
    with kt.fn(cells["f"]).to(kt.Compute(), stream_logs=False) as f:
        value, setting, pid = f()
        assert (value, setting) == (1, None)
        assert pid != os.getpid()
        (tmp_path / "localmod_redeploy.py").write_text("VALUE = 22\n")
        kt.fn(cells["f"]).to(kt.Compute(), stream_logs=False)
        value, _, second = f()
        assert value == 22
        assert second != pid
        monkeypatch.setenv("MY_SETTING", "on")
        kt.fn(cells["f"]).to(kt.Compute(), stream_logs=False)
        value, setting, third = f()
        assert (value, setting) == (22, "on")
        assert third not in (pid, second)
        kt.fn(cells["f"]).to(kt.Compute(), stream_logs=False)
        assert f()[2] == third
