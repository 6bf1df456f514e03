"""What calls print and show lands in the cell that made them: every byte, in order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import KERNELS, NEWEST, KernelFactory, _factory
from tests.kernel.harness import Cell, Kernel, run_notebook
from tests.kernel.speaker import SOURCE, assert_complete, expected

DEPLOY = """
import asyncio, functools
import kubetorch_jupyter as kt
from kubetorch_jupyter import errors
compute = kt.Compute()
a, b = await asyncio.gather(*[kt.fn(f).to_async(compute) for f in (speak, speak_async)])
"""


def cells_of(lines: int, wide: bool) -> list[tuple[str, tuple[str, ...]]]:
    """Four cells, each with the calls that it makes; the last one waits for all."""
    options = f"{lines}, wide={wide}"

    def task(name: str, handle: str, who: str) -> str:
        return f"{name} = asyncio.create_task({handle}('{who}', {options}, async_=True))"

    def thread(name: str, handle: str, who: str) -> str:
        return f"{name} = asyncio.create_task(asyncio.to_thread({handle}, '{who}', {options}))"

    return [
        ("\n".join((task("t0", "a", "A0"), task("t1", "b", "A1"))), ("A0", "A1")),
        ("\n".join((thread("t2", "a", "B0"), thread("t3", "b", "B1"))), ("B0", "B1")),
        ("\n".join((task("t4", "b", "C0"), thread("t5", "a", "C1"))), ("C0", "C1")),
        (
            f"both = await asyncio.gather(a('D0', {options}, async_=True), b('D1', {options}, async_=True))\n"
            "both + await asyncio.gather(t0, t1, t2, t3, t4, t5)",
            ("D0", "D1"),
        ),
    ]


def check(cells: list[Cell], lines: int, wide: bool) -> None:
    plan = cells_of(lines, wide)
    breaks = 0
    for cell, (_, names) in zip(cells, plan, strict=True):
        cell.ok()
        assert cell.stderr == ""
        breaks += assert_complete(cell.stdout, {name: expected(name, lines, wide) for name in names})
    size = sum(len(cell.stdout.encode()) for cell in cells)
    print(f"8 calls of {lines} lines: {size / 2**20:.1f} MiB, {breaks} lines broken")


@pytest.fixture(scope="module", params=KERNELS)
def speaking(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel of each version in turn, with the functions deployed, for all tests of this module."""
    with contextmanager(_factory)(request.param, tmp_path_factory.mktemp("output")) as make:
        kernel = make()
        kernel.run(SOURCE)
        kernel.run(DEPLOY)
        yield kernel


def test_eight_calls_from_four_cells(speaking: Kernel, request: pytest.FixtureRequest) -> None:
    newest = request.node.callspec.params["speaking"] == NEWEST
    lines, wide = (10_000, True) if newest else (1_000, False)
    kernel = speaking
    began = time.monotonic()
    cells = kernel.run_all([code for code, _ in cells_of(lines, wide)])
    print(f"{time.monotonic() - began:.1f} s")
    assert cells[-1].result == str(["D0", "D1", "A0", "A1", "B0", "B1", "C0", "C1"])
    for cell in cells[:-1]:
        assert cell.replied is not None
        assert cell.replied < cells[-1].messages[-1].time
    check(cells, lines, wide)
    assert not [m for m in kernel.orphans if m.content.get("name") == "stdout"]


@pytest.mark.soak
def test_eight_calls_again_and_again(speaking: Kernel) -> None:
    """All of it in every kernel, ten times."""
    for _ in range(10):
        check(speaking.run_all([code for code, _ in cells_of(10_000, True)]), 10_000, True)


def test_blocking_calls_beside_tasks_of_earlier_cells(speaking: Kernel) -> None:
    """A blocking call holds the kernel's loop; what other cells' calls print meanwhile is still theirs."""
    # One call on each side that goes on until the other has begun.
    codes = [
        "t0 = asyncio.create_task(a('A0', 500, async_=True))\nawait asyncio.sleep(0)",
        "x = a('B0', 500)\ny = b('B1', 500)",
        "a('C0', 500)",
        "await t0",
    ]
    first, second, third, last = (cell.ok() for cell in speaking.run_all(codes))
    assert first.stdout == expected("A0", 500)
    # One call after the other is no reason for prefixes; the second goes on where the first has ended.
    assert second.stdout == expected("B0", 500) + expected("B1", 500)
    assert third.stdout == expected("C0", 500)
    assert last.stdout == ""
    assert last.result == "'A0'"


HEADLESS = "\n".join(
    (
        "both = await asyncio.gather(a('A0', {0}, async_=True), asyncio.to_thread(b, 'A1', {0}),",
        "    a('A2', {0}, async_=True), b('A3', {0}, async_=True))",
    )
)


def test_headless(make_kernel: KernelFactory) -> None:
    """With nbclient, which throws away whatever comes after a cell's end."""
    kernel = make_kernel(start=False)
    python: Path = make_kernel.python  # type: ignore[attr-defined]
    cells = [SOURCE, DEPLOY, HEADLESS.format(1000), "a('B0', 3000)", "both"]
    notebook = run_notebook(cells, python, kernel)

    def text(number: int) -> str:
        return "".join(o.text for o in notebook.cells[number].outputs if o.output_type == "stream")

    assert_complete(text(2), {name: expected(name, 1000) for name in ("A0", "A1", "A2", "A3")})
    assert text(3) == expected("B0", 3000)
    assert notebook.cells[4].outputs[0]["data"]["text/plain"] == str(["A0", "A1", "A2", "A3"])


