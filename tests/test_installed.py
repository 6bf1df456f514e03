"""The part of this package that travels to pods, with the whole of it beside it in the image."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kubetorch_jupyter.backends.kubernetes.bundle import make_bundle
from tests.conftest import ROOT

#: In a pod: what travels comes before what the image has.
_POD = """
import os, sys
ours, theirs = sys.argv[1:]
rest = [path for path in sys.path if not os.path.isdir(path + "/kubetorch_jupyter")]
sys.path[:] = [ours, *filter(None, [theirs]), *rest]
from kubetorch_jupyter import errors
from kubetorch_jupyter.backends import get_backend, installed
from kubetorch_jupyter.compute import Compute
assert errors.__file__.startswith(ours)
try:
    backend = get_backend(Compute(namespace="team"))
except errors.ConfigError as e:
    print(e)
else:
    print(type(backend).__module__, sys.modules[type(backend).__module__].__file__)
    # One class of error in all of it.
    from kubetorch_jupyter.backends.kubernetes import client
    assert client.DeployError is errors.DeployError
    from kubetorch_jupyter.backends.kubernetes.bundle import make_bundle
    print(make_bundle().hash)
print(installed.is_whole())
"""


@pytest.fixture(scope="module")
def travelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pod")
    for name, data in make_bundle().files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / "ours"


def _ask(ours: Path, theirs: Path | None) -> list[str]:
    words = [sys.executable, "-c", _POD, str(ours), str(theirs or "")]
    done = subprocess.run(words, cwd="/", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def _install(folder: Path) -> Path:
    for package in ("kubetorch_jupyter", "pod_server"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_the_image_gives_what_does_not_travel(travelled: Path, tmp_path: Path) -> None:
    site = _install(tmp_path)
    backend, bundle, whole = _ask(travelled, site)
    assert backend.split()[1].startswith(str(site / "kubetorch_jupyter" / "backends" / "kubernetes"))
    assert bundle == make_bundle().hash, "what it sends on is complete"
    # Handles go on by the cluster's DNS: the account may have no rights.
    assert whole == "False"


def test_another_version_in_the_image_is_named(travelled: Path, tmp_path: Path) -> None:
    site = _install(tmp_path)
    (site / "kubetorch_jupyter" / "errors.py").write_text("another = True")
    said, _ = _ask(travelled, site)
    assert f"{site / 'kubetorch_jupyter'} differs from that in errors.py" in said
    assert "Install the same version in both" in said


def test_an_image_without_it(travelled: Path) -> None:
    said, _ = _ask(travelled, None)
    assert "needs kubetorch-jupyter in this pod's image" in said
    assert "enough for calls only" in said
