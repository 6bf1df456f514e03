"""A live service: what is asked of it, how it is brought back, and its end.

A `Service` is what a handle holds and what users manage through ``handle.service``. It is the `Target` of calls: it
gives the session to the pod, and brings the pod back where that can be done. Nearly everything here runs on the portal;
blocking and awaiting faces are made in `module` and by `Service`'s methods for people.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from pod_server.wire import parse_call_id

from .asking import call_rows, event_rows, status_of, text_of
from .backends import backend_of, get_backend
from .backends.base import Backend, Event
from .calls import find_row, invoke, invoke_async, iterate, iterate_async, load_error
from .code import Code
from .compute import Compute
from .deployment import bring_up, come_again, fill, lacks, others
from .errors import (
    NotDeployedError,
    ServiceNotFoundError,
    UnknownCallError,
)
from .interface import Interface
from .markup import summary
from .progress import DeployProgress
from .shipping import PYTHON
from .transport.endpoint import Endpoint
from .transport.listing import all_calls, all_events
from .transport.portal import get_portal
from .transport.replicas import Replicas
from .transport.session import RemoteFailure, Session

__all__ = ["Service"]

T = TypeVar("T")


@dataclass(eq=False)
class Service:
    """A live service: what ``handle.service`` is, whatever methods the user's class has.

    Examples
    --------
    >>> handle.service.calls()      # doctest: +SKIP
    >>> handle.service.restart()    # doctest: +SKIP
    """

    #: How it is called, by whether that is awaited and whether it gives items. Handles find it here: what isn't
    #: deployed yet needs nothing of `calls`.
    ways: ClassVar[Mapping[tuple[bool, bool], Callable[..., Any]]] = {
        (False, False): invoke,
        (True, False): invoke_async,
        (False, True): iterate,
        (True, True): iterate_async,
    }

    name: str
    backend: Backend = field(repr=False)
    namespace: str | None = None
    code: Code | None = field(default=None, repr=False)
    interface: Interface | None = field(default=None, repr=False)
    kind: str = "fn"
    torn_down: bool = False
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    _replicas: Replicas | None = field(default=None, repr=False)
    #: Who brings it back at the moment.
    _reviving: asyncio.Task[Any] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return "<{} {}: {}>".format(*self._looks())

    def _repr_html_(self) -> str:
        return summary(*self._looks())

    def _looks(self) -> tuple[str, str, str]:
        where = "torn down" if self.torn_down or self.endpoint is None else f"{self.backend.name}, {self.endpoint.url}"
        management = "calls cancel events logs restart status tail teardown curl"
        return "kubetorch service", self.name, f"{where}; has {management}"

    # -- what calls need ---------------------------------------------------------------------------------------------

    @property
    def label(self) -> str:
        """What people call it: the function's or class's own name."""
        return self.interface.label if self.interface is not None else self.name

    @property
    def endpoint(self) -> Endpoint | None:
        """Where its first pod is reached; None before it is known and after `teardown`."""
        return self._replicas.endpoints[0] if self._replicas is not None else None

    @property
    def live(self) -> Session | None:
        """The open session for the next call, if one need not be waited for; else None."""
        return self._replicas.live if self._replicas is not None and not self.torn_down else None

    @property
    def foreign(self) -> bool:
        """Whether its pods are known to have another minor version of Python."""
        python = self._replicas.python if self._replicas is not None else None
        if python is None and self.code is not None:
            python = self.code.bundle.python
        return python not in (None, PYTHON)

    async def session(self) -> Session:
        """The open session for the next call: with the least busy pod; runs on the portal.

        Pods that ended (their TTL, a crash) are deployed again when this handle has the code.
        """
        return await (await self._reach()).session()

    async def replicas(self) -> Replicas:
        """Its pods, of which one lives at least; as `session`."""
        return await self._reach()

    async def session_of(self, id: str) -> Session:
        """The one with the pod that has this call, or may have it; see `session`.

        A pod of this process's that has ended is not brought back for it: the session says why it ended.

        Raises
        ------
        UnknownCallError
            When it is no call's id.
        """
        try:
            _, client, _ = parse_call_id(id)
        except ValueError as e:
            raise UnknownCallError(f"{e}; kt.calls() lists the ids", call_id=id, service=self.name) from None
        own = self._replicas.find(client) if self._replicas is not None else None
        if own is not None:
            return own
        replicas = await self._reach()
        if replicas.size == 1:
            return await replicas.session()

        async def look(session: Session) -> tuple[Session, bool]:
            return session, await find_row(session, id) is not None

        answers = [answer for _, answer in await replicas.ask(look)]
        found = [answer for answer in answers if not isinstance(answer, Exception)]
        if (having := next((session for session, has in found if has), None)) is not None:
            return having
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer  # that one may have it
        return found[0][0]

    async def _reach(self) -> Replicas:
        """Its pods, of which one lives at least."""
        if self.torn_down:
            raise self._torn_down()
        replicas = self._replicas
        if replicas is None:
            endpoints = await self._find()
            if not endpoints:
                raise ServiceNotFoundError(
                    f'there is no service "{self.name}" {self._where()}; kt.services() lists those that there are'
                )
            return self.use(endpoints)
        if replicas.foreign:
            return self.use(replicas.endpoints)
        lost = replicas.lost()
        if lost and len(lost) == len(replicas.endpoints):
            return await self._deploy_again(replicas, lost[0])
        if replicas.draining:
            await replicas.update()
        return replicas

    def _torn_down(self) -> NotDeployedError:
        return NotDeployedError(f'service "{self.name}" was torn down; deploy it again with .to(...)')

    async def _find(self) -> Sequence[Endpoint]:
        info = await self.backend.find(self.name)
        return info.endpoints if info is not None else ()

    def use(self, endpoints: Sequence[Endpoint]) -> Replicas:
        """These are its pods from now on."""
        self._replicas = Replicas(endpoints, self._prepare, self._find, self._replicas)
        return self._replicas

    async def _prepare(self, session: Session) -> None:
        """See that a pod that isn't of this process's making has code: it may have been too large to be kept for it.

        Raises
        ------
        NotDeployedError
            When it has none, and this handle has none that it could be given.
        """
        if self.backend.here or not await lacks(session, self.name):
            return
        assert self._replicas is not None
        if self.code is None or await self._replicas.versions() - {self.code.fingerprints()[0]}:
            raise NotDeployedError(
                f'a pod of service "{self.name}" has come in the place of another, without its code, which was too '
                f"large to be kept in the cluster; this handle {'has none' if self.code is None else 'has another'}: "
                "deploy it again with .to(...) from where its code is",
                service=self.name,
            )
        await fill(session, self.name, self.code)

    async def _deploy_again(self, lost: Replicas, reason: str) -> Replicas:
        async with self._lock:
            if self._replicas is lost and not self.torn_down:
                self._reviving = asyncio.current_task()
                try:
                    await self._revive(lost, reason)
                except asyncio.CancelledError:
                    if not self.torn_down:
                        raise
                finally:
                    self._reviving = None
            if self.torn_down or self._replicas is None:
                raise self._torn_down()
            return self._replicas

    async def _revive(self, lost: Replicas, reason: str) -> None:
        if now := await others(self.backend, self.name, lost.endpoints):
            # Somebody has deployed it anew, perhaps this handle itself: those pods are not ours to replace.
            self.use(now)
        elif self.code is None:
            self.use(await come_again(self.backend, self.name, lost.endpoints, reason))
        else:
            async with DeployProgress(self.name) as progress:
                empty = ", without what it held" if self.kind == "cls" else ""
                progress.note(f'service "{self.name}" has ended ({reason}); deploying it again{empty}')
                await self.use(await bring_up(self.backend, self.name, self.code, progress, None)).take_open()

    def _where(self) -> str:
        return f"in namespace {self.namespace}" if self.namespace else self.backend.where()

    # -- management, for people --------------------------------------------------------------------------------------

    def calls(self) -> list[dict[str, Any]]:
        """The calls that run and the last ones that ended, as dicts with ``id f state started ended by``.

        With several replicas each also has ``replica``, the rank of the pod that it runs in.
        """
        return call_rows(self._ask_all(all_calls), self._many)

    def events(self) -> list[dict[str, Any]]:
        """What happened to this service, in order (loads, deaths, restarts), as dicts with ``n time event text``.

        With several replicas each also has ``replica``.
        """
        return event_rows(self._ask_all(all_events), self._many)

    def logs(self) -> str:
        """What was written outside of any call: while loading, by threads that no call started, by C code."""
        return self._service_log()

    def tail(self, id: str | None = None, last: int = 16_384) -> str:
        """The end of the log of a call, or of what was written outside of any call; cheap however long it is.

        Parameters
        ----------
        id
            The call's id; None for the service's own log.
        last
            How many bytes of it, as far as a frame (64 KiB) has room.

        Raises
        ------
        UnknownCallError, RecordExpiredError
            When the pod has no such call, or has forgotten it.
        """
        if id is None:
            return self._service_log(last=last)
        return self.read_on(id, last=last)[0]

    def read_on(self, id: str, after: int = 0, last: int = 16_384) -> tuple[str, int]:
        """What a call has written since an offset, of that the `last` bytes, and the offset of its end, in bytes.

        As `tail` otherwise; from one look to the next it gives each piece once.
        """
        found = self._ask(lambda: self._request_of(id, "call_log", last=last, after=after))
        return str(found["text"]), int(found["end"])

    def _service_log(self, **fields: Any) -> str:
        async def read(session: Session) -> str:
            return str((await session.request("service_log", **fields))["text"])

        return text_of(self.name, self._ask_all(read), self._many)

    def cancel(self, id: str) -> bool:
        """Ask the pod to cancel a call, whoever made it; False if it had ended already.

        Raises
        ------
        UnknownCallError, RecordExpiredError
            As `tail`.
        """
        return bool(self._ask(lambda: self._request_of(id, "cancel"))["cancelled"])

    def status(self) -> dict[str, Any]:
        """The pod's own word on itself: ``state``, ``worker`` (pid), ``calls`` (in flight), ``code``.

        ``memory`` in bytes and ``cpu`` in seconds (counted since the worker began) are those of the worker and its
        children, at the time ``at`` of the pod's clock; ``gpus`` has ``index``, ``use`` in per cent, ``memory`` and
        ``memory_total`` of each. What isn't known is None. With several replicas it is the first's, and ``replicas``
        has all of them.
        """
        return status_of(self._ask_all(lambda session: session.request("status", usage=True)), self._many)

    def restart(self) -> None:
        """Replace the worker process; calls in flight end with ``WorkerDiedError(cause="restart")``, state is lost.

        All replicas' at once, if there are several.
        """
        for _, answer in self._ask_all(lambda session: session.request("restart"), None):
            if isinstance(answer, Exception):
                raise answer

    def teardown(self) -> None:
        """End the service and remove everything that belongs to it; returns when that is done.

        Raises
        ------
        KubetorchError
            When something of it could not be removed.
        """
        _run(self.teardown_async())

    async def teardown_async(self) -> None:
        """`teardown`, on the portal."""
        self.torn_down = True
        if self._reviving is not None:
            # Or it would come back after this. It removes what it has made itself.
            self._reviving.cancel()
        async with self._lock:
            replicas, self._replicas = self._replicas, None
            if replicas is not None:
                await replicas.close()
            await self.backend.delete(self.name)

    def curl(self) -> str:
        """The shell line that calls this service: JSON in, JSON out. The token is read where it stands, not shown.

        From outside of a cluster it is two lines, the first of which opens a way to the pod.
        """
        info = _run(self.backend.find(self.name))
        if info is None or info.endpoint is None:
            raise ServiceNotFoundError(f'there is no service "{self.name}" {self._where()}')
        names = self.interface.methods if self.interface else []
        name = names[0] if names else (self.interface.entries[""].name if self.interface else self.name)
        return self.backend.curl(info, name)

    def watch(self) -> list[Event]:
        """The backend's events of this service so far."""

        async def collect() -> list[Event]:
            return [event async for event in self.backend.watch(self.name)]

        return _run(collect())

    def _ask(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        __tracebackhide__ = True
        try:
            return _run(make())
        except RemoteFailure as e:  # the pod had ended, and its code can't be loaded any more
            error = load_error(e, self.name)
            raise error from error.__cause__

    def _ask_all(
        self, what: Callable[[Session], Awaitable[T]], patience: float | None = 5.0
    ) -> list[tuple[int, T | Exception]]:
        async def ask() -> list[tuple[int, T | Exception]]:
            return await (await self._reach()).ask(what, patience)

        __tracebackhide__ = True
        return self._ask(ask)

    @property
    def _many(self) -> bool:
        return self._replicas is not None and self._replicas.size > 1

    async def _request_of(self, id: str, op: str, **fields: Any) -> dict[str, Any]:
        return await (await self.session_of(id)).request(op, id=id, **fields)

    def __reduce__(self) -> tuple[Any, ...]:
        rows = self.interface.rows if self.interface else None
        label = self.interface.label if self.interface else self.name
        way = None
        if not self.backend.here and self.endpoint is not None:
            # In another pod of the cluster there is nobody who could be asked for it.
            way = self.namespace or self.backend.namespace, self.endpoint.token
        return _rebuild, (self.name, self.namespace, self.kind, rows, label, way)


def _rebuild(
    name: str, namespace: str | None, kind: str, rows: Any, label: str, way: tuple[str | None, str] | None
) -> Service:
    """A service's handle in another process: it finds the pod at its first call."""
    compute = Compute(namespace=namespace) if namespace else Compute()
    backend = backend_of(name, *way, compute) if way is not None else get_backend(compute)
    interface = Interface(rows, label) if rows is not None else None
    return Service(name, backend, namespace, interface=interface, kind=kind)


def _run(coro: Coroutine[Any, Any, T]) -> T:
    __tracebackhide__ = True
    return get_portal().run(coro)
