"""Every notebook in notebooks/ runs from top to bottom, headless, in each kernel, and shows what it is meant to show.

They are executed a few at a time, beside each other, when the first of them is asked for.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.conftest import KERNELS, ROOT, kernel_python
from tests.docs.examples import DATASET, DOCUMENT
from tests.kernel.harness import Kernel, execute_notebook

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
#: What these show is a cluster's; tests/cluster/test_notebooks.py runs them.
CLUSTER_ONLY = {"07-kubernetes"}
#: How many run at once.
_BESIDE = 3

#: What the outputs of a cell have in them, in any of their forms, by notebook and cell. Each cell that has an output
#: worth looking at is here; all others only mustn't fail.
SHOWN: dict[str, dict[str, list[str]]] = {
    "demo": {"example": ["epoch 1 of 10", "epoch 10 of 10", "fetched: 200", "'accuracy': 0.95"]},
    "01-first-steps": {
        "here": ["1,000 points, in process"],
        "deploy": ["estimate-pi", "is ready on local pods"],
        "call": ["1,000,000 points, in process", "3.14"],
        "preview": ["inside", "numpy"],
        "change": ["was redeployed", "seed 2: 3.14"],
        "map": ["3.14", "±"],
        "map-plot": ["image/png"],
        "services": ["estimate-pi", "cpus=1"],
        "teardown": ["no services"],
    },
    "02-async": {
        "deploy-services": ["process-data", "train-model", "evaluate-model"],
        "deploy-services-shown": ["(('processed', 1), ('trained', 2), ('evaluated', 3))"],
        "to-async-parameters": ["my-service", "is ready on local pods"],
        "to-async-parameters-shown": ["0.5"],
        "per-call": ["20 + 22, computed in process"],
        "async-property-shown": ["42"],
        "run-concurrent": ["·1", "·3", "begin 1", "end 3"],
        "run-concurrent-shown": ["[1, 4, 9]"],
        "create-task-shown": ["(('trained', 100), {'rows': [1, 2, 3]})"],
        "server-side-shown": ["({'rows': [1, 2, 3]}, 14)"],
        "process-batch-shown": ["begin 3", "[0, 1, 4, 9]"],
        "complete": ["train-model", "fetch-training-data"],
        "complete-shown": ["{'model': {'loss': 0.123, 'accuracy': 0.95}, 'data': {'rows': [1, 2, 3]}}"],
        "services": ["train-model", "fetch-training-data", "cpus=1"],
        "end": ["no services"],
    },
    "03-classes-and-state": {
        "deploy": ["loading the model ...", "is ready on local pods"],
        "state": ["after 0 examples"],
        "learn": ["after 100 examples", "y = 2.97 x -1.01 after 400 examples"],
        "async": ["[-1.0, 2.0]"],
        "attributes": ["Data attributes are not read through the handle"],
        "again": ["is unchanged", "after 400 examples"],
        "changed": ["loading the model ...", "its state is lost", "after 0 examples"],
        "from-name": ["after 1 examples"],
        "with": ["[1, 2, 3, 4, 5]", "line"],
        "teardown": ["no services"],
    },
    "04-logs-and-errors": {
        "live": ["WARNING:root:no GPU here", *(f"small: epoch {n}, loss" for n in range(5)), "saved"],
        "bar": ["████████████████████ 100%", "unpacked"],
        "two": ["·1", "·2", "small: epoch 2", "large: epoch 2", "[3, 3]"],
        "rich": ["<table", "0.975", "image/png"],
        "logs": ["WARNING:root:no GPU here", "quiet: epoch 0", "quiet: epoch 2", "saved"],
        "calls": ["train/", "report/", "done"],
        "error": ["step 6 - the loss was 16384 at step 6"],
        "traceback": ["Diverged", "raise Diverged(step, round(x * x))", "the loss was 59049 at step 4"],
        "arguments": ["unexpected keyword argument 'speed'"],
        "timeout": ["endless: epoch 0", "longer than its timeout of 0.5 s"],
        "crash": ["fragile", "exit code 3"],
        "after-crash": ["'fine'"],
        "teardown": ["no services"],
    },
    "05-magics": {
        "first": ["is ready on local pods", "step 0", "step 2"],
        "fit": ["residual 0.190"],
        "fitted": ["Polynomial", "5)"],
        "figure": ["image/png"],
        "forgotten": ["NameError", "rng.random()", "add -i rng to send it"],
        "task": ["False"],
        "awaited": ["fetched in 0.5 s"],
        "shell": ["a shell on the pod, in /", "Wall time:", "333332833333500000"],
        "bg": ["job = <Call"],
        "calls": ["magics-tutorial/", "running"],
        "bg-result": ["epoch 0", "epoch 3"],
        "deploy": ["square", "total", "is ready on local pods"],
        "handles": ["squaring 0", "squaring 3", "[0, 1, 5, 14]"],
        "services": ["magics-tutorial", "square", "total", "cpus=0.5"],
        "preview": ["area", "numpy"],
        "logs": ["squaring 0", "squaring 3"],
        "doctor": ["asyncio", "a function was deployed in"],
        "down": ['square" has ended', 'total" has ended', 'magics-tutorial" has ended'],
    },
    "06-panel": {
        "service": ["countdown", "is ready on local pods"],
        "panel": ["application/vnd.jupyter.widget-view+json", "panel"],
        "spawn": ["<Call", "countdown"],
        "result": ["liftoff"],
    },
    "07-kubernetes": {
        "doctor": ["cluster", "all that services need in namespace"],
        "deploy": ["deploying to namespace", "is ready on kubernetes pods"],
        "call": ["step 0 on ", "step 2 on ", "measure-"],
        "services": ["measure", "kubernetes/", "cpus=0.1"],
        "change": ["was redeployed", "1 steps, still on ", "True"],
        "volume": ['the volume "kt-tutorial" of 1Gi is made'],
        "volume-again": ["by its name alone it is mounted elsewhere: /data/model.txt", "weights"],
        "secret": ["values=<DB_PASSWORD>", "7 characters"],
        "wait": ["ResourceNotAvailableError", "Insufficient cpu"],
        "replicas": ["2 pods"],
        "down": ["has ended"],
        "end": ["no services"],
    },
}

# -- running them ------------------------------------------------------------------------------------------------------


def _execute(path: Path, python: Path, variables: dict[str, str]) -> tuple[nbformat.NotebookNode, list[str]]:
    """A notebook with its outputs, and what still ran when its last cell had ended."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("[info.name for info in kt.services()]", id="left"))
    kernel = Kernel(python, path.parent, variables)
    try:
        execute_notebook(notebook, python, kernel)
        kernel.assert_nothing_left()
    finally:
        kernel.close()
    left = notebook.cells.pop()
    return notebook, eval(left.outputs[-1]["data"]["text/plain"])


