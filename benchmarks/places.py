"""Where a workload runs: on this machine, or on a cluster by each of the two ways to its pods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import kubetorch_jupyter as kt
from kubetorch_jupyter.backends.kubernetes.backend import kubernetes_backend
from kubetorch_jupyter.backends.kubernetes.client import Kind
from kubetorch_jupyter.backends.kubernetes.names import PORT
from kubetorch_jupyter.transport.portal import get_portal

from . import bare, limits
from .functions import noop

__all__ = ["Cluster", "Direct", "Local", "Place", "cluster", "local"]


class Place(Protocol):
    """Gives a handle for a function, and the limits of the way there."""

    name: str

    def handle(self, function: Callable[..., Any]) -> Any:
        """The function's handle; deployed when it is first asked for."""

    def compute(self) -> kt.Compute:
        """What a service is deployed with."""

    def latency(self, n: int) -> float:
        """As `limits.Server.latency`."""

    def in_flight(self, n: int, width: int) -> float:
        """As `limits.Server.in_flight`."""

    def bulk(self, size: int) -> float:
        """As `limits.Server.bulk`."""


class Local:
    """Pods of this machine; the limits are those of a bare loopback socket."""

    name = "local"

    def __init__(self, server: limits.Server) -> None:
        self.server = server
        self._handles: dict[Callable[..., Any], Any] = {}

    def compute(self) -> kt.Compute:
        return kt.Compute()

    def handle(self, function: Callable[..., Any]) -> Any:
        if function not in self._handles:
            self._handles[function] = kt.fn(function, name=f"bench-{function.__name__}").to(self.compute())
        return self._handles[function]

    def latency(self, n: int) -> float:
        return self.server.latency(n)

    def in_flight(self, n: int, width: int) -> float:
        return self.server.in_flight(n, width)

    def bulk(self, size: int) -> float:
        return self.server.bulk(size)

    def close(self) -> None:
        """End the services."""
        for handle in self._handles.values():
            handle.teardown()


class Cluster:
    """Pods of a cluster, through the API server's proxy; the limits are those of a bare pod that echoes."""

    def __init__(self, compute: kt.Compute) -> None:
        self.name = "proxy"
        self._compute = compute
        backend = kubernetes_backend(compute)
        self.space = get_portal().run(backend.space())
        self.image = str(backend.complete(compute).image.image_id)  # type: ignore[union-attr]
        self._handles: dict[Callable[..., Any], Any] = {}
        self._echoes: bare.Bare | None = None
        self.ways: tuple[bare.Way, bare.Way] | None = None

    def compute(self) -> kt.Compute:
        return self._compute

    def handle(self, function: Callable[..., Any]) -> Any:
        if function not in self._handles:
            self._handles[function] = kt.fn(function, name=f"bench-{function.__name__}").to(self.compute())
        return self._handles[function]

    def bare(self) -> bare.Bare:
        """A pod to compare with, not started yet. A service is there from now on, since both begin with its bundle."""
        self.handle(noop)
        return bare.Bare(self.space.cluster, self.space.namespace, self.image)

    def way(self, direct: bool = False) -> bare.Way:
        """The way to the pod that echoes, which is started when it is first asked for."""
        if self.ways is None:
            self._echoes = self.bare()
            get_portal().run(self._echoes.start(bare.ECHOES))
            self.ways = get_portal().run(self._echoes.ways())
        return self.ways[0 if direct else 1]

    def address(self, pod: str) -> str:
        """The address of a pod."""
        found = get_portal().run(self.space.cluster.get(Kind.POD, self.space.namespace, pod))
        assert found is not None, f"there is no pod {pod}"
        return str(found["status"]["podIP"])

    def latency(self, n: int) -> float:
        return bare.latency(self.way(), n)

    def in_flight(self, n: int, width: int) -> float:
        return bare.in_flight(self.way(), n, width)

    def bulk(self, size: int) -> float:
        return 2 * size / min(bare.bulk(self.way(), size) for _ in range(2))

    def close(self) -> None:
        """End what is there."""
        for handle in self._handles.values():
            handle.teardown()
        if self._echoes is not None:
            get_portal().run(self._echoes.end())


class Direct:
    """The same pods by their own address, as a client in the cluster reaches them."""

    name = "direct"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._handles: dict[Callable[..., Any], Any] = {}

    def compute(self) -> kt.Compute:
        return self._cluster.compute()

    def handle(self, function: Callable[..., Any]) -> Any:
        if function not in self._handles:
            self._handles[function] = self._redirected(self._cluster.handle(function))
        return self._handles[function]

    def _redirected(self, proxied: Any) -> Any:
        """A second handle of a service, with the address that a client in the cluster would have for its pod."""
        handle = kt.Fn.from_name(proxied.service_name, self._cluster.space.namespace)
        there = handle.service.endpoint
        pod = there.url.rpartition("/pods/")[2].partition(":")[0]
        url = f"http://{self._cluster.address(pod)}:{PORT}"

        async def use() -> None:
            handle.service.use([replace(there, url=url, credentials=None, tls=None, tls_name=None, proxy=None)])

        get_portal().run(use())
        return handle

    def latency(self, n: int) -> float:
        return bare.latency(self._cluster.way(direct=True), n)

    def in_flight(self, n: int, width: int) -> float:
        return bare.in_flight(self._cluster.way(direct=True), n, width)

    def bulk(self, size: int) -> float:
        return 2 * size / min(bare.bulk(self._cluster.way(direct=True), size) for _ in range(2))

    def close(self) -> None:
        """Nothing is its own."""


@contextmanager
def local() -> Iterator[Local]:
    """This machine."""
    with limits.server() as server:
        place = Local(server)
        try:
            yield place
        finally:
            place.close()


@contextmanager
def cluster(compute: kt.Compute) -> Iterator[tuple[Direct, Cluster]]:
    """A cluster, directly and through the API server's proxy."""
    proxied = Cluster(compute)
    try:
        yield Direct(proxied), proxied
    finally:
        proxied.close()
