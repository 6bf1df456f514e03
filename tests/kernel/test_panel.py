"""The panel in real kernels, by its comm messages: what it shows, what its buttons do, and that it ends."""

from __future__ import annotations

import os
import signal
import time

from tests.conftest import KernelFactory
from tests.kernel.harness import Cell, Kernel
from tests.kernel.widgets import Widgets
from tests.promises import record

LOAD = "%load_ext kubetorch_jupyter\nimport threading, time, os"
TRAIN = """\
def train(n):
    for i in range(n):
        print("epoch", i, flush=True)
        time.sleep(0.05)
    return n
"""
THREADS = "print([t.name for t in threading.enumerate() if t.name.startswith('kubetorch-panel')])"


def open_panel(kernel: Kernel, widgets: Widgets, code: str = "panel = kt.panel()\npanel") -> str:
    before = set(widgets.roots())
    cell = kernel.run(code)
    assert "shown by front ends with Jupyter widgets" in cell.displays[-1]["text/plain"]
    (root,) = set(widgets.roots()) - before
    assert cell.displays[-1]["application/vnd.jupyter.widget-view+json"]["model_id"] == root
    return root


def assert_quiet(kernel: Kernel, *cells: Cell) -> None:
    """Nothing went wrong where nobody looks."""
    log = kernel.log
    assert "Traceback" not in log, log
    assert "Error" not in log, log
    for cell in cells:
        assert not cell.stderr, cell.stderr


def wait_no_thread(kernel: Kernel, timeout: float = 10) -> None:
    deadline = time.monotonic() + timeout
    while (left := kernel.run(THREADS).stdout.strip()) != "[]":
        assert time.monotonic() < deadline, f"still there: {left}"


def test_a_service_in_the_panel(kernel: Kernel) -> None:
    """Seen, its call's log followed and cancelled, restarted and torn down: all by messages of a front end."""
    widgets = Widgets(kernel)
    kernel.run(LOAD)
    kernel.run(TRAIN + "remote = kt.fn(train).to(kt.Compute(cpus=1, memory='1Gi'))")
    root = open_panel(kernel, widgets)
    shown = widgets.wait_text(root, "ready")
    assert "Nothing runs yet" not in shown
    kernel.run("call = remote.spawn(10_000)")
    widgets.click(root, "train")
    shown = widgets.wait_text(root, "epoch 3")
    assert "cpus=1, memory=1Gi" in shown
    assert "of the newest call, train" in shown
    widgets.wait_text(root, "MiB")

    # It goes on while a cell blocks the kernel's main thread, and sends no more than it may.
    first = len(kernel.comms)
    blocking = kernel.run("time.sleep(4)\nprint('slept')")
    during = kernel.comms[first:]
    logs = [c for kind, c in during if kind == "comm_msg" and "<pre>" in str(c["data"].get("state", {}).get("value"))]
    record(f"the panel's log was sent {len(logs)} times while a cell blocked for {blocking.duration:.1f} s")
    assert 4 <= len(logs) <= 4 * blocking.duration + 2
    assert len({c["data"]["state"]["value"] for c in logs}) == len(logs), "the same was sent again"

    # A button that is pressed while a cell blocks is not lost.
    cell = kernel.begin("time.sleep(1)\nprint('slept')")
    widgets.click(root, "Cancel")
    cell.wait().ok()
    widgets.wait_no_text(root, "Cancel\n")
    ended = kernel.run("while call.status in ('running', 'cancelling'): time.sleep(0.01)\nprint(call.status)")
    assert ended.stdout.strip() == "cancelled"

    pid = kernel.run("print(remote.service.status()['worker'])").stdout
    widgets.click(root, "Restart…")
    widgets.wait_text(root, "The state of its worker is lost")
    widgets.click(root, "No, keep it")
    widgets.wait_no_text(root, "The state of its worker is lost")
    widgets.click(root, "Restart…")
    widgets.wait_text(root, "Yes, restart")
    widgets.click(root, "Yes, restart")
    widgets.wait_text(root, '"train" was restarted')
    assert kernel.run("print(remote.service.status()['worker'])").stdout != pid

    widgets.click(root, "Tear down…")
    widgets.wait_text(root, 'Tear down "train"?')
    widgets.click(root, "Yes, tear down")
    widgets.wait_text(root, "Nothing runs yet")
    # The notebook's own handle knows, so that the next call doesn't bring it back by surprise.
    told = kernel.run("print(list(kt.services()), remote)\ntry: remote(1)\nexcept Exception as e: print(repr(e))")
    assert told.stdout.startswith("[]")
    assert "torn down" in told.stdout
    assert "NotDeployedError" in told.stdout

    widgets.click(root, "Close")
    wait_no_thread(kernel)
    widgets.refresh()
    assert not widgets.models, "some of its widgets are still open"
    assert kernel.run("panel").result == "<kubetorch panel: closed>"
    assert_quiet(kernel, blocking, cell)


