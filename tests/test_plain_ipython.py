"""Plain Python, and IPython without ipykernel: everything but displays works, and nobody is told of widgets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.terminal import Terminal, run_in_terminal, screen

#: What a notebook brings along, and what ``python script.py`` doesn't have.
WITHOUT_KERNEL = ("ipykernel", "ipywidgets", "comm", "jupyter_client", "zmq")
WITHOUT_IPYTHON = ("IPython", "traitlets", *WITHOUT_KERNEL)

WORK = """
import asyncio, time

def double(x):
    time.sleep(0.05)
    print("doubling", x)
    return 2 * x

class Counter:
    def __init__(self): self.n = 0
    def add(self, n):
        self.n += n
        return self.n

def broken(): raise ValueError("no <data> here")
"""

#: Prints a line for each thing that must work.
USE = """
doubler = kt.fn(double).to(kt.Compute(concurrency=4))
print(doubler(4), asyncio.run(doubler.aio(5)))
counter = kt.cls(Counter).to(kt.Compute())
print(counter.add(2), counter.add(3))
print(sum(doubler.options(stream_logs=True).map(range(60), concurrency=4)) // 10)
try: kt.fn(broken).to(kt.Compute(), stream_logs=False)()
except ValueError as e: print("caught", e)
print(repr(doubler))
"""

EXPECTED = [
    r'kubetorch: "double" is ready on local pods in \S+ s \(sent .*\)',
    "doubling 4",
    "doubling 5",
    "8 10",
    r'kubetorch: "counter" is ready on local pods in \S+ s \(sent .*\)',
    "2 5",
    r"kubetorch: map of double, 60 of 60 done, \d+ a second, \S+ s",
    "354",
    "caught no <data> here",
    "<kubetorch Fn double: service double on local pods>",
]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which `block` makes packages look as if they were not installed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nsys.modules.update(dict.fromkeys(os.environ.get('TEST_BLOCKED', '').split()))\n"
    )
    return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "IPYTHONDIR": str(tmp_path / "ipython")}


def assert_missing(package: str) -> str:
    """Code that ends unless a package is missing: without it, these tests would show nothing."""
    return f"try: import {package}\nexcept ImportError: pass\nelse: raise SystemExit('{package} is there')\n"


def block(environment: dict[str, str], packages: Sequence[str]) -> dict[str, str]:
    return {**environment, "TEST_BLOCKED": " ".join(packages)}


def run(command: Sequence[str], environment: dict[str, str]) -> str:
    """What a process writes to stdout; it may say nothing else, and must end well."""
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert done.returncode == 0, done
    assert done.stderr == ""
    return done.stdout


def assert_lines(text: str, patterns: Sequence[str]) -> None:
    lines = [line for line in text.splitlines() if not re.fullmatch(r"(double·\d+ )?doubling \d+", uncoloured(line))]
    wanted = [pattern for pattern in patterns if not pattern.startswith("doubling")]
    assert len(lines) == len(wanted), text
    for line, pattern in zip(lines, wanted, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)


def uncoloured(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_a_script_without_ipython(tmp_path: Path, environment: dict[str, str]) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"{assert_missing('IPython')}import kubetorch_jupyter as kt\n{WORK}{USE}")
    out = run(["-W", "error", str(script)], block(environment, WITHOUT_IPYTHON))
    assert_lines(out, EXPECTED)
    assert [f"doubling {x}" in out for x in (4, 5, 59)] == [True] * 3


def test_a_script_imports_nothing_of_a_notebook(tmp_path: Path, environment: dict[str, str]) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nimport kubetorch_jupyter as kt\n{WORK}\nkt.fn(double).to(kt.Compute())(1)\n"
        f"print([name for name in {WITHOUT_IPYTHON!r} if name in sys.modules])\n"
    )
    assert run(["-W", "error", str(script)], environment).splitlines()[-1] == "[]"


LOADED = f"%load_ext kubetorch_jupyter\n{WORK}"


def ipython(code: str) -> list[str]:
    return ["-m", "IPython", "--no-banner", "--colors=NoColor", "--no-confirm-exit", "-c", code]


def test_ipython_without_a_kernel(environment: dict[str, str]) -> None:
    assert_lines(run(ipython(assert_missing("ipykernel") + LOADED + USE), block(environment, WITHOUT_KERNEL)), EXPECTED)


def test_the_magics_in_ipython_without_a_kernel(environment: dict[str, str]) -> None:
    code = (
        "%load_ext kubetorch_jupyter\n%load_ext kubetorch_jupyter\n"
        "ip = get_ipython()\n"
        "ip.run_cell_magic('kt', '-n plain', 'x = 20\\nprint(\"in the pod\")\\nx + 1')\n"
        "ip.run_cell_magic('kt', '-n plain -o y', 'y = x + 3')\n"
        "print('y is', y)\n"
        "%kt services\n"
        "%kt down plain\n"
        "%unload_ext kubetorch_jupyter\n"
        "print('kt' in globals())"
    )
    out = run(ipython(code), block(environment, WITHOUT_KERNEL))
    assert re.search(r'^kubetorch: "plain" is ready on local pods in \S+ s', out, re.MULTILINE), out
    assert "in the pod\n" in out
    assert "y is 23\n" in out
    assert out.endswith("False\n")
    assert "<div" not in out


def test_ipython_on_a_terminal_has_one_row(environment: dict[str, str]) -> None:
    code = LOADED + (
        "class Slow:\n"
        "    def __init__(self):\n"
        "        time.sleep(0.8)\n"
        "    def f(self): return 1\n"
        "slow = kt.cls(Slow).to(kt.Compute())\n"
        "print(slow.f())"
    )
    written = run_in_terminal([sys.executable, *ipython(code)], block(environment, WITHOUT_KERNEL))
    rows = screen(uncoloured(written))
    assert re.fullmatch(r'kubetorch: "slow" is ready on local pods in \S+ s \(sent .*\)', rows[0]), rows
    assert rows[1] == "1"
    assert not any(rows[2:]), rows
    assert re.search(r'\rkubetorch: "slow" is [^\r\n]*, \d\.\d+ s\x1b\[K', written)


def test_ctrl_c_in_ipython_on_a_terminal(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", "--simple-prompt"]
    command += ["--TerminalInteractiveShell.confirm_exit=False", "--HistoryManager.enabled=False"]
    with Terminal(command, block(environment, WITHOUT_KERNEL)) as terminal:

        def say(text: str, number: int) -> str:
            """What comes of it, until the next prompt."""
            terminal.type(text)
            return uncoloured(terminal.read_until(rf"In \[{number}\]: "))

        say("", 1)
        say("%load_ext kubetorch_jupyter\n", 2)
        # Two empty lines end a cell there; what is typed is echoed, hence the sum.
        for number, body in enumerate(["import time, asyncio; time.sleep(30)", "await asyncio.sleep(30)"], 3):
            terminal.type(f"%%kt -n plain\nprint('beg' + 'un'); {body}\n\n\n")
            terminal.read_until("begun")
            stopped = say("\x03", number)
            assert "KeyboardInterrupt" in stopped
            assert "kubetorch_jupyter" not in stopped
        assert "next 4" in say("%%kt -n plain\nprint('next', 2 + 2)\n\n\n", 5)
        say("%%kt -n plain --bg job\nfor i in range(1000): print('tick', i); time.sleep(0.01)\n\n\n", 6)
        terminal.type("%kt logs -f job\n")
        terminal.read_until("tick 30")
        assert "KeyboardInterrupt" in say("\x03", 7)
        assert "running" in say("job.status\n", 8)
        assert re.search(r"plain +local +running +\S+ +\S+ IPython\b", say("%kt services\n", 9))
        assert "needs a Jupyter kernel" in say("%kt panel\n", 10)
        terminal.type("exit\n")
        terminal.process.wait(10)
        assert terminal.process.returncode == 0
