"""Handles inside pods of a cluster: no rights, no client library, only DNS and the token that the handle brings."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import kubetorch_jupyter as kt
from kubetorch_jupyter import backends
from kubetorch_jupyter.backends import inside, installed, local, registry
from kubetorch_jupyter.backends.inside import InsideBackend
from kubetorch_jupyter.transport.portal import get_portal
from tests.cells import Cells
from tests.local import ROOT
from tests.ports import free_port
from tests.replicas import Several
from tests.test_replicas import CODE

TOKEN = "5e" * 32
NAMESPACE = "team-a"


class Names:
    """The cluster's DNS."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.absent = 0
        self.down = False

    async def look_up(self, host: str) -> list[str]:
        self.asked.append(host)
        if self.down:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if self.absent:
            self.absent -= 1
            return []
        return self.addresses.get(host, [])


class InNamespace(Several):
    """Pods that listen where those of a cluster do, each at an address of its own, and have one token."""

    namespace = NAMESPACE

    def __init__(self) -> None:
        super().__init__()
        # Not that of a cluster's pods: other tests on this machine may run beside these.
        self.port = free_port(*(f"127.0.0.{2 + rank}" for rank in range(4)))

    def _front_params(self, record: registry.Record, spec: Any) -> dict[str, Any]:
        rank = int(spec.name.rpartition("-g")[0].rpartition("-r")[2])
        return {**super()._front_params(record, spec), "host": f"127.0.0.{2 + rank}", "port": self.port}


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> Iterator[InNamespace]:
    monkeypatch.setattr(registry.Record, "token", lambda self: TOKEN)
    backend = InNamespace()
    monkeypatch.setattr(inside, "POD_PORT", backend.port)
    with backend.install():
        yield backend


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Names:
    """This process is in a pod without a service account."""
    names = Names()
    monkeypatch.setattr(inside, "look_up", names.look_up)
    monkeypatch.setattr(inside, "_backends", {})
    monkeypatch.setattr(backends, "_SERVICE_ACCOUNT", str(tmp_path / "none"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    return names


@pytest.fixture
def cells() -> Cells:
    cells = Cells()
    cells.run(CODE)
    return cells


def deploy(function: Any, replicas: int = 2, **options: Any) -> Any:
    make = kt.cls if isinstance(function, type) else kt.fn
    return make(function, **options).to(kt.Compute(replicas=replicas), stream_logs=False)


def until_spread(handle: Any, pods: int) -> None:
    """Call until so many pods have answered: the first that is connected to gets the first calls."""
    deadline = time.monotonic() + 20
    while len({handle(0) for _ in range(2 * pods)}) < pods:
        assert time.monotonic() < deadline


def test_a_handle_finds_its_pods_by_name(several: InNamespace, dns: Names, cells: Cells) -> None:
    with deploy(cells["wait"]) as wait:
        dns.addresses["wait.team-a.svc"] = ["127.0.0.2", "127.0.0.3"]
        data = pickle.dumps(wait)
        assert TOKEN.encode() in data  # there is nobody in a pod who could be asked for it
        assert TOKEN not in repr(wait) + repr(wait.service) + wait.service._repr_html_()
        other = pickle.loads(data)
        assert isinstance(other.service.backend, InsideBackend)
        assert other.service.backend.namespace == NAMESPACE
        assert TOKEN not in repr(other) + repr(other.service) + repr(vars(other.service.backend))
        until_spread(other, 2)
        assert set(dns.asked) == {"wait.team-a.svc"}
        assert {row["replica"] for row in other.service.calls()} == {0, 1}
        call = other.spawn(0.2)
        assert call.result(timeout=5) in {row["worker"] for row in wait.service.status()["replicas"]}
        # It goes on from there.
        assert pickle.loads(pickle.dumps(other))(0) > 0
        again = pickle.loads(pickle.dumps(other))
        assert again.service.backend is other.service.backend


def test_the_first_calls_are_spread_too(
    several: InNamespace, dns: Names, cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kubetorch_jupyter.transport.replicas._TOGETHER", 5.0)
    with deploy(cells["wait"]) as wait:
        dns.addresses["wait.team-a.svc"] = ["127.0.0.2", "127.0.0.3"]
        other = pickle.loads(pickle.dumps(wait))
        get_portal().run(wait.service._replicas.close())

        async def all_at_once() -> list[int]:
            return await asyncio.gather(*(other.aio(0.3) for _ in range(30)))

        counts = Counter(asyncio.run(all_at_once()))
        assert max(counts.values()) <= 16, counts


def test_a_name_that_is_absent_at_first_is_asked_for_again(several: InNamespace, dns: Names, cells: Cells) -> None:
    with deploy(cells["wait"], 1) as wait:
        other = pickle.loads(pickle.dumps(wait))
        dns.addresses["wait.team-a.svc"] = ["127.0.0.2"]
        dns.absent = 3
        begun = time.monotonic()
        assert other(0) > 0
        assert 1.0 < time.monotonic() - begun < 5


def test_no_such_name_and_no_dns(
    several: InNamespace, dns: Names, cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inside, "_PATIENCE", 0.3)
    with deploy(cells["wait"], 1) as wait:
        other = pickle.loads(pickle.dumps(wait))
        with pytest.raises(kt.ServiceNotFoundError, match='no service "wait" in namespace team-a, as far as .* DNS'):
            other(0)
        dns.down = True
        with pytest.raises(kt.ConnectionFailedError, match=r"DNS doesn't answer for wait\.team-a\.svc .*Temporary"):
            other(0)
        dns.down = False
        dns.addresses["wait.team-a.svc"] = ["127.0.0.2"]
        assert other(0) > 0


def test_a_lost_pod_and_the_one_in_its_place(several: InNamespace, dns: Names, cells: Cells) -> None:
    with deploy(cells["wait"]) as wait:
        dns.addresses["wait.team-a.svc"] = ["127.0.0.2", "127.0.0.3"]
        other = pickle.loads(pickle.dumps(wait))
        # Sessions are the process's; these are to be those of the other handle.
        get_portal().run(wait.service._replicas.close())
        until_spread(other, 2)
        calls = [other.spawn(20) for _ in range(2)]
        _ = [call.id for call in calls]
        [dead] = [row for row in other.service.calls() if row["id"] == calls[0].id]
        rank = dead["replica"]
        record = several.pods("wait")[rank]
        assert record.front is not None
        dns.addresses["wait.team-a.svc"] = [f"127.0.0.{3 - rank}"]
        os.kill(record.front[0], signal.SIGKILL)
        lost = 0
        for _ in range(20):
            try:
                other(0)
            except kt.PodLostError:
                lost += 1
        assert lost <= 1  # it was given to the pod in the moment of its death
        with pytest.raises(kt.PodLostError, match="DNS doesn't name 127.0.0"):
            calls[0].result(timeout=10)
        assert calls[1].cancel()
        while rank in several.pods("wait"):
            time.sleep(0.02)
        several.replace_pod("wait", rank)
        wait(0)
        # Its new pod has no code in this test, and gets some before DNS names it.
        deploy(cells["wait"])
        dns.addresses["wait.team-a.svc"] = ["127.0.0.2", "127.0.0.3"]
        until_spread(other, 2)


def test_nobody_answers(several: InNamespace, dns: Names, cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubetorch_jupyter.transport.link._OPEN_TIMEOUT", 0.5)
    with deploy(cells["wait"], 1) as wait:
        dns.addresses["wait.team-a.svc"] = ["127.0.0.77"]
        other = pickle.loads(pickle.dumps(wait))
        with pytest.raises(kt.ConnectionFailedError, match="NetworkPolicy may keep .* at port 32300"):
            other(0)
        dns.addresses["wait.team-a.svc"] = ["127.0.0.2"]


def test_what_needs_rights_says_so(several: InNamespace, dns: Names, cells: Cells) -> None:
    with deploy(cells["wait"], 1) as wait:
        dns.addresses["wait.team-a.svc"] = ["127.0.0.2"]
        other = pickle.loads(pickle.dumps(wait))
        assert other(0) > 0
        with pytest.raises(kt.DeployError, match="can't be ended from inside a pod .*service_account_name"):
            other.teardown()
        backend = wait.service.backend
        found = other.service.backend
        assert [info.name for info in get_portal().run(found.list())] == ["wait"]
        assert backend is several
        assert wait(0) > 0


def test_a_service_calls_a_service(several: InNamespace, dns: Names, cells: Cells) -> None:
    """In a worker, which knows nothing of this process."""
    with deploy(cells["wait"]) as wait:
        cells.run(
            """
            def outer(root, data, port):
                import pickle, sys
                sys.path.insert(0, root)  # the package that is tested, whichever is installed
                from kubetorch_jupyter.backends import inside

                async def look_up(host):
                    assert host == "wait.team-a.svc", host
                    return ["127.0.0.2", "127.0.0.3"]

                inside.look_up, inside.POD_PORT = look_up, port
                handle = pickle.loads(data)
                found = {handle(0.0) for _ in range(20)}
                return type(handle.service.backend).__name__, sorted(found | {handle(0.0) for _ in range(4)})
            """
        )
        compute = kt.Compute(env_vars={"KUBERNETES_SERVICE_HOST": "10.96.0.1"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(local, "front_params", Several._front_params.__get__(several))  # at a port of its own
            caller = kt.fn(cells["outer"], name="caller").to(compute, stream_logs=False)
        with caller:
            pids = sorted(row["worker"] for row in wait.service.status()["replicas"])
            assert caller(str(ROOT), pickle.dumps(wait), several.port) == ("InsideBackend", pids)


def test_with_rights_the_kubernetes_backend_is_used(
    several: InNamespace, dns: Names, cells: Cells, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = tmp_path / "token"
    account.write_text("x")
    monkeypatch.setattr(backends, "_SERVICE_ACCOUNT", str(account))
    with deploy(cells["wait"], 1) as wait:
        found = pickle.loads(pickle.dumps(wait)).service.backend
        assert type(found).__name__ == "KubernetesBackend"
        # In an image without it, calls work all the same.
        monkeypatch.setattr(backends, "is_whole", lambda: False)
        assert isinstance(pickle.loads(pickle.dumps(wait)).service.backend, InsideBackend)
        monkeypatch.setattr(installed, "find_spec", lambda name: None)
        with pytest.raises(kt.ConfigError, match="kubetorch-jupyter in this pod's image"):
            backends.get_backend(kt.Compute())


def test_local_handles_bring_no_token(cells: Cells) -> None:
    with kt.fn(cells["wait"]).to(kt.Compute(), stream_logs=False) as wait:
        token = wait.service.endpoint.token
        assert token.encode() not in pickle.dumps(wait)


def test_names_of_the_cluster_are_looked_up() -> None:
    async def look_up(host: str) -> list[str]:
        return await inside.look_up(host)

    assert "127.0.0.1" in asyncio.run(look_up("localhost"))
    assert asyncio.run(look_up("no-such-name.invalid")) == []
    backend = InsideBackend(None)
    backend.tell("3d-model", "t")
    assert [known.host for known in backend._names.values()] == ["s-3d-model"]
