"""A service of several pods, by the public API: how calls are spread, what a lost pod costs, one version for all."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kubetorch_jupyter as kt
from kubetorch_jupyter.transport.portal import get_portal
from pod_server import codefile
from tests.cells import Cells
from tests.local import ROOT
from tests.replicas import Several
from tests.waiting import until

CODE = """
import asyncio, os, threading, time

def who(seconds=0.0):
    time.sleep(seconds)
    return os.getppid(), os.getpid()

async def wait(seconds):
    await asyncio.sleep(seconds)
    return os.getpid()

def say(text):
    print(text)
    return os.getpid()

def count(n):
    for i in range(n):
        yield i

class Tally:
    def __init__(self):
        self.n = 0
    def add(self):
        self.n += 1
        return os.getpid(), self.n
    def die(self):
        os._exit(3)
"""
THREE = kt.Compute(replicas=3)


@pytest.fixture
def cells() -> Cells:
    cells = Cells()
    cells.run(CODE)
    return cells


@pytest.fixture
def several() -> Iterator[Several]:
    backend = Several()
    with backend.install():
        yield backend


def deploy(function: Any, compute: kt.Compute = THREE, **options: Any) -> Any:
    make = kt.cls if isinstance(function, type) else kt.fn
    return make(function, **options).to(compute, stream_logs=False)


def kill(several: Several, name: str, rank: int) -> None:
    """Kill a pod's front, and its zygote and worker with it, without waiting until anybody has noticed."""
    record = several.pods(name)[rank]
    assert record.front is not None
    os.kill(record.front[0], signal.SIGKILL)


def workers(handle: Any) -> list[int]:
    """The process of each replica's worker, by rank."""
    return [row["worker"] for row in handle.service.status()["replicas"]]


# -- how calls are spread ----------------------------------------------------------------------------------------------


def test_calls_in_flight_are_spread_evenly(several: Several, cells: Cells) -> None:
    with deploy(cells["wait"]) as wait:

        async def all_at_once() -> list[int]:
            return await asyncio.gather(*(wait.aio(0.5) for _ in range(64)))

        counts = Counter(asyncio.run(all_at_once()))
        assert set(counts) == set(workers(wait))
        assert max(counts.values()) <= 22, counts
        assert several.kept[-1]["name"] == "wait"


def test_a_busy_pod_gets_fewer_and_idle_ones_take_turns(several: Several, cells: Cells) -> None:
    with deploy(cells["wait"]) as wait:
        assert Counter(wait(0) for _ in range(30)) == dict.fromkeys(workers(wait), 10)
        busy = wait.spawn(30)
        until(lambda: busy.status == "running")
        used = Counter(wait(0) for _ in range(20))
        assert sorted(used.values()) == [10, 10]
        [row] = [row for row in wait.service.calls() if row["state"] == "running"]
        assert workers(wait)[row["replica"]] not in used
        busy.cancel()


def test_map_gather_spawn_generators_and_methods(several: Several, cells: Cells) -> None:
    with deploy(cells["who"]) as who:
        results = list(who.map([0.05] * 30, concurrency=30))
        counts = Counter(pid for _, pid in results)
        assert set(counts) == set(workers(who))
        assert max(counts.values()) <= 12, counts
        calls = [who.spawn(0.05) for _ in range(9)]
        assert len({call.result()[1] for call in calls}) == 3
    with deploy(cells["count"]) as count:
        assert [list(count(50)) for _ in range(4)] == [list(range(50))] * 4
    with deploy(cells["Tally"]) as tally:
        found = [tally.add() for _ in range(9)]  # each replica has a state of its own
        assert sorted(n for _, n in found) == [1, 1, 1, 2, 2, 2, 3, 3, 3]
        assert set(workers(tally)) == {pid for pid, _ in found}


# -- what is asked of a service ----------------------------------------------------------------------------------------


