"""Make the pictures in docs/images: notebooks in a real JupyterLab, taken in Chromium while their calls run.

    make screenshots
    python scripts/screenshots.py panel    # some of them, by their names

Needs the ``browser`` extra, and a Chromium or Chrome of the machine's. All is local: the server listens on loopback,
with a token of its own, and its files are in a temporary folder.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from browser import BROWSER_ARGS, Notebook, Server, find_browser, running_server
from playwright.sync_api import FloatRect, Locator, Page, sync_playwright

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
LIMIT = 200_000  # bytes of a picture

TRAIN = """\
def train(epochs):
    import time
    loss = 1.0
    for epoch in range(epochs):
        time.sleep(1)
        loss *= 0.7
        print(f"epoch {epoch}: loss {loss:.3f}")
    return {"loss": round(loss, 3)}

remote = kt.fn(train).to(kt.Compute(cpus="1"))"""
FIRST_CALL = ("%load_ext kubetorch_jupyter", TRAIN, "remote(epochs=2)", "await remote(epochs=6, async_=True)")
ERROR = (
    "%load_ext kubetorch_jupyter",
    """\
def load(path):
    with open(path) as file:
        return file.read()

def count_words(path):
    return len(load(path).split())

remote = kt.fn(count_words).to(kt.Compute(cpus="1"))""",
    """\
try:
    remote("nonesuch.txt")
except FileNotFoundError as error:
    print("caught", error.filename)""",
    'remote("nonesuch.txt")',
)
FIGURE = (
    "%load_ext kubetorch_jupyter",
    """\
def learn(epochs):
    import matplotlib.pyplot as plt
    import numpy as np
    steps = np.linspace(0, epochs, 200)
    plt.figure(figsize=(6, 2.2))
    plt.plot(steps, np.exp(-steps / 4), label="training")
    plt.plot(steps, np.exp(-steps / 4) + 0.02 * steps, label="validation")
    plt.legend()

remote = kt.fn(learn).to(kt.Compute(cpus="1"))""",
    "remote(epochs=12)",
)
PANEL = (
    """\
%load_ext kubetorch_jupyter

def predict(rows): return [0] * rows

class Tokenizer:
    def encode(self, text): return text.split()

def train(epochs):
    import time
    loss = 1.0
    for epoch in range(epochs):
        time.sleep(0.15)
        sum(i * i for i in range(500_000))
        loss *= 0.93
        print(f"epoch {epoch:3}  loss {loss:.4f}  accuracy {1 - loss / 2:.3f}")
    return loss

trainer = kt.fn(train).to(kt.Compute(cpus="1", memory="2Gi"), stream_logs=False)
tokenizer = kt.cls(Tokenizer).to(kt.Compute(cpus="500m"), stream_logs=False)
served = kt.fn(predict).to(kt.Compute(cpus="1", detach=True), stream_logs=False)
first = trainer.spawn(3); first.result()
failed = trainer.spawn("3")
running = trainer.spawn(1000)""",
    "kt.panel()",
)
SIDE_PANEL = (
    """\
%load_ext kubetorch_jupyter

def predict(rows): return [0] * rows

def train(epochs):
    import time
    loss = 1.0
    for epoch in range(epochs):
        time.sleep(0.3)
        loss *= 0.97
        print(f"epoch {epoch:3}  loss {loss:.4f}")
    return loss

