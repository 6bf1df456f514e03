"""What a deploy keeps in the cluster, and what it does where the cluster itself is in trouble."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kubetorch_jupyter.backends.kubernetes import removal, rollout
from kubetorch_jupyter.backends.kubernetes.backend import KubernetesBackend, _why_another
from kubetorch_jupyter.backends.kubernetes.manifests import (
    ServiceFields,
    headless_service,
    job,
    owner_reference,
    read_service,
    secret,
)
from kubetorch_jupyter.backends.kubernetes.rollout import Rollout
from kubetorch_jupyter.backends.kubernetes.space import Space
from kubetorch_jupyter.errors import (
    ConnectionFailedError,
    DeployError,
    KubernetesCredentialsError,
    ServiceNotFoundError,
)
from kubetorch_jupyter.transport.portal import get_portal
from pod_server import codefile
from tests.kubernetes.apiserver import ApiServer, kubeconfig, opened
from tests.kubernetes.plans import plan
from tests.kubernetes.recordings import api_time


class Refusing:
    """A namespace where the deletion of a Job fails with these errors, one after the other."""

    namespace = "team-a"

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.removed: list[str] = []
        self.owned: list[Any] = []

    async def delete_job(self, job: dict[str, Any], *, grace: int | None = None) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.removed.append("Job")

    async def delete_rest(self, service: str) -> None:
        self.removed.append("rest")

    def own(self, work: Any) -> None:
        self.owned.append(asyncio.ensure_future(work))


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def __call__(self, phase: Any, detail: str = "") -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


FORBIDDEN = KubernetesCredentialsError("may not delete jobs", reason="Forbidden")
AWAY = ConnectionFailedError("the API server can't be reached")
CONFLICT = DeployError("the object has been modified", reason="Conflict")
BUSY = DeployError("too many requests", reason="TooManyRequests")
BROKEN = DeployError("etcdserver: request timed out", reason="HTTP 500")
NEVER = DeployError("it is invalid", reason="Invalid")


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, seconds in (
        (rollout, "_LOOK", 0.01),
        (rollout, "_PERSISTENCE", 0.1),
        (removal, "_AWAY", 0.01),
        (removal, "_FIRST", 0.01),
        (removal, "_LAST", 0.02),
    ):
        monkeypatch.setattr(module, name, seconds)


def _discard(space: Refusing) -> list[str]:
    """Discard a deploy in that namespace, wait for what nobody waits for; what the deploy's cell was told."""

    async def discard() -> list[str]:
        told = Notes()
        made = Rollout(cast(Any, space), plan(), cast(Any, None), "token", told, job={"metadata": {"name": "train-1"}})
        await made.discard()
        await asyncio.gather(*space.owned)
        return told.notes

    return asyncio.run(discard())


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("errors", [[], [FORBIDDEN] * 3, [CONFLICT, BUSY, BROKEN]], ids=["none", "rights", "trouble"])
def test_what_was_made_is_removed_with_persistence(errors: list[Exception]) -> None:
    """And without an error of its own, which would hide why the deploy failed."""
    space = Refusing(*errors)
    assert _discard(space) == []
    assert (space.removed, space.owned) == (["Job", "rest"], [])


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    "errors",
    [[AWAY, AWAY, AWAY], [FORBIDDEN] * 14, [AWAY, FORBIDDEN, CONFLICT, BUSY, BROKEN, AWAY, FORBIDDEN]],
    ids=["away", "rights", "all"],
)
def test_what_cannot_be_removed_yet_is_removed_later(errors: list[Exception], caplog: pytest.LogCaptureFixture) -> None:
    space = Refusing(*errors)
    [said] = _discard(space)
    assert said.startswith('something of "alice-train" is left in the cluster; it goes as soon as the cluster lets it')
    assert said.endswith(str(errors[0]))
    assert len(space.owned) == 1, "nobody waited for it"
    assert space.removed == ["Job", "rest"]
    assert caplog.messages == []


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("errors", [[FORBIDDEN] * 1000, [AWAY, CONFLICT, NEVER]], ids=["for long", "for good"])
def test_what_stays_is_said_with_how_it_goes(
    errors: list[Exception], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "_PATIENCE", 0.2)
    space = Refusing(*errors)
    last = str(errors[-1])
    assert len(_discard(space)) == 1
    assert space.removed == []
    assert caplog.messages == [
        'kubetorch: something of "alice-train" is left in the cluster; '
        f"'kubectl delete job alice-train-0a1b2c3d -n team-a' removes it: {last}"
    ]


@pytest.mark.usefixtures("hurried")
def test_what_will_never_be_removed_is_not_tried_again() -> None:
    space = Refusing(NEVER)
    assert _discard(space) == ['something of "alice-train" is left in the cluster: it is invalid']
    assert (space.removed, space.owned) == ([], [])


class Outage:
    """A namespace whose API server is away for a while, and the revision's pods can't be asked meanwhile."""

    namespace = "team-a"

    def __init__(self, looks: int) -> None:
        self.looks = looks
        self.cache = self
        self.ended_in_sync: list[bool] = []

    @property
    def in_sync(self) -> bool:
        return self.looks <= 0

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        yield

    async def token(self, job: dict[str, Any]) -> str:
        self.looks -= 1
        return "token"

    async def endpoints(self, job: dict[str, Any], token: str) -> tuple[()]:
        return ()

    async def delete_job(self, job: dict[str, Any]) -> None:
        self.ended_in_sync.append(self.in_sync)
        if len(self.ended_in_sync) == 1:
            raise BUSY


