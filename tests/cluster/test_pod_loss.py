"""Pods that are deleted, evicted and killed, in whole and in part, during a call and while idle (case 5)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import kubetorch_jupyter as kt
from tests.cells import Cells
from tests.cluster.conftest import OURS, User
from tests.cluster.node import Node
from tests.kernel.harness import Kernel
from tests.promises import promise

LIMIT = "200Mi"
#: Nobody waits longer than this, whatever happens.
PATIENCE = 60.0

TICKS = """
import os, subprocess, sys, time

def ticks(n, pause=0.1):
    for i in range(n):
        print("tick", i)
        time.sleep(pause)
    return n

def hog():
    "A child that takes more than the container may have; how it ended."
    return subprocess.run([sys.executable, "-c", "x = bytearray(1 << 30)"]).returncode
"""


class Lossy:
    """A service that is broken again and again, by one handle that goes on all the while.

    Parameters
    ----------
    user
        Whose.
    """

    def __init__(self, user: User) -> None:
        self.user = user
        self.cells = Cells()
        self.cells.run(TICKS)
        self.ticks = kt.fn(self.cells["ticks"], name="lossy").to(kt.Compute(memory_limit=LIMIT), stream_logs=False)

    def pod(self) -> dict[str, Any]:
        """Its pod, once both of its containers run and no other is left."""

        def one() -> dict[str, Any] | None:
            found = self.user.api.list("Pod", f"{OURS},kubetorch.dev/service={self.ticks.service_name}")
            if len(found) != 1 or "deletionTimestamp" in found[0]["metadata"]:
                return None
            states = [each["state"] for each in found[0]["status"].get("containerStatuses", [])]
            return found[0] if len(states) == 2 and all("running" in state for state in states) else None

        pod: dict[str, Any] = self.user.api.wait("the service has one pod, and it runs", one, PATIENCE)
        return pod

    def running_call(self, handle: Any = None, n: int = 600, **options: Any) -> Any:
        """A call that has begun to print."""
        call = (handle or self.ticks).options(stream_logs=False, **options).spawn(n)
        self.user.api.wait("the call runs", lambda: "tick 1" in call.logs(), 10)
        return call

    def comes_back(self, after: str) -> None:
        """The next call works, by whatever pod, and soon."""
        start = time.monotonic()
        assert self.ticks.spawn(1, 0.0).result(timeout=PATIENCE) == 1
        promise(f"the next call after {after}", time.monotonic() - start, 5.0)


@pytest.fixture(scope="module")
def lossy(user: User) -> Iterator[Lossy]:
    lossy = Lossy(user)
    yield lossy
    lossy.ticks.teardown()


Break = Callable[[Lossy, Node], None]


def deleted(lossy: Lossy, node: Node) -> None:
    lossy.user.api.delete("Pod", lossy.pod()["metadata"]["name"])


def deleted_at_once(lossy: Lossy, node: Node) -> None:
    lossy.user.api.delete("Pod", lossy.pod()["metadata"]["name"], gracePeriodSeconds=0)


def evicted(lossy: Lossy, node: Node) -> None:
    name = lossy.pod()["metadata"]["name"]
    about = {"name": name, "namespace": lossy.user.namespace}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": about}
    lossy.user.api.request("POST", f"/api/v1/namespaces/{lossy.user.namespace}/pods/{name}/eviction", body)


def killed(lossy: Lossy, node: Node) -> None:
    node.kill(lossy.pod()["metadata"]["name"], lossy.user.namespace)


def front_killed(lossy: Lossy, node: Node) -> None:
    node.kill_container(lossy.pod(), "front")


#: How a pod ends, and what its calls are told of it.
ENDS: dict[Break, str] = {
    deleted: "it was deleted",
    deleted_at_once: "it was deleted",
    evicted: "it was evicted by request",
    killed: 'its container "front" was ended by SIGKILL',
    front_killed: 'its container "front" was ended by SIGKILL',
}


#: Those that differ little from the others.
_LONG = (deleted_at_once, killed)


@pytest.mark.parametrize(
    "end", [pytest.param(end, marks=[pytest.mark.soak] * (end in _LONG)) for end in ENDS], ids=lambda end: end.__name__
)
def test_a_pod_ends(lossy: Lossy, node: Node, end: Break) -> None:
    lossy.pod()
    call = lossy.running_call()
    start = time.monotonic()
    end(lossy, node)
    with pytest.raises(kt.PodTerminatedError) as caught:
        call.result(timeout=PATIENCE)
    # The kubelet looks once a second.
    promise(f"a call of a pod that is {end.__name__} has its error", time.monotonic() - start, 2.0)
    assert ENDS[end] in str(caught.value)
    assert "lossy" in str(caught.value)
    assert caught.value.evicted == (end is evicted)
    lossy.comes_back(f"a call whose pod was {end.__name__}")

    lossy.pod()
    end(lossy, node)
    time.sleep(1.5)  # so that the pod has ended before anybody asks
    lossy.comes_back(f"a pause in which the pod was {end.__name__}")


def test_retries_cover_a_lost_pod(lossy: Lossy, node: Node) -> None:
    lossy.pod()
    call = lossy.running_call(n=25, retries=1)
    deleted(lossy, node)
    assert call.result(timeout=PATIENCE) == 25


def test_the_workers_container_is_killed(lossy: Lossy, node: Node) -> None:
    for time_of_it in ("the first time", "again"):
        pod = lossy.pod()
        call = lossy.running_call()
        start = time.monotonic()
        node.kill_container(pod, "worker")
        with pytest.raises(kt.WorkerDiedError) as caught:
            call.result(timeout=PATIENCE)
        promise("a call whose worker's container is killed has its error", time.monotonic() - start, 2.0)
        assert (caught.value.cause, caught.value.signal) == ("signal", 9)
        # The kubelet starts it again at once the first time; the next time it waits, and there is another pod instead.
        lossy.comes_back(f"a call whose worker's container was killed {time_of_it}")


def test_the_workers_container_runs_out_of_memory_as_a_whole(lossy: Lossy, node: Node) -> None:
    """With cgroup v2 the system kills all of it; here only one of its processes, and the test kills the rest."""
    hog = kt.fn(lossy.cells["hog"], name="hog").to(kt.Compute(memory_limit=LIMIT), stream_logs=False)
    try:
        assert hog() == -9
        # The same service, and the same container.
        ticks = kt.fn(lossy.cells["ticks"], name="hog").to(kt.Compute(memory_limit=LIMIT), stream_logs=False)
        call = lossy.running_call(ticks)
        [pod] = lossy.user.api.list("Pod", f"{OURS},kubetorch.dev/service={hog.service_name}")
        node.kill_container(pod, "worker")
        with pytest.raises(kt.WorkerDiedError) as caught:
            call.result(timeout=PATIENCE)
    finally:
        hog.teardown()
    assert caught.value.cause == "oom"
    assert caught.value.limit == 200 << 20
    assert LIMIT in str(caught.value)


@pytest.mark.parametrize("end", [front_killed, deleted], ids=lambda end: end.__name__)
def test_a_handle_without_code_finds_the_service_again(lossy: Lossy, node: Node, end: Break) -> None:
    lossy.pod()
    handle = kt.Fn.from_name("lossy")
    assert handle(1, stream_logs=False) == 1
    end(lossy, node)
    time.sleep(1.5)
    # The kubelet starts its containers again, which have kept the code; or the Job makes a pod, with the Secret's.
    start = time.monotonic()
    assert handle.spawn(1, 0.0).result(timeout=PATIENCE) == 1
    promise(f"a handle without code, after the pod was {end.__name__}", time.monotonic() - start, 5.0)


def test_a_cell_hears_of_it_and_the_next_one_works(kernel: Kernel, user: User, node: Node) -> None:
    kernel.run("%load_ext kubetorch_jupyter\nimport kubetorch as kt, time")
    kernel.run(
        "def count(n):\n"
        "    for i in range(n):\n"
        "        print('line', i)\n"
        "        time.sleep(0.1)\n"
        "    return n\n"
        "count = kt.fn(count, name='in-a-cell').to(kt.Compute())"
    )
    cell = kernel.begin("count(600)")
    cell.wait_text("line 3")
    name = f"{user.name}-in-a-cell"
    [pod] = user.api.list("Pod", f"{OURS},kubetorch.dev/service={name}")
    start = time.monotonic()
    node.kill_container(pod, "front")
    cell.wait(PATIENCE)
    promise("a cell whose pod was lost has control back", time.monotonic() - start, 2.0)
    assert cell.error is not None
    assert "PodTerminatedError" in str(cell.error)
    again = kernel.run("count(2)", timeout=PATIENCE)
    assert again.error is None
    assert "line 1" in again.stdout
    kernel.run("count.teardown()")
