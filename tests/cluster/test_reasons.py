"""Why a service doesn't come up: each reason provoked for real, and told within 2 s after Kubernetes says it (case 4).

All those that come to nothing are deployed at once, before the first of the tests that look at what became of them.
"""

from __future__ import annotations

import asyncio
import http.server
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import kubetorch_jupyter as kt
from tests.cells import Cells
from tests.cluster.api import ApiError
from tests.cluster.conftest import MakeUser, User
from tests.cluster.images import Images
from tests.cluster.node import Node
from tests.cluster.watching import Said, shown
from tests.promises import promise, record

#: After Kubernetes has said it, in seconds; Kubernetes is looked at every 0.1 s.
SOON = 2.0


@dataclass(frozen=True)
class Trouble:
    """A deploy that fails.

    Parameters
    ----------
    compute
        What is asked for.
    error
        The error's type.
    words
        What its message has in it.
    said
        Kubernetes' words: those of an event, or of the status of the pod or the Job.
    waits
        Time may cure it: it is shown, and fails only when the time is over.
    """

    compute: Mapping[str, Any]
    error: type[kt.KubetorchError]
    words: tuple[str, ...]
    said: str
    waits: bool = False
    needs: str = ""


def _template(container: Mapping[str, Any]) -> dict[str, Any]:
    return {"spec": {"template": {"spec": {"containers": [{"name": "worker", **container}]}}}}


_KEY = {"name": "A", "valueFrom": {"secretKeyRef": {"name": "kt-has-one-key", "key": "absent"}}}
_MAP = {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "kt-nosuch", "key": "absent"}}}

TROUBLES: dict[str, Trouble] = {
    "too many CPUs": Trouble(
        {"cpus": 500, "unschedulable_timeout": 0},
        kt.ResourceNotAvailableError,
        ("Insufficient cpu", "unschedulable_timeout"),
        "Insufficient cpu",
    ),
    "too much memory": Trouble(
        {"memory": "90Ti", "unschedulable_timeout": 0},
        kt.ResourceNotAvailableError,
        ("Insufficient memory",),
        "Insufficient memory",
    ),
    "no such node": Trouble(
        {"node_selector": {"nobody": "has-it"}, "unschedulable_timeout": 4},
        kt.ResourceNotAvailableError,
        ("didn't match Pod's node affinity/selector",),
        "node affinity/selector",
        waits=True,
    ),
    "no such image": Trouble(
        {"image": kt.Image(image_id="kt.local/not-found:1")},
        kt.ImagePullError,
        ("kt.local/not-found:1", "not found"),
        "ErrImagePull",
        needs="registry",
    ),
    "an image for others": Trouble(
        {"image": kt.Image(image_id="kt.local/unauthorized:1")},
        kt.ImagePullError,
        ("kt.local/unauthorized:1", "401", "imagePullSecrets"),
        "ErrImagePull",
        needs="registry",
    ),
    "a pull secret that isnt there": Trouble(
        {
            "image": kt.Image(image_id="kt.local/unauthorized:1"),
            "service_template": {"spec": {"template": {"spec": {"imagePullSecrets": [{"name": "kt-nosuch"}]}}}},
        },
        kt.ImagePullError,
        ("401", "the pull secret kt-nosuch"),
        "ErrImagePull",
        needs="registry",
    ),
    "a registry in trouble": Trouble(
        {"image": kt.Image(image_id="kt.local/unavailable:1"), "launch_timeout": 15},
        kt.ImagePullError,
        ("kt.local/unavailable:1", "503"),
        "ErrImagePull",
        waits=True,
        needs="registry",
    ),
    "no name for an image": Trouble(
        {"image": kt.Image(image_id="kt.local/UPPER:1")}, kt.ImagePullError, ("UPPER",), "InvalidImageName"
    ),
    "an image that must be there": Trouble(
        {"image": kt.Image(image_id="kt.local/nowhere:1"), "image_pull_policy": "Never"},
        kt.ImagePullError,
        ("kt.local/nowhere:1", "Never"),
        "ErrImageNeverPull",
    ),
    "no Python": Trouble(
        {"image": "bare"}, kt.PodContainerError, ("no Python", "kt.Image(python_path=...)"), '"exitCode": 127'
    ),
    "a Python that isn't there": Trouble(
        {"image": "python_path"}, kt.PodContainerError, ("/opt/nowhere/python",), "no such file or directory"
    ),
    "no such secret": Trouble({"secrets": ["kt-nosuch"]}, kt.SecretNotFound, ("there is no Secret", "kt-nosuch"), ""),
    "no such key": Trouble(
        {"service_template": _template({"env": [_KEY]})},
        kt.SecretNotFound,
        ('the key "absent"', "kt-has-one-key"),
        "CreateContainerConfigError",
    ),
    "no such ConfigMap": Trouble(
        {"service_template": _template({"env": [_MAP]})},
        kt.PodContainerError,
        ('the ConfigMap "kt-nosuch"',),
        "CreateContainerConfigError",
    ),
    "no such volume": Trouble(
        {"volumes": ["kt-nosuch"]}, kt.ResourceNotAvailableError, ('there is no volume "kt-nosuch"', "size="), ""
    ),
    "no such account": Trouble(
        {"service_account_name": "kt-nobody"},
        kt.PodContainerError,
        ('the service account "kt-nobody"',),
        'serviceaccount "kt-nobody" not found',
    ),
    "no such priority": Trouble(
        {"priority_class_name": "kt-golden"},
        kt.PodContainerError,
        ('the priority class "kt-golden"',),
        "no PriorityClass with name kt-golden",
    ),
}


