"""Exceptions between a worker and a client."""

from __future__ import annotations

__all__ = ["Cancelled"]


class Cancelled(BaseException):
    """Raised in the thread of a ``def`` call that was cancelled.

    A `BaseException`, so that ``except Exception`` in the user's code doesn't eat it; ``finally`` and ``with`` run as usual.
    """
