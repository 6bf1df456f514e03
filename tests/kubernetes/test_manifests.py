"""What is made of a `Compute`, compared with files.

``WRITE_GOLDEN=1 python -m pytest tests/kubernetes/test_manifests.py`` writes ``golden/*.yaml`` anew; read the diff
before you commit it. Each is a list of objects that ``kubectl apply --dry-run=server -n team-a -f`` takes.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubetorch_jupyter.backends.kubernetes import names
from kubetorch_jupyter.backends.kubernetes.manifests import (
    Plan,
    bundle_config_map,
    claims,
    effective,
    headless_service,
    job,
    newest,
    owner_reference,
    read_service,
    secret,
    spec_hash,
    user_secrets,
)
from kubetorch_jupyter.backends.kubernetes.secrets import SecretSource
from kubetorch_jupyter.compute import Compute
from kubetorch_jupyter.config import config
from kubetorch_jupyter.errors import ConfigError
from kubetorch_jupyter.image import Image
from kubetorch_jupyter.secret import Secret
from kubetorch_jupyter.volume import Volume

from .plans import IMAGE, plan

GOLDEN = Path(__file__).parent / "golden"
OWNERS = [{"apiVersion": "batch/v1", "kind": "Job", "name": "alice-train-0a1b2c3d", "uid": "6b0f7a3e"}]
BUNDLE = {"data": {"boot.py": "print('boot')\n"}, "binaryData": {"bundle.tar.xz": "/Td6WFoAAAQ="}}


def _bare() -> Plan:
    return plan()


def _resources() -> Plan:
    compute = Compute(
        cpus=2.5,
        memory="4Gi",
        memory_limit="8Gi",
        disk_size="20Gi",
        priority_class_name="high",
        labels={"team": "vision", names.OWNER: "not-so"},
        annotations={"example.org/cost-centre": "42"},
        node_selector={"zone": "b"},
        tolerations=[{"key": "spot", "operator": "Exists"}],
        service_account_name="trainer",
        image_pull_policy="IfNotPresent",
        shared_memory_limit="2Gi",
        inactivity_ttl="30m",
        concurrency=8,
    )
    return plan(compute)


def _gpus() -> Plan:
    compute = Compute(cpus=4, gpus=2, gpu_type="A100", gpu_memory="40Gi", replicas=2, queue_name="research")
    return plan(compute)


def _root() -> Plan:
    image = Image(image_id="example.org/tools:1.2", python_path="/opt/py/bin/python")
    return plan(Compute(image=image, run_as_root=True, gpu_anti_affinity=True), secrets=_sources())


def _sources() -> list[SecretSource]:
    return [
        SecretSource("openai", {"OPENAI_API_KEY": b"sk-1"}, {"OPENAI_API_KEY": "OPENAI_API_KEY"}),
        SecretSource(
            "aws",
            {"config": b"[default]\n", "credentials": b"[default]\n"},
            files={"~/.aws/config": "config", "~/.aws/credentials": "credentials"},
        ),
        SecretSource("tls", {"ca.pem": b"---"}, files={"/etc/tls/ca.pem": "ca.pem"}),
        SecretSource("database", existing=True),
    ]


def _secrets_and_volumes() -> Plan:
    volumes: list[str | Volume] = [
        Volume("datasets", "10Gi", storage_class="fast", access_mode="ReadWriteMany"),
        Volume("weights", mount_path="/models/", access_mode="ReadOnlyMany"),
        "scratch.big",
    ]
    return plan(Compute(volumes=volumes), secrets=_sources())


def _template() -> Plan:
    template = {
        "spec": {
            "activeDeadlineSeconds": 86400,
            "template": {
                "metadata": {"labels": {"sidecar.istio.io/inject": "false"}},
                "spec": {
                    "schedulerName": "kai-scheduler",
                    "imagePullSecrets": [{"name": "registry"}],
                    "securityContext": {"fsGroup": 2000},
                    "containers": [
                        {
                            "name": "kubetorch",
                            "env": [{"name": "NCCL_DEBUG", "value": "INFO"}, {"name": "TMPDIR", "value": "/scratch"}],
                            "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
                            "resources": {"limits": {"example.org/fpga": "1"}},
                        },
                        {"name": "front", "resources": {"limits": {"memory": "512Mi"}}},
                    ],
                    "initContainers": [{"name": "proxy", "image": "example.org/proxy:1", "restartPolicy": "Always"}],
                    "volumes": [
                        {"name": "scratch", "hostPath": {"path": "/mnt/scratch"}},
                        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
                    ],
                    "tolerations": [{"key": "maintenance", "operator": "Exists"}],
                },
            },
        }
    }
    return plan(Compute(gpu_memory="8Gi", service_template=template, tolerations=[{"key": "spot", "value": True}]))


CASES: dict[str, Callable[[], Plan]] = {
    "bare": _bare,
    "resources": _resources,
    "gpus": _gpus,
    "root": _root,
    "secrets-and-volumes": _secrets_and_volumes,
    "template": _template,
}


def _objects(made: Plan) -> list[dict[str, Any]]:
    """All of a service's, as the backend creates them."""
    return [
        job(made),
        headless_service(made, OWNERS),
        secret(made, "f" * 64, b"\0code", OWNERS),
        *user_secrets(made, OWNERS),
        bundle_config_map(made, BUNDLE, OWNERS),
        *claims(made),
    ]


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(value: str) -> yaml.ScalarNode:
    return yaml.ScalarNode("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, lambda _dumper, value: _text(value))


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    path = GOLDEN / f"{name}.yaml"
    text = yaml.dump_all(_objects(CASES[name]()), Dumper=_Dumper, sort_keys=False, width=120, explicit_start=True)
    if os.environ.get("WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    # As data: how YAML is laid out is PyYAML's to say.
    assert list(yaml.safe_load_all(text)) == list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def test_every_golden_file_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(CASES)


# What a golden file can't say: why it is so


def _pod(made: Plan) -> dict[str, Any]:
    spec: dict[str, Any] = job(made)["spec"]["template"]["spec"]
    return spec


def _named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(item for item in items if item["name"] == name)


def _worker(made: Plan) -> dict[str, Any]:
    return _named(_pod(made)["containers"], names.WORKER)


def _front(made: Plan) -> dict[str, Any]:
    return _named(_pod(made)["containers"], names.FRONT)


def _env(container: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item.get("value", "") for item in container["env"]}


def test_the_token_is_the_fronts_alone() -> None:
    for make in CASES.values():
        made = make()
        mounted = {c["name"]: [m["mountPath"] for m in c["volumeMounts"]] for c in _pod(made)["containers"]}
        assert names.SECRET_PATH in mounted["front"]
        assert names.SECRET_PATH not in mounted["worker"]
        secrets = [v["name"] for v in _pod(made)["volumes"] if v.get("secret", {}).get("secretName") == made.service]
        assert not {m["name"] for m in _worker(made)["volumeMounts"]} & set(secrets)
        assert "f" * 64 not in json.dumps(job(made))


def test_no_value_of_a_secret_is_in_the_job() -> None:
    made = plan(secrets=[SecretSource("a", {"K": b"hunter2"}, {"K": "K"})])
    assert "hunter2" not in json.dumps(job(made)) + repr(made.secrets)
    assert base64.b64encode(b"hunter2").decode() not in json.dumps(job(made))
    assert base64.b64decode(user_secrets(made)[0]["data"]["K"]) == b"hunter2"


@pytest.mark.parametrize(("cpus", "worker"), [("1", "980m"), ("2.02", "2"), ("100m", "80m"), ("50m", "50m")])
def test_cpus_are_what_the_pod_as_a_whole_asks_for(cpus: str, worker: str) -> None:
    front, other = job(plan(Compute(cpus=cpus)))["spec"]["template"]["spec"]["containers"]
    assert front["resources"]["requests"]["cpu"] == "20m"
    assert other["resources"]["requests"]["cpu"] == worker  # too little to share stays as it was asked for


def test_threads_follow_the_cpus_unless_the_user_says() -> None:
    assert _env(_worker(plan(Compute(cpus="300m"))))["OMP_NUM_THREADS"] == "1"
    assert _env(_worker(plan(Compute(cpus=3.2))))["MKL_NUM_THREADS"] == "4"
    assert "OMP_NUM_THREADS" not in _env(_worker(plan()))
    own = _env(_worker(plan(Compute(cpus=8, env_vars={"OMP_NUM_THREADS": 2}))))
    assert "OMP_NUM_THREADS" not in own
    assert own["MKL_NUM_THREADS"] == "8"
    image = Image(image_id=IMAGE).set_env_vars({"MKL_NUM_THREADS": 1})
    assert "MKL_NUM_THREADS" not in _env(_worker(plan(Compute(cpus=8, image=image))))


def test_the_users_variables_go_by_the_session() -> None:
    made = plan(Compute(env_vars={"API_TOKEN": "hunter2"}))
    assert "hunter2" not in json.dumps(_objects(made))


def test_a_secret_wins_over_a_variable_of_ours() -> None:
    worker = _worker(plan(secrets=[SecretSource("me", {"USER": b"bob"}, {"USER": "USER"})]))
    assert [item for item in worker["env"] if item["name"] == "USER"] == [
        {"name": "USER", "valueFrom": {"secretKeyRef": {"name": "alice-train-0a1b2c3d-me", "key": "USER"}}}
    ]


def test_gpus_are_the_workers() -> None:
    made = plan(Compute(gpus=2))
    assert _worker(made)["resources"] == {"requests": {"nvidia.com/gpu": "2"}, "limits": {"nvidia.com/gpu": "2"}}
    assert "nvidia.com/gpu" not in json.dumps(_front(made))
    assert {item["key"] for item in _pod(made)["tolerations"]} == {"nvidia.com/gpu", "dedicated"}
    assert "tolerations" not in _pod(plan())


def test_gpu_memory_is_one_gpu_or_a_share_of_one() -> None:
    whole = plan(Compute(gpu_memory="8Gi"))
    assert job(whole)["spec"]["template"]["metadata"]["annotations"]["gpu-memory"] == "8192"
    assert _worker(whole)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    template = {"spec": {"template": {"spec": {"schedulerName": "kai-scheduler"}}}}
    shared = plan(Compute(gpu_memory="8Gi", service_template=template))
    assert "resources" not in _worker(shared)
    assert _pod(shared)["tolerations"]
    both = plan(Compute(gpus=1, gpu_memory="8Gi", service_template=template))
    assert _worker(both)["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_a_volume_may_be_home_or_scratch_but_not_the_services_own() -> None:
    made = plan(Compute(volumes=[Volume("h", mount_path=names.HOME), Volume("t", mount_path="/tmp/")]))
    paths = [mount["mountPath"] for mount in _worker(made)["volumeMounts"]]
    assert sorted(paths) == sorted(set(paths))
    assert "home" not in {volume["name"] for volume in _pod(made)["volumes"]}


def test_replicas_know_each_other() -> None:
    arguments = _front(plan(Compute(replicas=2), service="3d"))["args"]
    peers = "3d-0a1b2c3d-0.s-3d:32300,3d-0a1b2c3d-1.s-3d:32300"
    assert arguments[arguments.index("--peers") + 1] == peers
    assert "--peers" not in _front(plan())["args"]
    made = plan(Compute(replicas=2), service="3d")
    assert _pod(made)["subdomain"] == headless_service(made)["metadata"]["name"] == "s-3d"


def test_a_file_whose_name_looks_like_a_reference_stays_as_it_is() -> None:
    source = SecretSource("odd", {"k": b""}, files={"~/.x/$(HOME)": "k"})
    assert "/kubetorch/home/.x/$$(HOME)" in _worker(plan(secrets=[source]))["args"]


def test_owner_reference_and_reading_back() -> None:
    made = plan(Compute(cpus=1, gpus=1, inactivity_ttl="90m", replicas=3))
    found = job(made)
    found["metadata"] |= {"uid": "u-1", "creationTimestamp": "2026-11-27T10:00:00Z"}
    assert owner_reference(found) == {"apiVersion": "batch/v1", "kind": "Job", "name": made.job_name, "uid": "u-1"}
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    pods: list[dict[str, Any]] = [
        {"metadata": {"labels": made.labels}, **ready},
        {"metadata": {"labels": made.labels}},
        {"metadata": {"labels": {**made.labels, names.REVISION: "ffffffff"}}, **ready},
        {"metadata": {"labels": made.labels, "deletionTimestamp": "2026-11-27T10:00:00Z"}, **ready},
    ]
    fields = read_service(found, pods)
    assert fields is not None
    assert (fields.name, fields.namespace, fields.revision) == ("alice-train", "team-a", "0a1b2c3d")
    assert fields.owner == made.owner
    assert fields.created == made.created
    assert fields.resources == {"cpus": 1.0, "gpus": 1}
    assert (fields.ttl, fields.replicas, fields.ready, fields.spec) == (5400.0, 3, 1, made.spec)
    assert (fields.deleting, fields.finished, fields.suspended) == (False, False, True)


def test_reading_what_is_not_ours_or_was_spoilt() -> None:
    assert read_service({}) is None
    assert read_service({"metadata": {"labels": {names.SERVICE: "x", names.REVISION: "r"}}}) is None
    spoilt = job(plan())
    spoilt["metadata"]["annotations"] = {names.OWNER: "{", names.CREATED: "soon", names.RESOURCES: "[]", names.TTL: "x"}
    fields = read_service(spoilt)
    assert fields is not None
    assert (fields.owner, fields.created, fields.resources, fields.ttl) == ({"user": "alice"}, 0.0, {}, None)
    assert fields.spec == ""


def test_the_newest_that_lives() -> None:
    def made(revision: str, at: str, **changes: Any) -> dict[str, Any]:
        found = job(plan(revision=revision))
        found["metadata"] |= {"creationTimestamp": at, **changes}
        return found

    old = made("aaaaaaaa", "2026-11-27T10:00:00Z")
    new = made("bbbbbbbb", "2026-11-27T11:00:00Z")
    going = made("cccccccc", "2026-11-27T12:00:00Z", deletionTimestamp="2026-11-27T12:01:00Z")
    assert newest([new, going, old]) is new
    assert newest([going]) is going
    assert newest([{"metadata": {"name": "theirs"}}]) is None


# What makes a new pod


def test_the_spec_hash_is_of_what_only_a_new_pod_can_change() -> None:
    base = spec_hash(Compute(cpus=1), "b")
    assert base == spec_hash(Compute(cpus="1000m", env_vars={"A": "1"}, concurrency=3, inactivity_ttl="1h"), "b")
    image = Image(image_id=IMAGE)
    steps = image.pip_install(["numpy"]).run_bash("true").set_env_vars({"A": "1"})
    assert spec_hash(Compute(image=image), "b") == spec_hash(
        Compute(image=steps, namespace="x", detach=True, kubeconfig_path="/k"), "b"
    )
    others = [
        spec_hash(Compute(cpus=1, image=Image(python_path="/py")), "b"),
        spec_hash(Compute(cpus=1), "c"),
        spec_hash(Compute(cpus=2), "b"),
        spec_hash(Compute(cpus=1, volumes=["v"]), "b"),
        spec_hash(Compute(cpus=1, secrets=["s"]), "b"),
        spec_hash(Compute(cpus=1, image=Image(image_id="x:1")), "b"),
        spec_hash(Compute(cpus=1, service_template={"spec": {"activeDeadlineSeconds": 3}}), "b"),
        spec_hash(Compute(cpus=1, labels={"a": "b"}), "b"),
    ]
    assert len({base, *others}) == len(others) + 1
    # The same in every process: an annotation outlives this one.
    assert base == "ae41fd5a1ff593a9"


def test_values_of_secrets_are_in_the_hash_only_under_a_key() -> None:
    def hashed(value: str, key: str | None) -> str:
        source = SecretSource("db", {"pw": value.encode()}, {"pw": "pw"})
        return spec_hash(Compute(secrets=[Secret("db", values={"pw": value})]), "b", secrets=[source], key=key)

    assert hashed("one", None) == hashed("two", None)
    assert hashed("one", "token") != hashed("two", "token")
    assert hashed("one", "token") != hashed("one", "another token")


def test_settings_fill_in_what_the_compute_leaves_open() -> None:
    config.set("image", "example.org/base:3")
    config.set("queue", "research")
    config.set("volumes", ["shared", "data"])
    config.set("inactivity_ttl", "2h")
    try:
        found = effective(Compute(volumes=[Volume("data", mount_path="/d")]))
        assert found.image is not None
        assert found.image.image_id == "example.org/base:3"
        assert found.queue_name == "research"
        assert found.volumes == (Volume("data", mount_path="/d"), "shared")
        assert found.ttl_seconds == 7200
        own = effective(Compute(image=Image(image_id="mine:1"), queue_name="q", inactivity_ttl="never"))
        assert own.image is not None
        assert (own.image.image_id, own.queue_name, own.ttl_seconds) == ("mine:1", "q", None)
        assert effective(found) == found
    finally:
        for key in ("image", "queue", "volumes", "inactivity_ttl"):
            config.set(key, None)


# The user's own part of the manifest


def _refused(template: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        job(plan(Compute(service_template=template)))
    return str(caught.value)


def _in_pod(**part: Any) -> dict[str, Any]:
    return {"spec": {"template": {"spec": part}}}


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ({"kind": "Deployment"}, "kind"),
        ({"metadata": {"name": "x"}}, "metadata.name"),
        ({"metadata": {"namespace": "x"}}, "metadata.namespace"),
        ({"metadata": None}, "metadata"),
        ({"metadata": {"labels": {names.SERVICE: "x"}}}, "metadata.labels.kubetorch.dev/service"),
        ({"metadata": {"labels": None}}, "metadata.labels"),
        ({"metadata": {"annotations": {names.SPEC: "x"}}}, "metadata.annotations.kubetorch.dev/spec"),
        ({"spec": None}, "spec"),
        ({"spec": {"parallelism": 3}}, "spec.parallelism"),
        ({"spec": {"suspend": False}}, "spec.suspend"),
        ({"spec": {"backoffLimit": 6}}, "spec.backoffLimit"),
        ({"spec": {"selector": {"matchLabels": {"a": "b"}}}}, "spec.selector"),
        ({"spec": {"template": {"metadata": {"labels": {names.REVISION: "x"}}}}}, "spec.template.metadata.labels"),
        (_in_pod(restartPolicy="Never"), "spec.template.spec.restartPolicy"),
        (_in_pod(shareProcessNamespace=True), "spec.template.spec.shareProcessNamespace"),
        (_in_pod(hostPID=True), "spec.template.spec.hostPID"),
        (_in_pod(subdomain="x"), "spec.template.spec.subdomain"),
        (_in_pod(containers=None), "spec.template.spec.containers"),
        (_in_pod(containers=[{"image": "x"}]), "spec.template.spec.containers"),
        (_in_pod(containers=["x"]), "spec.template.spec.containers"),
        (_in_pod(containers=[{"name": "istio", "image": "x"}]), "spec.template.spec.containers.istio"),
        (_in_pod(containers=[{"name": "worker", "command": ["x"]}]), "spec.template.spec.containers.worker.command"),
        (_in_pod(containers=[{"name": "kubetorch", "args": None}]), "spec.template.spec.containers.worker.args"),
        (_in_pod(containers=[{"name": "front", "livenessProbe": None}]), "containers.front.livenessProbe"),
        (_in_pod(containers=[{"name": "front", "ports": [{"name": "http", "containerPort": 1}]}]), "front.ports"),
        (_in_pod(containers=[{"name": "worker", "volumeMounts": None}]), "containers.worker.volumeMounts"),
        (_in_pod(containers=[{"name": "worker", "volumeMounts": ["x"]}]), "containers.worker.volumeMounts"),
        (
            _in_pod(
                containers=[{"name": "worker", "volumeMounts": [{"name": "secret", "mountPath": "/kubetorch/secret"}]}]
            ),
            "containers.worker.volumeMounts./kubetorch/secret",
        ),
        (_in_pod(volumes=[{"name": "secret", "emptyDir": {}}]), "spec.template.spec.volumes.secret"),
        (_in_pod(volumes=["x"]), "spec.template.spec.volumes"),
        ({"spec": "x"}, "spec"),
        ({"apiVersion": {"v": 1}}, "apiVersion"),
    ],
)
def test_a_template_that_would_break_the_service_is_refused(template: dict[str, Any], path: str) -> None:
    message = _refused(template)
    assert f"service_template: {path}" in message or path in message
    assert " can't be set: " in message


def test_a_template_that_says_the_same_changes_nothing() -> None:
    same = _in_pod(restartPolicy="OnFailure", containers=[{"name": "worker"}], volumes=[])
    assert job(plan(Compute(service_template=same))) == job(plan())


def test_a_template_may_take_away_what_is_not_needed() -> None:
    part = _in_pod(securityContext={"runAsUser": None, "runAsNonRoot": None}, enableServiceLinks=True)
    spec = _pod(plan(Compute(service_template=part)))
    assert "runAsUser" not in spec["securityContext"]
    assert spec["securityContext"]["fsGroup"] == 1000
    assert spec["enableServiceLinks"] is True


def test_a_second_volume_can_mount_the_token_nowhere() -> None:
    # The Secret under another volume's name: the boundary is the namespace, but not by mistake.
    part = _in_pod(containers=[{"name": "worker", "volumeMounts": [{"name": "secret", "mountPath": "/elsewhere"}]}])
    assert "token" in _refused(part)


def test_another_kind_of_volume_or_variable_takes_the_place_of_ours() -> None:
    claim = {"name": "tmp", "persistentVolumeClaim": {"claimName": "scratch"}}
    variable = {"name": "USER", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    made = plan(Compute(service_template=_in_pod(volumes=[claim], containers=[{"name": "worker", "env": [variable]}])))
    assert _named(_pod(made)["volumes"], "tmp") == claim
    assert _named(_worker(made)["env"], "USER") == variable
