"""The suite with nothing but a kubeconfig: not root, and no program for the node (case 12)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import User
from tests.cluster.images import Images
from tests.cluster.node import Node
from tests.conftest import ROOT

#: Cells of a kernel, state, results, and what breaks the node; the others have no other fixtures.
MODULES = ("test_cells", "test_redeploy", "test_results", "test_pod_loss")
NOBODY = "65534"


def _as_nobody() -> list[str]:
    """A command's beginning: it runs as nobody, who may still read files, since the interpreter may be in a home."""
    if shutil.which("setpriv") is None:
        pytest.skip("acts as another user: there is no `setpriv`")
    return ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"] + [
        f"--{which}-caps=+dac_read_search" for which in ("inh", "ambient")
    ]


def test_the_same_suite(node: Node, user: User, images: Images, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("nobody")
    kubeconfig = folder / "kubeconfig"
    shutil.copyfile(user.kubeconfig, kubeconfig)
    for path in (folder, kubeconfig):
        os.chown(path, int(NOBODY), int(NOBODY))
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "KT_TEST_KUBECONFIG": str(kubeconfig),
        "KT_TEST_IMAGE_EXAMPLES": images["examples"],
    }
    assert shutil.which("cluster", path=environment["PATH"]) is None
    modules = [f"tests/cluster/{name}.py" for name in MODULES]
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-m", "cluster and not soak", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*_as_nobody(), *pytest_, "--basetemp", str(folder / "pytest"), *modules],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^left out: \d+ tests: breaks the node: no `cluster` program", done.stdout, re.M)
    [passed] = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) > 20
