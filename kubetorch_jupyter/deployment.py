"""The steps of a deploy on the portal: bring the pods up, load the code into each, and let go of what they replace."""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pod_server.processes import start_of

from .backends.base import Backend, Progress, Revision, ServiceSpec
from .calls import startup_error
from .code import Code
from .compat import setup_hooks
from .errors import ConfigError, KubetorchError, NotDeployedError, PodLostError, WorkerDiedError
from .identity import describe_client, of_another
from .packing import fit
from .progress import DeployProgress, Phase
from .sending import send_code, whole_load
from .streams import Output
from .transport.endpoint import Endpoint
from .transport.session import RemoteFailure, Session
from .transport.sharing import get_session
from .values import readable_size

__all__ = ["adopt", "bring_up", "come_again", "fill", "lacks", "others"]

#: How long a pod that was told to stop loading may take to say what it has, in seconds.
_SETTLE = 5.0
#: How long a pod's deployer may take to give it code, before nobody waits any more, and between two looks, in seconds.
_DEPLOYING = 20.0
_POLL = 0.25
#: How long a cluster may take to make a pod in the place of a lost one, in seconds: it waits 12 s by itself.
_COMING = 90.0


#: What was deployed last from this process and is still held by a handle, by backend, namespace and name.
_deployed: weakref.WeakValueDictionary[tuple[str, str | None, str], Code] = weakref.WeakValueDictionary()


async def adopt(backend: Backend, session: Session) -> dict[str, Any] | None:
    """Own the pod that this session is with, as its deployer does; what it says of its code, None without any.

    Pods elsewhere are nobody's: they end with their service.
    """
    asked = [session.request("adopt", pid=os.getpid(), start=start_of(os.getpid()))] if backend.here else []
    # Both at once: the pod answers in order.
    *_, status = await asyncio.gather(*asked, session.request("status"))
    found: dict[str, Any] | None = status.get("code")
    return found


async def others(backend: Backend, name: str, lost: Sequence[Endpoint]) -> Sequence[Endpoint]:
    """The service's pods when others than those live."""
    info = await backend.find(name)
    found = [endpoint for endpoint in info.endpoints if endpoint not in lost] if info is not None else []
    return found if any(endpoint.lost(False) is None for endpoint in found) else ()


async def come_again(backend: Backend, name: str, lost: Sequence[Endpoint], reason: str) -> Sequence[Endpoint]:
    """The pods that the backend itself makes in the place of those, for who has no code to deploy.

    Raises
    ------
    PodLostError
        When it makes none: the service is over.
    """
    over = PodLostError(
        f'service "{name}" has ended ({reason}), and this handle has no code to deploy it again; '
        "deploy it with .to(...) from where its code is",
        service=name,
        reason=reason,
    )
    if await backend.find(name) is None:
        raise over
    deadline = time.monotonic() + _COMING
    async with DeployProgress(name) as progress:
        progress.note(f'service "{name}" has lost its pod ({reason}); the cluster makes another')
        progress(Phase.SCHEDULING)
        while not (found := await others(backend, name, lost)):
            if time.monotonic() > deadline or await backend.find(name) is None:
                raise over
            await asyncio.sleep(_POLL)
        await progress.done(f'"{name}" has a pod again')
    return found


async def lacks(session: Session, name: str) -> bool:
    """Whether the pod has no code because it was too large to be kept for it; waits for who is deploying to it.

    Raises
    ------
    NotDeployedError
        When it gets none.
    """
    deadline = time.monotonic() + _DEPLOYING
    while True:
        status = await session.request("status")
        if status.get("code") is not None:
            return False
        if status.get("missing") is not None:
            return True
        if time.monotonic() > deadline:
            raise NotDeployedError(
                f'service "{name}" has a pod without code: a deploy of it hangs, or was given up; deploy it again',
                service=name,
            )
        await asyncio.sleep(_POLL)


async def fill(session: Session, name: str, code: Code) -> None:
    """Load the code into a pod that lacks it."""
    await fit(code, session)
    await _load(_Load(session, None), name, code)


async def _check_frozen(backend: Backend, name: str, code: Code) -> None:
    info = await backend.find(name)
    if info is None or info.endpoint is None:
        return
    session = await get_session(info.endpoint)
    live = (await session.request("status")).get("code")
    await fit(code, session)
    if live is not None and live["version"] != code.fingerprints()[0]:
        raise ConfigError(
            f'service "{name}" lives, and Compute(freeze=True) sends it no other code or limits: tear it down first, '
            "leave freeze out, or give the new one another name="
        )


