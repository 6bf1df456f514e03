"""From a packed callable and a `Compute` to a live service: deploy, find, redeploy, tear down.

A `Service` is what a handle holds and what users manage through ``handle.service``. It is the `Target` of calls: it
gives the session to the pod, and brings the pod back where that can be done. Nearly everything here runs on the portal;
blocking and awaiting faces are made in `module` and by `Service`'s methods for people.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import re
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pod_server.processes import start_of

from . import shipping
from .backends import get_backend
from .backends.base import Backend, Event, ServiceSpec
from .backends.notes import local_notes
from .calls import load_error, startup_error
from .code import Code
from .compat import setup_hooks
from .compute import Compute
from .errors import (
    ConfigError,
    NotDeployedError,
    PodLostError,
    ServiceNotFoundError,
    WorkerDiedError,
)
from .identity import describe_client
from .interface import Interface
from .markup import summary
from .progress import DeployProgress, Phase
from .sending import send_code
from .streams import Output, open_output
from .transport.endpoint import Endpoint
from .transport.listing import all_calls, all_events
from .transport.portal import get_portal
from .transport.session import RemoteFailure, Session, get_session
from .values import readable_size

__all__ = ["Service", "deploy", "find_service", "service_name"]

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
    endpoint: Endpoint | None = None
    code: Code | None = field(default=None, repr=False)
    interface: Interface | None = field(default=None, repr=False)
    kind: str = "fn"
    torn_down: bool = False
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    _session: Session | None = field(default=None, repr=False)

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
    def live(self) -> Session | None:
        """The open session, for calls that need not wait for one; else None."""
        session = self._session
        return session if session is not None and session.usable and not self.torn_down else None

    async def session(self) -> Session:
        """The open session to a pod of this service; runs on the portal.

        A pod that ended (its TTL, a crash) is deployed again when this handle has the code.
        """
        if self.torn_down:
            raise NotDeployedError(f'service "{self.name}" was torn down; deploy it again with .to(...)')
        endpoint = self.endpoint
        if endpoint is not None and endpoint.gone is not None and (reason := endpoint.gone()) is not None:
            return await self._deploy_again(endpoint, reason)
        if endpoint is None:
            info = await self.backend.find(self.name)
            if info is None or info.endpoint is None:
                raise ServiceNotFoundError(
                    f'there is no service "{self.name}" {self._where()}; kt.services() lists those that there are'
                )
            endpoint = self.endpoint = info.endpoint
        return await self._connect(endpoint)

    async def _connect(self, endpoint: Endpoint) -> Session:
        self._session = await get_session(endpoint)
        return self._session

    async def _deploy_again(self, lost: Endpoint, reason: str) -> Session:
        async with self._lock:
            if self.endpoint is lost:
                info = await self.backend.find(self.name)
                if info is not None and info.endpoint is not None and info.endpoint != lost:
                    # Somebody has deployed it anew, perhaps this handle itself: that pod is not ours to replace.
                    self.endpoint = info.endpoint
                elif self.code is None:
                    raise PodLostError(
                        f'service "{self.name}" has ended ({reason}), and this handle has no code to deploy it again; '
                        "deploy it with .to(...) from where its code is",
                    )
                else:
                    async with DeployProgress(self.name) as progress:
                        empty = ", without what it held" if self.kind == "cls" else ""
                        progress.note(f'service "{self.name}" has ended ({reason}); deploying it again{empty}')
                        await _bring_up(self, self.code, progress, None)
            assert self.endpoint is not None
            return await self._connect(self.endpoint)

    def _where(self) -> str:
        return f"in namespace {self.namespace}" if self.namespace else "on this machine"

    # -- management, for people --------------------------------------------------------------------------------------

    def calls(self) -> list[dict[str, Any]]:
        """The calls that run and the last ones that ended, as dicts with ``id f state started ended by``."""
        return self._ask(lambda: self._list(all_calls))

    def events(self) -> list[dict[str, Any]]:
        """What happened to this service, in order (loads, deaths, restarts), as dicts with ``n time event text``."""
        return self._ask(lambda: self._list(all_events))

    def logs(self) -> str:
        """What was written outside of any call: while loading, by threads that no call started, by C code."""
        return str(self._ask(lambda: self._request("service_log"))["text"])

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
            return str(self._ask(lambda: self._request("service_log", last=last))["text"])
        return str(self._ask(lambda: self._request("call_log", id=id, last=last))["text"])

    def cancel(self, id: str) -> bool:
        """Ask the pod to cancel a call, whoever made it; False if it had ended already.

        Raises
        ------
        UnknownCallError, RecordExpiredError
            As `tail`.
        """
        return bool(self._ask(lambda: self._request("cancel", id=id))["cancelled"])

    def status(self) -> dict[str, Any]:
        """The pod's own word on itself: ``state``, ``worker`` (pid), ``calls`` (in flight), ``code``.

        ``memory`` in bytes and ``cpu`` in seconds (counted since the worker began) are those of the worker and its
        children, at the time ``at`` of the pod's clock; ``gpus`` has ``index``, ``use`` in per cent, ``memory`` and
        ``memory_total`` of each. What isn't known is None.
        """
        return self._ask(lambda: self._request("status", usage=True))

    def restart(self) -> None:
        """Replace the worker process; calls in flight end with ``WorkerDiedError(cause="restart")``, state is lost."""
        self._ask(lambda: self._request("restart"))

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
        self.endpoint = None
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        await self.backend.delete(self.name)

    def curl(self) -> str:
        """The shell line that calls this service: JSON in, JSON out. The token is read from its file, not shown."""
        info = _run(self.backend.find(self.name))
        if info is None or info.endpoint is None:
            raise ServiceNotFoundError(f'there is no service "{self.name}" {self._where()}')
        token = getattr(self.backend, "token_hint", lambda name: "$KT_TOKEN")(self.name)
        names = self.interface.methods if self.interface else []
        name = names[0] if names else (self.interface.entries[""].name if self.interface else self.name)
        return (
            f'curl -X POST {info.endpoint.url}/call/{name} -H "X-Kubetorch-Token: {token}"'
            " -H 'Content-Type: application/json' -d '{\"args\": [], \"kwargs\": {}}'"
        )

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

    async def _list(self, every: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
        return await every(await self.session())

    async def _request(self, op: str, **fields: Any) -> dict[str, Any]:
        return await (await self.session()).request(op, **fields)

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

#: One thread packs: pickling is the user's code (``__getstate__``) and long for large values, so it belongs neither on
#: the portal nor on the kernel's loop; several at once would only fight for the interpreter lock.
_packer = ThreadPoolExecutor(1, thread_name_prefix="kubetorch-pack")

#: Deploys of one name from this process go one after the other, so that the last one typed is the one that lives.
_deploying: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()


def _after_fork() -> None:
    global _packer, _deploying
    _packer = ThreadPoolExecutor(1, thread_name_prefix="kubetorch-pack")
    _deploying = weakref.WeakValueDictionary()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


async def pack(make: Callable[[], shipping.Bundle]) -> shipping.Bundle:
    """Run ``make`` on the packing thread, in this context."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_packer, context.run, make)


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
    image = code.compute.image
    problem = image.local_problem() if backend.name == "local" and image is not None else None
    if problem:
        raise ConfigError(problem)
    if backend.name == "local":
        for note in local_notes(code.compute):
            progress.note(note)
    meta = code.bundle.meta
    service = Service(name, backend, code.compute.namespace, kind=meta["kind"], code=code)
    service.interface = Interface(meta["interface"], meta["name"])
    if get_if_exists and (info := await backend.find(name)) is not None and info.endpoint is not None:
        service.endpoint = info.endpoint
        session = await service._connect(info.endpoint)
        await session.request("adopt", pid=os.getpid(), start=start_of(os.getpid()))
        live = (await session.request("status")).get("code")
        if live is not None:
            if live["kind"] != service.kind:
                raise ConfigError(
                    f'the live service "{name}" is a {live["kind"]}, and get_if_exists= would use it as a '
                    f"{service.kind}: give another name=, or tear it down"
                )
            differs = live["version"] != code.fingerprints()[0]
            service.interface = Interface(live["interface"], live["name"])
            await progress.done(
                f'using the live service "{name}"'
                + ("; its code or its limits differ from those here" if differs else "")
            )
            return service
    lock = _deploying.setdefault(name, asyncio.Lock())
    if lock.locked():
        progress(Phase.WAITING)
    async with lock:
        await _bring_up(service, code, progress, output)
    return service