predictor = kt.fn(predict).to(kt.Compute(cpus="1"))
trainer = kt.fn(train).to(kt.Compute(memory="2Gi"))
first = trainer(epochs=3)""",
    "trainer(epochs=200)",
)
#: Not in the picture: the buttons of the active cell, its frame, the bar beside it, and the faintness of prompts.
STYLE = """
.jp-cell-toolbar, .jp-Notebook-footer, .jp-Toast, .Toastify { display: none !important; }
.jp-Cell { border-color: transparent !important; box-shadow: none !important; }
.jp-Collapser { visibility: hidden; }
.jp-InputPrompt, .jp-OutputPrompt { opacity: 1 !important; }
"""


def open_notebook(page: Page, server: Server, name: str, cells: Sequence[str]) -> Notebook:
    notebook = Notebook(page, server, "lab", f"{name}.ipynb", cells)
    page.add_style_tag(content=STYLE)
    return notebook


def picture(notebook: Notebook, first: Locator, last: Locator, path: Path) -> None:
    """What is between the tops of two places."""
    begin, end = first.bounding_box(), last.bounding_box()
    if begin is None or end is None:
        sys.exit("screenshots: the cells can't be seen")
    top, bottom = begin["y"] - 4, end["y"] + end["height"] + 4
    clip = FloatRect(x=begin["x"], y=top, width=begin["width"], height=bottom - top)
    notebook.page.screenshot(path=path, clip=clip)


def first_call(page: Page, server: Server) -> None:
    """A deploy, a call with its result, and another one while it runs."""
    notebook = open_notebook(page, server, "first-call", FIRST_CALL)
    for number in (0, 1, 2):
        notebook.run(number)
    notebook.start(3)
    notebook.cell(3).locator("text=epoch 2").wait_for()
    picture(notebook, notebook.cell(0), notebook.cell(3), IMAGES / "first-call.png")
    notebook.close()


def error(page: Page, server: Server) -> None:
    """An exception of a pod, caught by its class and then shown."""
    notebook = open_notebook(page, server, "error", ERROR)
    for number in (0, 1, 2):
        notebook.run(number)
    notebook.start(3)
    notebook.wait_run(3)
    picture(notebook, notebook.cell(1), notebook.cell(3), IMAGES / "error.png")
    notebook.close()


def figure(page: Page, server: Server) -> None:
    """A figure that a pod has drawn."""
    notebook = open_notebook(page, server, "figure", FIGURE)
    for number in (0, 1, 2):
        notebook.run(number)
    picture(notebook, notebook.cell(1), notebook.cell(2), IMAGES / "figure.png")
    notebook.close()


def panel(page: Page, server: Server) -> None:
    """The panel with a call that runs, light and dark; and its form."""
    page.set_viewport_size({"width": 900, "height": 1300})
    for theme in ("Light", "Dark"):
        server.use_theme(f"JupyterLab {theme}")
        notebook = open_notebook(page, server, f"panel-{theme.lower()}", PANEL)
        notebook.run(0)
        notebook.run(1)
        shown = notebook.cell(1).locator(".kt-panel")
        shown.get_by_role("button", name="train", exact=True).click()
        shown.locator(".kt-log", has_text="epoch  20").wait_for()
        page.mouse.move(2, 2)
        picture(notebook, notebook.cell(1), notebook.cell(1), IMAGES / f"panel-{theme.lower()}.png")
        shown.get_by_role("button", name="Hide").click()
        shown.get_by_role("button", name="Deploy…").click()
        shown.get_by_label("CPUs").fill("2")
        shown.get_by_label("Memory").fill("4Gi")
        shown.locator("code", has_text="4Gi").wait_for()
        shown.get_by_text("Kubetorch services").click()
        picture(notebook, notebook.cell(1), notebook.cell(1), IMAGES / f"panel-deploy-{theme.lower()}.png")
        for service in ("predict", "tokenizer", "train"):
            notebook.execute(f"kt.teardown({service!r})")
        notebook.close()
    server.use_theme("JupyterLab Light")


def side_panel(page: Page, server: Server) -> None:
    """JupyterLab with the side panel while a cell waits for a call, light and dark."""
    page.set_viewport_size({"width": 1000, "height": 760})
    for theme in ("Light", "Dark"):
        server.use_theme(f"JupyterLab {theme}")
        notebook = open_notebook(page, server, f"side-panel-{theme.lower()}", SIDE_PANEL)
        notebook.command("kubetorch:open-panel")
        shown = page.get_by_role("region", name="Kubetorch")
        shown.wait_for()
        divider(page, 360)
        notebook.run(0)
        notebook.start(1)
        shown.get_by_role("option").filter(has_text="train").click()
        shown.get_by_role("log").get_by_text("epoch   9").wait_for()
        page.mouse.move(2, 2)
        # Without the menus above and the status bar below.
        top = page.locator(".jp-NotebookPanel").first.bounding_box()
        bottom = page.locator("#jp-bottom-panel").bounding_box()
        if top is None or bottom is None:
            sys.exit("screenshots: the notebook can't be seen")
        clip = FloatRect(x=0, y=top["y"], width=1000, height=bottom["y"] - top["y"])
        page.screenshot(path=IMAGES / f"side-panel-{theme.lower()}.png", clip=clip)
        notebook.stop()
        notebook.wait_run(1)
        for service in ("predict", "train"):
            notebook.execute(f"kt.teardown({service!r})")
        notebook.close()
    server.use_theme("JupyterLab Light")


def divider(page: Page, width: int) -> None:
    """Make the right side so wide, in pixels, by dragging its edge."""
    handle = page.locator("#jp-main-split-panel > .lm-SplitPanel-handle:not(.lm-mod-hidden)").last.bounding_box()
    size = page.viewport_size
    panel = page.locator("#jp-right-stack").bounding_box()
    if handle is None or size is None or panel is None:
        sys.exit("screenshots: the side panel can't be seen")
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + panel["width"] - width, y, steps=4)
    page.mouse.up()


PICTURES: dict[str, Callable[[Page, Server], None]] = {
    "first-call": first_call,
    "error": error,
    "figure": figure,
    "panel": panel,
    "side-panel": side_panel,
}


def main(names: Sequence[str]) -> int:
    browser_path = find_browser()
    if browser_path is None:
        sys.exit("screenshots: no Chromium or Chrome on this machine (Debian and Ubuntu: apt-get install chromium)")
    if unknown := [name for name in names if name not in PICTURES]:
        sys.exit(f"screenshots: there is no picture {unknown[0]!r}; there are: {', '.join(PICTURES)}")
    IMAGES.mkdir(parents=True, exist_ok=True)
    os.environ["LOGNAME"] = "ada"  # whose services they are, in the pictures
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            running_server(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kt-shots-"))))
        )
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=browser_path, args=BROWSER_ARGS)
        stack.callback(browser.close)
        for name in names or PICTURES:
            # So that none is too large.
            scale = {"error": 1.5, "figure": 1.5, "side-panel": 1.3}.get(name, 2)
            page = browser.new_page(viewport={"width": 800, "height": 900}, device_scale_factor=scale)
            PICTURES[name](page, server)
            page.close()
    status = 0
    for path in sorted(IMAGES.glob("*.png")):
        size = path.stat().st_size
        print(f"{path.relative_to(IMAGES.parent.parent)}: {size / 1000:.0f} kB")
        if size > LIMIT:
            print(f"screenshots: that is more than {LIMIT / 1000:.0f} kB", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
