"""One WebSocket to one pod, shared by all calls of this process: multiplexed, resumed after a break."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from pod_server import wire

from .endpoint import Endpoint

__all__ = ["Exchange", "RemoteFailure", "Session", "Sink", "get_session"]


class Sink(Protocol):
    """Where an exchange's log goes (`kubetorch_jupyter.streams.Output` is one). Called on the portal; must not block."""

    def feed(self, kind: wire.LogKind, data: bytes) -> None: ...

    def finish(self, then: Callable[[], None]) -> None:
        """Nothing more comes; call `then` (from any thread) when everything has been written."""
        ...


class RemoteFailure(Exception):
    """A RESULT with ``F_ERROR`` and the user's own exception in it; ``calls.decode_error(e.meta, e.buffers)`` gives it, off the portal."""

    meta: Mapping[str, Any]
    buffers: list[Any]


class Exchange:
    """One CALL, LOAD or RESUME under way; subclasses in calls."""


class Session:
    """All on the portal's loop, but `usable`."""

    endpoint: Endpoint
    welcome: dict[str, Any]
    #: Called on the portal with the meta of each EVENT.
    listeners: list[Callable[[dict[str, Any]], None]]

    def __init__(self, endpoint: Endpoint) -> None: ...

    @property
    def usable(self) -> bool:
        """Open or reconnecting, in this process; False once it is closed or lost: get another then."""
        ...

    async def open(self) -> None: ...
    async def load(self, meta: Mapping[str, Any], buffers: Sequence[wire.Buffer], output: Sink | None = None) -> dict[str, Any]:
        """Send LOAD; RESULT's meta. Raises the typed error, `RemoteFailure` for the user's own exception."""
        ...

    async def request(self, op: str, **fields: Any) -> dict[str, Any]: ...
    def start(self, exchange: Exchange) -> None: ...
    async def close(self) -> None: ...


async def get_session(endpoint: Endpoint) -> Session:
    """The open session for (this process, endpoint.url): shared, opened when there is none."""
    raise NotImplementedError
