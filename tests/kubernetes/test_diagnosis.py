"""What can't be seen in one recording: what comes before and after, several pods, other clusters' words."""

from __future__ import annotations

import json

import pytest

from kubetorch_jupyter.backends.kubernetes.diagnosis import Diagnosis, Facts, diagnose, expired
from kubetorch_jupyter.errors import (
    ImagePullError,
    ResourceNotAvailableError,
    SecretNotFound,
    ServiceNotFoundError,
    ServiceTimeoutError,
)
from kubetorch_jupyter.progress import Phase

from .recordings import api_time, diagnosed, recorded, unix

SCHEDULING, IMAGE, STARTING = Phase.SCHEDULING, Phase.IMAGE, Phase.STARTING


def test_a_pod_that_runs_is_connected_to() -> None:
    seen = diagnosed("running")
    assert (seen.phase, seen.detail, seen.running, seen.weight) == (Phase.CONNECTING, "", 1, 0)
    assert [diagnosed(name).state for name in ("running", "image-pulling", "gated", "no-python")] == [
        "running",
        "starting",
        "pending",
        "failed",
    ]


def test_an_image_on_its_way_is_named() -> None:
    seen = diagnosed("image-pulling")
    assert (seen.phase, seen.detail, seen.weight) == (IMAGE, '"registry.example.com/r-slow/train:1"', 0)


def test_a_pull_secret_that_is_not_there_is_named() -> None:
    seen = recorded("image-unauthorized")
    first = seen["events"][0]
    lacking = {
        **first,
        "reason": "FailedToRetrieveImagePullSecret",
        "message": "Unable to retrieve some image pull secrets (regcred); attempting to pull the image may fail.",
    }
    error = diagnosed("image-unauthorized", events=[*seen["events"], lacking]).error
    assert isinstance(error, ImagePullError)
    assert "401 Unauthorized" in str(error)
    assert "names the pull secret regcred, which isn't there: create it in namespace team-a" in str(error)
    # The kubelet tells it in an event only, which may come later.
    [pod] = seen["pods"]
    pod["spec"]["imagePullSecrets"] = [{"name": "regcred"}]
    error = diagnosed("image-unauthorized", pods=[pod]).error
    assert "the pull secret regcred stands for" in str(error)
    assert "that the secret is there" in str(error)


def test_nothing_is_there_yet() -> None:
    seen = diagnose(Facts("train"), None, [], [], now=0.0)
    assert (seen.phase, seen.weight) == (SCHEDULING, 0)
    error = expired(seen, 900)
    assert type(error) is ServiceTimeoutError
    assert isinstance(error, TimeoutError)
    assert "900 s (launch_timeout)" in str(error)


def test_a_released_job_without_pods_is_being_scheduled() -> None:
    seen = diagnosed("running", pods=[], events=[])
    assert (seen.phase, seen.weight) == (SCHEDULING, 0)


def test_a_job_that_its_deployer_has_not_released_has_no_reason() -> None:
    job = recorded("queue")["job"]
    job["metadata"]["labels"] = {}
    seen = diagnosed("queue", job=job)
    assert (seen.phase, seen.detail, seen.curable) == (SCHEDULING, "", None)
    later = diagnosed("queue", job=job, at=recorded("queue")["at"] + 60)
    assert later.kind == "suspended"
    assert not later.room


def test_kueues_own_words() -> None:
    job = recorded("queue")["job"]
    words = "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor default"
    workload = {"kind": "Workload", "name": f"job-{job['metadata']['name']}-1a2b3"}
    other = {"kind": "Workload", "name": "job-another-1a2b3"}
    events = [
        {"involvedObject": workload, "reason": "Pending", "message": words, "lastTimestamp": "2026-11-27T11:00:01Z"},
        {"involvedObject": other, "reason": "Pending", "message": "no", "lastTimestamp": "2026-11-27T11:00:02Z"},
    ]
    seen = diagnosed("queue", events=events)
    assert seen.detail == f"waiting in queue gpu-queue: {words}"
    assert seen.room


def test_a_queue_that_nobody_serves_says_so() -> None:
    seen = recorded("queue")
    later = diagnosed("queue", at=seen["at"] + 60)
    assert "is it installed here" in later.detail
    assert later.curable


def test_a_secret_made_just_now_is_waited_for() -> None:
    """A mount that failed once may only have been too early."""
    seen = recorded("secret-missing-volume")
    failed = [event for event in seen["events"] if event["reason"] == "FailedMount"]
    failed[-1].update(count=1, firstTimestamp=failed[-1]["lastTimestamp"])
    at = diagnosed("secret-missing-volume").error
    assert at is not None
    early = diagnosed("secret-missing-volume", events=failed, at=unix(failed[-1]["lastTimestamp"]) + 0.5)
    assert (early.kind, early.error) == ("volume", None)
    assert early.curable
    late = diagnosed("secret-missing-volume", events=failed, at=unix(failed[-1]["lastTimestamp"]) + 2)
    assert type(late.error) is SecretNotFound


