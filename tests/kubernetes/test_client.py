"""backends/kubernetes/client.py: requests, credentials and refusals, against an API server of the tests."""

from __future__ import annotations

import json
import shutil
import stat
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from kubetorch_jupyter.backends.kubernetes import credentials, kubeconfig, rest
from kubetorch_jupyter.backends.kubernetes.client import Cluster, Kind, WatchExpired
from kubetorch_jupyter.errors import (
    ConfigError,
    ConnectionFailedError,
    DeployError,
    KubernetesCredentialsError,
    ResourceNotAvailableError,
)
from kubetorch_jupyter.transport.portal import get_portal
from tests.kubernetes import apiserver
from tests.kubernetes.apiserver import ApiServer, Certificates, forbidden, opened, status
from tests.kubernetes.strictly import run_strictly
from tests.waiting import until

T = TypeVar("T")


def run(coro: Coroutine[Any, Any, T]) -> T:
    return get_portal().run(coro, 20)


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture
def cluster(server: ApiServer, tmp_path: Path) -> Iterator[Cluster]:
    with opened(apiserver.kubeconfig(tmp_path / "config", server.url)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make certificates")
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


def pod(name: str, **labels: str) -> dict[str, Any]:
    return {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "labels": labels}}


# -- objects -----------------------------------------------------------------------------------------------------------


def test_an_object_s_life(server: ApiServer, cluster: Cluster) -> None:
    assert run(cluster.get(Kind.POD, "team", "a")) is None
    made = run(cluster.create(Kind.POD, "team", pod("a")))
    assert run(cluster.get(Kind.POD, "team", "a")) == made
    changed = run(cluster.patch(Kind.POD, "team", "a", {"spec": {"x": 1}}))
    assert changed["spec"] == {"x": 1}
    items, version = run(cluster.list(Kind.POD, "team", "app=x", "status.phase=Running"))
    assert [item["metadata"]["name"] for item in items] == ["a"]
    assert version == changed["metadata"]["resourceVersion"]
    assert run(cluster.delete(Kind.POD, "team", "a", uid="u")) is True
    assert run(cluster.delete(Kind.POD, "team", "a")) is False
    asked = server.requests
    assert [r.headers["content-type"] for r in asked if r.method == "PATCH"] == ["application/merge-patch+json"]
    assert next(r.query for r in asked if r.query) == {
        "labelSelector": "app=x",
        "fieldSelector": "status.phase=Running",
    }
    assert next(r.body for r in asked if r.method == "DELETE")["preconditions"] == {"uid": "u"}
    assert asked[0].path == "/api/v1/namespaces/team/pods/a"
    assert Kind.JOB.path("team") == "/apis/batch/v1/namespaces/team/jobs"


def test_of_another_uid_nothing_is_deleted(server: ApiServer, cluster: Cluster) -> None:
    server.next.append(status(409, "Conflict", "the UID in the precondition (a) does not match the UID in record (b)"))
    assert run(cluster.delete(Kind.POD, "team", "a", uid="u")) is False
    server.next.append(status(409, "Conflict", "Precondition failed: UID in precondition: a, UID in object meta: b"))
    assert run(cluster.delete(Kind.POD, "team", "a", uid="u")) is False
    changed = "Precondition failed: ResourceVersion in precondition: 1, ResourceVersion in object meta: 2"
    server.next.append(status(409, "Conflict", changed))
    assert run(cluster.delete(Kind.POD, "team", "a", version="1")) is False


