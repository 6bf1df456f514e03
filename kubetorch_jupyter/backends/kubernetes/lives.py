"""How often a pod's containers have ended, and how. Pure: no I/O.

The kubelet starts them again: the first time at once, then later and later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import names
from .diagnosis.objects import container, limits, quantity, statuses

__all__ = ["ends", "front_life", "is_down", "is_held_back", "worker_end"]

Raw = Mapping[str, Any]


def ends(pod: Raw, name: str) -> int:
    """How often a container has ended.

    Examples
    --------
    >>> status = {"name": "front", "restartCount": 1, "state": {"running": {}}, "lastState": {"terminated": {}}}
    >>> ends({"status": {"containerStatuses": [status]}}, "front")
    1
    >>> status["state"] = {"waiting": {"reason": "CrashLoopBackOff"}}
    >>> ends({"status": {"containerStatuses": [status]}}, "front")
    2
    """
    return int(_status(pod, name).get("restartCount") or 0) + is_down(pod, name)


def is_down(pod: Raw, name: str) -> bool:
    """Whether a container has run, and doesn't now."""
    status = _status(pod, name)
    state: Raw = status.get("state") or {}
    if state.get("terminated") is not None:
        return True
    return state.get("waiting") is not None and (status.get("lastState") or {}).get("terminated") is not None


def is_held_back(pod: Raw, name: str) -> bool:
    """Whether it takes the kubelet 10 s or more to start a container again: not the first time."""
    status = _status(pod, name)
    again = bool(status.get("restartCount")) or (status.get("state") or {}).get("waiting") is not None
    return again and is_down(pod, name)


def front_life(pod: Raw) -> int:
    """Which life of the front runs, or comes next; it knows nothing of the calls of the one before."""
    return ends(pod, names.FRONT)


def worker_end(pod: Raw) -> dict[str, Any]:
    """How the worker's container has ended the last time: fields of a `WorkerDiedError`."""
    status = _status(pod, names.WORKER)
    found: Raw = (
        (status.get("state") or {}).get("terminated") or (status.get("lastState") or {}).get("terminated") or {}
    )
    code = found.get("exitCode")
    if found.get("reason") == "OOMKilled":
        limit = ((container(pod, names.WORKER).get("resources") or {}).get("limits") or {}).get("memory")
        said = f"its container was ended as a whole: OOMKilled, {limits(pod, names.WORKER)}"
        return {"cause": "oom", "limit": int(quantity(limit)) if limit else None, "message": said}
    if not isinstance(code, int):
        return {}
    said = f"its container has ended: {found.get('reason') or 'Error'}, exit code {code}"
    if code > 128:
        return {"cause": "signal", "signal": code - 128, "message": said}
    return {"cause": "exit", "exit_code": code, "message": said}


def _status(pod: Raw, name: str) -> Raw:
    return next((status for status in statuses(pod) if status.get("name") == name), {})