async def bring_up(
    backend: Backend, name: str, code: Code, progress: DeployProgress, output: Output | None
) -> tuple[Endpoint, ...]:
    """Have the service run this code: all of its pods, or none of those that came up for it.

    Raises
    ------
    RemoteFailure
        When the user's code raised while it was loaded.
    StartupError, DeployError
        When the pods don't come up, or the code's process dies.
    ConfigError
        When the service lives with other code, and ``freeze`` was asked for.
    """
    started = time.monotonic()
    progress(Phase.SCHEDULING)
    if code.compute.freeze:
        await _check_frozen(backend, name, code)
    revision = await backend.apply(ServiceSpec(name, code.compute, describe_client()), progress)
    #: Whether the pods are to go if this fails: they came up for this, or live without any code.
    ours = revision.new
    key = backend.name, code.compute.namespace, name
    sessions: Sequence[Session] = ()
    loads: list[_Load] = []
    try:
        progress(Phase.CONNECTING)
        sessions = await asyncio.gather(*map(get_session, revision.endpoints))
        lives = await asyncio.gather(*(adopt(backend, session) for session in sessions))
        ours = ours or all(live is None for live in lives)
        progress(Phase.LOADING)
        await fit(code, sessions[0], progress)
        _say_before(name, code, lives, progress)
        # What each prints is the same, most often: one of them is shown.
        shown = [(output, progress), *[(None, None)] * (len(sessions) - 1)]
        loads = [_Load(session, live, *told) for session, live, told in zip(sessions, lives, shown, strict=True)]
        sent = await _load_all(loads, name, code, patient=not ours)
        await revision.keep(*whole_load(code, _meta(code)), progress, loaded=_changed(code, lives))
    except BaseException:
        # A first deploy that fails or is stopped leaves nothing; a failed redeploy leaves what was there.
        if ours and not revision.new and await asyncio.shield(_in_use(sessions)):
            progress.note(f'"{name}" goes on with the code that somebody else has deployed meanwhile')
        elif ours:
            await asyncio.shield(revision.discard())
        else:
            await asyncio.shield(_go_back(loads, name, code, _deployed.get(key), progress))
        raise
    _deployed[key] = code
    took = f"{time.monotonic() - started:.2f} s"
    await progress.done(f'"{name}" {_say_after(backend, code, lives, revision, sent).format(took=took)}')
    return tuple(revision.endpoints)


@dataclass
class _Load:
    """The code's way into one replica; ``live`` is what was there."""

    session: Session
    live: dict[str, Any] | None
    output: Output | None = None
    progress: Progress | None = None


async def _load_all(loads: Sequence[_Load], name: str, code: Code, *, patient: bool) -> int:
    """Load the code into all of them; how many bytes one was sent. Raises the first's error.

    ``patient`` waits for all also when one has failed, so that it is known which have the new code; else the others
    are told to stop.
    """
    version = code.fingerprints()[0]
    wanted = [load for load in loads if load.live is None or load.live["version"] != version]
    tasks = [asyncio.ensure_future(_load(load, name, code)) for load in wanted]
    try:
        if tasks:
            when = asyncio.ALL_COMPLETED if patient else asyncio.FIRST_EXCEPTION
            done, _ = await asyncio.wait(tasks, return_when=when)
            for task in tasks:
                if task in done:
                    task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return max((task.result() for task in tasks), default=0)


async def _load(load: _Load, name: str, code: Code) -> int:
    try:
        return await send_code(code, load.session, _meta(code), load.live, load.progress, load.output)
    except WorkerDiedError as e:
        raise startup_error(name, e) from e


