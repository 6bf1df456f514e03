"""Why a pod that served calls is gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ....errors import PodLostError, PodTerminatedError
from ..names import FRONT
from .finding import LogWanted
from .objects import (
    Raw,
    condition,
    ended_how,
    event_lines,
    event_time,
    events_of,
    last_lines,
    latest,
    limits,
    message_of,
    name_of,
    node_lost,
    one_line,
    short,
    statuses,
    time_of,
)

__all__ = ["Death", "death"]


@dataclass(frozen=True)
class Death:
    """How a pod ended, or that it lives.

    Parameters
    ----------
    kind
        ``"deleted"``, ``"evicted"``, ``"preempted"``, ``"drained"``, ``"node"``, ``"oom"``, ``"crash"``, ``"ended"``
        (by itself, with exit code 0: its TTL, or a teardown), or ``""``: nothing says that it has ended.
    reason
        The same as a clause, for people; None where nothing is known.
    container
        Which container ended, where one did and not the pod.
    evicted, oom_killed
        As `PodTerminatedError` has them.
    events
        The pod's, oldest first, as lines.
    log
        Whose last lines would tell more.
    """

    kind: str = ""
    reason: str | None = None
    container: str | None = None
    evicted: bool = False
    oom_killed: bool = False
    events: Sequence[str] = ()
    log: LogWanted | None = None

    def error(self, service: str | None, call_id: str | None = None, log: str = "") -> PodLostError:
        """What an open call gets.

        Parameters
        ----------
        service, call_id
            What it is about.
        log
            The last lines of the container that `log` names, where they could be had.
        """
        said = last_lines(log)
        error: PodLostError
        if self.kind in ("", "ended"):
            error = PodLostError(service=service, call_id=call_id, reason=self.reason)
        else:
            error = PodTerminatedError(
                service=service,
                call_id=call_id,
                reason=self.reason,
                evicted=self.evicted,
                oom_killed=self.oom_killed,
                events=self.events,
            )
        if said:
            error.message = f'{error.message}\nThe last lines of container "{self.container}":\n{said}'
            error.args = (error.message,)
        return error


#: What the condition DisruptionTarget says, as our kind and words.
_TARGETS = {
    "PreemptionByScheduler": ("preempted", "it was preempted by a pod of higher priority"),
    "DeletionByTaintManager": ("node", "it was removed from its node by a taint"),
    "EvictionByEvictionAPI": ("drained", "it was evicted by request: its node is drained, or an autoscaler removes it"),
    "DeletionByPodGC": ("node", "its node is gone"),
}


def death(
    pod: Raw | None,
    events: Sequence[Raw],
    *,
    name: str | None = None,
    now: float | None = None,
    front: str = FRONT,
) -> Death:
    """Why a pod ended, or one of its containers.

    Parameters
    ----------
    pod
        The pod as it was last seen; None where it wasn't seen at all.
    events
        Those of the namespace, or its own.
    name
        The pod's name, for its events where `pod` is None.
    now
        Unix time. With it, a container that runs again is still told of for half a minute.
    front
        Name of the container whose end with exit code 0 is the pod's.
    """
    thing: Raw | None = pod if pod is not None else {"metadata": {"name": name}} if name else None
    own = events_of(events, thing)
    found = _of(pod, own, now, front)
    return replace(found, reason=found.reason and found.reason.rstrip("."), events=event_lines(own))


def _of(pod: Raw | None, events: Sequence[Raw], now: float | None, front: str) -> Death:
    target = condition(pod, "DisruptionTarget") if pod is not None else {}
    if pod is not None and target.get("status") == "True":
        return _disrupted(pod, target, events)
    status: Raw = (pod or {}).get("status") or {}
    if status.get("reason") and status.get("phase") == "Failed":
        reason, words = str(status["reason"]), short(str(status.get("message") or ""))
        if reason == "Evicted":
            return Death("evicted", f"it was evicted: {words}", evicted=True)
        kind = "preempted" if reason == "Preempting" else "node"
        return Death(kind, f"its node ended it: {reason}: {words}", evicted=kind == "preempted")
    told = _by_events(pod, events)
    # A container's own end says more than that the pod was deleted, if it came first.
    ended = _container(pod, now, front) if pod is not None else None
    if ended is not None:
        return told if told is not None and told.kind in ("preempted", "evicted") else ended
    if told is not None:
        return told
    if pod is None or _deleted(pod):
        return Death("deleted", "it was deleted")
    if status.get("phase") == "Unknown":
        return Death("node", _node(pod))
    return Death()


def _deleted(pod: Raw | None) -> bool:
    return bool(((pod or {}).get("metadata") or {}).get("deletionTimestamp"))


def _ended_by_deletion(pod: Raw, ended: Raw) -> bool:
    """Whether a container ended after its pod was to be deleted, whatever it made of that."""
    meta: Raw = pod.get("metadata") or {}
    due, at = time_of(meta.get("deletionTimestamp")), time_of(ended.get("finishedAt"))
    if due is None or at is None:
        return False
    grace = float(meta.get("deletionGracePeriodSeconds") or 0)
    # The kubelet's own last word on a pod gives it no time at all, when its containers have ended.
    return at >= due - grace or (not grace and ended.get("exitCode") in _KILLED)


def _node(pod: Raw | None) -> str:
    name = ((pod or {}).get("spec") or {}).get("nodeName")
    return f"its node {name} isn't ready any more" if name else "its node isn't ready any more"


def _disrupted(pod: Raw, target: Raw, events: Sequence[Raw]) -> Death:
    reason = str(target.get("reason"))
    status: Raw = pod.get("status") or {}
    said = short(str(status.get("message") or target.get("message") or ""))
    if reason == "TerminationByKubelet":
        return Death("evicted", f"it was evicted: {said or 'by its node'}", evicted=True)
    if reason not in _TARGETS:
        return Death("evicted", f"it was ended by the cluster: {reason}{f': {said}' if said else ''}", evicted=True)
    kind, words = _TARGETS[reason]
    if kind == "node" and latest(events, "NodeNotReady") is not None:
        words = _node(pod)
    return Death(kind, words, evicted=kind in ("preempted", "drained"))


def _by_events(pod: Raw | None, events: Sequence[Raw]) -> Death | None:
    """What only events say, the last one first."""
    for event in sorted(events, key=event_time, reverse=True):
        reason, words = event.get("reason"), short(one_line(message_of(event)))
        if reason == "Evicted":
            return Death("evicted", f"it was evicted: {words}", evicted=True)
        if reason == "Preempted":
            return Death("preempted", "it was preempted by a pod of higher priority", evicted=True)
        if reason == "TaintManagerEviction" and "Cancelling" not in words:
            return Death(
                "node", _node(pod) if latest(events, "NodeNotReady") else "it was removed from its node by a taint"
            )
    return Death("node", _node(pod)) if node_lost(pod, events) is not None else None


def _container(pod: Raw, now: float | None, front: str) -> Death | None:
    """The container that ended, and how: the one with the worst end."""
    found: list[Death] = []
    # Of several that ended alike, the last one is what happened just now.
    every = sorted(statuses(pod), key=_finished, reverse=True)
    for status in every:
        state: Raw = status.get("state") or {}
        ended: Raw | None = state.get("terminated")
        previous = ended is None
        if ended is None:
            ended = (status.get("lastState") or {}).get("terminated")
            at = time_of((ended or {}).get("finishedAt"))
            again = state.get("running") is not None
            if again and (now is None or at is None or now - at > _FRESH):
                continue
        if ended is None or (ended.get("reason") != "OOMKilled" and _ended_by_deletion(pod, ended)):
            continue
        found.append(_one(pod, str(status.get("name")), ended, previous))
    worst = min(found, key=lambda one: _WORST.index(one.kind), default=None)
    if worst is not None and worst.kind == "ended" and len(found) < len(every):
        return next((one for one in found if one.container == front), None)
    return worst


#: Seconds that a container's end is told of after it has been started again.
_FRESH = 30.0
#: The exit codes of SIGKILL and SIGTERM.
_KILLED = (137, 143)
_WORST = ("oom", "crash", "ended")


def _finished(status: Raw) -> float:
    states = (status.get("state") or {}, status.get("lastState") or {})
    return max(time_of((state.get("terminated") or {}).get("finishedAt")) or 0.0 for state in states)


def _one(pod: Raw, name: str, ended: Raw, previous: bool) -> Death:
    code, reason = ended.get("exitCode"), ended.get("reason")
    if reason == "OOMKilled":
        # With cgroup v1 only a child may have been killed: the exit code is then the container's own, even 0.
        sizes = limits(pod, name)
        more = "memory" if "no limit" in sizes else "memory_limit"
        how = f'its container "{name}" ran out of memory ({sizes}; kt.Compute({more}=...) gives more)'
        return Death("oom", how, container=name, oom_killed=True)
    if code == 0:
        return Death("ended", "it ended by itself (exit code 0): nobody had used it, or it was torn down", name)
    # What a container said last tells nothing of why it was killed from outside.
    words = short(one_line(str(ended.get("message") or ""))) if code not in _KILLED else ""
    how = f'its container "{name}" {ended_how(code, ended.get("signal"))}{f": {words}" if words else ""}'
    return Death("crash", how, container=name, log=LogWanted(name_of(pod), name, previous))
