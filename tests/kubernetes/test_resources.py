"""What to write where a namespace demands it: the words of a real cluster, and that what they lead to is enough."""

from __future__ import annotations

from typing import Any

import pytest

from kubetorch_jupyter.backends.kubernetes.diagnosis import Diagnosis, Facts, diagnose
from kubetorch_jupyter.backends.kubernetes.manifests import job
from kubetorch_jupyter.compute import Compute
from kubetorch_jupyter.errors import PodContainerError, ResourceNotAvailableError
from tests.kubernetes.plans import plan

AT = 1795777710.0


def _told(words: str, compute: dict[str, Any], *, known: bool = True) -> Diagnosis:
    """The diagnosis of a Job whose pod was refused with these words."""
    made = {**job(plan(Compute(**compute))), "status": {}}
    made["metadata"]["uid"] = "u"
    made["spec"]["suspend"] = False
    if not known:
        del made["spec"]["template"]
    event = {
        "involvedObject": {"kind": "Job", "name": made["metadata"]["name"], "uid": "u"},
        "reason": "FailedCreate",
        "message": f"Error creating: {words}",
        "lastTimestamp": "2026-11-27T11:08:30Z",
    }
    return diagnose(Facts("train", "team-a"), made, [], [event], now=AT)


def _added(message: str) -> dict[str, Any]:
    """The keywords that a message says to write."""
    code = message.rpartition("kt.Compute")[2].partition(": ")[2].removesuffix(".")
    found: dict[str, Any] = eval(f"dict({code})")
    return found


