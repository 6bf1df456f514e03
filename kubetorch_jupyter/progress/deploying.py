"""The line of a deploy: its phases, which both backends share, and what became of it."""

from __future__ import annotations

from enum import StrEnum
from time import monotonic
from types import TracebackType
from typing import Self

from ..errors import StartupError
from .line import Line, await_shown, wait_shown
from .status import State, Status, duration, ended_by, why

__all__ = ["DeployProgress", "Phase"]


class Phase(StrEnum):
    """Where a deploy is, as people read it: ``"train" is loading``. Not every deploy has every phase."""

    PACKING = "being packed"
    #: Another deploy of that name is under way.
    WAITING = "waiting for another deploy of it"
    #: A place is looked for: a node, free GPUs, room in a queue.
    SCHEDULING = "being scheduled"
    #: The container image is pulled, or its steps are run.
    IMAGE = "getting its image"
    STARTING = "starting its pod"
    CONNECTING = "connecting"
    #: The user's module runs in the pod, or the class is constructed.
    LOADING = "loading"


class DeployProgress:
    """What the cell that deploys sees: one line through the phases, and lines of its own for what must stay.

    A context manager, of both kinds: the line begins with it, and an exception that leaves it is what the line ends by.
    It is a backend's `Progress` too.

    Parameters
    ----------
    name
        The service's.
    quiet
        Show nothing.
    """

    def __init__(self, name: str, *, quiet: bool = False) -> None:
        self._name = name
        self._began = monotonic()
        self._phase = Phase.PACKING
        self._detail = ""
        self._line = None if quiet else Line(self._describe)

    def __call__(self, phase: Phase, detail: str = "") -> None:
        """It is in this phase now; ``detail`` says what for, or why it takes long, until the next is said."""
        self._phase, self._detail = phase, detail

    def note(self, text: str) -> None:
        """Say something on a line of its own, which stays."""
        if self._line is not None:
            self._line.note(f"kubetorch: {text}")

    async def done(self, text: str) -> None:
        """It went well: ``text``; awaited on the portal until it is shown."""
        if self._line is not None:
            await await_shown(self._line.finish(Status(f"kubetorch: {text}", State.DONE)))

    def _describe(self, now: float) -> Status:
        detail = f": {self._detail}" if self._detail else ""
        return Status(f'kubetorch: "{self._name}" is {self._phase}, {duration(now - self._began)}{detail}')

    def _ended(self, error: BaseException) -> Status:
        state = ended_by(error)
        where = f"after {duration(monotonic() - self._began)} while {self._phase}"
        if state is State.STOPPED:
            return Status(f'kubetorch: "{self._name}" was stopped {where}', state)
        # The user's own error, where it is one: ours would name the service again.
        cause = error.__cause__ if isinstance(error, StartupError) and error.__cause__ is not None else error
        return Status(f'kubetorch: "{self._name}" failed {where}: {why(cause)}', state)

    def __enter__(self) -> Self:
        if self._line is not None:
            self._line.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._line is not None and error is not None:
            wait_shown(self._line.finish(self._ended(error)))

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._line is None or error is None:
            return
        shown = self._line.finish(self._ended(error))
        if isinstance(error, Exception):  # one that is cancelled must not be held up
            await await_shown(shown)
