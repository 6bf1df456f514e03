from __future__ import annotations

import dataclasses
import inspect
import pickle
from typing import Any

import pytest

from kubetorch_jupyter.compute import Compute
from kubetorch_jupyter.errors import ConfigError, UnsupportedError
from kubetorch_jupyter.image import Image
from kubetorch_jupyter.secret import Secret
from kubetorch_jupyter.volume import Volume

KUBETORCH = [
    "cpus",
    "memory",
    "disk_size",
    "gpus",
    "gpu_type",
    "gpu_memory",
    "priority_class_name",
    "namespace",
    "image",
    "labels",
    "annotations",
    "volumes",
    "node_selector",
    "service_template",
    "tolerations",
    "env_vars",
    "secrets",
    "freeze",
    "kubeconfig_path",
    "service_account_name",
    "image_pull_policy",
    "inactivity_ttl",
    "gpu_anti_affinity",
    "launch_timeout",
    "working_dir",
    "shared_memory_limit",
    "allowed_serialization",
    "replicas",
    "logging_config",
    "queue_name",
    "selector",
    "endpoint",
]
OURS = ["memory_limit", "concurrency", "unschedulable_timeout", "detach", "run_as_root"]

FULL: dict[str, Any] = {
    "cpus": 2,
    "memory": "2Gi",
    "disk_size": "10Gi",
    "gpus": 1,
    "gpu_type": "L4",
    "gpu_memory": "8Gi",
    "priority_class_name": "high",
    "namespace": "ml",
    "image": Image("i").pip_install("numpy").set_env_vars({"A": "1"}),
    "labels": {"team": "ml"},
    "annotations": {"note": "any text at all"},
    "volumes": [Volume("data", "1Gi"), "other"],
    "node_selector": {"disk": "ssd"},
    "service_template": {"spec": {"template": {"spec": {"hostNetwork": True, "x": [1, {"y": 2}]}}}},
    "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"}],
    "env_vars": {"HF_TOKEN": "hunter2", "N": 1},
    "secrets": ["aws", Secret("db", values={"password": "hunter2"})],
    "freeze": True,
    "kubeconfig_path": "~/.kube/other",
    "service_account_name": "sa",
    "image_pull_policy": "Always",
    "inactivity_ttl": "30m",
    "gpu_anti_affinity": True,
    "launch_timeout": 60,
    "working_dir": "/srv",
    "shared_memory_limit": "512Mi",
    "allowed_serialization": ["pickle", "json"],
    "replicas": 2,
    "logging_config": {"level": "info"},
    "queue_name": "q",
    "memory_limit": "4Gi",
    "concurrency": 1,
    "unschedulable_timeout": 30,
    "detach": True,
    "run_as_root": True,
}


def test_parameters_and_order_are_kubetorchs_and_then_ours() -> None:
    parameters = inspect.signature(Compute).parameters
    assert list(parameters) == KUBETORCH + OURS
    assert parameters["launch_timeout"].default == 900
    assert parameters["replicas"].default == 1
    assert parameters["concurrency"].default == 64


def test_it_is_a_value() -> None:
    one, two = Compute(**FULL), Compute(**FULL)
    assert one == two
    assert hash(one) == hash(two)
    assert pickle.loads(pickle.dumps(one)) == one
    assert dataclasses.replace(one) == one
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.cpus = 3  # type: ignore[misc]
    assert Compute(**dict.fromkeys(FULL)) == Compute()


def test_what_it_was_made_from_may_change() -> None:
    env = {"A": "1"}
    compute = Compute(env_vars=env)
    env["A"] = "2"
    assert compute.env() == {"A": "1"}
    compute.env()["A"] = "3"
    assert compute.env() == {"A": "1"}


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"cpus": "500m"}, {"cpus": 0.5}),
        ({"memory": "2Gi"}, {"memory": "2048Mi"}),
        ({"gpus": "1"}, {"gpus": 1}),
        ({"gpus": 0}, {}),
        ({"labels": {}}, {}),
        ({"launch_timeout": "15m"}, {}),
    ],
)
def test_the_same_asked_for_in_two_ways(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert Compute(**one) == Compute(**two)
    assert hash(Compute(**one)) == hash(Compute(**two))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cpus", "lots"),
        ("cpus", -1),
        ("memory", "2GB"),
        ("memory", "4"),
        ("disk_size", "big"),
        ("gpus", -1),
        ("gpus", "half"),
        ("gpus", 0.5),
        ("gpu_type", "two words"),
        ("gpu_memory", 0),
        ("priority_class_name", "Not OK"),
        ("namespace", "Not_OK"),
        ("image", 3),
        ("image", "two words"),
        ("labels", ["a"]),
        ("labels", {"a": "b c"}),
        ("annotations", "a"),
        ("volumes", "data"),
        ("volumes", [3]),
        ("node_selector", {"": "x"}),
        ("service_template", []),
        ("tolerations", [{"keys": "x"}]),
        ("tolerations", {"key": "x"}),
        ("env_vars", {"A": None}),
        ("secrets", "aws"),
        ("secrets", [3]),
        ("freeze", "yes"),
        ("kubeconfig_path", 3),
        ("service_account_name", "A"),
        ("image_pull_policy", "Sometimes"),
        ("inactivity_ttl", "soon"),
        ("gpu_anti_affinity", 1),
        ("launch_timeout", 0),
        ("working_dir", "relative"),
        ("shared_memory_limit", "x"),
        ("allowed_serialization", ["yaml"]),
        ("allowed_serialization", []),
        ("replicas", 0),
        ("queue_name", ""),
        ("memory_limit", "x"),
        ("concurrency", 0),
        ("unschedulable_timeout", "x"),
        ("detach", 1),
        ("run_as_root", "no"),
    ],
)
def test_nonsense_is_one_clear_error(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"(?s)Compute: {name}|Image") as caught:
        Compute(**{name: value})
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_what_contradicts() -> None:
    with pytest.raises(ConfigError, match="more than memory_limit"):
        Compute(memory="2Gi", memory_limit="1Gi")
    with pytest.raises(ConfigError, match="needs gpus="):
        Compute(gpu_type="L4")
    with pytest.raises(TypeError, match="cpu"):
        Compute(cpu=1)  # type: ignore[call-arg]