def test_deploying_from_the_panel(newest_kernel: Kernel) -> None:
    """The form shows the code, deploys, and binds the handle; what goes wrong is a line in the panel."""
    kernel, widgets = newest_kernel, Widgets(newest_kernel)
    kernel.run(LOAD)
    root = open_panel(kernel, widgets)
    widgets.wait_text(root, "Nothing runs yet")
    widgets.click(root, "Deploy…")
    widgets.wait_text(root, "no function or class of its own yet")
    kernel.run("def broken(): return lock\nlock = threading.Lock()\n_hidden = lambda: 0")
    # The newest is offered, however fast the cells follow each other, until somebody has chosen.
    widgets.wait_text(root, "broken = kt.fn(broken)")
    # As Flask's `request` is, outside of one: it can't even be asked what it is.
    kernel.run("class Proxy:\n    __class__ = property(lambda self: 1 / 0)\nproxy = Proxy()\ndel Proxy")
    kernel.run("class Model:\n    def __init__(self, size): self.size = size\n    def get(self): return self.size")
    kernel.run(TRAIN)
    widgets.wait_text(root, "train = kt.fn(train).to(kt.Compute())")
    form = widgets.find(root, "Function", "DropdownModel")
    assert form is not None
    assert list(widgets.models[form]["_options_labels"]) == ["train", "Model", "broken"]

    widgets.fill(root, "CPUs", "many")
    widgets.wait_text(root, "cpus")
    shown = widgets.wait_text(root, "'many'")
    assert 'kt.Compute(cpus="many")' in shown
    widgets.fill(root, "CPUs", "500m")
    widgets.fill(root, "Memory", "1Gi")
    widgets.fill(root, "Concurrency", 2, "BoundedIntTextModel")
    widgets.wait_text(root, 'train = kt.fn(train).to(kt.Compute(cpus="500m", memory="1Gi", concurrency=2))')
    widgets.click(root, "Deploy")
    widgets.wait_text(root, '"train" is ready, and train in the notebook is its handle')
    called = kernel.run("print(train(2), train.compute)")
    assert called.stdout.startswith("epoch 0\nepoch 1\n2 Compute(cpus=0.5, memory='1Gi'")

    widgets.click(root, "Deploy…")
    widgets.wait_text(root, "Deploy a function or class")
    widgets.fill(root, "Function", "Model", "DropdownModel")
    widgets.wait_text(root, "init_args")
    widgets.fill(root, "init_args", "{'size': ")
    widgets.wait_text(root, "the arguments are a dict")
    widgets.fill(root, "init_args", "{'size': 3}")
    widgets.wait_text(root, "Model = kt.cls(Model).to(kt.Compute(")
    widgets.wait_text(root, "init_args={'size': 3})")
    widgets.click(root, "Deploy")
    widgets.wait_text(root, '"model" is ready')
    assert kernel.run("print(Model.get())").stdout.strip() == "3"

    widgets.click(root, "Deploy…")
    widgets.wait_text(root, "Deploy a function or class")
    widgets.fill(root, "Function", "broken", "DropdownModel")
    widgets.wait_text(root, "broken = kt.fn(broken)")
    widgets.click(root, "Deploy")
    widgets.wait_text(root, "lock")  # the error names the variable
    assert kernel.run("print(callable(broken), [s.name for s in kt.services()])").stdout.strip() == (
        "True ['train', 'model']"
    )

    # Namespaces of cells are services too: one that a variable holds, and one that only %%kt knows.
    kernel.run("space = kt.Cells('space').to(kt.Compute())")
    kernel.run("%%kt -n aside\nx = 1")
    for name in ("space", "aside"):
        widgets.wait_text(root, name)
        widgets.click(root, name)
        widgets.wait_text(root, "Tear down…")
        widgets.click(root, "Tear down…")
        widgets.wait_text(root, f'Tear down "{name}"?')
        widgets.click(root, "Yes, tear down")
        widgets.wait_text(root, f'"{name}" was torn down')
    assert kernel.run("print(space)").stdout.strip() == "<kubetorch Cells space: not deployed>"
    again = kernel.run("%%kt -n aside\nprint('x' in globals())")
    assert again.stdout.splitlines()[-1] == "False"
    assert_quiet(kernel, called)
    assert not [m for m in kernel.orphans if m.type == "error" or "Traceback" in str(m.content)]


