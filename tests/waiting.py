"""Waiting for what another thread or process does, and SIGINT while this one waits."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["interrupt_after", "until"]

T = TypeVar("T")


def until(look: Callable[[], T], timeout: float = 20.0) -> T:
    """What `look` gives, once that is something; an error when it never is. No promise: a machine may stand still."""
    deadline = time.monotonic() + timeout
    while not (found := look()):
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.005)
    return found


@contextmanager
def interrupt_after(seconds: float) -> Iterator[None]:
    """SIGINT to this process after so long. Within `pytest.raises`: one that comes early ends the test, not pytest."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
