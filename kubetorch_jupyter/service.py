"""From a packed callable and a `Compute` to a live service: deploy, find, redeploy, tear down.

A `Service` is what a handle holds and what users manage through ``handle.service``. It is the `Target` of calls: it
gives the session to the pod, and brings the pod back where that can be done. Nearly everything here runs on the portal;
blocking and awaiting faces are made in `module` and by `Service`'s methods for people.
"""

from __future__ import annotations

import asyncio
import os
import re
import weakref
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pod_server.wire import parse_call_id

from .backends import get_backend
from .backends.base import Backend, Event, ServiceInfo
from .backends.notes import local_notes
from .calls import find_row, load_error
from .code import Code
from .compute import Compute
from .deployment import adopt, bring_up, load
from .errors import (
    ConfigError,
    KubetorchError,
    NotDeployedError,
    PodLostError,
    ServiceNotFoundError,
    UnknownCallError,
)
from .interface import Interface
from .markup import summary
from .packing import fit
from .progress import DeployProgress, Phase
from .shipping import PYTHON
from .streams import Output, open_output
from .transport.endpoint import Endpoint
from .transport.listing import all_calls, all_events
from .transport.portal import get_portal
from .transport.replicas import Replicas
from .transport.session import RemoteFailure, Session

__all__ = ["Service", "deploy", "find_info", "find_service", "service_name"]

T = TypeVar("T")

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def service_name(name: str) -> str:
    """A valid service name made of a Python name: lower case, other characters become ``-``.

    Raises
    ------
    ConfigError
        When nothing is left of it, or more than the 63 characters of an RFC 1123 label.

    Examples
    --------
    >>> service_name("train_Model")
    'train-model'
    """
    out = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if len(out) > 63:
        raise ConfigError(f"the service name {out!r} has {len(out)} characters; 63 are allowed: give a shorter name=")
    if not _NAME.fullmatch(out):
        raise ConfigError(f"no service name can be made of {name!r}: give a name= of letters, digits and '-'")
    return out