def test_lists_logs_and_status_are_of_all_replicas(several: Several, cells: Cells) -> None:
    with deploy(cells["say"], name="talker") as say:
        assert len({say(f"line {i}") for i in range(3)}) == 3
        rows = say.service.calls()
        assert sorted(row["replica"] for row in rows) == [0, 1, 2]
        for row in rows:
            assert say.service.tail(row["id"]).startswith("line ")
            assert kt.logs(row["id"]).startswith("line ")
        assert {row["replica"] for row in say.service.events() if row["event"] == "loaded"} == {0, 1, 2}
        listed = [row for row in kt.calls() if row["service"] == "talker"]
        assert {row["id"] for row in listed} == {row["id"] for row in rows}
        assert kt.calls("talker") == listed
        text = kt.logs(say)
        for i in range(3):
            assert f"==> talker, replica {i} <==" in text
            assert f"line {i}\n" in text
        [info] = kt.services(usage=True)
        assert info.name == "talker"
        assert info.status is not None
        each = say.service.status()["replicas"]
        assert info.status["memory"] > 2 * min(row["memory"] for row in each)
        before = workers(say)
        say.service.restart()
        assert not set(before) & set(workers(say))
        assert say.service.logs() == "" or "replica" in say.service.logs()


def test_a_call_is_found_in_the_pod_that_has_it(several: Several, cells: Cells) -> None:
    with deploy(cells["wait"]) as wait:
        calls = [wait.spawn(30) for _ in range(3)]
        ids = [call.id for call in calls]
        other = kt.attach(ids[1])
        assert other.status in ("starting", "running")
        assert wait.service.cancel(ids[0]) is True
        with pytest.raises(kt.CallCancelledError):
            calls[0].result(timeout=5)
        script = f"""
            import kubetorch_jupyter as kt
            from tests.replicas import Several
            with Several().install():
                call = kt.attach({ids[1]!r})
                assert call.cancel()
                try:
                    call.result(timeout=5)
                except kt.CallCancelledError:
                    print("cancelled")
                found = kt.Fn.from_name("wait")
                print(len({{found(0) for _ in range(6)}}))
                try:
                    kt.attach("wait/01JD0000000000000800000003")
                except kt.UnknownCallError:
                    print("unknown")
        """
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.stdout.split() == ["cancelled", "3", "unknown"], run.stderr
        with pytest.raises(kt.CallCancelledError):
            other.result(timeout=5)
        calls[2].cancel()


# -- lost pods ---------------------------------------------------------------------------------------------------------


def test_a_lost_pod_costs_its_own_calls_only(several: Several, cells: Cells) -> None:
    with deploy(cells["wait"]) as wait:
        calls = [wait.spawn(1.5) for _ in range(9)]
        until(lambda: len(wait.service.calls()) == 9)
        of = {row["id"]: row["replica"] for row in wait.service.calls()}
        kill(several, "wait", 1)
        slowest, lost = 0.0, 0
        for _ in range(200):
            begun = time.monotonic()
            try:
                wait(0)
            except kt.PodLostError:
                lost += 1
            slowest = max(slowest, time.monotonic() - begun)
        assert slowest < 1.0
        assert lost <= 1  # it was given to the pod in the moment of its death
        for call in calls:
            if of[call.id] == 1:
                with pytest.raises((kt.PodLostError, kt.WorkerDiedError)):
                    call.result(timeout=10)
                with pytest.raises(kt.PodLostError):
                    call.logs()
            else:
                assert call.result(timeout=10) in workers(wait)
        # What is asked of all is answered by those that live.
        assert [row["replica"] for row in wait.service.status()["replicas"]] in ([0, 2], [0, 1, 2])
        assert {row["replica"] for row in kt.calls("wait") if row["id"]} == {0, 2}
        # Nobody looks for another pod all the time.
        before = several.finds
        for _ in range(100):
            wait(0)
        assert several.finds - before <= 3


