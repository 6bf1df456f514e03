"""Services of the cluster as one of its pods reaches them: by their names in DNS, and with no rights there.

A handle that travels into a pod brings the token of its service along; where its pods are is asked of the cluster's
DNS, whose names for a service's pods are those of its headless Service. That is enough for calls. This module travels
to pods, where the client library of Kubernetes isn't; it needs the standard library only.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from ..compute import Compute
from ..errors import ConnectionFailedError, DeployError, PodLostError
from ..transport.endpoint import POD_PORT, Endpoint
from ..transport.portal import get_portal
from .base import Event, Finding, Progress, Revision, ServiceInfo, ServiceSpec, VolumeStore, curl_line

__all__ = ["InsideBackend", "inside_backend", "look_up"]

#: How long a name that isn't known is asked for again, between two tries, and how often at most for pods that may have
#: ended, in seconds: an answer that there is no such name may be kept for a while.
_PATIENCE = 5.0
_AGAIN = 0.5
_LOOK = 1.0
_HINT = (
    "if it runs, a NetworkPolicy may keep pods of this namespace from it: ask for one that lets them in at port "
    f"{POD_PORT}"
)


async def look_up(host: str) -> list[str]:
    """The addresses of a name, in order; none when there is no such name.

    Raises
    ------
    OSError
        When nobody can say.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, POD_PORT, type=socket.SOCK_STREAM)
    except socket.gaierror as e:
        if e.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
            return []
        raise
    return sorted({str(info[4][0]) for info in found})


@dataclass
class _Name:
    """A service that this process was told of."""

    host: str
    token: str = field(repr=False)
    addresses: Sequence[str] = ()
    asked: float = 0.0
    asking: asyncio.Task[None] | None = None


class InsideBackend:
    """The services of one namespace that handles have told of; `inside_backend` gives the one of this process.

    Parameters
    ----------
    namespace
        Theirs; None: this pod's own.
    """

    name = "kubernetes"
    here = False

    def __init__(self, namespace: str | None) -> None:
        self.namespace = namespace
        self._names: dict[str, _Name] = {}

    def tell(self, name: str, token: str) -> None:
        """There is a service of that name, and its token."""
        known = self._names.get(name)
        if known is None:
            # A Service's name begins with a letter; see the Kubernetes backend's ``names``.
            first = name if name[:1].isalpha() else re.sub(r"-+$", "", f"s-{name}"[:63])
            known = self._names[name] = _Name(f"{first}.{self.namespace}.svc" if self.namespace else first, token)
        known.token = token

    def full_name(self, name: str) -> str:
        """The name itself: handles bring full ones."""
        return name

    def complete(self, compute: Compute) -> Compute:
        """As it is."""
        return compute

    def where(self) -> str:
        """For sentences."""
        place = f"namespace {self.namespace}" if self.namespace else "this pod's namespace"
        return f"in {place}, as far as the cluster's DNS tells this pod"

    # -- looking -----------------------------------------------------------------------------------------------------

    async def find(self, name: str) -> ServiceInfo | None:
        """The service of that name, or None.

        Raises
        ------
        ConnectionFailedError
            When the cluster's DNS doesn't answer.
        """
        known = self._names.get(name)
        if known is None:
            return None
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                await self._ask(known)
            except OSError as e:
                if time.monotonic() > deadline:
                    raise ConnectionFailedError(
                        f"service \"{name}\" can't be found: the cluster's DNS doesn't answer for {known.host} ({e})",
                        service=name,
                    ) from e
            else:
                if known.addresses:
                    return self._info(name, known)
                if time.monotonic() > deadline:
                    return None
            await asyncio.sleep(_AGAIN)

    async def _ask(self, known: _Name) -> None:
        known.addresses = await look_up(known.host)
        known.asked = time.monotonic()

    def _info(self, name: str, known: _Name) -> ServiceInfo:
        return ServiceInfo(
            name=name,
            backend=self.name,
            state="running",
            created=0.0,
            owner={},
            resources={},
            endpoints=tuple(self._endpoint(name, known, address) for address in known.addresses),
            namespace=self.namespace,
            detached=True,
        )

    def _endpoint(self, name: str, known: _Name, address: str) -> Endpoint:
        host = f"[{address}]" if ":" in address else address
        made = known.asked

        def gone(ended: bool) -> PodLostError | None:
            if known.asked > made and address not in known.addresses:
                return PodLostError(service=name, reason=f"the cluster's DNS doesn't name {address} any more")
            self._ask_again(known)
            return None

        return Endpoint(name, f"http://{host}:{POD_PORT}", known.token, gone=gone, hint=_HINT)

    def _ask_again(self, known: _Name) -> None:
        """Ask beside what else is done; who has asked looks at the answer the next time."""
        if time.monotonic() - known.asked < _LOOK or (known.asking is not None and not known.asking.done()):
            return

        async def ask() -> None:
            try:
                await self._ask(known)
            except OSError:
                known.asked = time.monotonic()  # nobody can say: it isn't known to be gone, and asked again later

        known.asking = get_portal().own(ask())

    async def list(self) -> Sequence[ServiceInfo]:
        """Those that this process was told of and that have pods."""
        found = await asyncio.gather(*map(self.find, list(self._names)), return_exceptions=True)
        return [info for info in found if isinstance(info, ServiceInfo)]

    def known(self) -> Sequence[ServiceInfo]:
        """Those that this process was told of and has found."""
        return [self._info(name, known) for name, known in self._names.items() if known.addresses]

    async def watch(self, name: str) -> AsyncIterator[Event]:
        """Nothing: a pod without rights is told of no events."""
        nothing: Sequence[Event] = ()
        for event in nothing:
            yield event

    def curl(self, info: ServiceInfo, function: str) -> str:
        """The shell line that calls it, with the token left to whoever runs it: no file here has it."""
        assert info.endpoint is not None
        return curl_line(info.endpoint.url, function, "$KT_TOKEN")

    async def examine(self) -> Sequence[Finding]:
        """That calls are all there is here."""
        return [Finding("cluster", "note", "this pod has no rights in the cluster: it can call services, nothing else")]

    # -- what needs rights -------------------------------------------------------------------------------------------

    async def apply(self, spec: ServiceSpec, progress: Progress) -> Revision:
        """Say that it can't be done here.

        Raises
        ------
        DeployError
            Always.
        """
        self._refuse(f'"{spec.name}" can\'t be deployed from inside a pod', spec.name)

    async def delete(self, name: str) -> None:
        """Say that it can't be done here.

        Raises
        ------
        DeployError
            Always.
        """
        self._refuse(f'"{name}" can\'t be ended from inside a pod', name)

    async def volumes(self) -> VolumeStore:
        """Say that there are none here.

        Raises
        ------
        DeployError
            Always.
        """
        self._refuse("volumes can't be looked after from inside a pod", None)

    def _refuse(self, what: str, name: str | None) -> NoReturn:
        raise DeployError(
            f"{what} that has no rights in the cluster: its calls need none. Do it from the notebook; or give the "
            "pod's service a service account with the role edit (kt.Compute(service_account_name=...)) and an image "
            "with kubetorch-jupyter in it",
            service=name,
        )


# -- this process's backends -------------------------------------------------------------------------------------------

_backends: dict[str | None, InsideBackend] = {}


def inside_backend(namespace: str | None) -> InsideBackend:
    """The one of this process for a namespace."""
    if namespace not in _backends:
        _backends[namespace] = InsideBackend(namespace)
    return _backends[namespace]


def _after_fork() -> None:
    for backend in _backends.values():
        for known in backend._names.values():
            known.asking = None  # the other process's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
