"""What is called in the pods, and in the peers; a module of its own, which needs nothing that they haven't."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["changed", "dense", "echo", "millisecond", "noop", "spaced", "stream"]


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


def dense(n: int, flush: bool) -> None:
    """Many lines, each flushed or all at the end."""
    for number in range(n):
        print("line", number, flush=flush)
    sys.stdout.flush()


def stream(seconds: float, pause: float) -> int:
    """Lines at a steady pace, for a while; how many."""
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        print("line", count)
        count += 1
        time.sleep(pause)
    return count


def changed(number: int) -> Callable[[], int]:
    """A function as a cell defines it, which has other code for each number, as after an edit."""

    def answer() -> int:
        return number

    # It travels by value then, and not with the package that it is in here.
    answer.__module__, answer.__qualname__ = "__main__", "answer"
    return answer
