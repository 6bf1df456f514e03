"""One session for each pod, whoever in this process wants it. On the portal."""

from __future__ import annotations

import asyncio
from typing import overload

from .endpoint import Endpoint
from .portal import Portal, get_portal
from .session import Session

__all__ = ["get_session", "hold_reading"]

_registry: dict[Portal, dict[tuple[str, str], Session]] = {}


def _sessions(portal: Portal) -> dict[tuple[str, str], Session]:
    return _registry.setdefault(portal, {})


def _forget(sessions: dict[tuple[str, str], Session], session: Session) -> None:
    if sessions.get(session.endpoint.key) is session:
        del sessions[session.endpoint.key]


@overload
async def get_session(endpoint: Endpoint) -> Session: ...
@overload
async def get_session(endpoint: Endpoint, *, connect: bool) -> Session | None: ...
async def get_session(endpoint: Endpoint, *, connect: bool = True) -> Session | None:
    """The one session of this process with that pod, connected when there is none; on the portal.

    Parameters
    ----------
    endpoint
        The pod.
    connect
        Whether to make one; without, None is what there may be instead.

    Raises
    ------
    ConnectionFailedError, AuthenticationError, VersionMismatchError, PodLostError
        As `Session.open`.
    """
    portal = get_portal()
    sessions = _sessions(portal)
    session = sessions.get(endpoint.key)
    if session is None or not session.usable:
        if not connect:
            return None
        session = sessions[endpoint.key] = Session(endpoint)
        session.on_shut = lambda: _forget(sessions, session)
        session.opening = portal.loop.create_task(session.open())
        session.opening.add_done_callback(session.opened)
    if session.opening is not None:
        await asyncio.shield(session.opening)
    return session


def hold_reading(held: bool) -> None:
    """Take nothing more from any connection of this process for now, or go on; on the portal.

    What comes faster than the user's terminal takes it would otherwise fill the memory.
    """
    for session in list(_sessions(get_portal()).values()):
        session.hold(held)