async def _go_back(loads: Sequence[_Load], name: str, code: Code, before: Code | None, progress: Progress) -> None:
    """After a redeploy that failed: one version in all replicas, the old one, or a word on which has which."""
    version = code.fingerprints()[0]
    wanted = [(rank, load) for rank, load in enumerate(loads) if load.live is None or load.live["version"] != version]
    now = await asyncio.gather(*(_version(load.session) for _, load in wanted))
    taken = [(rank, load) for (rank, load), has in zip(wanted, now, strict=True) if has == version]
    if not taken:
        progress.note(f'"{name}" goes on with the code that it had')
        return
    left: list[int] = []
    for rank, load in taken:
        if before is None or (load.live is not None and load.live["version"] != before.fingerprints()[0]):
            left.append(rank)
            continue
        try:
            await _load(_Load(load.session, None), name, before)
        except (KubetorchError, RemoteFailure, OSError):
            left.append(rank)  # what came of it is said below
    if not left:
        progress.note(f'"{name}" goes on with the code that it had: replicas that had the new one were given it again')
        return
    which = ", ".join(map(str, left))
    progress.note(
        f'"{name}" is of two versions now: replica {which} has the new code, and others go on with what they had; '
        "deploy it again, or tear it down"
    )


async def _version(session: Session) -> str | None:
    """Of the code that the pod has when it has settled; None without any, and when it doesn't say."""
    try:
        async with asyncio.timeout(_SETTLE):
            while True:
                rows = (await session.request("calls", loads=True))["calls"]  # those that run come first
                if not any(row["f"] == "(loading)" and row["ended"] is None for row in rows):
                    break
                await asyncio.sleep(0.05)
            code = (await session.request("status")).get("code")
    except (KubetorchError, OSError):
        return None
    return str(code["version"]) if code is not None else None


async def _in_use(sessions: Sequence[Session]) -> bool:
    """Whether pods that had no code when they were joined have it by now: somebody else's deploy was first."""
    versions = await asyncio.gather(*map(_version, sessions))
    return bool(versions) and all(versions)


def _changed(code: Code, lives: Sequence[dict[str, Any] | None]) -> bool:
    """Whether the code has to be loaded into any of them."""
    version = code.fingerprints()[0]
    return any(live is None or live["version"] != version for live in lives)


def _first(lives: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """What one of them had; a pod that has come in another's place may have nothing."""
    return next((live for live in lives if live is not None), None)


def _say_before(name: str, code: Code, lives: Sequence[dict[str, Any] | None], progress: Progress) -> None:
    """What people should know of what is replaced."""
    if not _changed(code, lives):
        return
    live = _first(lives)
    if live is not None and (whose := of_another(live.get("by"))) is not None:
        progress.note(f'"{name}" replaces the code that was deployed by {whose}')
    if live is not None and (before := live.get("name")) not in (None, code.bundle.meta["name"]):
        # Most often they are different things with names that differ in case only.
        progress.note(f'"{name}" was the service of {before} until now, and is that of {code.bundle.meta["name"]}')
    for warning in code.bundle.warnings:
        progress.note(warning)


def _say_after(
    backend: Backend, code: Code, lives: Sequence[dict[str, Any] | None], revision: Revision, sent: int
) -> str:
    """What happened, for people; ``{took}`` is to be filled in."""
    if not _changed(code, lives):
        return "is unchanged: the same instance goes on"
    size = readable_size(sent)
    if _first(lives) is None:
        ttl = code.compute.ttl_seconds
        ends = f"; it ends after {_hours(ttl)} without a call" if ttl else ""
        count = len(revision.endpoints)
        pods = f"{count} {backend.name} pods" if count > 1 else f"{backend.name} pods"
        return f"is ready on {pods} in {{took}} (sent {size}){ends}"
    meta = code.bundle.meta
    lost = f"; {meta['name']} was constructed anew, its state is lost" if meta["kind"] == "cls" else ""
    return f"was redeployed in {{took}} (sent {size}){lost}"


def _meta(code: Code) -> dict[str, Any]:
    """What goes with the code in its LOAD."""
    version, worker = code.fingerprints()
    compute = code.compute
    return {
        **code.bundle.meta,
        "version": version,
        "worker": worker,
        "by": describe_client(),
        "env": code.env,
        "cwd": code.cwd,
        "sys_path": code.sys_path,
        "threads": compute.concurrency,
        "concurrency": compute.concurrency,
        "memory_limit": compute.memory_limit_bytes,
        "ttl": compute.ttl_seconds,
        **({"allowed": list(compute.allowed_serialization)} if compute.allowed_serialization else {}),
        "setup": setup_hooks(),
        "deployed_at": time.time(),
    }


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3g} h" if seconds >= 3600 else f"{seconds / 60:.3g} min"