def _resources(compute: dict[str, Any]) -> dict[str, dict[str, dict[str, str]]]:
    containers = job(plan(Compute(**compute)))["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each.get("resources") or {} for each in containers}


_QUOTA = 'pods "train-0-x" is forbidden: failed quota: q: must specify '
_LIMITS = "limits.cpu for: front,worker; limits.memory for: front,worker"
_ALL = f"{_LIMITS}; requests.cpu for: worker; requests.memory for: worker"


@pytest.mark.parametrize(
    ("demanded", "compute", "says"),
    [
        (_ALL, {}, ["cpus", "memory", "memory_limit", "service_template"]),
        ("requests.memory for: worker", {"cpus": "1"}, ["memory"]),
        ("cpu for: worker; memory for: worker", {}, ["cpus", "memory"]),
        ("limits.memory for: front", {"memory_limit": "1Gi"}, ["service_template"]),
        (_LIMITS, {"cpus": 8, "memory": "64Gi"}, ["memory_limit", "service_template"]),
        # As older clusters have it.
        ("limits.cpu,limits.memory,requests.cpu", {"memory": "4Gi"}, ["cpus", "memory_limit", "service_template"]),
    ],
)
def test_a_quota_that_demands_more_is_satisfied_by_what_the_message_says(
    demanded: str, compute: dict[str, Any], says: list[str]
) -> None:
    found = _told(_QUOTA + demanded, compute)
    assert isinstance(found.error, ResourceNotAvailableError)
    assert found.error.reason == "FailedQuota"
    assert f"pods must say {demanded}" in str(found.error)
    added = _added(str(found.error))
    assert sorted(added) == says
    # It goes together with what was asked for: `Compute` would refuse a limit below the request.
    resources = _resources({**compute, **added})
    for part in demanded.split(";"):
        what, _, whose = part.partition(" for: ")
        for container in whose.split(",") if whose else ["front", "worker"]:
            for name in what.split(","):
                kind, dot, resource = name.strip().partition(".")
                assert resources[container][kind if dot else "requests"][resource if dot else kind]
    assert resources["front"]["requests"] == {"cpu": "20m", "memory": "96Mi"}, "ours stays"
    for container in resources.values():
        limits = container.get("limits") or {}
        if "cpu" in limits:
            assert float(limits["cpu"]) >= 1
    if compute.get("cpus") == 8:
        assert resources["worker"]["limits"] == {"cpu": "8", "memory": "64Gi"}


_INVALID = (
    'Pod "train-0-x" is invalid: spec.containers[{}].resources.requests: Invalid value: "{}": '
    "must be less than or equal to {}"
)
_RANGE = 'pods "train-0-x" is forbidden: '


def test_a_default_limit_below_what_is_asked_for() -> None:
    found = _told(_INVALID.format(1, "512Mi", "memory limit of 256Mi"), {"memory": "512Mi"})
    assert isinstance(found.error, ResourceNotAvailableError)
    assert (found.kind, found.error.reason) == ("limits", "LimitRange")
    message = str(found.error)
    assert 'container "worker" asks for 512Mi of memory' in message
    assert "must be less than or equal to memory limit of 256Mi" in message
    assert "ask for less with kt.Compute(memory=...)" in message
    assert _added(message) == {"memory_limit": "512Mi"}

    message = str(_told(_INVALID.format(1, "1980m", "cpu limit of 500m"), {"cpus": 2}).error)
    assert _resources({"cpus": 2, **_added(message)})["worker"]["limits"] == {"cpu": "2"}

    message = str(_told(_INVALID.format(0, "96Mi", "memory limit of 64Mi"), {}).error)
    assert "ask for less" not in message, "nobody has asked for the front's"
    assert _resources(_added(message))["front"]["limits"] == {"memory": "512Mi"}


def test_a_limit_of_ones_own_below_the_request_is_no_limit_ranges() -> None:
    template = {
        "spec": {"template": {"spec": {"containers": [{"name": "worker", "resources": {"limits": {"cpu": 1}}}]}}}
    }
    found = _told(_INVALID.format(1, "1980m", "cpu limit of 1"), {"cpus": 2, "service_template": template})
    assert isinstance(found.error, PodContainerError)
    assert "service_template" in str(found.error)


def test_less_than_the_minimum() -> None:
    words = f"{_RANGE}minimum cpu usage per Container is 100m, but request is 20m"
    message = str(_told(words, {"cpus": 1}).error)
    assert "minimum cpu usage per Container is 100m, but request is 20m" in message
    assert _resources({"cpus": 1, **_added(message)})["front"]["requests"] == {"cpu": "100m", "memory": "96Mi"}

    # What is asked for is the pod's: the worker gets it without the front's part.
    words = f"{_RANGE}minimum cpu usage per Container is 500m, but request is 380m"
    message = str(_told(words, {"cpus": "0.4"}).error)
    assert _added(message) == {"cpus": "0.52"}
    assert _resources(_added(message))["worker"]["requests"] == {"cpu": "500m"}


def test_more_than_the_maximum() -> None:
    words = f"{_RANGE}maximum memory usage per Container is 1Gi, but limit is 2Gi"
    message = str(_told(words, {"memory_limit": "2Gi"}).error)
    assert "ask for at most 1Gi of memory (memory_limit=...)" in message

    words = f"{_RANGE}maximum memory usage per Pod is 4Gi.  No limit is specified"
    message = str(_told(words, {"memory": "1Gi"}).error)
    assert "(together at most 4Gi of memory)" in message
    resources = _resources({"memory": "1Gi", **_added(message)})
    assert [resources[name]["limits"] for name in ("front", "worker")] == [{"memory": "512Mi"}, {"memory": "2Gi"}]


def test_a_ratio() -> None:
    ratio = "memory max limit to request ratio per Container is 2, but"
    words = f"{_RANGE}[{ratio} no limit is specified or limit is 0, {ratio} provided ratio is 4.000000]"
    compute = {"memory": "256Mi", "memory_limit": "1Gi"}
    message = str(_told(words, compute).error)
    assert message.count("the limit of memory may be 2 times the request") == 1
    assert _resources({**compute, **_added(message)}) == {
        "front": {"requests": {"cpu": "20m", "memory": "96Mi"}, "limits": {"memory": "96Mi"}},
        "worker": {"requests": {"memory": "256Mi"}, "limits": {"memory": "256Mi"}},
    }


@pytest.mark.parametrize(
    "words",
    [
        _QUOTA + "limits.cpu",
        _INVALID.format(1, "1", "cpu limit of 500m"),
        f"{_RANGE}minimum cpu usage per Container is 100m, but request is 20m",
    ],
)
def test_a_job_of_which_nothing_is_known_gets_a_reason_all_the_same(words: str) -> None:
    found = _told(words, {}, known=False)
    assert isinstance(found.error, ResourceNotAvailableError)
