"""The side panel's questions in real kernels: answered beside a cell that blocks, and without a trace."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from kubetorch_jupyter.notebook.side_panel.listening import KEY, PREFIX, SUFFIX
from tests.conftest import KERNELS, KernelFactory
from tests.kernel.harness import Cell, Kernel
from tests.promises import promise, record

#: Seconds in which an answer comes, also while a cell blocks.
PROMISED = 0.3
SUBSHELLS = tuple(version for version in KERNELS if not version.startswith("6."))
TRAIN = """\
def train(n):
    for i in range(n):
        print("epoch", i, flush=True)
        time.sleep(0.05)
    return n
"""
#: Blocks a kernel until there is a file, since how long answers take isn't known.
BLOCKED = """\
import os
for _ in range(300):
    if os.path.exists({!r}):
        break
    time.sleep(0.1)
"""


class SidePanel:
    """Asks a kernel as the side panel does."""

    def __init__(self, kernel: Kernel, *, subshell: bool) -> None:
        self.kernel = kernel
        self.subshell = kernel.make_subshell() if subshell else None
        self.asked: list[Cell] = []

    def begin(self, text: str) -> Cell:
        cell = self.kernel.evaluate(KEY, f"{PREFIX}{json.dumps(text)}{SUFFIX}", self.subshell)
        self.asked.append(cell)
        return cell

    def read(self, cell: Cell, timeout: float = 30) -> str:
        cell.wait_for(lambda: cell.reply is not None, timeout, "get an answer")
        assert cell.reply is not None
        assert cell.reply["status"] == "ok", cell.reply
        return str(cell.reply["user_expressions"][KEY]["data"]["text/plain"])

    def ask(self, do: str = "look", **about: Any) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(
            self.read(self.begin(json.dumps({"v": 1, "client": "test", "do": do, **about})))
        )
        assert "error" not in answer, answer
        return answer

    def until(self, condition: Any, **about: Any) -> dict[str, Any]:
        deadline = time.monotonic() + 20
        while not condition(answer := self.ask(**about)):
            assert time.monotonic() < deadline, answer
            time.sleep(0.1)
        return answer


def assert_quiet(kernel: Kernel) -> None:
    assert "Traceback" not in kernel.log, kernel.log
    assert "Error" not in kernel.log, kernel.log


@pytest.mark.timed
@pytest.mark.parametrize("version", SUBSHELLS)
def test_answers_while_a_cell_blocks(version: str, make_kernel_of: Any) -> None:
    make: KernelFactory = make_kernel_of(version)
    kernel = make()
    kernel.run("%load_ext kubetorch_jupyter\nimport time, threading")
    kernel.run(TRAIN + "remote = kt.fn(train).to(kt.Compute(cpus=1))")
    panel = SidePanel(kernel, subshell=True)
    panel.until(lambda a: a.get("selected"), service="train")

    enough, gone = kernel.cwd / "enough", kernel.cwd / "gone"
    blocking = kernel.begin(BLOCKED.format(str(enough)))
    blocking.wait_for(lambda: blocking.started, 10, "begin")
    worst, count = 0.0, 0
    while count < 20:
        began = time.monotonic()
        assert panel.ask(service="train")["services"]
        worst, count = max(worst, time.monotonic() - began), count + 1
        time.sleep(0.05)
    assert not blocking.done
    enough.touch()
    promise(f"ipykernel {version}: the slowest of {count} answers beside time.sleep", worst, PROMISED)
    blocking.wait().ok()

    # A call that a cell waits for: its log, and its end by the panel.
    cell = kernel.begin("remote(10_000)")
    cell.wait_text("epoch 3")
    answer = panel.until(lambda a: "epoch 3" in a["log"]["text"], service="train")
    call = next(call for call in answer["calls"] if call["active"])
    panel.ask("stop", service="train", call=call["id"], id="1")
    cell.wait(20)
    assert cell.error is not None
    assert cell.error["ename"] == "CallCancelledError"
    created = answer["services"][0]["created"]
    blocking = kernel.begin(BLOCKED.format(str(gone)))
    panel.ask("down", service="train", created=created, id="2")
    panel.until(lambda a: a["services"] == [])
    assert not blocking.done
    gone.touch()
    blocking.wait().ok()
    assert "torn down" in kernel.run("print(remote)").stdout
    assert_quiet(kernel)


def test_without_a_trace(kernel: Kernel) -> None:
    """Nothing of the questions is in iopub, history or variables, and what the user's code does isn't touched."""
    kernel.run("%load_ext kubetorch_jupyter\nimport time, threading\nx = 41")
    newer = "7." in kernel.run("import ipykernel; print(ipykernel.__version__)").stdout[:2]
    panel = SidePanel(kernel, subshell=newer)
    before = kernel.run("print(sorted(globals()), get_ipython().execution_count)").stdout
    kernel.run("x + 1")
    panel.until(lambda a: "services" in a)
    for garbage in ("", "no JSON", '"""', "'); exit() #", '{"v": 1, "do": "down"}', "\ud800", "{}" * 10_000):
        assert json.loads(panel.read(panel.begin(garbage)))["error"]
    assert kernel.run("_").result == "42"
    after = kernel.run("print(sorted(globals()), get_ipython().execution_count)").stdout
    names = [json.loads(text.rpartition("]")[0].replace("'", '"') + "]") for text in (before, after)]
    assert [name for name in set(names[1]) - set(names[0]) if not name.startswith("_")] == []
    assert int(after.rpartition(" ")[2]) - int(before.rpartition(" ")[2]) == 3
    history = kernel.run("print([line for _, _, line in get_ipython().history_manager.get_range()])").stdout
    assert "kubetorch_side_panel" not in history

    # Output of the user's threads goes where it went, and figures are not shown before their cell ends.
    kernel.run(
        "def tell():\n    for i in range(15):\n        print('tick', i, flush=True)\n        time.sleep(0.1)\n"
        "thread = threading.Thread(target=tell)"
    )
    cell = kernel.begin("thread.start()\nthread.join()")
    ask_until_done(panel, cell)
    assert [line for line in cell.stdout.splitlines() if line] == [f"tick {i}" for i in range(15)]
    cell = kernel.begin(
        "%matplotlib inline\nimport matplotlib.pyplot as plt\n"
        "plt.plot([1, 2])\ntime.sleep(1.5)\nprint(plt.get_fignums())"
    )
    ask_until_done(panel, cell)
    assert cell.stdout.strip() == "[1]"
    assert sum("image/png" in bundle for bundle in cell.displays) == 1

    published = [message.type for cell in panel.asked for message in cell.messages]
    assert published == [], published
    assert not [message for message in kernel.orphans if "side_panel" in str(message.content)]
    assert_quiet(kernel)


