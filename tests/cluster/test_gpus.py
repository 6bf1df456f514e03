"""GPUs: what is asked for, what is said when there are too few, and what happens then (case 3)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import kubetorch_jupyter as kt
from tests.cells import Cells
from tests.cluster.conftest import OnTheCluster, User
from tests.cluster.node import GPUS, Node
from tests.cluster.watching import Said, Shown, shown
from tests.promises import promise

GPU = "nvidia.com/gpu"
LACKING = f"Insufficient {GPU}"
#: That a node has too few is said within so many seconds.
SOON = 2.0


@pytest.fixture(scope="module", autouse=True)
def _two(cluster_node: Node | None) -> Iterator[None]:
    """As many as the tests count on, where somebody else has started the cluster."""
    if cluster_node is None:
        yield
        return
    with cluster_node.gpus(GPUS):
        yield


@pytest.fixture
def shows() -> Iterator[Shown]:
    with shown() as record:
        yield record


@pytest.fixture
def cells() -> Cells:
    cells = Cells()
    cells.run(
        """
        import os, time
        def train(seconds=0):
            time.sleep(seconds)
            return os.uname().nodename
        """
    )
    return cells


def test_one_of_two(node: Node, cells: Cells, place: OnTheCluster) -> None:
    with kt.fn(cells["train"]).to(kt.Compute(gpus="1"), stream_logs=False) as train:
        [pod] = place.pods(train.service_name)
        assert train() == pod["spec"]["hostname"]
    resources = {container["name"]: container["resources"] for container in pod["spec"]["containers"]}
    assert resources["worker"]["requests"][GPU] == resources["worker"]["limits"][GPU] == "1"
    assert GPU not in resources["front"].get("requests", {})
    tolerated = {toleration["key"]: toleration for toleration in pod["spec"]["tolerations"]}
    assert tolerated[GPU]["operator"] == "Exists"
    assert tolerated["dedicated"]["value"] == "gpu"


@pytest.mark.usefixtures("empty_namespace")
def test_more_than_there_are(node: Node, cells: Cells, user: User, shows: Shown) -> None:
    """With `unschedulable_timeout=0` nothing is waited for, and the scheduler's own words are the error."""
    with Said(user.api, {f"{user.name}-train": LACKING}) as said, pytest.raises(kt.ResourceNotAvailableError) as caught:
        kt.fn(cells["train"]).to(kt.Compute(gpus="4", unschedulable_timeout=0))
    promise("too few GPUs, after the scheduler said it", time.monotonic() - said.at[f"{user.name}-train"], 2.0)
    assert LACKING in str(caught.value)
    assert "each pod asks for 4" in str(caught.value)
    assert user.ours() == []


def test_more_come_meanwhile(node: Node, cells: Cells, user: User, shows: Shown) -> None:
    """The deploy waits, and shows the reason; then it goes on by itself."""
    with Said(user.api, {f"{user.name}-train": LACKING}) as said, ThreadPoolExecutor(1) as pool:
        deploying = pool.submit(kt.fn(cells["train"]).to, kt.Compute(gpus="4"))
        at = shows.wait(LACKING)
        promise("too few GPUs are shown, after the scheduler said it", at - said.at[f"{user.name}-train"], 2.0)
        with node.gpus(4):
            came = time.monotonic()
            train = deploying.result(timeout=60)
            promise("ready after the GPUs have come", time.monotonic() - came, 5.0)
            with train:
                assert train()


def test_a_changed_spec_where_both_do_not_fit(node: Node, cells: Cells, shows: Shown, place: OnTheCluster) -> None:
    """Both GPUs are the old pod's: its calls end first, then it goes, then the new one comes; and that is said."""
    compute = kt.Compute(gpus=GPUS)
    with kt.fn(cells["train"]).to(compute) as train:
        [old] = place.pods(train.service_name)
        call = train.spawn(3)
        assert call.id
        kt.fn(cells["train"]).to(kt.Compute(gpus=GPUS, memory="64Mi"))
        assert call.result(timeout=1) == old["spec"]["hostname"]  # it had ended when its pod went
        [new] = place.pods(train.service_name)
        assert train() == new["spec"]["hostname"] != old["spec"]["hostname"]
    assert shows.first("no room for the new pod") is not None
    assert shows.first("1 calls still run") is not None


def test_a_label_that_no_node_has(cells: Cells, user: User, shows: Shown) -> None:
    with pytest.raises(kt.ResourceNotAvailableError, match="node affinity/selector"):
        kt.fn(cells["train"]).to(kt.Compute(gpus="1", gpu_type="H100-of-nobody", unschedulable_timeout=0))
