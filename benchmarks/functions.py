"""What is called in the pods; a module of its own, which needs nothing that a pod hasn't."""

from __future__ import annotations

import time
from typing import Any

__all__ = ["dense", "echo", "millisecond", "noop", "spaced"]


def noop() -> None:
    """Nothing."""


def millisecond() -> None:
    """Waits for one."""
    time.sleep(0.001)


def echo(value: Any) -> Any:
    """The value."""
    return value


def spaced(n: int) -> None:
    """Lines that say when they were printed; the clock is the machine's, in every container of it."""
    for _ in range(n):
        print(time.monotonic_ns(), flush=True)
        time.sleep(0.01)


def dense(n: int) -> None:
    """Many lines."""
    for number in range(n):
        print("line", number)
