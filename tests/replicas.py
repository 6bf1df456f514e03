"""Services of several pods without a cluster: each replica is a local pod that answers to the service's name.

`Several` is what a backend of a cluster is to the client: pods elsewhere, which come and go by themselves. It keeps
nothing of its own, so that other processes find the same services.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

import kubetorch_jupyter as kt
from kubetorch_jupyter import deploying, overview, service
from kubetorch_jupyter.backends import local, registry
from kubetorch_jupyter.backends.base import Event, Progress, Revision, ServiceInfo, ServiceSpec
from kubetorch_jupyter.backends.local import local_backend
from kubetorch_jupyter.compute import Compute
from kubetorch_jupyter.errors import PodLostError
from kubetorch_jupyter.progress import DeployProgress
from kubetorch_jupyter.transport.endpoint import Endpoint
from kubetorch_jupyter.transport.portal import get_portal

_POD = re.compile(r"(.+)-r(\d+)-g(\d+)")
_front_params = local.front_params


class Several:
    """The backend: `install` puts it in the place of all."""

    name = "several"
    here = False
    namespace: str | None = None

    def __init__(self) -> None:
        #: What fronts are started with besides.
        self.params: dict[str, Any] = {}
        self.kept: list[Mapping[str, Any]] = []
        self.discarded: list[str] = []
        self.finds = 0

    @contextmanager
    def install(self) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            for module in (deploying, overview, service):
                patch.setattr(module, "get_backend", lambda compute: self)
            patch.setattr(local, "front_params", self._front_params)
            yield self

    def _front_params(self, record: registry.Record, spec: ServiceSpec) -> dict[str, Any]:
        found = _POD.fullmatch(spec.name)
        assert found is not None
        return {**_front_params(record, spec), "name": found[1], **self.params}

    def full_name(self, name: str) -> str:
        return name

    def complete(self, compute: Compute) -> Compute:
        return compute

    def where(self) -> str:
        return "among several"

    # -- pods --------------------------------------------------------------------------------------------------------

    def pods(self, name: str) -> dict[int, registry.Record]:
        """Those that run, by rank; the newest of each."""
        found: dict[int, tuple[int, registry.Record]] = {}
        for record in registry.read_all():
            match = _POD.fullmatch(record.name)
            if match is None or match[1] != name or record.state != "running":
                continue
            rank, generation = int(match[2]), int(match[3])
            if rank not in found or found[rank][0] < generation:
                found[rank] = generation, record
        return {rank: record for rank, (_, record) in sorted(found.items())}

    def endpoint(self, name: str, rank: int, record: registry.Record) -> Endpoint:
        front = local_backend()._endpoint(record)

        def gone(ended: bool) -> PodLostError | None:
            error = front.lost(ended)
            return PodLostError(service=name, reason=error.reason) if error is not None else None

        return replace(front, service=name, gone=gone, rank=rank)

    async def bring(self, name: str, rank: int, compute: Compute) -> None:
        """Start a pod of that rank."""
        pod = f"{name}-r{rank}-g{time.monotonic_ns()}"
        await local_backend().apply(ServiceSpec(pod, compute), DeployProgress(pod, quiet=True))

    # -- the protocol ------------------------------------------------------------------------------------------------

    async def apply(self, spec: ServiceSpec, progress: Progress) -> Revision:
        before = self.pods(spec.name)
        for rank in range(spec.compute.replicas):
            if rank not in before:
                await self.bring(spec.name, rank, spec.compute)
        return _Pods(self, spec.name, await self._endpoints(spec.name), not before)

    async def _endpoints(self, name: str) -> tuple[Endpoint, ...]:
        return tuple(self.endpoint(name, rank, record) for rank, record in self.pods(name).items())

    async def find(self, name: str) -> ServiceInfo | None:
        self.finds += 1
        endpoints = await self._endpoints(name)
        return self._info(name, endpoints) if endpoints else None

    def _info(self, name: str, endpoints: tuple[Endpoint, ...]) -> ServiceInfo:
        return ServiceInfo(name, self.name, "running", time.time(), {}, {}, endpoints)

    async def list(self) -> Sequence[ServiceInfo]:
        names = {match[1] for record in registry.read_all() if (match := _POD.fullmatch(record.name))}
        return [info for name in sorted(names) if (info := await self.find(name)) is not None]

    def known(self) -> Sequence[ServiceInfo]:
        return []

    async def delete(self, name: str) -> None:
        self.discarded.append(name)
        for record in registry.read_all():
            match = _POD.fullmatch(record.name)
            if match is not None and match[1] == name:
                await local_backend().delete(record.name)

    async def watch(self, name: str) -> AsyncIterator[Event]:
        nothing: Sequence[Event] = ()
        for event in nothing:
            yield event

    # -- for tests ---------------------------------------------------------------------------------------------------

    def replace_pod(self, name: str, rank: int) -> None:
        """Start a pod of that rank, as the cluster does by itself."""
        get_portal().run(self.bring(name, rank, kt.Compute()))


class _Pods:
    """A `Revision`."""

    def __init__(self, backend: Several, name: str, endpoints: tuple[Endpoint, ...], new: bool) -> None:
        self.backend, self.name, self.endpoints, self.new = backend, name, endpoints, new

    async def keep(self, meta: Mapping[str, Any], buffers: Sequence[Any], progress: Progress, *, loaded: bool) -> None:
        self.backend.kept.append(dict(meta))

    async def discard(self) -> None:
        await self.backend.delete(self.name)
