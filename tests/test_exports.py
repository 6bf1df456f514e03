"""The public names are exactly those of ``__all__``, and the import stays cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kubetorch_jupyter as kt


def declared() -> set[str]:
    """The names that the package's own file imports for type checkers, defines, or keeps as modules."""
    tree = ast.parse(Path(kt.__file__).read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            names.update(alias.asname or alias.name for alias in node.names)
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef):
            names.add(statement.name)
    return {name for name in names if not name.startswith("_")} | {"__version__"}


@pytest.mark.short
def test_all_is_what_there_is() -> None:
    assert declared() == set(kt.__all__)
    assert list(kt.__all__) == sorted(kt.__all__), "sort __all__"
    assert len(kt.__all__) == len(set(kt.__all__))


@pytest.mark.short
@pytest.mark.parametrize("name", kt.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(kt, name) is not None
    assert name in dir(kt)


def test_star_import() -> None:
    namespace: dict[str, object] = {}
    exec("from kubetorch_jupyter import *", namespace)
    assert set(kt.__all__) <= set(namespace)


@pytest.mark.short
def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonesuch"):
        _ = kt.nonesuch


@pytest.mark.short
def test_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, kubetorch_jupyter\n"
        "kubetorch_jupyter.Compute(cpus=1)\n"
        "print(sorted({'kubernetes', 'ipywidgets', 'httpx', 'IPython', 'numpy', 'uvicorn', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
