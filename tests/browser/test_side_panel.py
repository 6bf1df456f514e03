"""The side panel as people use it, in JupyterLab and in Notebook 7, on real kernels and local pods."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import KERNELS, ROOT, kernel_python
from tests.promises import promise

from .conftest import OpenNotebook

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from scripts.browser import Notebook, Server

FRONTS = ("lab", "notebook")
THEMES = ("JupyterLab Light", "JupyterLab Dark", "JupyterLab Dark High Contrast")
AXE = ROOT / "labextension" / "node_modules" / "axe-core" / "axe.min.js"

LOAD = "%load_ext kubetorch_jupyter"
TRAIN = """\
def train(epochs):
    import time
    for epoch in range(epochs):
        print("epoch", epoch)
        time.sleep(0.1)
    return epochs * 11
"""
DEPLOY = f"{TRAIN}\nremote = kt.fn(train).to(kt.Compute(cpus='1'))"
#: How many subshells a kernel has.
SUBSHELLS = "print(len(get_ipython().kernel.shell_channel_thread.manager.list_subshell()))"
NAMES = "print(sorted(service.name for service in kt.services()))"


@pytest.fixture(autouse=True)
def _built() -> None:
    """Without the panel there is nothing to test; in CI it must be there."""
    from scripts.browser import SIDE_PANEL

    if not (SIDE_PANEL / "package.json").exists():
        reason = "the side panel isn't built: run `make setup` where there is Node.js"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


class SidePanel:
    """The panel of a page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.root = page.get_by_role("region", name="Kubetorch")

    def open(self) -> SidePanel:
        """Show it, by its command."""
        self.page.evaluate("jupyterapp.commands.execute('kubetorch:open-panel')")
        self.root.wait_for()
        return self

    @property
    def title(self) -> Locator:
        """Whose kernel it is."""
        return self.root.get_by_role("heading", level=2)

    def button(self, name: str) -> Locator:
        """A button, by its whole name."""
        return self.root.get_by_role("button", name=name, exact=True)

    def service(self, name: str) -> Locator:
        """A service in the list."""
        return self.root.get_by_role("option").filter(has=self.page.get_by_text(name, exact=True))

    @property
    def log(self) -> Locator:
        """The log."""
        return self.root.get_by_role("log")

    def says(self, text: str | re.Pattern[str]) -> Locator:
        """A text in it."""
        return self.root.get_by_text(text).filter(visible=True)

    def answer(self, question: str, button: str) -> None:
        """Answer a dialog."""
        dialog = self.page.get_by_role("dialog").filter(has_text=question)
        dialog.wait_for()
        dialog.get_by_role("button", name=button).click()
        dialog.wait_for(state="detached")

    def tear_down(self, name: str) -> None:
        """Tear a service down with the mouse, and wait until it is gone."""
        self.service(name).click()
        self.button("Tear down…").click()
        self.answer(f'Tear down "{name}"?', "Tear down")
        self.service(name).wait_for(state="detached")


def open_panel(notebook: Notebook) -> SidePanel:
    return SidePanel(notebook.page).open()


def end_services(notebook: Notebook) -> None:
    """End what a test has deployed: the next one begins with nothing."""
    notebook.execute("for _service in kt.services(): kt.teardown(_service.name)")


def current(notebook: Notebook) -> dict[str, str]:
    """The notebook in front."""
    found: dict[str, str] = notebook.page.evaluate(
        "({id: jupyterapp.shell.currentWidget.id, label: jupyterapp.shell.currentWidget.title.label})"
    )
    return found


def activate(notebook: Notebook, which: dict[str, str]) -> None:
    """Bring a notebook to the front."""
    notebook.page.evaluate("id => jupyterapp.shell.activateById(id)", which["id"])


