"""W9: importing the package."""

from __future__ import annotations

from . import limits
from .rows import Goal, Row

__all__ = ["ROWS"]


def _best(code: str) -> float:
    """Of three: it is short, and much that is not ours is part of it."""
    return min(limits.process(code) for _ in range(3))


ROWS = [
    Row(
        "W9",
        "python -c 'import kubetorch_jupyter'",
        "ms",
        lambda _: _best("import asyncio, cloudpickle"),
        lambda _: _best("import kubetorch_jupyter"),
        goals={"local": [Goal(1.3)]},
    )
]
