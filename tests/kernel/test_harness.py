"""The kernels' harness itself, without the product."""

from __future__ import annotations

import time

import pytest

from tests.conftest import KernelFactory
from tests.kernel.harness import Kernel, run_notebook


def test_streams_are_exact_and_belong_to_their_cell(kernel: Kernel) -> None:
    first = kernel.begin(
        "import sys, time\nfor i in range(3):\n    print(i, end='\\r', flush=True)\n    time.sleep(0.5)"
    )
    second = kernel.begin(
        "print('é 🎉'); print('x', file=sys.stderr)\nfrom IPython.display import HTML\ndisplay(HTML('<b>'))\n6 * 7"
    )
    second.wait().ok()
    assert first.stdout == "0\r1\r2\r"
    assert (second.stdout, second.stderr, second.result) == ("é 🎉\n", "x\n", "42")
    assert second.displays[0]["text/html"] == "<b>"
    times = [m.time for m in first.streams()]
    assert times[-1] - times[0] > 0.1


def test_error_and_what_follows(kernel: Kernel) -> None:
    bad, after = kernel.run_all(["1 / 0", "print('not run')"])
    assert bad.error is not None
    assert bad.error["ename"] == "ZeroDivisionError"
    assert after.reply is not None
    assert after.reply["status"] in ("aborted", "error")
    assert kernel.run("1").result == "1"


def test_interrupt(kernel: Kernel) -> None:
    cell = kernel.begin("print('go', flush=True)\nimport time\ntime.sleep(60)")
    cell.wait_text("go")
    kernel.rest()
    stopped = time.monotonic()
    kernel.interrupt()
    cell.wait(10)
    assert cell.error is not None
    assert cell.error["ename"] == "KeyboardInterrupt"
    assert cell.replied is not None
    assert cell.replied - stopped < 5


def test_restart_and_kill(kernel: Kernel) -> None:
    kernel.run("x = 1")
    first = kernel.pid
    kernel.restart()
    assert kernel.pid != first
    assert kernel.run("'x' in globals()").result == "False"
    kernel.kill()
    assert not kernel.manager.is_alive()


def test_children_that_outlive_the_kernel_are_found(newest_kernel: Kernel) -> None:
    newest_kernel.run("import subprocess\np = subprocess.Popen(['sleep', '60'], start_new_session=True)\np.pid")
    newest_kernel.stop()
    with pytest.raises(AssertionError, match="sleep 60"):
        newest_kernel.assert_nothing_left(timeout=0.2)
    newest_kernel.assert_nothing_left()


def test_headless(make_kernel: KernelFactory) -> None:
    kernel = make_kernel(start=False)
    notebook = run_notebook(["print('hello')", "1 + 1"], make_kernel.python, kernel)  # type: ignore[attr-defined]
    assert notebook.cells[0].outputs[0]["text"] == "hello\n"
    assert notebook.cells[1].outputs[0]["data"]["text/plain"] == "2"
