"""One kind of a namespace's objects, mirrored: listed once, then followed by a watch for as long as it is wanted."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import random
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol

from ...errors import ConnectionFailedError, KubernetesCredentialsError, KubetorchError
from ...transport.portal import get_portal
from .client import Cluster, Kind, WatchExpired

__all__ = ["EventMirror", "Mirror", "Owner", "Raw", "about_of", "name_of"]

log = logging.getLogger(__name__)

Raw = dict[str, Any]

#: The pause before trying again, and the longest, in seconds; the longest when we are refused.
_BACKOFF = 0.1, 2.0
_REFUSED = 15.0
#: A watch that has lasted so many seconds is no part of the trouble before it.
_HEALTHY = 1.0
#: So many objects that have events, and may yet turn out to be ours, are remembered.
_STRAYS = 1000
#: The events' objects that may concern us.
_EVENTFUL = frozenset({"Job", "Pod", "PersistentVolumeClaim"})


class Owner(Protocol):
    """Who has mirrors: `cache.NamespaceCache`."""

    cluster: Cluster
    namespace: str

    def on_change(self, kind: Kind, obj: Raw, *, deleted: bool) -> None:
        """An object has come, changed or gone."""
        ...

    def on_state(self) -> None:
        """A mirror is in sync now, or no longer."""
        ...

    def is_ours(self, key: tuple[str, str]) -> bool:
        """Whether events about that object (its kind and name) are worth keeping."""
        ...


class Mirror:
    """A kind's objects, as one list and a watch that goes on from it, again and again.

    Parameters
    ----------
    owner
        Who is told.
    kind, selector
        Which objects.

    Attributes
    ----------
    objects
        By name.
    in_sync
        Whether they are as the API server has them, up to a moment ago.
    error
        Why the last try failed; None when it didn't.
    """

    def __init__(self, owner: Owner, kind: Kind, selector: str) -> None:
        self._owner = owner
        self._kind = kind
        self._selector = selector
        self.objects: dict[str, Raw] = {}
        self.in_sync = False
        #: Why the last try failed; None when it didn't.
        self.error: KubetorchError | None = None
        self.task: asyncio.Task[None] | None = None
        self._version = ""
        #: Who waits for the first list, or for why there is none.
        self._first: asyncio.Future[None] | None = None
        #: Set when somebody wants to know now, and not after the pause.
        self._wanted = asyncio.Event()

    def start(self) -> None:
        """Begin, if it hasn't."""
        if self.task is None:
            self._first = asyncio.get_running_loop().create_future()
            self.error = None
            self.task = get_portal().own(self._run())

    def stop(self) -> None:
        """End it; what is known stays, as what was known last."""
        if self.task is not None:
            self.task.cancel()
            self.task = None
        self.in_sync = False
        self._version = ""  # or what is asked first afterwards would be answered from before
        if self._first is not None and not self._first.done():
            self._first.set_exception(ConnectionFailedError("the watch of the namespace was ended"))
            self._first.exception()  # perhaps nobody waits

    async def listed(self, *, now: bool = False) -> None:
        """Wait for the first list, or raise why there is none; after a failure that means another try, at once.

        `now`: what is known from before the watch broke is not enough.
        """
        self.start()
        if now and not self.in_sync and self._first is not None and self._first.done():
            self._first = asyncio.get_running_loop().create_future()
        self._wanted.set()
        assert self._first is not None
        await asyncio.shield(self._first)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        first, longest = _BACKOFF
        pause = first
        while True:
            began = loop.time()
            self._wanted.clear()
            try:
                if not self._version:
                    await self._list()
                await self._follow()  # until the server ends it, as it does after some minutes
            except WatchExpired:
                self._version = ""
                self._lost(None)
            except ConnectionFailedError as e:
                self._lost(e)  # what was known, and its version, holds until we hear more
            except KubetorchError as e:
                self._version = ""
                self._lost(e)
            except Exception as e:
                if "cannot schedule new futures" in str(e) or not self._owner.cluster.usable:
                    return  # the process ends, and takes from under us the threads that requests are made with
                log.exception("a watch of namespace %s met what it doesn't know", self._owner.namespace)
                self._version = ""
                self._lost(ConnectionFailedError(f"the namespace can't be watched: {type(e).__name__}: {e}"))
            if not self._owner.cluster.usable:
                return
            if isinstance(self.error, KubernetesCredentialsError):
                pause = _REFUSED
            elif loop.time() - began > _HEALTHY and self.error is None:
                pause = first
                continue
            await self._pause(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, longest)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wanted.wait()
        except TimeoutError:
            pass  # nobody wanted to know

    def _lost(self, error: KubetorchError | None) -> None:
        was, self.in_sync = self.in_sync or self.error is None, False
        self.error = error
        if self._first is not None and not self._first.done() and error is not None:
            self._give_up(self._first, error)
        if was:
            self._owner.on_state()

    def _give_up(self, first: asyncio.Future[None], error: KubetorchError) -> None:
        first.set_exception(copy.copy(error))  # an exception gathers its raisers' tracebacks
        first.exception()  # perhaps nobody waits
        self._first = asyncio.get_running_loop().create_future()  # who asks next gets the next try's

    async def _list(self) -> None:
        items, version = await self._owner.cluster.list(self._kind, self._owner.namespace, self._selector)
        now = {name_of(item): item for item in items}
        before = dict(self.objects)
        for name, obj in before.items():
            if name not in now:
                self.forget(name, obj)
        for name, obj in now.items():
            if before.get(name, {}).get("metadata", {}).get("resourceVersion") != obj["metadata"]["resourceVersion"]:
                self.take(name, obj)
        self._version = version

    def _synced(self) -> None:
        was, self.in_sync, self.error = self.in_sync, True, None
        if self._first is not None and not self._first.done():
            self._first.set_result(None)
        if not was:
            self._owner.on_state()

    async def _follow(self) -> None:
        watch = self._owner.cluster.watch(
            self._kind,
            self._owner.namespace,
            selector=self._selector,
            version=self._version,
            opened=self._synced,
        )
        async with contextlib.aclosing(watch):
            async for what, obj in watch:
                self._version = str(obj["metadata"].get("resourceVersion") or self._version)
                if what == "DELETED":
                    self.forget(name_of(obj), obj)
                elif what in ("ADDED", "MODIFIED"):
                    self.take(name_of(obj), obj)

    def take(self, name: str, obj: Raw) -> None:
        """An object is new, or has changed."""
        self.objects[name] = obj
        self._owner.on_change(self._kind, obj, deleted=False)

    def forget(self, name: str, obj: Raw) -> None:
        """An object is no more; this was its last state."""
        self.objects.pop(name, None)
        self._owner.on_change(self._kind, obj, deleted=True)


