"""The document's examples, unchanged, from outside of the cluster (case 1)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import kubetorch_jupyter as kt
from tests.cluster.conftest import User
from tests.cluster.images import Images
from tests.cluster.node import Node
from tests.docs.examples import EXAMPLES, Example
from tests.docs.test_examples import check, run

#: How many run at once.
_BESIDE = 3

#: What stands for the data set on the web: in a pod, since pods need not reach this machine.
_SERVER = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Dataset(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"rows": [1, 2, 3]}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

ThreadingHTTPServer(("", 8000), Dataset).serve_forever()
"""


@pytest.fixture(scope="module")
def url(user: User, images: Images) -> Iterator[str]:
    """The data set's address in the cluster."""
    container = {
        "name": "dataset",
        "image": images["examples"],
        "command": ["python3", "-c", _SERVER],
        "readinessProbe": {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1},
    }
    body = {"metadata": {"generateName": "dataset-"}, "spec": {"containers": [container]}}
    name = user.api.create("Pod", {"apiVersion": "v1", "kind": "Pod", **body})["metadata"]["name"]

    def address() -> str | None:
        status = user.api.get("Pod", name)["status"]
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))
        return status["podIP"] if ready else None

    try:
        yield f"http://{user.api.wait('the data set', address, 30)}:8000/dataset"
    finally:
        user.api.delete("Pod", name, gracePeriodSeconds=0)


@pytest.fixture(scope="module")
def ran(
    request: pytest.FixtureRequest, user: User, url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Example], subprocess.CompletedProcess[str]]]:
    """Gives what became of an example; begins with all that the chosen tests will ask for."""
    chosen = [item.callspec.params["example"] for item in request.session.items if item.module is request.module]
    futures: dict[str, Future[subprocess.CompletedProcess[str]]] = {}
    with ThreadPoolExecutor(_BESIDE) as pool:
        for example in chosen:
            # A user for each, as if they were several people's: they call their services the same.
            name = f"{user.name}-{example.name.replace('_', '-')}"
            folder = tmp_path_factory.mktemp(example.name)
            futures[example.name] = pool.submit(_run, example, url, folder, name)
        yield lambda example: futures[example.name].result()
        pool.shutdown(cancel_futures=True)


def _run(example: Example, url: str, folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    done = run(example, url, folder, {"KT_USERNAME": name})
    # What it leaves ends with it, or a small node would soon be full.
    for info in kt.services():
        if info.owner.get("user") == name:
            kt.teardown(info.name)
    return done


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_script_on_the_cluster(
    example: Example, ran: Callable[[Example], subprocess.CompletedProcess[str]], cluster_node: Node | None
) -> None:
    if "gpus=" in example.code and cluster_node is None and not os.environ.get("KT_TEST_GPUS"):
        pytest.skip("needs a GPU in the cluster: KT_TEST_GPUS says that there are some")
    check(example, ran(example))
