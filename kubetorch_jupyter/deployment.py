"""The steps of a deploy on the portal: bring the pods up, load the code into each, and let go of what they replace."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine, Iterable
from typing import Any

from pod_server.processes import start_of

from .backends.base import Backend, Progress, Revision, ServiceSpec
from .calls import startup_error
from .code import Code
from .compat import setup_hooks
from .errors import WorkerDiedError
from .identity import describe_client
from .packing import fit
from .progress import DeployProgress, Phase
from .sending import send_code, whole_load
from .streams import Output
from .transport.endpoint import Endpoint
from .transport.session import Session
from .transport.sharing import get_session
from .values import readable_size

__all__ = ["adopt", "bring_up", "load"]


async def adopt(session: Session) -> dict[str, Any] | None:
    """Own the pod that this session is with, as its deployer does; what it says of its code, None without any."""
    await session.request("adopt", pid=os.getpid(), start=start_of(os.getpid()))
    found: dict[str, Any] | None = (await session.request("status")).get("code")
    return found


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
    """
    started = time.monotonic()
    progress(Phase.SCHEDULING)
    revision = await backend.apply(ServiceSpec(name, code.compute, describe_client()), progress)
    #: Whether the pods are to go if this fails: they came up for this, or live without any code.
    ours = revision.new
    try:
        progress(Phase.CONNECTING)
        sessions = await asyncio.gather(*map(get_session, revision.endpoints))
        lives = await asyncio.gather(*map(adopt, sessions))
        ours = ours or all(live is None for live in lives)
        progress(Phase.LOADING)
        await fit(code, sessions[0], progress)
        _say_before(name, code, lives[0], progress)
        # What each prints is the same, most often: one of them is shown.
        shown = [(output, progress), *[(None, None)] * (len(sessions) - 1)]
        sent = await _all(
            load(session, live, out, name, code, told)
            for session, live, (out, told) in zip(sessions, lives, shown, strict=True)
        )
        await revision.keep(*whole_load(code, _meta(code)), progress)
    except BaseException:
        # A first deploy that fails or is stopped leaves nothing; a failed redeploy leaves what was there.
        await _give_up(revision, ours, name, progress)
        raise
    took = f"{time.monotonic() - started:.2f} s"
    await progress.done(f'"{name}" {_say_after(backend, code, lives[0], revision, max(sent)).format(took=took)}')
    return tuple(revision.endpoints)


async def _give_up(revision: Revision, ours: bool, name: str, progress: Progress) -> None:
    if ours:
        await asyncio.shield(revision.discard())
    else:
        progress.note(f'"{name}" goes on with the code that it had')


async def _all(loads: Iterable[Coroutine[Any, Any, int]]) -> list[int]:
    """Wait for all of them, and give what they give; the first error ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in loads]
        return [task.result() for task in tasks]
    except BaseExceptionGroup as e:
        raise e.exceptions[0] from e.exceptions[0].__cause__


def _say_before(name: str, code: Code, live: dict[str, Any] | None, progress: Progress) -> None:
    """What people should know of what is replaced."""
    if live is not None and live["version"] == code.fingerprints()[0]:
        return
    by = live.get("by") if live else None
    me = describe_client()
    if by and (by.get("host"), by.get("pid")) != (me["host"], me["pid"]):
        whose = by.get("notebook") or f"process {by.get('pid')}"
        progress.note(f'"{name}" replaces the code that {by.get("user")} deployed from {whose}')
    if live is not None and (before := live.get("name")) not in (None, code.bundle.meta["name"]):
        # Most often they are different things with names that differ in case only.
        progress.note(f'"{name}" was the service of {before} until now, and is that of {code.bundle.meta["name"]}')
    for warning in code.bundle.warnings:
        progress.note(warning)


def _say_after(backend: Backend, code: Code, live: dict[str, Any] | None, revision: Revision, sent: int) -> str:
    """What happened, for people; ``{took}`` is to be filled in."""
    if live is not None and live["version"] == code.fingerprints()[0]:
        return "is unchanged: the same instance goes on"
    size = readable_size(sent)
    if live is None:
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
        "setup": setup_hooks(),
        "deployed_at": time.time(),
    }


async def load(
    session: Session,
    live: dict[str, Any] | None,
    output: Output | None,
    name: str,
    code: Code,
    progress: Progress | None = None,
) -> int:
    """Load the code into one pod unless it is there; how many bytes were sent."""
    if live is not None and live["version"] == code.fingerprints()[0]:
        return 0
    try:
        return await send_code(code, session, _meta(code), live, progress, output)
    except WorkerDiedError as e:
        raise startup_error(name, e) from e


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3g} h" if seconds >= 3600 else f"{seconds / 60:.3g} min"