class EventMirror(Mirror):
    """The namespace's events: they have no labels, so that all of them come, and those of other objects are dropped.

    An event may come before the object that it is about; so a number of strays is kept.
    """

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner, Kind.EVENT, "")
        self._about: dict[tuple[str, str], dict[str, Raw]] = {}
        self._strays: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def listed(self, *, now: bool = False) -> None:
        """As the base; who may not read events has none."""
        try:
            await super().listed(now=now)
        except KubernetesCredentialsError:
            log.debug("events are forbidden here", exc_info=True)

    def about(self, key: tuple[str, str]) -> list[Raw]:
        """Those about an object (its kind and name)."""
        return list(self._about.get(key, {}).values())

    def take(self, name: str, obj: Raw) -> None:
        """Keep it, if it may concern us."""
        key = about_of(obj)
        if key[0] not in _EVENTFUL:
            return
        obj["metadata"].pop("managedFields", None)
        self.objects[name] = obj
        self._about.setdefault(key, {})[name] = obj
        if self._owner.is_ours(key):
            self._strays.pop(key, None)
            self._owner.on_change(self._kind, obj, deleted=False)
        else:
            self._strays[key] = None
            self._strays.move_to_end(key)
            self._prune()

    def _prune(self) -> None:
        for _ in range(len(self._strays)):
            if len(self._strays) <= _STRAYS:
                return
            key, _ = self._strays.popitem(last=False)
            if not self._owner.is_ours(key):  # it may have turned out to be
                for name in self._about.pop(key, {}):
                    self.objects.pop(name, None)

    def forget(self, name: str, obj: Raw) -> None:
        """Kubernetes drops events after an hour."""
        self.objects.pop(name, None)
        key = about_of(obj)
        events = self._about.get(key)
        if events is not None:
            events.pop(name, None)
            if not events:
                del self._about[key]
                self._strays.pop(key, None)


def name_of(obj: Mapping[str, Any]) -> str:
    """An object's name."""
    return str(obj["metadata"]["name"])


def about_of(event: Mapping[str, Any]) -> tuple[str, str]:
    """What an event is about: kind and name."""
    thing = event.get("involvedObject") or {}
    return str(thing.get("kind") or ""), str(thing.get("name") or "")
