"""Guards of speed on a cluster, as `tests.test_speed`'s on this machine (``benchmarks/README.md``)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import kubetorch_jupyter as kt
from benchmarks import w2, w8
from benchmarks.guard import check
from benchmarks.places import Cluster, cluster
from benchmarks.rows import Row
from tests.promises import record


@pytest.fixture(scope="module")
def proxied() -> Iterator[Cluster]:
    """The cluster of these tests, through the API server's proxy."""
    with cluster(kt.Compute()) as (_, place):
        yield place


@pytest.mark.parametrize("row", [*w8.ROWS, *w2.ROWS], ids=lambda row: row.name)
def test_it_has_not_become_slow(row: Row, proxied: Cluster) -> None:
    found = check(row, proxied)
    record(str(found))
    assert found.within
