"""Services that have ended, or are another's by now: what the handles of before do."""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import gc
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kubetorch_jupyter as kt
from kubetorch_jupyter import deployment
from kubetorch_jupyter.backends import registry
from kubetorch_jupyter.backends.local import local_backend
from kubetorch_jupyter.streams import Output, set_output_factory
from kubetorch_jupyter.transport.portal import get_portal
from kubetorch_jupyter.transport.sharing import get_session
from pod_server import processes
from tests.cells import Cells
from tests.local import ROOT
from tests.waiting import until

NO_CODE = 'service "{}" has ended .* no code to deploy it again'


@pytest.fixture
def cells() -> Cells:
    return Cells()


@contextlib.contextmanager
def removed(handle: kt.Module) -> Iterator[None]:
    """Tear down whatever lives under the handle's name in the end."""
    try:
        yield
    finally:
        handle.teardown()


def kill_pod(name: str) -> None:
    record = registry.read(name)
    assert record is not None
    assert record.front is not None
    fd = processes.open_pidfd(*record.front)
    assert fd is not None
    try:
        os.kill(record.front[0], signal.SIGKILL)
        assert select.select([fd], [], [], 10)[0]
    finally:
        os.close(fd)


def test_a_handle_without_code_says_so_when_its_service_has_ended(cells: Cells) -> None:
    cells.run("def gone(x): return x + 1")
    deployed = kt.fn(cells["gone"]).to(kt.Compute(), stream_logs=False)
    found = kt.Fn.from_name("gone")
    assert found(1) == 2
    deployed.teardown()
    for _ in range(2):
        with pytest.raises(kt.PodLostError, match=NO_CODE.format("gone")):
            found(1)
        with pytest.raises(kt.PodLostError, match=NO_CODE.format("gone")):
            _ = found.spawn(1).id
    with pytest.raises(kt.PodLostError, match=NO_CODE.format("gone")):
        found.service.status()


def test_handles_of_before_use_the_pod_that_is_there_now(cells: Cells) -> None:
    cells.run("def moved(x): return 'old'\ndef after(x): return 'new'")
    first = kt.fn(cells["moved"]).to(kt.Compute(), stream_logs=False)
    with removed(first):
        view, found = first.options(timeout=30), kt.Fn.from_name("moved")
        assert (view(1), found(1)) == ("old", "old")
        # A detached pod is another one: the first has to go.
        second = kt.fn(cells["after"], name="moved").to(kt.Compute(detach=True), stream_logs=False)
        pod = registry.read("moved")
        assert (first(1), view(1), found(1), second(1)) == ("new", "new", "new", "new")
        now = registry.read("moved")
        assert pod is not None
        assert now is not None
        assert now.incarnation == pod.incarnation


def test_code_that_fails_when_it_is_deployed_again_says_why(cells: Cells, tmp_path: Path) -> None:
    cells.run(
        f"""
        import os

        class Picky:
            def __init__(self):
                if os.path.exists({str(tmp_path / "flag")!r}):
                    raise ValueError("not today")

            def get(self):
                return 1
        """
    )
    picky = kt.cls(cells["Picky"]).to(kt.Compute(), stream_logs=False)
    with removed(picky):
        assert picky.get() == 1
        (tmp_path / "flag").touch()
        kill_pod("picky")
        with pytest.raises((kt.PodLostError, kt.StartupError)):
            picky.get()  # lost if it was sent before we heard of the end
        for ask in (picky.get, picky.service.status):
            with pytest.raises(kt.StartupError, match="not today") as caught:
                ask()
            assert isinstance(caught.value.__cause__, ValueError)
        assert registry.read("picky") is None
        (tmp_path / "flag").unlink()
        assert picky.get() == 1


def define_waiting(cells: Cells, name: str, folder: Path) -> None:
    """A class that says when its ``__init__`` begins, and waits there while the folder has a file "wait"."""
    cells.run(
        f"""
        import pathlib
        import time

        class {name}:
            def __init__(self):
                here = pathlib.Path({str(folder)!r})
                (here / f"begun-{{time.monotonic()}}").touch()
                while (here / "wait").exists():
                    time.sleep(0.01)

            def get(self):
                return 1
        """
    )


def test_a_teardown_ends_what_brings_the_service_back(cells: Cells, tmp_path: Path) -> None:
    define_waiting(cells, "Slow", tmp_path)
    slow = kt.cls(cells["Slow"]).to(kt.Compute(), stream_logs=False)
    assert slow.get() == 1
    (tmp_path / "wait").touch()
    kill_pod("slow")
    until(lambda: slow.service.live is None)
    calls = [slow.get.spawn() for _ in range(3)]
    until(lambda: len(list(tmp_path.glob("begun-*"))) == 2)
    slow.teardown()
    assert registry.read("slow") is None
    for call in calls:
        with pytest.raises((kt.NotDeployedError, kt.PodLostError)) as caught:  # lost if it was sent before the end
            call.result(10)
        assert call is calls[0] or type(caught.value) is kt.NotDeployedError
    (tmp_path / "wait").unlink()
    assert registry.read("slow") is None


