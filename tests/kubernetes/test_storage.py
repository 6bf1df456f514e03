"""Volumes outside of deploys, against an API server of the tests: what happens beside others who do the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kubetorch_jupyter as kt
from kubetorch_jupyter.backends.kubernetes import storage
from tests.kubernetes import apiserver
from tests.kubernetes.apiserver import ApiServer, Request

CLAIMS = "/api/v1/namespaces/team/persistentvolumeclaims"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """The cluster that services go to."""
    with ApiServer() as server:
        monkeypatch.setenv("KUBECONFIG", str(apiserver.kubeconfig(tmp_path / "config", server.url)))
        monkeypatch.setenv("KT_BACKEND", "kubernetes")
        monkeypatch.setenv("KT_NAMESPACE", "team")
        yield server


def claims(server: ApiServer) -> list[dict[str, Any]]:
    return [each for each in server.objects.values() if each["kind"] == "PersistentVolumeClaim"]


def test_made_once_and_deleted(server: ApiServer) -> None:
    volume = kt.Volume("data", size="1Gi", mount_path="/data")
    assert not volume.exists()
    volume.create()
    volume.create()
    [claim] = claims(server)
    assert claim["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "kubetorch-jupyter"
    assert volume.exists()
    assert kt.Volume.from_name("data") == kt.Volume("data", "1Gi", "/data", namespace="team")
    volume.delete()
    assert claims(server) == []


def test_somebody_else_is_faster(server: ApiServer) -> None:
    first = True

    def hide(request: Request) -> apiserver.Answer | None:
        nonlocal first
        if request.method == "GET" and request.path == f"{CLAIMS}/data" and first:
            first = False
            return apiserver.status(404, "NotFound", "not there")
        return None

    kt.Volume("data", size="2Gi").create()
    server.rule = hide
    with pytest.warns(UserWarning, match="has 2Gi, not 1Gi"):
        kt.Volume("data", size="1Gi").create()
    assert len(claims(server)) == 1


def test_one_that_is_being_deleted(server: ApiServer) -> None:
    volume = kt.Volume("data", size="1Gi")
    volume.create()
    claims(server)[0]["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
    with pytest.raises(kt.DeployError, match="is being deleted in namespace team") as caught:
        volume.create()
    assert caught.value.reason == "BeingDeleted"


def test_users_are_named_and_what_has_ended_is_none(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = kt.Volume("data", size="1Gi")
    volume.create()
    mounts = {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}, {"name": "e", "emptyDir": {}}]}

    def pod(name: str, phase: str, **labels: str) -> None:
        meta = {"name": name, "labels": {"app.kubernetes.io/managed-by": "kubetorch-jupyter", **labels}}
        body = {"kind": "Pod", "apiVersion": "v1", "metadata": meta, "spec": mounts}
        server.put("pods", {**body, "status": {"phase": phase}})

    pod("train-0", "Running", **{"kubetorch.dev/service": "train"})
    pod("train-1", "Pending", **{"kubetorch.dev/service": "train"})
    pod("other", "Running")
    pod("done", "Succeeded")
    with pytest.raises(kt.DeployError, match='while service "train" and the pod other use it: end that first'):
        volume.delete()
    assert len(claims(server)) == 1


def test_one_that_does_not_go(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_GONE", 0.3)
    volume = kt.Volume("data", size="1Gi")
    volume.create()
    server.rule = lambda request: (200, {}, {}) if request.method == "DELETE" else None
    with pytest.raises(kt.DeployError, match="is marked as deleted, and still there after 0.3 s"):
        volume.delete()
