"""Waiting for a revision's pods: that can't be reached, whose Job goes, whose log can't be had."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kubetorch_jupyter.backends.kubernetes import waiting
from kubetorch_jupyter.backends.kubernetes.waiting import Waiting
from kubetorch_jupyter.compute import Compute
from kubetorch_jupyter.errors import (
    ConnectionFailedError,
    KubernetesCredentialsError,
    PodContainerError,
    ServiceNotFoundError,
    ServiceTimeoutError,
)
from tests.kubernetes.plans import plan
from tests.kubernetes.recordings import recorded

TIMEOUT = "no answer within 5 s"


class Namespace:
    """A namespace whose one pod runs, as a real cluster has told it; asked for a pod, it answers itself."""

    in_sync = True
    asked: Any = None

    def __init__(self, *, in_cluster: bool, seen: str = "running") -> None:
        self.seen = recorded(seen)
        self.cluster = SimpleNamespace(in_cluster=in_cluster)
        self.cache = self

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        yield

    def version(self, service: str) -> int:
        return 0

    def events(self, service: str) -> list[Any]:
        return list(self.seen["events"])

    async def changed(self, service: str, *, since: int, timeout: float) -> None:
        await asyncio.sleep(0.01)

    def job(self, service: str, revision: str) -> Any:
        return self.seen["job"]

    def pods(self, service: str, revision: str) -> list[Any]:
        return list(self.seen["pods"])

    def may_answer(self, pod: Any) -> bool:
        return True

    async def log(self, wanted: Any) -> str:
        self.asked = wanted
        raise KubernetesCredentialsError("may not read logs", reason="Forbidden")

    async def endpoint(self, service: str, pod: Any, token: str, note: Any) -> str:
        return "endpoint"


class Told:
    def __init__(self) -> None:
        self.details: list[str] = []

    def __call__(self, phase: Any, detail: str = "") -> None:
        self.details.append(detail)

    def note(self, text: str) -> None:
        pass


def _wait(space: Namespace, told: Told, seconds: float, joined: bool = False) -> Any:
    async def wait() -> Any:
        it = Waiting(cast(Any, space), plan(Compute()), "token", told, quota_held=False, joined=joined)
        try:
            async with asyncio.timeout(seconds):
                return await it.run(None)
        except TimeoutError:
            raise it.expired(seconds) from None

    return asyncio.run(wait())


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_LONG", 0.1)


@pytest.mark.parametrize(("in_cluster", "who"), [(False, "the API server"), (True, "this pod")])
@pytest.mark.parametrize("raised", [False, True])
def test_a_pod_that_runs_and_cannot_be_reached(
    in_cluster: bool, who: str, raised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def probe(endpoint: Any) -> str:
        if raised:
            raise ConnectionFailedError(TIMEOUT)
        return TIMEOUT

    monkeypatch.setattr(waiting, "probe", probe)
    told = Told()
    with pytest.raises(ServiceTimeoutError) as caught:
        _wait(Namespace(in_cluster=in_cluster), told, 1.5)
    assert caught.value.reason == "Unreachable"
    message = str(caught.value)
    assert f"runs, and can't be reached: {TIMEOUT}. launch_timeout is 1.5 s" in message
    assert f"'kubectl get networkpolicy -n team-a', and that no firewall keeps {who} from port 32300" in message
    assert told.details[0] == "", "a front takes a moment to start"
    assert told.details[-1] == f"its pod runs, and can't be reached: {TIMEOUT}"


def test_one_that_answers_in_time_is_not_talked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["connection refused", "connection refused", None])

    async def probe(endpoint: Any) -> str | None:
        return next(answers)

    monkeypatch.setattr(waiting, "probe", probe)
    monkeypatch.setattr(waiting, "_LONG", 30.0)
    told = Told()
    assert _wait(Namespace(in_cluster=False), told, 20.0) == ("endpoint",)
    assert set(told.details) == {""}


@pytest.mark.parametrize("joined", [False, True])
def test_a_job_that_is_deleted_meanwhile(joined: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the background, as everybody does it: nothing of it is to be seen but that it isn't there any more."""

    async def probe(endpoint: Any) -> str:
        return "connection refused"

    monkeypatch.setattr(waiting, "probe", probe)
    space = Namespace(in_cluster=False)
    job = space.seen["job"]
    looks = 0

    def look(service: str, revision: str) -> Any:
        nonlocal looks
        looks += 1
        return job if not joined and 3 < looks < 20 else None  # before that the watch hasn't told of it

    if joined:
        space.seen["pods"] = []
    monkeypatch.setattr(space, "job", look)
    with pytest.raises(ServiceNotFoundError, match="was deleted while it was being deployed") as caught:
        _wait(space, Told(), 20.0, joined)
    assert caught.value.reason == "Deleted"
    assert joined or looks >= 20


def test_a_job_that_the_watch_cannot_tell_of(monkeypatch: pytest.MonkeyPatch) -> None:
    space = Namespace(in_cluster=False)
    space.seen["pods"], space.in_sync = [], False
    monkeypatch.setattr(space, "job", lambda service, revision: None)
    with pytest.raises(ServiceTimeoutError):
        _wait(space, Told(), 0.3, joined=True)


def test_a_crash_is_told_although_its_log_cannot_be_read() -> None:
    space = Namespace(in_cluster=False, seen="crash-signal")
    with pytest.raises(PodContainerError, match="exit code") as caught:
        _wait(space, Told(), 20.0)
    assert space.asked is not None
    assert "may not read logs" not in str(caught.value)
