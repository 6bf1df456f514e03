"""backends/kubernetes/access.py and portforward.py: sessions and transfers through an API server, this way or that."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from kubetorch_jupyter.backends.kubernetes import access
from kubetorch_jupyter.backends.kubernetes.access import endpoint, probe
from kubetorch_jupyter.backends.kubernetes.client import Cluster, Kind
from kubetorch_jupyter.backends.kubernetes.space import Space
from kubetorch_jupyter.calls import invoke
from kubetorch_jupyter.errors import (
    AuthenticationError,
    ConnectionFailedError,
    KubernetesCredentialsError,
    PodLostError,
)
from kubetorch_jupyter.transport import link
from kubetorch_jupyter.transport.endpoint import Endpoint
from kubetorch_jupyter.transport.portal import get_portal
from pod_server.wire import FrameType
from tests.kubernetes import apiserver
from tests.kubernetes.apiserver import ApiServer, Certificates, forbidden, opened, status
from tests.kubernetes.strictly import run_strictly
from tests.scripted import PLAIN, ScriptedCall, ScriptedPod, ScriptedTarget
from tests.waiting import until

T = TypeVar("T")
POD = {"metadata": {"name": "train-1-0", "uid": "u1"}}


def run(coro: Coroutine[Any, Any, T]) -> T:
    return get_portal().run(coro, 20)


class ProxiedPod(ScriptedPod):
    """A scripted pod that is reached as a test says."""

    way: Endpoint | None = None

    @property
    def endpoint(self) -> Endpoint:
        return self.way or super().endpoint

    async def _put(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/health":
            await self._answer(send, 405)
        else:
            await super()._put(scope, receive, send)


@pytest.fixture
def pod() -> Iterator[ProxiedPod]:
    with ProxiedPod() as pod:
        pod.handlers["echo"] = _echo
        yield pod


async def _echo(call: ScriptedCall) -> None:
    call.result(call.args[0])


@pytest.fixture
def server(pod: ProxiedPod) -> Iterator[ApiServer]:
    with ApiServer(backend=("127.0.0.1", pod.port)) as server:
        yield server


@pytest.fixture
def cluster(server: ApiServer, tmp_path: Path) -> Iterator[Cluster]:
    with opened(apiserver.kubeconfig(tmp_path / "config", server.url)) as cluster:
        yield cluster


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_OPEN_TIMEOUT", 1.0)


def reach(cluster: Cluster, pod: ProxiedPod, **more: Any) -> Endpoint:
    pod.way = run(endpoint(cluster, "team", "echo", POD, pod.token, **more))
    return pod.way


def echo(pod: ProxiedPod, value: T) -> T:
    came: T = invoke(ScriptedTarget(pod), "echo", (value,), {}, PLAIN)
    return came


# -- the proxy ---------------------------------------------------------------------------------------------------------


def test_a_session_and_its_transfers_go_through_the_proxy(server: ApiServer, cluster: Cluster, pod: ProxiedPod) -> None:
    way = reach(cluster, pod)
    assert way.url == f"{server.url}/api/v1/namespaces/team/pods/train-1-0:32300/proxy"
    assert echo(pod, [1, "two"]) == [1, "two"]
    data = os.urandom(3 << 20)
    assert echo(pod, data) == data
    asked = {(r.method, r.path.partition("/proxy")[2].split("/")[1]) for r in server.requests}
    assert {("GET", "session"), ("PUT", "bulk")} <= asked
    assert {r.headers["authorization"] for r in server.requests} == {"Bearer good"}
    assert all(r.headers["x-kubetorch-token"] == "secret" for r in server.requests if "/session" in r.path)


def test_a_pod_that_never_answers_says_nothing_of_the_proxy(
    tmp_path: Path, pod: ProxiedPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a node that is gone, say: what is allowed is learnt from the next pod."""
    monkeypatch.setattr(access, "_PROBE_TIMEOUT", 0.3)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        ApiServer(backend=silent.getsockname()[:2]) as server,
        opened(apiserver.kubeconfig(tmp_path / "config", server.url)) as cluster,
    ):
        assert reach(cluster, pod).url.endswith("/proxy")
        server.rule = _no_proxy
        assert not reach(cluster, pod).url.endswith("/proxy")
        silent.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            while True:
                silent.accept()[0].close()


def test_the_token_shows_nowhere(server: ApiServer, cluster: Cluster, pod: ProxiedPod) -> None:
    assert "secret" not in repr(reach(cluster, pod))
    assert "good" not in repr(pod.way)
    assert "good" not in repr(cluster)


