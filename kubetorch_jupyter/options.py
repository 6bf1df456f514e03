"""How a call is made: what handles hold, whether they are deployed or not, and `calls` go by."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CallOptions"]


@dataclass(frozen=True)
class CallOptions:
    """How a call is made.

    Parameters
    ----------
    timeout
        Seconds after which it is cancelled, counted from when it is sent; None: never. A retry has as long again.
    retries
        How often it is made again when its worker died or its pod was lost: it may have run in part each time. A
        generator function's call never is: items of it have been taken.
    stream_logs
        Whether what it prints is shown. The pod keeps it either way.
    serialization
        ``"pickle"``, ``"json"`` or ``"none"`` (bytes as they are).
    """

    timeout: float | None = None
    retries: int = 0
    stream_logs: bool = True
    serialization: str = "pickle"
