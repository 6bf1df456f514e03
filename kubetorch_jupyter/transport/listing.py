"""Lists that a pod gives in pieces, since an answer is one frame: all of it."""

from __future__ import annotations

from typing import Any

from .session import Session

__all__ = ["all_calls", "all_events"]


async def all_calls(session: Session, *, loads: bool = False) -> list[dict[str, Any]]:
    """The pod's calls: those that run, then those that ended, each newest first; on request with what it has loaded."""
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    skip = 0
    while True:
        answer = await session.request("calls", skip=skip, **({"loads": True} if loads else {}))
        # By id: a call that begins or ends between two answers moves the others.
        rows += [row for row in answer["calls"] if row["id"] not in seen]
        seen.update(row["id"] for row in answer["calls"])
        skip += len(answer["calls"])
        if not answer.get("more") or not answer["calls"]:
            return rows


async def all_events(session: Session) -> list[dict[str, Any]]:
    """What happened in the pod, oldest first."""
    rows: list[dict[str, Any]] = []
    while True:
        answer = await session.request("events", after=rows[-1]["n"] if rows else 0)
        rows += answer["events"]
        if not answer.get("more") or not answer["events"]:
            return rows
