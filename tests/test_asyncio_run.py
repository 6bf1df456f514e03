from __future__ import annotations

import asyncio
import asyncio.runners
import contextvars
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from kubetorch_jupyter.notebook import asyncio_run
from tests.kernel.harness import Kernel
from tests.promises import promise
from tests.waiting import interrupt_after

ORIGINAL = asyncio.run
LOAD = "%load_ext kubetorch_jupyter"


@pytest.fixture
def installed() -> Iterator[None]:
    asyncio_run.install()
    yield
    asyncio_run.uninstall()
    assert asyncio.run is asyncio.runners.run is ORIGINAL


def in_a_loop(function: Any) -> Any:
    """Run `function` where a loop runs, as a cell does."""

    async def cell() -> Any:
        return function()

    return ORIGINAL(cell())


@pytest.mark.usefixtures("installed")
def test_it_runs_beside_a_running_loop() -> None:
    value: contextvars.ContextVar[str] = contextvars.ContextVar("value")

    async def main() -> tuple[str, bool]:
        await asyncio.sleep(0.01)
        inside = value.get()
        value.set("changed")
        return inside, threading.current_thread() is threading.main_thread()

    def cell() -> Any:
        value.set("of the cell")
        return asyncio.run(main()), value.get()

    assert in_a_loop(cell) == (("of the cell", False), "of the cell")


@pytest.mark.usefixtures("installed")
def test_where_no_loop_runs_it_is_the_original() -> None:
    async def main() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert asyncio.run(main())
    assert asyncio.run(main(), debug=True)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "error", [KeyError("x"), SystemExit(3), asyncio.CancelledError(), TimeoutError("t"), StopAsyncIteration()]
)
def test_what_the_coroutine_raises_arrives(error: BaseException) -> None:
    async def main() -> None:
        raise error

    def cell() -> Any:
        with pytest.raises(type(error)) as caught:
            asyncio.run(main())
        return caught.value

    assert type(in_a_loop(cell)) is type(error)


@pytest.mark.usefixtures("installed")
def test_options_and_what_is_no_coroutine() -> None:
    async def debug() -> bool:
        return asyncio.get_running_loop().get_debug()

    assert in_a_loop(lambda: asyncio.run(debug(), debug=True))

    def cell() -> None:
        with pytest.raises((TypeError, ValueError), match="coroutine"):
            asyncio.run(3)  # type: ignore[arg-type]

    in_a_loop(cell)
    if sys.version_info >= (3, 12):
        loops: list[Any] = []

        def factory() -> asyncio.AbstractEventLoop:
            loops.append(asyncio.new_event_loop())
            return loops[0]

        in_a_loop(lambda: asyncio.run(debug(), loop_factory=factory))
        assert loops


@pytest.mark.usefixtures("installed")
def test_leftover_tasks_are_cancelled_as_asyncio_does() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def main() -> None:
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        assert not task.done()

    in_a_loop(lambda: asyncio.run(main()))
    assert ended == ["cancelled"]


def interrupted(coroutine: Any) -> float:
    """Seconds from SIGINT to control."""

    def cell() -> float:
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt), interrupt_after(0.2):
            asyncio.run(coroutine)
        return time.monotonic() - began - 0.2

    async def outer() -> float:
        return cell()

    # Not asyncio.run, which takes SIGINT for itself; a kernel doesn't.
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(outer())
    finally:
        loop.close()


@pytest.mark.usefixtures("installed")
def test_stop_cancels_the_coroutine() -> None:
    seen: list[str] = []

    async def main() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    promise("control back from asyncio.run after Stop", interrupted(main()), 0.5)
    assert seen == ["cancelled"]


@pytest.mark.usefixtures("installed")
def test_stop_gives_control_back_from_a_blocking_coroutine(capfd: pytest.CaptureFixture[str]) -> None:
    release = threading.Event()

    async def main() -> None:
        release.wait(30)

    took = interrupted(main())
    assert "blocking call" in capfd.readouterr().out
    release.set()
    promise("control back from an asyncio.run that blocks, after Stop", took, 0.5)


@pytest.mark.usefixtures("installed")
def test_it_pickles_as_asyncios() -> None:
    assert pickle.loads(pickle.dumps(asyncio.run)) is asyncio.run
    assert b"kubetorch" not in cloudpickle.dumps(asyncio.run)


