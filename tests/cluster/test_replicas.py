"""Services of several pods, and services that call them, as a cluster has them."""

from __future__ import annotations

import time
from typing import Any

import kubetorch_jupyter as kt
from tests.cells import Cells
from tests.cluster.conftest import User

CODE = """
import asyncio, os, socket

async def where(seconds=0.0):
    await asyncio.sleep(seconds)
    return socket.gethostname()

def outer(n):
    import asyncio

    async def all_at_once():
        return await asyncio.gather(*(inner.aio(0.3) for _ in range(n)))

    found = asyncio.run(all_at_once())
    backend = inner.service.backend
    return type(backend).__name__, backend.namespace, sorted(set(found)), max(map(found.count, set(found)))
"""


def pods(user: User, service: Any) -> list[str]:
    """The host names of a service's pods."""
    found = user.api.list("Pod", f"kubetorch.dev/service={service.name}")
    return sorted(pod["spec"]["hostname"] for pod in found if not pod["metadata"].get("deletionTimestamp"))


def until_elsewhere(where: Any, before: set[str]) -> set[str]:
    """The pods that take calls when none of those of before does any more."""
    until = time.monotonic() + 20
    while (now := {where() for _ in range(9)}) & before:
        assert time.monotonic() < until, (now, before)
    return now


def test_a_service_calls_a_service_of_three_pods(user: User) -> None:
    """With nothing in the caller's pod but the handle: no rights, no client library, only DNS."""
    cells = Cells()
    cells.run(CODE)
    with kt.fn(cells["where"]).to(kt.Compute(replicas=3)) as where:
        three = pods(user, where.service)
        assert len(three) == 3
        assert sorted({where() for _ in range(6)}) == three
        rows = where.service.status()["replicas"]
        assert [row["replica"] for row in rows] == [0, 1, 2]
        cells.namespace["inner"] = where
        with kt.fn(cells["outer"]).to(kt.Compute()) as outer:
            assert outer(3)[:2] == ("InsideBackend", user.namespace)
            kind, namespace, found, most = outer(30)
            assert (kind, namespace, found) == ("InsideBackend", user.namespace, three)
            assert most <= 12


def test_a_replica_that_is_deleted_costs_its_own_calls_and_is_taken_up_again(user: User) -> None:
    cells = Cells()
    cells.run(CODE)
    with kt.fn(cells["where"], name="spread").to(kt.Compute(replicas=2)) as where:
        first = pods(user, where.service)
        assert sorted({where() for _ in range(4)}) == first
        [gone] = [
            pod["metadata"]["name"]
            for pod in user.api.list("Pod", f"kubetorch.dev/service={where.service.name}")
            if pod["spec"]["hostname"] == first[1]
        ]
        user.api.delete("Pod", gone)
        lost, slowest = 0, 0.0
        until = time.monotonic() + 4
        while time.monotonic() < until:
            begun = time.monotonic()
            try:
                where()
            except kt.PodLostError:
                lost += 1
            slowest = max(slowest, time.monotonic() - begun)
        assert lost <= 1
        assert slowest < 2
        # The Job's controller waits before it makes another; it has the code, and gets its share.
        until = time.monotonic() + 60
        while len({where() for _ in range(6)}) < 2:
            assert time.monotonic() < until
            time.sleep(0.5)
        assert len(where.service.status()["replicas"]) == 2


def test_a_handle_follows_its_service_to_another_number_of_pods(user: User) -> None:
    cells = Cells()
    cells.run(CODE)
    with kt.fn(cells["where"], name="grows").to(kt.Compute(replicas=2)) as first:
        before = {first() for _ in range(4)}
        assert len(before) == 2
        call = first.spawn(3.0)
        _ = call.id
        kt.fn(cells["where"], name="grows").to(kt.Compute(replicas=3))
        # Pods that are replaced say so a moment after the new ones are there.
        now = until_elsewhere(first, before)
        assert len(now) == 3
        assert call.result(timeout=20) in before
        kt.fn(cells["where"], name="grows").to(kt.Compute(replicas=1))
        assert len(until_elsewhere(first, now)) == 1