def test_a_connection_made_again_carries_fresh_credentials(
    server: ApiServer, cluster: Cluster, pod: ProxiedPod, tmp_path: Path
) -> None:
    reach(cluster, pod)
    assert echo(pod, 1) == 1
    server.token = "newer"
    apiserver.kubeconfig(tmp_path / "config", server.url, {"token": "newer"})
    server.cut()
    assert echo(pod, 2) == 2
    data = os.urandom(3 << 20)
    assert echo(pod, data) == data
    assert server.requests[-1].headers["authorization"] == "Bearer newer"


def test_a_transfer_whose_credentials_have_expired(
    server: ApiServer, cluster: Cluster, pod: ProxiedPod, tmp_path: Path
) -> None:
    reach(cluster, pod)
    assert echo(pod, 1) == 1  # the session is open, and stays so
    server.token = "newer"
    apiserver.kubeconfig(tmp_path / "config", server.url, {"token": "newer"})
    data = os.urandom(3 << 20)
    assert echo(pod, data) == data


def test_credentials_that_are_no_longer_good_are_told(
    server: ApiServer, cluster: Cluster, pod: ProxiedPod, quick: None
) -> None:
    reach(cluster, pod)
    server.token = "newer"
    with pytest.raises(AuthenticationError, match=r"the proxy before .* refused us \(401: Unauthorized\)"):
        echo(pod, 1)
    with pytest.raises(KubernetesCredentialsError, match="log in to the cluster again"):
        run(probe(pod.endpoint))