def test_a_redeploy_that_fails_before_it_has_begun_leaves_the_service(
    cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells.run("def stays(x): return x + 1\ndef changed(x): return x + 2")

    def fail(pid: int) -> None:
        raise OSError("no /proc here")

    monkeypatch.setattr(deployment, "start_of", fail)
    with pytest.raises(OSError, match="no /proc"):
        kt.fn(cells["stays"]).to(kt.Compute(), stream_logs=False)
    assert registry.read("stays") is None
    monkeypatch.undo()
    with kt.fn(cells["stays"]).to(kt.Compute(), stream_logs=False) as stays:
        monkeypatch.setattr(deployment, "start_of", fail)
        with pytest.raises(OSError, match="no /proc"):
            kt.fn(cells["changed"], name="stays").to(kt.Compute(), stream_logs=False)
        monkeypatch.undo()
        assert stays(1) == 2


def test_a_deploy_that_joins_another_and_fails_leaves_it_the_service(cells: Cells, tmp_path: Path) -> None:
    define_waiting(cells, "First", tmp_path)
    (tmp_path / "wait").touch()
    (tmp_path / "other.py").write_text(
        textwrap.dedent(
            """
            import kubetorch_jupyter as kt

            class Second:
                def __init__(self):
                    raise ValueError("not this one")

            kt.cls(Second, name="joined").to(kt.Compute())
            """
        )
    )
    with concurrent.futures.ThreadPoolExecutor() as pool:
        deploying = pool.submit(kt.cls(cells["First"], name="joined").to, kt.Compute(), stream_logs=False)
        until(lambda: list(tmp_path.glob("begun-*")))
        pod = registry.read("joined")
        assert pod is not None
        other = subprocess.Popen(
            [sys.executable, str(tmp_path / "other.py")],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        with other:
            try:
                # It finds a pod that has no code yet, and its load waits for the first one's.
                until(lambda: other.poll() is not None or _loads("joined") == 2)
            finally:
                (tmp_path / "wait").unlink()
            with removed(deploying.result(20)):
                assert "not this one" in other.communicate(timeout=20)[1]
                assert deploying.result().get() == 1
                now = registry.read("joined")
                assert now is not None
                assert now.incarnation == pod.incarnation


def _loads(name: str) -> int:
    """How many loads a service has under way."""
    rows = get_portal().run(_load_rows(name), 10)
    return sum(row["f"] == "(loading)" and row["ended"] is None for row in rows)


async def _load_rows(name: str) -> list[dict[str, Any]]:
    info = await local_backend().find(name)
    assert info is not None
    assert info.endpoint is not None
    session = await get_session(info.endpoint)
    rows: list[dict[str, Any]] = (await session.request("calls", loads=True))["calls"]
    return rows


def test_get_if_exists_does_not_take_a_class_for_a_function(cells: Cells) -> None:
    cells.run("def f(): return 1\nclass Other:\n    def get(self): return 5")
    with (
        kt.cls(cells["Other"], name="taken").to(kt.Compute(), stream_logs=False) as taken,
        pytest.raises(kt.ConfigError, match='"taken" is a cls'),
    ):
        kt.fn(cells["f"], name="taken").to(kt.Compute(), stream_logs=False, get_if_exists=True)
    assert taken.service.torn_down


def test_lists_longer_than_a_frame_are_whole(cells: Cells) -> None:
    cells.run("async def wait():\n    import asyncio\n    await asyncio.sleep(60)")
    with kt.fn(cells["wait"], name="many-calls").to(kt.Compute(), stream_logs=False) as wait:
        calls = [wait.spawn() for _ in range(600)]
        ids = {call.id for call in calls}
        assert {row["id"] for row in wait.service.calls()} == ids
        assert {row["id"] for row in kt.calls("many-calls")} == ids


def test_a_retry_of_a_spawned_call_prints_in_its_own_cell(cells: Cells, tmp_path: Path) -> None:
    cells.run(
        f"""
        import os

        def once():
            try:
                os.mkdir({str(tmp_path / "been")!r})
            except FileExistsError:
                return "again"
            os._exit(3)
        """
    )
    cell: contextvars.ContextVar[str] = contextvars.ContextVar("cell", default="none")
    made: list[str] = []

    def factory(label: str) -> Output:
        made.append(cell.get())
        return Output(label)

    with kt.fn(cells["once"]).to(kt.Compute(), stream_logs=False) as once:
        set_output_factory(factory)
        try:
            cell.set("mine")
            view = once.options(retries=1, stream_logs=True)
            assert view.spawn().result(timeout=30) == "again"
        finally:
            set_output_factory(None)
    assert made == ["mine", "mine"]


def test_an_iterator_forgotten_while_a_cell_is_entered_does_not_lock_up() -> None:
    from kubetorch_jupyter.streams import output

    def collect() -> None:
        with output._cells_lock:  # as in `Output.__init__`, where memory is taken and garbage may be collected
            forgotten.leave()

    forgotten = Output("gen")
    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    gc.collect()