def test_undo_and_another_patch_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio_run.install()
    asyncio_run.install()
    ours = asyncio.run
    assert asyncio_run.installed()

    def theirs(main: Any, **options: Any) -> Any:
        return ours(main, **options)

    monkeypatch.setattr(asyncio, "run", theirs)
    asyncio_run.uninstall()
    assert asyncio.run is theirs
    assert not asyncio_run.installed()

    async def main() -> int:
        return 1

    assert asyncio.run(main()) == 1
    coroutine = main()

    def cell() -> None:
        with pytest.raises(RuntimeError, match="running event loop"):
            asyncio.run(coroutine)

    in_a_loop(cell)
    coroutine.close()
    monkeypatch.undo()
    asyncio_run.uninstall()
    assert asyncio.runners.run is ORIGINAL
    asyncio.run = ORIGINAL


# In real kernels

CELL = """
import asyncio
from IPython.display import display

async def main(n):
    print('begin', n, flush=True)
    await asyncio.sleep(0.05)
    display(f'shown {n}')
    print('end', n)
    return n

asyncio.run(main(0))
"""

SLEEPER = """
import asyncio
seen = []

async def main():
    print('go', flush=True)
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        seen.append('cancelled')
        raise

async def two():
    return 2
"""


def test_in_a_cell(kernel: Kernel) -> None:
    kernel.run(LOAD)
    cells = kernel.run_all([CELL, *(f"asyncio.run(main({n}))" for n in range(1, 5)), "await main(5)"])
    for number, cell in enumerate(cells):
        cell.ok()
        assert cell.stdout == f"begin {number}\nend {number}\n"
        assert cell.result == str(number)
        assert [d["text/plain"] for d in cell.displays] == [f"'shown {number}'", str(number)]


def test_stop_in_a_cell_of_an_idle_kernel(kernel: Kernel) -> None:
    kernel.run(LOAD)
    kernel.run(SLEEPER)
    cell = kernel.begin("asyncio.run(main())")
    cell.wait_text("go")
    kernel.rest()
    stopped = time.monotonic()
    kernel.interrupt()
    cell.wait(10)
    assert cell.error is not None
    assert cell.error["ename"] == "KeyboardInterrupt"
    assert cell.replied is not None
    print(f"control back after {cell.replied - stopped:.2f} s")
    assert cell.replied - stopped < 1.5  # the promise is 0.5
    assert kernel.run("seen").result == "['cancelled']"
    assert kernel.run("asyncio.run(two())").result == "2"


def test_load_twice_reload_and_unload(newest_kernel: Kernel) -> None:
    kernel = newest_kernel
    kernel.run("import asyncio\nfirst = asyncio.run")
    kernel.run(LOAD)
    kernel.run("import kubetorch_jupyter as k\nk.load_ipython_extension(get_ipython())")
    assert kernel.run("import kubetorch\nkt is kubetorch, kt.Compute(cpus=1)").result == "(True, Compute(cpus=1))"
    kernel.run("%reload_ext kubetorch_jupyter")
    assert kernel.run("import kubetorch\nkt is kubetorch is k, asyncio.run is first").result == "(True, False)"
    kernel.run("%unload_ext kubetorch_jupyter")
    gone = kernel.run("import sys\n'kt' in globals(), 'kubetorch' in sys.modules, asyncio.run is first")
    assert gone.result == "(False, False, True)"
    kernel.run("%load_ext kubetorch_jupyter\nkt = 'mine'\n%unload_ext kubetorch_jupyter")
    assert kernel.run("kt").result == "'mine'"


def test_the_real_kubetorch_wins_and_that_is_said(make_newest_kernel: Any, tmp_path: Path) -> None:
    (tmp_path / "kubetorch.py").write_text("real = True\n")
    kernel = make_newest_kernel()
    cell = kernel.run(LOAD)
    assert cell.stdout.count("\n") == 1
    assert "kubetorch.py" in cell.stdout
    assert kernel.run("import kubetorch\nkubetorch.real").result == "True"


PLAIN = """%load_ext kubetorch_jupyter
import kubetorch, asyncio
async def f(): return 41
print(asyncio.run(f()) + 1, kt.Compute(cpus=2))
"""


def test_plain_ipython(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", "-c", PLAIN],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "IPYTHONDIR": str(tmp_path)},
    )
    assert done.stdout.strip().endswith("42 Compute(cpus=2)"), done