def test_parsed_values() -> None:
    compute = Compute(**FULL)
    assert compute.cpus == 2
    assert (compute.memory_bytes, compute.memory_limit_bytes) == (2 * 2**30, 4 * 2**30)
    assert compute.gpu_count == 1
    assert compute.gpu_selector == {"nvidia.com/gpu.product": "L4"}
    assert compute.ttl_seconds == 1800
    assert compute.unschedulable_seconds == 30
    assert compute.env() == {"HF_TOKEN": "hunter2", "N": "1"}
    assert Compute().memory_bytes is Compute().memory_limit_bytes is None
    assert Compute().gpu_count == 0
    assert Compute(gpu_memory="4Gi").gpu_count == 1
    assert Compute(gpus=1, gpu_type="cloud.io/gpu: A100").gpu_selector == {"cloud.io/gpu": "A100"}
    assert Compute().gpu_selector == {}
    assert Compute(launch_timeout=5).unschedulable_seconds == 5


def test_the_launch_timeout_is_the_settings_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KT_LAUNCH_TIMEOUT", "30")
    assert (Compute().launch_seconds, Compute().unschedulable_seconds) == (30, 30)
    assert Compute(launch_timeout=5).launch_seconds == 5
    assert Compute(cpus="500m", gpu_memory="4Gi").resources() == {"cpus": 0.5, "gpus": 1, "gpu_memory": "4Gi"}
    assert Compute(image="python:3.12").image == Image(image_id="python:3.12")


def test_ttl() -> None:
    assert Compute().ttl_seconds is None
    assert Compute(detach=True).ttl_seconds == 4 * 3600
    assert Compute(detach=True, inactivity_ttl="never").ttl_seconds is None
    assert Compute(inactivity_ttl=90).ttl_seconds == 90


def test_what_needs_a_new_pod() -> None:
    base = Compute(cpus=1)
    for same in (
        base.replace(env_vars={"A": "1"}, concurrency=1, launch_timeout=5, inactivity_ttl="1h", working_dir="/x"),
        base.replace(image=Image("named").set_env_vars({"A": "1"})),
    ):
        assert same.pod_key() == base.pod_key()
        assert same != base
    for other in (
        base.replace(cpus=2),
        base.replace(gpus=1),
        base.replace(detach=True),
        base.replace(memory_limit="1Gi"),
    ):
        assert other.pod_key() != base.pod_key()
    assert base.replace(image=Image().pip_install("x")).pod_key() != base.pod_key()
    hash(Compute(**FULL).pod_key())


def test_reprs_show_what_was_asked_for_and_no_secret() -> None:
    compute = Compute(**FULL)
    for text in (repr(compute), compute._repr_html_()):
        assert "hunter2" not in text
        assert "HF_TOKEN" in text
        assert "2Gi" in text
    assert repr(Compute()) == "Compute()"
    assert repr(Compute(cpus="500m", gpus="1")) == "Compute(cpus=0.5, gpus=1)"
    assert "&lt;b&gt;" in Compute(annotations={"x": "<b>"})._repr_html_()


def test_replace_names_what_there_isnt() -> None:
    with pytest.raises(ConfigError, match="has no cpu"):
        Compute().replace(cpu=1)


def test_what_this_version_has_not() -> None:
    for call in (
        lambda: Compute().distribute("pytorch", workers=2),
        lambda: Compute().autoscale(min_scale=1),
        lambda: Compute.from_manifest({}),
        lambda: Compute(selector={"app": "x"}),
        lambda: Compute(endpoint=object()),
    ):
        with pytest.raises(UnsupportedError, match=r"not part of this version: \w") as caught:
            call()
        assert isinstance(caught.value, NotImplementedError)


def test_what_is_on_the_service_instead() -> None:
    with pytest.raises(AttributeError, match=r"\.service"):
        Compute().ssh()
    assert not hasattr(Compute(), "pods")
    assert not hasattr(Compute(), "_ipython_display_")
    assert not hasattr(Compute(), "no_such_thing")
