"""What a call is made on, and how."""

from __future__ import annotations

from typing import Protocol

from ..options import CallOptions
from ..transport.session import Session

__all__ = ["CallOptions", "Target"]


class Target(Protocol):
    """What is called; ``service.Service`` is one."""

    @property
    def name(self) -> str:
        """The service's name, of call ids and messages."""
        ...

    @property
    def label(self) -> str:
        """The function's or class's own name, of prefixes and reprs."""
        ...

    @property
    def live(self) -> Session | None:
        """The session, if calls may be started on it at once; None when `session` has to be awaited."""
        ...

    @property
    def foreign(self) -> bool:
        """Whether the pod is known to have another minor version of Python, to which bytecode means nothing."""
        ...

    async def session(self) -> Session:
        """The session, after connecting or deploying again where that is needed; runs on the portal."""
        ...

    async def session_of(self, id: str) -> Session:
        """The session with the pod that has the call of this id, where one of several has it."""
        ...