def test_a_pod_that_doesnt_answer_holds_no_call_up(
    several: Several, cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing says that it has ended: connecting to it takes as long as it may."""
    ways = several.endpoint

    def endpoint(name: str, rank: int, record: Any) -> Any:
        return replace(ways(name, rank, record), **({"url": "http://127.0.0.1:1", "gone": None} if rank == 1 else {}))

    with deploy(cells["wait"]):
        monkeypatch.setattr(several, "endpoint", endpoint)
        found = kt.Fn.from_name("wait")
        begun = time.monotonic()
        assert len({found(0) for _ in range(10)}) == 2
        for _ in range(5):
            time.sleep(0.3)
            found(0)
        assert time.monotonic() - begun < 5
        begun = time.monotonic()
        rows = found.service.status()["replicas"]
        assert [row["state"] for row in rows] == ["ready", "unreachable", "ready"]
        assert "replica 1" in rows[1]["reason"] or "could not be reached" in rows[1]["reason"]
        assert time.monotonic() - begun < 4
        unreachable = [row for row in found.service.calls() if row["state"] == "unreachable"]
        assert [row["replica"] for row in unreachable] == [1]
        with pytest.raises(kt.ConnectionFailedError):  # that one may have it
            kt.attach("wait/01JD0000000000000800000003")


def test_the_pod_that_comes_in_its_place_is_taken_up(several: Several, cells: Cells, tmp_path: Path) -> None:
    """And gets the code, when it was too large to be kept for it."""
    with deploy(cells["wait"]) as wait:
        first = set(workers(wait))
        kill(several, "wait", 2)
        until(lambda: 2 not in several.pods("wait"))
        lost = tmp_path / "code"
        lost.write_bytes(codefile.missing(several.kept[-1], 5_000_000))
        several.params = {"code_file": str(lost), "containers": True}
        several.replace_pod("wait", 2)
        seen: set[int] = set()
        deadline = time.monotonic() + 15
        while len(seen - first) < 1 and time.monotonic() < deadline:
            seen.add(wait(0))
        assert len(seen - first) == 1
        assert sorted(row["replica"] for row in wait.service.status()["replicas"]) == [0, 1, 2]
        assert len({wait(0) for _ in range(6)}) == 3


def test_a_pod_without_code_gets_none_that_others_dont_have(several: Several, cells: Cells, tmp_path: Path) -> None:
    with deploy(cells["wait"]) as wait:
        old = kt.Fn.from_name("wait")
        assert old(0) in workers(wait)
        kill(several, "wait", 2)
        until(lambda: 2 not in several.pods("wait"))
        lost = tmp_path / "code"
        lost.write_bytes(codefile.missing(several.kept[-1], 5_000_000))
        several.params = {"code_file": str(lost), "containers": True}
        several.replace_pod("wait", 2)
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            old(0)
        [row] = [row for row in old.service.status()["replicas"] if row["state"] == "unreachable"]
        assert row["replica"] == 2
        assert "too large to be kept" in row["reason"]
        assert len({old(0) for _ in range(6)}) == 2


def test_when_all_are_lost_the_service_is_deployed_again(several: Several, cells: Cells) -> None:
    with deploy(cells["who"]) as who:
        parents = {who()[0] for _ in range(3)}
        found = kt.Fn.from_name("who")
        for rank in range(3):
            kill(several, "who", rank)
        results = []

        def call() -> None:
            results.append(who())

        threads = [threading.Thread(target=call) for _ in range(8)]
        until(lambda: not several.pods("who"))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(results) == 8
        assert not parents & {parent for parent, _ in results}
        assert len(several.pods("who")) == 3
        assert found()[1] in workers(who)


def test_a_worker_that_dies_costs_its_own_calls_only(several: Several, cells: Cells) -> None:
    with deploy(cells["Tally"]) as tally:
        pids = {tally.add()[0] for _ in range(3)}
        with pytest.raises(kt.WorkerDiedError):
            tally.die()
        found = [tally.add() for _ in range(12)]
        assert len(pids & {pid for pid, _ in found}) == 2


# -- one version in all ------------------------------------------------------------------------------------------------


def versions(handle: Any) -> list[str]:
    return [row["code"]["version"] for row in handle.service.status()["replicas"]]


def picky(folder: Path, value: int) -> str:
    """Code that one replica refuses: the first that takes the marker."""
    return f"""
        import os
        try:
            os.mkdir({str(folder)!r})
            mine = True
        except FileExistsError:
            mine = False

        class Guard:
            def __reduce__(self):
                return check, ()

        def check():
            import os, time
            try:
                os.mkdir({str(folder / "taken")!r})
            except FileExistsError:
                return {value}
            time.sleep(0.5)
            raise ValueError("not on this one")

        guard = Guard()

        def f():
            return guard, {value}
    """


@pytest.mark.parametrize("holds", [True, False], ids=["held", "unknown"])
def test_a_load_that_fails_on_one_of_three(
    several: Several, cells: Cells, tmp_path: Path, holds: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    cells.run("def f(): return 'old'")
    handle = deploy(cells["f"])
    with kt.Fn.from_name("f") as found:
        before = versions(found)
        assert len(set(before)) == 1
        if not holds:
            del handle
            import gc

            gc.collect()
        cells.run(picky(tmp_path / "marker", 7))
        with pytest.raises(kt.StartupError, match="not on this one"):
            kt.fn(cells["f"]).to(THREE)
        told = " ".join(capfd.readouterr().out.split())
        if holds:
            assert versions(found) == before
            assert {found() for _ in range(6)} == {"old"}
            assert "goes on with the code that it had" in told
        else:
            assert len(set(versions(found))) == 2
            assert "is of two versions now" in told
        assert len(several.kept) == 1
        assert several.discarded == []
        # The next one brings them together, and is told to the backend.
        cells.run("def f(): return 'newer'")
        again = deploy(cells["f"])
        assert {again() for _ in range(6)} == {"newer"}
        assert len(several.kept) == 2


def test_a_redeploy_that_is_stopped_leaves_the_old_code(several: Several, cells: Cells) -> None:
    cells.run("def f(): return 'old'")
    with deploy(cells["f"]) as first:
        before = versions(first)
        cells.run(
            """
            class Slow:
                def __reduce__(self):
                    return nap, ()

            def nap():
                import os, time
                time.sleep(0.5 + 1e-6 * os.getpid() % 1)
                return 1

            slow = Slow()

            def f():
                return slow, 'new'
            """
        )

        async def stop(after: float) -> bool:
            task = asyncio.create_task(kt.fn(cells["f"]).to_async(THREE, stream_logs=False))
            await asyncio.sleep(after)
            if not task.cancel():
                return False
            try:
                await task
            except asyncio.CancelledError:
                return True
            return False

        for after in (0.1, 0.4, 0.5, 0.6, 0.8):
            if not asyncio.run(stop(after)):
                break  # it had ended
            deadline = time.monotonic() + 10
            while versions(first) != before:
                assert time.monotonic() < deadline, after
            assert {first() for _ in range(6)} == {"old"}


def test_a_first_deploy_that_fails_leaves_nothing(several: Several, cells: Cells, tmp_path: Path) -> None:
    cells.run(picky(tmp_path / "marker", 7))
    with pytest.raises(kt.StartupError, match="not on this one"):
        deploy(cells["f"])
    assert several.discarded == ["f"]
    assert several.pods("f") == {}


def test_a_redeploy_goes_to_all(several: Several, cells: Cells) -> None:
    cells.run("def f(): return 1")
    with deploy(cells["f"]) as first:
        assert {first() for _ in range(6)} == {1}
        cells.run("def f(): return 2")
        deploy(cells["f"])
        assert {first() for _ in range(6)} == {2}


def test_a_namespace_for_cells_is_one_pod(several: Several) -> None:
    with pytest.raises(kt.ConfigError, match="one pod"):
        kt.Cells("space").to(THREE)


def test_endpoints_are_hashable_with_headers() -> None:
    from kubetorch_jupyter.transport.endpoint import Endpoint

    one, two = (Endpoint("s", "http://x:1", "t", headers={"a": "b"}) for _ in range(2))
    assert {one} == {two}
    assert one != Endpoint("s", "http://x:1", "t", headers={"a": "c"})


def test_the_portal_keeps_no_task_of_a_service_that_ended(several: Several, cells: Cells) -> None:
    with deploy(cells["wait"]) as wait:
        wait(0)

    async def left() -> list[str]:
        return [repr(task) for task in asyncio.all_tasks() if "transport/replicas.py" in repr(task)]

    assert get_portal().run(left()) == []
