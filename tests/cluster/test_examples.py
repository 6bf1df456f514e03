"""The document's examples, unchanged, from outside of the cluster (case 1)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cluster.conftest import User, end_services
from tests.cluster.images import Images
from tests.cluster.node import Node
from tests.docs.examples import EXAMPLES, Example
from tests.docs.test_examples import test_script

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


@pytest.fixture(autouse=True)
def _room(request: pytest.FixtureRequest, user: User, cluster_node: Node | None) -> Iterator[None]:
    """For what the example asks for: what it leaves ends with it here, or a small node would soon be full."""
    example: Example = request.node.callspec.params["example"]
    if "gpus=" in example.code and cluster_node is None and not os.environ.get("KT_TEST_GPUS"):
        pytest.skip("needs a GPU in the cluster: KT_TEST_GPUS says that there are some")
    yield
    end_services(user)
