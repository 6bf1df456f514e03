"""What a namespace holds of ours, kept up to date by watches: the last word on Jobs, Pods and their events.

One list and one watch for each kind, shared by all that this process does in the namespace; started when somebody asks,
ended when nobody has asked for a while. Whoever waits is woken at each change; nothing polls.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...errors import KubernetesCredentialsError, KubetorchError
from ...transport.portal import Portal, get_portal
from .client import Cluster, Kind
from .mirror import EventMirror, Mirror, Raw, about_of, name_of
from .names import our_selector, service_of

__all__ = ["NamespaceCache"]

#: The watches end when nobody has asked for so many seconds.
_IDLE = 120.0
#: So many pods that are gone are remembered.
_DEPARTED = 500
#: A pod that we have never seen counts as gone only when we have been looking for so many seconds.
_UNSEEN = 2.0


class NamespaceCache:
    """The last known Jobs, Pods and Events of ours in one namespace; on the portal only.

    Parameters
    ----------
    cluster, namespace
        Where.
    describe
        Says why a pod has ended, from its last known state and its events; without, Kubernetes' own words do.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        describe: Callable[[Raw, Sequence[Raw]], str | None] | None = None,
    ) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self._describe = describe
        self._portal: Portal = get_portal()
        self._loop = self._portal.loop
        self._jobs = Mirror(self, Kind.JOB, our_selector())
        self._pods = Mirror(self, Kind.POD, our_selector())
        self._events = EventMirror(self)
        self._mirrors = (self._jobs, self._pods, self._events)
        self._departed: OrderedDict[str, Raw] = OrderedDict()
        self._asked_for: dict[str, float] = {}
        #: How often each service has changed, and (under None) anything; who waits for the next change.
        self._changes: dict[str | None, int] = {}
        self._waiting: dict[str | None, set[asyncio.Future[None]]] = {}
        self._used = 0.0
        self._users = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    # -- life --------------------------------------------------------------------------------------------------------

    def _touch(self) -> None:
        """Somebody asks: see to it that the watches run."""
        self._used = self._loop.time()
        if self._closed or self._portal.closed:
            return
        for mirror in self._mirrors:
            mirror.start()
        if self._timer is None:
            self._timer = self._loop.call_later(_IDLE, self._look)

    def _look(self) -> None:
        self._timer = None
        left = self._used + _IDLE - self._loop.time()
        if self._users or any(self._waiting.values()):
            left = _IDLE
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._stop()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for mirror in self._mirrors:
            mirror.stop()

    async def close(self) -> None:
        """End the watches for good; who waits gets an error."""
        self._closed = True
        tasks = [mirror.task for mirror in self._mirrors if mirror.task is not None]
        self._stop()
        for waiter in [waiter for waiters in self._waiting.values() for waiter in waiters]:
            if not waiter.done():
                waiter.set_result(None)
        if tasks:
            await asyncio.wait(tasks)

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Keep the watches running for as long as something is under way."""
        self._users += 1
        self._touch()
        try:
            yield
        finally:
            self._users -= 1
            self._used = self._loop.time()

    # -- what is known -----------------------------------------------------------------------------------------------

    @property
    def in_sync(self) -> bool:
        """Whether Jobs and Pods are as the API server has them, up to a moment ago."""
        return self._jobs.in_sync and self._pods.in_sync

    @property
    def error(self) -> KubetorchError | None:
        """Why it isn't in sync, as far as is known."""
        return self._jobs.error or self._pods.error

    async def synced(self, *, now: bool = False) -> None:
        """Wait until Jobs, Pods and Events have been listed, if they haven't been.

        `now`: and until their watches tell of what changes again, if they have broken.

        Raises
        ------
        ConnectionFailedError, KubernetesCredentialsError, DeployError
            When that can't be done. Events may be forbidden: then there are none.
        """
        with self.using():
            for mirror in self._mirrors:
                await mirror.listed(now=now)

    def services(self) -> list[str]:
        """The names of the services that have a Job here."""
        self._touch()
        return sorted({name for job in self._jobs.objects.values() if (name := service_of(job))})

    def jobs(self, service: str) -> list[Raw]:
        """The service's Jobs, oldest first."""
        self._touch()
        return _of_service(self._jobs.objects.values(), service)

    def pods(self, service: str) -> list[Raw]:
        """The service's Pods, oldest first."""
        self._touch()
        return _of_service(self._pods.objects.values(), service)

    def events(self, service: str) -> list[Raw]:
        """The events about the service's Jobs, its Pods (also those that are gone) and their claims, oldest first."""
        self._touch()
        about: set[tuple[str, str]] = {
            ("Job", name_of(job)) for job in _of_service(self._jobs.objects.values(), service)
        }
        for pod in (*self._pods.objects.values(), *self._departed.values()):
            if service_of(pod) == service:
                about.add(("Pod", name_of(pod)))
                about.update(("PersistentVolumeClaim", claim) for claim in _claims(pod))
        return sorted((event for key in about for event in self._events.about(key)), key=_time)

    def pod(self, name: str) -> Raw | None:
        """A Pod as it is, or as it was last."""
        self._touch()
        return self._pods.objects.get(name) or self._departed.get(name)

    def gone(self, name: str) -> str | None:
        """Why that pod has ended, from the last word of the watch; None while it may live, or nothing certain is known.

        It does no I/O; when the watches don't run it starts them, and a later call knows more.
        """
        self._touch()
        now = self._loop.time()
        pod = self._pods.objects.get(name)
        if pod is not None:
            self._asked_for.pop(name, None)
            return self._why(pod) if _has_ended(pod) else None
        pod = self._departed.get(name)
        if pod is not None:
            return self._why(pod)
        if not self._pods.in_sync:
            self._asked_for.pop(name, None)
            return None
        since = self._asked_for.setdefault(name, now)
        if now - since < _UNSEEN:
            return None
        return f"Kubernetes has no pod {name} any more"

    def _why(self, pod: Raw) -> str:
        name = name_of(pod)
        told = self._describe(pod, self._events.about(("Pod", name))) if self._describe is not None else None
        return told or _in_short(pod)

    # -- waiting -----------------------------------------------------------------------------------------------------

    def version(self, service: str | None = None) -> int:
        """How often that service (None: anything here) has changed, for `changed`."""
        self._touch()
        return self._changes.get(service, 0)

    async def changed(self, service: str | None = None, since: int | None = None, timeout: float | None = None) -> bool:
        """Wait for the next change of a service's Jobs, Pods or Events, or of whether we are in sync.

        Parameters
        ----------
        service
            Its name; None: any.
        since
            What `version` said before the last look, where something was awaited since.
        timeout
            At most so many seconds.

        Returns
        -------
        bool
            False: the time is over, and nothing has changed.

        Raises
        ------
        KubernetesCredentialsError
            When the API server refuses to tell us.
        """
        with self.using():
            if since is not None and self._changes.get(service, 0) != since:
                return True
            refused = self.error
            if isinstance(refused, KubernetesCredentialsError):
                raise copy.copy(refused)
            if self._closed:
                raise Portal.ended()
            waiter: asyncio.Future[None] = self._loop.create_future()
            waiters = self._waiting.setdefault(service, set())
            waiters.add(waiter)
            try:
                async with asyncio.timeout(timeout):
                    await waiter
            except TimeoutError:
                return False
            finally:
                waiters.discard(waiter)
                if not waiters:
                    self._waiting.pop(service, None)
            return True

    def _wake(self, *services: str | None) -> None:
        for service in {None, *services}:
            self._changes[service] = self._changes.get(service, 0) + 1
            for waiter in self._waiting.get(service, ()):
                if not waiter.done():
                    waiter.set_result(None)

    # -- what the mirrors tell ---------------------------------------------------------------------------------------

    def on_change(self, kind: Kind, obj: Raw, *, deleted: bool) -> None:
        """An object has come, changed or gone."""
        if kind is Kind.POD:
            if deleted:
                self._departed[name_of(obj)] = obj
                while len(self._departed) > _DEPARTED:
                    self._departed.popitem(last=False)
            else:
                self._departed.pop(name_of(obj), None)
        if kind is Kind.EVENT:
            self._wake(*self._concerned(obj))
        else:
            self._wake(service_of(obj))

    def on_state(self) -> None:
        """It is in sync now, or no longer."""
        self._wake(*self._waiting)

    def is_ours(self, key: tuple[str, str]) -> bool:
        """Whether events about that object are worth keeping."""
        kind, name = key
        if kind == "Job":
            return name in self._jobs.objects
        if kind == "Pod":
            return name in self._pods.objects or name in self._departed
        return any(name in _claims(pod) for pod in self._pods.objects.values())

    def _concerned(self, event: Raw) -> set[str | None]:
        kind, name = about_of(event)
        if kind == "Job":
            objects: Iterable[Raw | None] = [self._jobs.objects.get(name)]
        elif kind == "Pod":
            objects = [self._pods.objects.get(name) or self._departed.get(name)]
        else:
            objects = [pod for pod in self._pods.objects.values() if name in _claims(pod)]
        return {service_of(obj) for obj in objects if obj is not None}