@pytest.mark.timed
@pytest.mark.parametrize("front", FRONTS)
def test_a_service_comes_and_goes(front: str, open_notebook: OpenNotebook) -> None:
    """A kernel without the extension, a button that loads it, a deploy from a cell, and its end from the panel."""
    notebook = open_notebook(front, (DEPLOY, "remote(3)", NAMES))
    panel = open_panel(notebook)
    panel.says("not loaded in this kernel").wait_for()
    panel.button("Load").click()
    panel.says("Nothing runs yet").wait_for()
    panel.says("not loaded in this kernel").wait_for(state="detached")

    notebook.run(0)
    began = time.monotonic()
    panel.service("train").wait_for()
    promise(f"{front}: a service that a cell has deployed is in the side panel", time.monotonic() - began, 2.0)
    panel.says(re.compile("ready|deployed")).first.wait_for()
    notebook.run(1)
    panel.log.get_by_text("epoch 2").wait_for()

    # The question's safe answer leaves everything as it is.
    panel.button("Tear down…").click()
    panel.answer('Tear down "train"?', "No, keep it")
    notebook.run(2)
    assert notebook.text(2).strip() == "['train']"
    panel.tear_down("train")
    panel.says("Nothing runs yet").wait_for()
    notebook.run(2)
    assert notebook.text(2).strip() == "[]"


@pytest.mark.timed
def test_while_a_cell_blocks(open_notebook: OpenNotebook) -> None:
    """The log goes on, another service is looked at, and the call that the cell waits for is stopped."""
    cells = (LOAD, DEPLOY, "remote(1000)", "print('the next', remote(1))")
    notebook = open_notebook("lab", cells)
    panel = open_panel(notebook)
    notebook.run(0)
    notebook.run(1)
    notebook.start(2)
    panel.log.get_by_text("epoch 5", exact=False).wait_for()
    before = panel.log.inner_text()
    began = time.monotonic()
    notebook.page.wait_for_function(
        "([log, before]) => log.innerText !== before", arg=[panel.log.element_handle(), before], timeout=10_000
    )
    promise("the side panel's log goes on while a cell blocks", time.monotonic() - began, 1.0)
    assert notebook.is_running(2)
    assert panel.says("The kernel is busy").count() == 0

    began = time.monotonic()
    panel.button("Stop this call of train").click()
    notebook.wait_run(2)
    promise("from Stop in the side panel to the end of the cell", time.monotonic() - began, 2.0)
    assert notebook.outputs(2)[-1]["ename"] == "CallCancelledError"
    panel.says("cancelled").first.wait_for()
    notebook.run(3)
    assert "the next 11" in notebook.text(3)
    end_services(notebook)


def test_a_kernel_without_subshells(server: Server, open_notebook: OpenNotebook) -> None:
    """It answers between cells: the panel says so, and does what was asked for behind a cell that fails."""
    version = KERNELS[0]
    server.add_kernel(version, kernel_python(version))
    notebook = open_notebook("lab", (LOAD, DEPLOY, "remote(70)", "import time; time.sleep(5); 1 / 0"), version)
    panel = open_panel(notebook)
    notebook.run(0)
    notebook.run(1)
    panel.service("train").click()
    panel.says("It has not been called yet").wait_for()
    notebook.start(2)
    panel.says("The kernel is busy").wait_for()
    panel.says(re.compile(r"What is shown was seen \d+ s ago")).wait_for()
    notebook.wait_run(2)
    panel.log.get_by_text("epoch 69").wait_for()
    panel.says("The kernel is busy").wait_for(state="detached")

    notebook.start(3)
    panel.says("The kernel is busy").wait_for()
    panel.button("Restart…").click()
    panel.answer('Restart "train"?', "Restart")
    panel.says('"train" was restarted').wait_for()
    assert notebook.outputs(3)[-1]["ename"] == "ZeroDivisionError"
    end_services(notebook)


def test_restart(open_notebook: OpenNotebook) -> None:
    """A restarted kernel has another subshell and no extension; its pods are gone."""
    notebook = open_notebook("lab", (LOAD, DEPLOY))
    panel = open_panel(notebook)
    for _ in range(2):
        notebook.run(0)
        notebook.run(1)
        panel.service("train").wait_for()
        notebook.restart()
        panel.says("not loaded in this kernel").wait_for()
        panel.service("train").wait_for(state="detached")
    notebook.run(0)
    panel.says("Nothing runs yet").wait_for()


