"""How a revision comes up, and the worst of what keeps it from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ....errors import PodContainerError, ResourceNotAvailableError
from ....progress import Phase
from .containers import container_trouble, missing_object
from .creation import refused_pods
from .finding import Diagnosis, Facts, curable, fatal
from .images import pulling
from .jobs import deleted, job_trouble
from .objects import (
    Raw,
    about,
    condition,
    event_lines,
    event_time,
    events_of,
    index_of,
    latest,
    message_of,
    name_of,
    node_lost,
    one_line,
    short,
    statuses,
    time_of,
    times_seen,
)
from .scheduling import no_node

__all__ = ["diagnose"]

#: A mount that has failed once may be too early for a Secret made just now: it is believed when it fails again, or
#: after so many seconds.
_SURE = 1.5
_ORDER = list(Phase)


def diagnose(facts: Facts, job: Raw | None, pods: Sequence[Raw], events: Sequence[Raw], *, now: float) -> Diagnosis:
    """How a revision of a service comes up, or why it doesn't.

    Parameters
    ----------
    facts
        What else is known of it.
    job
        Its Job, or None where that isn't there (yet).
    pods
        Those of this revision.
    events
        Those of the namespace, or of these objects and their claims; others are left out.
    now
        Unix time, by the API server's clock as far as it is known.

    Returns
    -------
    Diagnosis
        For several pods that of the worst one.
    """
    pods = _current(pods)
    own = _own_events(job, pods, events)
    found = [_of_pod(facts, pod, own, now) for pod in pods]
    running = sum(1 for one in found if one.phase is Phase.CONNECTING)
    if job is None and facts.deleted:
        found.append(deleted(facts))
    elif job is not None and (trouble := job_trouble(facts, job, events, now)) is not None:
        found.append(trouble)
    elif job is not None and len(pods) < facts.replicas:
        refused = refused_pods(facts, job, events_of(own, job))
        found.append(refused if refused is not None else Diagnosis(Phase.SCHEDULING))
    if not found:
        found.append(Diagnosis(Phase.SCHEDULING))
    # Of two that are as bad, the one that is less far.
    worst = min(found, key=lambda one: (-one.weight, _ORDER.index(one.phase)))
    told = worst.told(facts, event_lines(own), running=running)
    if facts.replicas > 1:
        count = f"{running} of {facts.replicas} pods run"
        return replace(told, detail=f"{count}; {told.detail}" if told.detail else count)
    return told


def _current(pods: Sequence[Raw]) -> list[Raw]:
    """The newest pod of each replica; one that goes away only where none has come in its place."""
    newest: dict[str, Raw] = {}
    for pod in pods:
        index = index_of(pod)
        if index not in newest or _rank(pod) > _rank(newest[index]):
            newest[index] = pod
    return list(newest.values())


def _rank(pod: Raw) -> tuple[bool, float]:
    meta: Raw = pod.get("metadata") or {}
    over = bool(meta.get("deletionTimestamp")) or (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")
    return not over, time_of(meta.get("creationTimestamp")) or 0.0


def _own_events(job: Raw | None, pods: Sequence[Raw], events: Sequence[Raw]) -> list[Raw]:
    """Those of the Job, its pods and the claims of these, oldest first."""
    found = {id(event): event for thing in (job, *pods) for event in events_of(events, thing)}
    volumes = [volume for pod in pods for volume in (pod.get("spec") or {}).get("volumes") or ()]
    claims = {(volume.get("persistentVolumeClaim") or {}).get("claimName") for volume in volumes} - {None}
    for event in events:
        if about(event).get("kind") == "PersistentVolumeClaim" and about(event).get("name") in claims:
            found[id(event)] = event
    return sorted(found.values(), key=event_time)


def _of_pod(facts: Facts, pod: Raw, events: Sequence[Raw], now: float) -> Diagnosis:
    mine = events_of(events, pod)
    ended = _over(facts, pod) or _lost(pod, mine)
    if ended is not None:
        return replace(ended, pod=name_of(pod))
    claims = [event for event in events if about(event).get("kind") == "PersistentVolumeClaim"]
    if (waits := no_node(facts, pod, [*mine, *claims])) is not None:
        return replace(waits, pod=name_of(pod))
    if not (pod.get("spec") or {}).get("nodeName"):
        return Diagnosis(Phase.SCHEDULING, pod=name_of(pod))
    troubles = [container_trouble(facts, pod, status, mine, now) for status in statuses(pod)]
    found = [trouble for trouble in troubles if trouble is not None]
    # Only while a container is being made do its volumes matter; events of long ago stay.
    if not found and _being_made(pod):
        found = [trouble for trouble in (_no_volume(facts, mine, now), pulling(mine)) if trouble is not None]
    worst = max(found, key=lambda one: one.weight, default=None)
    if worst is None:
        worst = Diagnosis(Phase.CONNECTING if _up(facts, pod) else Phase.STARTING)
    return replace(worst, pod=name_of(pod))


def _up(facts: Facts, pod: Raw) -> bool:
    """Whether both of our containers run: one of ``service_template`` may have ended."""
    found: Sequence[Raw] = (pod.get("status") or {}).get("containerStatuses") or ()
    running = {status.get("name") for status in found if (status.get("state") or {}).get("running") is not None}
    return {facts.front, facts.worker} <= running


def _being_made(pod: Raw) -> bool:
    waiting = [(status.get("state") or {}).get("waiting") for status in statuses(pod)]
    return not waiting or any(state is not None for state in waiting)


def _over(facts: Facts, pod: Raw) -> Diagnosis | None:
    """A pod that has ended or is being removed, in whose place the Job makes another one."""
    status: Raw = pod.get("status") or {}
    reason, words = status.get("reason"), short(str(status.get("message") or ""))
    if status.get("phase") == "Failed" and reason:
        if reason == "Evicted" and "ephemeral" in words and "exceed" in words:
            what = f"used more disk than it asked for: {words}"
            todo = "Ask for more with kt.Compute(disk_size=...)"
            return fatal(facts, "disk", reason, ResourceNotAvailableError, what, todo, phase=Phase.STARTING)
        what = f"gets another pod, since the last one was ended by its node: {reason}: {words}"
        kind = "evicted" if reason == "Evicted" else "node"
        return curable(kind, str(reason), ResourceNotAvailableError, what, phase=Phase.SCHEDULING)
    if (pod.get("metadata") or {}).get("deletionTimestamp"):
        target = condition(pod, "DisruptionTarget")
        why = f"{target.get('reason')}: {short(str(target.get('message') or ''))}" if target else "it was deleted"
        what = f"waits until its last pod is gone and another one is made ({why})"
        return curable(
            "deleted", str(target.get("reason") or "Deleted"), PodContainerError, what, phase=Phase.SCHEDULING
        )
    return None


def _lost(pod: Raw, events: Sequence[Raw]) -> Diagnosis | None:
    """A pod whose node isn't heard of."""
    last = node_lost(pod, events)
    if last is None and (pod.get("status") or {}).get("phase") != "Unknown":
        return None
    node = (pod.get("spec") or {}).get("nodeName")
    what = f"waits for node {node}, which isn't ready" + (f" ({one_line(message_of(last))})" if last else "")
    return curable("node", "NodeNotReady", ResourceNotAvailableError, what, phase=Phase.STARTING)


def _no_volume(facts: Facts, events: Sequence[Raw], now: float) -> Diagnosis | None:
    last = latest(events, "FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox")
    if last is None:
        return None
    begun = latest(events, "Pulled", "Created", "Started")
    if begun is not None and event_time(begun) > event_time(last):
        return None
    reason, words = str(last.get("reason")), one_line(message_of(last))
    first = time_of(last.get("firstTimestamp")) or event_time(last)
    sure = times_seen(last) > 1 or now - first >= _SURE
    missing = missing_object(facts, reason, words) if sure else None
    if missing is not None:
        return missing
    thing = "its network" if reason == "FailedCreatePodSandBox" else "a volume"
    what = f"waits for {thing}: {words}"
    kind = "sandbox" if reason == "FailedCreatePodSandBox" else "volume"
    return curable(
        kind, reason, PodContainerError, what, "See 'kubectl describe pod'", phase=Phase.STARTING, detail=words
    )
