"""Behind a Jupyter server: a cell is sent less than the server drops, and not too much of a call; nothing is lost."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from pathlib import Path

import pytest

from tests.conftest import KERNELS, NEWEST, KernelFactory, _factory
from tests.kernel.harness import Cell, Kernel, run_notebook
from tests.promises import promise, record

#: jupyter_server's defaults: bytes and messages a second, counted over so many seconds.
DATA, MESSAGES, WINDOW = 1_000_000, 1_000, 3.0
LIMIT = 2_000_000
SERVED = {"JPY_SESSION_NAME": "notebook.ipynb"}

SOURCE = r"""
import asyncio, time
import kubetorch_jupyter as kt

def lines(n, width=20, seconds=0.0):
    pause = seconds / n
    for i in range(n):
        print(f"{i:06d} " + "x" * width)
        if pause:
            time.sleep(pause)

def wide(n):
    for i in range(n):
        print(str(i) + "漢é🎉" * ((1 << 20) // 9))

def flood(megabytes, seconds):
    began, n = time.monotonic(), 0
    while n < megabytes * 1_000_000:
        print("\x1b[31m" + "z" * 99_994)
        n += 100_000
        time.sleep(max(0, began + seconds * n / (megabytes * 1e6) - time.monotonic()))

def mixed():
    import sys
    from IPython.display import HTML, display
    for i in range(50_000):
        print(f"{i:06d} " + "x" * 93)
    display(HTML("<b>still shown</b>"))
    print("it broke", file=sys.stderr)
    raise ValueError("seen")

def displays(n):
    from IPython.display import HTML, display
    for i in range(n):
        display(HTML(f"<i>{i}</i>"))

def hello(i=0):
    print("hello", i)
    return i

remote = {}
async def deploy(*functions):
    handles = await asyncio.gather(*[kt.fn(f).to_async(kt.Compute()) for f in functions])
    return dict(zip([f.__name__ for f in functions], handles))
"""
DEPLOY = "remote = await deploy(lines, wide, flood, mixed, displays, hello)"


@contextmanager
def deployed(version: str, folder: Path) -> Iterator[Kernel]:
    with contextmanager(_factory)(version, folder) as make:
        kernel = make(env=SERVED)
        kernel.run(SOURCE)
        kernel.run(DEPLOY)
        yield kernel


@pytest.fixture(scope="module", params=[version for version in KERNELS if version != NEWEST])
def older(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    with deployed(request.param, tmp_path_factory.mktemp("pacing")) as kernel:
        yield kernel


@pytest.fixture(scope="module")
def newest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    with deployed(NEWEST, tmp_path_factory.mktemp("pacing")) as kernel:
        yield kernel


def hold_limits(what: str, *cells: Cell, data: float = DATA, messages: float = MESSAGES) -> None:
    """Assert what the server counts: the bytes of stream messages, and all messages, in any window.

    By the kernel's times: of a reader that was late, much comes at once.
    """
    counted = sorted(
        (m.sent, len(json.dumps(m.content, ensure_ascii=False).encode()) + 800 if m.type == "stream" else 0)
        for cell in cells
        for m in list(cell.messages)
        if m.type not in ("status", "comm_open", "execute_input")
    )
    start = size = most_bytes = most_messages = 0
    for n, (at, bytes_) in enumerate(counted):
        size += bytes_
        while at - counted[start][0] > WINDOW:
            size -= counted[start][1]
            start += 1
        most_bytes, most_messages = max(most_bytes, size), max(most_messages, n - start + 1)
    record(
        f"{what}: at most {most_bytes / WINDOW:,.0f} B/s and {most_messages / WINDOW:.0f} messages/s in any {WINDOW} s"
    )
    assert most_bytes <= 0.8 * data * WINDOW
    assert most_messages <= 0.8 * messages * WINDOW


MORE = re.compile(r"\[kubetorch: a cell shows at most 2 MB of a call, and this one prints more\. All of it: (.*)\]\n")
LEFT_OUT = re.compile(r"\[kubetorch: ([\d,]+) bytes that this call printed are not shown\. All of it: (.*)\]\n")


def cut_of(shown: str, expected: str, closing: str = "\n") -> str:
    """What a cell shows of a text: without what closes it where the log came in pieces that cut it inside of a line."""
    return shown if expected.startswith(shown) else shown.removesuffix(closing)


def hold_marker(kernel: Kernel, cell: Cell, expected: str, closing: str = "\n") -> None:
    """Assert that the cell has the beginning, that what is said of the rest is right, and that it can be read."""
    cut = cut_of(cell.stdout, expected, closing)
    assert expected.startswith(cut)
    assert 0.85 * LIMIT <= len(cut.encode()) <= LIMIT
    more, left_out = MORE.findall(cell.stderr), LEFT_OUT.findall(cell.stderr)
    assert len(more) == len(left_out) == 1, cell.stderr
    [(missing, how)] = left_out
    assert how == more[0]
    assert int(missing.replace(",", "")) == len(expected.encode()) - len(cut.encode())
    assert read(kernel, how) == (len(expected), sha1(expected.encode()).hexdigest())


def read(kernel: Kernel, how: str) -> tuple[int, str]:
    """The length of a text that the kernel has, and its digest."""
    result = kernel.run(f"import hashlib\ntext = {how}\nlen(text), hashlib.sha1(text.encode()).hexdigest()").result
    assert result is not None
    size, digest = eval(result)
    return size, digest


def lines(n: int, width: int = 20) -> str:
    return "".join(f"{i:06d} " + "x" * width + "\n" for i in range(n))


def test_a_hundred_thousand_lines(older: Kernel) -> None:
    """In the older kernels; the newest has everything else."""
    cell = older.run("remote['lines'](100_000)")
    record(f"100,000 lines into one cell: {cell.duration:.1f} s")
    hold_limits("100,000 lines", cell)
    hold_marker(older, cell, lines(100_000))


def test_lines_of_a_mebibyte(newest: Kernel) -> None:
    cell = newest.run("remote['wide'](4)")
    hold_limits("lines of 1 MiB", cell)
    expected = "".join(str(i) + "漢é🎉" * ((1 << 20) // 9) + "\n" for i in range(4))
    hold_marker(newest, cell, expected)


def test_forty_megabytes_in_two_seconds(newest: Kernel) -> None:
    cell = newest.run("remote['flood'](40, 2)")
    record(f"40 MB in 2 s into one cell: {cell.duration:.1f} s")
    hold_limits("40 MB in 2 s", cell)
    hold_marker(newest, cell, ("\x1b[31m" + "z" * 99_994 + "\n") * 400, closing="\x1b[0m\n")


@pytest.mark.timed
def test_two_cells_at_once_and_small_talk_beside_them(newest: Kernel) -> None:
    codes = [
        "t0 = asyncio.create_task(remote['lines'](30_000, 40, async_=True))",
        "t1 = asyncio.create_task(remote['lines'](30_000, 50, async_=True))",
        "began = time.monotonic()\nfor i in range(20): await remote['hello'](i, async_=True)\ntime.monotonic() - began",
        "await asyncio.gather(t0, t1)",
    ]
    first, second, talk, last = (cell.ok() for cell in newest.run_all(codes))
    hold_limits("two cells at once", first, second, talk, last)
    assert first.stdout == lines(30_000, 40)
    assert second.stdout == lines(30_000, 50)
    assert talk.stdout == "".join(f"hello {i}\n" for i in range(20))
    promise("20 calls with a line each beside two floods", float(talk.result or ""), 1.0)
    assert first.stderr == second.stderr == ""


@pytest.mark.timed
def test_many_small_calls_and_many_displays(newest: Kernel) -> None:
    calls = newest.run("for i in range(1500): remote['hello'](i)")
    assert calls.stdout == "".join(f"hello {i}\n" for i in range(1500))
    promise("1,500 calls with a line each", calls.duration, 3.0)
    hold_limits("1,500 calls with a line each", calls)
    shown = newest.run("remote['displays'](1500)")
    assert [d["text/html"] for d in shown.displays] == [f"<i>{i}</i>" for i in range(1500)]
    hold_limits("1,500 displays", shown)


def test_errors_and_displays_are_never_left_out(newest: Kernel) -> None:
    cell = newest.begin("remote['mixed']()").wait()
    assert cell.error is not None
    assert cell.error["evalue"] == "seen"
    assert [d.get("text/html") for d in cell.displays] == ["<b>still shown</b>"]
    assert "it broke\n" in cell.stderr
    assert len(MORE.findall(cell.stderr)) == 1
    [(missing, _)] = LEFT_OUT.findall(cell.stderr)
    assert int(missing.replace(",", "")) + len(cut_of(cell.stdout, lines(50_000, 93))) == 50_000 * 101


@pytest.mark.timed
@pytest.mark.parametrize(
    "call", ["remote['flood'](400, 20)", "await remote['flood'](400, 20, async_=True)", "remote['lines'](5_000_000)"]
)
def test_stop_during_a_flood(newest: Kernel, call: str) -> None:
    cell = newest.begin(call)
    cell.wait_for(lambda: len(cell.stdout) > 700_000, 30, "print")  # what is paced waits by then
    pressed = time.monotonic()
    newest.interrupt()
    cell.wait(20)
    assert cell.error is not None
    assert cell.replied is not None
    promise(f"control back from {call}", cell.replied - pressed, 0.5)
    again = newest.run("remote['hello'](7)")
    assert again.stdout == "hello 7\n"
    size = len(cell.stdout)
    newest.run("time.sleep(0.5)")
    assert len(cell.stdout) == size, "the rest is muted"


def test_attach_is_capped_too_and_settings_count(newest: Kernel) -> None:
    call = newest.run("call = remote['lines'].options(stream_logs=False).spawn(50_000, 93)\ncall.id")
    attached = newest.run(f"again = kt.attach({call.result})\nagain.result()")
    hold_marker(newest, attached, lines(50_000, 93))
    newest.run("kt.config.cell_log_limit = '20k'")
    small = newest.run("remote['lines'](1000)")
    assert 17_000 < len(small.stdout) <= 20_000
    newest.run("kt.config.cell_log_limit = 0")
    everything = newest.run("remote['lines'](25_000, 93)")
    assert everything.stdout == lines(25_000, 93)
    hold_limits("a cell without a limit", everything)
    newest.run("kt.config.cell_log_limit = None\nkt.config.iopub_data_rate_limit = 300_000")
    slow = newest.run("remote['lines'](20_000)")
    assert slow.stdout == lines(20_000)
    hold_limits("a server that allows less", slow, data=300_000)
    newest.run("kt.config.iopub_data_rate_limit = None")


def test_the_magic_that_the_line_names_shows_all_of_it(newest: Kernel) -> None:
    newest.run("%load_ext kubetorch_jupyter\nkt.config.cell_log_limit = '100k'")
    cell = newest.run("remote['lines'](20_000, 93)")
    [(_, how)] = LEFT_OUT.findall(cell.stderr)
    assert how.startswith("%kt logs lines/")
    for command in (how, how.replace("logs", "logs -f")):
        shown = newest.run(command)
        assert shown.stdout == lines(20_000, 93)
        hold_limits(f"2 MB by {command.rpartition(' ')[0]}", shown)
    newest.run("kt.config.cell_log_limit = None\n%unload_ext kubetorch_jupyter\nimport kubetorch_jupyter as kt")


def test_what_is_captured_is_whole(newest: Kernel) -> None:
    newest.run("%%capture caught\nremote['lines'](30_000, 93)")
    assert newest.run("len(caught.stdout), caught.stderr").result == f"({len(lines(30_000, 93))}, '')"


def test_headless_and_without_a_server_everything_is_shown(make_newest_kernel: KernelFactory) -> None:
    kernel = make_newest_kernel(start=False)
    cells = [SOURCE, "remote = await deploy(lines)", "remote['lines'](21_500, 93)"]
    python: Path = make_newest_kernel.python  # type: ignore[attr-defined]
    began = time.monotonic()
    notebook = run_notebook(cells, python, kernel)
    record(f"2.2 MB of lines headless: {time.monotonic() - began:.1f} s with the kernel's start")
    outputs = notebook.cells[2].outputs
    assert "".join(o.text for o in outputs) == lines(21_500, 93)


@pytest.mark.timed
def test_a_timeout_and_a_cancel_do_not_wait_for_the_pace(newest: Kernel) -> None:
    newest.run(
        "def flood_and_wait():\n    print(('x' * 99 + '\\n') * 40_000)\n    time.sleep(60)\n"
        "waiting = kt.fn(flood_and_wait).to(kt.Compute())\nkt.config.cell_log_limit = 0"
    )
    # By the second try it has to wait: the first takes what may come at once.
    newest.run("remote['lines'](10_000, 93)")
    cell = newest.begin("began = time.monotonic()\nwaiting.options(timeout=1)()").wait()
    assert cell.error is not None
    assert cell.error["ename"] == "CallTimeoutError"
    assert len(cell.stdout) < 3_000_000, "it had to wait for its pace"
    assert cell.replied is not None
    promise("a timeout of 1 s while 4 MB are printed", cell.duration - 1, 0.5)
    cell = newest.begin("call = waiting.spawn()\ntime.sleep(1)\ncall.cancel()\ncall.result()").wait()
    assert cell.error is not None
    assert cell.error["ename"] == "CallCancelledError"
    promise("a cancel while 4 MB are printed", cell.duration - 1, 0.5)
    newest.run("kt.config.cell_log_limit = None")


def test_many_calls_that_are_left_out_are_told_of_once(newest: Kernel) -> None:
    cell = newest.run("kt.config.cell_log_limit = '100k'\nlen(list(remote['lines'].map([1000] * 60, concurrency=2)))")
    assert cell.result == "60"
    assert 400_000 < 28 * len(re.findall(r"\d{6} x{20}\n", cell.stdout)) <= 500_000
    assert "this cell has shown 500 kB, and shows no more" in cell.stderr
    assert cell.stderr.count("[kubetorch:") <= 6, cell.stderr
    newest.run("kt.config.cell_log_limit = None")
