"""The rights that a user needs in a namespace. ``docs/kubernetes.md`` has them as a Role to copy."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from .client import Cluster
from .failures import rule

__all__ = ["OTHERWISE", "ROLE", "Right", "missing"]


@dataclass(frozen=True)
class Right:
    """What may be done with one kind of thing.

    Parameters
    ----------
    resource
        As a Role has it: ``"pods/log"``.
    verbs
        What may be done.
    use
        What it is needed for, in words that go on after "without it".
    group
        The API group.
    optional
        Whether services can be deployed and called without it.
    """

    resource: str
    verbs: tuple[str, ...]
    use: str
    group: str = ""
    optional: bool = False

    @property
    def rule(self) -> str:
        """The line of a Role."""
        return rule(self.resource, self.group, *self.verbs)


#: All that is ever asked of a namespace.
ROLE = (
    Right("jobs", ("get", "list", "watch", "create", "patch", "delete"), "nothing can be deployed", "batch"),
    Right("pods", ("get", "list", "watch", "delete"), "services can't be seen or ended"),
    Right("services", ("list", "create", "patch", "delete"), "nothing can be deployed"),
    Right("secrets", ("get", "list", "create", "patch", "delete"), "nothing can be deployed"),
    Right("configmaps", ("create", "patch"), "nothing can be deployed"),
    Right("persistentvolumeclaims", ("get", "create", "delete"), "kt.Volume doesn't work", optional=True),
    Right("events", ("list", "watch"), "it isn't said why a pod waits", optional=True),
    Right("pods/log", ("get",), "an error at the start of a pod doesn't say what it printed", optional=True),
    Right(
        "pods/proxy", ("get", "create", "update"), "pods are reached by a port-forward, which is slower", optional=True
    ),
)
#: Instead of ``pods/proxy``, where that is forbidden.
OTHERWISE = Right("pods/portforward", ("get", "create"), "pods can't be reached from outside of the cluster")


async def missing(cluster: Cluster, namespace: str) -> list[Right]:
    """Those of `ROLE` and `OTHERWISE` that this identity lacks, with the verbs that it lacks."""

    async def lacking(right: Right) -> Right | None:
        resource, _, part = right.resource.partition("/")
        allowed = await asyncio.gather(
            *(cluster.may(verb, resource, namespace, group=right.group, subresource=part) for verb in right.verbs)
        )
        verbs = tuple(verb for verb, may in zip(right.verbs, allowed, strict=True) if not may)
        return Right(right.resource, verbs, right.use, right.group, right.optional) if verbs else None

    found = await asyncio.gather(*map(lacking, (*ROLE, OTHERWISE)))
    return [right for right in found if right is not None]
