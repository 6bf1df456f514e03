"""One API server, with one identity: requests in raw JSON, answers as dicts, refusals as our errors.

All of it runs on the portal.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from ...errors import DeployError
from ...transport.portal import Portal, get_portal
from .kinds import Kind
from .rest import JSON, Rest, lines, network_errors, why

__all__ = ["Cluster", "Kind", "WatchExpired"]

log = logging.getLogger(__name__)

#: The server ends a watch after so many seconds, at least and at most.
_WATCH = 240, 360
_PATCHES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
}
#: An object without what it holds; a server that doesn't know that gives the whole.
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, application/json"
#: Of an object that was deleted and made again by the same name, or that was changed.
_ANOTHER = re.compile(r"(?:UID|ResourceVersion) in (?:the )?precondition")
_Objects = list[dict[str, Any]]


class WatchExpired(Exception):
    """The server no longer has the changes since that version: list again."""


class Cluster:
    """One API server and one identity; `Cluster.open` makes one.

    Attributes
    ----------
    server
        Its address.
    namespace
        The context's or the service account's.
    context
        The kubeconfig's context; None in a cluster.
    in_cluster
        Whether this process runs in a pod of it, by that pod's service account: pods can be reached directly then.
    user
        Who we are, for people.
    source
        Where that stands, for people.
    """

    def __init__(self, rest: Rest) -> None:
        settings = rest.settings
        self.server = settings.server
        self.namespace = settings.namespace
        self.context = settings.context
        self.in_cluster = settings.in_cluster
        self.source = settings.source
        self.user = settings.user_name or "nobody"
        self.proxy = settings.proxy
        self.server_name = settings.server_name
        self._rest = rest
        self._portal: Portal = get_portal()

    @classmethod
    async def open(cls, kubeconfig_path: str | None = None, context: str | None = None) -> Cluster:
        """Read the configuration; nothing is asked of the server yet. On the portal.

        Parameters
        ----------
        kubeconfig_path
            A kubeconfig; by default those of ``$KUBECONFIG``, in a pod its service account, else ``~/.kube/config``.
        context
            A context of it, if not its current one.

        Raises
        ------
        ConfigError
            When there is no configuration, or it makes no sense.
        """
        self = cls(await asyncio.to_thread(Rest.load, kubeconfig_path, context))
        self._portal.farewells.add(self.close)
        return self

    async def close(self) -> None:
        """Close its connections; whoever waits for an answer gets an error."""
        self._portal.farewells.discard(self.close)
        await self._rest.close()

    @property
    def usable(self) -> bool:
        """Whether it is open, and of this process."""
        return not self._rest.closed and self._portal is get_portal()

    @property
    def waking(self) -> bool:
        """Whether the API server was away until a moment ago: one that has just started may refuse everybody."""
        return self._rest.waking

    def __repr__(self) -> str:
        return f"Cluster({self.server}, context={self.context!r}, user={self.user!r})"

    async def headers(self, *, renew: bool = False) -> Mapping[str, str]:
        """What tells the API server who we are, fresh: for a connection that somebody else makes.

        Parameters
        ----------
        renew
            The server has refused what we had.
        """
        return await self._rest.credentials.headers(renew=renew)

    def tls(self) -> ssl.SSLContext | None:
        """The TLS context for such a connection, with the client certificate; None for plain HTTP."""
        return self._rest.credentials.tls

    # -- objects -----------------------------------------------------------------------------------------------------

    async def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        """An object, or None."""
        return await self._get(kind, namespace, name)

    async def metadata(self, kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        """An object's metadata, or None: of what may be large, and isn't needed."""
        found = await self._get(kind, namespace, name, accept=_METADATA)
        return None if found is None else found.get("metadata") or {}

    async def _get(self, kind: Kind, namespace: str, name: str, accept: str = JSON) -> dict[str, Any] | None:
        path, doing = kind.path(namespace, name), f"get the {kind.label} {name}"
        try:
            return await self._rest.ask_json("GET", path, doing, namespace, accept=accept)
        except DeployError as e:
            if e.reason == "NotFound":
                return None
            raise

    async def list(self, kind: Kind, namespace: str, selector: str = "", field: str = "") -> tuple[_Objects, str]:
        """Objects that match, and the version that a `watch` can go on from."""
        query = {"labelSelector": selector, "fieldSelector": field}
        found = await self._rest.ask_json("GET", kind.path(namespace), f"list {kind.plural}", namespace, query=query)
        items: list[dict[str, Any]] = found.get("items") or []
        for item in items:
            # A list's items don't say what they are; those of a watch do.
            item.setdefault("kind", kind.label)
            item.setdefault("apiVersion", kind.api_version)
        return items, str((found.get("metadata") or {}).get("resourceVersion") or "")

    async def create(self, kind: Kind, namespace: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object; what the server has made of it.

        Raises
        ------
        DeployError
            ``reason`` is ``"AlreadyExists"`` when there is one of that name.
        """
        name = (body.get("metadata") or {}).get("name") or "without a name"
        return await self._rest.ask_json(
            "POST", kind.path(namespace), f"create the {kind.label} {name}", namespace, body=body
        )

    async def patch(
        self, kind: Kind, namespace: str, name: str, body: Any, kind_of_patch: str = "merge", subresource: str = ""
    ) -> dict[str, Any]:
        """Change an object.

        Parameters
        ----------
        kind, namespace, name
            The object.
        body
            The patch: a list for ``"json"``, else a part of an object.
        kind_of_patch
            ``"merge"``, ``"strategic"`` or ``"json"``.
        subresource
            ``"status"``, ``"scale"`` …

        Raises
        ------
        DeployError
            ``reason`` is ``"NotFound"`` when there is none, ``"Conflict"`` when it has changed meanwhile.
        """
        path = kind.path(namespace, name, subresource)
        return await self._rest.ask_json(
            "PATCH", path, f"change the {kind.label} {name}", namespace, body=body, media=_PATCHES[kind_of_patch]
        )

    async def delete(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        propagation: str = "Background",
        uid: str | None = None,
        grace: int | None = None,
        version: str | None = None,
    ) -> bool:
        """Have an object deleted; False when there was none (or only another of that name, or it has changed).

        Parameters
        ----------
        kind, namespace, name
            The object.
        propagation
            What happens to what it owns: ``"Background"``, ``"Foreground"`` or ``"Orphan"``.
        uid
            Only if it is still this one.
        grace
            Seconds that its containers get, if not what they say themselves.
        version
            Only if it is unchanged since this ``resourceVersion``.
        """
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if conditions := {k: v for k, v in (("uid", uid), ("resourceVersion", version)) if v is not None}:
            body["preconditions"] = conditions
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        try:
            await self._rest.ask_json(
                "DELETE", kind.path(namespace, name), f"delete the {kind.label} {name}", namespace, body=body
            )
        except DeployError as e:
            # A conflict of another kind is no word on whether it is there.
            if e.reason == "NotFound" or (e.reason == "Conflict" and _ANOTHER.search(str(e))):
                return False
            raise
        return True

    async def log(
        self, namespace: str, pod: str, container: str, *, previous: bool = False, tail_lines: int = 50
    ) -> str:
        """The last lines of a container's log; empty when there is none (yet, or any more).

        Parameters
        ----------
        namespace, pod, container
            Whose.
        previous
            That of the container before its last restart.
        tail_lines
            How many lines.
        """
        query = {"container": container, "tailLines": str(tail_lines), "previous": "true" if previous else ""}
        path = Kind.POD.path(namespace, pod, "log")
        try:
            text = await self._rest.ask("GET", path, f"read the log of pod {pod}", namespace, query=query)
        except DeployError as e:
            if e.reason in ("NotFound", "BadRequest"):
                return ""  # the pod is gone, or its container has not been made
            raise
        return text.decode("utf-8", "replace")

    async def may(self, verb: str, resource: str, namespace: str, *, group: str = "", subresource: str = "") -> bool:
        """Whether this identity has a right; True also when the server doesn't want to say."""
        wanted = {"namespace": namespace, "verb": verb, "group": group, "resource": resource}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {**wanted, **({"subresource": subresource} if subresource else {})}},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        try:
            answer = await self._rest.ask_json("POST", path, "ask for our rights", namespace, body=body)
        except DeployError:
            log.debug("the API server doesn't tell our rights", exc_info=True)
            return True
        return bool((answer.get("status") or {}).get("allowed"))

    async def fetch(self, path: str, doing: str) -> dict[str, Any]:
        """What the server says of itself, or of things that are no namespace's."""
        return await self._rest.ask_json("GET", path, doing, self.namespace)

    async def identity(self) -> str:
        """Who the server says that we are; what the kubeconfig calls us, where it doesn't say."""
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
        try:
            answer = await self._rest.ask_json("POST", path, "ask who we are", self.namespace, body=body)
        except DeployError as e:
            if e.reason == "Unauthorized":
                raise
            return self.user
        return str(((answer.get("status") or {}).get("userInfo") or {}).get("username") or self.user)

    async def watch(
        self,
        kind: Kind,
        namespace: str,
        *,
        selector: str = "",
        field: str = "",
        version: str = "",
        opened: Callable[[], None] | None = None,
    ) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """Changes since ``version``, as they come: ``("ADDED" | "MODIFIED" | "DELETED" | "BOOKMARK", object)``.

        It ends when the server ends it, as it does every few minutes: go on from the last object's version.

        Parameters
        ----------
        kind, namespace, selector, field
            Which objects.
        version
            Where to begin: as `list` gave it, or an object has it.
        opened
            Called when the server has agreed, before the first change.

        Raises
        ------
        WatchExpired
            When the server no longer has the changes since ``version``.
        ConnectionFailedError, KubernetesCredentialsError, DeployError
            As for any request.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "labelSelector": selector,
            "fieldSelector": field,
            "resourceVersion": version,
            "timeoutSeconds": str(random.randint(*_WATCH)),
        }
        doing = f"watch {kind.plural}"
        try:
            response = await self._rest.send("GET", kind.path(namespace), doing, namespace, query=query, stream=True)
        except DeployError as e:
            if e.reason in ("Expired", "Gone", "HTTP 410"):
                raise WatchExpired from e
            raise
        if opened is not None:
            opened()
        try:
            async for line in lines(response):
                event = json.loads(line)
                what, obj = event.get("type"), event.get("object") or {}
                if what == "ERROR":
                    if obj.get("code") == 410:
                        raise WatchExpired
                    raise self._rest.refused(int(obj.get("code") or 500), json.dumps(obj), doing, namespace)
                yield str(what), obj
        except ValueError as e:
            raise self._rest.unreachable(f"sent what is no JSON while we {doing} ({e})") from e
        except network_errors() as e:
            raise self._rest.unreachable(f"broke the connection while we {doing} ({why(e)})") from e
        finally:
            # Not given back to the pool: there is more to come on it.
            response.close()
