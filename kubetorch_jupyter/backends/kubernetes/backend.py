"""The Kubernetes backend: services as Indexed Jobs of one namespace, with no more rights there than to edit."""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from importlib import metadata

from ...compute import Compute
from ...config import config
from ...errors import ServiceNotFoundError
from ...transport.portal import Portal, get_portal
from ..base import Event, Finding, Progress, Revision, ServiceInfo, ServiceSpec, curl_line
from . import manifests, names
from .bundle import the_bundle
from .client import Cluster
from .diagnosis import Facts, diagnose, event_lines, event_time, time_of
from .examination import examine
from .manifests import ServiceFields
from .rollout import Rollout
from .secrets import read_secrets
from .space import Raw, Space
from .storage import Storage

__all__ = ["KubernetesBackend", "kubernetes_backend"]

#: A suspended Job that is so many seconds old was left by a client that died before it could release it.
_ABANDONED = 120.0


class KubernetesBackend:
    """The backend of one namespace; `kubernetes_backend` gives the one of this process.

    Parameters
    ----------
    kubeconfig_path, context
        As `Compute` and ``kt.config`` have them; None: the usual places.
    namespace
        None: the context's.
    """

    name = "kubernetes"
    here = False

    def __init__(self, kubeconfig_path: str | None, context: str | None, namespace: str | None) -> None:
        self._kubeconfig_path = kubeconfig_path
        self._context = context
        self._namespace = namespace
        self._opening: asyncio.Task[Space] | None = None
        self._portal: Portal | None = None
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._told = False

    def full_name(self, name: str) -> str:
        """``<username>-<name>``: several people share a namespace."""
        return names.full_name(name, config.username)

    def complete(self, compute: Compute) -> Compute:
        """The same with the settings where it says nothing: image, queue, volumes, TTL."""
        return manifests.effective(compute)

    @property
    def namespace(self) -> str | None:
        """The namespace; None before the first use when it is the context's."""
        space = self._opened()
        return space.namespace if space is not None else self._namespace

    def where(self) -> str:
        """For sentences."""
        known = self.namespace
        return f"in namespace {known}" if known else "in the cluster"

    def _opened(self) -> Space | None:
        task = self._opening
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return None
        space = task.result()
        return space if space.cluster.usable else None

    async def space(self) -> Space:
        """The namespace, with its watches in sync.

        Raises
        ------
        ConfigError
            When there is no kubeconfig, or it makes no sense.
        ConnectionFailedError, KubernetesCredentialsError, DeployError
            When the API server can't be reached, or doesn't let us.
        """
        space = await self._connected()
        await space.cache.synced()
        return space

    async def _connected(self) -> Space:
        """The namespace, whether or not its watches tell anything yet."""
        portal = get_portal()
        if self._portal is not portal:  # this process was forked, or a test has ended the last one
            self._portal, self._opening = portal, None
            self._locks = weakref.WeakValueDictionary()
        space = self._opened()
        if space is None:
            if self._opening is None or self._opening.done():
                # A task of its own: several deploys wait for it, and the first may be cancelled.
                self._opening = portal.loop.create_task(self._open())
            space = await asyncio.shield(self._opening)
        return space

    async def _open(self) -> Space:
        cluster = await Cluster.open(self._kubeconfig_path, self._context)
        return Space(cluster, self._namespace or cluster.namespace)

    # -- apply -------------------------------------------------------------------------------------------------------

    async def apply(self, spec: ServiceSpec, progress: Progress) -> Revision:
        """Bring up a revision of the service, or give the one that lives; see `Backend`.

        Raises
        ------
        DeployError
            As the cluster says why it can't be had; nothing of it is left then.
        ServiceTimeoutError
            When it takes longer than ``launch_timeout``.
        """
        lock = self._locks.setdefault(spec.name, asyncio.Lock())
        async with lock:
            space = await self.space()
            if not self._told:
                self._told = True
                context = f", context {space.cluster.context}" if space.cluster.context else ""
                progress.note(f"deploying to namespace {space.namespace} of {space.cluster.server}{context}")
            rollout = await self._plan(space, spec, progress)
            try:
                await rollout.bring_up()
            except ServiceNotFoundError:
                if rollout.new:
                    raise
                # The one that lived has been deleted in that moment, or has ended by itself.
                rollout = await self._plan(space, spec, progress)
                await rollout.bring_up()
            return rollout

    async def _plan(self, space: Space, spec: ServiceSpec, progress: Progress) -> Rollout:
        """The revision that lives, if its pods are what they should be; else a new one."""
        bundle = await the_bundle()
        sources = await asyncio.to_thread(read_secrets, spec.compute.secrets, space.namespace)
        revisions = space.jobs(spec.name)
        tokens = [token for _, job in revisions if (token := await space.token(job)) is not None]
        # One token for the life of a service: whoever holds a handle goes on with it.
        token = tokens[0] if tokens else secrets.token_hex(32)
        plan = manifests.Plan(
            service=spec.name,
            namespace=space.namespace,
            revision=secrets.token_hex(4),
            compute=spec.compute,
            bundle=bundle.hash,
            owner=spec.owner,
            created=revisions[0][0].created if revisions else time.time(),
            version=_version(),
            spec=manifests.spec_hash(spec.compute, bundle.hash, secrets=sources, key=token),
            secrets=sources,
        )
        old = [job for _, job in revisions]
        if revisions and tokens:
            fields, job = revisions[0]
            why = _why_another(space, fields, job, plan)
            if why is None:
                plan = replace(plan, revision=fields.revision)
                return Rollout(space, plan, bundle, token, progress, job=job, old=old[1:])
            progress.note(f'service "{spec.name}" gets a new pod: {why}')
        return Rollout(space, plan, bundle, token, progress, old=old)

    # -- looking -----------------------------------------------------------------------------------------------------

    async def find(self, name: str) -> ServiceInfo | None:
        """The service of that name, or None."""
        space = await self.space()
        revisions = space.jobs(name)
        return await self._info(space, revisions) if revisions else None

    async def list(self) -> Sequence[ServiceInfo]:
        """All services of the namespace."""
        space = await self._connected()
        await space.cache.synced(now=True)  # what an API server that is away had once is no answer
        await space.learn_tokens()
        every = [revisions for name in space.cache.services() if (revisions := space.jobs(name))]
        return await asyncio.gather(*(self._info(space, revisions) for revisions in every))

    def known(self) -> Sequence[ServiceInfo]:
        """Those that the watches have told of, if they run."""
        space = self._opened()
        if space is None or self._portal is not get_portal() or not space.cache.in_sync:
            return []
        every = [revisions for name in space.cache.services() if (revisions := space.jobs(name))]
        return [self._described(space, *revisions[0]) for revisions in every]

    async def _info(self, space: Space, revisions: Sequence[tuple[ServiceFields, Raw]]) -> ServiceInfo:
        """The newest revision that has pods; while a new one comes up, the old one is the service."""
        for fields, job in sorted(revisions, key=lambda revision: not revision[0].loaded):
            token = await space.token(job)
            endpoints = await space.endpoints(job, token) if token is not None else ()
            if endpoints:
                return replace(self._described(space, fields, job), state="running", detail="", endpoints=endpoints)
        return self._described(space, *revisions[0])

    def _described(self, space: Space, fields: ServiceFields, job: Raw) -> ServiceInfo:
        pods = space.pods(fields.name, fields.revision)
        facts = Facts(fields.name, fields.namespace, fields.replicas, loaded=fields.loaded)
        found = diagnose(facts, job, pods, space.cache.events(fields.name), now=time.time())
        return ServiceInfo(
            name=fields.name,
            backend=self.name,
            state=found.state,
            created=fields.created,
            owner=fields.owner,
            resources={**fields.resources, **({"replicas": fields.replicas} if fields.replicas > 1 else {})},
            namespace=space.namespace,
            detached=True,
            ttl=fields.ttl,
            detail=found.detail,
        )

    def curl(self, info: ServiceInfo, function: str) -> str:
        """The shell lines that call it; from outside by a port-forward: kubectl itself can't send our header."""
        space = self._opened()
        revisions = space.jobs(info.name) if space is not None else []
        assert space is not None
        assert info.endpoint is not None
        job = revisions[0][0].job if revisions else info.name
        kubectl = self._kubectl(space)
        token = f"$({kubectl} get secret {job} -o jsonpath='{{.data.token}}' | base64 -d)"
        if space.cluster.in_cluster:
            return curl_line(info.endpoint.url, function, token)
        # Not a port that anybody could know before, and wait there for the token.
        port = 40000 + secrets.randbelow(9000)
        again = "-sS --retry 9 --retry-connrefused --retry-delay 1"
        call = curl_line(f"http://127.0.0.1:{port}", function, token, again)
        return f"{kubectl} port-forward job/{job} {port}:{names.PORT} >/dev/null &\n{call}; kill $!"

    def _kubectl(self, space: Space) -> str:
        """kubectl, for this cluster and namespace."""
        kubeconfig = ["--kubeconfig", self._kubeconfig_path] if self._kubeconfig_path else []
        context = ["--context", self._context] if self._context else []
        return shlex.join(["kubectl", *kubeconfig, *context, "-n", space.namespace])

    async def examine(self) -> Sequence[Finding]:
        """Which cluster, whether it answers, and what may be done and had there."""

        async def cluster() -> Cluster:
            return (await self._connected()).cluster

        return await examine(cluster, self._namespace)

    async def watch(self, name: str) -> AsyncIterator[Event]:
        """What the cluster has reported of the service, and what it reports while a deploy of it is under way."""
        space = await self.space()
        seen = 0
        while True:
            version = space.cache.version(name)
            events = space.cache.events(name)
            for event in events[seen:]:
                yield _event(event)
            seen = len(events)
            lock = self._locks.get(name)
            if lock is None or not lock.locked():
                return
            await space.cache.changed(name, since=version, timeout=1.0)

    async def volumes(self) -> Storage:
        """The claims of the namespace."""
        space = await self._connected()
        return Storage(space.cluster, space.namespace, _version())

    # -- ending ------------------------------------------------------------------------------------------------------

    async def delete(self, name: str) -> None:
        """End the service and remove all of it; returns when its pods are gone.

        Raises
        ------
        DeployError
            When they don't go, or we may not delete them.
        """
        space = await self.space()
        await asyncio.gather(*map(space.delete_job, space.cache.jobs(name)))
        await space.delete_rest(name)


