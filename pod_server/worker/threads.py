"""Lets output of threads that user code starts, and of work that it gives to thread pools, go to the call that did it.

Context variables are not inherited by threads. Only ours is handed on: what else is in the context stays as Python has
it.
"""

from __future__ import annotations

import concurrent.futures
import functools
import threading
from collections.abc import Callable
from typing import Any

from .output import Log, current_log

__all__ = ["patch_threads"]


def _run_with(log: Log, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    token = current_log.set(log)
    try:
        return function(*args, **kwargs)
    finally:
        current_log.reset(token)


def patch_threads() -> None:
    """Wrap `threading.Thread.start` and `concurrent.futures.ThreadPoolExecutor.submit`."""
    start = threading.Thread.start
    submit: Any = concurrent.futures.ThreadPoolExecutor.submit

    @functools.wraps(start)
    def start_with_log(self: threading.Thread) -> None:
        log = current_log.get()
        if log is None or "run" in self.__dict__:
            start(self)
            return
        run = self.run

        def run_with_log() -> None:
            current_log.set(log)
            del self.run  # no cycle, and the object is as it was
            run()

        self.run = run_with_log  # type: ignore[method-assign]
        try:
            start(self)
        except BaseException:
            self.__dict__.pop("run", None)
            raise

    @functools.wraps(submit)
    def submit_with_log(self: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        log = current_log.get()
        if log is None:
            return submit(self, fn, *args, **kwargs)
        return submit(self, _run_with, log, fn, *args, **kwargs)

    threading.Thread.start = start_with_log  # type: ignore[method-assign]
    concurrent.futures.ThreadPoolExecutor.submit = submit_with_log  # type: ignore[method-assign]
