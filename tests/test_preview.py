"""What people see before they deploy."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kubetorch_jupyter as kt
from kubetorch_jupyter.errors import ConfigError, SerializationError
from kubetorch_jupyter.preview import preview
from tests.markup import assert_themed
from tests.podlet import Cells


@pytest.fixture
def cells() -> Iterator[Cells]:
    made = Cells()
    yield made
    made.clear()


@pytest.fixture
def notebook(cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cells:
    (tmp_path / "preview_pkg").mkdir()
    (tmp_path / "preview_pkg" / "__init__.py").write_text("import pandas\n")
    (tmp_path / "preview_pkg" / "more.py").write_text("x = 1\n" * 100)
    monkeypatch.syspath_prepend(str(tmp_path))
    cells.run("import functools\nimport numpy as np\nimport preview_pkg\n")
    cells.run("table = np.zeros(3 * 1024**2)\nname = '<b>é</b>'\n")
    cells.run("class Model:\n    def go(self):\n        return name\n")
    cells.run("def deco(f):\n    @functools.wraps(f)\n    def wrapper():\n        return f()\n    return wrapper\n")
    cells.run("@deco\ndef train():\n    import scipy_like_thing\n    return table, Model, preview_pkg, np\n")
    return cells


def test_what_is_in_it(notebook: Cells) -> None:
    found = preview(notebook["train"])
    captured = {c.path: c for c in found.captured}
    assert next(iter(captured)) == "train.<globals>.table"
    assert captured["train.<globals>.table"].type == "numpy.ndarray"
    assert captured["train.<globals>.table"].size > 24 * 1024**2
    assert captured["train.<globals>.Model"].type == "class"
    assert captured["train.<globals>.Model.go.<globals>.name"].type == "str"
    (module,) = found.modules
    assert (module.name, module.files) == ("preview_pkg", 2)
    assert module.size > 600
    packages = dict(found.packages)
    assert {"numpy", "pandas", "scipy_like_thing"} <= set(packages)
    assert packages["scipy_like_thing"] == "?"
    assert packages["numpy"][0].isdigit()
    assert found.size > 24 * 1024**2
    assert any("train.<globals>.table has 24 MiB" in w for w in found.warnings)


def test_showing_it_does_no_io(notebook: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    found = preview(notebook["train"])

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("I/O in a repr")

    monkeypatch.setattr(builtins, "open", refuse)
    text, markup = repr(found), found._repr_html_()
    monkeypatch.undo()
    assert text.splitlines()[0] == "train: 24.0 MiB would travel"
    for part in ("train.<globals>.table", "numpy.ndarray", "24.0 MiB", "preview_pkg", "2 files", "numpy", "warning:"):
        assert part in text
    assert "train.&lt;globals&gt;.table" in markup
    assert "<globals>" not in markup
    assert_themed(markup)


def test_init_args_and_handles(notebook: Cells) -> None:
    found = preview(notebook["Model"], init_args={"n": [1] * 100})
    assert {c.path for c in found.captured} == {"Model.go.<globals>.name", "init_args"}
    handle = kt.fn(notebook["train"])
    assert kt.preview(handle) == preview(notebook["train"])
    assert preview(notebook["train"], sync_dir=False).modules == ()


def test_a_callable_that_captures_nothing() -> None:
    found = preview(len)
    assert (found.captured, found.modules, found.packages, found.warnings) == ((), (), (), ())
    assert repr(found).startswith("len: ")


def test_errors_are_those_of_a_deploy(cells: Cells, tmp_path: Path) -> None:
    cells.run("import threading\nlock = threading.Lock()\ndef f():\n    return lock\n")
    with pytest.raises(SerializationError, match=r"f\.<globals>\.lock"):
        preview(cells["f"])
    with pytest.raises(ConfigError, match="not a folder"):
        preview(len, sync_dir=tmp_path / "nowhere")
