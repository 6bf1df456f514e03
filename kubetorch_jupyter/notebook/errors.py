"""How errors are shown in a cell: by the lines that are the user's, here and in the pod, without IPython's and ours."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

from kubetorch_jupyter.errors import KubetorchError

__all__ = ["install", "show_as_its_own", "uninstall"]

#: Frames of these packages say nothing about the user's code.
_OURS = ("kubetorch_jupyter", "IPython", "pod_server", "cloudpickle", "asyncio", "concurrent.futures", "threading")


def install(shell: Any) -> None:
    """Show errors of ours by the user's frames: their messages say the rest. ``%xmode Verbose`` shows all frames."""

    def render(error: KubetorchError) -> Any:
        frames = None if shell.InteractiveTB.mode == "Verbose" else _users_frames(error.__traceback__)
        if frames is None:
            return shell.InteractiveTB.structured_traceback(type(error), error, error.__traceback__)
        return shell.InteractiveTB.structured_traceback(type(error), error, frames, tb_offset=0)

    # IPython asks the exception for it.
    KubetorchError._render_traceback_ = render  # type: ignore[attr-defined]


def uninstall() -> None:
    """Show them as all others."""
    if "_render_traceback_" in KubetorchError.__dict__:
        del KubetorchError._render_traceback_  # type: ignore[attr-defined]


@contextlib.contextmanager
def show_as_its_own(shell: Any) -> Iterator[None]:
    """Let what is raised here be shown by the frames that are the user's; what it is doesn't change."""
    __tracebackhide__ = True
    try:
        yield
    except SyntaxError as e:
        raise _shown(shell, e) from None
    except (Exception, KeyboardInterrupt) as e:
        _render_by_users_frames(shell, e)
        raise


class CellSyntaxError(Exception):
    """A SyntaxError of a magic's cell: IPython shows the real one with all frames down to the compiler."""


CellSyntaxError.__name__ = CellSyntaxError.__qualname__ = SyntaxError.__name__


def _shown(shell: Any, error: SyntaxError) -> CellSyntaxError:
    shown = CellSyntaxError(str(error))
    text = shell.SyntaxTB.structured_traceback(SyntaxError, error, [])
    shown._render_traceback_ = lambda: text  # type: ignore[attr-defined]
    return shown


def _render_by_users_frames(shell: Any, error: BaseException) -> None:
    frames = _users_frames(error.__traceback__)
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
