"""One server and one browser for a module; a notebook of its own for each."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.browser.server_log import faults_in

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

    from scripts.browser import Notebook, Server

#: What JupyterLab itself says when a kernel ends that its debugger is just asking.
NOT_OURS = "Could not restore the debugger state"


class OpenNotebook(Protocol):
    """Opens a notebook."""

    #: What the browser's console has been told of errors since.
    complaints: list[str]
    #: Forget that, and what the server's log has said so far, of a time in which things were meant to go wrong.
    forget: Callable[[], None]

    def __call__(self, front: str, cells: Sequence[str], kernel: str = "python3") -> Notebook: ...


def _skip(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Jupyter server; skips where there is none, or no browser, except in CI."""
    for name in ("playwright", "jupyterlab", "notebook"):
        if importlib.util.find_spec(name) is None:
            _skip(f"tests in a browser need {name}: pip install -e '.[browser]'")
    from scripts.browser import find_browser, running_server

    if find_browser() is None:
        _skip("tests in a browser need Chromium or Chrome (Debian and Ubuntu: apt-get install chromium)")
    with running_server(tmp_path_factory.mktemp("browser")) as server:
        yield server


@pytest.fixture(scope="module")
def browser(server: Server) -> Iterator[Browser]:
    """A browser, for a module only: while Playwright has one, an event loop passes for running in this thread."""
    from playwright.sync_api import sync_playwright

    from scripts.browser import BROWSER_ARGS, find_browser

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=BROWSER_ARGS)
        yield browser
        browser.close()


@pytest.fixture
def open_notebook(server: Server, browser: Browser, request: pytest.FixtureRequest) -> Iterator[OpenNotebook]:
    """Open a notebook: ``open_notebook(front, cells)``; afterwards nothing may have gone wrong where nobody looks."""
    from scripts.browser import Notebook

    complaints: list[str] = []
    opened: list[Notebook] = []
    begin = len(server.text())
    context = browser.new_context(viewport={"width": 1000, "height": 1600})

    def hear(message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith(NOT_OURS):
            complaints.append(f"{message.text} ({message.location})")

    def listen(page: Page) -> None:
        page.on("pageerror", lambda error: complaints.append(f"uncaught: {error}"))
        page.on("console", hear)

    def make(front: str, cells: Sequence[str], kernel: str = "python3") -> Notebook:
        page = context.new_page()
        listen(page)
        name = re.sub(r"\W+", "-", request.node.name).strip("-")
        notebook = Notebook(page, server, front, f"{name}-{len(opened)}.ipynb", cells, kernel)
        opened.append(notebook)
        complaints.clear()  # a front end that opens has its own; nothing of ours has run yet
        return notebook

    def forget() -> None:
        nonlocal begin
        begin = len(server.text())
        complaints.clear()

    make.complaints, make.forget = complaints, forget  # type: ignore[attr-defined]
    yield make
    for notebook in opened:
        notebook.close()
    context.close()
    log = server.text()[begin:]
    assert not complaints, "in the browser's console:\n" + "\n".join(complaints)
    assert not faults_in(log), f"in the server's and the kernels' log:\n{log}"
