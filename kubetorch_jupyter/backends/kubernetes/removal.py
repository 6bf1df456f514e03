"""Removing what nobody waits for: tried again while what is in the way may pass, and told when it won't.

What a failed deploy has made holds GPUs and quota, and nobody would look for it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable

from ...errors import ConfigError, ConnectionFailedError, DeployError, KubetorchError

__all__ = ["may_pass", "persist"]

log = logging.getLogger(__name__)

#: For so many seconds it is tried.
_PATIENCE = 3600.0
#: Seconds between two tries while the API server can't be reached: that costs nobody anything.
_AWAY = 2.0
#: Seconds between two tries while it refuses: at first, and at last, since each pause is twice the one before.
_FIRST, _LAST = 2.0, 60.0

#: What Kubernetes says of a request that will never be a good one.
_NEVER = frozenset(
    {
        "BadRequest",
        "Invalid",
        "MethodNotAllowed",
        "NotAcceptable",
        "RequestEntityTooLarge",
        "UnsupportedMediaType",
        "HTTP 400",
        "HTTP 405",
    }
)


def may_pass(error: KubetorchError) -> bool:
    """Whether the same request may be granted later.

    An API server that is away, starts or is too busy; a conflict; a webhook that doesn't answer; a login that has
    expired, and a right that is missing: all of that changes without us.

    Examples
    --------
    >>> [may_pass(DeployError(reason=reason)) for reason in ("TooManyRequests", "Conflict", "Invalid")]
    [True, True, False]
    """
    return not (isinstance(error, ConfigError) or (isinstance(error, DeployError) and error.reason in _NEVER))


async def persist(remove: Callable[[], Awaitable[None]], left: str) -> None:
    """Remove something; ends without an error when that is done, can't be done, or has taken an hour.

    Parameters
    ----------
    remove
        Tries it; what is gone already is no error to it.
    left
        What it is, and how somebody removes it by hand: for the warning when it stays.
    """
    deadline = time.monotonic() + _PATIENCE
    pause = _FIRST
    why = "Python has ended before it was removed"
    try:
        while True:
            try:
                await remove()
                return
            except KubetorchError as e:
                why = str(e)
                if not may_pass(e) or time.monotonic() > deadline:
                    log.warning("kubetorch: %s: %s", left, why)
                    return
                away = isinstance(e, ConnectionFailedError)
            await asyncio.sleep(_AWAY if away else pause * random.uniform(1.0, 1.25))
            pause = _FIRST if away else min(2 * pause, _LAST)
    except asyncio.CancelledError:
        log.warning("kubetorch: %s: %s", left, why)
        raise