async def _bring_up(service: Service, code: Code, progress: DeployProgress, output: Output | None) -> None:
    started = time.monotonic()
    spec = ServiceSpec(service.name, code.compute, describe_client())
    progress(Phase.SCHEDULING)
    before = await service.backend.find(service.name)
    endpoint = await service.backend.apply(spec, progress)
    live: dict[str, Any] | None = None
    # Whether the pod is to go if this fails: it came up for this, or lives without any code.
    ours = before is None or before.endpoint != endpoint
    try:
        progress(Phase.CONNECTING)
        session = await service._connect(endpoint)
        await session.request("adopt", pid=os.getpid(), start=start_of(os.getpid()))
        live = (await session.request("status")).get("code")
        ours = live is None
        progress(Phase.LOADING)
        done = await _load(service, code, session, live, progress, output)
    except BaseException:
        # A first deploy that fails or is stopped leaves nothing; a failed redeploy leaves what was there.
        if ours:
            await asyncio.shield(service.backend.delete(service.name))
        else:
            progress.note(f'"{service.name}" goes on with the code that it had')
        raise
    service.endpoint, service.torn_down = endpoint, False
    await progress.done(f'"{service.name}" {done.format(took=f"{time.monotonic() - started:.2f} s")}')


async def _load(
    service: Service,
    code: Code,
    session: Session,
    live: dict[str, Any] | None,
    progress: DeployProgress,
    output: Output | None,
) -> str:
    """Load the code into the pod unless it is there; what happened, for people (``{took}`` is to be filled in)."""
    version, worker = code.fingerprints()
    if live is not None and live["version"] == version:
        return "is unchanged: the same instance goes on"
    by = live.get("by") if live else None
    me = describe_client()
    if by and (by.get("host"), by.get("pid")) != (me["host"], me["pid"]):
        whose = by.get("notebook") or f"process {by.get('pid')}"
        progress.note(f'"{service.name}" replaces the code that {by.get("user")} deployed from {whose}')
    if live is not None and (before := live.get("name")) not in (None, code.bundle.meta["name"]):
        # Most often they are different things with names that differ in case only.
        progress.note(
            f'"{service.name}" was the service of {before} until now, and is that of {code.bundle.meta["name"]}'
        )
    for warning in code.bundle.warnings:
        progress.note(warning)
    compute = code.compute
    meta = {
        **code.bundle.meta,
        "version": version,
        "worker": worker,
        "by": me,
        "env": code.env,
        "cwd": code.cwd,
        "sys_path": code.sys_path,
        "threads": compute.concurrency,
        "concurrency": compute.concurrency,
        "memory_limit": compute.memory_limit_bytes,
        "ttl": compute.ttl_seconds,
        "setup": setup_hooks(),
    }
    try:
        local = service.backend.name == "local"
        sent = await send_code(code, session, meta, live, local, progress, output)
    except WorkerDiedError as e:
        raise startup_error(service.name, e) from e
    size = readable_size(sent)
    if live is None:
        ends = f"; it ends after {_hours(compute.ttl_seconds)} without a call" if compute.ttl_seconds else ""
        return f"is ready on {service.backend.name} pods in {{took}} (sent {size}){ends}"
    lost = f"; {meta['name']} was constructed anew, its state is lost" if service.kind == "cls" else ""
    return f"was redeployed in {{took}} (sent {size}){lost}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3g} h" if seconds >= 3600 else f"{seconds / 60:.3g} min"


async def find_service(name: str, namespace: str | None = None) -> Service:
    """The live service of that name; runs on the portal.

    Raises
    ------
    ServiceNotFoundError
        When there is none.
    """
    backend = get_backend(Compute(namespace=namespace) if namespace else Compute())
    info = await backend.find(name)
    if info is not None and info.state == "starting":
        raise ServiceNotFoundError(f'service "{name}" is being deployed; try again in a moment')
    if info is None or info.endpoint is None:
        where = f"in namespace {namespace}" if namespace else "on this machine"
        known = ", ".join(sorted(s.name for s in await backend.list())) or "none"
        raise ServiceNotFoundError(f'there is no service "{name}" {where}; live ones: {known}')
    service = Service(name, backend, namespace, info.endpoint)
    code = (await service._request("status")).get("code")
    if code is None:
        raise ServiceNotFoundError(f'service "{name}" is being deployed and has no code yet; try again in a moment')
    service.kind = code["kind"]
    service.interface = Interface(code["interface"], code["name"])
    return service


def open_deploy_output(stream_logs: bool, name: str) -> Output | None:
    """Where the load's own output goes: the deploying cell."""
    return open_output(name) if stream_logs else None
