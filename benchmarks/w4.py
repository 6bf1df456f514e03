"""W4: a large array there and back, and what that takes in memory at both ends."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

import kubetorch_jupyter as kt

from . import memory, timing
from .functions import echo
from .places import Place
from .rows import Goal, Row
from .w1 import quietly

__all__ = ["ROWS", "there_and_back"]

_SIZES = (64, 256)


def there_and_back(place: Place, size: int) -> float:
    """Bytes a second, the best of two."""
    array = np.ones(size, dtype=np.uint8)
    handle = place.handle(echo)

    def run() -> None:
        assert handle(array).nbytes == size

    run()
    return 2 * size / timing.best(run, 2)


def _speed(mib: int) -> Row:
    size = mib << 20
    return Row(
        f"W4 {mib} MiB",
        f"array of {mib} MiB there and back",
        "GB/s",
        lambda place: place.bulk(size),
        lambda place: there_and_back(place, size),
        ("bulk", size),
        higher_is_better=True,
        goals={"local": [Goal(0.65), Goal(1, against="pyzmq")], "proxy": [Goal(0.65)]},
        places=("local", "direct", "proxy") if mib == 64 else ("local",),
    )


def _peak(side: str, size: int) -> float:
    """Bytes that the client or the worker of a new service grows by, at most, in its first large call.

    The result is read, since what is only mapped takes nothing.
    """
    array = np.ones(size, dtype=np.uint8)
    with quietly(), kt.fn(echo, name="bench-peak").to(kt.Compute()) as handle:
        handle(array[:1])
        pid = os.getpid() if side == "client" else memory.front_and_worker(handle)[1]
        return memory.growth(pid, lambda: handle(array).max())


def _memory(side: str, mib: int) -> Row:
    size = mib << 20
    ours: Callable[[Place], float] = lambda _: _peak(side, size)  # noqa: E731 - as in the other rows
    return Row(
        f"W4 {mib} MiB {side}",
        f"peak memory of the {side}, array of {mib} MiB",
        "MiB",
        lambda _: size,
        ours,
        goals={"local": [Goal(1.05, plus=30 << 20)]},
    )


ROWS = [*map(_speed, _SIZES), *(_memory(side, mib) for mib in _SIZES for side in ("client", "worker"))]
