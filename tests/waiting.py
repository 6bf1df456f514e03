"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["until"]

T = TypeVar("T")


def until(look: Callable[[], T], timeout: float = 20.0) -> T:
    """What `look` gives, once that is something; an error when it never is. No promise: a machine may stand still."""
    deadline = time.monotonic() + timeout
    while not (found := look()):
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.005)
    return found
