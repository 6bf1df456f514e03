"""`Cancelled`, by itself: the client's errors name it, and are there before anything that pickles is imported."""

from __future__ import annotations

__all__ = ["Cancelled"]


class Cancelled(BaseException):
    """What a ``def`` function that runs in a pod gets when its call is cancelled.

    A `BaseException`, so that ``except Exception`` doesn't swallow it; ``finally`` blocks run as usual.
    """