Runner = Callable[[Path, str], tuple[nbformat.NotebookNode, list[str]]]


@pytest.fixture(scope="module")
def variables_of() -> Callable[[Path], dict[str, str]]:
    """More environment variables for a notebook's kernel."""
    return lambda path: {}


@pytest.fixture(scope="module")
def executed(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    variables_of: Callable[[Path], dict[str, str]],
) -> Iterator[Runner]:
    """Gives an executed notebook; begins with all that the chosen tests will ask for."""
    folder = tmp_path_factory.mktemp("notebooks")
    futures: dict[tuple[Path, str], Future[Any]] = {}
    with ThreadPoolExecutor(_BESIDE) as pool:
        for item in request.session.items:
            params = getattr(getattr(item, "callspec", None), "params", {})
            ours = getattr(item, "module", None) is request.module and not item.get_closest_marker("skip")
            if ours and {"path", "version"} <= params.keys():
                path, version = params["path"], params["version"]
                # In a folder of its own, so that nothing beside it is needed.
                (folder / version).mkdir(exist_ok=True)
                copy = Path(shutil.copy(path, folder / version))
                futures[path, version] = pool.submit(_execute, copy, kernel_python(version), variables_of(path))
        yield lambda path, version: futures[path, version].result()
        pool.shutdown(cancel_futures=True)