def _why_another(space: Space, fields: ServiceFields, job: Raw, plan: manifests.Plan) -> str | None:
    """Why a revision can't go on, for people; None when it can."""
    if fields.spec != plan.spec:
        return "what it asks for has changed"
    if fields.suspended and plan.compute.queue_name is None:
        made = time_of(job["metadata"].get("creationTimestamp"))
        return "the last one was never released" if made is None or time.time() - made > _ABANDONED else None
    # The Job makes another pod in its place, but only after a while; and what others hold must not be lost for one.
    return space.all_lost(fields)


def _event(raw: Raw) -> Event:
    return Event(event_time(raw), str(raw.get("reason") or ""), " ".join(event_lines([raw])))


def _version() -> str:
    try:
        return metadata.version("kubetorch-jupyter")
    except metadata.PackageNotFoundError:
        return "unknown"  # only the package's folder is there, as `Image.sync_package` brings one


# -- this process's backends -------------------------------------------------------------------------------------------

_backends: dict[tuple[str | None, ...], KubernetesBackend] = {}


def kubernetes_backend(compute: Compute) -> KubernetesBackend:
    """The one of this process for the cluster and namespace that `compute` and the settings name."""
    path = compute.kubeconfig_path or config.kubeconfig_path
    where = path, config.context, compute.namespace or config.namespace
    # Another value of the variable is another cluster: people set it in a notebook when the first one was wrong.
    key = (*where, None if path else os.environ.get("KUBECONFIG"))
    if key not in _backends:
        _backends[key] = KubernetesBackend(*where)
    return _backends[key]


def _after_fork() -> None:
    _backends.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
