"""What a deploy keeps in the cluster, and what it does where the cluster itself is in trouble."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from kubetorch_jupyter.backends.kubernetes import rollout
from kubetorch_jupyter.backends.kubernetes.manifests import headless_service, secret
from kubetorch_jupyter.backends.kubernetes.rollout import Rollout
from kubetorch_jupyter.backends.kubernetes.space import Space
from kubetorch_jupyter.errors import KubernetesCredentialsError
from kubetorch_jupyter.transport.portal import get_portal
from pod_server import codefile
from tests.kubernetes.apiserver import ApiServer, kubeconfig, opened
from tests.kubernetes.plans import plan


class Refusing:
    """A namespace where the deletion of a Job is refused so many times."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.removed: list[str] = []

    async def delete_job(self, job: dict[str, Any], *, grace: int | None = None) -> None:
        self.refusals -= 1
        if self.refusals >= 0:
            raise KubernetesCredentialsError("may not delete jobs")
        self.removed.append("Job")

    async def delete_rest(self, service: str) -> None:
        self.removed.append("rest")


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def __call__(self, phase: Any, detail: str = "") -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize(("refusals", "removed"), [(0, True), (3, True), (10_000, False)])
def test_what_was_made_is_removed_with_persistence(
    refusals: int, removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And without an error of its own, which would hide why the deploy failed."""
    monkeypatch.setattr(rollout, "_LOOK", 0.01)
    monkeypatch.setattr(rollout, "_PERSISTENCE", 0.3)
    space, told = Refusing(refusals), Notes()
    made = Rollout(cast(Any, space), plan(), cast(Any, None), "token", told, job={"metadata": {"name": "train-1"}})
    asyncio.run(made.discard())
    assert space.removed == (["Job", "rest"] if removed else [])
    assert told.notes == ([] if removed else ['something of "alice-train" is left in the cluster: may not delete jobs'])


# -- what is kept for pods that come in the place of others ------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer() as server:
        kubeconfig(tmp_path / "config", server.url)
        yield server


class Deploys:
    """Deploys of one service whose pods have the code already, or are given it."""

    def __init__(self, server: ApiServer, cluster: Any) -> None:
        self.server = server
        self.space = Space(cluster, "team")
        self.plan = plan(namespace="team")
        self.job = server.put("jobs", {"metadata": {"name": self.plan.job_name}})
        server.put("services", headless_service(self.plan))
        server.put("secrets", secret(self.plan, "token"))

    @property
    def secret(self) -> dict[str, Any]:
        return self.server.objects["secrets", "team", self.plan.job_name]

    @property
    def kept(self) -> codefile.CodeFile:
        return codefile.unpack(base64.b64decode(self.secret["data"]["code"]))

    def deploy(self, version: str, content: bytes, *, loaded: bool) -> list[str]:
        """What it has said."""
        told = Notes()
        made = Rollout(self.space, self.plan, cast(Any, None), "token", told, job=self.job)
        meta = {"version": version, "deployed_at": time.time()}
        get_portal().run(made.keep(meta, [content], told, loaded=loaded), 10)
        return told.notes


@pytest.fixture
def deploys(server: ApiServer, tmp_path: Path) -> Iterator[Deploys]:
    with opened(tmp_path / "config") as cluster:
        yield Deploys(server, cluster)


def test_a_deploy_that_changes_nothing_leaves_the_secret_alone(
    deploys: Deploys, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploys.deploy("one", b"first", loaded=True)
    assert deploys.kept.buffers == [b"first"]
    before = deploys.secret["metadata"]["resourceVersion"]
    monkeypatch.setattr(codefile, "pack", None)
    assert deploys.deploy("one", b"first", loaded=False) == []
    assert deploys.secret["metadata"]["resourceVersion"] == before
    asked = [request for request in deploys.server.requests if "/secrets/" in request.path]
    assert [request.method for request in asked] == ["PATCH", "GET"]
    assert "PartialObjectMetadata" in asked[1].headers["accept"], "the whole would be as large as the patch"


def test_a_deploy_that_changes_nothing_repairs_what_another_has_left(deploys: Deploys) -> None:
    """Whose client died after the pods had the new code, and before the Secret had it."""
    deploys.deploy("one", b"first", loaded=True)
    deploys.deploy("two", b"second", loaded=False)
    assert deploys.kept.buffers == [b"second"]
    # Before the first: the Secret has nothing but the token.
    deploys.server.put("secrets", secret(deploys.plan, "token"))
    deploys.deploy("two", b"second", loaded=False)
    assert deploys.kept.buffers == [b"second"]


def test_what_was_loaded_is_written_whatever_the_secret_says(deploys: Deploys) -> None:
    """A pod's own copy and the Secret's are compared by when they were deployed."""
    deploys.deploy("one", b"first", loaded=True)
    at = deploys.kept.deployed_at
    deploys.deploy("one", b"first", loaded=True)
    assert deploys.kept.deployed_at > at


def test_code_without_room_is_said_at_each_deploy(deploys: Deploys) -> None:
    large = os.urandom(1 << 20)
    for loaded in (True, False, False):
        [said] = deploys.deploy("one", large, loaded=loaded)
        assert "too large to be kept in the cluster (1.0 MiB)" in said
        assert deploys.kept.missing == 1 << 20
    assert [request.method for request in deploys.server.requests if "/secrets/" in request.path].count("PATCH") == 1
    assert deploys.deploy("two", b"small", loaded=True) == []
    assert deploys.deploy("two", b"small", loaded=False) == []
    assert deploys.kept.buffers == [b"small"]


@pytest.mark.parametrize("loaded", [True, False])
def test_a_secret_that_somebody_has_deleted_is_made_again(deploys: Deploys, *, loaded: bool) -> None:
    deploys.deploy("one", b"first", loaded=True)
    deploys.server.remove("secrets", deploys.plan.job_name)
    deploys.deploy("one", b"first", loaded=loaded)
    assert deploys.kept.buffers == [b"first"]
    assert base64.b64decode(deploys.secret["data"]["token"]) == b"token"
    assert deploys.secret["metadata"]["ownerReferences"][0]["uid"] == deploys.job["metadata"]["uid"]