@dataclass
class Outcome:
    """What became of a deploy."""

    error: BaseException
    ended: float
    #: When its reason was shown while it waited.
    shown: float | None
    #: When Kubernetes said it.
    said: float | None


_STATUS = {"not-found": 404, "unauthorized": 401, "unavailable": 503}


class _Registry(http.server.BaseHTTPRequestHandler):
    """Answers for images by their names; on the port where the node asks for what it hasn't got."""

    def do_GET(self) -> None:
        status = next((code for name, code in _STATUS.items() if name in self.path), 200)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def registry() -> Iterator[None]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 5000), _Registry) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def _name(trouble: str) -> str:
    return trouble.lower().replace(" ", "-").replace("'", "")


@pytest.fixture(scope="module")
def outcomes(user: User, images: Images, cluster_node: Node | None) -> Callable[[str], Outcome]:
    """What became of each of `TROUBLES`."""
    cells = Cells()
    cells.run("def f(): return 1\n")
    special = {
        "bare": kt.Image(image_id=images["bare"]),
        "python_path": kt.Image(image_id=images["examples"], python_path="/opt/nowhere/python"),
    }
    wanted = {what: t for what, t in TROUBLES.items() if t.needs != "registry" or cluster_node is not None}
    found: dict[str, Outcome] = {}

    async def deploy(what: str, trouble: Trouble) -> None:
        compute = dict(trouble.compute)
        if isinstance(compute.get("image"), str):
            compute["image"] = special[compute["image"]]
        try:
            # None of them may hold up the others.
            async with asyncio.timeout(45):
                await kt.fn(cells["f"], name=_name(what)).to_async(kt.Compute(**compute))
        except (kt.KubetorchError, TimeoutError) as e:
            found[what] = Outcome(e, time.monotonic(), None, None)

    async def deploy_all() -> None:
        await asyncio.gather(*(deploy(what, trouble) for what, trouble in wanted.items()))

    words = {f"{user.name}-{_name(what)}": trouble.said for what, trouble in wanted.items() if trouble.said}
    user.api.create("Secret", {"metadata": {"name": "kt-has-one-key"}, "stringData": {"present": "1"}})
    try:
        with shown() as shows, Said(user.api, words) as said, registry() if cluster_node else _nothing():
            asyncio.run(deploy_all())
    finally:
        user.api.delete("Secret", "kt-has-one-key")
    for what, outcome in found.items():
        outcome.said = said.at.get(f"{user.name}-{_name(what)}")
        whose = f'"{_name(what)}" is '
        outcome.shown = min(filter(None, (shows.first(whose, words) for words in wanted[what].words)), default=None)

    def outcome(what: str) -> Outcome:
        if what not in wanted:
            pytest.skip("needs the node's registry: no `cluster` program, or not root")
        return found[what]

    return outcome


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@pytest.mark.parametrize("what", TROUBLES)
def test_reason(what: str, outcomes: Callable[[str], Outcome], user: User) -> None:
    trouble = TROUBLES[what]
    outcome = outcomes(what)
    print(f"{type(outcome.error).__name__}: {outcome.error}")
    assert isinstance(outcome.error, trouble.error)
    message = str(outcome.error)
    assert f"{user.name}-{_name(what)}" in message
    missing = [words for words in trouble.words if words not in message]
    assert not missing, message
    if not trouble.said:
        return
    assert outcome.said is not None, f"Kubernetes has not said {trouble.said!r}"
    told = outcome.ended if outcome.shown is None else min(outcome.shown, outcome.ended)
    promise(f"{what}: shown, after Kubernetes said it", told - outcome.said, SOON)
    if trouble.waits:
        assert outcome.ended - outcome.said > 1
    else:
        promise(f"{what}: failed, with what was made removed", outcome.ended - outcome.said, 2 * SOON)


