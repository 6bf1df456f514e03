"""The mark that says that a service has ended for good, to a part of it that isn't there just now."""

from __future__ import annotations

import os

__all__ = ["has_ended", "write_end"]

_NAME = "ended"


def write_end(dir: str) -> None:
    """Say that the service has ended by its own will."""
    try:
        os.close(os.open(os.path.join(dir, _NAME), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except FileNotFoundError:
        pass  # the directory is gone, and says the same


def has_ended(dir: str) -> bool:
    """Whether the service has ended, or its directory is gone.

    Examples
    --------
    >>> has_ended("/nonexistent")
    True
    """
    return not os.path.isdir(dir) or os.path.exists(os.path.join(dir, _NAME))
