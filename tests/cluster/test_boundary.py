"""Who may use a service and who is refused: the namespace is the boundary, the token stands inside of it (case 10)."""

from __future__ import annotations

import base64
import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest

import kubetorch_jupyter as kt
from kubetorch_jupyter.transport.websocket import POD_HEADER, TOKEN_HEADER
from tests.cells import Cells
from tests.cluster.api import Api, ApiError
from tests.cluster.conftest import OURS, MakeUser, User
from tests.cluster.images import Images

SOURCE = """
import glob, http.client, os, socket, urllib.error, urllib.request

def secret():
    return "for its users only"

def knock(url, headers=None):
    "What a pod gets that asks another service: status and body."
    request = urllib.request.Request(url, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()
    except urllib.error.URLError as e:
        return 0, str(e)

def found():
    "What user code finds of credentials in its own container."
    texts = [" ".join(f"{k}={v}" for k, v in os.environ.items())]
    for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
        try:
            texts.append(open(path, "rb").read().decode("utf-8", "replace"))
        except OSError:
            pass
    files = []
    for root in ("/kubetorch", "/tmp", "/run", "/var/run"):
        for folder, _, names in os.walk(root):
            files += [os.path.join(folder, name) for name in names]
    for path in files:
        try:
            with open(path, "rb") as f:
                texts.append(f.read(1 << 20).decode("utf-8", "replace"))
        except OSError:
            pass
    return files, "\\n".join(texts)

class Neighbour:
    def knock(self, *args):
        return knock(*args)

    def found(self):
        return found()
"""

#: What a service answers besides whether it lives: calls, its peers' questions, sessions, payloads.
DOORS = ["/call/secret", "/idle", "/end", "/session", "/bulk/down/x", "/", "/docs"]


@pytest.fixture(scope="module")
def cells() -> Cells:
    cells = Cells()
    cells.run(SOURCE)
    return cells


@pytest.fixture(scope="module")
def guarded(cells: Cells, user: User) -> Iterator[Any]:
    handle = kt.fn(cells["secret"], name="guarded").to(kt.Compute(), stream_logs=False)
    yield handle
    handle.teardown()


@pytest.fixture(scope="module")
def pod(guarded: Any, user: User) -> dict[str, Any]:
    [pod] = user.api.list("Pod", f"{OURS},kubetorch.dev/service={guarded.service_name}")
    return pod


def token_of(user: User, service: str) -> str:
    [secret] = user.api.list("Secret", f"{OURS},kubetorch.dev/service={service}")
    return base64.b64decode(secret["data"]["token"]).decode()


# -- another user ------------------------------------------------------------------------------------------------------


def test_a_user_of_another_namespace_is_refused(guarded: Any, user: User, other_user: User) -> None:
    theirs = kt.Compute(kubeconfig_path=str(other_user.kubeconfig), namespace=user.namespace)
    cells = Cells()
    cells.run("def mine():\n    return 1\n")
    with pytest.raises(kt.KubernetesCredentialsError) as caught:
        kt.fn(cells["mine"], name="guarded").to(theirs, stream_logs=False)
    assert user.namespace in str(caught.value)
    assert "may not list" in str(caught.value)
    assert caught.value.rule is not None
    assert guarded(stream_logs=False) == "for its users only"


def test_a_user_of_another_namespace_gets_nothing_from_the_api_server(
    guarded: Any, pod: dict[str, Any], user: User, other_user: User
) -> None:
    theirs = Api(other_user.kubeconfig, user.namespace)
    service = f"/api/v1/namespaces/{user.namespace}/services/{guarded.service_name}:32300/proxy/health"
    proxied = f"/api/v1/namespaces/{user.namespace}/pods/{pod['metadata']['name']}:32300/proxy/health"
    secret = f"/api/v1/namespaces/{user.namespace}/secrets/{pod['metadata']['labels']['job-name']}"
    logs = f"/api/v1/namespaces/{user.namespace}/pods/{pod['metadata']['name']}/log"
    for path in (service, proxied, secret, logs):
        with pytest.raises(ApiError) as caught:
            theirs.request("GET", path)
        assert caught.value.status == 403


# -- a stolen URL ------------------------------------------------------------------------------------------------------


