"""Every notebook of notebooks/, unchanged, from outside of the cluster (case 1)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.conftest import User
from tests.cluster.node import Node
from tests.conftest import NEWEST, kernel_variables
from tests.test_notebooks import NOTEBOOKS, Runner, check, executed


@pytest.fixture(scope="module")
def variables_of(user: User) -> Callable[[Path], dict[str, str]]:
    """A user for each: they run beside each other, and call their services the same."""
    return lambda path: {**kernel_variables, "KT_USERNAME": f"{user.name}-{path.stem}"}


@pytest.mark.kernel
@pytest.mark.parametrize("version", [NEWEST])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_on_the_cluster(path: Path, version: str, executed: Runner, user: User, cluster_node: Node | None) -> None:
    if "gpus=" in path.read_text() and cluster_node is None and not os.environ.get("KT_TEST_GPUS"):
        pytest.skip("needs a GPU in the cluster: KT_TEST_GPUS says that there are some")
    notebook, _ = executed(path, version)
    check(path.stem, notebook, "kubernetes pods", f"{user.name}-{path.stem}")