def test_two_notebooks(open_notebook: OpenNotebook) -> None:
    """Each has its own kernel, and the panel is that of the one in front; it leaves nothing in the others."""
    notebook = open_notebook("lab", (LOAD, DEPLOY, SUBSHELLS))
    page = notebook.page
    panel = open_panel(notebook)
    notebook.run(0)
    notebook.run(1)
    panel.service("train").wait_for()
    first = current(notebook)
    assert panel.title.inner_text() == first["label"]

    page.evaluate(
        "jupyterapp.commands.execute('notebook:create-new', {kernelName: 'python3'})"
        ".then(panel => panel.sessionContext.ready)"
    )
    notebook.wait_idle()
    second = current(notebook)
    assert second["id"] != first["id"]
    panel.title.get_by_text(second["label"], exact=True).wait_for()
    panel.says("not loaded in this kernel").wait_for()
    panel.button("Load").click()
    # Local services are this machine's: another kernel sees them, too.
    panel.service("train").click()
    panel.log.wait_for()

    activate(notebook, first)
    panel.title.get_by_text(first["label"], exact=True).wait_for()
    panel.tear_down("train")
    activate(notebook, second)
    panel.title.get_by_text(second["label"], exact=True).wait_for()
    panel.says("Nothing runs yet").wait_for()
    notebook.close()
    panel.says("has no kernel").wait_for()
    activate(notebook, first)
    panel.says("Nothing runs yet").wait_for()
    deadline = time.monotonic() + 10  # those that were left are deleted soon
    while notebook.run(2) or notebook.text(2).strip() != "1":
        assert time.monotonic() < deadline, notebook.text(2)


def test_the_server_stops_and_starts(server: Server, open_notebook: OpenNotebook) -> None:
    """Its kernels end with it: the panel says that they can't be reached, and goes on with the next one."""
    notebook = open_notebook("lab", (LOAD, DEPLOY))
    page = notebook.page
    panel = open_panel(notebook)
    notebook.run(0)
    notebook.run(1)
    panel.service("train").wait_for()
    try:
        server.close()
        panel.says(re.compile("no connection with the kernel|kernel is dead")).wait_for()
        assert panel.button("Tear down…").is_disabled()
    finally:
        server.start()
        server.wait()
    # JupyterLab asks for the sessions now and then; it need not be waited for.
    page.evaluate("jupyterapp.serviceManager.sessions.refreshRunning()")
    panel.says("has no kernel").wait_for()
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.changeKernel({name: 'python3'}).then(() => undefined)")
    notebook.wait_idle()
    panel.says("not loaded in this kernel").wait_for()
    notebook.run(0)
    panel.says("Nothing runs yet").wait_for()
    notebook.run(1)
    panel.service("train").wait_for()
    end_services(notebook)
    open_notebook.forget()


def test_commands(open_notebook: OpenNotebook) -> None:
    """The menu, the palette's commands and the toolbar: deploy a cell, copy code, insert a cell, tear down."""
    notebook = open_notebook("lab", (LOAD, TRAIN, "train(2)"))
    page = notebook.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator('.jp-NotebookPanel-toolbar [data-jp-item-name="kubetorch"]').get_by_role("button").click()
    panel = SidePanel(page)
    panel.root.wait_for()
    notebook.run(0)

    def choose(entry: str) -> None:
        page.get_by_role("menuitem", name="Kubetorch", exact=True).click()
        page.get_by_role("menuitem", name=entry).click()

    notebook.select(1)
    choose("Deploy Current Cell")
    notebook.wait_run(1)
    panel.service("train").wait_for()
    assert notebook.source(1) == f"%%kt deploy\n{TRAIN}"
    notebook.run(2)
    assert notebook.outputs(2)[-1]["data"]["text/plain"] == "22"

    panel.service("train").click()
    panel.log.get_by_text("epoch 1").wait_for()
    page.evaluate("jupyterapp.shell.collapseRight()")
    panel.root.wait_for(state="hidden")
    choose("Copy Call's Code")  # what comes of it shows
    panel.says("was copied").wait_for()
    code = page.evaluate("navigator.clipboard.readText()")
    assert 'train = kt.fn(name="train")' in code
    assert "train(epochs=...)" in code
    notebook.select(2)
    choose("Insert %%kt Cell")
    assert notebook.source(3) == "%%kt\n"
    choose("Tear Down Service…")
    panel.answer('Tear down "train"?', "Tear down")
    panel.says("Nothing runs yet").wait_for()


