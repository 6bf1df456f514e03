"""Guards of speed: ratios to a limit of the same run, at twice their goals (``benchmarks/README.md``)."""

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


@pytest.mark.parametrize("row", [*w2.ROWS, *w8.ROWS], ids=lambda row: row.name)
def test_nothing_has_become_slow(row: Row, proxied: Cluster) -> None:
    found = check(row, proxied)
    record(str(found))
    assert found.within
