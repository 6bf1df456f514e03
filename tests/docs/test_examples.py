"""Every example of the document as a script and as cells of a real kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import KERNELS, ROOT, KernelFactory
from tests.docs.examples import DOCUMENT, EXAMPLES, Example, dataset_server
from tests.kernel.harness import leftover_files, run_notebook, wait_until_gone

SHARED = ROOT.parent / "shared" / "spec" / "async.md"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with dataset_server() as address:
        yield address


@pytest.mark.skipif(not SHARED.exists(), reason="the document itself is not beside this checkout")
def test_our_copy_is_the_document() -> None:
    assert DOCUMENT.read_bytes() == SHARED.read_bytes()


@pytest.mark.short
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_script(example: Example, url: str, tmp_path: Path) -> None:
    # A path of its own for each script, so that what it leaves is found; short, for the sockets in it.
    runtime_dir = Path(os.environ["KT_RUNTIME_DIR"]) / f"s{EXAMPLES.index(example)}"
    check(example, run(example, url, tmp_path, {"KT_RUNTIME_DIR": str(runtime_dir), "KT_LOCAL_GPUS": "1"}))
    left = wait_until_gone(runtime_dir, 10)
    assert not left, [p.cmdline() for p in left]
    assert leftover_files(runtime_dir) == []


def run(example: Example, url: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run an example as a script."""
    script = folder / "script.py"
    script.write_text(example.preamble(url) + example.source(url) + example.after)
    return subprocess.run(
        [sys.executable, "-m", "kubetorch_jupyter", str(script)],
        env={**os.environ, **env},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )


def check(example: Example, done: subprocess.CompletedProcess[str]) -> None:
    """That it went well, and has shown what it is to show."""
    assert done.returncode == 0, done.stdout
    if example.name == "blocking_calls":
        # The document's bad practice is noticed, and its line named.
        assert "time.sleep(5)" in done.stdout or "bad_example" in done.stdout, done.stdout


def test_cells(make_kernel_of: Callable[[str], KernelFactory], url: str) -> None:
    """All examples one after another in one kernel, as a reader would run them; the kernels beside each other, since
    the examples mostly wait.
    """
    kernels = {version: make_kernel_of(version)(env={"KT_LOCAL_GPUS": "1"}) for version in KERNELS}
    codes = [
        (f"example {example.name}", code)
        for example in EXAMPLES
        for code in (example.preamble(url), example.source(url), example.after)
    ]
    for what, code in [("loading", "%load_ext kubetorch_jupyter"), *codes]:
        cells = {version: kernel.begin(code) for version, kernel in kernels.items()}
        for version, cell in cells.items():
            assert cell.wait(100).error is None, f"{what} in ipykernel {version}\n{cell}"


def test_headless(make_newest_kernel: KernelFactory, url: str) -> None:
    """The complete example by nbclient."""
    kernel = make_newest_kernel(start=False)
    example = EXAMPLES[-1]
    cells = ["%load_ext kubetorch_jupyter", example.preamble(url), example.source(url), example.after + "result"]
    notebook = run_notebook(cells, make_newest_kernel.python, kernel)  # type: ignore[attr-defined]
    assert "0.123" in notebook.cells[-1].outputs[-1]["data"]["text/plain"]