LATE = """
import asyncio
async def later(seconds, who, handle=a):
    await asyncio.sleep(seconds)
    return await handle(who, 20, async_=True)
early = asyncio.create_task(later(0.5, 'A0'))
"""


def test_a_call_belongs_to_the_cell_that_made_its_task(speaking: Kernel) -> None:
    """Also when the task gets to its call while another cell runs, which makes calls too."""
    codes = [LATE, "await later(0.8, 'B0', b)", "await early"]
    first, second, last = (cell.ok() for cell in speaking.run_all(codes))
    assert first.stdout == expected("A0", 20)  # alone in its cell: no prefix
    assert second.stdout == expected("B0", 20)
    assert last.stdout == ""


RICH = """
import asyncio
import kubetorch_jupyter as kt

def show(who):
    import time
    import matplotlib.pyplot as plt
    from IPython.display import HTML, display
    print(who, "before")
    display(HTML(f"<b>{who}</b>"))
    time.sleep(0.2)
    plt.plot([1, 2, 3])
    plt.title(who)
    plt.show()
    print(who, "after")

rich = kt.fn(show).to(kt.Compute())
"""


def test_displays_and_figures(speaking: Kernel) -> None:
    """MIME bundles come in the cell of the call, between the lines that were printed before and after."""
    speaking.run(RICH)
    rich_in_task = "t = asyncio.create_task(rich('A', async_=True))\nu = asyncio.create_task(rich('B', async_=True))"
    first, second, _ = (
        c.ok() for c in speaking.run_all([rich_in_task, "await rich('C', async_=True)", "await asyncio.gather(t, u)"])
    )
    assert sorted(d["text/html"] for d in first.displays if "text/html" in d) == ["<b>A</b>", "<b>B</b>"]
    assert [d["text/html"] for d in second.displays if "text/html" in d] == ["<b>C</b>"]
    for cell, number in ((first, 2), (second, 1)):
        figures = [d["image/png"] for d in cell.displays if "image/png" in d]
        assert len(figures) == number
        assert all(figure.startswith("iVBOR") for figure in figures)
    order = [m.content["text"] if m.type == "stream" else "shown" for m in second.messages if m.type != "status"]
    assert order[1:] == ["C before\n", "shown", "shown", "C after\n"]


AFTERWARDS = """
import kubetorch_jupyter as kt

def leave_behind(who):
    import threading, time
    def work():
        for i in range(5):
            time.sleep(0.1)
            print(who, "late", i)
    threading.Thread(target=work).start()
    print(who, "returns")
    return who

late = kt.fn(leave_behind).to(kt.Compute())
"""


def test_what_a_thread_prints_after_its_call(newest_kernel: Kernel) -> None:
    """It is the call's, in its record; no other call gets it."""
    kernel = newest_kernel
    kernel.run(AFTERWARDS)
    spawned = kernel.run("call = late.spawn('A')\ncall.result()")
    other = kernel.run("import time\nlate('B')\ntime.sleep(1)")
    assert "A" not in other.stdout
    assert other.stdout.startswith("B returns\n")
    print("spawned:", repr(spawned.stdout), "other:", repr(other.stdout))
    logs = kernel.run("call.logs()").result
    assert logs == repr("A returns\n" + "".join(f"A late {i}\n" for i in range(5)))


def test_a_pod_clears_the_cell_that_called(kernel: Kernel) -> None:
    kernel.run("%load_ext kubetorch_jupyter\nimport time")
    kernel.run(
        "def train(n, alone=True):\n"
        "    from IPython.display import clear_output\n"
        "    for i in range(n):\n"
        "        clear_output(wait=True)\n"
        "        print('epoch', i)\n"
        "    display('last', clear=alone)\n"
        "train = kt.fn(train).to(kt.Compute())\n"
        "def hold(): time.sleep(60)\n"
        "hold = kt.fn(hold).to(kt.Compute())"
    )
    cell = kernel.run("train(2)")
    came = [(m.type, m.content.get("text") or m.content.get("wait")) for m in cell.messages]
    came = [entry for entry in came if entry[0] in ("clear_output", "stream", "display_data")]
    assert came == [
        ("clear_output", True),
        ("stream", "epoch 0\n"),
        ("clear_output", True),
        ("stream", "epoch 1\n"),
        ("clear_output", True),
        ("display_data", None),
    ]
    # Not what other calls have written there.
    cell = kernel.run("other = hold.spawn()\ntrain(2)\nother.cancel()")
    assert cell.stdout.count("epoch") == 2
    assert not [m for m in cell.messages if m.type == "clear_output"]
    cell = kernel.run("%%kt\nfrom IPython.display import clear_output\nprint('gone')\nclear_output()\nprint('here')")
    assert [m.type for m in cell.messages if m.type in ("clear_output", "stream")] == [
        "stream",
        "clear_output",
        "stream",
    ]
