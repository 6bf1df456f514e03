"""The pods of one service as its calls see them: the least busy one gets the next call. Runs on the portal.

Nothing is asked of pods or backend while nobody calls. A pod that is lost costs the calls that it had, and no other
call any time: the rest go on, and who comes in its place is found beside them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from ..errors import ConnectionFailedError, KubetorchError, PodLostError
from .endpoint import Endpoint
from .exchange import RemoteFailure
from .portal import get_portal
from .session import Session
from .sharing import get_session

__all__ = ["Replica", "Replicas"]

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two looks for pods in the place of those that were lost, at first and at most.
_LOOK = 1.0, 8.0
#: How long one pod may keep the answer of the others waiting, in seconds: to connect, and to answer.
_PATIENCE = 2.0
_ANSWER = 5.0
#: How long the first calls wait for a second pod when there is one, in seconds.
_TOGETHER = 0.1
#: So many sessions that have ended are remembered for what their calls ask.
_PAST = 20


class Replica:
    """One pod of a service.

    Attributes
    ----------
    rank
        Which one it is.
    endpoint
        Where it is reached.
    session
        The session with it, once calls may be started on it; it may have ended since.
    error
        Why there was none when that was last tried.
    """

    def __init__(self, endpoint: Endpoint, rank: int) -> None:
        self.place(endpoint, rank)
        self.session: Session | None = None
        self.error: Exception | None = None
        self.connecting: asyncio.Task[None] | None = None
        #: When it got its last call, as a number that grows.
        self.turn = 0

    def place(self, endpoint: Endpoint, rank: int) -> None:
        """It is reached there, and is of that rank unless the backend says another."""
        self.endpoint = endpoint
        self.rank = endpoint.rank if endpoint.rank is not None else rank

    @property
    def usable(self) -> bool:
        """Whether there is a session that something may be asked on."""
        return self.session is not None and self.session.usable

    @property
    def draining(self) -> bool:
        """Whether the pod's place is taken by another one."""
        return self.session is not None and self.session.usable and self.session.draining

    def gone(self) -> PodLostError | None:
        """Why the pod has ended; None while it may live."""
        session = self.session
        # When the session is over, what has been decided of the pod counts, though it may not have ended yet.
        doubtful = session is not None and (session.draining or not session.usable)
        return self.endpoint.lost(doubtful)

    def open(self) -> Session:
        """The session for what is asked now.

        Raises
        ------
        Exception
            Why there is none.
        """
        if self.session is not None and self.usable:
            return self.session
        if self.connecting is not None and not self.connecting.done():
            raise ConnectionFailedError(
                f'replica {self.rank} of service "{self.endpoint.service}" at {self.endpoint.url} has not answered '
                f"within {_PATIENCE:g} s",
                service=self.endpoint.service,
                url=self.endpoint.url,
            )
        raise self.error or PodLostError(
            service=self.endpoint.service, reason=f"replica {self.rank} ended as soon as it was connected to"
        )


