"""Calls: from a handle's arguments to the value or exception that its pod answers, and the `Call` that users hold."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from .transport.session import Session

__all__ = [
    "Call",
    "CallOptions",
    "Target",
    "attach_call",
    "decode_error",
    "invoke",
    "invoke_async",
    "iterate",
    "iterate_async",
    "map_calls",
    "map_calls_async",
    "recent_calls",
    "spawn",
]

T = TypeVar("T")


class Target(Protocol):
    """What is called: implemented by ``service.Service``."""

    #: The service's name (in call ids and messages).
    name: str
    #: What people call it in prefixes and reprs: the function's or class's own name.
    label: str

    @property
    def live(self) -> Session | None:
        """The session if it is open and the code on it is loaded (the fast path: no task is made); else None."""
        ...

    async def session(self) -> Session:
        """The session, after reconnecting or redeploying where that is needed. Runs on the portal."""
        ...


@dataclass(frozen=True)
class CallOptions:
    """How a call is made."""

    timeout: float | None = None
    retries: int = 0
    stream_logs: bool = True
    serialization: str = "pickle"


def invoke(target: Target, method: str | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions) -> Any:
    raise NotImplementedError


def invoke_async(
    target: Target, method: str | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions
) -> Coroutine[Any, Any, Any]:
    """A true coroutine; arguments are serialised (snapshot) here, the call starts when it is first awaited or scheduled."""
    raise NotImplementedError


def spawn(target: Target, method: str | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions) -> Call[Any]:
    raise NotImplementedError


def iterate(
    target: Target, method: str | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions
) -> Generator[Any, None, None]:
    raise NotImplementedError


def iterate_async(
    target: Target, method: str | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions
) -> AsyncIterator[Any]:
    raise NotImplementedError


def map_calls(
    target: Target,
    method: str | None,
    argss: Iterable[tuple[Any, ...]],
    options: CallOptions,
    *,
    concurrency: int = 64,
    ordered: bool = True,
    return_exceptions: bool = False,
) -> Iterator[Any]:
    """One object that supports both ``for`` and ``async for``."""
    raise NotImplementedError


map_calls_async = map_calls


def decode_error(meta: Mapping[str, Any], buffers: list[Any]) -> BaseException:
    """The exception of a RESULT with ``F_ERROR`` (also of `transport.session.RemoteFailure`, which `Session.load` raises). Caller's thread."""
    raise NotImplementedError


class Call(Generic[T]):
    id: str
    status: str
    function: str
    service: str

    def result(self, timeout: float | None = None) -> T: ...
    def logs(self) -> str: ...
    def cancel(self) -> bool: ...
    def done(self) -> bool: ...
    def __await__(self) -> Generator[Any, None, T]: ...


def attach_call(target: Target, call_id: str) -> Call[Any]:
    raise NotImplementedError


def recent_calls() -> list[Call[Any]]:
    raise NotImplementedError
