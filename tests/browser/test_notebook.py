"""A notebook as people use it, in JupyterLab and in Notebook 7: what they see, press and wait for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.promises import promise

from .conftest import OpenNotebook

if TYPE_CHECKING:
    from playwright.sync_api import Locator

    from scripts.browser import Notebook

FRONTS = ("lab", "notebook")

LOAD = "%load_ext kubetorch_jupyter"
DEPLOY = """\
def train(epochs):
    import time
    for epoch in range(epochs):
        print("epoch", epoch)
        time.sleep(0.1)
    return epochs * 11

def draw():
    import matplotlib.pyplot as plt
    plt.plot([1, 2, 3])
    plt.show()

def divide(amount, parts):
    share = amount / parts    # the line to be shown
    return share

train = kt.fn(train).to(kt.Compute(cpus="1"))
draw, divide = kt.fn(draw).to(kt.Compute()), kt.fn(divide).to(kt.Compute())"""
FLOOD = """\
def flood(lines):
    for i in range(lines):
        print("line", i)

flood = kt.fn(flood).to(kt.Compute())"""


def panel_of(notebook: Notebook, number: int) -> Locator:
    """The panel below a cell."""
    shown = notebook.cell(number).locator(".kt-panel")
    shown.wait_for()
    return shown


def service(panel: Locator, name: str) -> Locator:
    """A service's name in the table; calls have buttons of the same name."""
    return panel.locator(".kt-service").get_by_role("button", name=name, exact=True)


def tab_to(notebook: Notebook, name: str) -> None:
    """Go to a button by the Tab key alone."""
    for _ in range(40):
        if notebook.page.evaluate("document.activeElement.textContent") == name:
            return
        notebook.page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not lead to {name!r}")


def wait_focus(notebook: Notebook, name: str) -> None:
    """Wait until a button has the focus."""
    notebook.page.wait_for_function("name => document.activeElement.textContent === name", arg=name)


@pytest.mark.timed
@pytest.mark.parametrize("front", FRONTS)
def test_a_notebook(front: str, open_notebook: OpenNotebook) -> None:
    """Load, deploy, call, watch, stop, see a figure and an exception, and end a service from the panel."""
    cells = (
        LOAD,
        DEPLOY,
        "train(2)",
        "await train(600, async_=True)",
        "print('the next', train(1))",
        "draw()",
        "divide(1, 0)",
        "%%kt\nfor i in range(3):\n    print('in the pod', i)\ni * 21",
        "kt.panel()",
        "print([s.name for s in kt.services()])",
    )
    notebook = open_notebook(front, cells)
    for number in (0, 1, 2):
        notebook.run(number)
    assert "epoch 0\nepoch 1" in notebook.text(2)
    assert notebook.outputs(2)[-1]["data"]["text/plain"] == "22"

    # Its lines arrive while it runs, and Stop ends it.
    notebook.start(3)
    notebook.cell(3).get_by_text("epoch 5").wait_for()
    assert notebook.is_running(3)
    pressed = time.monotonic()
    notebook.stop()
    notebook.wait_run(3)
    promise(f"{front}: from Stop in the toolbar to the end of the cell", time.monotonic() - pressed, 1.0)
    assert notebook.outputs(3)[-1]["ename"] in ("CancelledError", "KeyboardInterrupt")
    notebook.run(4)
    assert "the next 11" in notebook.text(4)

    notebook.run(5)
    picture = notebook.cell(5).locator(".jp-OutputArea img")
    picture.wait_for()
    assert picture.evaluate("image => image.complete && image.naturalWidth") > 100

    notebook.start(6)
    notebook.wait_run(6)
    shown = notebook.text(6)
    assert "ZeroDivisionError: division by zero" in shown
    assert "share = amount / parts    # the line to be shown" in shown
    assert "pod_server" not in shown

    notebook.run(7)
    shown = notebook.text(7)
    assert "in the pod 0\nin the pod 1\nin the pod 2" in shown
    assert "42" in shown

    notebook.run(8)
    panel = panel_of(notebook, 8)
    service(panel, "train").wait_for()
    if front == "notebook":
        tear_down_by_keyboard(notebook, panel)
    else:
        service(panel, "train").click()
        panel.get_by_role("button", name="Tear down…").click()
        panel.get_by_text('Tear down "train"?').wait_for()
        panel.get_by_role("button", name="Yes, tear down").click()
    panel.get_by_text('"train" was torn down').wait_for()
    service(panel, "train").wait_for(state="detached")
    notebook.run(9)
    left = notebook.text(9)
    assert "'train'" not in left
    assert "'draw', 'divide'" in left