def test_a_token_that_another_request_has_got_may_be_an_old_one(
    server: ApiServer, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was read in the moment before its file was replaced."""
    asked: list[bool] = []

    async def headers(self: Any, *, renew: bool = False) -> dict[str, str]:
        asked.append(renew)
        return {"Authorization": f"Bearer {'old' if len(asked) < 3 else 'new'}"}

    monkeypatch.setattr(credentials.Credentials, "headers", headers)
    server.token = "new"
    assert run(cluster.get(Kind.POD, "team", "a")) is None
    assert asked == [False, True, True]
    server.token = "newer"
    with pytest.raises(KubernetesCredentialsError):
        run(cluster.get(Kind.POD, "team", "a"))


def test_another_conflict_says_nothing_of_whether_it_is_there(server: ApiServer, cluster: Cluster) -> None:
    server.next.append(status(409, "Conflict", "the object has been modified; please apply your changes to the latest"))
    with pytest.raises(DeployError) as caught:
        run(cluster.delete(Kind.POD, "team", "a", uid="u"))
    assert caught.value.reason == "Conflict"


def test_the_items_of_a_list_say_what_they_are(server: ApiServer, cluster: Cluster) -> None:
    server.put("jobs", {"metadata": {"name": "j"}})
    items, _ = run(cluster.list(Kind.JOB, "team"))
    assert (items[0]["kind"], items[0]["apiVersion"]) == ("Job", "batch/v1")
    assert Kind.of(items[0]) is Kind.JOB


def test_a_log_and_none(server: ApiServer, cluster: Cluster) -> None:
    assert run(cluster.log("team", "a", "worker", previous=True, tail_lines=3)) == "a line\nanother\n"
    assert server.requests[-1].query == {"container": "worker", "previous": "true", "tailLines": "3"}
    server.next.append(status(400, "BadRequest", 'container "worker" in pod "a" is waiting to start'))
    assert run(cluster.log("team", "a", "worker")) == ""


# -- watches -----------------------------------------------------------------------------------------------------------


def test_a_watch_gives_changes_as_they_come_and_ends_with_its_connection(server: ApiServer, cluster: Cluster) -> None:
    seen: list[tuple[str, str]] = []
    began: list[bool] = []

    async def follow() -> None:
        _, version = await cluster.list(Kind.POD, "team")
        async for what, obj in cluster.watch(Kind.POD, "team", version=version, opened=lambda: began.append(True)):
            seen.append((what, obj["metadata"]["name"]))

    following = get_portal().submit(follow())
    until(lambda: server.watches == 1)
    assert began == [True]
    server.put("pods", pod("a" * 200_000))
    server.put("jobs", {"metadata": {"name": "j"}})
    server.put("pods", pod("b"))
    server.remove("pods", "b")
    until(lambda: len(seen) == 3)
    assert [(what, name[:1]) for what, name in seen] == [("ADDED", "a"), ("ADDED", "b"), ("DELETED", "b")]
    server.cut(half='{"type": "ADDED", "object": {"meta')
    with pytest.raises(ConnectionFailedError, match="broke the connection while we watch pods"):
        following.result(5)
    assert len(seen) == 3


@pytest.mark.parametrize("how", ["refused", "told"])
def test_a_watch_of_what_is_forgotten(server: ApiServer, cluster: Cluster, how: str) -> None:
    async def follow() -> None:
        async for _ in cluster.watch(Kind.POD, "team", version="1"):
            raise AssertionError("nothing was to come")

    if how == "refused":
        server.forget()
    else:
        line = json.dumps({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}})
        server.next.append((200, line + "\n", {}))
    with pytest.raises(WatchExpired):
        run(follow())


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_what_is_forbidden_and_the_rule_that_would_allow_it(server: ApiServer, cluster: Cluster) -> None:
    server.rule = lambda request: forbidden("create", "jobs", "batch") if request.method == "POST" else None
    with pytest.raises(KubernetesCredentialsError) as caught:
        run(cluster.create(Kind.JOB, "team", {"metadata": {"name": "train-1"}}))
    error = caught.value
    assert error.reason == "Forbidden"
    assert error.rule == '- {apiGroups: ["batch"], resources: ["jobs"], verbs: ["create"]}'
    assert str(error).startswith(
        'can\'t create the Job train-1: user "jane" may not create jobs in namespace "team". If that is the wrong '
        "namespace, name another with Compute(namespace=...)"
    )
    assert str(error).endswith(error.rule)


ANSWERS = [
    (status(409, "AlreadyExists", 'pods "a" already exists'), DeployError, "AlreadyExists", "already exists"),
    (
        status(409, "AlreadyExists", 'object is being deleted: pods "a" already exists'),
        DeployError,
        "BeingDeleted",
        "being deleted",
    ),
    (status(409, "Conflict", "the object has been modified"), DeployError, "Conflict", "has been modified"),
    (
        status(422, "Invalid", "Pod a is invalid", causes=[{"field": "spec.x", "message": "Required value"}]),
        DeployError,
        "Invalid",
        "can't create the Pod a: Kubernetes finds it invalid: spec.x: Required value",
    ),
    (
        status(404, "NotFound", 'namespaces "team" not found', name="team", kind="namespaces"),
        DeployError,
        "NamespaceNotFound",
        'there is no namespace "team"',
    ),
    (
        status(
            403, "Forbidden", 'pods "a" is forbidden: exceeded quota: q, requested: cpu=2, used: cpu=1, limited: cpu=2'
        ),
        ResourceNotAvailableError,
        "ExceededQuota",
        "exceeded quota: q, requested: cpu=2, used: cpu=1, limited: cpu=2. Ask for less",
    ),
    (
        status(
            403, "Forbidden", 'pods "a" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true'
        ),
        DeployError,
        "Forbidden",
        'violates PodSecurity "restricted:latest": runAsNonRoot != true',
    ),
    (
        status(400, "BadRequest", 'admission webhook "no.example" denied the request: use another queue'),
        DeployError,
        "BadRequest",
        'admission webhook "no.example" denied the request: use another queue',
    ),
    (
        status(
            403,
            "Forbidden",
            'pods is forbidden: User "system:anonymous" cannot create resource "pods" in API group "" in the namespace '
            '"team"',
        ),
        KubernetesCredentialsError,
        "Anonymous",
        "doesn't know who we are",
    ),
    ((403, "<html>no <b>entry</b></html>", {}), KubernetesCredentialsError, "Forbidden", "forbids it: no entry"),
    ((500, "", {}), DeployError, "HTTP 500", "status 500 without a word"),
]


@pytest.mark.parametrize(("answer", "kind", "reason", "words"), ANSWERS, ids=[a[2] for a in ANSWERS])
def test_refusals(
    server: ApiServer, cluster: Cluster, answer: apiserver.Answer, kind: type[DeployError], reason: str, words: str
) -> None:
    server.next.append(answer)
    with pytest.raises(DeployError) as caught:
        run(cluster.create(Kind.POD, "team", pod("a")))
    assert type(caught.value) is kind
    assert caught.value.reason == reason
    assert words in str(caught.value)


def test_what_answers_is_no_api_server(server: ApiServer, cluster: Cluster) -> None:
    server.next.append((200, "<html>Log in</html>", {}))
    with pytest.raises(ConnectionFailedError, match="is not a Kubernetes API server, or a login page .*Log in"):
        run(cluster.get(Kind.POD, "team", "a"))


def test_a_server_that_is_busy_is_asked_again_when_it_says(server: ApiServer, cluster: Cluster) -> None:
    busy = status(429, "TooManyRequests", "later")
    server.next += [(*busy[:2], {"Retry-After": "0"}), (*busy[:2], {"Retry-After": "0"})]
    assert run(cluster.create(Kind.POD, "team", pod("a")))["metadata"]["name"] == "a"
    assert len(server.requests) == 3
    server.next += [(*busy[:2], {"Retry-After": "0"})] * 5
    with pytest.raises(DeployError, match="later"):
        run(cluster.create(Kind.POD, "team", pod("b")))


def test_a_connection_that_breaks(server: ApiServer, cluster: Cluster) -> None:
    server.next.append("silence")
    assert run(cluster.list(Kind.POD, "team"))[0] == []
    server.next.append("silence")
    with pytest.raises(ConnectionFailedError, match="while it was asked to create the Pod a"):
        run(cluster.create(Kind.POD, "team", pod("a")))
    assert [r.method for r in server.requests] == ["GET", "GET", "POST"]


def test_no_server(server: ApiServer, cluster: Cluster) -> None:
    server.stop()
    began = time.monotonic()
    with pytest.raises(ConnectionFailedError) as caught:
        run(cluster.get(Kind.POD, "team", "a"))
    server.start()
    assert time.monotonic() - began < 2
    text = str(caught.value)
    assert server.url in text
    assert "context 'one'" in text
    assert "Connection refused" in text
    assert "kt.config.context" in text


def test_a_server_that_has_just_started_refuses_everybody_for_a_moment(
    server: ApiServer, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "_WAKING_PAUSE", 0.01)
    server.stop()
    with pytest.raises(ConnectionFailedError):
        run(cluster.get(Kind.POD, "team", "a"))
    server.start()
    assert cluster.waking
    server.next += [forbidden("create", "pods"), status(401, "Unauthorized"), forbidden("create", "pods")]
    assert run(cluster.create(Kind.POD, "team", pod("a")))["metadata"]["name"] == "a"
    # When it has been back for a while, what it says counts.
    monkeypatch.setattr(rest, "_WAKING", 0.0)
    server.next += [forbidden("create", "pods")]
    with pytest.raises(KubernetesCredentialsError, match="may not create pods"):
        run(cluster.create(Kind.POD, "team", pod("b")))


def test_a_server_that_says_nothing(
    server: ApiServer, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import socket

    monkeypatch.setattr(rest, "_CONNECT_TIMEOUT", 0.3)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(1)
        url = f"https://127.0.0.1:{deaf.getsockname()[1]}"
        with (
            opened(apiserver.kubeconfig(tmp_path / "deaf", url)) as cluster,
            pytest.raises(ConnectionFailedError, match="can't be reached .no answer within 0.3 s"),
        ):
            run(cluster.get(Kind.POD, "team", "a"))


# -- credentials -------------------------------------------------------------------------------------------------------


def test_an_expired_token_is_told(server: ApiServer, cluster: Cluster) -> None:
    server.token = "another"
    with pytest.raises(KubernetesCredentialsError) as caught:
        run(cluster.get(Kind.POD, "team", "a"))
    assert caught.value.reason == "Unauthorized"
    assert f"the API server {server.url} doesn't accept a token of user 'u'" in str(caught.value)
    assert "good" not in str(caught.value)


def test_a_login_in_between_is_noticed(server: ApiServer, cluster: Cluster, tmp_path: Path) -> None:
    assert run(cluster.headers())["Authorization"] == "Bearer good"
    server.token = "newer"
    apiserver.kubeconfig(tmp_path / "config", server.url, {"token": "newer"})
    assert run(cluster.list(Kind.POD, "team"))[0] == []
    assert run(cluster.headers())["Authorization"] == "Bearer newer"


def test_a_token_s_file_that_changes(server: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("good\n")
    with opened(apiserver.kubeconfig(tmp_path / "config", server.url, {"tokenFile": "token"})) as cluster:
        run(cluster.list(Kind.POD, "team"))
        (tmp_path / "token").write_text("newer")
        server.token = "newer"
        run(cluster.list(Kind.POD, "team"))  # refused once, and read again
        assert [r.headers["authorization"] for r in server.requests][-2:] == ["Bearer good", "Bearer newer"]
        (tmp_path / "token").unlink()
        server.token = "third"
        with pytest.raises(KubernetesCredentialsError, match="can't be read from .*token.*No such file"):
            run(cluster.list(Kind.POD, "team"))


PLUGIN = """#!{python}
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
asked = json.loads(os.environ["KUBERNETES_EXEC_INFO"])
assert asked["spec"]["interactive"] is False and os.environ["REGION"] == "north" and sys.argv[1:] == ["get-token"]
n = int((here / "n").read_text()) + 1
(here / "n").write_text(str(n))
{more}
print(json.dumps({{"apiVersion": asked["apiVersion"], "kind": "ExecCredential", "status": {{
    "token": f"t{{n}}", "expirationTimestamp": (here / "until").read_text()}}}}))
"""


def _plugin(tmp_path: Path, more: str = "", until: str = "2999-01-01T00:00:00Z") -> dict[str, Any]:
    (tmp_path / "n").write_text("0")
    (tmp_path / "until").write_text(until)
    path = tmp_path / "login"
    path.write_text(PLUGIN.format(python=sys.executable, more=more))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    version = "client.authentication.k8s.io/v1"
    env = [{"name": "REGION", "value": "north"}]
    return {"exec": {"apiVersion": version, "command": "./login", "args": ["get-token"], "env": env}}


def test_an_exec_plugin(server: ApiServer, tmp_path: Path) -> None:
    server.token = "t1"
    with opened(apiserver.kubeconfig(tmp_path / "config", server.url, _plugin(tmp_path))) as cluster:
        run(cluster.list(Kind.POD, "team"))
        run(cluster.list(Kind.POD, "team"))
        assert (tmp_path / "n").read_text() == "1"
        server.token = "t2"  # revoked before its time
        run(cluster.list(Kind.POD, "team"))
        assert (tmp_path / "n").read_text() == "2"


def test_an_exec_plugin_is_run_again_when_its_token_expires(server: ApiServer, tmp_path: Path) -> None:
    server.token = None
    config = apiserver.kubeconfig(tmp_path / "config", server.url, _plugin(tmp_path, until="2001-01-01T00:00:00Z"))
    with opened(config) as cluster:
        assert [run(cluster.headers())["Authorization"] for _ in range(2)] == ["Bearer t1", "Bearer t2"]


def test_requests_at_once_run_an_exec_plugin_once(server: ApiServer, tmp_path: Path) -> None:
    import asyncio

    server.token = "t1"
    user = _plugin(tmp_path, more="import time; time.sleep(0.3)")
    with opened(apiserver.kubeconfig(tmp_path / "config", server.url, user)) as cluster:

        async def many() -> None:
            await asyncio.gather(*(cluster.list(Kind.POD, "team") for _ in range(5)))

        run(many())
        assert (tmp_path / "n").read_text() == "1"


def test_exec_plugins_that_fail(server: ApiServer, tmp_path: Path) -> None:
    path = tmp_path / "config"
    user = _plugin(tmp_path, more="sys.exit('the SSO session has expired')")
    with opened(apiserver.kubeconfig(path, server.url, user)) as cluster:
        with pytest.raises(KubernetesCredentialsError) as caught:
            run(cluster.list(Kind.POD, "team"))
        assert "the exec plugin ./login" in str(caught.value)
        assert "failed with exit code 1:\nthe SSO session has expired\n" in str(caught.value)
        with pytest.raises(KubernetesCredentialsError, match="the SSO session has expired"):
            run(cluster.list(Kind.POD, "team"))
        assert (tmp_path / "n").read_text() == "1"  # not run again at once: it may open a browser
    user["exec"] = {"apiVersion": "v", "command": "no-such-plugin", "installHint": "pip install it"}
    with (
        opened(apiserver.kubeconfig(path, server.url, user)) as cluster,
        pytest.raises(KubernetesCredentialsError, match="is not installed here: pip install it"),
    ):
        run(cluster.list(Kind.POD, "team"))
    user = _plugin(tmp_path, more="print('hello'); sys.exit()")
    with (
        opened(apiserver.kubeconfig(path, server.url, user)) as cluster,
        pytest.raises(KubernetesCredentialsError, match="answered with no ExecCredential"),
    ):
        run(cluster.list(Kind.POD, "team"))


def test_a_plugin_that_waits_is_ended(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "_PLUGIN_TIMEOUT", 0.5)
    user = _plugin(tmp_path, more="import time; time.sleep(60)")
    with (
        opened(apiserver.kubeconfig(tmp_path / "config", server.url, user)) as cluster,
        pytest.raises(KubernetesCredentialsError, match="perhaps it waits for a login"),
    ):
        run(cluster.list(Kind.POD, "team"))


# -- TLS ---------------------------------------------------------------------------------------------------------------


def test_tls_with_a_client_certificate(certificates: Certificates, tmp_path: Path) -> None:
    path = tmp_path / "config"
    cert = {
        "client-certificate-data": certificates.data("client.crt"),
        "client-key": str(certificates.folder / "client.key"),
    }
    with ApiServer(tls=certificates.server(client=True), token=None) as server:
        ca = certificates.data("ca.crt")
        with opened(apiserver.kubeconfig(path, server.url, cert, **{"certificate-authority-data": ca})) as cluster:
            assert run(cluster.list(Kind.POD, "team"))[0] == []
            assert cluster.tls() is not None
        for more, words in (({}, "can't be trusted"), ({"insecure-skip-tls-verify": True}, None)):
            with opened(apiserver.kubeconfig(path, server.url, cert, **more)) as cluster:
                if words is None:
                    assert run(cluster.list(Kind.POD, "team"))[0] == []
                else:
                    with pytest.raises(ConnectionFailedError, match=words):
                        run(cluster.list(Kind.POD, "team"))
        with (
            opened(apiserver.kubeconfig(path, server.url, {}, **{"certificate-authority-data": ca})) as cluster,
            pytest.raises(ConnectionFailedError),
        ):
            run(cluster.list(Kind.POD, "team"))


def test_a_certificate_of_another_name(certificates: Certificates, tmp_path: Path) -> None:
    path = tmp_path / "config"
    ca = {"certificate-authority": str(certificates.folder / "ca.crt")}
    with ApiServer(tls=certificates.server("named")) as server:
        with (
            opened(apiserver.kubeconfig(path, server.url, **ca)) as cluster,
            pytest.raises(ConnectionFailedError, match="can't be trusted"),
        ):
            run(cluster.list(Kind.POD, "team"))
        named = {**ca, "tls-server-name": "api.example"}
        with opened(apiserver.kubeconfig(path, server.url, **named)) as cluster:
            assert run(cluster.list(Kind.POD, "team"))[0] == []


# -- configuration -----------------------------------------------------------------------------------------------------


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a kubeconfig, outside of any cluster."""
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_which_kubeconfig(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=f"no kubeconfig: {nowhere}/.kube/config does not exist"):
        kubeconfig.load()
    apiserver.kubeconfig(nowhere / ".kube" / "config", "https://home")
    assert kubeconfig.load().server == "https://home"
    first, second = nowhere / "first", nowhere / "second"
    apiserver.kubeconfig(first, "https://first/")
    apiserver.kubeconfig(second, "https://second")
    monkeypatch.setenv("KUBECONFIG", f"{nowhere / 'missing'}:{first}:{second}")
    found = kubeconfig.load()
    assert (found.server, found.namespace, found.context) == ("https://first", "team", "one")
    assert kubeconfig.load(context="two").namespace == "default"
    assert kubeconfig.load(str(second)).server == "https://second"


def test_files_complete_each_other(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = json.loads(apiserver.kubeconfig(nowhere / "whole", "https://there").read_text())
    (nowhere / "one").write_text(json.dumps({"current-context": "one", "contexts": whole["contexts"]}))
    (nowhere / "two").write_text(json.dumps({"clusters": whole["clusters"], "users": whole["users"]}))
    monkeypatch.setenv("KUBECONFIG", f"{nowhere / 'one'}:{nowhere / 'two'}")
    assert kubeconfig.load().server == "https://there"


def test_kubeconfigs_that_make_no_sense(nowhere: Path) -> None:
    path = apiserver.kubeconfig(nowhere / "config", "https://there")
    good = json.loads(path.read_text())
    with pytest.raises(ConfigError, match=r"has no context 'three' \(asked for\); there are: one, two"):
        kubeconfig.load(str(path), "three")
    for text, words in (
        ("{", "is not YAML"),
        ("[]", "is not a kubeconfig"),
        (json.dumps({**good, "current-context": ""}), r"no current context \(there are: one, two\)"),
        (json.dumps({**good, "clusters": []}), "has no cluster called 'c'"),
        (json.dumps({**good, "users": []}), "has no user called 'u'"),
        (json.dumps({**good, "clusters": [{"name": "c", "cluster": {}}]}), "has no server"),
        (
            json.dumps(
                {**good, "clusters": [{"name": "c", "cluster": {"server": "https://a", "proxy-url": "socks5://b"}}]}
            ),
            "socks5://b is not supported",
        ),
        (json.dumps({**good, "clusters": 3}), "something else than a list of clusters"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            kubeconfig.load(str(path))
    path.unlink()
    with pytest.raises(ConfigError, match="does not exist"):
        kubeconfig.load(str(path))


def test_in_a_pod(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = nowhere / "account"
    account.mkdir()
    for name, text in (("token", "good"), ("ca.crt", "a certificate"), ("namespace", "team\n")):
        (account / name).write_text(text)
    monkeypatch.setattr(kubeconfig, "SERVICE_ACCOUNT", account)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    found = kubeconfig.load()
    assert (found.server, found.namespace, found.in_cluster) == ("https://[fd00::1]:6443", "team", True)
    assert found.user == {"tokenFile": str(account / "token")}
    apiserver.kubeconfig(nowhere / "config", "https://there")
    monkeypatch.setenv("KUBECONFIG", str(nowhere / "config"))
    assert not kubeconfig.load().in_cluster
    monkeypatch.delenv("KUBECONFIG")
    (account / "namespace").unlink()
    with pytest.raises(ConfigError, match="this pod has a service account, but .*namespace can't be read"):
        kubeconfig.load()


# -- the end -----------------------------------------------------------------------------------------------------------


def test_a_process_ends_cleanly_with_a_watch_open(server: ApiServer, tmp_path: Path) -> None:
    path = apiserver.kubeconfig(tmp_path / "config", server.url)
    code = f"""
import asyncio
from kubetorch_jupyter.backends.kubernetes.cache import NamespaceCache
from kubetorch_jupyter.backends.kubernetes.client import Cluster, Kind
from kubetorch_jupyter.transport.portal import get_portal

async def begin():
    cluster = await Cluster.open({str(path)!r})
    cache = NamespaceCache(cluster, "team")
    await cache.synced()
    asyncio.ensure_future(cache.changed())
    await asyncio.sleep(0.1)

get_portal().run(begin())
"""
    began = time.monotonic()
    done = run_strictly(code)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    assert time.monotonic() - began < 15
    until(lambda: server.watches == 0)
