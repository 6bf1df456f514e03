"""Every notebook in notebooks/ runs to its end, headless, in each kernel."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from tests.conftest import ROOT, KernelFactory
from tests.kernel.harness import run_notebook

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs(path: Path, make_kernel: KernelFactory) -> None:
    notebook = nbformat.read(path, as_version=4)
    codes = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    kernel = make_kernel(start=False, cwd=path.parent)
    done = run_notebook(codes, make_kernel.python, kernel)  # type: ignore[attr-defined]
    if path.stem == "demo":
        text = "".join(o.get("text", "") for cell in done.cells for o in cell.outputs)
        assert "epoch 10 of 10" in text
        assert "fetched: 200" in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_is_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert all(not c.outputs and c.execution_count is None for c in notebook.cells if c.cell_type == "code"), (
        f"clear the outputs of {path.name}"
    )
