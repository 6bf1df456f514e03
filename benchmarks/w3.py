"""W3: calls of a function that does nothing, 64 at once."""

from __future__ import annotations

import asyncio
from typing import Any

from . import timing
from .functions import noop
from .rows import Goal, Row

__all__ = ["ROWS", "awaited"]

_N, _WIDTH = 6400, 64


def awaited(handle: Any, n: int, width: int) -> float:
    """Seconds for ``n`` awaited calls of a handle, ``width`` at once."""

    async def some(times: int) -> None:
        for _ in range(times):
            await handle(async_=True)

    async def run() -> None:
        await asyncio.gather(*(some(n // width) for _ in range(width)))

    return timing.once(lambda: asyncio.run(run()))


ROWS = [
    Row(
        "W3",
        "no-op calls, 64 at once",
        "calls/s",
        lambda place: place.in_flight(_N, _WIDTH),
        lambda place: _N / awaited(place.handle(noop), _N, _WIDTH),
        ("in_flight", _N, _WIDTH),
        higher_is_better=True,
        goals={"local": [Goal(0.3), Goal(2, against="pyzmq")]},
        places=("local", "direct", "proxy"),
    )
]