def _outputs(cell: nbformat.NotebookNode) -> str:
    """All that a cell has shown: text, the kinds of its displays, and what they say in each of them."""
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            parts.append(output.text)
        elif output.output_type == "error":
            parts += [output.ename, output.evalue, *output.traceback]
        else:
            parts += [text for kind, data in output.data.items() for text in (f"\n{kind}\n", str(data))]
    return re.sub(r"\x1b\[[0-9;]*m", "", "".join(parts))


_NEEDS_A_CLUSTER = pytest.mark.skip(reason="shows a cluster: `make cluster-test` runs it")
_HERE = [pytest.param(p, marks=_NEEDS_A_CLUSTER) if p.stem in CLUSTER_ONLY else p for p in NOTEBOOKS]


@pytest.mark.kernel
@pytest.mark.parametrize("version", KERNELS)
@pytest.mark.parametrize("path", _HERE, ids=lambda p: p.stem)
def test_runs(path: Path, version: str, executed: Runner) -> None:
    notebook, left = executed(path, version)
    check(path.stem, notebook)
    if path.stem != "demo":  # which shows that services end with their kernel
        assert left == []


_NONE = "no services"


def check(name: str, notebook: nbformat.NotebookNode, pods: str = "local pods", whose: str | None = None) -> None:
    """That its outputs are complete, without an error but those that are meant.

    ``pods`` is what they call pods; ``whose`` begins the names of its services where others have some too.
    """
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        shown = _outputs(cell)
        failed = any(output.output_type == "error" for output in cell.outputs)
        assert failed == ("raises-exception" in cell.metadata.get("tags", [])), f"cell {cell.id}\n{shown}"
        expected = [text.replace("local pods", pods) for text in SHOWN[name].get(cell.id, [])]
        if whose is not None and _NONE in expected:
            expected.remove(_NONE)
            assert whose not in shown, f"cell {cell.id} still has services\n{shown}"
        missing = [text for text in expected if text not in shown]
        assert not missing, f"cell {cell.id} doesn't show {missing}, but\n{shown}"


# -- what is committed -------------------------------------------------------------------------------------------------


def test_each_has_expectations() -> None:
    for path in NOTEBOOKS:
        codes = [cell.id for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert set(SHOWN[path.stem]) <= set(codes), path.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_is_clean(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert all(re.fullmatch(r"[a-z][a-z0-9-]*", id) for id in ids), "ids are words that say what a cell is"
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs, f"clear the outputs of {path.name}"
            assert cell.execution_count is None, f"clear the outputs of {path.name}"
        assert set(cell.metadata) <= {"tags"}, f"{path.name}, {cell.id}: {cell.metadata}"
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert not re.search(r"(?<![\w.])/(?:home|root|work|tmp|Users|usr|opt|mnt)/", text), "a path of somebody's machine"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_links_lead_somewhere(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_the_document_is_unchanged() -> None:
    """02-async less the cells that were added is the document."""
    notebook = nbformat.read(ROOT / "notebooks" / "02-async.ipynb", as_version=4)
    parts = [
        f"```python\n{cell.source}\n```" if cell.cell_type == "code" else cell.source
        for cell in notebook.cells
        if "added" not in cell.metadata.get("tags", [])
    ]
    document = DOCUMENT.read_text()
    # What stands above it says what this copy is for.
    document = document[document.index("Kubetorch provides comprehensive support") :]
    assert "\n\n".join(parts) == document.rstrip().replace(f'"{DATASET}"', "url")
