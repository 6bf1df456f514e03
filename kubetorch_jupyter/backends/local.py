"""Pods as processes of this machine.

Each is two processes forked from a warm root zygote (`zygotes`) and a directory (`registry`). They see by themselves
when their owners end; nothing of this module needs to live for that. Runs on the portal.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import signal
import sys
import time
import weakref
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pod_server import processes
from pod_server.wire import Buffer

from ..compute import Compute
from ..config import config
from ..errors import DeployError, PodLostError, ServiceTimeoutError, StartupError
from ..transport.endpoint import Endpoint
from . import gpus, registry
from .base import Event, Finding, Phase, Progress, Revision, ServiceInfo, ServiceSpec, VolumeStore, curl_line
from .ending import kill_tree, until_ended, until_settled
from .notes import local_findings, no_volumes
from .pods import changes, front_params, pod_env, pod_spec, unused_kubeconfig
from .registry import Record
from .spawning import begin_anew, environment, process_env
from .zygotes import RootZygote, ZygoteEnded

__all__ = ["LocalBackend", "shutdown"]

#: How long a pod may take to end by itself when asked, and again when its front has been killed, in seconds.
_GRACE = 5.0
#: A pod's end is remembered for so many pods.
_MEMORY = 500


@dataclass(frozen=True)
class _Pod:
    """The one pod of a service; a `Revision`."""

    backend: LocalBackend
    endpoint: Endpoint
    new: bool

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        return (self.endpoint,)

    async def keep(
        self, meta: Mapping[str, Any], buffers: Sequence[Buffer], progress: Progress, *, loaded: bool
    ) -> None:
        """Nothing: the pod that was replaced has ended, and only this client brings up another."""

    async def discard(self) -> None:
        await self.backend.delete(self.endpoint.service)


class LocalBackend:
    """The backend of this machine; `get_backend` gives the one of this process."""

    name = "local"
    here = True
    namespace: str | None = None

    def __init__(self) -> None:
        self._zygotes: dict[tuple[tuple[str, str], ...], asyncio.Task[RootZygote]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        #: Incarnation to why it ended.
        self._ended: dict[str, str] = {}
        self._events: dict[str, list[Event]] = {}
        self._deploying: dict[str, asyncio.Event] = {}
        self._cleaning: set[asyncio.Task[None]] = set()
        self._told = False

    def full_name(self, name: str) -> str:
        """The name itself: all services of this machine are this user's."""
        return name

    def complete(self, compute: Compute) -> Compute:
        """As it is."""
        return compute

    def where(self) -> str:
        """For sentences."""
        return "on this machine"

    # -- apply -------------------------------------------------------------------------------------------------------

    async def apply(self, spec: ServiceSpec, progress: Progress) -> Revision:
        """Bring up the service's pod, or give the one that lives; see `Backend`.

        A pod that lives is replaced only if it differs in what can't be changed while it runs: its GPUs, ``detach``,
        and the variables that only a new process can take on.

        Raises
        ------
        ResourceNotAvailableError
            When too few GPUs are free; nothing has been changed then.
        StartupError
            When the pod doesn't come up; nothing of it is left.
        ServiceTimeoutError
            When it takes longer than ``launch_timeout``.
        """
        _check_platform(spec.name)
        self._attach_loop()
        if not self._told:
            self._told = True
            if (text := unused_kubeconfig()) is not None:
                progress.note(text)
        lock = self._locks.setdefault(spec.name, asyncio.Lock())
        settled = self._deploying.setdefault(spec.name, asyncio.Event())
        try:
            async with asyncio.timeout(spec.compute.launch_seconds), lock:
                return await self._apply(spec, progress)
        except TimeoutError as e:
            if isinstance(e, DeployError):
                raise
            raise ServiceTimeoutError(
                f'service "{spec.name}" did not start within {spec.compute.launch_seconds:g} s; '
                "give it more with kt.Compute(launch_timeout=...)",
                service=spec.name,
            ) from e
        except DeployError as e:
            self._note(spec.name, "Failed", str(e), fatal=True)
            raise
        finally:
            settled.set()
            self._deploying.pop(spec.name, None)

    async def _apply(self, spec: ServiceSpec, progress: Progress) -> Revision:
        wanted = pod_spec(spec)
        available = await asyncio.to_thread(gpus.devices) if wanted["gpus"] else []
        zygotes_lost = 0
        while True:
            record, ours = await self._claim(spec, wanted, available)
            if ours:
                try:
                    return _Pod(self, await self._start(record, spec, progress), new=True)
                except ZygoteEnded as e:
                    # Killed since the last deploy, and that it is dead we hear only now: another is made. Not for ever.
                    zygotes_lost += 1
                    if zygotes_lost > 1:
                        raise StartupError(e.message, service=spec.name, traceback=e.traceback) from None
                    continue
            state = record.state
            if state == "foreign":
                there = record.service["machine"]["host"]
                raise StartupError(
                    f'service "{spec.name}" is in {record.path} already, put there by another machine or container '
                    f"({there}) that shares the folder; set KT_RUNTIME_DIR to a folder of this machine's own",
                    service=spec.name,
                )
            if state == "running":
                changed = changes(record.service["pod"], wanted)
                if not changed:
                    asks = _asks(spec)
                    if any(record.service[key] != value for key, value in asks.items()):
                        await asyncio.to_thread(registry.amend, record, asks)
                    try:
                        return _Pod(self, self._endpoint(record), new=False)
                    except FileNotFoundError:  # its token has gone: it is being removed
                        await until_ended(record, _GRACE)
                        continue
                if wanted["gpus"]:
                    self._check_room(spec.name, wanted["gpus"], available)
                progress.note(f'service "{spec.name}" gets a new pod: {changed}')
                await self._end(record)
            elif state == "starting":
                progress(Phase.WAITING, f"process {record.deployer[0]} does it")
                await until_settled(record)
            elif not await until_ended(record, _GRACE):
                await self._end(record)

    async def _claim(self, spec: ServiceSpec, wanted: dict[str, Any], available: list[str]) -> tuple[Record, bool]:
        thread = asyncio.ensure_future(
            asyncio.to_thread(registry.claim, spec.name, lambda held: self._describe(spec, wanted, available, held))
        )
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:

            async def give_back() -> None:
                # A thread can't be cancelled: what it makes is removed again.
                record, ours = await thread
                if ours:
                    await self._end(record)

            await self._to_its_end(give_back())
            raise

    async def _to_its_end(self, cleaning: Coroutine[Any, Any, None]) -> None:
        """Clean up, even if our own task is cancelled again meanwhile."""
        task = asyncio.create_task(cleaning)
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)
        await asyncio.shield(task)

    def _describe(
        self, spec: ServiceSpec, wanted: dict[str, Any], available: list[str], held: Mapping[str, str]
    ) -> dict[str, Any]:
        """What goes into ``service.json``."""
        incarnation = os.urandom(8).hex()
        bulk = registry.bulk_dir(spec.name, incarnation)
        # Not in the runtime directory, which may be in memory: packages are large.
        steps = os.path.join(config.cache_dir, "services", f"{spec.name}-{incarnation}")
        return {
            "pod": wanted,
            "devices": gpus.choose(spec.name, wanted["gpus"], available, held) if wanted["gpus"] else [],
            "incarnation": incarnation,
            "deployer": processes.this_process(),
            "machine": processes.machine(),
            "owner": dict(spec.owner),
            "detached": spec.compute.detach,
            **_asks(spec),
            "bulk": bulk,
            "steps": steps,
            "also": [steps, *([bulk] if bulk is not None else [])],
        }

    def _check_room(self, name: str, count: int, available: list[str]) -> None:
        held: dict[str, str] = {}
        for record in registry.read_all():
            if record.name != name and record.state != "dead":
                held.update(dict.fromkeys(record.service.get("devices", []), record.name))
        gpus.choose(name, count, available, held)

    async def _start(self, record: Record, spec: ServiceSpec, progress: Progress) -> Endpoint:
        """Have the pod forked; whatever goes wrong, nothing of it is left."""
        progress(Phase.STARTING)
        self._note(spec.name, "Starting", "the pod's processes are started")
        zygote: RootZygote | None = None
        try:
            zygote = await self._zygote(spec)
            await zygote.request(
                "spawn_pod",
                record.token().encode("ascii"),
                dir=str(record.dir),
                params=front_params(record, spec),
                env=pod_env(record),
                also=record.also,
                link=str(record.path) if record.path != record.dir else None,
            )
            live = registry.read(spec.name)
            if live is None or live.state != "running":
                raise StartupError(
                    f'the pod of service "{spec.name}" ended as soon as it had started', service=spec.name
                )
        except BaseException as e:
            await self._to_its_end(self._clean_up(record, zygote))
            if isinstance(e, StartupError):
                known = f'service "{spec.name}"' in e.message
                raise (ZygoteEnded if isinstance(e, ZygoteEnded) else StartupError)(
                    e.message if known else f'the pod of service "{spec.name}" did not start: {e.message}',
                    service=spec.name,
                    traceback=e.traceback,
                ) from None
            raise
        self._note(spec.name, "Started", f"the pod's front has pid {live.front[0] if live.front else '?'}")
        return self._endpoint(live)

    async def _clean_up(self, record: Record, zygote: RootZygote | None) -> None:
        if zygote is not None and not zygote.closed:
            # Over the socket that the order to start went over: it can't be overtaken by it. When it ends before it
            # answers, what it may have started is ended like any other pod, below.
            with contextlib.suppress(ZygoteEnded):
                await zygote.request("kill_pod", dir=str(record.dir))
        left = await asyncio.to_thread(registry.read, record.name)
        if left is not None and left.incarnation == record.incarnation:
            await self._end(left)
        registry.discard_empty(record.path.parent)

    async def _zygote(self, spec: ServiceSpec) -> RootZygote:
        env = environment(spec.compute)
        key = tuple(process_env(env).items())
        task = self._zygotes.get(key)
        if task is not None and task.done() and (task.cancelled() or task.exception() or task.result().closed):
            task = None
        if task is None:
            # A task of its own: several deploys wait for it, and the first may be cancelled.
            task = self._zygotes[key] = asyncio.create_task(RootZygote.start({**os.environ, **dict(key)}, self._on_end))
        return await asyncio.shield(task)

    def _attach_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # A loop of before can't be used any more (in tests; the portal has one for ever).
            self._zygotes, self._locks, self._deploying = {}, weakref.WeakValueDictionary(), {}
            self._loop = loop

    # -- looking -----------------------------------------------------------------------------------------------------

    async def find(self, name: str) -> ServiceInfo | None:
        """The service of that name, or None."""
        record = registry.read(name)
        return None if record is None else self._info(record)

    async def list(self) -> Sequence[ServiceInfo]:
        """All services of this user on this machine."""
        return await asyncio.to_thread(self.known)

    def known(self) -> Sequence[ServiceInfo]:
        """The same, from the files that say so."""
        return [info for info in map(self._info, registry.read_all()) if info is not None]

    def _info(self, record: Record) -> ServiceInfo | None:
        state = record.state
        if state not in ("running", "starting"):
            return None
        try:
            endpoint = self._endpoint(record) if state == "running" else None
        except FileNotFoundError:
            return None  # it is being removed: its token has gone already
        said = record.service
        return ServiceInfo(
            name=record.name,
            backend=self.name,
            state=state,
            created=said["created"],
            owner=said["owner"],
            resources={**said["resources"], **({"devices": said["devices"]} if said["devices"] else {})},
            endpoints=(endpoint,) if endpoint is not None else (),
            detached=said["detached"],
            ttl=said["ttl"],
        )

    def _endpoint(self, record: Record) -> Endpoint:
        front, incarnation = record.front, record.incarnation
        assert front is not None

        def gone(ended: bool) -> PodLostError | None:
            if processes.is_alive(*front):
                return None  # one that ends says itself why
            reason = self._ended.get(incarnation, f"its front process (pid {front[0]}) has ended")
            return PodLostError(service=record.name, reason=reason)

        return Endpoint(record.name, record.url, record.token(), gone=gone, folder=record.said.get("bulk"))

    def curl(self, info: ServiceInfo, function: str) -> str:
        """The shell line that calls it."""
        assert info.endpoint is not None
        return curl_line(info.endpoint.url, function, self.token_hint(info.name))

    def token_hint(self, name: str) -> str:
        """What stands for the token in a shell line: reading its file, so that it is shown nowhere."""
        return f"$(cat '{registry.runtime_dir(create=False) / name / 'token'}')"

    async def watch(self, name: str) -> AsyncIterator[Event]:
        """What this process knows to have happened to the service; ends when nothing is under way."""
        seen = 0
        while True:
            events = self._events.get(name, [])
            while seen < len(events):
                yield events[seen]
                seen += 1
            settled = self._deploying.get(name)
            if settled is None:
                return
            await settled.wait()

    def _note(self, name: str, reason: str, message: str, fatal: bool = False) -> None:
        events = self._events.setdefault(name, [])
        events.append(Event(time.time(), reason, message, fatal))
        del events[:-100]

    def _on_end(self, incarnation: str, reason: str) -> None:
        self._ended[incarnation] = reason
        while len(self._ended) > _MEMORY:
            del self._ended[next(iter(self._ended))]

    async def examine(self) -> Sequence[Finding]:
        """What there is on it, and the cluster that isn't used."""
        return local_findings(await asyncio.to_thread(unused_kubeconfig))

    async def volumes(self) -> VolumeStore:
        """There are none."""
        raise no_volumes()

    # -- ending ------------------------------------------------------------------------------------------------------

    async def delete(self, name: str) -> None:
        """End the service; returns when all of its processes and files are gone.

        Raises
        ------
        DeployError
            When something of it could not be ended or removed.
        """
        record = await asyncio.to_thread(registry.read, name)
        if record is not None:
            await self._end(record)
            self._note(name, "Deleted", "torn down")

    async def _end(self, record: Record) -> None:
        """End a pod: by asking its front, then by killing it (its zygote then kills the rest), then one by one."""
        if record.state == "foreign":
            raise DeployError(
                f'service "{record.name}" belongs to another machine or container that shares {record.path.parent}; '
                "end it there",
                service=record.name,
            )
        for number in (signal.SIGTERM, signal.SIGKILL):
            if record.front is not None and processes.is_alive(*record.front):
                os.kill(record.front[0], number)
            if await until_ended(record, _GRACE):
                break
        else:
            await asyncio.to_thread(kill_tree, record, _GRACE)
            if not await until_ended(record, _GRACE):
                pids = ", ".join(str(pid) for pid, _ in record.living)
                raise DeployError(
                    f"service \"{record.name}\" can't be ended: process {pids} doesn't die "
                    "(it may be stuck in a system call)",
                    service=record.name,
                )
        await asyncio.to_thread(registry.remove, record)

    def shutdown(self, timeout: float = 5.0) -> None:
        """End this process's pods that aren't detached, and its zygotes, as the process's end would; blocks."""
        me = processes.this_process()
        own = [r for r in registry.read_all() if r.deployer == me and not r.service["detached"]]
        for record in own:
            if record.front is not None and processes.is_alive(*record.front):
                os.kill(record.front[0], signal.SIGTERM)
        deadline = time.monotonic() + timeout
        tasks, self._zygotes = list(self._zygotes.values()), {}
        loop = self._loop
        if loop is not None and loop.is_running():
            zygotes = asyncio.run_coroutine_threadsafe(_close_all(tasks), loop).result(timeout)
        else:
            zygotes = [t.result() for t in tasks if t.done() and not t.cancelled() and not t.exception()]
            for zygote in zygotes:
                zygote.close()
        for zygote in zygotes:
            zygote.wait(max(deadline - time.monotonic(), 0.1))
            zygote.forget()
        begin_anew()

    def _leave(self, *, forked: bool) -> None:
        """Let go of the zygotes: at the end of the process, or because they are another process's."""
        zygotes, self._zygotes = self._zygotes, {}
        for task in zygotes.values():
            if task.done() and not task.cancelled() and task.exception() is None:
                if forked:
                    task.result().abandon()
                else:
                    task.result().forget()


