"""The connection is cut between client and API server, watches and all (core issue, case 9)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import User
from tests.cluster.gateway import gateway
from tests.faults.proxy import Proxy
from tests.faults.test_cuts import (
    Rig,
    cut_everywhere,
    quick,
    rig,
    test_a_break_of_a_moment_costs_a_moment,
    test_breaks_at_random_moments_under_load,
    test_hello_cut,
    test_load_cut,
    test_transfer_cut_midway,
    test_two_and_three_cuts_in_a_row,
)


@pytest.fixture
def proxies(user: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Proxy]]:
    """What stands between this process and the API server from now on."""
    with gateway(user.kubeconfig, tmp_path) as (proxy, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield [proxy]


@pytest.mark.parametrize("how", ["close", "hole"])
def test_cut_at_every_frame_boundary(rig: Rig, quick: None, how: str) -> None:
    # Each costs more here; the steps are such that every type of frame is cut after, in both directions.
    cut_everywhere(rig, how, 2 << 20, 3 if how == "close" else 8)