@pytest.mark.usefixtures("hurried")
def test_the_last_revision_outlives_an_outage_in_which_its_pods_cannot_be_asked() -> None:
    """They may have calls; and it ends although it is refused once."""
    space = Outage(looks=20)

    async def retire() -> None:
        made = Rollout(cast(Any, space), plan(), cast(Any, None), "token", Notes())
        await made._retire({"metadata": {"name": "train-0"}})

    asyncio.run(retire())
    assert space.ended_in_sync == [True, True]


class Making:
    """A namespace in which it takes a while to make a Job, whatever comes of it."""

    namespace = "team-a"

    def __init__(self, outcome: Exception | None = None, takes: float = 0.2) -> None:
        self.outcome = outcome
        self.takes = takes
        self.begun = asyncio.Event()
        self.made: list[str] = []
        self.deleted: list[str] = []

    async def check_secrets(self, plan: Any) -> None:
        """All are there."""

    async def config_map(self) -> str:
        return ""

    async def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self.begun.set()
        await asyncio.sleep(self.takes)
        if self.outcome is not None:
            raise self.outcome
        self.made.append(manifest["metadata"]["name"])
        return {**manifest, "metadata": {**manifest["metadata"], "uid": "u1"}}

    async def delete_job(self, job: dict[str, Any], *, grace: int | None = None) -> None:
        self.deleted.append(job["metadata"]["name"])

    async def delete_rest(self, service: str) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("stopped", "outcome", "removed"),
    [
        (True, None, 1),
        *((stopped, error, n) for stopped in (False, True) for error, n in ((AWAY, 1), (BROKEN, 1), (NEVER, 0))),
    ],
)
def test_a_job_that_may_have_been_made_is_removed(stopped: bool, outcome: Exception | None, removed: int) -> None:
    """A deploy that is stopped before the API server has answered, or whose answer leaves it open."""

    async def deploy() -> Making:
        space = Making(outcome)
        made = Rollout(cast(Any, space), plan(), cast(Any, space), "token", Notes())
        task = asyncio.ensure_future(made.bring_up())
        await space.begun.wait()
        if stopped:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            with pytest.raises((DeployError, ConnectionFailedError)):
                await task
        return space

    space = asyncio.run(deploy())
    assert len(space.deleted) == removed
    assert set(space.made) <= set(space.deleted)


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


def test_a_teardown_leaves_what_another_deploy_has_made(deploys: Deploys) -> None:
    """Without its Secret the pod of that deploy would wait for it until ``launch_timeout``."""
    server, mine, gone = deploys.server, owner_reference(deploys.job), {"uid": "of a Job that is deleted"}
    for name, owners in (("mine", [mine]), ("left", [gone]), ("both", [gone, mine]), ("nobody's", [])):
        server.put("secrets", {"metadata": {"name": name, "ownerReferences": owners}})
    server.remove("secrets", deploys.plan.job_name)
    server.requests.clear()
    get_portal().run(deploys.space.delete_rest("train"), 10)
    assert {name for plural, _, name in server.objects if plural == "secrets"} == {"mine", "both"}
    deleted = [r.body["preconditions"] for r in server.requests if r.method == "DELETE"]
    assert all(set(each) == {"uid", "resourceVersion"} for each in deleted)


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


# -- joining what lives ------------------------------------------------------------------------------------------------


def _fields(**changes: Any) -> ServiceFields:
    found = read_service({**job(plan()), "metadata": {**job(plan())["metadata"], "uid": "u1"}})
    assert found is not None
    return replace(found, **changes)


def test_a_revision_that_is_being_made_is_joined_by_those_who_ask_for_the_same_only() -> None:
    """Not by one that wants a GPU, say, in the moment before the first one's pods are released."""
    made = {"metadata": {"creationTimestamp": api_time(time.time())}}
    fields = _fields(suspended=True)
    space = cast(Any, None)
    assert _why_another(space, fields, made, plan(spec=fields.spec)) is None
    assert "has changed" in str(_why_another(space, fields, made, plan(spec="another")))
    old = {"metadata": {"creationTimestamp": api_time(time.time() - 3600)}}
    assert "never released" in str(_why_another(space, fields, old, plan(spec=fields.spec)))


class Vanishing:
    """A backend whose service is deleted as often while its pods are waited for, by somebody else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, deletions: int, new: bool) -> None:
        self.planned = 0
        self.left = deletions
        self.new = new
        self.backend = KubernetesBackend(None, None, "team")
        monkeypatch.setattr(self.backend, "space", self._space)
        monkeypatch.setattr(self.backend, "_plan", self._plan)

    async def _space(self) -> Any:
        return SimpleNamespace(namespace="team", cluster=SimpleNamespace(context=None, server="https://x"))

    async def _plan(self, space: Any, spec: Any, progress: Any) -> Any:
        self.planned += 1
        return self

    async def bring_up(self) -> None:
        if self.left:
            self.left -= 1
            raise ServiceNotFoundError("it was deleted", reason="Deleted")

    def deploy(self) -> Any:
        return asyncio.run(self.backend.apply(cast(Any, SimpleNamespace(name="train")), Notes()))


@pytest.mark.parametrize(("deletions", "new", "planned"), [(0, False, 1), (1, False, 2), (1, True, 1), (2, False, 2)])
def test_what_was_joined_and_is_deleted_is_made_anew_once(
    deletions: int, new: bool, planned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Vanishing(monkeypatch, deletions, new)
    if deletions < planned:
        assert made.deploy() is made
    else:
        with pytest.raises(ServiceNotFoundError):
            made.deploy()
    assert made.planned == planned