# -- objects -----------------------------------------------------------------------------------------------------------


def _of_service(objects: Iterable[Raw], service: str) -> list[Raw]:
    found = [obj for obj in objects if service_of(obj) == service]
    return sorted(found, key=lambda obj: (str(obj["metadata"].get("creationTimestamp") or ""), name_of(obj)))


def _claims(pod: Mapping[str, Any]) -> set[str]:
    volumes = (pod.get("spec") or {}).get("volumes") or []
    return {str(v["persistentVolumeClaim"].get("claimName")) for v in volumes if v.get("persistentVolumeClaim")}


def _time(event: Mapping[str, Any]) -> str:
    # RFC 3339 in UTC sorts as text. Of one second, those with microseconds come first: the scheduler's.
    series = event.get("series") or {}
    metadata = event.get("metadata") or {}
    return str(
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or metadata.get("creationTimestamp")
        or ""
    )


def _has_ended(pod: Mapping[str, Any]) -> bool:
    status = pod.get("status") or {}
    if status.get("phase") in ("Succeeded", "Failed"):
        return True
    if not pod["metadata"].get("deletionTimestamp"):
        return False
    # It is being deleted: until its containers have ended, one may still talk to it.
    containers = status.get("containerStatuses") or []
    return bool(containers) and all((c.get("state") or {}).get("terminated") for c in containers)


def _in_short(pod: Mapping[str, Any]) -> str:
    """Why a pod has ended, in Kubernetes' own words."""
    status = pod.get("status") or {}
    name = name_of(pod)
    if status.get("reason"):
        return f"the pod {name} has ended: {status['reason']}{_more(status.get('message'))}"
    for condition in status.get("conditions") or []:
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            return f"the pod {name} was ended: {condition.get('reason')}{_more(condition.get('message'))}"
    for container in status.get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated")
        # Of a pod that was deleted, how its containers took that says nothing.
        crashed = ended and ended.get("exitCode") and not pod["metadata"].get("deletionTimestamp")
        if ended and (ended.get("reason") == "OOMKilled" or crashed):
            how = f"{ended.get('reason') or 'Error'}, exit code {ended.get('exitCode')}"
            return f"the container {container.get('name')} of pod {name} has ended: {how}"
    if status.get("phase") == "Succeeded":
        return f"the pod {name} has ended by itself"
    return f"the pod {name} was deleted"


def _more(text: Any) -> str:
    return f" ({text})" if text else ""