def test_nothing_is_left(outcomes: Callable[[str], Outcome], user: User) -> None:
    outcomes(next(iter(TROUBLES)))
    user.api.wait("nothing is left", lambda: not user.ours(), 10)
    assert not kt.services()


# -- who we are, and where the cluster is ------------------------------------------------------------------------------


def _deploy(**compute: Any) -> None:
    cells = Cells()
    cells.run("def f(): return 1\n")
    kt.fn(cells["f"], name="refused").to(kt.Compute(**compute))


def _changed(user: User, path: Path, change: Callable[[dict[str, Any]], None]) -> str:
    loaded = yaml.safe_load(user.kubeconfig.read_text())
    change(loaded)
    path.write_text(yaml.safe_dump(loaded))
    return str(path)


def _fails(error: type[kt.KubetorchError], *words: str, **compute: Any) -> kt.KubetorchError:
    start = time.monotonic()
    with pytest.raises(error) as caught:
        _deploy(**compute)
    record(f"{error.__name__} ({words[0]}): {time.monotonic() - start:.2f} s after .to")
    message = str(caught.value)
    print(message)
    assert not [each for each in words if each not in message], message
    assert time.monotonic() - start < 3 * SOON
    return caught.value


def test_forbidden(make_user: MakeUser, monkeypatch: pytest.MonkeyPatch, user: User) -> None:
    """Which verb on which resource, and the line of RBAC that would allow it."""
    viewer = make_user("viewer", "kt-viewer", "view")
    monkeypatch.setenv("KUBECONFIG", str(viewer.kubeconfig))
    monkeypatch.setenv("KT_NAMESPACE", viewer.namespace)
    error = _fails(kt.KubernetesCredentialsError, "create", "jobs", viewer.namespace, 'apiGroups: ["batch"]')
    assert isinstance(error, kt.KubernetesCredentialsError)
    assert "create" in str(error.rule)
    assert viewer.api.list("Pod") == []


def test_another_namespace(monkeypatch: pytest.MonkeyPatch, make_user: MakeUser) -> None:
    monkeypatch.setenv("KT_NAMESPACE", "kt-of-nobody")
    _fails(kt.KubernetesCredentialsError, "kt-of-nobody")


