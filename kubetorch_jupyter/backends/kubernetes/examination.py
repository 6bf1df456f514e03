"""What ``%kt doctor`` says of a cluster: which, as whom, what may be done there, and what is there to be had."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ...config import config
from ...errors import ConfigError, DeployError, KubetorchError
from ..base import Finding
from .client import Cluster
from .manifests import default_image
from .rights import OTHERWISE, missing

__all__ = ["examine"]

#: Seconds for all questions together; it must never hang.
_PATIENCE = 5.0
_GPU = "nvidia.com/gpu"


async def examine(open: Callable[[], Any], namespace: str | None) -> list[Finding]:
    """Look at the cluster that services go to.

    Parameters
    ----------
    open
        Gives the `Cluster`, when awaited.
    namespace
        That of the services; None: the context's.
    """
    found: list[Finding] = []
    where = "the API server"
    try:
        async with asyncio.timeout(_PATIENCE):
            cluster: Cluster = await open()
            where = cluster.server
            namespace = namespace or cluster.namespace
            said = f"{where}, namespace {namespace}"
            context = f"context {cluster.context} of " if cluster.context else ""
            found.append(Finding("cluster", "ok", f"{said}: {context}{cluster.source}"))
            found.append(await _answers(cluster))
            if found[-1].state == "problem":
                return found
            parts = await asyncio.gather(
                _rights(cluster, namespace), _kueue(cluster, namespace), _gpus(cluster), return_exceptions=True
            )
            for part in parts:
                if isinstance(part, BaseException):
                    found.append(Finding("cluster", "problem", str(part)))
                else:
                    found.extend(part)
    except TimeoutError:
        found.append(
            Finding(
                "cluster",
                "problem",
                f"{where} hasn't answered within {_PATIENCE:g} s. Is the cluster running, the VPN up, and this the "
                "right context? kt.config.context names another",
            )
        )
    except ConfigError as e:
        found.append(Finding("cluster", "problem", str(e)))
    found.append(_image())
    return found


async def _answers(cluster: Cluster) -> Finding:
    try:
        version, user = await asyncio.gather(cluster.fetch("/version", "ask for its version"), cluster.identity())
    except KubetorchError as e:
        return Finding("cluster", "problem", str(e))
    return Finding("cluster", "ok", f"Kubernetes {version.get('gitVersion') or 'of unknown version'}, as {user}")


async def _rights(cluster: Cluster, namespace: str) -> Sequence[Finding]:
    lacking = {right.resource: right for right in await missing(cluster, namespace)}
    otherwise = lacking.pop(OTHERWISE.resource, None)
    proxy = lacking.pop("pods/proxy", None)
    found = [
        Finding(
            "rights",
            "note" if right.optional else "problem",
            f"may not {', '.join(right.verbs)} {right.resource}: {right.use}. A Role with this rule allows it:\n"
            f"  {right.rule}",
        )
        for right in lacking.values()
    ]
    if not found:
        found.append(Finding("rights", "ok", f"all that services need in namespace {namespace}"))
    if cluster.in_cluster:
        found.append(Finding("way to pods", "ok", "directly, from inside of the cluster"))
    elif proxy is None:
        found.append(Finding("way to pods", "ok", "by the API server's proxy"))
    elif otherwise is None:
        said = f"by a port-forward: the API server's proxy, which is faster, takes a Role with\n  {proxy.rule}"
        found.append(Finding("way to pods", "note", said))
    else:
        said = (
            f"none: neither the API server's proxy nor a port-forward is allowed. Ask for a Role with\n  {proxy.rule}"
        )
        found.append(Finding("way to pods", "problem", said))
    return found


async def _kueue(cluster: Cluster, namespace: str) -> Sequence[Finding]:
    wanted = config.queue
    try:
        group = await cluster.fetch("/apis/kueue.x-k8s.io", "look for Kueue")
        version = group["preferredVersion"]["groupVersion"]
    except (DeployError, KeyError):
        if wanted:
            said = f"is not installed, and kt.config.queue={wanted!r} would make every service wait for it"
            return [Finding("Kueue", "problem", said)]
        return [Finding("Kueue", "note", "is not installed: leave queue_name out")]
    try:
        queues = await cluster.fetch(f"/apis/{version}/namespaces/{namespace}/localqueues", "list the queues")
    except KubetorchError:
        return [Finding("Kueue", "ok", "is installed; its queues can't be listed with these rights")]
    names = [str(each["metadata"]["name"]) for each in queues.get("items") or []]
    listed = ", ".join(sorted(names)) or "none"
    if wanted and wanted not in names:
        said = f"has no queue {wanted!r} (kt.config.queue) in namespace {namespace}; there are: {listed}"
        return [Finding("Kueue", "problem", said)]
    return [Finding("Kueue", "ok", f"is installed; queues here: {listed}")]


async def _gpus(cluster: Cluster) -> Sequence[Finding]:
    try:
        nodes = (await cluster.fetch("/api/v1/nodes", "look for GPUs")).get("items") or []
    except KubetorchError:
        said = "not known: nodes can't be looked at with these rights (nor with those of the role edit); a deploy tells"
        return [Finding("GPUs", "note", said)]
    counts = [int(((node.get("status") or {}).get("allocatable") or {}).get(_GPU) or 0) for node in nodes]
    return [Finding("GPUs", "ok", f"{sum(counts)} on {sum(map(bool, counts))} of {len(nodes)} nodes")]


def _image() -> Finding:
    minor = f"{sys.version_info[0]}.{sys.version_info[1]}"
    source = "kt.config.image" if config.image else f"this Python's, {minor}"
    said = f"{default_image()} where a Compute names none ({source}). Python {minor} in it takes functions by value"
    return Finding("image", "ok", f"{said}, another minor by source")
