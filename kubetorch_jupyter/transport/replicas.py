"""The pods of one service as its calls see them: the least busy one gets the next call. Runs on the portal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from ..errors import KubetorchError
from .endpoint import Endpoint
from .session import Session
from .sharing import get_session

__all__ = ["Replicas"]

#: Seconds between two looks for pods in the place of those that were lost, while others take the calls.
_LOOK = 1.0


class Replicas:
    """The sessions with the pods of a service.

    Parameters
    ----------
    endpoints
        One for each pod, by rank.
    prepare
        Awaited with each new session before calls may be started on it.
    """

    def __init__(
        self, endpoints: Sequence[Endpoint], prepare: Callable[[Session], Awaitable[None]] | None = None
    ) -> None:
        self.endpoints = tuple(endpoints)
        self._prepare = prepare
        #: By `Endpoint.key`.
        self._sessions: dict[tuple[str, str], Session] = {}
        self._looked = 0.0
        #: The minor version of the pods' Python, once one of them has been connected to.
        self.python: str | None = None

    @property
    def live(self) -> Session | None:
        """The least busy session that is open; None when there is none, or it is time to look for a lost pod."""
        if len(self.endpoints) == 1:
            session = self._sessions.get(self.endpoints[0].key)
            return session if session is not None and session.usable and not session.draining else None
        usable = [session for session in self._sessions.values() if session.usable and not session.draining]
        if not usable or (len(usable) < len(self.endpoints) and self._is_time()):
            return None
        return min(usable, key=lambda session: session.open_calls)

    def _is_time(self) -> bool:
        return asyncio.get_running_loop().time() - self._looked > _LOOK

    def lost(self) -> list[str]:
        """Why pods of it have ended, for those that are known to have."""
        errors = (each.gone(self._drains(each)) for each in self.endpoints if each.gone is not None)
        return [error.reason or "it is gone" for error in errors if error is not None]

    def _drains(self, endpoint: Endpoint) -> bool:
        session = self._sessions.get(endpoint.key)
        return session is not None and session.draining

    @property
    def draining(self) -> bool:
        """Whether other pods take the place of some of them."""
        return any(session.draining for session in self._sessions.values() if session.usable)

    async def session(self) -> Session:
        """The least busy session, after connecting to those pods that there is no connection to.

        Raises
        ------
        KubetorchError
            When none of them can be reached: the error of the first.
        """
        sessions = await self.sessions()
        return min(sessions, key=lambda session: session.open_calls)

    async def sessions(self) -> list[Session]:
        """Those with all pods that can be reached, by rank.

        Raises
        ------
        KubetorchError
            When none can: the error of the first.
        """
        self._looked = asyncio.get_running_loop().time()
        found = await asyncio.gather(*map(self._connect, self.endpoints), return_exceptions=True)
        sessions = [each for each in found if isinstance(each, Session)]
        errors = [each for each in found if isinstance(each, BaseException)]
        unexpected = next((e for e in errors if not isinstance(e, (KubetorchError, OSError))), None)
        if unexpected is not None:
            raise unexpected
        if not sessions:
            raise errors[0]
        return sessions

    async def _connect(self, endpoint: Endpoint) -> Session:
        session = await get_session(endpoint)
        if self._sessions.get(endpoint.key) is not session:
            if self._prepare is not None:
                await self._prepare(session)
            self._sessions[endpoint.key] = session
            self.python = session.welcome.get("python")
        return session

    def replace(self, endpoints: Sequence[Endpoint]) -> None:
        """Other pods have taken the place of some; sessions with those that stay go on."""
        self.endpoints = tuple(endpoints)
        keys = {endpoint.key for endpoint in self.endpoints}
        self._sessions = {key: session for key, session in self._sessions.items() if key in keys}

    def find(self, client: str) -> Session | None:
        """The session of ours with that client id, if calls of it can still be asked for."""
        return next((s for s in self._sessions.values() if s.client == client and s.usable), None)

    async def close(self) -> None:
        """Say goodbye to all."""
        sessions, self._sessions = self._sessions, {}
        await asyncio.gather(*(session.close() for session in sessions.values()))
