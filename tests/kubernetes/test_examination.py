"""What ``%kt doctor`` says of a cluster: against an API server of the tests, and against what is none."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kubetorch_jupyter as kt
from kubetorch_jupyter.backends.base import Finding
from kubetorch_jupyter.backends.kubernetes.backend import KubernetesBackend
from kubetorch_jupyter.backends.kubernetes.rights import OTHERWISE, ROLE
from kubetorch_jupyter.transport.portal import get_portal
from tests.kubernetes import apiserver
from tests.kubernetes.apiserver import Answer, ApiServer, Request

_GROUP = {"kind": "APIGroup", "preferredVersion": {"groupVersion": "kueue.x-k8s.io/v1beta1"}}


class Cluster:
    """What the server says: rights, queues, nodes."""

    def __init__(self) -> None:
        self.denied: set[tuple[str, str]] = set()
        self.queues: list[str] | None = None
        self.nodes: list[dict[str, Any]] | None = None

    def answer(self, request: Request) -> Answer | None:
        path = request.path
        if path == "/version":
            return 200, {"gitVersion": "v1.99.0"}, {}
        if path.endswith("/selfsubjectreviews"):
            return 201, {"status": {"userInfo": {"username": "jane@example.org"}}}, {}
        if path.endswith("/selfsubjectaccessreviews"):
            asked = request.body["spec"]["resourceAttributes"]
            resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
            assert asked["namespace"] == "team"
            return 201, {"status": {"allowed": (asked["verb"], resource) not in self.denied}}, {}
        if path.startswith("/apis/kueue.x-k8s.io"):
            if self.queues is None:
                return apiserver.status(404, "NotFound", "the server could not find the requested resource")
            queues = {"items": [{"metadata": {"name": name}} for name in self.queues]}
            return 200, queues if path.endswith("/namespaces/team/localqueues") else _GROUP, {}
        if path == "/api/v1/nodes":
            return apiserver.forbidden("list", "nodes") if self.nodes is None else (200, {"items": self.nodes}, {})
        return None


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def path(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """The kubeconfig of a server that says what `cluster` does."""
    with ApiServer(rule=cluster.answer) as server:
        yield apiserver.kubeconfig(tmp_path / "config", server.url)


def examine(path: Path) -> dict[str, Finding]:
    """The findings; of several about one thing the last."""
    backend = KubernetesBackend(str(path), None, "team")
    return {finding.what: finding for finding in get_portal().run(backend.examine())}


def deny(cluster: Cluster, *resources: str) -> None:
    cluster.denied |= {
        (verb, right.resource) for right in (*ROLE, OTHERWISE) for verb in right.verbs if right.resource in resources
    }


def test_all_is_well(path: Path) -> None:
    found = examine(path)
    assert {finding.state for finding in found.values()} == {"ok", "note"}
    assert found["cluster"].text == "Kubernetes v1.99.0, as jane@example.org"
    assert found["rights"].text == "all that services need in namespace team"
    assert found["way to pods"].text == "by the API server's proxy"
    assert "not installed" in found["Kueue"].text
    assert "can't be looked at" in found["GPUs"].text


def test_rights_that_are_missing(cluster: Cluster, path: Path) -> None:
    cluster.denied = {("patch", "secrets"), ("delete", "secrets")}
    rights = examine(path)["rights"]
    assert rights.state == "problem"
    assert rights.text.startswith("may not patch, delete secrets")
    assert rights.text.endswith('- {apiGroups: [""], resources: ["secrets"], verbs: ["patch", "delete"]}')


def test_rights_that_can_be_done_without(cluster: Cluster, path: Path) -> None:
    deny(cluster, "events")
    rights = examine(path)["rights"]
    assert rights.state == "note"
    assert "why a pod waits" in rights.text


def test_ways_to_pods(cluster: Cluster, path: Path) -> None:
    deny(cluster, "pods/portforward")
    assert examine(path)["way to pods"].text == "by the API server's proxy"
    deny(cluster, "pods/proxy")
    none = examine(path)["way to pods"]
    assert none.state == "problem"
    assert 'resources: ["pods/proxy"]' in none.text
    cluster.denied.clear()
    deny(cluster, "pods/proxy")
    assert examine(path)["way to pods"].text.startswith("by a port-forward")


def test_queues(cluster: Cluster, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.queues = ["small", "large"]
    assert examine(path)["Kueue"].text == "is installed; queues here: large, small"
    monkeypatch.setattr(kt.config, "queue", "huge")
    found = examine(path)["Kueue"]
    assert (found.state, "large, small" in found.text) == ("problem", True)
    cluster.queues = None
    assert examine(path)["Kueue"].state == "problem"


def test_gpus_are_counted_by_who_may(cluster: Cluster, path: Path) -> None:
    cluster.nodes = [{"status": {"allocatable": {"nvidia.com/gpu": "8"}}}, {"status": {"allocatable": {"cpu": "4"}}}]
    assert examine(path)["GPUs"].text == "8 on 1 of 2 nodes"


def test_a_server_that_says_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        found = examine(apiserver.kubeconfig(tmp_path / "config", f"http://127.0.0.1:{silent.getsockname()[1]}"))
        assert 4.5 < time.monotonic() - began < 6
    assert found["cluster"].state == "problem"
    assert "hasn't answered within 5 s" in found["cluster"].text


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    found = examine(apiserver.kubeconfig(tmp_path / "config", f"http://127.0.0.1:{port}"))
    assert "can't be reached" in found["cluster"].text


def test_no_kubeconfig(tmp_path: Path) -> None:
    found = examine(tmp_path / "nothing")
    assert found["cluster"].state == "problem"
    assert "does not exist" in found["cluster"].text
