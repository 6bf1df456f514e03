"""What the cluster says becomes the right error, at the right time, in words that help: recorded on a real cluster."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kubetorch_jupyter.backends.kubernetes.diagnosis import Facts, death, diagnose, expired
from kubetorch_jupyter.errors import (
    DeployError,
    ImagePullError,
    PodContainerError,
    ResourceNotAvailableError,
    SecretNotFound,
)
from kubetorch_jupyter.progress import Phase

from .recordings import RECORDED, diagnosed
from .test_deaths import ENDS

SCHEDULING, IMAGE, STARTING = Phase.SCHEDULING, Phase.IMAGE, Phase.STARTING


class Case(NamedTuple):
    """A recorded situation, and what is to be made of it."""

    name: str
    phase: Phase
    kind: str
    error: type[DeployError]
    #: Waiting can't cure it.
    fatal: bool
    #: What the error must say, and what the progress line.
    says: Sequence[str]
    line: str


UNSCHEDULABLE = (SCHEDULING, "unschedulable", ResourceNotAvailableError, False)
CASES = [
    Case(
        "unschedulable-gpu",
        *UNSCHEDULABLE,
        ["Insufficient nvidia.com/gpu", "asks for 4 nvidia.com/gpu", "unschedulable_timeout"],
        "0/1 nodes are available: 1 Insufficient nvidia.com/gpu; each pod asks for 4 nvidia.com/gpu, 0.07 CPUs and "
        "160Mi of memory",
    ),
    Case(
        "unschedulable-cpu",
        *UNSCHEDULABLE,
        ["1 Insufficient cpu, 1 Insufficient memory", "64.02 CPUs and 1Ti of memory"],
        "1 Insufficient cpu",
    ),
    Case(
        "unschedulable-selector",
        *UNSCHEDULABLE,
        ["didn't match Pod's node affinity/selector", "on a node with nvidia.com/gpu.product=L4"],
        "on a node with nvidia.com/gpu.product=L4",
    ),
    Case(
        "replicas-2-of-3",
        *UNSCHEDULABLE,
        ["Insufficient nvidia.com/gpu", "each pod asks for 1 nvidia.com/gpu"],
        "2 of 3 pods run; 0/1 nodes are available",
    ),
    Case("gated", SCHEDULING, "gated", ResourceNotAvailableError, False, ["example.com/wait"], "scheduling gate"),
    Case(
        "queue",
        SCHEDULING,
        "queue",
        ResourceNotAvailableError,
        False,
        ["waiting in queue gpu-queue", "kubectl describe localqueue gpu-queue", "unschedulable_timeout"],
        "waiting in queue gpu-queue",
    ),
    Case(
        "claim-missing",
        SCHEDULING,
        "volume",
        PodContainerError,
        True,
        ['PersistentVolumeClaim) "nothing"', "namespace team-a", "kt.Volume"],
        'persistentvolumeclaim "nothing" not found',
    ),
    Case(
        "claim-unbound",
        SCHEDULING,
        "volume",
        PodContainerError,
        False,
        ["unbound immediate PersistentVolumeClaims", "storage class", "launch_timeout"],
        "unbound immediate PersistentVolumeClaims",
    ),
    # images
    Case("image-not-found", IMAGE, "image", ImagePullError, True, ["r-missing/train:1", "not found", "tag"], "found"),
    Case("image-not-found-backoff", IMAGE, "image", ImagePullError, True, ["r-missing/train:1", "tag"], "not found"),
    Case("image-unauthorized", IMAGE, "image", ImagePullError, True, ["401", "imagePullSecrets"], "401 Unauthorized"),
    Case("image-forbidden", IMAGE, "image", ImagePullError, True, ["403", "imagePullSecrets"], "403 Forbidden"),
    Case("image-invalid-name", IMAGE, "image", ImagePullError, True, ["must be lowercase", "registry/"], "lowercase"),
    Case("image-never", IMAGE, "image", ImagePullError, True, ['image_pull_policy="Never"'], "pull policy of Never"),
    Case("image-registry-503", IMAGE, "image", ImagePullError, False, ["503", "launch_timeout"], "503 Service"),
    Case("image-registry-503-backoff", IMAGE, "image", ImagePullError, False, ["503", "registry"], "503 Service"),
    Case("image-rate-limit", IMAGE, "image", ImagePullError, False, ["429 Too Many Requests"], "429 Too Many"),
    Case("image-refused-connection", IMAGE, "image", ImagePullError, False, ["connection refused"], "refused"),
    # containers
    Case(
        "crash-python",
        STARTING,
        "crash",
        PodContainerError,
        True,
        ['container "front" ended with exit code 1', "\n    ModuleNotFoundError: No module named 'nothing_of", "logs"],
        'container "front" ended with exit code 1: ModuleNotFoundError',
    ),
    Case(
        "crash-worker",
        STARTING,
        "crash",
        PodContainerError,
        True,
        ['container "worker" ended with exit code 3', "\n    about to fail"],
        "exit code 3: about to fail",
    ),
    Case("crash-backoff", STARTING, "crash", PodContainerError, True, ["exit code 3, 2 times now", "--prev"], "code 3"),
    Case("crash-signal", STARTING, "crash", PodContainerError, True, ["SIGSEGV (exit code 139)"], "SIGSEGV"),
    Case(
        "no-python",
        STARTING,
        "python",
        PodContainerError,
        True,
        ["kt.local/bare:1", "this image has no Python (exit code 127)", "python_path"],
        "this image has no Python",
    ),
    Case("old-python", STARTING, "python", PodContainerError, True, ["Python 3.9 is too old", "3.10"], "too old"),
    Case(
        "run-as-root",
        STARTING,
        "root",
        PodContainerError,
        True,
        ["container has runAsNonRoot and image will run as root", "run_as_root=True", "runAsUser"],
        "image will run as root",
    ),
    Case("no-shell", STARTING, "command", PodContainerError, True, ["has no /bin/nothing"], "has no /bin/nothing"),
    Case("no-shell-backoff", STARTING, "command", PodContainerError, True, ["has no /bin/nothing"], "/bin/nothing"),
    Case(
        "oom-start",
        STARTING,
        "oom",
        PodContainerError,
        True,
        ['container "worker" was OOMKilled (limit 128Mi, request 64Mi)', "memory_limit"],
        "limit 128Mi, request 64Mi",
    ),
    # cgroup v1: only a child was killed, and the container's own exit code is 0.
    Case("oom-child-exit-0", STARTING, "oom", PodContainerError, True, ["limit 128Mi"], "OOMKilled"),
    Case("secret-missing-env", STARTING, "secret", SecretNotFound, True, ['Secret "nosuch"', "team-a"], "nosuch"),
    Case("secret-missing-volume", STARTING, "secret", SecretNotFound, True, ['Secret "nosuch"'], "nosuch"),
    Case("secret-key-missing", STARTING, "secret", SecretNotFound, True, ['"absent" of the Secret "there"'], "absent"),
    Case("configmap-key-missing", STARTING, "configmap", PodContainerError, True, ['ConfigMap "therec"'], "absent"),
    Case("configmap-missing-volume", STARTING, "configmap", PodContainerError, True, ['ConfigMap "nosuch"'], "nosuch"),
    # pods that can't be made
    Case(
        "quota-alone",
        SCHEDULING,
        "quota",
        ResourceNotAvailableError,
        True,
        ['quota "team"', "requests.nvidia.com/gpu=2", "limited to requests.nvidia.com/gpu=1", "One pod alone"],
        'over the quota "team"',
    ),
    Case(
        "quota-replicas",
        SCHEDULING,
        "quota",
        ResourceNotAvailableError,
        True,
        ["used requests.nvidia.com/gpu=1", "fewer replicas", "%kt services"],
        'of 2 pods run; is over the quota "team"',
    ),
    Case("quota-unsaid", SCHEDULING, "quota", ResourceNotAvailableError, True, ["limits.cpu", "say"], "limits.cpu"),
    Case("limit-range", SCHEDULING, "limits", ResourceNotAvailableError, True, ["is 1Gi, but limit is 2Gi"], "1Gi"),
    Case(
        "limit-default",
        SCHEDULING,
        "limits",
        ResourceNotAvailableError,
        True,
        ["must be less than or equal to memory limit of 256Mi", 'memory_limit="512Mi"'],
        "than a LimitRange of its namespace gives",
    ),
    Case(
        "pod-security",
        SCHEDULING,
        "policy",
        PodContainerError,
        True,
        ['violates PodSecurity "restricted', "pod-security.kubernetes.io/enforce=restricted"],
        "violates PodSecurity",
    ),
    Case(
        "admission-policy",
        SCHEDULING,
        "policy",
        PodContainerError,
        True,
        ['a policy of this cluster, "team.example.com": pods need the label cost-centre'],
        "pods need the label cost-centre",
    ),
    Case("account-missing", SCHEDULING, "account", PodContainerError, True, ['account "nobody"', "_name="], "nobody"),
    Case("priority-missing", SCHEDULING, "priority", PodContainerError, True, ['"golden"', "_class_name="], "golden"),
    Case("runtime-class-missing", SCHEDULING, "create", PodContainerError, True, ['RuntimeClass "nosuch"'], "nosuch"),
    # the Job
    Case("deadline", STARTING, "job", PodContainerError, True, ["DeadlineExceeded"], "longer than specified deadline"),
    Case("complete", STARTING, "ended", PodContainerError, True, ["exit code 0"], "ended by itself"),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_recorded(case: Case) -> None:
    seen = diagnosed(case.name)
    assert (seen.phase, seen.kind) == (case.phase, case.kind)
    assert case.line in seen.detail
    assert "\n" not in seen.detail
    if case.fatal:
        assert seen.curable is None
        error = seen.error
        assert error is not None
    else:
        assert seen.error is None
        assert seen.curable
        error = expired(seen, 2)
        assert "2 s" in str(error)
    assert type(error) is case.error
    for words in ('service "train"', *case.says):
        assert words in str(error)
    assert error.service == "train"
    assert error.reason == seen.reason != ""
    assert list(error.events) == list(seen.events)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.events) == (str(error), error.events)


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*.json")), ids=lambda path: path.stem)
def test_nothing_that_may_be_missing_is_needed(path: Path) -> None:
    """Whatever the API server leaves out, or gives as null, there is a diagnosis."""
    seen = json.loads(path.read_text())
    for place in list(_places(seen)):
        for cut in (None, "absent"):
            left = _without(seen, place, cut)
            pods, events = left.get("pods") or [], left.get("events") or []
            assert diagnose(Facts("train", "team-a"), left.get("job"), pods, events, now=0.0).phase
            for pod in pods:
                assert death(pod, events, now=0.0).error("train")


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        if isinstance(key, str):
            yield (*path, key)
        yield from _places(child, (*path, key))


def _without(value: dict[str, Any], path: tuple[Any, ...], cut: str | None) -> dict[str, Any]:
    copy: dict[str, Any] = pickle.loads(pickle.dumps(value))
    at: Any = copy
    for key in path[:-1]:
        at = at[key]
    if cut is None:
        at[path[-1]] = None
    else:
        del at[path[-1]]
    return copy


def test_every_recording_is_used() -> None:
    used = {case.name for case in CASES} | {f"died-{end.name}" for end in ENDS}
    assert {path.stem for path in RECORDED.glob("*.json")} == used | {"running", "image-pulling", "node-rejects"}
