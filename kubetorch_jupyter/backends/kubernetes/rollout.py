"""One deploy to the cluster: a revision's objects, the wait until its pods answer, and what becomes of the old ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pod_server import codefile
from pod_server.wire import Buffer

from ...errors import ConnectionFailedError, DeployError, KubetorchError
from ...progress import Phase
from ...transport.endpoint import Endpoint
from ...transport.sharing import get_session
from ...values import readable_size
from ..base import Progress
from . import manifests, names
from .bundle import Bundle
from .client import Kind
from .diagnosis import Diagnosis
from .removal import may_pass, persist
from .room import makes_room
from .space import Raw, Space
from .waiting import Waiting

__all__ = ["Rollout"]

#: Seconds between two looks at whether the calls of pods that are replaced have ended, and for how long it is looked.
_LOOK = 0.3
_PATIENCE = 3600.0
#: For so many seconds it is tried to remove what a failed deploy has made.
_PERSISTENCE = 10.0
#: Seconds that the pods of a failed deploy get: no call has run in them, and their reason is waited for.
_HURRY = 2
#: Seconds that a pod may take to say how many calls it has.
_ANSWER = 2.0


class Rollout:
    """A revision that is brought up, or the one that lives; a `Revision`.

    Parameters
    ----------
    space
        The namespace.
    plan
        What its pods are.
    bundle
        What travels to them.
    token
        The service's.
    progress
        Told how it goes.
    job
        Its Job, of a revision that lives.
    old
        The Jobs of the revisions that it replaces.
    """

    def __init__(
        self,
        space: Space,
        plan: manifests.Plan,
        bundle: Bundle,
        token: str,
        progress: Progress,
        *,
        job: Raw | None = None,
        old: Sequence[Raw] = (),
    ) -> None:
        self._space = space
        self._plan = plan
        self._bundle = bundle
        self._token = token
        self._progress = progress
        self._job = job
        #: The request for it, of a deploy that was stopped meanwhile.
        self._making: asyncio.Task[Raw] | None = None
        self._old = list(old)
        self._waiting = Waiting(space, plan, token, progress, quota_held=bool(old), joined=job is not None)
        self.new = job is None
        self.endpoints: Sequence[Endpoint] = ()

    # -- bringing up -------------------------------------------------------------------------------------------------

    async def bring_up(self) -> None:
        """Make what is new, and wait until each pod answers; whatever goes wrong, nothing of it is left.

        Raises
        ------
        DeployError
            When waiting doesn't help, or has taken too long.
        """
        limit = self._plan.compute.launch_seconds
        try:
            async with asyncio.timeout(limit):
                if self.new:
                    await self._create()
                self.endpoints = await self._waiting.run(self._make_room if self.new and self._old else None)
                if self.new:
                    self._tell_of_others()
        except BaseException as e:
            if self.new:
                await asyncio.shield(self.discard())
            if isinstance(e, TimeoutError) and not isinstance(e, KubetorchError):
                raise self._waiting.expired(limit) from None
            raise

    async def _create(self) -> None:
        space, plan = self._space, self._plan
        self._progress(Phase.SCHEDULING)
        # Everything that can be refused without the cluster is refused before anything is made.
        manifest = manifests.job(plan)
        content, _ = await asyncio.gather(self._bundle.config_map(), space.check_secrets(plan))
        job = await self._make_job(manifest)
        owners = [manifests.owner_reference(job)]
        # The Job first, suspended, so that what it owns has an owner: a client that dies here leaves no orphans.
        owned = [
            manifests.bundle_config_map(plan, content, owners),
            manifests.secret(plan, self._token, owners=owners),
            manifests.headless_service(plan, owners),
            *manifests.user_secrets(plan, owners),
        ]
        try:
            async with asyncio.TaskGroup() as group:
                for each in owned:
                    group.create_task(space.create_or_join(each))
                group.create_task(space.ensure_claims(plan, self._progress))
        except BaseExceptionGroup as e:
            raise e.exceptions[0] from e.exceptions[0].__cause__
        if plan.compute.queue_name is None:  # else Kueue releases it
            await space.patch(Kind.JOB, plan.job_name, {"spec": {"suspend": False}})

    async def _make_job(self, manifest: Raw) -> Raw:
        """Make the Job; what may have been made although we don't hear of it is known to `discard`."""
        making = asyncio.ensure_future(self._space.create(manifest))
        try:
            self._job = await asyncio.shield(making)
        except asyncio.CancelledError:
            # It is being made, perhaps: only the answer tells.
            self._job, self._making = manifest, making
            raise
        except KubetorchError as e:
            if _unclear(e):
                self._job = manifest
            raise
        return self._job

    async def _made(self) -> bool:
        """Whether there may be a Job of this deploy, once the API server has answered."""
        if self._making is not None:
            making, self._making = self._making, None
            await asyncio.wait([making])
            error = making.exception()
            if error is not None and not _unclear(error):
                self._job = None
        return self._job is not None

    async def _make_room(self, found: Diagnosis) -> bool:
        """End the pods that are replaced, if the new ones find no room beside them and would without."""
        if self._job is None or not makes_room(found, self._job, self._old):
            return False
        self._progress.note(
            f'there is no room for the new pod of "{self._plan.service}" beside the old one ({found.detail}): the old '
            "one goes first, when its calls have ended"
        )
        for job in self._old:
            await self._drain(job, self._plan.compute.launch_seconds, tell=True)
            await self._space.delete_job(job)
        self._old.clear()
        return True

    def _tell_of_others(self) -> None:
        """Say that the cluster has put containers of its own into the pods, as service meshes do."""
        pods = self._space.pods(self._plan.service, self._plan.revision)
        every = {str(each["name"]) for pod in pods for each in pod["spec"]["containers"]}
        if others := sorted(every - {names.FRONT, names.WORKER}):
            which = ", ".join(f'"{name}"' for name in others)
            self._progress.note(
                f'the cluster has put {which} into the pod of "{self._plan.service}": a pod in which something of '
                "others runs doesn't end by itself after its TTL, and keeps what it holds until it is torn down; "
                'Istio keeps out of pods with kt.Compute(labels={"sidecar.istio.io/inject": "false"})'
            )

    # -- after the load ------------------------------------------------------------------------------------------------

    async def keep(
        self, meta: Mapping[str, Any], buffers: Sequence[Buffer], progress: Progress, *, loaded: bool
    ) -> None:
        """Keep the code for pods that are made in the place of these, and let go of the revisions before."""
        space, plan = self._space, self._plan
        selector = {names.SERVICE: plan.service, names.REVISION: plan.revision}
        await asyncio.gather(
            self._keep_code(meta, buffers, progress, loaded=loaded),
            space.patch(Kind.SERVICE, names.headless_name(plan.service), {"spec": {"selector": selector}}),
            space.patch(Kind.JOB, plan.job_name, {"metadata": {"annotations": manifests.kept(plan)}}),
        )
        for job in self._old:
            space.own(self._retire(job))

    async def _keep_code(
        self, meta: Mapping[str, Any], buffers: Sequence[Buffer], progress: Progress, *, loaded: bool
    ) -> None:
        """Have the Secret hold the code; one that holds it is left alone.

        What the pods have says nothing of it: a deployer that died after it had loaded the code has left an older one.
        """
        name = self._plan.job_name
        version = str(meta["version"])
        kept, too_large = "", False
        if not loaded:
            kept, too_large = manifests.read_code(await self._space.metadata(Kind.SECRET, name) or {})
        if kept != version:
            file = await asyncio.to_thread(codefile.pack, meta, buffers)
            too_large = file is None
            content = codefile.missing(meta, _size(buffers)) if file is None else file
            await self._write_code(manifests.code(content, version, too_large=too_large))
        if too_large:
            files = ", with the files of its image's steps" if (meta.get("image") or {}).get("files") else ""
            progress.note(
                f'the code of "{self._plan.service}" is too large to be kept in the cluster '
                f"({readable_size(_size(buffers))}{files}): a pod that takes the place of a lost one gets it from a "
                "notebook that has it, or not at all"
            )

    async def _write_code(self, patch: Raw) -> None:
        space, plan = self._space, self._plan
        try:
            await space.patch(Kind.SECRET, plan.job_name, patch)
        except DeployError as e:
            if e.reason != "NotFound" or self._job is None:
                raise
            # Somebody has deleted it. The pods that run have its files, those that come after them would have none.
            owners = [manifests.owner_reference(self._job)]
            await space.create_or_join(manifests.secret(plan, self._token, owners=owners))
            await space.patch(Kind.SECRET, plan.job_name, patch)

    async def discard(self) -> None:
        """Remove what this deploy made, also where the cluster is what is in trouble.

        Why the deploy failed is worth more than what goes wrong here.
        """
        deadline = time.monotonic() + _PERSISTENCE
        while True:
            try:
                await self._remove()
                return
            except KubetorchError as e:
                why, final = e, not may_pass(e)
                if final or isinstance(e, ConnectionFailedError) or time.monotonic() > deadline:
                    break
            await asyncio.sleep(_LOOK)
        # Nobody waits for that, but it goes on.
        left = f'something of "{self._plan.service}" is left in the cluster'
        later = "" if final else "; it goes as soon as the cluster lets it, while this Python runs"
        self._progress.note(f"{left}{later}: {why}")
        if not final:
            self._space.own(persist(self._remove, f"{left}; {self._by_hand()} removes it"))

    def _by_hand(self, job: Raw | None = None) -> str:
        name = self._plan.job_name if job is None else str(job["metadata"]["name"])
        return f"'kubectl delete job {name} -n {self._space.namespace}'"

    async def _remove(self) -> None:
        if await self._made():
            assert self._job is not None
            await self._space.delete_job(self._job, grace=_HURRY)
            if not self._old:
                await self._space.delete_rest(self._plan.service)

    # -- what is replaced ----------------------------------------------------------------------------------------------

    async def _retire(self, job: Raw) -> None:
        """End a revision when its calls have ended, without anybody waiting for it."""

        async def end() -> None:
            await self._drain(job, _PATIENCE)
            await self._space.delete_job(job)

        left = (
            f'the last revision of "{self._plan.service}" still runs; the next deploy or {self._by_hand(job)} ends it'
        )
        await persist(end, left)

    async def _drain(self, job: Raw, limit: float, *, tell: bool = False) -> None:
        """Wait until no call runs in a revision's pods."""
        deadline = time.monotonic() + limit
        quiet = 0
        cache = self._space.cache
        with cache.using():
            while time.monotonic() < deadline:
                running = await self._calls(job)
                # While the API server is away pods can't be asked, and may have calls.
                quiet = 0 if running or not cache.in_sync else quiet + 1
                # Seen twice: what was on its way when the clients heard that they should go elsewhere has come by then.
                if quiet == 2:
                    return
                if tell:
                    self._progress(Phase.SCHEDULING, f"{running} calls still run in the pod that makes room")
                await asyncio.sleep(_LOOK)

    async def _calls(self, job: Raw) -> int:
        """How many calls run in a revision's pods, which send the next elsewhere; 0 for those that don't answer."""
        token = await self._space.token(job)
        if token is None:
            return 0
        return sum(await asyncio.gather(*map(_drain, await self._space.endpoints(job, token))))


def _unclear(error: BaseException) -> bool:
    """Whether a request to make something may have made it in spite of that answer.

    Examples
    --------
    >>> [_unclear(DeployError(reason=reason)) for reason in ("AlreadyExists", "HTTP 502", "Forbidden")]
    [True, True, False]
    """
    if isinstance(error, ConnectionFailedError):
        return True
    reason = str(error.reason) if isinstance(error, DeployError) else ""
    # Ours, too, when it is there already: the name is random, and a request that isn't answered is made again.
    return reason.startswith("HTTP 5") or reason in ("AlreadyExists", "InternalError", "ServerTimeout", "Timeout")


def _size(buffers: Sequence[Buffer]) -> int:
    return sum(memoryview(buffer).nbytes for buffer in buffers)


async def _drain(endpoint: Endpoint) -> int:
    try:
        async with asyncio.timeout(_ANSWER):
            session = await get_session(endpoint)
            return int((await session.request("drain"))["calls"])
    except (KubetorchError, OSError):
        return 0