def test_no_namespace_of_that_name(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who may do everything is told that it isn't there."""
    monkeypatch.setenv("KUBECONFIG", str(node.admin().kubeconfig))
    monkeypatch.setenv("KT_NAMESPACE", "kt-of-nobody")
    _fails(kt.DeployError, "there is no namespace", "kt-of-nobody")


def test_no_cluster(user: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(loaded: dict[str, Any]) -> None:
        loaded["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"

    monkeypatch.setenv("KUBECONFIG", _changed(user, tmp_path / "kubeconfig", change))
    _fails(kt.ConnectionFailedError, "https://127.0.0.1:1")


def test_a_login_that_has_expired(user: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(loaded: dict[str, Any]) -> None:
        loaded["users"][0]["user"] = {"token": secrets.token_hex(16)}

    monkeypatch.setenv("KUBECONFIG", _changed(user, tmp_path / "kubeconfig", change))
    _fails(kt.KubernetesCredentialsError, "doesn't accept a token", "Log in")


def test_no_such_context(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KT_CONTEXT", "nobodys")
    _fails(kt.ConfigError, "nobodys", "there are")


# -- what an administrator forbids -------------------------------------------------------------------------------------


@pytest.fixture
def governed(node: Node, make_user: MakeUser, monkeypatch: pytest.MonkeyPatch) -> User:
    """A user of a namespace of their own, for an administrator to make rules for."""
    user = make_user("governed", f"kt-governed-{secrets.token_hex(2)}")
    monkeypatch.setenv("KUBECONFIG", str(user.kubeconfig))
    monkeypatch.setenv("KT_NAMESPACE", user.namespace)
    return user


def _quota(node: Node, user: User, hard: dict[str, str]) -> None:
    path = f"/api/v1/namespaces/{user.namespace}/resourcequotas"
    admin = node.admin()
    admin.request("POST", path, {"metadata": {"name": "small"}, "spec": {"hard": hard}})
    admin.wait("the quota holds", lambda: admin.request("GET", f"{path}/small")["status"].get("hard"), 10)


def test_over_a_quota(governed: User, node: Node) -> None:
    _quota(node, governed, {"pods": "0"})
    _fails(kt.ResourceNotAvailableError, "is over the quota", "small", "pods")
    governed.api.wait("nothing is left", lambda: not governed.ours(), 10)


#: What a LimitRange says of containers, what is asked for, and Kubernetes' words.
RANGES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "max": ({"max": {"memory": "1Gi"}}, {"memory_limit": "2Gi"}, "maximum memory usage per Container is 1Gi"),
    "max of the request": ({"max": {"cpu": "500m"}}, {"cpus": 1}, "must be less than or equal to cpu limit of 500m"),
    "default": (
        {"default": {"memory": "256Mi"}, "defaultRequest": {"memory": "32Mi"}},
        {"memory": "512Mi"},
        "must be less than or equal to memory limit of 256Mi",
    ),
    "default of the front": (
        {"default": {"memory": "64Mi"}, "defaultRequest": {"memory": "32Mi"}},
        {"memory_limit": "1Gi"},
        "must be less than or equal to memory limit of 64Mi",
    ),
    "min": ({"min": {"cpu": "100m"}}, {"cpus": 1}, "minimum cpu usage per Container is 100m, but request is 20m"),
}
#: Where there is more room, what the message says is enough.
CURED = ("default", "default of the front", "min")


@pytest.mark.parametrize("what", RANGES)
def test_over_a_limit(what: str, governed: User, node: Node) -> None:
    limits, compute, words = RANGES[what]
    body = {"metadata": {"name": "tiny"}, "spec": {"limits": [{"type": "Container", **limits}]}}
    node.admin().request("POST", f"/api/v1/namespaces/{governed.namespace}/limitranges", body)
    error = _fails(kt.ResourceNotAvailableError, "LimitRange", words, **compute)
    assert isinstance(error, kt.DeployError)
    assert error.reason == "LimitRange"
    if what in CURED:
        _runs(**compute, **_added(error))
    governed.api.wait("nothing is left", lambda: not governed.ours(), 20)


def test_a_quota_that_demands_limits(governed: User, node: Node) -> None:
    """As on many clusters that people share: what the message says to write is enough."""
    hard = {"requests.cpu": "4", "requests.memory": "8Gi", "limits.cpu": "8", "limits.memory": "8Gi"}
    _quota(node, governed, hard)
    error = _fails(kt.ResourceNotAvailableError, "limits.cpu for: front,worker", "requests.memory for: worker")
    assert isinstance(error, kt.DeployError)
    assert error.reason == "FailedQuota"
    _runs(**_added(error))
    governed.api.wait("nothing is left", lambda: not governed.ours(), 20)


def _added(error: kt.KubetorchError) -> dict[str, Any]:
    """The keywords that a message says to add to the `Compute`, as somebody copies them."""
    code = str(error).rpartition("dd to the kt.Compute")[2]
    found: dict[str, Any] = eval(f"dict({code.partition(': ')[2].removesuffix('.')})")
    return found


def _runs(**compute: Any) -> None:
    cells = Cells()
    cells.run("def f(): return 1\n")
    with kt.fn(cells["f"], name="refused").to(kt.Compute(**compute), stream_logs=False) as f:
        assert f() == 1


_MUTATING = "/apis/admissionregistration.k8s.io/v1beta1/mutatingadmissionpolic"


@pytest.fixture
def injected(governed: User, node: Node, images: Images) -> Iterator[User]:
    """The same, where each pod gets a container, the first of all, as some service meshes do it."""
    script = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
    container = f'name: "mesh", image: "{images["examples"]}", command: ["sh", "-c", "{script}"]'
    patch = f'[JSONPatch{{op: "add", path: "/spec/containers/0", value: Object.spec.containers{{{container}}}}}]'
    selector = {"matchLabels": {"kubernetes.io/metadata.name": governed.namespace}}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    policy = {
        "matchConstraints": {"resourceRules": [rule], "namespaceSelector": selector},
        "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}],
    }
    admin = node.admin()
    try:
        for kind, spec in (("ies", policy), ("ybindings", {"policyName": "mesh"})):
            admin.request("POST", _MUTATING + kind, {"metadata": {"name": "mesh"}, "spec": spec})
    except ApiError as e:
        if e.status != 404:
            raise
        pytest.skip("a cluster without mutating admission policies")
    body = {"spec": {"containers": [{"name": "c", "image": "none.local/none:1"}]}, "metadata": {"name": "try"}}
    path = f"/api/v1/namespaces/{governed.namespace}/pods"
    try:
        admin.wait(
            "the policy holds",
            lambda: len(admin.request("POST", path, body, dryRun="All")["spec"]["containers"]) == 2,
            20,
        )
        yield governed
    finally:
        for kind in ("ybindings", "ies"):
            admin.request("DELETE", f"{_MUTATING}{kind}/mesh")


def test_a_container_that_the_cluster_adds(injected: User, capfd: pytest.CaptureFixture[str]) -> None:
    """Ours are known by their names, whatever stands before them, and what that one means is said."""
    cells = Cells()
    cells.run(
        """
        def used(mib):
            held = bytearray(mib << 20)
            held[:: 4096] = b"x" * len(held[:: 4096])
            return len(held)
        """
    )
    with kt.fn(cells["used"], name="meshed").to(kt.Compute(memory_limit="200Mi")) as used:
        [pod] = injected.api.list("Pod", f"kubetorch.dev/service={used.service_name}")
        assert [each["name"] for each in pod["spec"]["containers"]] == ["mesh", "front", "worker"]
        assert used(1) == 1 << 20
        with pytest.raises(kt.WorkerDiedError, match="200") as caught:
            used(400)
        assert caught.value.cause == "oom"
        assert used(1) == 1 << 20
    shown = capfd.readouterr()
    said = f'the cluster has put "mesh" into the pod of "{used.service_name}"'
    assert (shown.out + shown.err).count(said) == 1
    injected.api.wait("nothing is left", lambda: not injected.ours(), 20)


def test_against_pod_security(governed: User, node: Node, images: Images) -> None:
    label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    node.admin().request("PATCH", f"/api/v1/namespaces/{governed.namespace}", label)
    cells = Cells()
    cells.run("def f(): return 1\n")
    with pytest.raises(kt.PodContainerError, match="pod security") as caught:
        kt.fn(cells["f"], name="refused").to(kt.Compute(run_as_root=True))
    assert "run_as_root" in str(caught.value)
    # What a pod is without that is what the strictest level allows, whatever its image is.
    cells.run(
        """
        def where():
            import getpass, os, sys, tempfile
            with tempfile.NamedTemporaryFile():
                return sys.executable, os.getuid(), getpass.getuser(), os.path.expanduser("~")
        """
    )
    with kt.fn(cells["where"], name="odd").to(kt.Compute(image=images["odd"]), stream_logs=False) as where:
        assert where() == ("/opt/conda/bin/python", 1000, "kubetorch", "/kubetorch/home")
    governed.api.wait("nothing is left", lambda: not governed.ours(), 20)
