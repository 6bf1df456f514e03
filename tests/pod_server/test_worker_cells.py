"""Cells in a worker: output, the loop that lasts, magics, and cancels that hit the cell they are meant for."""

from __future__ import annotations

import itertools
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pod_server.cells import Namespace
from pod_server.wire import LogKind

from .fake_front import Failed, FakeFront, Record

_numbers = itertools.count(1)

#: A cell that blocks until that file is there.
BLOCKS = """
import os, time
print('begun')
while not os.path.exists({!r}):
    time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def front() -> Iterator[FakeFront]:
    with FakeFront() as front:
        front.deploy(Namespace)
        yield front


def begin(front: FakeFront, source: str, timed: bool = False) -> Record:
    return front.start(source, f"<cell {next(_numbers)}>", source, timed, _f="run")


def run(front: FakeFront, source: str, timed: bool = False) -> str:
    """What a cell prints."""
    record = begin(front, source, timed)
    record.wait()
    return record.text(LogKind.STDOUT)


def shown(front: FakeFront, source: str) -> list[str]:
    record = begin(front, source)
    record.wait()
    return [d["data"]["text/plain"] for d in record.displays()]


def test_variables_last(front: FakeFront) -> None:
    front.call({"x": 20}, _f="put")
    assert run(front, "y = x + 1\nprint(y)") == "21\n"
    assert front.call(["y", "nothing"], _f="fetch") == {"y": 21}
    names = front.call(_f="names")
    assert (names["x"], names["y"]) == ("int", "int")
    assert not [name for name in names if name.startswith("_")]


def test_the_last_expression_is_shown(front: FakeFront) -> None:
    assert shown(front, "1 + 1") == ["2"]
    assert shown(front, "1 + 1;") == []
    assert shown(front, "'a;'  # not quiet;") == ["'a;'"]
    assert shown(front, "None") == []
    assert shown(front, "x = 3") == []
    assert shown(front, "import asyncio\nawait asyncio.sleep(0, 'awaited')") == ["'awaited'"]
    assert shown(front, "_") == ["'awaited'"]
    assert shown(front, "") == []
    assert shown(front, "# only a comment") == []


def test_a_task_goes_on_in_the_next_cell(front: FakeFront) -> None:
    run(
        front,
        "import asyncio\nnext_cell = asyncio.Event()\nasync def tick():\n    for i in range(2):\n"
        "        await asyncio.sleep(0.02)\n        print('tick', i)\n    await next_cell.wait()\n"
        "    print('tick 2')\n    return 'ticked'\ntask = asyncio.create_task(tick())",
    )
    record = begin(front, "next_cell.set()\nawait task")
    record.wait()
    # What it prints after its own cell has ended is seen in the one that runs then.
    assert record.text(LogKind.STDOUT).endswith("tick 2\n")
    assert [d["data"]["text/plain"] for d in record.displays()] == ["'ticked'"]


def test_what_is_left_running_prints_into_the_service_log(front: FakeFront, tmp_path: Path) -> None:
    go = tmp_path / "go"
    run(
        front,
        "import asyncio, os\nasync def late():\n"
        f"    while not os.path.exists({str(go)!r}):\n        await asyncio.sleep(0.01)\n"
        "    await asyncio.sleep(0.1)\n    print('late')\nt = asyncio.create_task(late())",
    )
    go.touch()  # the cell has its result; a moment later it has been forgotten, too
    front.service.until(lambda r: "late\n" in r.text())


def test_the_module_is_main(front: FakeFront) -> None:
    source = """
    import dataclasses, pickle, multiprocessing, typing
    @dataclasses.dataclass
    class Point:
        x: "int"
    def square(x):
        return x * x
    print(__name__, typing.get_type_hints(Point))
    print(pickle.loads(pickle.dumps(Point(3))))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(pool.map(square, [1, 2, 3]))
    """
    import textwrap

    assert run(front, textwrap.dedent(source)) == "__main__ {'x': <class 'int'>}\nPoint(x=3)\n[1, 4, 9]\n"


def test_future_imports_last(front: FakeFront) -> None:
    with FakeFront() as fresh:
        fresh.deploy(Namespace)
        run(fresh, "from __future__ import annotations")
        assert run(fresh, "def f(x: nowhere.known): pass\nprint(f.__annotations__)") == "{'x': 'nowhere.known'}\n"


def test_a_namespace_takes_the_place_of_another() -> None:
    threads = "import threading\nsorted(t.name for t in threading.enumerate() if t.name == 'cells')"
    with FakeFront() as fresh:
        fresh.deploy(Namespace)
        run(fresh, "x = 1\nimport asyncio\nasync def f(): await asyncio.sleep(60)\nt = asyncio.ensure_future(f())")
        fresh.deploy(Namespace)
        assert fresh.call(["x"], _f="fetch") == {}
        assert shown(fresh, threads) == ["['cells']"]
        assert run(fresh, "asyncio = __import__('asyncio')\nprint(asyncio.run(asyncio.sleep(0, 'runs')))") == "runs\n"


def test_errors_have_the_cells_lines(front: FakeFront) -> None:
    run(front, "def divide(a):\n    return a / 0  # here")
    record = begin(front, "\n\ndivide(1)")
    with pytest.raises(ZeroDivisionError) as e:
        record.wait()
    tb: Any = e.value.__traceback__
    lines = []
    while tb is not None:
        lines.append((tb.tb_frame.f_code.co_name, tb.tb_lineno))
        tb = tb.tb_next
    assert lines[-2:] == [("<module>", 3), ("divide", 2)]
    assert run(front, "print('goes on')") == "goes on\n"


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import sys; sys.exit(3)", "SystemExit"),
        ("exit()", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise StopIteration(1)", "StopIteration"),
        ("import asyncio; raise asyncio.CancelledError", "CancelledError"),
        ("1/0", "ZeroDivisionError"),
        ("return 3", "SyntaxError"),
    ],
)
def test_a_cell_fails_alone(front: FakeFront, source: str, what: str) -> None:
    other = begin(front, "import asyncio\nawait asyncio.sleep(0.1)\nprint('whole')")
    record = begin(front, source)
    with pytest.raises(Exception) as e:  # noqa: PT011 - which is checked below
        record.wait()
    # Those that could be mistaken for one of this process come as stand-ins, see `Record.take`.
    assert what in repr(e.value)
    other.wait()
    assert other.text(LogKind.STDOUT) == "whole\n"


def test_a_cell_that_blocks_blocks_no_other_call(front: FakeFront, tmp_path: Path) -> None:
    go = tmp_path / "go"
    record = begin(front, BLOCKS.format(str(go)))
    record.until(lambda r: "begun" in r.text())
    assert isinstance(front.call(_f="names"), dict)
    assert record.ended is None
    go.touch()
    record.wait()


#: The exception comes while it runs, where Python only reports it.
SLOW_FINALIZER = """
import time
class Slow:
    def __del__(self):
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            pass
slow = Slow()
del slow
while True:
    pass