def test_by_keyboard(open_notebook: OpenNotebook) -> None:
    """Arrows choose a service, Delete asks whether it is to go, and the dialog's first answer keeps it."""
    deploys = "\n".join(
        f"def {name}(): print('I am {name}')\nkt.fn({name}).to(kt.Compute())" for name in ("one", "two")
    )
    notebook = open_notebook("lab", (LOAD, deploys))
    page = notebook.page
    panel = open_panel(notebook)
    notebook.run(0)
    notebook.run(1)
    for name in ("one", "two"):
        panel.service(name).wait_for()
    listed = panel.root.get_by_role("listbox", name="Services")
    listed.focus()
    page.keyboard.press("End")
    last = panel.root.get_by_role("option", selected=True)
    last.wait_for()
    last_name = last.locator(".kt-Name").inner_text()
    page.keyboard.press("Home")
    panel.root.get_by_role("heading", name={"one": "two", "two": "one"}[last_name], exact=True).wait_for()
    page.keyboard.press("ArrowDown")
    panel.root.get_by_role("heading", name=last_name, exact=True).wait_for()
    page.keyboard.press("Delete")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Enter")  # the answer that has the focus keeps it
    page.get_by_role("dialog").wait_for(state="detached")
    page.keyboard.press("Delete")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    panel.service(last_name).wait_for(state="detached")
    assert listed.evaluate("node => node === document.activeElement")
    # With the last one goes what had the focus; it isn't at the page's top then.
    page.keyboard.press("Home")
    page.keyboard.press("Delete")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    panel.says("Nothing runs yet").wait_for()
    assert panel.root.evaluate("node => node.contains(document.activeElement)")


def test_nothing_serious_for_axe(open_notebook: OpenNotebook) -> None:
    """axe-core finds nothing serious, in light, dark and high contrast: with services, a call that runs and its log."""
    notebook = open_notebook("lab", (LOAD, DEPLOY + "\nrunning = remote.options(stream_logs=False).spawn(10_000)"))
    page = notebook.page
    panel = open_panel(notebook)

    def check(state: str) -> None:
        for theme in THEMES:
            page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
            # JupyterLab's splash must have gone, or the next one's end fails.
            page.wait_for_function(
                "theme => document.body.dataset.jpThemeName === theme && !document.getElementById('jupyterlab-splash')",
                arg=theme,
            )
            found: list[dict[str, Any]] = page.evaluate("async () => (await axe.run('#kubetorch-panel')).violations")
            bad = [
                f"{each['impact']}: {each['id']}: {each['help']}: {[node['html'] for node in each['nodes']]}"
                for each in found
                if each["impact"] in ("serious", "critical")
            ]
            assert not bad, f"{theme}, {state}:\n" + "\n".join(bad)

    page.add_script_tag(path=AXE)
    panel.says("not loaded in this kernel").wait_for()
    check("not loaded")
    notebook.run(0)
    panel.says("Nothing runs yet").wait_for()
    check("nothing runs")
    notebook.run(1)
    panel.log.get_by_text("epoch 3").wait_for()
    check("a call runs")
    # A window of 1280 by 800 at twice the zoom. Nothing lies beside what is to be seen: lists have bars of their own.
    page.set_viewport_size({"width": 640, "height": 400})
    check("a small window")
    assert panel.root.evaluate("node => node.scrollWidth <= node.clientWidth")
    end_services(notebook)