async def _close_all(tasks: list[asyncio.Task[RootZygote]]) -> list[RootZygote]:
    """Close zygotes, also those that are still being started: a deploy may have been cancelled meanwhile."""
    done = await asyncio.gather(*tasks, return_exceptions=True)
    zygotes = [z for z in done if isinstance(z, RootZygote)]
    for zygote in zygotes:
        zygote.close()
    return zygotes


def _asks(spec: ServiceSpec) -> dict[str, Any]:
    """What can change with a redeploy to the same pod."""
    return {"ttl": spec.compute.ttl_seconds, "resources": spec.compute.resources()}


def _check_platform(name: str) -> None:
    if sys.platform != "linux" or not hasattr(os, "fork"):
        raise StartupError(
            f'service "{name}" can\'t run on this machine: local pods need Linux (its fork and its way to find '
            f"orphans), and this is {sys.platform}. Use a cluster: KT_BACKEND=kubernetes.",
            service=name,
            reason="Platform",
        )


# -- this process's backend --------------------------------------------------------------------------------------------

_backends: list[LocalBackend] = []


def local_backend() -> LocalBackend:
    """The one of this process."""
    if not _backends:
        _backends.append(LocalBackend())
    return _backends[0]


def shutdown() -> None:
    """End this process's pods and zygotes now; blocks. For tests and for who restarts a process in place."""
    for backend in _backends:
        backend.shutdown()


def _at_exit() -> None:
    for backend in _backends:
        backend._leave(forked=False)


def _after_fork() -> None:
    for backend in _backends:
        backend._leave(forked=True)
    _backends.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