"""


# -- cancelling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        "import asyncio\nawait asyncio.sleep(60)",
        "get_ipython().system('sleep 60')",
        "get_ipython().getoutput('sleep 60')",
        "get_ipython().run_cell_magic('bash', '', 'sleep 60')",
        "import asyncio\nasyncio.run(asyncio.sleep(60))",
        "import asyncio\nawait asyncio.gather(asyncio.sleep(60), asyncio.sleep(60))",
        "import subprocess\nsubprocess.run(['sleep', '60'], timeout=1e6)",
        SLOW_FINALIZER,
    ],
)
def test_cancel(front: FakeFront, source: str) -> None:
    record = begin(front, "print('begun', flush=True)\n" + source)
    record.until(lambda r: "begun" in r.text())
    time.sleep(0.05)
    record.cancel()
    with pytest.raises(Failed, match="CallCancelledError"):
        record.wait(3)
    assert run(front, "print('next')") == "next\n"


def test_a_cancel_that_is_swallowed(front: FakeFront) -> None:
    record = begin(
        front,
        "import time\nprint('begun')\ntry:\n    time.sleep(60)\n"
        "except BaseException as e:\n    print(type(e).__name__)",
    )
    record.until(lambda r: "begun" in r.text())
    record.cancel()
    with pytest.raises(Failed, match="CallCancelledError"):
        record.wait(3)
    assert record.text(LogKind.STDOUT) == "begun\nCancelled\n"
    assert run(front, "print('next')") == "next\n"


def test_cancel_before_it_began(front: FakeFront, tmp_path: Path) -> None:
    go = tmp_path / "go"
    blocks = begin(front, BLOCKS.format(str(go)))
    blocks.until(lambda r: "begun" in r.text())
    waits = begin(front, "print('must not run')")
    time.sleep(0.05)
    waits.cancel()
    time.sleep(0.5)  # it goes through three threads before it is where the cell is
    go.touch()
    with pytest.raises(Failed, match="CallCancelledError"):
        waits.wait(3)
    blocks.wait()
    assert waits.text() == ""


def test_a_cell_in_line_is_told_why(front: FakeFront, tmp_path: Path) -> None:
    go = tmp_path / "go"
    blocks = begin(front, BLOCKS.format(str(go)))
    waits = begin(front, "print('at last')")
    waits.until(lambda r: "waiting for another cell" in r.text(LogKind.STDERR))
    go.touch()
    waits.wait()
    blocks.wait()
    assert waits.text(LogKind.STDOUT) == "at last\n"


def test_cancels_at_any_moment_hit_nothing_else(front: FakeFront) -> None:
    """A ticking task of another cell goes through all of it, and so does the loop."""
    run(
        front,
        "import asyncio\nticks = 0\nasync def tick():\n    global ticks\n    while True:\n"
        "        await asyncio.sleep(0.001)\n        ticks += 1\nticker = asyncio.create_task(tick())",
    )
    sources = [
        "while True:\n    print('x' * 100)",
        "import time\nwhile True: time.sleep(0.001)",
        "while True: await asyncio.sleep(0.0005)",
        "while True:\n    try:\n        [sum(range(100)) for _ in range(100)]\n    finally:\n        pass",
        "for i in range(2000): print(i)",
    ]
    dice = random.Random(7)
    kinds: list[str] = []
    for i in range(150):
        record = begin(front, sources[i % len(sources)])
        time.sleep(dice.random() * 0.02)
        record.cancel()
        try:
            record.wait(5)
        except Failed as e:
            kinds.append(e.type)
    assert len(kinds) > 100
    assert set(kinds) == {"CallCancelledError"}
    before = front.call(["ticks"], _f="fetch")["ticks"]
    assert shown(front, "await asyncio.sleep(0.1)\nticker.done()") == ["False"]
    assert front.call(["ticks"], _f="fetch")["ticks"] > before
    run(front, "ticker.cancel()")
    assert front.service.text(LogKind.STDERR) == ""


# -- the shell's stand-in ----------------------------------------------------------------------------------------------


def test_commands(front: FakeFront) -> None:
    assert run(front, "n = 3\nget_ipython().system('echo $n {n + 1} \\\\$$HOME; exit 4')") == "3 4 $HOME\n"
    assert shown(front, "_exit_code") == ["4"]
    assert shown(front, "get_ipython().getoutput('printf \"a\\\\nb\"')") == ["['a', 'b']"]
    record = begin(front, "get_ipython().system('echo to stderr >&2')")
    record.wait()
    assert "to stderr" in record.text()


def test_line_magics(front: FakeFront, tmp_path: Any) -> None:
    def magic(name: str, line: str = "") -> str:
        return run(front, f"value = get_ipython().run_line_magic({name!r}, {line!r})")

    assert "Wall time" in magic("time", "sum(range(10))")
    assert front.call(["value"], _f="fetch") == {"value": 45}
    assert "per loop" in magic("timeit", "1 + 1")
    assert magic("env", "KT_TEST_X=5") == "env: KT_TEST_X=5\n"
    magic("env", "KT_TEST_X")
    assert front.call(["value"], _f="fetch") == {"value": "5"}
    assert magic("cd", str(tmp_path)).strip() == str(tmp_path)
    magic("pwd")
    assert front.call(["value"], _f="fetch") == {"value": str(tmp_path)}
    assert "value  str" in magic("who")
    assert magic("matplotlib", "inline") == ""
    run(front, "def documented(a, b=1):\n    'Adds.'")
    assert magic("pinfo", "documented") == "Signature: documented(a, b=1)\nType:      function\nDocstring: Adds.\n"
    assert "Value:     [1]" in magic("pinfo", "[1]")
    assert "pip" in magic("pip", "--version")
    with pytest.raises(ValueError, match="%nonsense isn't there in a pod; there are cd, env"):
        magic("nonsense")


def test_cell_magics(front: FakeFront, tmp_path: Any) -> None:
    def magic(name: str, line: str, body: str) -> str:
        return run(front, f"get_ipython().run_cell_magic({name!r}, {line!r}, {body!r})")

    assert magic("bash", "", "for i in 1 2; do echo $i; done") == "1\n2\n"
    assert magic("sh", "", "echo one") == "one\n"
    file = tmp_path / "written.txt"
    assert magic("writefile", str(file), "first\n") == f"Wrote {file}\n"
    magic("writefile", f"-a {file}", "second\n")
    assert file.read_text() == "first\nsecond\n"
    assert "per loop" in magic("timeit", "", "sum(range(3))")
    with pytest.raises(Exception, match="returned non-zero exit status 3"):
        magic("bash", "", "exit 3")
    with pytest.raises(ValueError, match="%%nonsense isn't there"):
        magic("nonsense", "", "")


def test_timed(front: FakeFront) -> None:
    out = run(front, "import asyncio\nawait asyncio.sleep(0.05)", timed=True)
    found = re.fullmatch(r"CPU times: [\d.]+ (?:ms|µs)\nWall time: ([\d.]+) ms\n", out)
    assert found is not None, out
    assert float(found[1]) >= 50
    with pytest.raises(ZeroDivisionError):
        run(front, "1/0", timed=True)


def test_memory_is_flat_over_many_cells(front: FakeFront) -> None:
    def heap() -> int:
        with open(f"/proc/{front.process.pid}/smaps_rollup") as f:
            return sum(int(line.split()[1]) * 1024 for line in f if line.startswith("Anonymous:"))

    def many(n: int) -> None:
        for start in range(0, n, 50):
            for record in [front.start("x = 1", "<same>", "x = 1", False, _f="run") for _ in range(start, start + 50)]:
                record.wait()

    many(500)
    sizes = [heap()]
    for _ in range(2):
        many(1500)
        sizes.append(heap())
    # The smaller one: a thread's arena comes once, a leak comes every time.
    grown = min(after - before for before, after in itertools.pairwise(sizes))
    assert grown / 1500 < 1000, "bytes a cell"
