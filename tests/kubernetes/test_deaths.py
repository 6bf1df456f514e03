"""Why a pod that served calls is gone, by what was recorded on a real cluster."""

from __future__ import annotations

import pickle
from typing import NamedTuple

import pytest

from kubetorch_jupyter.backends.kubernetes.diagnosis import LogWanted, death
from kubetorch_jupyter.errors import (
    PodLostError,
    PodTerminatedError,
)

from .recordings import api_time, recorded, unix


class End(NamedTuple):
    """A recorded end of a pod, and what is to be made of it."""

    name: str
    kind: str
    says: str
    container: str | None = None
    evicted: bool = False
    oom_killed: bool = False
    error: type[PodLostError] = PodTerminatedError


ENDS = [
    End("deleted", "deleted", "it was deleted"),
    End("deleted-gone", "deleted", "it was deleted"),
    End("drained", "drained", "its node is drained, or an autoscaler removes it", evicted=True),
    # Nothing is left then that would tell it from a deleted one.
    End("drained-gone", "deleted", "it was deleted"),
    End("preempted", "preempted", "by a pod of higher priority", evicted=True),
    End("preempted-gone", "preempted", "by a pod of higher priority", evicted=True),
    End("disk", "evicted", "it was evicted: Pod ephemeral local storage usage exceeds", evicted=True),
    End("oom", "oom", "ran out of memory (limit 128Mi, request 64Mi; kt.Compute(memory", "worker", oom_killed=True),
    End("exit-3", "crash", 'its container "front" ended with exit code 3: the front gives up', "front"),
    End("killed", "crash", 'its container "front" was ended by SIGKILL (exit code 137)', "front"),
    End("ttl", "ended", "ended by itself (exit code 0)", "front", error=PodLostError),
]


@pytest.mark.parametrize("end", ENDS, ids=[end.name for end in ENDS])
def test_recorded_end(end: End) -> None:
    seen = recorded(f"died-{end.name}")
    pod = seen["pods"][0] if seen["pods"] else None
    first = next(
        event["involvedObject"]["name"] for event in seen["events"] if "Pod" in event["involvedObject"]["kind"]
    )
    found = death(pod, seen["events"], name=first, now=seen["at"])
    assert (found.kind, found.container) == (end.kind, end.container)
    assert end.says in str(found.reason)
    error = found.error("train", "train/1")
    assert type(error) is end.error
    for words in ('service "train"', end.says):
        assert words in str(error)
    assert (error.service, error.call_id, error.reason) == ("train", "train/1", found.reason)
    if isinstance(error, PodTerminatedError):
        assert (error.evicted, error.oom_killed) == (end.evicted, end.oom_killed)
        assert error.events
        assert all(first in line for line in error.events)


def test_a_pod_that_lives_has_no_death() -> None:
    seen = recorded("running")
    found = death(seen["pods"][0], seen["events"], now=seen["at"])
    assert (found.kind, found.reason) == ("", None)
    assert type(found.error("train")) is PodLostError


def test_the_last_lines_of_a_container_that_crashed() -> None:
    seen = recorded("died-exit-3")
    found = death(seen["pods"][0], seen["events"], now=seen["at"])
    assert found.log == LogWanted(seen["pods"][0]["metadata"]["name"], "front")
    error = found.error("train", log="one\ntwo\n")
    assert str(error).endswith('The last lines of container "front":\n    one\n    two')
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_container_that_runs_again_is_told_of_for_a_while() -> None:
    seen = recorded("died-oom")
    status = next(s for s in seen["pods"][0]["status"]["containerStatuses"] if s["name"] == "worker")
    ended = status["state"].pop("terminated", None) or status["lastState"]["terminated"]
    status.update(lastState={"terminated": ended}, state={"running": {"startedAt": ended["finishedAt"]}})
    at = unix(ended["finishedAt"])
    assert death(seen["pods"][0], seen["events"], now=at + 2).oom_killed
    assert death(seen["pods"][0], seen["events"], now=at + 3600).kind == ""


def test_who_heeds_the_end_of_its_pod_has_not_ended_by_itself() -> None:
    """A pod ends with exit code 0 when it is deleted, too; and its Job's TTL deletes one that ended by itself."""
    seen = recorded("died-ttl")
    pod = seen["pods"][0]
    ended = max(unix(status["state"]["terminated"]["finishedAt"]) for status in pod["status"]["containerStatuses"])
    pod["metadata"].update(deletionTimestamp=api_time(ended + 25), deletionGracePeriodSeconds=30)
    assert death(pod, seen["events"]).kind == "deleted"
    pod["metadata"].update(deletionTimestamp=api_time(ended + 35))
    assert death(pod, seen["events"]).kind == "ended"


@pytest.mark.parametrize(
    ("reason", "kind", "says"),
    [
        ("DeletionByTaintManager", "node", "taint"),
        ("DeletionByPodGC", "node", "its node is gone"),
        ("TerminationByKubelet", "evicted", "The node was low on resource: memory"),
        ("SomethingNew", "evicted", "SomethingNew"),
    ],
)
def test_other_disruptions(reason: str, kind: str, says: str) -> None:
    pod = recorded("running")["pods"][0]
    words = "The node was low on resource: memory." if kind == "evicted" and "Kubelet" in reason else ""
    pod["status"]["conditions"].append(
        {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": words}
    )
    found = death(pod, [])
    assert found.kind == kind
    assert says in str(found.reason)


def test_a_lost_node_is_told_by_events_where_the_pod_is_gone() -> None:
    events = [
        {"involvedObject": {"name": "a-0-x"}, "reason": reason, "message": words, "lastTimestamp": at}
        for reason, words, at in (
            ("NodeNotReady", "Node is not ready", "2026-11-27T11:00:00Z"),
            ("TaintManagerEviction", "Marking for deletion Pod team-a/a-0-x", "2026-11-27T11:05:00Z"),
        )
    ]
    found = death(None, events, name="a-0-x")
    assert (found.kind, found.reason) == ("node", "its node isn't ready any more")


def test_the_front_ends_the_pod_when_it_ends_by_itself() -> None:
    """The other container needs a moment more, and what another one does is no end."""
    ended, running = recorded("died-ttl"), recorded("running")
    front, worker = running["pods"][0]["status"]["containerStatuses"]
    assert (front["name"], worker["name"]) == ("front", "worker")
    last = ended["pods"][0]["status"]["containerStatuses"][0]["state"]
    front["state"] = last
    assert death(running["pods"][0], []).kind == "ended"
    front["state"], worker["state"] = worker["state"], last
    assert death(running["pods"][0], []).kind == ""


def test_a_lost_node_that_has_come_back() -> None:
    seen = recorded("running")
    pod = seen["pods"][0]
    said = {
        "involvedObject": {"name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]},
        "reason": "NodeNotReady",
        "message": "Node is not ready",
        "lastTimestamp": api_time(seen["at"]),
    }
    ready = next(known for known in pod["status"]["conditions"] if known["type"] == "Ready")
    ready.update(status="False", lastTransitionTime=api_time(seen["at"]))
    assert death(pod, [said]).reason == "its node node isn't ready any more"
    ready.update(status="True", lastTransitionTime=api_time(seen["at"] + 60))
    assert death(pod, [said]).kind == ""
    # Not ready for another reason, later.
    ready.update(status="False", lastTransitionTime=api_time(seen["at"] + 90))
    assert death(pod, [said]).kind == ""