def test_a_mount_that_has_come_right_is_forgotten() -> None:
    seen = recorded("running")
    pod = seen["pods"][0]
    failed = {
        "involvedObject": {"kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]},
        "reason": "FailedMount",
        "message": 'MountVolume.SetUp failed for volume "s" : secret "late" not found',
        "lastTimestamp": pod["metadata"]["creationTimestamp"],
        "count": 3,
    }
    assert diagnosed("running", events=[*seen["events"], failed]).phase is Phase.CONNECTING


def test_a_quota_that_the_last_revision_holds_is_waited_for() -> None:
    seen = diagnosed("quota-alone", Facts("train", quota_held=True))
    assert seen.error is None
    assert "last revision gives back" in str(expired(seen, 3))
    # It isn't the cluster that has no room.
    assert not seen.room


def test_pods_that_could_be_made_after_all() -> None:
    """The Job's event of a refusal stays: it counts only while pods are missing and none has been made since."""
    refused = recorded("quota-alone")["events"]
    made = recorded("running")
    job, pods = made["job"], made["pods"]
    for event in refused:
        event["involvedObject"] = {"kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
    assert diagnosed("running", events=[*refused, *made["events"]]).phase is Phase.CONNECTING
    later = {**refused[0], "reason": "SuccessfulCreate", "lastTimestamp": "2099-01-01T00:00:00Z"}
    seen = diagnose(Facts("train", replicas=2), job, pods, [*refused, later], now=made["at"])
    assert seen.error is None


@pytest.mark.parametrize(
    ("words", "fatal"),
    [
        ('Error creating: admission webhook "cost.example.com" denied the request: no GPU on Fridays', True),
        ('Error creating: Pod "a-0" is invalid: spec.containers[0].image: Required value', True),
        ('Error creating: pods "a-0" is forbidden: unable to create new content in namespace x because it is '
         "being terminated", True),
        ('Error creating: Internal error occurred: failed calling webhook "x": connection refused', False),
        ("Error creating: etcdserver: request timed out", False),
    ],
)  # fmt: skip
def test_other_refusals(words: str, fatal: bool) -> None:
    events = recorded("account-missing")["events"]
    events[0]["message"] = words
    seen = diagnosed("account-missing", events=events)
    assert (seen.error is not None, seen.curable is not None) == (fatal, not fatal)
    assert words.split(": ")[-1] in str(seen.error or seen.curable)


@pytest.mark.parametrize(
    ("words", "fatal"),
    [
        # Other runtimes and registries than the recorded ones.
        ('rpc error: code = Unknown desc = Error response from daemon: manifest for X not found: manifest unknown: '
         "manifest unknown", True),
        ('failed to pull and unpack image "X": failed to resolve reference "X": pull access denied, repository does '
         "not exist or may require authorization: server message: insufficient_scope: authorization failed", True),
        ('rpc error: code = NotFound desc = failed to pull and unpack image "X": no match for platform in manifest: '
         "not found", True),
        ('failed to do request: Head "https://r.example.com/v2/a/manifests/1": dial tcp: lookup r.example.com: no '
         "such host", False),
        ('failed to do request: Head "https://r.example.com/v2/a/manifests/1": dial tcp 10.0.0.1:443: i/o timeout',
         False),
        ("toomanyrequests: You have reached your unauthenticated pull rate limit", False),
        ("write /var/lib/containerd/io.containerd.content: no space left on device", False),
        ("unexpected status from HEAD request to https://r.example.com/v2/: 502 Bad Gateway", False),
        ("words that nobody knows", False),
    ],
)  # fmt: skip
def test_other_words_about_images(words: str, fatal: bool) -> None:
    pods = recorded("image-not-found")["pods"]
    for status in pods[0]["status"]["containerStatuses"]:
        if "waiting" in status["state"]:
            status["state"]["waiting"]["message"] = words.replace("X", status["image"])
    seen = diagnosed("image-not-found", pods=pods)
    assert seen.kind == "image"
    assert (seen.error is not None) is fatal


def test_an_images_name_says_nothing_of_its_fate() -> None:
    """``denied`` and ``timeout`` may be parts of a name."""
    seen = recorded("image-not-found")
    text = json.dumps(seen["pods"]).replace("r-missing/train:1", "timeout/access-denied:503")
    fatal = diagnosed("image-not-found", pods=json.loads(text)).error
    assert type(fatal) is ImagePullError
    assert "imagePullSecrets" not in str(fatal)


def test_the_log_is_asked_for_and_quoted() -> None:
    seen = diagnosed("crash-backoff")
    assert seen.log is not None
    assert (seen.log.container, seen.log.previous) == ("front", True)
    text = "".join(f"line {n}\n" for n in range(50))
    told = diagnosed("crash-backoff", Facts("train", logs={seen.log: text}))
    assert told.log is None
    assert str(told.error).endswith("\n    line 49")
    assert "line 40" in str(told.error)
    assert "line 39" not in str(told.error)
    # There was none to be had: that is not asked for again.
    assert diagnosed("crash-backoff", Facts("train", logs={seen.log: ""})).log is None


def test_the_lines_that_the_kubelet_has_kept_need_no_log() -> None:
    assert diagnosed("crash-python").log is None


def _restarted(lived: float, running: float, code: int = 1, restarts: int = 1) -> Diagnosis:
    """A front that ended after so many seconds, and runs again for so many."""
    seen = recorded("running")
    status = seen["pods"][0]["status"]["containerStatuses"][0]
    ended = api_time(seen["at"] - running)
    status["lastState"] = {
        "terminated": {
            "exitCode": code,
            "reason": "Error",
            "startedAt": api_time(seen["at"] - running - lived),
            "finishedAt": ended,
        }
    }
    status["state"] = {"running": {"startedAt": ended}}
    status["restartCount"] = restarts
    return diagnosed("running", pods=seen["pods"])


def test_a_crash_at_start_is_seen_though_the_container_runs_again() -> None:
    assert _restarted(lived=1, running=1).kind == "crash"


def test_a_crash_of_long_ago_counts_no_more() -> None:
    assert _restarted(lived=1, running=3600).phase is Phase.CONNECTING
    assert _restarted(lived=3600, running=1).phase is Phase.CONNECTING


def test_a_kill_from_outside_is_not_taken_for_a_broken_start() -> None:
    assert _restarted(lived=1, running=1, code=137).phase is Phase.CONNECTING
    assert _restarted(lived=1, running=1, code=137, restarts=3).error is not None


def test_the_worst_of_several_pods_is_told() -> None:
    running, gpu, image = (recorded(name) for name in ("running", "unschedulable-gpu", "image-not-found"))
    for index, seen in enumerate((running, gpu, image)):
        seen["pods"][0]["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": str(index)}
    pods = [running["pods"][0], gpu["pods"][0], image["pods"][0]]
    seen = diagnose(Facts("train", replicas=10), running["job"], pods, [], now=running["at"])
    assert type(seen.error) is ImagePullError
    assert seen.pod == image["pods"][0]["metadata"]["name"]
    assert seen.detail.startswith("1 of 10 pods run; can't have its image")
    seen = diagnose(Facts("train", replicas=10), running["job"], pods[:2], [], now=running["at"])
    assert (seen.kind, seen.error) == ("unschedulable", None)
    seen = diagnose(Facts("train", replicas=10), running["job"], pods[:1], [], now=running["at"])
    assert seen.detail == "1 of 10 pods run"


def test_a_pod_that_goes_away_is_waited_for_until_another_one_is_there() -> None:
    going, new = recorded("died-deleted"), recorded("running")
    seen = diagnose(Facts("train"), new["job"], going["pods"], [], now=going["at"])
    assert (seen.kind, seen.error) == ("deleted", None)
    seen = diagnose(Facts("train"), new["job"], [*new["pods"], *going["pods"]], [], now=new["at"])
    assert seen.phase is Phase.CONNECTING


def test_a_pod_that_its_node_refused() -> None:
    seen = diagnosed("node-rejects")
    assert (seen.kind, seen.reason, seen.error) == ("node", "OutOfnvidia.com/gpu", None)
    assert "requested: 9" in str(expired(seen, 1))


def test_more_disk_than_was_asked_for_is_not_waited_for() -> None:
    seen = diagnosed("died-disk")
    assert type(seen.error) is ResourceNotAvailableError
    assert "disk_size" in str(seen.error)


def test_a_node_that_is_not_heard_of() -> None:
    seen = recorded("running")
    pod = seen["pods"][0]
    for known in pod["status"]["conditions"]:
        if known["type"] == "Ready":
            known.update(status="False", lastTransitionTime=api_time(seen["at"]))
    said = {
        "involvedObject": {"kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]},
        "reason": "NodeNotReady",
        "message": "Node is not ready",
        "lastTimestamp": api_time(seen["at"]),
    }
    lost = diagnosed("running", pods=seen["pods"], events=[*seen["events"], said])
    assert (lost.kind, lost.error) == ("node", None)
    assert "node node, which isn't ready (Node is not ready)" in str(lost.curable)


def test_a_service_deleted_under_its_deploy() -> None:
    job = recorded("running")["job"]
    job["metadata"]["deletionTimestamp"] = "2026-11-27T11:00:00Z"
    assert type(diagnosed("running", job=job).error) is ServiceNotFoundError


def test_an_autoscaler_is_listened_to() -> None:
    seen = recorded("unschedulable-gpu")
    pod = seen["pods"][0]["metadata"]
    said = {
        "involvedObject": {"kind": "Pod", "name": pod["name"], "uid": pod["uid"]},
        "reason": "TriggeredScaleUp",
        "message": "pod triggered scale-up: [{gpu-pool 0->1 (max: 4)}]",
        "lastTimestamp": "2099-01-01T00:00:00Z",
    }
    assert "a node is being added" in diagnosed("unschedulable-gpu", events=[*seen["events"], said]).detail
    said.update(reason="NotTriggerScaleUp", message="pod didn't trigger scale-up: 1 max node group size reached")
    assert "no node will be added" in diagnosed("unschedulable-gpu", events=[*seen["events"], said]).detail


def test_events_of_others_are_left_out() -> None:
    others = recorded("image-not-found")["events"]
    seen = diagnosed("running", events=others)
    assert (seen.phase, list(seen.events)) == (Phase.CONNECTING, [])


def test_a_container_of_the_users_own_may_end() -> None:
    seen = recorded("running")
    done = {"name": "sidecar", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
    seen["pods"][0]["status"]["containerStatuses"].append(done)
    assert diagnosed("running", pods=seen["pods"]).phase is Phase.CONNECTING


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (
            "CreateContainerError",
            'failed to reserve container name "front_a": name "front_a" is reserved for "1a2b"',
        ),
        ("CreateContainerError", "context deadline exceeded"),
        ("RunContainerError", "failed to create containerd task: context deadline exceeded: unknown"),
        ("CreateContainerConfigError", "failed to sync secret cache: timed out waiting for the condition"),
    ],
)
def test_a_slow_node_is_waited_for(reason: str, words: str) -> None:
    seen = recorded("run-as-root")
    for status in seen["pods"][0]["status"]["containerStatuses"]:
        status["state"] = {"waiting": {"reason": reason, "message": words}}
    slow = diagnosed("run-as-root", pods=seen["pods"])
    assert (slow.phase, slow.reason, slow.error) == (Phase.STARTING, reason, None)
    assert slow.curable


@pytest.mark.parametrize(
    ("words", "fatal"),
    [
        ("nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1", True),
        ("failed to create containerd task: context deadline exceeded", False),
    ],
)
def test_other_errors_of_a_start(words: str, fatal: bool) -> None:
    seen = recorded("no-shell-backoff")
    text = json.dumps(seen["pods"])
    before = seen["pods"][0]["status"]["containerStatuses"][0]["lastState"]["terminated"]["message"]
    seen["pods"] = json.loads(text.replace(json.dumps(before), json.dumps(words)))
    found = diagnosed("no-shell-backoff", pods=seen["pods"])
    assert (found.kind, found.error is not None) == ("container", fatal)
    assert words in str(found.error or found.curable)


def test_what_a_claim_waits_for_is_told() -> None:
    seen = recorded("claim-unbound")
    claim = {"kind": "PersistentVolumeClaim", "name": "data"}
    words = 'storageclass.storage.k8s.io "nosuch" not found'
    said = {"involvedObject": claim, "reason": "ProvisioningFailed", "message": words}
    other = {"involvedObject": {**claim, "name": "other"}, "reason": "ProvisioningFailed", "message": "no"}
    assert diagnosed("claim-unbound", events=[*seen["events"], said, other]).detail.endswith(f"; {words}")


def test_pods_that_make_room_are_told_of() -> None:
    pods = recorded("unschedulable-gpu")["pods"]
    pods[0]["status"]["nominatedNodeName"] = "node-7"
    assert "making room on node node-7" in diagnosed("unschedulable-gpu", pods=pods).detail


def test_a_network_that_is_not_there_yet_is_waited_for() -> None:
    seen = recorded("secret-missing-volume")
    pod = seen["pods"][0]["metadata"]
    said = {
        "involvedObject": {"kind": "Pod", "name": pod["name"], "uid": pod["uid"]},
        "reason": "FailedCreatePodSandBox",
        "message": 'Failed to create pod sandbox: plugin type="calico" failed (add): connection is unauthorized',
        "lastTimestamp": "2099-01-01T00:00:00Z",
        "count": 5,
    }
    found = diagnosed("secret-missing-volume", events=[said])
    assert (found.kind, found.error) == ("sandbox", None)
    assert "waits for its network" in str(found.curable)
