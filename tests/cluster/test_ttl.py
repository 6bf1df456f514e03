"""An idle service of several replicas ends itself as a whole, and comes back when it is called (case 6)."""

from __future__ import annotations

import time
from typing import Any

import pytest

import kubetorch_jupyter as kt
from tests.cells import Cells
from tests.cluster.api import ApiError
from tests.cluster.conftest import OURS, User
from tests.cluster.node import GPUS, Node
from tests.promises import promise

TTL = 4.0

#: What the cluster keeps of what has been, for a while: what happened, who answered under a name, who is elected.
_TRACES = {"events", "endpoints", "endpointslices", "leases"}


def everything(node: Node, namespace: str) -> set[str]:
    """All objects of all kinds that a namespace has, as an administrator sees them."""
    admin = node.admin(namespace)
    groups = admin.request("GET", "/apis")["groups"]
    roots = ["/api/v1", *(f"/apis/{group['preferredVersion']['groupVersion']}" for group in groups)]
    found = set()
    for root in roots:
        for resource in admin.request("GET", root)["resources"]:
            kind = resource["name"]
            if resource["namespaced"] and "list" in resource["verbs"] and kind not in _TRACES:
                items = admin.request("GET", f"{root}/namespaces/{namespace}/{kind}")["items"]
                found |= {f"{kind}/{item['metadata']['name']}" for item in items}
    return found


def gpus_taken(node: Node) -> int:
    """How many GPUs the pods of the cluster have that haven't ended."""
    pods = [pod for pod in node.admin().request("GET", "/api/v1/pods")["items"] if pod["spec"].get("nodeName")]
    living = [pod for pod in pods if pod["status"]["phase"] in ("Pending", "Running")]
    containers = [container for pod in living for container in pod["spec"]["containers"]]
    return sum(int(c.get("resources", {}).get("limits", {}).get("nvidia.com/gpu", 0)) for c in containers)


@pytest.mark.usefixtures("empty_namespace")
def test_an_idle_service_ends_as_a_whole(node: Node, user: User, capsys: pytest.CaptureFixture[str]) -> None:
    cells = Cells()
    cells.run("def rank():\n    import os\n    return int(os.environ['JOB_COMPLETION_INDEX'])\n")
    before = everything(node, user.namespace)
    user.api.wait("nobody else has a GPU", lambda: not gpus_taken(node), 60)
    compute = kt.Compute(gpus="1", replicas=GPUS, inactivity_ttl=f"{TTL:g}s")
    handle = kt.fn(cells["rank"], name="idle").to(compute, stream_logs=False)
    try:
        named = kt.Fn.from_name("idle")
        [job] = user.api.list("Job", f"{OURS},kubetorch.dev/service={handle.service_name}")
        assert {handle() for _ in range(2 * GPUS)} == set(range(GPUS))
        called = time.monotonic()
        assert gpus_taken(node) == GPUS
        assert everything(node, user.namespace) > before

        # One replica is called for longer than the others would live: all of them go on.
        while time.monotonic() - called < TTL + 2:
            assert handle() in range(GPUS)
            time.sleep(0.5)
        pods = user.api.list("Pod", f"{OURS},kubetorch.dev/service={handle.service_name}")
        assert [pod["status"]["phase"] for pod in pods] == ["Running"] * GPUS

        idle = time.monotonic()
        complete = user.api.wait("the Job is complete", lambda: _completed(user, job["metadata"]["name"]), TTL + 15)
        promise("after its TTL a service has ended", time.monotonic() - idle - TTL, 3.0)
        assert complete["status"].get("succeeded", GPUS) == GPUS
        user.api.wait("nothing is left in the namespace", lambda: everything(node, user.namespace) == before, 30, 0.5)
        promise("after its TTL nothing is left of a service", time.monotonic() - idle - TTL, 10.0)
        assert gpus_taken(node) == 0
        assert not [info for info in kt.services() if info.name == handle.service_name]

        with pytest.raises(kt.PodLostError) as caught:
            named()
        assert "this handle has no code to deploy it again" in str(caught.value)
        capsys.readouterr()
        # It gets both GPUs, so they are free.
        assert handle() in range(GPUS)
        said = capsys.readouterr()
        assert "deploying it again" in said.out + said.err
        assert gpus_taken(node) == GPUS
    finally:
        handle.teardown()
    user.api.wait("nothing is left in the namespace", lambda: everything(node, user.namespace) == before, 30, 0.5)


def _completed(user: User, job: str) -> dict[str, Any] | None:
    """The Job when it is complete; an empty one when it is gone already."""
    try:
        found = user.api.get("Job", job)
    except ApiError as e:
        if e.status != 404:
            raise
        return {"status": {}}
    conditions = found["status"].get("conditions", [])
    return found if any(c["type"] == "Complete" and c["status"] == "True" for c in conditions) else None
