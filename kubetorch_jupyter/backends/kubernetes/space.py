"""One namespace of a cluster: what a deploy does there, and what is known of it."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...errors import DeployError, PodLostError, ResourceNotAvailableError, SecretNotFound
from ...transport.endpoint import Endpoint
from ...transport.portal import get_portal
from ..base import Progress
from . import access, lives, names
from .cache import NamespaceCache
from .client import Cluster, Kind
from .diagnosis import LogWanted, death
from .manifests import Plan, ServiceFields, claims, read_service
from .volumes import differences

__all__ = ["Raw", "Space"]

Raw = dict[str, Any]

#: Seconds until what was deleted must be gone (a kubelet may take a minute to find the API server again when that was
#: away), and between two looks when nothing is heard.
_GONE = 120.0
_LOOK = 1.0
_LAST_LINES = 20
#: Seconds that it takes until the kubelet has told how a container ended, at most; it looks once a second.
_EXPLAINED = 3.0
#: For so many seconds what has been told is the answer to those who hear of that end only later.
_TOLD = 10.0


class Space:
    """A namespace, with the last word of its watches.

    Parameters
    ----------
    cluster
        The API server.
    namespace
        Its name.
    """

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.cache = NamespaceCache(cluster, namespace)
        #: Tokens by the uid of a Job.
        self._tokens: dict[str, str] = {}
        #: How often a pod's worker container is known to have ended.
        self._ends: dict[str, int] = {}
        #: When we learned of its last end, and what.
        self._told: dict[str, tuple[float, Mapping[str, Any]]] = {}
        #: Names of ConfigMaps that were there when we last looked.
        self._seen: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def own(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that nobody waits for."""
        task = get_portal().own(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- objects -----------------------------------------------------------------------------------------------------

    async def create(self, manifest: Raw) -> Raw:
        """Make an object."""
        return await self.cluster.create(Kind.of(manifest), self.namespace, manifest)

    async def create_or_join(self, manifest: Raw) -> None:
        """Make an object that a Job owns; one that is there gets the Job as a further owner."""
        kind, name = Kind.of(manifest), str(manifest["metadata"]["name"])
        # Merged by uid, so that the other owners stay.
        patch = {"metadata": {"ownerReferences": manifest["metadata"]["ownerReferences"]}}
        # What every pod needs is nearly 1 MB: not sent only to hear that it is there.
        there = kind is Kind.CONFIG_MAP and name in self._seen
        while True:
            if not there:
                try:
                    await self.cluster.create(kind, self.namespace, manifest)
                    break
                except DeployError as e:
                    if e.reason != "AlreadyExists":
                        raise
            try:
                await self.cluster.patch(kind, self.namespace, name, patch, "strategic")
                break
            except DeployError as e:
                if e.reason != "NotFound":
                    raise
                there = False  # its last owner went before that: it is made anew
        if kind is Kind.CONFIG_MAP:
            self._seen.add(name)

    async def ensure_claims(self, plan: Plan, progress: Progress) -> None:
        """Make the claims of volumes that aren't there; they outlive the service.

        Raises
        ------
        ResourceNotAvailableError
            When a volume that was named only isn't there.
        """
        wanted = {str(manifest["metadata"]["name"]): manifest for manifest in claims(plan)}
        for volume in plan.volumes:
            there = await self.cluster.get(Kind.CLAIM, self.namespace, volume.name)
            if there is not None:
                for line in differences(volume, there):
                    progress.note(line)
            elif volume.name in wanted:
                await self._create_unless_there(wanted[volume.name])
                progress.note(f'the volume "{volume.name}" of {volume.size} is made; it outlives the service')
            else:
                raise ResourceNotAvailableError(
                    f'service "{plan.service}": there is no volume "{volume.name}" in namespace {self.namespace}; '
                    f'kt.Volume("{volume.name}", size="10Gi") makes one',
                    service=plan.service,
                    reason="NotFound",
                )

    async def check_secrets(self, plan: Plan) -> None:
        """Look whether the secrets are there that the cluster should have; the kubelet says it seconds later.

        Raises
        ------
        SecretNotFound
            When one isn't.
        """
        named = [source.name for source in plan.secrets if source.existing]
        found = await asyncio.gather(*(self.cluster.get(Kind.SECRET, self.namespace, name) for name in named))
        if missing := [name for name, secret in zip(named, found, strict=True) if secret is None]:
            raise SecretNotFound(
                f'service "{plan.service}": there is no Secret "{missing[0]}" in namespace {self.namespace}: '
                f"make it (kubectl create secret generic), or give the values with "
                f'kt.secret("{missing[0]}", values={{...}})',
                service=plan.service,
                reason="NotFound",
            )

    async def _create_unless_there(self, manifest: Raw) -> None:
        try:
            await self.create(manifest)
        except DeployError as e:
            if e.reason != "AlreadyExists":
                raise

    async def patch(self, kind: Kind, name: str, body: Raw) -> Raw:
        """Change an object by a merge patch."""
        return await self.cluster.patch(kind, self.namespace, name, body)

    async def metadata(self, kind: Kind, name: str) -> Raw | None:
        """An object's metadata, or None."""
        return await self.cluster.metadata(kind, self.namespace, name)

    async def delete_job(self, job: Raw, *, grace: int | None = None) -> None:
        """End a revision; returns when its pods are gone.

        Parameters
        ----------
        job
            The revision's.
        grace
            Seconds that its pods get, if not what they say themselves.

        Raises
        ------
        DeployError
            When they aren't within a minute.
        """
        meta = job["metadata"]
        service, revision = str(names.service_of(job)), str(meta["labels"][names.REVISION])
        with self.cache.using():
            await self.cluster.delete(Kind.JOB, self.namespace, str(meta["name"]), uid=meta.get("uid"))
            if grace is not None:
                await self._end_pods(self.pods(service, revision), grace)
            deadline = time.monotonic() + _GONE
            while True:
                version = self.cache.version(service)
                left = self.pods(service, revision)
                if not left and self.job(service, revision) is None:
                    return
                await self._end_pods([pod for pod in left if not _is_leaving(pod)], grace)
                if time.monotonic() > deadline:
                    pods = ", ".join(str(pod["metadata"]["name"]) for pod in left) or "its Job"
                    raise DeployError(
                        f'service "{service}" can\'t be ended: {pods} is still there after {_GONE:g} s; '
                        f"see 'kubectl describe pods -n {self.namespace} -l {names.SERVICE}={service}'",
                        service=service,
                    )
                await self.cache.changed(service, since=version, timeout=_LOOK)

    async def _end_pods(self, pods: Sequence[Raw], grace: int | None) -> None:
        """Delete pods whose Job is gone: the garbage collector may take minutes after the API server was away."""
        metas = [pod["metadata"] for pod in pods]
        named = [(str(meta["name"]), str(meta["uid"])) for meta in metas]
        delete = self.cluster.delete
        await asyncio.gather(*(delete(Kind.POD, self.namespace, name, uid=uid, grace=grace) for name, uid in named))

    async def delete_rest(self, service: str) -> None:
        """Remove what a service's Jobs have left; the garbage collector does it too, when it gets there.

        What a Job that is there owns stays: somebody may be deploying the service again meanwhile.
        """
        selector = names.service_selector(service)
        left = [
            (kind, each["metadata"])
            for kind in (Kind.SECRET, Kind.SERVICE)
            for each in (await self.cluster.list(kind, self.namespace, selector))[0]
        ]
        # Listed after what they own, and made before it: none is missed.
        jobs, _ = await self.cluster.list(Kind.JOB, self.namespace, selector)
        live = {str(job["metadata"]["uid"]) for job in jobs if not job["metadata"].get("deletionTimestamp")}
        for kind, meta in left:
            if live.isdisjoint(str(owner["uid"]) for owner in meta.get("ownerReferences") or ()):
                name, uid = str(meta["name"]), str(meta["uid"])
                # As it was seen: a Job may have joined those that own it since.
                version = str(meta["resourceVersion"])
                await self.cluster.delete(kind, self.namespace, name, uid=uid, version=version)

    async def token(self, job: Raw) -> str | None:
        """The token of a revision; None when its Secret is gone."""
        meta = job["metadata"]
        uid = str(meta["uid"])
        if uid not in self._tokens:
            secret = await self.cluster.get(Kind.SECRET, self.namespace, str(meta["name"]))
            self._remember(uid, secret)
        return self._tokens.get(uid)

    def _remember(self, uid: str, secret: Raw | None) -> None:
        token = ((secret or {}).get("data") or {}).get("token")
        if token:
            self._tokens[uid] = base64.b64decode(token).decode("ascii")

    async def learn_tokens(self) -> None:
        """Read the tokens of all services at once."""
        unknown = {
            str(job["metadata"]["name"]): str(job["metadata"]["uid"])
            for service in self.cache.services()
            for job in self.cache.jobs(service)
            if job["metadata"]["uid"] not in self._tokens
        }
        if unknown:
            items, _ = await self.cluster.list(Kind.SECRET, self.namespace, names.our_selector())
            for secret in items:
                if (uid := unknown.get(str(secret["metadata"]["name"]))) is not None:
                    self._remember(uid, secret)

    async def log(self, wanted: LogWanted) -> str:
        """The last lines of a container."""
        return await self.cluster.log(
            self.namespace, wanted.pod, wanted.container, previous=wanted.previous, tail_lines=_LAST_LINES
        )

    # -- what is known -------------------------------------------------------------------------------------------------

    def jobs(self, service: str) -> list[tuple[ServiceFields, Raw]]:
        """The revisions of a service that aren't over or being deleted, the newest first."""
        found = [(fields, job) for job in self.cache.jobs(service) if (fields := read_service(job)) is not None]
        # The cache has them by age.
        return [(fields, job) for fields, job in reversed(found) if not fields.deleting and not fields.finished]

    def job(self, service: str, revision: str) -> Raw | None:
        """The Job of one revision, in whatever state."""
        return next((job for job in self.cache.jobs(service) if _revision(job) == revision), None)

    def pods(self, service: str, revision: str) -> list[Raw]:
        """The pods of one revision."""
        return [pod for pod in self.cache.pods(service) if _revision(pod) == revision]

    def lost(self, pod: str, service: str, ended: bool = False, life: int = 0) -> PodLostError | None:
        """Why a pod, or that life of its front, has ended, by the watches' last word; None while it may live.

        Parameters
        ----------
        pod, service
            Names.
        ended
            It has said itself that it ends, or that its workers' container has ended: then what has been decided about
            it is the reason, and a container that isn't started again for some time.
        life
            Its front's, see `lives`.
        """
        reason, last = self.cache.gone(pod), self.cache.pod(pod)
        over = reason is not None or (ended and last is not None and _is_leaving(last))
        if not over and (last is None or not (lives.front_life(last) > life or (ended and _is_stuck(last)))):
            return None
        # Of a pod that lives on, what matters is how its container ended just now.
        now = None if over else time.time()
        found = death(last, self.cache.events(service), name=pod, now=now)
        if found.kind:
            return found.error(service)
        return PodLostError(service=service, reason=reason or "its container has been started again")

    def all_lost(self, fields: ServiceFields) -> str | None:
        """Why a revision that had its code has no pod that lives or comes up; None when it has."""
        pods = self.pods(fields.name, fields.revision)
        errors = [self._lost_now(pod, fields.name) for pod in pods]
        reasons = [error.reason or "it is gone" for error in errors if error is not None]
        if len(reasons) < len(pods) or not (pods or fields.loaded):
            return None
        return reasons[0] if reasons else "its pod is gone"

    def _lost_now(self, pod: Raw, service: str) -> PodLostError | None:
        # A front that was started again has the code, and goes on.
        life = lives.front_life(pod) - lives.is_down(pod, names.FRONT)
        return self.lost(str(pod["metadata"]["name"]), service, ended=True, life=life)

    async def explain(self, pod: str, service: str) -> Mapping[str, Any]:
        """How the container with the workers has ended: fields of a `WorkerDiedError`, empty when it isn't told soon.

        The pod's own word of it comes before the kubelet's.
        """
        known = self._ends.get(pod, 0)
        deadline = time.monotonic() + _EXPLAINED
        with self.cache.using():
            while True:
                version = self.cache.version(service)
                last = self.cache.pod(pod)
                if last is not None and (count := lives.ends(last, names.WORKER)) > known:
                    self._ends[pod] = count
                    self._told[pod] = time.monotonic(), lives.worker_end(last)
                    return self._told[pod][1]
                left = deadline - time.monotonic()
                if left <= 0:
                    # Perhaps another call of that worker has been told before this one's connection was back.
                    at, end = self._told.get(pod, (float("-inf"), {}))
                    return end if time.monotonic() - at < _TOLD else {}
                await self.cache.changed(service, since=version, timeout=left)

    # -- pods ----------------------------------------------------------------------------------------------------------

    def may_answer(self, pod: Raw) -> bool:
        """Whether its front may be listening: it has an address, it runs, and it isn't on its way out."""
        meta = pod["metadata"]
        up = bool((pod.get("status") or {}).get("podIP")) and not lives.is_down(pod, names.FRONT)
        return up and not _is_leaving(pod) and self.cache.gone(str(meta["name"])) is None

    async def endpoint(self, service: str, pod: Raw, token: str, note: Callable[[str], None] | None = None) -> Endpoint:
        """Where a pod can be reached."""
        name = str(pod["metadata"]["name"])
        now = self.cache.pod(name) or pod
        life = lives.front_life(now)
        self._ends.setdefault(name, lives.ends(now, names.WORKER))

        def gone(ended: bool) -> PodLostError | None:
            return self.lost(name, service, ended, life)

        found = await access.endpoint(
            self.cluster,
            self.namespace,
            service,
            pod,
            token,
            gone=gone,
            note=note,
        )
        # A port-forward's is the same one for all lives of the pod's front.
        return replace(found, gone=gone, explain=lambda: self.explain(name, service), life=life, keeps=found)

    async def endpoints(self, job: Raw, token: str) -> tuple[Endpoint, ...]:
        """Those of a revision's pods that may answer, by rank."""
        service = str(names.service_of(job))
        living = [pod for pod in self.pods(service, _revision(job)) if self.may_answer(pod) and _front_runs(pod)]
        ranked = sorted(living, key=names.index_of)
        return tuple(await asyncio.gather(*(self.endpoint(service, pod, token) for pod in ranked)))


def _is_leaving(pod: Raw) -> bool:
    return bool(pod["metadata"].get("deletionTimestamp"))


def _is_stuck(pod: Raw) -> bool:
    return lives.is_held_back(pod, names.FRONT) or lives.is_held_back(pod, names.WORKER)


def _front_runs(pod: Raw) -> bool:
    """Whether the kubelet has said that the front runs: an address comes before that, and stays without an image."""
    found = (pod.get("status") or {}).get("containerStatuses") or ()
    return any(each.get("name") == names.FRONT and (each.get("state") or {}).get("running") for each in found)


def _revision(obj: Raw) -> str:
    return str((obj["metadata"].get("labels") or {}).get(names.REVISION) or "")