def ask_until_done(panel: SidePanel, cell: Cell) -> None:
    """Ask as fast as answers come, while a cell runs; where there are no subshells they come afterwards."""
    while not cell.done:
        panel.read(panel.begin(json.dumps({"v": 1, "client": "test", "do": "look"})))
        time.sleep(0.05)
    cell.wait()


def test_before_and_after_the_extension(newest_kernel: Kernel) -> None:
    kernel = newest_kernel
    panel = SidePanel(kernel, subshell=True)
    look = json.dumps({"v": 1, "client": "test", "do": "look"})
    assert panel.read(panel.begin(look)) == "True"
    assert kernel.run("import sys; print('kubetorch_jupyter' in sys.modules)").stdout.strip() == "False"
    kernel.run("import importlib.util as u; find = u.find_spec; u.find_spec = lambda name: None")
    assert panel.read(panel.begin(look)) == "False"
    kernel.run("u.find_spec = find\n%load_ext kubetorch_jupyter")
    assert panel.ask()["loaded"] is True
    kernel.run("%unload_ext kubetorch_jupyter")
    assert json.loads(panel.read(panel.begin(look)))["loaded"] is False
    kernel.run("%load_ext kubetorch_jupyter")
    assert panel.ask()["loaded"] is True
    kernel.run("%reload_ext kubetorch_jupyter")
    assert panel.ask()["loaded"] is True
    # A user's own variable of any name is in nobody's way.
    kernel.run("sys = str = getattr = None")
    assert panel.ask()["loaded"] is True
    kernel.restart()
    panel = SidePanel(kernel, subshell=True)
    assert panel.read(panel.begin(look)) == "True"
    assert_quiet(kernel)


def test_deploys_under_way_are_told(newest_kernel: Kernel) -> None:
    kernel = newest_kernel
    kernel.run("%load_ext kubetorch_jupyter")
    panel = SidePanel(kernel, subshell=True)
    cell = kernel.begin(
        "class Slow:\n    def __init__(self):\n        import time\n        time.sleep(1)\n"
        "    def get(self): return 1\n"
        "slow = kt.cls(Slow).to(kt.Compute())"
    )
    seen: list[tuple[str, str]] = []
    while not cell.done:
        for line in panel.ask()["progress"]:
            seen.append((line["state"], line["text"]))
        time.sleep(0.05)
    cell.wait().ok()
    assert ("running", '"slow" is loading') in [(state, text[11 : 11 + 17]) for state, text in seen]
    (line,) = panel.ask()["progress"]
    assert line["state"] == "done"
    assert '"slow" is ready' in line["text"]
    record(f"the side panel saw a deploy of {cell.duration:.1f} s in {len(set(seen))} lines")
    failing = kernel.begin(
        "class Bad:\n    def __init__(self): raise ValueError('no weights')\n    def get(self): return 1\n"
        "kt.cls(Bad).to(kt.Compute())"
    ).wait()
    assert failing.error is not None
    line = panel.ask()["progress"][-1]
    assert line["state"] == "failed"
    assert "no weights" in line["text"]
    assert_quiet(kernel)