@dataclass(eq=False)
class Service:
    """A live service: what ``handle.service`` is, whatever methods the user's class has.

    Examples
    --------
    >>> handle.service.calls()      # doctest: +SKIP
    >>> handle.service.restart()    # doctest: +SKIP
    """

    name: str
    backend: Backend = field(repr=False)
    namespace: str | None = None
    code: Code | None = field(default=None, repr=False)
    interface: Interface | None = field(default=None, repr=False)
    kind: str = "fn"
    torn_down: bool = False
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    _replicas: Replicas | None = field(default=None, repr=False)

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

    async def sessions(self) -> list[Session]:
        """Those with all of its pods that can be reached, by rank."""
        return await (await self._reach()).sessions()

    async def session_of(self, id: str) -> Session:
        """The one with the pod that has this call, or may have it; see `session`.

        Raises
        ------
        UnknownCallError
            When it is no call's id.
        """
        try:
            _, client, _ = parse_call_id(id)
        except ValueError as e:
            raise UnknownCallError(f"{e}; kt.calls() lists the ids", call_id=id, service=self.name) from None
        replicas = await self._reach()
        own = replicas.find(client)
        if own is not None:
            return own
        sessions = await replicas.sessions()
        if len(sessions) > 1:
            rows = await asyncio.gather(*(find_row(session, id) for session in sessions))
            sessions = [s for s, row in zip(sessions, rows, strict=True) if row is not None] or sessions
        return sessions[0]

    async def _reach(self) -> Replicas:
        """Its pods, of which one lives at least."""
        if self.torn_down:
            raise NotDeployedError(f'service "{self.name}" was torn down; deploy it again with .to(...)')
        replicas = self._replicas
        if replicas is None:
            info = await self.backend.find(self.name)
            if info is None or info.endpoint is None:
                raise ServiceNotFoundError(
                    f'there is no service "{self.name}" {self._where()}; kt.services() lists those that there are'
                )
            return self.use(info.endpoints)
        lost = replicas.lost()
        if len(lost) == len(replicas.endpoints):
            return await self._deploy_again(replicas, lost[0])
        if lost or replicas.draining:
            # Others take its calls; its backend puts another in its place, by and by.
            info = await self.backend.find(self.name)
            if info is not None and info.endpoint is not None:
                replicas.replace(info.endpoints)
        return replicas

    def use(self, endpoints: Sequence[Endpoint]) -> Replicas:
        """These are its pods from now on."""
        self._replicas = Replicas(endpoints, self._prepare)
        return self._replicas

    async def _prepare(self, session: Session) -> None:
        """A pod that came in the place of a lost one has no code when that was too large to be kept for it."""
        if self.code is not None and self._replicas is not None and len(self._replicas.endpoints) > 1:
            await load(session, await adopt(session), None, self.name, self.code)

    async def _deploy_again(self, lost: Replicas, reason: str) -> Replicas:
        async with self._lock:
            if self._replicas is lost:
                info = await self.backend.find(self.name)
                if info is not None and info.endpoint is not None and info.endpoints != lost.endpoints:
                    # Somebody has deployed it anew, perhaps this handle itself: those pods are not ours to replace.
                    self.use(info.endpoints)
                elif self.code is None:
                    raise PodLostError(
                        f'service "{self.name}" has ended ({reason}), and this handle has no code to deploy it again; '
                        "deploy it with .to(...) from where its code is",
                    )
                else:
                    async with DeployProgress(self.name) as progress:
                        empty = ", without what it held" if self.kind == "cls" else ""
                        progress.note(f'service "{self.name}" has ended ({reason}); deploying it again{empty}')
                        self.use(await bring_up(self.backend, self.name, self.code, progress, None))
            assert self._replicas is not None
            return self._replicas

    def _where(self) -> str:
        return f"in namespace {self.namespace}" if self.namespace else self.backend.where()

    # -- management, for people --------------------------------------------------------------------------------------

    def calls(self) -> list[dict[str, Any]]:
        """The calls that run and the last ones that ended, as dicts with ``id f state started ended by``.

        With several replicas each also has ``replica``, the rank of the pod that it runs in.
        """
        return self._ask(lambda: self._lists(all_calls))

    def events(self) -> list[dict[str, Any]]:
        """What happened to this service, in order (loads, deaths, restarts), as dicts with ``n time event text``.

        With several replicas each also has ``replica``.
        """
        rows = self._ask(lambda: self._lists(all_events))
        return rows if not rows or "replica" not in rows[0] else sorted(rows, key=lambda row: float(row["time"]))

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
        return str(self._ask(lambda: self._request_of(id, "call_log", last=last))["text"])

    def _service_log(self, **fields: Any) -> str:
        texts = [str(answer["text"]) for answer in self._ask(lambda: self._requests("service_log", **fields))]
        if len(texts) == 1:
            return texts[0]
        return "".join(f"==> {self.name}, replica {rank} <==\n{text}" for rank, text in enumerate(texts) if text)

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
        found = self._ask(lambda: self._requests("status", usage=True))
        return found[0] if len(found) == 1 else {**found[0], "replicas": found}

    def restart(self) -> None:
        """Replace the worker process; calls in flight end with ``WorkerDiedError(cause="restart")``, state is lost.

        All replicas' at once, if there are several.
        """
        self._ask(lambda: self._requests("restart"))

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

    async def _lists(
        self, every: Callable[[Session], Coroutine[Any, Any, list[dict[str, Any]]]]
    ) -> list[dict[str, Any]]:
        lists = await asyncio.gather(*map(every, await self.sessions()))
        if len(lists) == 1:
            return lists[0]
        return [{**row, "replica": rank} for rank, rows in enumerate(lists) for row in rows]

    async def _requests(self, op: str, **fields: Any) -> list[dict[str, Any]]:
        return await asyncio.gather(*(session.request(op, **fields) for session in await self.sessions()))

    async def _request_of(self, id: str, op: str, **fields: Any) -> dict[str, Any]:
        return await (await self.session_of(id)).request(op, id=id, **fields)

    def __reduce__(self) -> tuple[Any, ...]:
        rows = self.interface.rows if self.interface else None
        label = self.interface.label if self.interface else self.name
        return _rebuild, (self.name, self.namespace, self.kind, rows, label)


def _rebuild(name: str, namespace: str | None, kind: str, rows: Any, label: str) -> Service:
    """A service's handle in another process: it finds the pod at its first call."""
    backend = get_backend(Compute(namespace=namespace) if namespace else Compute())
    interface = Interface(rows, label) if rows is not None else None
    return Service(name, backend, namespace, interface=interface, kind=kind)


