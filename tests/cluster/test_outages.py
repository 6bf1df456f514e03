"""What the cluster itself consists of stops for a while, or changes who we are (case 5)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

import kubetorch_jupyter as kt
from tests.cells import Cells
from tests.cluster.conftest import OURS, User
from tests.cluster.gateway import gateway
from tests.cluster.node import Node
from tests.faults.proxy import Proxy
from tests.promises import promise, record

#: Nobody waits longer than this, whatever happens.
PATIENCE = 90.0
pytestmark = pytest.mark.alone

SOURCE = """
import time

def ticks(n, pause=0.1):
    for i in range(n):
        print("tick", i)
        time.sleep(pause)
    return n

def other(x):
    return x + 1

class Slow:
    def __init__(self):
        open("/tmp/loading", "a").write("1")
        time.sleep(12)

    def loads(self):
        return len(open("/tmp/loading").read())
"""


def lines(n: int) -> list[str]:
    return [f"tick {i}" for i in range(n)]


@pytest.fixture(scope="module")
def cells() -> Cells:
    cells = Cells()
    cells.run(SOURCE)
    return cells


@pytest.fixture(scope="module")
def ticks(cells: Cells, user: User) -> Iterator[Any]:
    handle = kt.fn(cells["ticks"], name="steady").to(kt.Compute(), stream_logs=False)
    yield handle.options(stream_logs=False)
    handle.teardown()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def deploy(cells: Cells, name: str = "late") -> int:
    """Deploy another service, call it and end it."""
    with kt.fn(cells["other"], name=name).to(kt.Compute(), stream_logs=False) as late:
        return int(late(1))


def _has_job(user: User, name: str) -> bool:
    return bool(user.api.list("Job", f"{OURS},kubetorch.dev/service={user.name}-{name}"))


@pytest.mark.parametrize("program", ["kube-scheduler", "kubelet"])
def test_a_program_stands_still(
    program: str, ticks: Any, cells: Cells, node: Node, user: User, threads: ThreadPoolExecutor
) -> None:
    """Calls go on, and a deploy comes up when it is back."""
    call = ticks.spawn(60)
    with node.stopped(program) if program == "kube-scheduler" else node.frozen(program):
        under_way = threads.submit(deploy, cells)
        user.api.wait("a deploy is under way", lambda: _has_job(user, "late"), 10)
        assert ticks(2) == 2
        time.sleep(2)
        assert not under_way.done()
    back = time.monotonic()
    assert under_way.result(PATIENCE) == 2
    promise(f"a deploy that waited for the {program}, after its start", time.monotonic() - back, 10.0)
    assert call.result(timeout=PATIENCE) == 60
    assert call.logs().split("\n")[:-1] == lines(60)


def test_the_api_server_is_away_for_20_s(
    ticks: Any, cells: Cells, node: Node, user: User, threads: ThreadPoolExecutor
) -> None:
    call = ticks.spawn(250)
    user.api.wait("the call runs", lambda: "tick 1" in call.logs(), 10)
    compute = kt.Compute()
    under_way = threads.submit(lambda: kt.cls(cells["Slow"], name="slow").to(compute, stream_logs=False))
    user.api.wait("a deploy loads its code", lambda: "loading" in _said(user, "slow"), 30)
    with node.stopped("kube-apiserver", kill=True):
        away = time.monotonic()
        time.sleep(2)
        waiting = threads.submit(ticks, 3)
        # What can't be done without it says so, and nobody waits.
        for ask in (lambda: deploy(cells, "never"), kt.services, lambda: kt.Fn.from_name("steady")):
            start = time.monotonic()
            with pytest.raises(kt.ConnectionFailedError) as caught:
                ask()
            assert time.monotonic() - start < 10
            assert "API server" in str(caught.value)
        assert not call.done()
        assert not waiting.done()
        time.sleep(max(20 - (time.monotonic() - away), 0))
    back = time.monotonic()
    assert waiting.result(PATIENCE) == 3
    promise("a call that waited for the API server, after its start", time.monotonic() - back, 4.0)
    slow = under_way.result(PATIENCE)
    promise("a deploy that was under way, after the API server's start", time.monotonic() - back, 5.0)
    node.wake()
    with slow:
        assert slow.loads(stream_logs=False) == 1
    assert call.result(timeout=PATIENCE) == 250
    assert call.logs().split("\n")[:-1] == lines(250)
    assert deploy(cells) == 2
    assert not [info for info in kt.services() if "never" in info.name]


def _said(user: User, name: str) -> str:
    """What a service's worker has written."""
    selector = f"{OURS},kubetorch.dev/service={user.name}-{name}"
    pods = [pod for pod in user.api.list("Pod", selector) if pod["status"]["phase"] == "Running"]
    return user.api.execute(pods[0]["metadata"]["name"], "worker", ["sh", "-c", "ls /tmp"]) if pods else ""