def ask(url: str, path: str, headers: dict[str, str], tls: ssl.SSLContext | None = None) -> tuple[int, bool]:
    """The status, and whether the pod itself gave it."""
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, context=tls, timeout=10)
    else:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    if path == "/session":
        headers = {
            **headers,
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
    method = "POST" if path.startswith(("/call", "/end")) else "GET"
    try:
        connection.request(
            method, parts.path + path, body=b'{"args": []}' if method == "POST" else None, headers=headers
        )
        answer = connection.getresponse()
        return answer.status, answer.getheader(POD_HEADER) is not None
    finally:
        connection.close()


@pytest.mark.parametrize("token", [None, "0" * 64, "é".encode().decode("latin-1")], ids=["none", "wrong", "odd"])
@pytest.mark.parametrize("way", ["proxy", "directly"])
def test_a_url_without_the_token(guarded: Any, pod: dict[str, Any], way: str, token: str | None) -> None:
    """With good credentials for the cluster as well, and from where pods can be reached."""
    endpoint = guarded.service.endpoint
    headers: dict[str, str] = {} if token is None else {TOKEN_HEADER: token}
    tls = None
    if way == "proxy":
        if endpoint.credentials is None:
            pytest.skip("the pods are reached directly from here")
        url, tls = endpoint.url, endpoint.tls
        headers.update(_credentials(endpoint))
    else:
        url = f"http://{pod['status']['podIP']}:32300"
        try:
            ask(url, "/health", {})
        except OSError:
            pytest.skip("pods can't be reached directly from here")
    for path in DOORS:
        assert ask(url, path, headers, tls) == (401 if token is None else 403, True), path
    assert ask(url, "/health", headers, tls) == (200, True)
    assert ask(url, "/ready", headers, tls) == (200, True)


def _credentials(endpoint: Any) -> dict[str, str]:
    from kubetorch_jupyter.transport.portal import get_portal

    return dict(get_portal().run(endpoint.all_headers()))


def test_the_token_opens(guarded: Any, user: User) -> None:
    endpoint = guarded.service.endpoint
    headers = {TOKEN_HEADER: token_of(user, guarded.service_name), "Content-Type": "application/json"}
    if endpoint.credentials is not None:
        headers.update(_credentials(endpoint))
    assert ask(endpoint.url, "/call/secret", headers, endpoint.tls) == (200, True)


# -- from a pod --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def neighbour(cells: Cells, user: User) -> Iterator[Any]:
    handle = kt.cls(cells["Neighbour"], name="neighbour").to(kt.Compute(), stream_logs=False)
    yield handle
    handle.service.teardown()


def test_a_pod_without_the_token(neighbour: Any, guarded: Any, pod: dict[str, Any], user: User) -> None:
    """It reaches the other service's port, which answers nothing but whether it lives."""

    def knock(url: str, *headers: dict[str, str]) -> tuple[int, str]:
        status, said = neighbour.knock(url, *headers, stream_logs=False)
        return int(status), str(said)

    def is_reached(name: str) -> bool:
        return knock(f"http://{name}/health")[0] == 200

    own = token_of(user, neighbour.service_name)
    assert own != token_of(user, guarded.service_name)
    for name in (f"{guarded.service_name}:32300", f"{pod['status']['podIP']}:32300"):
        # A name may be known only after a moment.
        user.api.wait(f"{name} is reached", partial(is_reached, name), 60)
        for path in ("/call/secret", "/idle", "/session"):
            status, said = knock(f"http://{name}{path}")
            assert status == 401
            assert "for its users only" not in said
        # Its own token, if it had it, would open nothing there.
        assert knock(f"http://{name}/idle", {TOKEN_HEADER: own})[0] == 403


def test_user_code_finds_no_credentials(neighbour: Any, guarded: Any, user: User) -> None:
    files, text = neighbour.found(stream_logs=False)
    assert any("/kubetorch/" in path for path in files)
    assert not [path for path in files if "serviceaccount" in path or "/kubetorch/secret" in path]
    for service in (neighbour.service_name, guarded.service_name):
        assert token_of(user, service) not in text


# -- a service account -------------------------------------------------------------------------------------------------

#: In a pod with an account that may do nothing: what the API server says to it.
_WITHOUT_RIGHTS = """
def status(path, method="GET"):
    folder = "/var/run/secrets/kubernetes.io/serviceaccount/"
    token = open(folder + "token").read()
    tls = ssl.create_default_context(cafile=folder + "ca.crt")
    address = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    headers = {"Authorization": "Bearer " + token}
    request = urllib.request.Request(address + path, headers=headers, method=method)
    try:
        return urllib.request.urlopen(request, timeout=5, context=tls).status
    except urllib.error.HTTPError as e:
        return e.code
"""


@pytest.fixture
def nobody(user: User) -> Iterator[str]:
    """A service account without any rights."""
    path = f"/api/v1/namespaces/{user.namespace}/serviceaccounts"
    name = user.api.request("POST", path, {"metadata": {"generateName": "nobody-"}})["metadata"]["name"]
    yield name
    user.api.request("DELETE", f"{path}/{name}")


def test_a_pods_account_without_rights(
    cells: Cells, guarded: Any, pod: dict[str, Any], user: User, nobody: str
) -> None:
    cells.run("import ssl\n" + _WITHOUT_RIGHTS)
    root = f"/api/v1/namespaces/{user.namespace}"
    secret = f"{root}/secrets/{pod['metadata']['labels']['job-name']}"
    proxied = f"{root}/pods/{pod['metadata']['name']}:32300/proxy/health"
    compute = kt.Compute(service_account_name=nobody)
    with kt.fn(cells["status"], name="nobodys").to(compute, stream_logs=False) as status:
        for path in (f"{root}/pods", f"{root}/secrets", secret, proxied):
            assert status(path, stream_logs=False) == 403, path
        assert status(f"{root}/pods/{pod['metadata']['name']}", "DELETE", stream_logs=False) == 403
    assert guarded(stream_logs=False) == "for its users only"


def test_a_client_without_rights(make_user: MakeUser, user: User) -> None:
    """Who may only look can't deploy, and hears which right is missing; nothing is made."""
    viewer = make_user("viewer", "kt-viewer", "view")
    cells = Cells()
    cells.run("def mine():\n    return 1\n")
    with pytest.raises(kt.KubernetesCredentialsError) as caught:
        kt.fn(cells["mine"], name="mine").to(
            kt.Compute(kubeconfig_path=str(viewer.kubeconfig), namespace=viewer.namespace), stream_logs=False
        )
    assert "may not create jobs" in str(caught.value)
    assert caught.value.rule == '- {apiGroups: ["batch"], resources: ["jobs"], verbs: ["create"]}'
    assert viewer.api.list("Job") == viewer.api.list("Pod") == []
