"""W1: a new service on this machine, until its first result is there."""

from __future__ import annotations

import contextlib
import io
import itertools
import subprocess
import sys
from collections.abc import Iterator

import kubetorch_jupyter as kt

from . import limits, timing
from .functions import changed
from .places import Place
from .rows import Goal, Row

__all__ = ["ROWS", "quietly", "serve_and_call"]

_numbers = itertools.count()

#: A client of its own, which has imported what it deploys with, as a kernel has after its first cell.
_FIRST = """
import contextlib, io, time
import kubetorch_jupyter as kt
from benchmarks.functions import changed
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    start = time.perf_counter()
    handle = kt.fn(changed(0), name="bench-first").to(kt.Compute())
    handle()
    seconds = time.perf_counter() - start
    handle.teardown()
print(seconds)
"""


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the line that each deploy says."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def serve_and_call() -> kt.Fn:
    """A new service that has answered once."""
    number = next(_numbers)
    handle = kt.fn(changed(number), name=f"bench-{number}").to(kt.Compute())
    handle()
    return handle


def _first(_: Place) -> float:
    done = subprocess.run([sys.executable, "-c", _FIRST], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return float(done.stdout)


def _next(_: Place) -> float:
    made: list[kt.Fn] = []
    with quietly():
        seconds = timing.once(lambda: made.append(serve_and_call()))
        made[0].teardown()
    return seconds


ROWS = [
    Row(
        "W1 first",
        "first service of a client, until its first result",
        "ms",
        lambda _: limits.process("import uvicorn, uvloop, httptools"),
        _first,
        ("first",),
        goals={"local": [Goal(1.3)]},
    ),
    Row(
        "W1 next",
        "next service, until its first result",
        "ms",
        lambda _: limits.process("pass"),
        _next,
        ("another",),
        goals={"local": [Goal(2)]},
    ),
]
