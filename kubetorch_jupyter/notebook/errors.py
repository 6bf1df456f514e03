"""How errors are shown in a cell: by the lines that are the user's, here and in the pod, without IPython's and ours."""

from __future__ import annotations

import contextlib
import traceback
import types
from collections.abc import Iterator
from typing import Any

from kubetorch_jupyter.errors import KubetorchError

__all__ = ["ShowAsItsOwn", "install", "uninstall"]

#: Frames of these packages say nothing about the user's code.
_OURS = ("kubetorch_jupyter", "IPython", "pod_server", "cloudpickle", "asyncio", "concurrent.futures", "threading")


def install(shell: Any) -> None:
    """Show errors of ours by the user's frames: their messages say the rest. ``%xmode Verbose`` shows all frames."""

    def render(error: KubetorchError) -> Any:
        frames = None if shell.InteractiveTB.mode == "Verbose" else _users_frames(error.__traceback__)
        if frames is None:
            return shell.InteractiveTB.structured_traceback(type(error), error, error.__traceback__)
        with _users_causes(error):
            return shell.InteractiveTB.structured_traceback(type(error), error, frames, tb_offset=0)

    # IPython asks the exception for it.
    KubetorchError._render_traceback_ = render  # type: ignore[attr-defined]


def uninstall() -> None:
    """Show them as all others."""
    if "_render_traceback_" in KubetorchError.__dict__:
        del KubetorchError._render_traceback_  # type: ignore[attr-defined]


class ShowAsItsOwn:
    """Let what is raised in this ``with`` be shown by the frames that are the user's; what it is doesn't change.

    Parameters
    ----------
    shell
        The running IPython.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: types.TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        if isinstance(error, SyntaxError):
            raise _shown(self._shell, error) from None
        if error is not None:
            _render_by_users_frames(self._shell, error)


class CellSyntaxError(Exception):
    """A SyntaxError of a magic's cell: IPython shows the real one with all frames down to the compiler."""


CellSyntaxError.__name__ = CellSyntaxError.__qualname__ = SyntaxError.__name__


def _shown(shell: Any, error: SyntaxError) -> CellSyntaxError:
    shown = CellSyntaxError(str(error))
    # None of the cell's own code; what a cell has parsed itself has its lines.
    frames = traceback.extract_tb(_users_frames(error.__traceback__))
    text = shell.SyntaxTB.structured_traceback(SyntaxError, error, frames)
    shown._render_traceback_ = lambda: text  # type: ignore[attr-defined]
    return shown


def _render_by_users_frames(shell: Any, error: BaseException) -> None:
    frames = _users_frames(error.__traceback__)
    if isinstance(error, BaseExceptionGroup):
        error.__traceback__ = frames  # IPython has the standard library show these, by what they have themselves
    cause, seen = error.__cause__, {id(error)}
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        cause.__traceback__ = _users_frames(cause.__traceback__)
        cause = cause.__cause__

    def render() -> Any:
        return shell.InteractiveTB.structured_traceback(type(error), error, frames, tb_offset=0)

    try:
        error._render_traceback_ = render  # type: ignore[attr-defined]
    except AttributeError:
        return  # an exception with __slots__: it is shown as any other


@contextlib.contextmanager
def _users_causes(error: BaseException) -> Iterator[None]:
    """In this ``with``, what an error came from has the user's frames only: a pickle that fails, fails in our code."""
    causes: dict[int, tuple[BaseException, types.TracebackType | None]] = {}
    cause = error.__cause__
    while cause is not None and id(cause) not in causes:
        causes[id(cause)] = cause, cause.__traceback__
        cause.__traceback__ = _users_frames(cause.__traceback__)
        cause = cause.__cause__
    try:
        yield
    finally:
        for cause, tb in causes.values():
            cause.__traceback__ = tb


def _users_frames(tb: types.TracebackType | None) -> types.TracebackType | None:
    kept: list[types.TracebackType] = []
    while tb is not None:
        name = str(tb.tb_frame.f_globals.get("__name__", ""))
        if not any(name == ours or name.startswith(f"{ours}.") for ours in _OURS):
            kept.append(tb)
        tb = tb.tb_next
    out: types.TracebackType | None = None
    for each in reversed(kept):
        out = types.TracebackType(out, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return out