def tear_down_by_keyboard(notebook: Notebook, panel: Locator) -> None:
    """Tab and Enter only; the question's safe answer has the focus first, and taking it leads back."""
    keyboard = notebook.page.keyboard
    panel.get_by_role("button", name="Deploy…").focus()
    tab_to(notebook, "train")
    keyboard.press("Enter")
    panel.get_by_role("button", name="Tear down…").wait_for()
    tab_to(notebook, "Tear down…")
    keyboard.press("Enter")
    wait_focus(notebook, "No, keep it")
    keyboard.press("Enter")
    wait_focus(notebook, "Tear down…")
    keyboard.press("Space")
    wait_focus(notebook, "No, keep it")
    keyboard.press("Shift+Tab")
    wait_focus(notebook, "Yes, tear down")
    keyboard.press("Enter")


@pytest.mark.timed
def test_panels_live_through_it(open_notebook: OpenNotebook) -> None:
    """A cell that blocks, a second panel, outputs that are cleared, a restart: no hang, no exception anywhere."""
    cells = (
        LOAD,
        DEPLOY + "\nrunning = train.options(stream_logs=False).spawn(10_000)",
        "kt.panel()",
        "import time; time.sleep(5)",
        "kt.panel()",
        "import threading; print([t.name for t in threading.enumerate() if t.name.startswith('kubetorch-panel')])",
    )
    notebook = open_notebook("lab", cells)
    page = notebook.page
    for number in (0, 1, 2):
        notebook.run(number)
    first = panel_of(notebook, 2)
    service(first, "train").click()
    log = first.locator(".kt-log")
    log.get_by_text("epoch 5").wait_for()

    # The log goes on while the cell blocks the kernel; what is pressed meanwhile is done, at the latest afterwards.
    notebook.start(3)
    page.wait_for_timeout(500)
    before = log.inner_text()
    page.wait_for_function(
        "([log, before]) => log.innerText !== before", arg=[log.element_handle(), before], timeout=3000
    )
    assert notebook.is_running(3)
    first.get_by_role("button", name="Hide").click()
    began = time.monotonic()
    assert page.evaluate("1 + 1") == 2
    promise("the page answers while a panel lives and a cell blocks", time.monotonic() - began, 0.5)
    notebook.wait_run(3)
    log.wait_for(state="hidden")

    notebook.run(4)
    second = panel_of(notebook, 4)
    service(second, "draw").wait_for()
    service(second, "draw").click()
    second.get_by_text("It has not been called yet").wait_for()
    assert log.is_hidden(), "what is chosen in one panel is not in another"
    second.get_by_role("button", name="Close").click()
    second.wait_for(state="detached")
    service(first, "divide").click()
    first.get_by_text("It has not been called yet").wait_for()

    # Once its output is gone nobody looks any more.
    notebook.command("notebook:clear-all-cell-outputs")
    first.wait_for(state="detached")
    deadline = time.monotonic() + 10
    while True:
        notebook.run(5)
        if notebook.text(5).strip() == "[]":
            break
        assert time.monotonic() < deadline, notebook.text(5)

    notebook.run(2)
    service(first, "train").wait_for()
    notebook.restart()
    # The old view has nobody behind it, and does no harm; ipywidgets says of a click on any such widget that it can't.
    first.get_by_role("button", name="Deploy…").click()
    for number in (0, 1, 4):
        notebook.run(number)
    service(second, "train").click()
    second.get_by_text("epoch 3").first.wait_for()
    notebook.run(2)
    service(first, "train").wait_for()
    assert open_notebook.complaints in ([], ["uncaught: Cannot send"])
    open_notebook.complaints.clear()


@pytest.mark.timed
def test_a_flood(open_notebook: OpenNotebook) -> None:
    """100,000 lines into one cell: the page answers all the time, and the server drops nothing."""
    notebook = open_notebook("lab", (LOAD, FLOOD, "flood(100_000)", "print('after')"))
    notebook.run(0)
    notebook.run(1)
    notebook.start(2)
    place = notebook.page.locator(".jp-NotebookPanel-toolbar").first.bounding_box()
    assert place is not None
    slowest = 0.0
    while notebook.is_running(2):
        began = time.monotonic()
        notebook.page.mouse.click(place["x"] + 1, place["y"] + 1)
        slowest = max(slowest, time.monotonic() - began)
    promise("the page answers a click while 100,000 lines arrive", slowest, 1.0)
    notebook.run(3)
    shown = notebook.text(2)
    assert "line 0\n" in shown
    assert "line 99999" in shown or "kt logs" in shown  # all of it, or the line that says where the rest is
    assert "rate exceeded" not in shown
