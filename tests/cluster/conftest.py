"""Where the tests of this folder run: a cluster, as a user with the rights of the role `edit` in one namespace.

With the one-node cluster's program (``KT_TEST_CLUSTER``, or ``cluster`` on PATH; root) namespace and user are made for
the session, and tests may break the node. Else the kubeconfig is taken as it is (``KT_TEST_KUBECONFIG``, or kubectl's),
and what needs the node, or a second user, is left out.

Most tests are those of local pods, imported and run unchanged: here ``kt.Compute()`` means the cluster.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

import kubetorch_jupyter as kt
from tests.cluster.api import KINDS, Api, ApiError
from tests.cluster.images import Images
from tests.cluster.node import Node, find_program
from tests.conftest import NEWEST, KernelFactory, _factory, kernel_variables
from tests.kernel.harness import Kernel
from tests.places import Usage

#: Ours have it, whoever made them.
OURS = "app.kubernetes.io/managed-by=kubetorch-jupyter"
#: A pod heeds SIGTERM, and the garbage collector takes what it owned, within so many seconds.
GONE = 20.0


@dataclass(frozen=True)
class User:
    """Somebody with a kubeconfig.

    Parameters
    ----------
    name
        What services are prefixed with.
    kubeconfig
        The file.
    namespace
        Where the rights hold.
    account
        The service account that stands for this user in the cluster, for pods that act as the user; None: unknown.
    """

    name: str
    kubeconfig: Path
    namespace: str
    account: str | None = None

    @cached_property
    def api(self) -> Api:
        """The API, with this user's rights."""
        return Api(self.kubeconfig, self.namespace)

    @property
    def environment(self) -> dict[str, str]:
        """The settings that make this package mean the cluster, as this user."""
        return {
            "KT_BACKEND": "kubernetes",
            "KUBECONFIG": str(self.kubeconfig),
            "KT_NAMESPACE": self.namespace,
            "KT_USERNAME": self.name,
            "KT_INACTIVITY_TTL": "15m",
            # Long for a pod whose image is there, short for a person who waits.
            "KT_LAUNCH_TIMEOUT": "90",
        }

    def ours(self) -> list[str]:
        """All objects of ours in the namespace, of users whose names begin with this one's."""
        found = []
        for kind in KINDS:
            for item in self.api.list(kind, OURS):
                if item["metadata"]["labels"].get("kubetorch.dev/owner", self.name).startswith(self.name):
                    found.append(f"{kind} {item['metadata']['name']}")
        return sorted(found)

    def left(self) -> list[str]:
        """What of ours stays in the namespace: what has ended is gone by then, pods and all."""
        deadline = time.monotonic() + GONE
        while (found := self.ours()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    def wait_until_empty(self) -> None:
        """Wait until what has ended is gone; fails when something stays."""
        left = self.left()
        assert not left, f"left in namespace {self.namespace}: {left}"


# -- the session -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def cluster_node() -> Iterator[Node | None]:
    """The one-node cluster, started if it isn't up; None when the program can't be used here."""
    program, _ = find_program()
    if program is None or os.environ.get("KT_TEST_KUBECONFIG"):
        yield None
        return
    node = Node(program)
    started = not node.is_up
    if started:
        node.up()
    try:
        node.make_roomy()
        yield node
    finally:
        if started:
            node.down()


@pytest.fixture
def node(cluster_node: Node | None) -> Node:
    """The node, to break; skips the test where there is none."""
    if cluster_node is None:
        given = "KT_TEST_KUBECONFIG says which cluster, and not its node"
        pytest.skip(f"breaks the node: {find_program()[1] or given}")
    return cluster_node


def _given_kubeconfig() -> Path:
    named = os.environ.get("KT_TEST_KUBECONFIG") or os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    path = Path(named or Path.home() / ".kube" / "config")
    if not path.exists():
        pytest.skip(f"no cluster: {find_program()[1]}, and no kubeconfig at {path} (KT_TEST_KUBECONFIG names one)")
    return path


MakeUser = Callable[[str, str], User]


@pytest.fixture(scope="session")
def make_user(cluster_node: Node | None) -> Iterator[MakeUser]:
    """``make_user(name, namespace)`` on the one-node cluster; both are new, and gone after the session."""
    if cluster_node is None:
        pytest.skip(f"needs users of its own: {find_program()[1]}")
    folder = Path(tempfile.mkdtemp(prefix="kt-users-"))
    namespaces: set[str] = set()
    mark = secrets.token_hex(3)

    def make(name: str, namespace: str, role: str = "edit") -> User:
        namespace = f"{namespace}-{mark}"
        namespaces.add(namespace)
        path = folder / f"{namespace}-{name}"
        cluster_node.make_user(name, namespace, path, role)
        return User(name, path, namespace, name)

    yield make
    admin = cluster_node.admin()
    for namespace in namespaces:
        admin.request("DELETE", f"/api/v1/namespaces/{namespace}")
    for namespace in namespaces:
        admin.wait(f"namespace {namespace} is gone", lambda name=namespace: _is_gone(admin, name), 60)
    shutil.rmtree(folder)


def _is_gone(admin: Api, namespace: str) -> bool:
    try:
        admin.request("GET", f"/api/v1/namespaces/{namespace}")
    except ApiError as e:
        return e.status == 404
    return False


@pytest.fixture(scope="session")
def user(request: pytest.FixtureRequest, cluster_node: Node | None) -> User:
    """The user of all tests."""
    if cluster_node is not None:
        make: MakeUser = request.getfixturevalue("make_user")
        return make("tester", "kt-test")
    path = _given_kubeconfig()
    namespace = os.environ.get("KT_TEST_NAMESPACE") or Api(path).namespace
    # A name of this session's own: others may use the namespace too.
    return User(f"test{secrets.token_hex(2)}", path, namespace, os.environ.get("KT_TEST_SERVICE_ACCOUNT"))


@pytest.fixture(scope="session")
def other_user(make_user: MakeUser) -> User:
    """Somebody else, with rights in another namespace only."""
    return make_user("other", "kt-other")


@pytest.fixture(scope="session")
def images(cluster_node: Node | None) -> Images:
    """Names of images, by what is in them."""
    return Images(cluster_node)


# -- here, `kt.Compute()` means the cluster ----------------------------------------------------------------------------


@pytest.fixture(scope="package", autouse=True)
def _on_the_cluster(user: User, images: Images) -> Iterator[None]:
    """The settings; at the end, all that belonged to what the tests deployed is gone from the namespace."""
    settings = {**user.environment, "KT_IMAGE": images["examples"]}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    kernel_variables.update(settings)
    try:
        yield
        user.wait_until_empty()
    finally:
        for name, value in before.items():
            kernel_variables.pop(name, None)
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_in_the_namespace(request: pytest.FixtureRequest, user: User, _on_the_cluster: None) -> Iterator[None]:
    """After a module, what its tests deployed is torn down; its pods may take their time until the last module ends.

    A kernel's services outlive it here, so those are ended now; tests in this process have to end their own.
    """
    yield
    services = end_services(user)
    kernels = any(item.get_closest_marker("kernel") for item in request.session.items if item.module is request.module)
    assert kernels or not services, f"the tests left services: {services}"
    left = [job["metadata"]["name"] for job in user.api.list("Job", OURS) if "deletionTimestamp" not in job["metadata"]]
    left = [name for name in left if name.startswith(user.name)]
    assert not left, f"Jobs left in namespace {user.namespace}: {left}"


@pytest.fixture
def empty_namespace(user: User) -> None:
    """Nothing of earlier tests is in the namespace any more."""
    user.wait_until_empty()


def end_services(user: User) -> list[str]:
    """Tear down what the user has deployed, as ``%kt down --all`` does; the names."""
    services = [info.name for info in kt.services() if str(info.owner.get("user")).startswith(user.name)]
    for name in services:
        kt.teardown(name)
    return services


class OnTheCluster:
    """Pods of a cluster, looked into by commands that are run in them: a `Place`.

    Parameters
    ----------
    user
        Whose pods.
    """

    patience = GONE

    def __init__(self, user: User) -> None:
        self.user = user
        self._mark = secrets.token_hex(3)
        # So that what it keeps open is open before a test counts.
        user.api.list("Pod", OURS)

    def pods(self, service: str) -> list[dict[str, Any]]:
        """A service's pods that run, the newest last."""
        found = self.user.api.list("Pod", f"{OURS},kubetorch.dev/service={service}")
        living = [
            pod for pod in found if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
        ]
        return sorted(living, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def execute(self, service: str, *command: str, container: str = "worker") -> str:
        """Run a command in the service's pod."""
        return self.user.api.execute(self.pods(service)[-1]["metadata"]["name"], container, command)

    def usage(self, handle: Any) -> dict[str, Usage]:
        worker = int(handle.service.status()["worker"])
        service: str = handle.service_name
        return {"front": self._usage(service, "front", 1), "worker": self._usage(service, "worker", worker)}

    def _usage(self, service: str, container: str, pid: int) -> Usage:
        status = self.execute(service, "cat", f"/proc/{pid}/status", container=container)
        descriptors = self.execute(service, "ls", f"/proc/{pid}/fd", container=container).split()
        return Usage.told(len(descriptors), status)

    def path(self, name: str) -> str:
        # Pods live longer than a test.
        return f"/tmp/{self._mark}-{name}"

    def read(self, service: str, path: str) -> str:
        return self.execute(service, "sh", "-c", f"cat {path} 2>&- || true")

    def touch(self, service: str, path: str) -> None:
        self.execute(service, "sh", "-c", f"true > {path}")

    def unlink(self, service: str, path: str) -> None:
        self.execute(service, "rm", path)

    def running(self, kernel: Kernel) -> list[str]:
        return self.user.ours()


@pytest.fixture
def place(user: User) -> OnTheCluster:
    """Where the pods are."""
    return OnTheCluster(user)


# -- kernels: what differs between them has nothing to do with where pods are ------------------------------------------


@pytest.fixture(params=[NEWEST])
def make_kernel(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KernelFactory]:
    """As on local pods, of the newest ipykernel only."""
    yield from _factory(request.param, tmp_path)


#: What differs little from its neighbours, and takes seconds: `make cluster-soak`.
_LONG = (
    "test_stop.py::test_stop_while_deploying[await ",
    "test_worker_death.py::test_death_in_init_again_and_again[kill]",
    "test_worker_death.py::test_death_in_init_again_and_again[segfault]",
    "test_worker_death.py::test_death_in_init_at_the_first_deploy[kill]",
    "test_worker_death.py::test_death_in_init_at_the_first_deploy[segfault]",
    "test_worker_death.py::test_retries[segfault",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            if item.nodeid.rpartition("/")[2].startswith(_LONG):
                item.add_marker(pytest.mark.soak)
