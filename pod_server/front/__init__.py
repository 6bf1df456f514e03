"""The front of a pod: authenticates, keeps every call's record and log, and runs no user code.

``run_front`` is the main of a front process; ``preload`` imports what it needs, for a zygote that wants to fork it
warm.
"""

from __future__ import annotations

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
    from .main import run_front as run

    return run(params)


def preload() -> None:
    """Import everything that `run_front` needs, without starting threads or loops, so that a fork of this process
    starts at once.
    """
    from .main import preload as load

    load()
