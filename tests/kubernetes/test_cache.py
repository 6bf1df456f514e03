"""backends/kubernetes/cache.py: what is known of a namespace, through everything that can happen to a watch."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from kubetorch_jupyter.backends.kubernetes import cache as module
from kubetorch_jupyter.backends.kubernetes import mirror
from kubetorch_jupyter.backends.kubernetes.cache import NamespaceCache
from kubetorch_jupyter.errors import ConnectionFailedError, KubernetesCredentialsError
from kubetorch_jupyter.transport.portal import get_portal
from tests.kubernetes import apiserver
from tests.kubernetes.apiserver import ApiServer, forbidden, opened
from tests.waiting import until

T = TypeVar("T")


def run(coro: Coroutine[Any, Any, T]) -> T:
    return get_portal().run(coro, 20)


def here(function: Callable[[], T]) -> T:
    """Run something on the portal."""

    async def call() -> T:
        return function()

    return run(call())


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture
def cache(server: ApiServer, tmp_path: Path) -> Iterator[NamespaceCache]:
    with opened(apiserver.kubeconfig(tmp_path / "config", server.url)) as cluster:
        cache = here(lambda: NamespaceCache(cluster, "team"))
        yield cache
        run(cache.close())


def thing(name: str, service: str = "train", **more: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"kubetorch.dev/service": service}}, **more}


def event(
    name: str, kind: str, about: str, reason: str = "Scheduled", at: str = "2026-01-01T00:00:00Z"
) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "involvedObject": {"kind": kind, "name": about},
        "reason": reason,
        "lastTimestamp": at,
    }


def names(objects: list[dict[str, Any]]) -> list[str]:
    return [obj["metadata"]["name"] for obj in objects]


def _until(condition: Callable[[], object], timeout: float = 5) -> None:
    until(lambda: here(condition), timeout)


def test_what_is_there_and_what_comes(server: ApiServer, cache: NamespaceCache) -> None:
    server.put("jobs", thing("train-1"))
    server.put("pods", thing("train-1-0"))
    server.put("pods", thing("other-1-0", "other"))
    run(cache.synced())
    assert cache.in_sync
    assert names(here(lambda: cache.pods("train"))) == ["train-1-0"]
    assert names(here(lambda: cache.jobs("train"))) == ["train-1"]
    assert here(cache.services) == ["train"]
    assert {r.query["labelSelector"] for r in server.requests if r.query.get("labelSelector")} == {
        "app.kubernetes.io/managed-by=kubetorch-jupyter"
    }
    waiting = get_portal().submit(cache.changed("train"))
    other = get_portal().submit(cache.changed("other", timeout=0.3))
    time.sleep(0.05)
    began = time.monotonic()
    server.put("pods", thing("train-1-1"))
    assert waiting.result(5) is True
    assert time.monotonic() - began < 3
    assert names(here(lambda: cache.pods("train"))) == ["train-1-0", "train-1-1"]
    assert other.result(5) is False


def test_a_change_between_two_looks_is_not_missed(server: ApiServer, cache: NamespaceCache) -> None:
    run(cache.synced())
    before = here(lambda: cache.version("train"))
    server.put("pods", thing("train-1-0"))
    _until(lambda: cache.pods("train"))
    assert run(cache.changed("train", before, timeout=5)) is True
    assert run(cache.changed("train", here(lambda: cache.version("train")), timeout=0.05)) is False


def test_events_of_a_service(server: ApiServer, cache: NamespaceCache) -> None:
    volumes = {"volumes": [{"persistentVolumeClaim": {"claimName": "data"}}, {"emptyDir": {}}]}
    server.put("events", event("early", "Pod", "train-1-0", "FailedScheduling", "2026-01-01T00:00:01Z"))
    run(cache.synced())
    server.put("jobs", thing("train-1"))
    server.put("pods", thing("train-1-0", spec=volumes))
    server.put("events", event("e2", "Job", "train-1", "FailedCreate", "2026-01-01T00:00:00Z"))
    server.put("events", event("e3", "PersistentVolumeClaim", "data", "ProvisioningFailed", "2026-01-01T00:00:02Z"))
    server.put("events", event("e4", "Node", "node", "NodeNotReady"))
    server.put("events", event("e5", "Pod", "somebody-s"))
    before = here(lambda: cache.version("train"))
    server.put("events", event("e6", "Pod", "train-1-0", "BackOff", "2026-01-01T00:00:03Z"))
    assert run(cache.changed("train", before, timeout=5))
    _until(lambda: len(cache.events("train")) == 4)
    assert names(here(lambda: cache.events("train"))) == ["e2", "early", "e3", "e6"]
    server.remove("pods", "train-1-0")
    _until(lambda: not cache.pods("train"))
    assert "e6" in names(here(lambda: cache.events("train")))  # why it has gone may be told later
    server.remove("events", "e6")
    _until(lambda: "e6" not in names(cache.events("train")))


def test_events_of_strangers_are_forgotten(
    server: ApiServer, cache: NamespaceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "_STRAYS", 3)
    server.put("pods", thing("train-1-0"))
    run(cache.synced())
    server.put("events", event("ours", "Pod", "train-1-0"))
    for i in range(10):
        server.put("events", event(f"e{i}", "Pod", f"p{i}"))
    _until(lambda: "e9" in cache._events.objects)
    assert here(lambda: sorted(cache._events.objects)) == ["e7", "e8", "e9", "ours"]


def test_gone(server: ApiServer, cache: NamespaceCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_UNSEEN", 0.2)
    assert here(lambda: cache.gone("train-1-0")) is None  # not in sync: nothing is certain
    server.put("pods", thing("train-1-0", status={"phase": "Running"}))
    run(cache.synced())
    assert here(lambda: cache.gone("train-1-0")) is None

    def soon(**changes: Any) -> str:
        version = server.put("pods", thing("train-1-0", **changes))["metadata"]["resourceVersion"]
        _until(lambda: cache._pods.objects["train-1-0"]["metadata"]["resourceVersion"] == version)
        return str(here(lambda: cache.gone("train-1-0")))

    evicted = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory"}
    assert soon(status=evicted) == "the pod train-1-0 has ended: Evicted (The node was low on resource: memory)"
    assert soon(status={"phase": "Succeeded"}) == "the pod train-1-0 has ended by itself"
    ended = [{"name": "worker", "state": {"terminated": {"reason": "OOMKilled", "exitCode": 0}}}]
    oom = soon(status={"phase": "Failed", "containerStatuses": ended})
    assert oom == "the container worker of pod train-1-0 has ended: OOMKilled, exit code 0"
    # Being deleted is not yet the end.
    dying = thing("train-1-0", status={"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]})
    dying["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    server.put("pods", dying)
    _until(lambda: cache.gone("train-1-0") is None)
    server.remove("pods", "train-1-0")
    _until(lambda: cache.gone("train-1-0"))
    assert here(lambda: cache.gone("train-1-0")) == "the pod train-1-0 was deleted"
    assert here(lambda: cache.pod("train-1-0"))["status"]["phase"] == "Running"
    assert here(lambda: cache.gone("never-seen")) is None
    time.sleep(0.25)
    assert here(lambda: cache.gone("never-seen")) == "Kubernetes has no pod never-seen any more"


def test_gone_in_the_words_of_whoever_knows_more(server: ApiServer, cache: NamespaceCache) -> None:
    told: list[Any] = []

    def describe(pod: Any, events: Any) -> str:
        told.append((pod["metadata"]["name"], names(list(events))))
        return "its node is drained"

    cache._describe = describe
    server.put("pods", thing("train-1-0"))
    server.put("events", event("e", "Pod", "train-1-0"))
    run(cache.synced())
    server.remove("pods", "train-1-0")
    _until(lambda: cache.gone("train-1-0"))
    assert here(lambda: cache.gone("train-1-0")) == "its node is drained"
    assert told[-1] == ("train-1-0", ["e"])


# -- what happens to watches -------------------------------------------------------------------------------------------


def _watching(server: ApiServer) -> None:
    deadline = time.monotonic() + 10
    while server.watches != 3:
        assert time.monotonic() < deadline, f"{server.watches} watches"
        time.sleep(0.005)


def test_a_watch_that_is_cut_goes_on_from_where_it_was(server: ApiServer, cache: NamespaceCache) -> None:
    run(cache.synced())
    _watching(server)
    before = len([r for r in server.requests if not r.query.get("watch")])
    server.cut(half='{"type": "ADDED", "obj')
    server.put("pods", thing("train-1-0"))
    _until(lambda: names(cache.pods("train")) == ["train-1-0"])
    _until(lambda: cache.in_sync)
    assert len([r for r in server.requests if not r.query.get("watch")]) == before  # nothing was listed again


def test_after_the_server_has_forgotten_it_lists_again(server: ApiServer, cache: NamespaceCache) -> None:
    server.put("pods", thing("train-1-0"))
    server.put("pods", thing("train-1-1"))
    run(cache.synced())
    _watching(server)
    server.stop()
    _until(lambda: not cache.in_sync)
    assert names(here(lambda: cache.pods("train"))) == ["train-1-0", "train-1-1"]  # the last known
    server.objects.pop(("pods", "team", "train-1-0"))
    server._version += 10
    server.objects["pods", "team", "train-1-1"]["metadata"]["resourceVersion"] = str(server._version)
    server.forget()
    waiting = get_portal().submit(cache.changed("train", timeout=15))
    time.sleep(0.5)
    server.start()
    assert waiting.result(15) is True
    _until(lambda: cache.in_sync and names(cache.pods("train")) == ["train-1-1"], 10)
    assert here(lambda: cache.gone("train-1-0")) == "the pod train-1-0 was deleted"


def test_a_server_that_is_away_costs_little_and_is_found_again(server: ApiServer, cache: NamespaceCache) -> None:
    run(cache.synced())
    _watching(server)
    server.stop()
    _until(lambda: not cache.in_sync)
    assert isinstance(cache.error, ConnectionFailedError)
    time.sleep(3)
    server.start()
    began = time.monotonic()
    _until(lambda: cache.in_sync, 6)
    assert time.monotonic() - began < 4
    assert cache.error is None


def test_what_is_asked_for_now_is_not_answered_from_before(server: ApiServer, cache: NamespaceCache) -> None:
    run(cache.synced())
    _watching(server)
    run(cache.synced(now=True))
    server.stop()
    _until(lambda: not cache.in_sync)
    run(cache.synced())
    with pytest.raises(ConnectionFailedError):
        run(cache.synced(now=True))
    server.start()
    _until(lambda: cache.in_sync, 10)
    run(cache.synced(now=True))


def test_no_server_at_first(server: ApiServer, cache: NamespaceCache) -> None:
    server.stop()
    with pytest.raises(ConnectionFailedError, match="can't be reached"):
        run(cache.synced())
    server.start()
    _until(lambda: cache.in_sync)
    run(cache.synced())


def test_who_is_refused_is_told(server: ApiServer, cache: NamespaceCache) -> None:
    server.rule = lambda request: forbidden("list", "pods") if request.path.endswith("/pods") else None
    with pytest.raises(KubernetesCredentialsError, match='may not list pods in namespace "team"'):
        run(cache.synced())
    with pytest.raises(KubernetesCredentialsError):
        run(cache.changed("train", timeout=5))
    assert not cache.in_sync
    server.rule = None
    began = time.monotonic()
    run(cache.synced())  # asked again, it asks again
    assert time.monotonic() - began < 1


def test_events_may_be_forbidden(server: ApiServer, cache: NamespaceCache) -> None:
    server.rule = lambda request: forbidden("list", "events") if request.path.endswith("/events") else None
    server.put("pods", thing("train-1-0"))
    run(cache.synced())
    assert cache.in_sync
    assert names(here(lambda: cache.pods("train"))) == ["train-1-0"]
    assert here(lambda: cache.events("train")) == []


def test_watches_end_when_nobody_asks_and_begin_anew(
    server: ApiServer, cache: NamespaceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_IDLE", 0.3)
    server.put("pods", thing("train-1-0"))
    run(cache.synced())
    waiting = get_portal().submit(cache.changed("train", timeout=1))
    time.sleep(0.7)
    assert server.watches == 3  # somebody waits
    assert waiting.result(5) is False
    deadline = time.monotonic() + 5
    while server.watches:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not cache.in_sync
    server.remove("pods", "train-1-0")
    run(cache.synced())
    assert here(lambda: cache.pods("train")) == []


def test_after_its_end_nobody_waits(server: ApiServer, cache: NamespaceCache) -> None:
    run(cache.synced())
    waiting = get_portal().submit(cache.changed("train"))
    time.sleep(0.05)
    run(cache.close())
    assert waiting.result(5) is True
    with pytest.raises(ConnectionFailedError):
        run(cache.changed("train", timeout=1))
