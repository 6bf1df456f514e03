"""Make the pictures in docs/images: a notebook in a real JupyterLab, taken in Chromium while its call runs.

    make screenshots

Needs the ``browser`` extra, and a Chromium or Chrome of the machine's. All is local: the server listens on loopback,
with a token of its own, and its files are in a temporary folder.
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
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import FloatRect, Page, sync_playwright

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
#: Nothing here is downloaded, by the browser either.
BROWSER_ARGS = (
    *(["--no-sandbox"] if os.geteuid() == 0 else []),  # root has to do without
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LIMIT = 200_000  # bytes of a picture

FIRST_CALL = (
    "%load_ext kubetorch_jupyter",
    """\
def train(epochs):
    import time
    loss = 1.0
    for epoch in range(epochs):
        time.sleep(1)
        loss *= 0.7
        print(f"epoch {epoch}: loss {loss:.3f}")
    return {"loss": round(loss, 3)}

remote = kt.fn(train).to(kt.Compute(cpus="1"))""",
    "remote(epochs=2)",
    "await remote(epochs=6, async_=True)",
)
#: Not in the picture: the buttons of the active cell, its frame, the bar beside it, and the faintness of prompts.
STYLE = """
.jp-cell-toolbar, .jp-Notebook-footer, .jp-Toast, .Toastify { display: none !important; }
.jp-Cell { border-color: transparent !important; box-shadow: none !important; }
.jp-Collapser { visibility: hidden; }
.jp-InputPrompt, .jp-OutputPrompt { opacity: 1 !important; }
"""


def find_browser() -> str:
    """The browser's path; ends with one line where there is none."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    sys.exit("screenshots: no Chromium or Chrome on this machine (Debian and Ubuntu: apt-get install chromium)")


def write_notebook(path: Path, cells: tuple[str, ...]) -> None:
    rows: list[dict[str, object]] = [
        {"cell_type": "code", "id": f"cell-{i}", "source": c, "metadata": {}, "outputs": [], "execution_count": None}
        for i, c in enumerate(cells)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {"cells": rows, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook))


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[tuple[str, str]]:
    """A server on loopback, with everything that it keeps in ``folder``; gives its address and its token."""
    token, port = secrets.token_hex(16), _free_port()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "JPY_", "KT_"))}
    env |= {
        **{f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")},
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "IPYTHONDIR": str(folder / "ipython"),
        "KT_RUNTIME_DIR": str(folder / "kt"),
        # Not on the command line, which everybody on this machine can read.
        "JUPYTER_TOKEN": token,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}",
    }
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root"),
        *(f"--ServerApp.root_dir={folder / 'notebooks'}", "--ServerApp.port_retries=0", "--expose-app-in-browser"),
        *("--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"),
    ]
    log = folder / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(server, f"{url}/api?token={token}", log)
        yield url, token
    finally:
        server.terminate()  # it ends its kernels, and they their pods
        server.wait(30)


def _wait_for(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"screenshots: JupyterLab did not start\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.1)


class Notebook:
    """A notebook in the browser."""

    def __init__(self, page: Page, url: str, token: str, name: str) -> None:
        self.page = page
        page.goto(f"{url}/lab/tree/{name}?reset&token={token}")
        page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell")
        page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel")
        page.evaluate("jupyterapp.commands.execute('application:set-mode', {mode: 'single-document'})")
        page.evaluate("jupyterapp.shell.collapseLeft()")
        page.wait_for_function("jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'")
        page.add_style_tag(content=STYLE)

    def cell(self, number: int) -> str:
        return f".jp-NotebookPanel .jp-Cell >> nth={number}"

    def start(self, number: int) -> None:
        """Run a cell, without waiting."""
        self.page.evaluate(
            "number => { const notebook = jupyterapp.shell.currentWidget.content;"
            " notebook.deselectAll(); notebook.activeCellIndex = number;"
            " jupyterapp.commands.execute('notebook:run-cell'); }",
            number,
        )

    def run(self, number: int) -> None:
        """Run a cell to its end."""
        self.start(number)
        self.page.wait_for_selector(f"{self.cell(number)} >> .jp-InputPrompt >> text=/\\[\\d+\\]/", timeout=60_000)
        if self.page.query_selector(f"{self.cell(number)} >> [data-mime-type='application/vnd.jupyter.stderr']"):
            sys.exit(f"screenshots: cell {number} failed:\n{self.page.inner_text(self.cell(number))}")

    def picture(self, last: int, path: Path) -> None:
        """The notebook from its first cell to the end of the cell ``last``."""
        first, end = (self.page.locator(self.cell(i)).bounding_box() for i in (0, last))
        if first is None or end is None:
            sys.exit("screenshots: the cells can't be seen")
        top, bottom = first["y"] - 4, end["y"] + end["height"] + 4
        clip = FloatRect(x=first["x"], y=top, width=first["width"], height=bottom - top)
        self.page.screenshot(path=path, clip=clip)


def first_call(page: Page, url: str, token: str, path: Path) -> None:
    """A deploy, a call with its result, and another one while it runs."""
    notebook = Notebook(page, url, token, "first-call.ipynb")
    for number in (0, 1, 2):
        notebook.run(number)
    notebook.start(3)
    page.wait_for_selector(f"{notebook.cell(3)} >> text=epoch 2")
    notebook.picture(3, path)


def main() -> int:
    browser_path = find_browser()
    IMAGES.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kt-shots-")))
        (folder / "notebooks").mkdir()
        write_notebook(folder / "notebooks" / "first-call.ipynb", FIRST_CALL)
        url, token = stack.enter_context(jupyterlab(folder))
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=browser_path, args=BROWSER_ARGS)
        stack.callback(browser.close)
        page = browser.new_page(viewport={"width": 800, "height": 900}, device_scale_factor=2)
        path = IMAGES / "first-call.png"
        first_call(page, url, token, path)
    size = path.stat().st_size
    print(f"{path.relative_to(IMAGES.parent.parent)}: {size / 1000:.0f} kB")
    if size > LIMIT:
        print(f"screenshots: that is more than {LIMIT / 1000:.0f} kB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
