"""Where a pod can be reached: all that a session needs to know of a backend."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import PodLostError

__all__ = ["POD_PORT", "Endpoint"]

#: Where the front of a cluster's pod listens.
POD_PORT = 32300


@dataclass(frozen=True)
class Endpoint:
    """The address of one pod's front, and the right to use it.

    Parameters
    ----------
    service
        The service's name.
    url
        ``http://host:port`` or ``https://host:port/prefix``, without a slash at the end.
    token
        The service's token; never shown in a repr.
    headers
        More headers for each request; never shown in a repr.
    credentials
        Asked, on the portal, for headers that may differ each time (an API server's ``Authorization``); with True when
        a proxy has refused the last ones.
    tls
        The TLS context for ``https``.
    tls_name
        The name to look for in the certificate, if it isn't the host's.
    proxy
        An HTTP proxy on the way, ``http://host:port``.
    gone
        Asks the backend, without I/O that takes longer than a look at a process or a watch's last word, whether the pod
        has ended: the error for its calls, with the reason; None while it may live. Called on the portal's thread after
        a connection broke, and with True when the pod itself has said that it ends, or what it runs on has ended.
    explain
        Asks the backend how the container with the worker has ended, when the pod says that it has: fields of a
        `WorkerDiedError`. What it asks may take a second or two.
    folder
        The pod's folder for payloads, where it is one of this machine: they needn't go over the connection then.
    life
        Which life of the pod it is, where one address has several: the pod's processes, and all that they knew of
        calls, may end and begin anew.
    rank
        Which replica of the service it is, where the backend knows.
    hint
        What to say when nobody answers there.
    keeps
        What has to live as long as it: the endpoint whose port-forward it uses.
    """

    service: str
    url: str
    token: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    credentials: Callable[[bool], Awaitable[Mapping[str, str]]] | None = field(default=None, repr=False, compare=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False, compare=False)
    tls_name: str | None = None
    proxy: str | None = field(default=None, repr=False)
    gone: Callable[[bool], PodLostError | None] | None = field(default=None, repr=False, compare=False)
    explain: Callable[[], Awaitable[Mapping[str, Any]]] | None = field(default=None, repr=False, compare=False)
    folder: str | None = field(default=None, repr=False, compare=False)
    life: int = field(default=0, repr=False)
    rank: int | None = field(default=None, compare=False)
    hint: str = field(default="kt.services() lists those that are alive", repr=False, compare=False)
    keeps: Endpoint | None = field(default=None, repr=False, compare=False)

    async def all_headers(self, renew: bool = False) -> Mapping[str, str]:
        """The headers for a new request, without the token."""
        if self.credentials is None:
            return self.headers
        return {**self.headers, **await self.credentials(renew)}

    def lost(self, ended: bool) -> PodLostError | None:
        """What `gone` says; None where there is nobody to ask."""
        return self.gone(ended) if self.gone is not None else None

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from others: with the token, because another pod may get the port of one that has ended."""
        return self.url, self.token
