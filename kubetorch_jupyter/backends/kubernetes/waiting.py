"""Waiting until a revision's pods answer: what they wait for is shown, and what can't be cured ends it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from ...errors import ConnectionFailedError, DeployError, KubernetesCredentialsError, KubetorchError
from ...progress import Phase
from ...transport.endpoint import Endpoint
from ..base import Progress
from . import names
from .access import probe
from .diagnosis import Diagnosis, Facts, LogWanted, diagnose, expired
from .manifests import Plan, read_service
from .space import Raw, Space

__all__ = ["Waiting"]

log = logging.getLogger(__name__)

#: Seconds between two tries to reach a pod that has an address: its front is up within a fraction of a second.
_PROBE = 0.04
#: A refusal counts when it has lasted for so many seconds.
_SURE = 1.0
#: A front answers a fraction of a second after its start; after so many seconds something is in the way.
_LONG = 8.0
#: What a diagnosis says may change with time alone; seconds between two looks when nothing changes.
_LOOK = 1.0


class Waiting:
    """The wait for one revision.

    Parameters
    ----------
    space
        The namespace.
    plan
        What is brought up.
    token
        The service's.
    progress
        Told what it waits for.
    quota_held
        Whether an older revision may be what is in the way.
    joined
        Whether its Job was there before.
    """

    def __init__(
        self, space: Space, plan: Plan, token: str, progress: Progress, *, quota_held: bool, joined: bool = False
    ) -> None:
        self._space = space
        self._plan = plan
        self._token = token
        self._progress = progress
        self._quota_held = quota_held
        #: Whether its Job has been seen: the watch tells of a new one a moment later.
        self._seen = joined
        self._logs: dict[LogWanted, str] = {}
        #: By a pod's name: it answers there.
        self._ready: dict[str, Endpoint] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._room_since: float | None = None
        #: Since when its pods run and don't answer, and what was heard last instead.
        self._silent_since: float | None = None
        self._silence = ""
        #: What was found last, for who gives up.
        self._last = Diagnosis(Phase.SCHEDULING, service=plan.service)

    def facts(self) -> Facts:
        """What a diagnosis starts from."""
        plan = self._plan
        job = self._space.job(plan.service, plan.revision)
        fields = read_service(job) if job is not None else None
        self._seen = self._seen or job is not None
        return Facts(
            plan.service,
            plan.namespace,
            plan.compute.replicas,
            quota_held=self._quota_held,
            deleted=job is None and self._seen and self._space.cache.in_sync,
            loaded=fields is not None and fields.loaded,
            logs=dict(self._logs),
        )

    def expired(self, seconds: float) -> DeployError:
        """The error for a deploy that has taken too long, with what was in its way."""
        return expired(self._last, seconds, "launch_timeout")

    async def run(self, make_room: Callable[[Diagnosis], Awaitable[bool]] | None) -> tuple[Endpoint, ...]:
        """Wait; the endpoints of all pods by rank.

        Parameters
        ----------
        make_room
            Asked when something is in the way: whether it has made room, which it does once.
        """
        service, cache = self._plan.service, self._space.cache
        try:
            with cache.using():
                while True:
                    version = cache.version(service)
                    pods = self._space.pods(service, self._plan.revision)
                    self._probe(pods)
                    found = await self._look(pods)
                    ready = self._by_rank(pods)
                    if len(ready) == self._plan.compute.replicas:
                        return ready
                    if found.error is not None:
                        raise found.error
                    if found.curable is not None and make_room is not None and await make_room(found):
                        make_room, self._room_since = None, None
                        continue
                    self._check_room(found)
                    await self._change(version)
        finally:
            for task in self._probes.values():
                task.cancel()
            await asyncio.gather(*self._probes.values(), return_exceptions=True)

    async def _change(self, version: int) -> None:
        """Wait until something changes, a pod answers, or it is time to look again."""
        change = asyncio.ensure_future(
            self._space.cache.changed(self._plan.service, since=version, timeout=self._patience())
        )
        trying = [task for task in self._probes.values() if not task.done()]
        try:
            await asyncio.wait([change, *trying], return_when=asyncio.FIRST_COMPLETED)
            if change.done():
                change.result()
        finally:
            change.cancel()

    def _patience(self) -> float:
        """Seconds until it is looked again: what is said of a pod changes with time, too."""
        if self._room_since is None:
            return _LOOK
        return max(min(_LOOK, self._room_since + self._plan.compute.unschedulable_seconds - time.monotonic()), 0.0)

    def _by_rank(self, pods: Sequence[Raw]) -> tuple[Endpoint, ...]:
        ranked = sorted((names.index_of(pod), str(pod["metadata"]["name"])) for pod in pods)
        found = {index: self._ready[name] for index, name in ranked if name in self._ready}
        return tuple(found[index] for index in sorted(found))

    async def _look(self, pods: Sequence[Raw]) -> Diagnosis:
        """What there is to say, with the logs that say more."""
        space, plan = self._space, self._plan
        while True:
            job = space.job(plan.service, plan.revision)
            found = diagnose(self.facts(), job, pods, space.cache.events(plan.service), now=time.time())
            if found.log is None or found.log in self._logs:
                break
            wanted = found.log
            try:
                self._logs[wanted] = await space.log(wanted)
            except KubetorchError as e:
                # How the container ended is worth more than why its last lines can't be had.
                log.debug("no log of pod %s: %s", wanted.pod, e)
                self._logs[wanted] = ""
        found = self._last = self._unreachable(found)
        detail = found.detail
        if not detail and found.phase is Phase.CONNECTING and plan.compute.replicas > 1:
            detail = f"{len(self._ready)} of {plan.compute.replicas} pods answer"
        self._progress(found.phase, detail)
        return found

    def _unreachable(self, found: Diagnosis) -> Diagnosis:
        """The same, or that the pods run for long, and can't be reached."""
        if found.weight or found.phase is not Phase.CONNECTING or not self._silence:
            self._silent_since = None
            return found
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        if now - self._silent_since < _LONG:
            return found
        who = "this pod" if self._space.cluster.in_cluster else "the API server"
        return replace(
            found,
            kind="unreachable",
            reason="Unreachable",
            curable=f"runs, and can't be reached: {self._silence}",
            detail=f"its pod runs, and can't be reached: {self._silence}",
            hint=(
                f"See 'kubectl get networkpolicy -n {self._plan.namespace}', and that no firewall keeps {who} from "
                f"port {names.PORT} of the pods"
            ),
        )

    def _check_room(self, found: Diagnosis) -> None:
        """Give up waiting for room after ``unschedulable_timeout``."""
        if not found.room:
            self._room_since = None
            return
        now = time.monotonic()
        if self._room_since is None:
            self._room_since = now
        limit = self._plan.compute.unschedulable_seconds
        if now - self._room_since >= limit:
            raise expired(found, limit)

    def _probe(self, pods: Sequence[Raw]) -> None:
        """Try to reach each pod that has an address, without waiting until the kubelet finds it ready."""
        living = {str(pod["metadata"]["name"]): pod for pod in pods if self._space.may_answer(pod)}
        for name in [name for name in self._probes if name not in living]:
            self._probes.pop(name).cancel()
            self._ready.pop(name, None)
        for name, pod in living.items():
            task = self._probes.get(name)
            if task is None:
                self._probes[name] = asyncio.create_task(self._reach(name, pod))
            elif task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _reach(self, name: str, pod: Raw) -> None:
        refused: float | None = None
        while True:
            try:
                endpoint = await self._space.endpoint(self._plan.service, pod, self._token, self._progress.note)
                if (why := await probe(endpoint)) is None:
                    self._ready[name] = endpoint
                    self._silence = ""
                    return
                self._silence = why
                refused = None
            except ConnectionFailedError as e:
                # The API server is away for a moment, or doesn't reach the pod; the deploy's own time limit ends this.
                self._silence = str(e)
            except KubernetesCredentialsError:
                # An API server that has just started refuses everybody until it knows the roles.
                refused = refused if refused is not None else time.monotonic()
                if time.monotonic() - refused > _SURE:
                    raise
            await asyncio.sleep(_PROBE)
