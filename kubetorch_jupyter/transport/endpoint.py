"""Where a pod can be reached: all that a session needs to know of a backend."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["Endpoint"]


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
        More headers for each request (an API server's ``Authorization``, say); never shown in a repr.
    tls
        The TLS context for ``https``.
    gone
        Asks the backend, without I/O that takes longer than a look at a process or a watch's last word, whether the pod
        has ended: the reason for people, or None while it may live. Called on the portal's thread after a connection
        broke.
    rank
        Which replica of the service it is, where the backend knows.
    """

    service: str
    url: str
    token: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False, compare=False)
    gone: Callable[[], str | None] | None = field(default=None, repr=False, compare=False)
    rank: int | None = field(default=None, compare=False)

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from others: with the token, because another pod may get the port of one that has ended."""
        return self.url, self.token
