"""A Jupyter server and notebooks in a real browser: what the pictures (`screenshots`) and ``tests/browser`` share.

Needs the ``browser`` extra, and a Chromium or Chrome of the machine's. All is local: the server listens on loopback,
with a token of its own, and everything that it keeps is in a folder of the caller's.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page

ROOT = Path(__file__).resolve().parent.parent
#: What `scripts/labextension.py` builds.
SIDE_PANEL = ROOT / "kubetorch_jupyter" / "_labextension"
BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
#: Nothing here is downloaded, by the browser either.
BROWSER_ARGS = (
    *(["--no-sandbox"] if os.geteuid() == 0 else []),  # root has to do without
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_browser() -> str | None:
    """The browser's path; None where there is none."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def write_notebook(path: Path, cells: Sequence[str], kernel: str = "python3") -> None:
    rows: list[dict[str, object]] = [
        {"cell_type": "code", "id": f"cell-{i}", "source": c, "metadata": {}, "outputs": [], "execution_count": None}
        for i, c in enumerate(cells)
    ]
    spec = {"name": kernel, "display_name": kernel, "language": "python"}
    notebook = {"cells": rows, "metadata": {"kernelspec": spec}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook))


def _free_port() -> int:
    """A port that is free, below those that the system gives to whoever asks for any: it takes seconds to be bound."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", port))
            return port


class Server:
    """A server on loopback that has JupyterLab and Notebook 7.

    Parameters
    ----------
    folder
        For everything that it keeps; notebooks are in its ``notebooks``, its log and the kernels' in ``server.log``.
    """

    def __init__(self, folder: Path) -> None:
        settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        # Or it asks whether it may look for news.
        (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
        self.folder = folder
        self.notebooks = folder / "notebooks"
        self.notebooks.mkdir()
        self.log = folder / "server.log"
        self.token = secrets.token_hex(16)
        self.url = f"http://127.0.0.1:{_free_port()}"
        env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "JPY_", "KT_"))}
        env |= {
            **{f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")},
            "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
            "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
            "IPYTHONDIR": str(folder / "ipython"),
            "KT_RUNTIME_DIR": str(folder / "kt"),
            # Before those of the environment: the side panel of this checkout.
            "JUPYTER_PATH": str(folder / "share" / "jupyter"),
            # The kernels' too: this checkout, also where the environment was made for another one (a git worktree).
            "PYTHONPATH": str(ROOT),
            # Not on the command line, which everybody on this machine can read.
            "JUPYTER_TOKEN": self.token,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}",
        }
        self._env = env
        self._command = [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--allow-root"),
            *(f"--port={self.url.rpartition(':')[2]}", "--ServerApp.port_retries=0", "--expose-app-in-browser"),
            *(f"--ServerApp.root_dir={self.notebooks}", "--JupyterNotebookApp.expose_app_in_browser=True"),
            *("--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"),
        ]
        if SIDE_PANEL.is_dir():
            link = folder / "share" / "jupyter" / "labextensions" / "kubetorch-jupyter"
            link.parent.mkdir(parents=True)
            link.symlink_to(SIDE_PANEL, target_is_directory=True)
        self.start()

    def start(self) -> None:
        """Start it, at first and after `close`; it has the same address and token again."""
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(self._command, env=self._env, stdout=out, stderr=subprocess.STDOUT)

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/api?token={self.token}", timeout=5):
                    return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start\n{self.text()[-4000:]}") from None
                time.sleep(0.1)

    def add_kernel(self, name: str, python: Path) -> None:
        """Let notebooks have the kernel of another environment."""
        folder = self.folder / "share" / "jupyter" / "kernels" / name
        folder.mkdir(parents=True)
        argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": name, "language": "python"}))

    def use_theme(self, name: str) -> None:
        """The theme of the pages that are opened from now on: ``"JupyterLab Light"`` or ``"JupyterLab Dark"``."""
        path = self.folder / "settings" / "@jupyterlab" / "apputils-extension" / "themes.jupyterlab-settings"
        path.write_text(json.dumps({"theme": name}))

    def text(self) -> str:
        """Its log."""
        return self.log.read_text(errors="replace")

    def close(self) -> None:
        """End it, its kernels, and with them their pods."""
        self._process.terminate()
        self._process.wait(30)


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        server.wait()
        yield server
    finally:
        server.close()


class Notebook:
    """A notebook in the browser.

    Parameters
    ----------
    front
        ``"lab"`` or ``"notebook"``.
    name
        A name that no notebook had before: the front end takes up the session of one that it knows.
    kernel
        The name of its kernel's specification.
    """

    #: The notebook's model and the commands, in either front end.
    _CURRENT = "jupyterapp.shell.currentWidget"

    def __init__(
        self, page: Page, server: Server, front: str, name: str, cells: Sequence[str], kernel: str = "python3"
    ) -> None:
        self.page = page
        self.server = server
        write_notebook(server.notebooks / name, cells, kernel)
        path = f"/lab/tree/{name}?reset&" if front == "lab" else f"/notebooks/{name}?"
        page.goto(f"{server.url}{path}token={server.token}")
        page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell")
        page.wait_for_function(
            "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel", timeout=60_000
        )
        if front == "lab":
            page.evaluate("jupyterapp.commands.execute('application:set-mode', {mode: 'single-document'})")
            page.evaluate("jupyterapp.shell.collapseLeft()")
        self.wait_idle()

    def wait_idle(self, timeout: float = 60) -> None:
        """Wait until the kernel has nothing to do."""
        self.page.wait_for_function(
            f"{self._CURRENT}.sessionContext.session.kernel.status === 'idle'", timeout=timeout * 1000
        )

    def cell(self, number: int) -> Locator:
        """A cell, by its place."""
        return self.page.locator(".jp-NotebookPanel .jp-Cell").nth(number)

    def select(self, number: int) -> None:
        """Make a cell the active one."""
        self.page.evaluate(
            f"number => {{ const notebook = {self._CURRENT}.content;"
            " notebook.deselectAll(); notebook.activeCellIndex = number; }",
            number,
        )

    def source(self, number: int) -> str:
        """What a cell's code is now."""
        found: str = self.page.evaluate(
            f"number => {self._CURRENT}.content.widgets[number].model.sharedModel.getSource()", number
        )
        return found

    def start(self, number: int) -> None:
        """Run a cell, without waiting."""
        self.select(number)
        self.command("notebook:run-cell")

    def wait_run(self, number: int, timeout: float = 60) -> None:
        """Wait for a cell's end."""
        self.page.wait_for_function(
            f"number => /\\d+/.test({self._CURRENT}.content.widgets[number].promptNode?.textContent ?? '')"
            f" && !{self._CURRENT}.content.widgets[number].model.executionState?.includes('running')",
            arg=number,
            timeout=timeout * 1000,
        )

    def is_running(self, number: int) -> bool:
        """Whether a cell runs."""
        state: str = self.page.evaluate(
            f"number => {self._CURRENT}.content.widgets[number].model.executionState", number
        )
        return state == "running"

    def run(self, number: int, timeout: float = 60) -> None:
        """Run a cell to its end; an error in it is the caller's."""
        self.start(number)
        self.wait_run(number, timeout)
        for output in self.outputs(number):
            if output["output_type"] == "error":
                raise AssertionError(f"cell {number} failed:\n{self.cell(number).inner_text()}")

    def outputs(self, number: int) -> list[dict[str, Any]]:
        """The outputs of a cell, as a notebook's file has them."""
        found: list[dict[str, Any]] = self.page.evaluate(
            f"number => {self._CURRENT}.content.widgets[number].model.toJSON().outputs", number
        )
        return found

    def text(self, number: int) -> str:
        """What a cell shows below its code."""
        return self.cell(number).locator(".jp-Cell-outputWrapper").inner_text()

    def execute(self, code: str) -> None:
        """Run code in the kernel that is in no cell, and wait for its end."""
        reply = self.page.evaluate(
            f"async code => (await {self._CURRENT}.sessionContext.session.kernel"
            ".requestExecute({code, store_history: false}).done).content",
            code,
        )
        if reply["status"] != "ok":
            raise AssertionError(f"{code!r} failed: {reply}")

    def command(self, name: str) -> None:
        """What a menu's entry does."""
        self.page.evaluate("name => { void jupyterapp.commands.execute(name); }", name)

    def restart(self) -> None:
        """Restart the kernel, without the question."""
        self.page.evaluate(f"{self._CURRENT}.sessionContext.session.kernel.restart()")
        self.wait_idle()

    def stop(self) -> None:
        """Press the Stop button of the toolbar."""
        self.page.locator('.jp-NotebookPanel-toolbar [data-jp-item-name="interrupt"]').first.click()

    def close(self) -> None:
        """End its kernel."""
        self.page.evaluate(f"{self._CURRENT}.sessionContext.shutdown()")
