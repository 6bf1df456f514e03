"""The front of a pod: authenticates, keeps every call's record and log, and runs no user code.

``run_front`` is the main of a front process; ``preload`` imports what it needs, for a zygote that wants to fork it
warm.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from .params import FrontParams

__all__ = ["FrontParams", "preload", "run_front"]


def run_front(params: FrontParams) -> int:
    """Run a front until its pod ends; blocks. Returns the exit status for the process.

    Parameters
    ----------
    params
        Where to listen, whose the pod is, and its limits.

    Returns
    -------
    int
        0 after an orderly end; 1 when it could not start (``front.json`` then has ``error``).
    """
    with _without_command_line():
        from .main import run_front as run
    return run(params)


def preload() -> None:
    """Import everything that `run_front` needs, without starting threads or loops, so that a fork of this process
    starts at once.
    """
    with _without_command_line():
        from .main import preload as load
    load()


@contextmanager
def _without_command_line() -> Iterator[None]:
    """Keep uvicorn from importing its command line, and click for it: an eighth of what the front needs to start.

    Its ``main``, ``run`` and ``Server`` are missing then. Workers that are forked from here import their own
    (`zygote.pod`).
    """
    if "uvicorn" in sys.modules:
        yield
        return
    stand_in = ModuleType("uvicorn.main")
    for name in ("Server", "main", "run"):
        setattr(stand_in, name, None)
    sys.modules[stand_in.__name__] = stand_in
    try:
        yield
    finally:
        del sys.modules[stand_in.__name__]