def test_a_proxy_that_finds_no_pod_is_asked_again(
    server: ApiServer, cluster: Cluster, pod: ProxiedPod, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach(cluster, pod)
    server.rule = lambda r: status(404, "NotFound", 'pods "train-1-0" not found') if "/proxy" in r.path else None
    with pytest.raises(ConnectionFailedError, match='answered with status 404: pods "train-1-0" not found'):
        echo(pod, 1)
    monkeypatch.setattr(link, "_OPEN_TIMEOUT", 10.0)
    threading.Timer(0.3, lambda: setattr(server, "rule", None)).start()
    assert echo(pod, 1) == 1


def test_a_pod_that_the_watch_says_is_gone(server: ApiServer, cluster: Cluster, pod: ProxiedPod) -> None:
    ended: list[PodLostError] = []
    reach(cluster, pod, gone=lambda said: ended[0] if ended else None)
    assert echo(pod, 1) == 1
    ended.append(PodLostError(service="echo", reason="it was evicted"))
    server.backend = None
    server.cut()
    with pytest.raises(PodLostError, match="it was evicted"):
        echo(pod, 2)


def test_the_server_away_during_a_call(
    server: ApiServer, cluster: Cluster, pod: ProxiedPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach(cluster, pod)
    began = threading.Event()

    async def slow(call: ScriptedCall) -> None:
        began.set()
        await asyncio.sleep(1.5)
        call.result("done")

    pod.handlers["slow"] = slow
    came: list[Any] = []
    thread = threading.Thread(target=lambda: came.append(invoke(ScriptedTarget(pod), "slow", (), {}, PLAIN)))
    thread.start()
    assert began.wait(5)
    server.stop()
    time.sleep(1)
    server.start()
    thread.join(15)
    assert came == ["done"]


# -- probes ------------------------------------------------------------------------------------------------------------


def test_probe(server: ApiServer, cluster: Cluster, pod: ProxiedPod) -> None:
    pod.files["health"] = b""

    async def healthy(scope: Any, receive: Any, send: Any) -> None:
        await pod._answer(send, 200)

    way = reach(cluster, pod)
    assert run(probe(way)) == "it answers with status 404"  # it answers, but not that it is well
    pod._get = healthy  # type: ignore[method-assign]
    assert run(probe(way)) is None
    server.backend = None
    assert run(probe(way)) == "error dialing backend: connection refused"
    server.rule = lambda request: forbidden("get", "pods/proxy")
    with pytest.raises(KubernetesCredentialsError) as caught:
        run(probe(way))
    assert caught.value.rule == '- {apiGroups: [""], resources: ["pods/proxy"], verbs: ["get", "create", "update"]}'
    server.stop()
    assert "Connect call failed" in run(probe(way))
    server.start()


def test_in_the_cluster_a_pod_is_reached_directly(
    pod: ProxiedPod, monkeypatch: pytest.MonkeyPatch, cluster: Cluster
) -> None:
    monkeypatch.setattr(cluster, "in_cluster", True)
    with pytest.raises(ConnectionFailedError, match="has no address yet"):
        run(endpoint(cluster, "team", "echo", POD, "t"))
    there = run(endpoint(cluster, "team", "echo", {**POD, "status": {"podIP": "10.0.0.7"}}, "t"))
    assert (there.url, there.credentials) == ("http://10.0.0.7:32300", None)
    there = run(endpoint(cluster, "team", "echo", {**POD, "status": {"podIP": "fd00::7"}}, "t"))
    assert there.url == "http://[fd00::7]:32300"


# -- TLS, and proxies on the way ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make certificates")
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


def _secure(
    certificates: Certificates, pod: ProxiedPod, path: Path, name: str = "server", **more: Any
) -> tuple[ApiServer, Callable[[ApiServer], Path]]:
    server = ApiServer(tls=certificates.server(name, client=True), token=None, backend=("127.0.0.1", pod.port))
    user = {
        f"client-{w}": str(certificates.folder / f"client.{e}") for w, e in (("certificate", "crt"), ("key", "key"))
    }
    ca = {"certificate-authority": str(certificates.folder / "ca.crt")}
    return server, lambda server: apiserver.kubeconfig(path, server.url, user, **ca, **more)


@pytest.mark.parametrize("name", ["server", "named"])
def test_tls_with_a_client_certificate(certificates: Certificates, pod: ProxiedPod, tmp_path: Path, name: str) -> None:
    more = {"tls-server-name": "api.example"} if name == "named" else {}
    server, config = _secure(certificates, pod, tmp_path / "config", name, **more)
    with server, opened(config(server)) as cluster:
        reach(cluster, pod)
        assert echo(pod, 1) == 1
        data = os.urandom(3 << 20)
        assert echo(pod, data) == data


def test_through_an_http_proxy(certificates: Certificates, pod: ProxiedPod, tmp_path: Path) -> None:
    connects: list[str] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        connects.append(head)
        host, _, port = head.split(" ")[1].rpartition(":")
        there, back = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        pumps = [asyncio.ensure_future(apiserver._pump(reader, back))]
        pumps.append(asyncio.ensure_future(apiserver._pump(there, writer)))
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        back.transport.abort()
        writer.transport.abort()

    listening = run(asyncio.start_server(accept, "127.0.0.1", 0))
    number = listening.sockets[0].getsockname()[1]
    more = {"proxy-url": f"http://me:word@127.0.0.1:{number}"}
    server, config = _secure(certificates, pod, tmp_path / "config", **more)
    try:
        with server, opened(config(server)) as cluster:
            reach(cluster, pod)
            assert echo(pod, 1) == 1
            data = os.urandom(3 << 20)
            assert echo(pod, data) == data
            assert run(cluster.list(Kind.POD, "team"))[0] == []
            assert "word" not in repr(pod.way)
    finally:
        get_portal().loop.call_soon_threadsafe(listening.close)
    assert len(connects) >= 4
    wanted = "Basic " + base64.b64encode(b"me:word").decode()
    assert all(f"Proxy-Authorization: {wanted}" in head for head in connects)


# -- port-forwards -----------------------------------------------------------------------------------------------------


def _no_proxy(request: apiserver.Request) -> apiserver.Answer | None:
    return forbidden("get", "pods/proxy") if "/proxy" in request.path else None


def test_where_the_proxy_is_forbidden_a_port_is_forwarded(server: ApiServer, cluster: Cluster, pod: ProxiedPod) -> None:
    server.rule = _no_proxy
    notes: list[str] = []
    way = reach(cluster, pod, note=notes.append)
    assert way.url.startswith("http://127.0.0.1:")
    assert notes == ["the API server's proxy is forbidden to you, so the connection goes by a port-forward"]
    assert echo(pod, [1, "two"]) == [1, "two"]
    data = os.urandom(9 << 20)
    assert echo(pod, data) == data
    again = reach(cluster, pod, note=notes.append)
    assert again is way
    assert len(notes) == 1
    server.cut()  # and a new one is made
    assert echo(pod, 3) == 3
    assert {r.query["ports"] for r in server.requests if r.path.endswith("/portforward")} == {"32300"}


def test_a_forwarded_pod_whose_front_has_been_started_again_lives(server: ApiServer, cluster: Cluster) -> None:
    server.rule = _no_proxy
    space = Space(cluster, "team")

    def pod(restarts: int) -> dict[str, Any]:
        fronts = {"name": "front", "restartCount": restarts, "state": {"running": {}}}
        if restarts:
            fronts["lastState"] = {"terminated": {"exitCode": 1}}
        return server.put(
            "pods",
            {
                "metadata": {"name": "train-1-0", "uid": "u1", "labels": {"kubetorch.dev/service": "train"}},
                "status": {"podIP": "10.0.0.7", "containerStatuses": [fronts]},
            },
        )

    run(space.cache.synced())
    first = run(space.endpoint("train", pod(0), "token"))
    assert first.lost(False) is None
    again = pod(1)
    until(lambda: first.lost(False) is not None)
    second = run(space.endpoint("train", again, "token"))
    assert second.url == first.url
    assert second.lost(False) is None
    assert first.lost(False) is not None
    run(space.cache.close())


def test_uploads_are_forbidden_where_sessions_are_not(server: ApiServer, cluster: Cluster, pod: ProxiedPod) -> None:
    server.rule = lambda r: forbidden("update", "pods/proxy") if "/proxy" in r.path and r.method == "PUT" else None
    assert reach(cluster, pod).url.startswith("http://127.0.0.1:")


def test_neither_is_allowed(server: ApiServer, cluster: Cluster, pod: ProxiedPod) -> None:
    def rule(request: apiserver.Request) -> apiserver.Answer | None:
        if request.path.endswith("selfsubjectaccessreviews"):
            return 201, {"status": {"allowed": False}}, {}
        return _no_proxy(request)

    server.rule = rule
    with pytest.raises(KubernetesCredentialsError) as caught:
        reach(cluster, pod)
    assert 'resources: ["pods/proxy"], verbs: ["get", "create", "update"]' in str(caught.value)
    assert 'resources: ["pods/portforward"], verbs: ["get", "create"]' in str(caught.value)


def test_a_port_forward_s_listener_ends_with_its_endpoint(server: ApiServer, cluster: Cluster, pod: ProxiedPod) -> None:
    server.rule = _no_proxy
    way: Endpoint | None = run(endpoint(cluster, "team", "echo", POD, "another"))
    assert way is not None
    number = int(way.url.rpartition(":")[2])
    assert run(_reachable(number))
    del way
    gc.collect()
    until(lambda: not run(_reachable(number)))
    until(lambda: server.forwards == 0)
    assert not [f for f in get_portal().farewells if "_Listener" in repr(f)]


@pytest.mark.parametrize("way", ["proxy", "forward"])
def test_a_process_ends_cleanly_and_says_goodbye(server: ApiServer, pod: ProxiedPod, tmp_path: Path, way: str) -> None:
    if way == "forward":
        server.rule = _no_proxy
    path = apiserver.kubeconfig(tmp_path / "config", server.url)
    code = f"""
from kubetorch_jupyter.backends.kubernetes.access import endpoint
from kubetorch_jupyter.backends.kubernetes.client import Cluster
from kubetorch_jupyter.transport.portal import get_portal
from kubetorch_jupyter.transport.sharing import get_session

async def begin():
    cluster = await Cluster.open({str(path)!r})
    await get_session(await endpoint(cluster, "team", "echo", {POD!r}, {pod.token!r}))

get_portal().run(begin())
"""
    done = run_strictly(code)
    assert done.stderr == ""
    assert (done.returncode, done.stdout) == (0, "")
    until(lambda: server.forwards == 0 and not pod.connections)
    assert [kind for kind, _, _ in pod.seen if kind is FrameType.GOODBYE]


async def _reachable(number: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", number)
    except OSError:
        return False
    writer.close()
    return True


def test_why_a_port_forward_doesn_t_work(
    server: ApiServer, cluster: Cluster, pod: ProxiedPod, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.rule = _no_proxy
    reach(cluster, pod)
    server.backend = None
    with pytest.raises(
        ConnectionFailedError, match="the port-forward to pod train-1-0 doesn't work: failed to connect"
    ):
        echo(pod, 1)
    gone = status(404, "NotFound", 'pods "train-1-0" not found')
    server.rule = lambda request: gone if request.path.endswith("/portforward") else _no_proxy(request)
    with pytest.raises(ConnectionFailedError, match="status 404: the port-forward .* not found"):
        echo(pod, 1)
    server.rule = lambda request: forbidden("create", "pods/portforward")
    with pytest.raises(AuthenticationError, match="403: the port-forward .* cannot create"):
        echo(pod, 1)
    server.rule = _no_proxy
    server.stop()
    with pytest.raises(ConnectionFailedError, match="status 502: the port-forward .* doesn't work"):
        echo(pod, 1)
    server.start()


def test_a_slow_reader_holds_a_port_forward_back(server: ApiServer, cluster: Cluster, pod: ProxiedPod) -> None:
    server.rule = _no_proxy
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        try:
            await reader.readuntil(b"\r\n\r\n")
            while sent < 256 << 20:
                writer.write(bytes(1 << 20))
                await writer.drain()
                sent += 1 << 20
        except OSError:
            pass  # the reader has seen enough
        finally:
            writer.transport.abort()

    listening = run(asyncio.start_server(endless, "127.0.0.1", 0))
    server.backend = ("127.0.0.1", listening.sockets[0].getsockname()[1])
    way = run(endpoint(cluster, "team", "echo", POD, "slow"))

    async def ask() -> asyncio.StreamWriter:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(way.url.rpartition(":")[2]), limit=1 << 10)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await reader.read(10)
        return writer

    writer = run(ask())
    time.sleep(1)
    held = sent
    time.sleep(0.3)
    assert sent == held
    assert held < 64 << 20
    get_portal().loop.call_soon_threadsafe(writer.transport.abort)
    until(lambda: server.forwards == 0)
    get_portal().loop.call_soon_threadsafe(listening.close)
