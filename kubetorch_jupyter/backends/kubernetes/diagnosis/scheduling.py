"""Why a pod has no node: the scheduler's own words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ....errors import PodContainerError, ResourceNotAvailableError
from ....progress import Phase
from .finding import Diagnosis, Facts, curable, fatal
from .objects import Raw, asks, condition, latest, message_of, one_line, short

__all__ = ["no_node"]

_NO_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" not found')
_UNBOUND = re.compile(r"unbound immediate PersistentVolumeClaims|persistentvolumeclaim .* is being deleted")
#: The scheduler adds what preemption, claims of devices … would help, which is seldom worth a line.
_REST = re.compile(r"\.? (?:preemption:|no new claims to deallocate).*$")


def no_node(facts: Facts, pod: Raw, events: Sequence[Raw]) -> Diagnosis | None:
    """Why a pod isn't on a node yet, or None if it is, or nobody has said why.

    Parameters
    ----------
    facts
        Of the deploy.
    pod
        The pod.
    events
        Of the pod, and of its claims.
    """
    scheduled = condition(pod, "PodScheduled")
    if (pod.get("spec") or {}).get("nodeName") or scheduled.get("status") != "False":
        return None
    reason, words = str(scheduled.get("reason") or "Unschedulable"), one_line(str(scheduled.get("message") or ""))
    if reason == "SchedulingGated":
        gates = ", ".join(str(g.get("name")) for g in (pod.get("spec") or {}).get("schedulingGates") or ())
        what = f"waits for the scheduling gate {gates or 'of its pod'} to be removed ({words})"
        return curable("gated", reason, ResourceNotAvailableError, what, phase=Phase.SCHEDULING, detail=what)
    brief = _REST.sub("", words).removesuffix(". not found") or "the scheduler has found no node"
    if found := _NO_CLAIM.search(words):
        where = f" in namespace {facts.namespace}" if facts.namespace else ""
        what = f'needs the volume (PersistentVolumeClaim) "{found[1]}", which isn\'t there ({short(brief)})'
        todo = f"Create it{where}: kt.Volume(...) with a size does, or name another"
        return fatal(facts, "volume", reason, PodContainerError, what, todo, phase=Phase.SCHEDULING)
    if _UNBOUND.search(words):
        last = latest(events, "ProvisioningFailed", "FailedBinding")
        why = f"; {one_line(message_of(last))}" if last is not None else ""
        what = f"waits for its volume: {brief}{why}"
        hint = "See 'kubectl describe pvc', and give the kt.Volume a storage class that this cluster has"
        return curable("volume", reason, PodContainerError, what, hint, phase=Phase.SCHEDULING, detail=f"{brief}{why}")
    asked = asks(pod)
    pod_asks = f"; each pod asks for {asked}" if asked else ""
    helped = _helped(pod, events)
    what = f"has no node for its pod: {brief}{pod_asks}{helped}"
    if "Insufficient" not in words and re.search("didn't match|untolerated taint", words):
        hint = "Compare gpu_type, node_selector and tolerations of the kt.Compute with the nodes' labels and taints"
    else:
        hint = "Ask for less with kt.Compute(...), end what holds it"
    return curable(
        "unschedulable",
        reason,
        ResourceNotAvailableError,
        what,
        hint,
        phase=Phase.SCHEDULING,
        detail=f"{brief}{pod_asks}{helped}",
    )


def _helped(pod: Raw, events: Sequence[Raw]) -> str:
    """That other pods make room, or that an autoscaler brings a node, or says that it can't."""
    if node := (pod.get("status") or {}).get("nominatedNodeName"):
        return f" (pods of lower priority are making room on node {node})"
    last = latest(events, "TriggeredScaleUp", "NotTriggerScaleUp", "Nominated")
    if last is None:
        return ""
    if last.get("reason") == "NotTriggerScaleUp":
        return f" (no node will be added: {short(message_of(last), 150)})"
    return f" (a node is being added: {short(message_of(last), 100)})"
