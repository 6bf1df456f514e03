"""What became of a call or a deploy that failed, as an exception of this process; made in the caller's thread."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from pod_server import exceptions, wire

from ..errors import StartupError, WorkerDiedError, from_wire, remote_error
from ..transport.exchange import RemoteFailure

__all__ = ["decode_error", "load_error", "startup_error"]


def decode_error(
    meta: Mapping[str, Any],
    buffers: Sequence[wire.Buffer],
    *,
    service: str | None = None,
    call_id: str | None = None,
) -> BaseException:
    """The exception of a RESULT with ``F_ERROR``; in the caller's thread, since the user's classes are made here.

    Parameters
    ----------
    meta, buffers
        As they came; also those of `transport.session.RemoteFailure`, which ``Session.load`` raises.
    service, call_id
        What it was about.
    """
    error = meta.get("error") or {}
    if error.get("type") != "user":
        return from_wire(error, service=service, call_id=call_id)
    return exceptions.decode(buffers, remote_error)


def startup_error(name: str, cause: BaseException) -> StartupError:
    """What ``.to`` raises, from ``cause``, when the user's own code failed while it was loaded."""
    ours = isinstance(cause, WorkerDiedError)
    what = str(cause) if ours else "".join(traceback.format_exception_only(cause)).strip()
    return StartupError(f'service "{name}" could not be loaded in its pod: {what}', service=name)


def load_error(failure: RemoteFailure, service: str) -> StartupError:
    """`startup_error` of a load that the user's own code made fail; not on the portal, as `decode_error`."""
    cause = decode_error(failure.meta, failure.buffers)
    error = startup_error(service, cause)
    error.__cause__ = cause
    return error
