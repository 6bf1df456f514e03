"""``python -m kubetorch_jupyter``: a script as a notebook would run it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.short


def command(script: Path | str, *args: str) -> list[str]:
    return [sys.executable, "-m", "kubetorch_jupyter", str(script), *args]


def run(tmp_path: Path, code: str, *args: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(code)
    return subprocess.run(command(script, *args), capture_output=True, text=True, cwd=Path("/"), timeout=60)


def test_main_module(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("VALUE = 5")
    done = run(
        tmp_path,
        "import sys, __main__, beside, inspect\n"
        "def f(): return 1\n"
        "print(__name__, f.__module__, __main__.f is f, sys.argv[1:], sys.path[0], __file__, beside.VALUE)\n"
        "print(inspect.getsource(f).strip(), __spec__, __annotations__)\n"
        "x: 'undefined' = 1\n",
        "a",
        "--help",
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == f"__main__ __main__ True ['a', '--help'] {tmp_path} {tmp_path / 'script.py'} 5"
    assert second == "def f(): return 1 None {}"


def test_the_scripts_own_future_imports_only(tmp_path: Path) -> None:
    done = run(tmp_path, "def f(x: int): pass\nprint(f.__annotations__['x'])")
    assert done.stdout == "<class 'int'>\n"


def test_await_and_asyncio_run_together(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "import asyncio\n"
        "from asyncio import run\n"
        "async def f(x):\n"
        "    await asyncio.sleep(0)\n"
        "    return x\n"
        "print(asyncio.run(f(1)), await f(2), run(f(3)))\n"
        "task = asyncio.create_task(f(4))\n"
        "async with asyncio.timeout(5):\n"
        "    print(await task)\n"
        "print([x async for x in (i async for i in (await f(n) for n in range(2)))])\n",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 2 3\n4\n[0, 1]\n"


def test_asyncio_run_alone(tmp_path: Path) -> None:
    done = run(tmp_path, "import asyncio\nasync def f(): return 5\nprint(asyncio.run(f()))")
    assert done.stdout == "5\n"


def test_kubetorch_is_ours(tmp_path: Path) -> None:
    done = run(tmp_path, "import kubetorch as kt, kubetorch_jupyter\nprint(kt is kubetorch_jupyter)")
    assert done.stdout == "True\n"


@pytest.mark.parametrize("top", ["", "await asyncio.sleep(0)\n"], ids=["plain", "await"])
@pytest.mark.parametrize(
    ("code", "status", "out"),
    [("sys.exit()", 0, ""), ("sys.exit(7)", 7, ""), ("sys.exit('bye')", 1, "bye\n"), ("raise SystemExit(3)", 3, "")],
)
def test_exit_status(tmp_path: Path, top: str, code: str, status: int, out: str) -> None:
    done = run(tmp_path, f"import asyncio, sys\n{top}{code}\n")
    assert (done.returncode, done.stderr) == (status, out)


@pytest.mark.parametrize("top", ["", "await asyncio.sleep(0)\n"], ids=["plain", "await"])
def test_traceback_begins_in_the_script(tmp_path: Path, top: str) -> None:
    done = run(tmp_path, f"import asyncio\n{top}def f():\n    raise ValueError('no')\nf()\n")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].startswith(f'  File "{tmp_path / "script.py"}", line ')
    assert lines[1].endswith("in <module>")
    assert lines[-1] == "ValueError: no"
    assert "kubetorch_jupyter" not in done.stderr
    assert "asyncio/" not in done.stderr


def test_own_excepthook(tmp_path: Path) -> None:
    done = run(tmp_path, "import sys\nsys.excepthook = lambda *e: print('hook', e[1])\n1 / 0")
    assert (done.returncode, done.stdout) == (1, "hook division by zero\n")


def test_syntax_error(tmp_path: Path) -> None:
    done = run(tmp_path, "x = (\n")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith(f'  File "{tmp_path / "script.py"}", line 1')


@pytest.mark.parametrize("wait", ["time.sleep(60)", "await asyncio.sleep(60)", "asyncio.run(asyncio.sleep(60))"])
def test_interrupt(tmp_path: Path, wait: str) -> None:
    script = tmp_path / "script.py"
    # On one line with the wait, so that the signal finds the script there even if it comes before the wait has begun.
    script.write_text(f"import asyncio, time\nawait asyncio.sleep(0)\n\nprint('go', flush=True); {wait}\n")
    with subprocess.Popen(command(script), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert f'"{script}", line 4' in err


def test_no_such_script() -> None:
    done = subprocess.run(command("/nonesuch.py"), capture_output=True, text=True)
    assert done.returncode == 2
    assert "can't open file '/nonesuch.py'" in done.stderr


def test_help() -> None:
    done = subprocess.run(command("--help"), capture_output=True, text=True)
    assert done.returncode == 0
    assert "SCRIPT" in done.stdout