def _run(coro: Coroutine[Any, Any, T]) -> T:
    __tracebackhide__ = True
    return get_portal().run(coro)


# -- deploying ---------------------------------------------------------------------------------------------------------

#: Deploys of one name from this process go one after the other, so that the last one typed is the one that lives.
_deploying: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()


def _after_fork() -> None:
    global _deploying
    _deploying = weakref.WeakValueDictionary()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


async def deploy(
    code: Code,
    name: str,
    progress: DeployProgress,
    output: Output | None,
    *,
    get_if_exists: bool = False,
) -> Service:
    """Bring a service up with this code; runs on the portal.

    Raises
    ------
    StartupError
        When the code can't be loaded; its ``__cause__`` is the pod's exception with its traceback.
    DeployError
        When no pod can be had. Nothing is left behind then.
    """
    backend = get_backend(code.compute)
    name = backend.full_name(name)
    if backend.here:
        image = code.compute.image
        problem = image.local_problem() if image is not None else None
        if problem:
            raise ConfigError(problem)
        for note in local_notes(code.compute):
            progress.note(note)
    code = code.on(backend.complete(code.compute), here=backend.here)
    meta = code.bundle.meta
    service = Service(name, backend, code.compute.namespace, kind=meta["kind"], code=code)
    service.interface = Interface(meta["interface"], meta["name"])
    if get_if_exists and await _use_live(service, code, progress):
        return service
    lock = _deploying.setdefault(name, asyncio.Lock())
    if lock.locked():
        progress(Phase.WAITING)
    async with lock:
        service.use(await bring_up(backend, name, code, progress, output))
    return service


async def _use_live(service: Service, code: Code, progress: DeployProgress) -> bool:
    """Take the live service of that name as it is; False when there is none."""
    info = await service.backend.find(service.name)
    if info is None or info.endpoint is None:
        return False
    sessions = await service.use(info.endpoints).sessions()
    lives = await asyncio.gather(*map(adopt, sessions))
    live = next((live for live in lives if live is not None), None)
    if live is None:
        return False
    if live["kind"] != service.kind:
        raise ConfigError(
            f'the live service "{service.name}" is a {live["kind"]}, and get_if_exists= would use it as a '
            f"{service.kind}: give another name=, or tear it down"
        )
    try:
        await fit(code, sessions[0])
        differs = live["version"] != code.fingerprints()[0]
    except KubetorchError:  # it couldn't be sent there, and needn't be
        differs = True
    service.interface = Interface(live["interface"], live["name"])
    await progress.done(
        f'using the live service "{service.name}"'
        + ("; its code or its limits differ from those here" if differs else "")
    )
    return True


async def find_info(name: str, namespace: str | None = None) -> tuple[Backend, ServiceInfo]:
    """The service of that name, of this user if there is one, and its backend; runs on the portal.

    Raises
    ------
    ServiceNotFoundError
        When there is none.
    """
    backend = get_backend(Compute(namespace=namespace) if namespace else Compute())
    for each in dict.fromkeys((backend.full_name(name), name)):
        if (info := await backend.find(each)) is not None:
            return backend, info
    known = ", ".join(sorted(s.name for s in await backend.list())) or "none"
    raise ServiceNotFoundError(f'there is no service "{name}" {backend.where()}; live ones: {known}')


async def find_service(name: str, namespace: str | None = None) -> Service:
    """The live service of that name; runs on the portal.

    Raises
    ------
    ServiceNotFoundError
        When there is none.
    """
    backend, info = await find_info(name, namespace)
    if info.endpoint is None:
        raise ServiceNotFoundError(f'service "{info.name}" is being deployed; try again in a moment')
    service = Service(info.name, backend, namespace)
    service.use(info.endpoints)
    code = (await (await service.session()).request("status")).get("code")
    if code is None:
        raise ServiceNotFoundError(
            f'service "{info.name}" is being deployed and has no code yet; try again in a moment'
        )
    service.kind = code["kind"]
    service.interface = Interface(code["interface"], code["name"])
    return service


def open_deploy_output(stream_logs: bool, name: str) -> Output | None:
    """Where the load's own output goes: the deploying cell."""
    return open_output(name) if stream_logs else None
