"""The connection is cut between client and API server, watches and all (core issue, case 9)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import kubetorch_jupyter as kt
from tests.cells import Cells
from tests.cluster.conftest import OnTheCluster, User
from tests.cluster.gateway import gateway
from tests.faults.proxy import Proxy
from tests.faults.test_cuts import (
    WORK,
    Rig,
    cut_everywhere,
    quick,
    recorded,
    test_a_break_of_a_moment_costs_a_moment,
    test_a_question_is_asked_again,
    test_breaks_at_random_moments_under_load,
    test_hello_cut,
    test_load_cut,
    test_transfer_cut_midway,
    test_two_and_three_cuts_in_a_row,
)


@pytest.fixture(scope="module")
def proxies(user: User, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Proxy]]:
    """What stands between this process and the API server for all tests of this module."""
    with (
        gateway(user.kubeconfig, tmp_path_factory.mktemp("gateway")) as (proxy, kubeconfig),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("KUBECONFIG", str(kubeconfig))
        yield [proxy]


@pytest.fixture(scope="module")
def deployed(proxies: list[Proxy], user: User) -> Iterator[tuple[kt.Cls, OnTheCluster, str]]:
    """What all of them call, where it is, and the file in which it counts: a pod for each would take long."""
    place = OnTheCluster(user)
    counter = place.path("counter")
    cells = Cells()
    cells.run(WORK)
    with kt.cls(cells["Work"]).to(kt.Compute(), init_args={"counter": counter}) as work:
        yield work, place, counter


@pytest.fixture
def rig(deployed: tuple[kt.Cls, OnTheCluster, str], proxies: list[Proxy]) -> Iterator[Rig]:
    """As locally; what earlier tests have counted doesn't count."""
    work, place, counter = deployed
    before = len(place.read(work.service_name, counter))
    with recorded():
        yield Rig(work, proxies[0], lambda: place.read(work.service_name, counter)[before:])


@pytest.mark.parametrize("how", ["close", "hole"])
def test_cut_at_every_frame_boundary(rig: Rig, quick: None, how: str) -> None:
    # Each costs more here; the steps are such that every type of frame is cut after, in both directions.
    cut_everywhere(rig, how, 2 << 20, 3 if how == "close" else 8)
