"""What every backend does: bring a service's pods up to date, find them, end them, and say why they are not ready.

A backend knows nothing of callables or calls: it gets a `ServiceSpec` and gives an `Endpoint`. What runs in the pod is
loaded over the session afterwards (``service.py``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pod_server.wire import Buffer

from ..compute import Compute
from ..progress import Phase
from ..transport.endpoint import Endpoint
from ..volume import Volume

__all__ = [
    "Backend",
    "Event",
    "Finding",
    "Phase",
    "Progress",
    "Revision",
    "ServiceInfo",
    "ServiceSpec",
    "VolumeStore",
    "curl_line",
]


class Progress(Protocol):
    """What a backend tells of a deploy; `progress.DeployProgress` shows it."""

    def __call__(self, phase: Phase, detail: str = "") -> None:
        """It is in this phase; ``detail`` is what it waits for, and is shown until the next is told."""
        ...

    def note(self, text: str) -> None:
        """Say something that has to stay."""
        ...


@dataclass(frozen=True)
class ServiceSpec:
    """What a service's pods should be: the user's `Compute` under a name.

    Parameters
    ----------
    name
        A valid service name (RFC 1123 label).
    compute
        What the user asked for.
    owner
        Who deploys: ``user``, ``host``, ``pid``, ``notebook``.
    """

    name: str
    compute: Compute
    owner: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ServiceInfo:
    """A service that exists, as a backend sees it without asking the pod.

    ``state`` is ``"starting"``, ``"running"``, ``"pending"`` or ``"failed"``; ``created`` is unix time in seconds;
    ``resources`` is what it asks for (``cpus``, ``memory``, ``gpus``) as given; ``endpoints`` are its pods that accept
    sessions, by rank. ``status`` is what its pod says of itself, where it was asked (``kt.services(usage=True)``) and
    has answered. ``detail`` is what it waits for, or why it failed, on one line.
    """

    name: str
    backend: str
    state: str
    created: float
    owner: Mapping[str, Any]
    resources: Mapping[str, Any]
    endpoints: tuple[Endpoint, ...] = ()
    namespace: str | None = None
    detached: bool = False
    ttl: float | None = None
    status: Mapping[str, Any] | None = None
    detail: str = ""

    @property
    def endpoint(self) -> Endpoint | None:
        """Its first pod that accepts sessions; None while there is none."""
        return self.endpoints[0] if self.endpoints else None


@dataclass(frozen=True)
class Event:
    """Something that happened to a service, in the backend's own words."""

    time: float
    reason: str
    message: str
    fatal: bool = False


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what, how it is (``"ok"``, ``"note"``, ``"problem"``), and what to say of it."""

    what: str
    state: str
    text: str


def curl_line(url: str, function: str, token: str, options: str = "") -> str:
    """The shell line that calls a service at an address: JSON in, JSON out.

    Parameters
    ----------
    url, function
        What is called.
    token
        What the shell makes the token of, so that it is shown nowhere.
    options
        More for curl.

    Examples
    --------
    >>> curl_line("http://127.0.0.1:40123", "train", "$(cat token)").partition(" -H 'Content")[0]
    'curl -X POST http://127.0.0.1:40123/call/train -H "X-Kubetorch-Token: $(cat token)"'
    """
    more = f" {options}" if options else ""
    return (
        f'curl{more} -X POST {url}/call/{function} -H "X-Kubetorch-Token: {token}"'
        " -H 'Content-Type: application/json' -d '{\"args\": [], \"kwargs\": {}}'"
    )


class Revision(Protocol):
    """The pods that a deploy goes to, from when they accept sessions until they have the code, or won't get it."""

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """One for each replica, by rank."""
        ...

    @property
    def new(self) -> bool:
        """Whether they came up for this deploy."""
        ...

    async def keep(
        self, meta: Mapping[str, Any], buffers: Sequence[Buffer], progress: Progress, *, loaded: bool
    ) -> None:
        """They have the code, a LOAD's ``meta`` and ``buffers``: whatever they replace may go.

        A backend whose pods may be replaced by somebody else keeps the code for these. Where nothing was ``loaded``,
        since all of them had it, it may have kept the same before.
        """
        ...

    async def discard(self) -> None:
        """Remove what was made for this deploy; what was there before goes on."""
        ...


class VolumeStore(Protocol):
    """The volumes that there are, outside of any deploy."""

    async def find(self, volume: Volume) -> Volume | None:
        """The volume as it is there, or None."""
        ...

    async def create(self, volume: Volume) -> Sequence[str]:
        """Make it, unless it is there; what of it isn't as described, as lines for people."""
        ...

    async def delete(self, volume: Volume) -> bool:
        """Delete it with its data; False when there was none. Raises when it is in use."""
        ...


class Backend(Protocol):
    """The protocol; ``backends/local.py`` and ``backends/kubernetes`` are the two that there are."""

    name: str
    #: Whether pods run in this process's own directory and environment.
    here: bool

    @property
    def namespace(self) -> str | None:
        """Where its services are, if they are in one and it is known."""
        ...

    def full_name(self, name: str) -> str:
        """The name under which a service of this user is known there."""
        ...

    def complete(self, compute: Compute) -> Compute:
        """The same with what this backend does where nothing was said."""
        ...

    def where(self) -> str:
        """For sentences about services: "on this machine", "in namespace team-a"."""
        ...

    async def apply(self, spec: ServiceSpec, progress: Progress) -> Revision:
        """Create the service's pods or bring them up to date; returns when each front accepts sessions."""
        ...

    async def find(self, name: str) -> ServiceInfo | None:
        """The service of that name, or None."""
        ...

    async def list(self) -> Sequence[ServiceInfo]:
        """All services that this user can see here."""
        ...

    def known(self) -> Sequence[ServiceInfo]:
        """Those that can be told without asking anybody, or waiting."""
        ...

    async def delete(self, name: str) -> None:
        """End the service and remove all that belongs to it; returns when that is done, raises when it fails."""
        ...

    async def examine(self) -> Sequence[Finding]:
        """What there is to say of the place, for ``%kt doctor``; takes a few seconds at most, whatever is wrong."""
        ...

    async def volumes(self) -> VolumeStore:
        """The volumes; raises `UnsupportedError` where there are none."""
        ...

    def curl(self, info: ServiceInfo, function: str) -> str:
        """The shell lines that call it."""
        ...

    def watch(self, name: str) -> AsyncIterator[Event]:
        """Events of the service as they come: why it is not ready, why it died."""
        ...