def test_a_node_is_lost_and_comes_back(ticks: Any, cells: Cells, node: Node, user: User) -> None:
    """Its kubelet says nothing for so long that the cluster gives it up; its pod can still be reached."""

    admin = node.admin()

    def ready() -> bool:
        [found] = admin.request("GET", "/api/v1/nodes")["items"]
        return any(c["type"] == "Ready" and c["status"] == "True" for c in found["status"]["conditions"])

    call = ticks.spawn(900)
    with node.frozen("kubelet"):
        user.api.wait("the node is lost", lambda: not ready(), 80, 1.0)
        assert ticks(2) == 2
        start = time.monotonic()
        with pytest.raises(kt.DeployError) as caught:
            kt.fn(cells["other"], name="late").to(kt.Compute(launch_timeout=4), stream_logs=False)
        assert time.monotonic() - start < 30
        record(f"a deploy without a node that is ready: {caught.value}")
        assert "node" in str(caught.value)
    user.api.wait("the node is back", ready, 60, 1.0)
    assert call.result(timeout=PATIENCE * 2) == 900
    assert call.logs().split("\n")[:-1] == lines(900)
    assert deploy(cells) == 2


# -- credentials -------------------------------------------------------------------------------------------------------


class Tokens:
    """Tokens of one service account, each of which can be taken back by itself."""

    def __init__(self, user: User) -> None:
        self._user = user
        self._made: list[str] = []

    def make(self) -> str:
        secret = self._user.api.create("Secret", {"metadata": {"generateName": "bound-"}})["metadata"]["name"]
        self._made.append(secret)
        path = f"/api/v1/namespaces/{self._user.namespace}/serviceaccounts/{self._user.account}/token"
        bound = {"kind": "Secret", "apiVersion": "v1", "name": secret}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"boundObjectRef": bound}}
        return str(self._user.api.request("POST", path, body)["status"]["token"])

    def take_back(self, index: int) -> None:
        self._user.api.delete("Secret", self._made[index])

    def close(self) -> None:
        for name in self._made:
            self._user.api.delete("Secret", name)


@pytest.fixture
def tokens(user: User) -> Iterator[Tokens]:
    if user.account is None:
        pytest.skip("no service account whose tokens could be changed: KT_TEST_SERVICE_ACCOUNT names one")
    tokens = Tokens(user)
    yield tokens
    tokens.close()


def cut(proxy: Proxy) -> None:
    proxy.down()
    proxy.up()


def call_until_refused(ticks: Any, proxy: Proxy) -> None:
    """The API server remembers for some seconds that a token was good."""
    for _ in range(20):
        cut(proxy)
        ticks(1)
        time.sleep(1.0)


def test_the_token_is_replaced(
    cells: Cells, user: User, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a service account's file or a login is; during a call and while idle, with the connection cut as well."""
    file = tmp_path / "token"
    file.write_text(tokens.make())
    with gateway(user.kubeconfig, tmp_path) as (proxy, kubeconfig):
        loaded = yaml.safe_load(kubeconfig.read_text())
        for each in loaded["users"]:
            each["user"] = {"tokenFile": str(file)}
        kubeconfig.write_text(yaml.safe_dump(loaded))
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        compute = kt.Compute(kubeconfig_path=str(kubeconfig))
        with kt.fn(cells["ticks"], name="renewed").to(compute, stream_logs=False) as handle:
            ticks = handle.options(stream_logs=False)
            call = ticks.spawn(60)
            user.api.wait("the call runs", lambda: "tick 1" in call.logs(), 10)
            file.write_text(tokens.make())
            tokens.take_back(0)
            cut(proxy)
            assert ticks(2) == 2
            assert call.result(timeout=PATIENCE) == 60
            assert call.logs().split("\n")[:-1] == lines(60)

            # Now nobody gives us another one.
            tokens.take_back(1)
            start = time.monotonic()
            with pytest.raises((kt.KubernetesCredentialsError, kt.AuthenticationError)) as caught:
                call_until_refused(ticks, proxy)
            record(f"a token that was taken back is missed after {time.monotonic() - start:.1f} s")
            assert "credentials" in str(caught.value) or "log in" in str(caught.value).lower()
            file.write_text(tokens.make())
            assert ticks(2) == 2