class Replicas:
    """The pods of a service, and the sessions with them.

    Parameters
    ----------
    endpoints
        One for each pod, by rank.
    prepare
        Awaited with each new session before calls may be started on it; a pod for which it raises gets none.
    find
        Asks the backend which pods there are now.
    before
        What the service had until now, for what is still asked of its calls.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        prepare: Callable[[Session], Awaitable[None]] | None = None,
        find: Callable[[], Awaitable[Sequence[Endpoint]]] | None = None,
        before: Replicas | None = None,
    ) -> None:
        self._replicas = [Replica(endpoint, rank) for rank, endpoint in enumerate(endpoints)]
        self._prepare = prepare
        self._find = find
        #: How many there should be, as far as is known.
        self._size = len(self._replicas)
        self._portal = get_portal()
        #: The minor version of the pods' Python, once one of them has been connected to.
        self.python: str | None = None
        self._turn = 0
        self._looking: asyncio.Task[None] | None = None
        self._look_at = 0.0
        self._pause = _LOOK[0]
        self._past: deque[Session] = deque(maxlen=_PAST)
        if before is not None and not before.foreign:
            self._past.extend(before._past)
            self._remember(before._replicas)

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where they are reached, by rank."""
        return tuple(replica.endpoint for replica in self._replicas)

    @property
    def size(self) -> int:
        """How many there are when all are there."""
        return self._size

    @property
    def foreign(self) -> bool:
        """Whether they are those of the process that this one was forked from."""
        return self._portal is not get_portal()

    @property
    def live(self) -> Session | None:
        """The open session for the next call, with the least busy pod; None when it has to be waited for.

        Of several that are equally busy the next one in turn: other clients would all choose the first as well.
        """
        replicas = self._replicas
        if self._size == 1:
            session = replicas[0].session
            return session if session is not None and session.usable and not session.draining else None
        best: Replica | None = None
        least = 0
        spare: Replica | None = None
        there = 0
        for replica in replicas:
            session = replica.session
            if session is None or not session.usable or session.draining:
                continue
            if not session.connected:
                # It may have ended: what it is given waits until that is known, so only if there is no other.
                spare = spare or replica
                continue
            there += 1
            busy = session.open_calls
            if best is None or busy < least or (busy == least and replica.turn < best.turn):
                best, least = replica, busy
        if there < self._size and self._looking is None and (best or spare) is not None:
            self._look_later()
        best = best or spare
        if best is None:
            return None
        self._turn += 1
        best.turn = self._turn
        return best.session

    def lost(self) -> list[str]:
        """Why pods of it have ended, for those that are known to have."""
        errors = (replica.gone() for replica in self._replicas)
        return [error.reason or "it is gone" for error in errors if error is not None]

    @property
    def draining(self) -> bool:
        """Whether other pods take the place of some of them."""
        return any(replica.draining for replica in self._replicas)

    async def session(self) -> Session:
        """The least busy session, after connecting to one pod at least.

        Raises
        ------
        Exception
            When none of them can be reached: why not the first.
        """
        if (session := self.live) is not None:
            return session
        waiting = {self._connect(replica) for replica in self._replicas}
        while waiting and self.live is None:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if waiting:
            # All calls that were made at first wait here: they would all go to the pod that answers first.
            await asyncio.wait(waiting, timeout=_TOGETHER)
        if (session := self.live) is not None:
            return session
        # One whose place others take, but which aren't there yet, is better than none.
        return next((r for r in self._replicas if r.usable), self._replicas[0]).open()

    async def all(self) -> list[Replica]:
        """All of them by rank, connected to as far as they can be reached without holding the others up."""
        if self.lost() or self.draining:
            await self.update()
        waiting = {self._connect(each) for each in self._replicas if not each.usable}
        while waiting and not any(each.usable for each in self._replicas):
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if waiting:
            await asyncio.wait(waiting, timeout=_PATIENCE)
        return list(self._replicas)

    async def take_open(self) -> None:
        """Start calls on the sessions that there are with them: they have the code."""
        for replica in self._replicas:
            session = await get_session(replica.endpoint, connect=False)
            if session is not None and session.usable:
                self._take(replica, session)

    def _take(self, replica: Replica, session: Session) -> None:
        replica.session = session
        self.python = session.welcome.get("python")

    async def versions(self) -> set[str]:
        """Of the code in those that calls may be started on."""
        sessions = [r.session for r in self._replicas if r.session is not None and r.usable]

        async def version(session: Session) -> str | None:
            try:
                async with asyncio.timeout(_ANSWER):
                    code = (await session.request("status")).get("code")
            except (KubetorchError, OSError):
                return None  # it may end at this moment
            return str(code["version"]) if code is not None else None

        found = await asyncio.gather(*map(version, sessions))
        return {each for each in found if each is not None}

    async def ask(
        self, what: Callable[[Session], Awaitable[T]], patience: float | None = _ANSWER
    ) -> list[tuple[int, T | Exception]]:
        """Ask all of them something; what each says, or why it doesn't, with its rank.

        Parameters
        ----------
        what
            Asks one.
        patience
            How long one of several may take, in seconds; None: as long as it likes.

        Raises
        ------
        Exception
            When none of them answers: why the first doesn't.
        """

        async def one(replica: Replica) -> tuple[int, T | Exception]:
            try:
                async with asyncio.timeout(patience if self._size > 1 else None):
                    return replica.rank, await what(replica.open())
            except TimeoutError as e:
                if isinstance(e, KubetorchError):
                    return replica.rank, e
                text = f'replica {replica.rank} of service "{replica.endpoint.service}" has not answered within '
                return replica.rank, ConnectionFailedError(f"{text}{patience:g} s", service=replica.endpoint.service)
            except (KubetorchError, RemoteFailure, OSError) as e:
                return replica.rank, e

        answers = await asyncio.gather(*map(one, await self.all()))
        errors = [answer for _, answer in answers if isinstance(answer, Exception)]
        if len(errors) == len(answers):
            raise errors[0]
        return answers

    def _connect(self, replica: Replica) -> asyncio.Task[None]:
        """Connect to it, if nobody does already: who waits may be cancelled, and others wait as well."""
        if replica.connecting is None or replica.connecting.done():
            replica.connecting = get_portal().own(self._open(replica))
        return replica.connecting

    async def _open(self, replica: Replica) -> None:
        try:
            session = await get_session(replica.endpoint)
            if session is not replica.session:
                if self._prepare is not None:
                    await self._prepare(session)
                self._remember([replica])
                self._take(replica, session)
                self._pause = _LOOK[0]
            replica.error = None
        except (KubetorchError, RemoteFailure, OSError) as e:
            replica.error = e
        except Exception as e:  # a mistake of ours: who waits has to hear of it, and so has the log
            log.exception("service %s can't be connected to", replica.endpoint.service)
            replica.error = e

    # -- pods that come in the place of others -----------------------------------------------------------------------

    def _look_later(self) -> None:
        """See which pods there are, and connect to them, beside the calls and not too often."""
        now = asyncio.get_running_loop().time()
        if now >= self._look_at:
            self._look_at = now + self._pause
            self._pause = min(2 * self._pause, _LOOK[1])
            self._looking = get_portal().own(self._look())

    async def _look(self) -> None:
        try:
            if self.lost() or self.draining or len(self._replicas) < self._size:
                await self.update()
            for replica in self._replicas:
                if not replica.usable and replica.gone() is None:
                    self._connect(replica)
        finally:
            self._looking = None

    async def update(self) -> None:
        """Ask the backend which pods there are now."""
        if self._find is None:
            return
        try:
            endpoints = await self._find()
        except (KubetorchError, OSError) as e:
            log.debug("the pods of a service can't be looked for just now: %s", e)
            return
        if endpoints:  # else nothing is known of those that come
            self.replace(endpoints)

    def replace(self, endpoints: Sequence[Endpoint]) -> None:
        """These are its pods now; sessions with those that stay go on."""
        replaced = all(replica.draining for replica in self._replicas)
        known = {replica.endpoint.key: replica for replica in self._replicas}
        found = []
        for rank, endpoint in enumerate(endpoints):
            replica = known.pop(endpoint.key, None)
            if replica is None:
                replica = Replica(endpoint, rank)
            replica.place(endpoint, rank)
            found.append(replica)
        self._remember(known.values())
        self._replicas = found
        # All at once: a deploy has replaced them, perhaps by another number. Else the others are still to come.
        self._size = len(found) if replaced else max(self._size, len(found))

    # -- what was asked of them before -------------------------------------------------------------------------------

    def _remember(self, replicas: Iterable[Replica]) -> None:
        self._past.extend(replica.session for replica in replicas if replica.session is not None)

    def find(self, client: str) -> Session | None:
        """The session of ours with that client id; it may have ended, and says why to who asks."""
        if self.foreign:
            return None
        sessions = [replica.session for replica in self._replicas if replica.session is not None]
        return next((session for session in (*sessions, *self._past) if session.client == client), None)

    async def close(self) -> None:
        """Say goodbye to all."""
        for task in (self._looking, *(replica.connecting for replica in self._replicas)):
            if task is not None:
                task.cancel()
        sessions = [replica.session for replica in self._replicas if replica.session is not None]
        await asyncio.gather(*(session.close() for session in sessions))
