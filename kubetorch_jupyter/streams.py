"""Where a call's output goes: the cell that made the call, exact to the byte."""

from __future__ import annotations

from collections.abc import Callable

from pod_server.wire import LogKind

__all__ = ["Output", "open_output", "set_output_factory"]


class Output:
    """A sink for one call's log (`transport.session.Sink`); made in the caller's thread and context when the call starts."""

    def __init__(self, label: str) -> None: ...
    def feed(self, kind: LogKind, data: bytes) -> None: ...
    def finish(self, then: Callable[[], None]) -> None: ...


def open_output(label: str) -> Output:
    """The output for a call that starts now, in this context (by the factory in force)."""
    raise NotImplementedError


def set_output_factory(factory: Callable[[str], Output] | None) -> None:
    raise NotImplementedError
