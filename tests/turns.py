"""Tests that run beside each other, in several processes (``pytest -n``), and those that don't.

A test marked ``timed`` measures something that others would disturb: it waits until none runs, and no other begins
before it has ended.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["turn"]


@contextmanager
def turn(folder: Path, alone: bool) -> Iterator[None]:
    """Have a turn, beside others or alone, among the processes that name the same ``folder``."""
    with _file(folder / "room") as room:
        with _file(folder / "door") as door:
            # Who waits for the room to be empty stands in the door meanwhile, so that no more go in.
            fcntl.flock(door, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        try:
            yield
        finally:
            # Closing isn't enough where a test has forked: its child has the file, too.
            fcntl.flock(room, fcntl.LOCK_UN)


@contextmanager
def _file(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)
