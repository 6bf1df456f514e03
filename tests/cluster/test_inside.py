"""Every notebook, unchanged, from a pod of the cluster, with direct access (case 1); one of them is the document."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from tests.cluster.conftest import User
from tests.cluster.images import Images
from tests.conftest import ROOT
from tests.test_notebooks import NOTEBOOKS, check

#: How the pods of this client are reached, and which ones of its own they are.
_ACCESS = """
import os
import kubetorch as kt

def where():
    import socket
    return socket.gethostbyname(socket.gethostname())

assert not any(name.startswith(("KT_BACKEND", "KUBECONFIG")) for name in os.environ)
with kt.fn(where).to(kt.Compute()) as remote:
    print("pod", remote(), "endpoint", remote.endpoint)
"""
#: What the pod does: put the wheel on the path, and the files in a folder of its own.
_START = """
mkdir -p /tmp/site /tmp/work && cd /tmp/work && python3 -m zipfile -e /given/project.whl /tmp/site \
    && tar -xf /given/files.tar && exec python3 inside.py folder
"""


class Inside:
    """A pod in which all of it has run."""

    def __init__(self, user: User, pod: str) -> None:
        self._user, self._pod = user, pod

    def read(self, name: str) -> str:
        return self._user.api.execute(self._pod, "client", ["cat", f"/tmp/work/folder/{name}"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [path] = folder.glob("*.whl")
    return path.read_bytes()


def _archive() -> bytes:
    """The script of the pod, the notebooks, and a script of ours."""
    files = {"inside.py": Path(__file__).with_name("inside.py").read_bytes(), "folder/access.py": _ACCESS.encode()}
    files |= {f"folder/{path.name}": path.read_bytes() for path in NOTEBOOKS}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture(scope="module")
def inside(user: User, images: Images, wheel: bytes) -> Iterator[Inside]:
    """The pod; it begins with all that there is when the first test asks for it."""
    if user.account is None:
        pytest.skip("no service account for a pod that deploys: KT_TEST_SERVICE_ACCOUNT names one")
    given = {"project.whl": wheel, "files.tar": _archive()}
    data = {name: base64.b64encode(content).decode() for name, content in given.items()}
    files = user.api.create("ConfigMap", {"metadata": {"generateName": "inside-"}, "binaryData": data})
    container = {
        "name": "client",
        "image": images["client"],
        "command": ["sh", "-c", f"({_START}); sleep 600"],
        "env": [
            {"name": "PYTHONPATH", "value": "/tmp/site"},
            {"name": "KT_USERNAME", "value": user.name},
            {"name": "KT_IMAGE", "value": images["examples"]},
            {"name": "KT_INACTIVITY_TTL", "value": "15m"},
        ],
        "volumeMounts": [{"name": "given", "mountPath": "/given"}],
    }
    spec = {
        "serviceAccountName": user.account,
        "containers": [container],
        "volumes": [{"name": "given", "configMap": {"name": files["metadata"]["name"]}}],
    }
    name = user.api.create("Pod", {"metadata": {"generateName": "inside-"}, "spec": spec})["metadata"]["name"]

    def ended() -> bool:
        phase = user.api.get("Pod", name)["status"]["phase"]
        return phase != "Pending" and "inside: " in user.api.log(name, "client").rpartition("\n\n")[2]

    try:
        user.api.wait("all of it has run in the pod", ended, 280, 1.0)
        print(user.api.log(name, "client"))
        yield Inside(user, name)
    finally:
        user.api.delete("Pod", name, gracePeriodSeconds=0)
        user.api.delete("ConfigMap", files["metadata"]["name"])


def test_pods_are_reached_directly(inside: Inside) -> None:
    ran = json.loads(inside.read("access.json"))
    assert ran["status"] == 0, ran["output"]
    _, pod, _, endpoint = ran["output"].splitlines()[-1].split()
    assert endpoint == f"http://{pod}:32300"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(inside: Inside, path: Path, user: User) -> None:
    notebook = nbformat.reads(inside.read(path.name), as_version=4)
    check(path.stem, notebook, "kubernetes pods", f"{user.name}-{path.stem}")
