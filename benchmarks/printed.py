"""W6: what is printed in the pod, until it is written here."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

from .functions import dense, spaced
from .places import Place
from .rows import Workload

__all__ = ["WORKLOADS"]

_ONE = 100
_MANY = 100_000


class _Cell:
    """Stands where the cell's output stands, and notes when something comes."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, str]] = []

    def write(self, text: str) -> int:
        self.pieces.append((time.monotonic_ns(), text))
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def lines(self) -> Iterator[tuple[int, str]]:
        for at, text in self.pieces:
            for line in text.splitlines():
                yield at, line


def _pipe(code: str, argument: int) -> Iterator[tuple[int, str]]:
    """Lines of another process, one read after the other, and when they came."""
    command = [sys.executable, "-c", code, str(argument)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield time.monotonic_ns(), line


_SPACED = """
import sys, time
for _ in range(int(sys.argv[1])):
    print(time.monotonic_ns(), flush=True)
    time.sleep(0.01)
"""
_DENSE = """
import sys
for number in range(int(sys.argv[1])):
    print("line", number, flush=True)
"""


def _delay(lines: Iterator[tuple[int, str]]) -> float:
    delays = sorted(at - int(line) for at, line in lines)
    assert len(delays) == _ONE, f"{len(delays)} of {_ONE} lines came"
    return delays[_ONE // 2] / 1e3


def w6(place: Place) -> tuple[float, float, float | None]:
    handle, cell = place.handle(spaced), _Cell()
    with contextlib.redirect_stdout(cell):  # type: ignore[type-var]
        handle(_ONE)
    return _delay(_pipe(_SPACED, _ONE)), _delay(cell.lines()), None


def w6_many(place: Place) -> tuple[float, float, float | None]:
    handle, cell = place.handle(dense), _Cell()
    start = time.perf_counter()
    count = sum(1 for _ in _pipe(_DENSE, _MANY))
    limit = time.perf_counter() - start
    assert count == _MANY
    start = time.perf_counter()
    with contextlib.redirect_stdout(cell):  # type: ignore[type-var]
        handle(_MANY)
    ours = time.perf_counter() - start
    count = "".join(text for _, text in cell.pieces).count("\n")  # a piece may end within a line
    assert count == _MANY, f"{count} of {_MANY} lines came"
    return limit, ours, None


WORKLOADS = [
    Workload("W6", "a printed line until it is here, median", "µs", w6),
    Workload("W6n", "100,000 printed lines", "s", w6_many),
]