def test_panels_that_nobody_sees(make_newest_kernel: KernelFactory) -> None:
    """Two panels; a pod that is killed; a view that goes and comes back; a restart; the kernel's end."""
    kernel = make_newest_kernel()
    widgets = Widgets(kernel)
    kernel.run(LOAD)
    kernel.run(TRAIN + "remote = kt.fn(train).to(kt.Compute())\nother = kt.fn(train, name='other').to(kt.Compute())")
    one, two = open_panel(kernel, widgets), open_panel(kernel, widgets, "second = kt.panel()\nsecond")
    for root in (one, two):
        widgets.wait_text(root, "other")
        widgets.click(root, "other")
        widgets.wait_text(root, "It has not been called yet")
    pid = int(kernel.run("print(other.service.status()['pid'])").stdout)
    os.kill(pid, signal.SIGKILL)
    for root in (one, two):
        widgets.wait_no_text(root, "other")
        assert "train" in widgets.text(root)

    # A front end counts its views: without one nobody is asked any more, and no thread is left.
    for root in (one, two):
        widgets.set(root, _view_count=1)
    widgets.set(two, _view_count=0)
    kernel.run("second.close()\nsecond.close()\nassert second.closed")
    widgets.refresh()
    assert widgets.roots() == [one]
    widgets.set(one, _view_count=0)
    wait_no_thread(kernel)
    kernel.run("third = kt.fn(train, name='third').to(kt.Compute())")
    assert "third" not in widgets.text(one)
    widgets.set(one, _view_count=1)
    widgets.wait_text(one, "third")

    kernel.restart()
    kernel.run(LOAD)
    kernel.send_comm(one, {"method": "custom", "content": {"event": "click"}, "buffers": []})
    kernel.run(TRAIN + "remote = kt.fn(train).to(kt.Compute())")
    again = open_panel(kernel, widgets)
    widgets.wait_text(again, "ready")
    widgets.click(again, "train")
    kernel.run("remote(2)")
    widgets.wait_text(again, "epoch 1")
    kernel.stop()
    log = kernel.log
    assert "Traceback" not in log, log
    kernel.assert_nothing_left()


def test_without_a_kernel_or_widgets(newest_kernel: Kernel) -> None:
    """One line that says what is missing."""
    newest_kernel.run(LOAD)
    told = newest_kernel.run(
        "import sys\nsys.modules['ipywidgets'] = None\ntry: kt.panel()\nexcept kt.NotebookError as e: print(e)"
    )
    assert told.stdout.count("\n") == 1
    assert "pip install ipywidgets" in told.stdout


def test_a_fault_in_the_panel_is_shown_and_does_not_end_it(make_newest_kernel: KernelFactory) -> None:
    kernel = make_newest_kernel()
    widgets = Widgets(kernel)
    kernel.run(LOAD)
    kernel.run(TRAIN + "remote = kt.fn(train).to(kt.Compute(cpus=1, memory='1Gi'))")
    kernel.run(
        "from kubetorch_jupyter.notebook.panel.controller import Panel\n"
        "select = Panel._on_select\n"
        "def broken(self, name):\n"
        "    Panel._on_select = select\n"
        "    raise TypeError('not this time')\n"
        "Panel._on_select = broken"
    )
    root = open_panel(kernel, widgets)
    widgets.wait_text(root, "ready")
    widgets.click(root, "train")
    widgets.wait_text(root, "not this time")
    widgets.click(root, "train")
    widgets.wait_text(root, "cpus=1, memory=1Gi")
    kernel.run("panel.close()\nremote.teardown()")
    wait_no_thread(kernel)
