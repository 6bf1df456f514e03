"""W4: a large array there and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from .functions import echo
from .places import Place
from .rows import Workload, median

__all__ = ["WORKLOADS"]

_SIZE = 64 << 20


def w4(place: Place) -> tuple[float, float, float | None]:
    array = np.ones(_SIZE, dtype=np.uint8)
    handle, pool = place.handle(echo), place.pool

    def best(action: Any) -> float:
        return min(median(action, 1) for _ in range(2))

    peer = best(lambda: pool.submit(echo, array).result()) if pool is not None else None
    return min(place.bulk(_SIZE) for _ in range(2)), best(lambda: handle(array)), peer


WORKLOADS = [
    # 0.65 of the rate.
    Workload("W4", "64 MiB array there and back", "s", w4, promised=0.5, goals={"proxy": 1 / 0.65})
]
