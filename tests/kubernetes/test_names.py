"""Names, and the whole of what is made of any `Compute`, by Kubernetes' rules (RFC 1123, RFC 1035, labels)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubetorch_jupyter.backends.kubernetes import names
from kubetorch_jupyter.backends.kubernetes.manifests import (
    bundle_config_map,
    claims,
    headless_service,
    job,
    read_service,
    secret,
    spec_hash,
    user_secrets,
)
from kubetorch_jupyter.backends.kubernetes.secrets import SecretSource
from kubetorch_jupyter.compute import Compute
from kubetorch_jupyter.volume import Volume

from .plans import plan

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

_LABEL_1123 = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_1035 = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_PORT_NAME = re.compile(r"[a-z0-9-]{1,15}")

label_names = st.from_regex(_LABEL_1123, fullmatch=True)
subdomains = st.lists(label_names, min_size=1, max_size=4).map(".".join).filter(lambda text: len(text) <= 253)
values = st.from_regex(_VALUE, fullmatch=True)
keys = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", fullmatch=True)
revisions = st.from_regex(r"[0-9a-f]{8}", fullmatch=True)
sizes = st.integers(2**20, 2**50)
words = st.text(max_size=200)


def _is_subdomain(text: str) -> bool:
    return len(text) <= 253 and all(_LABEL_1123.fullmatch(part) for part in text.split("."))


@relaxed
@given(label_names, words)
def test_a_full_name_is_a_name_and_stays_when_it_is_made_again(name: str, username: str) -> None:
    found = names.full_name(name, username)
    assert _LABEL_1123.fullmatch(found)
    assert names.full_name(found, username) == found


@relaxed
@given(st.sampled_from(["alice", "Bob B.", "zoë", "42"]), st.text("ab-", min_size=64, max_size=90), words)
def test_long_names_that_begin_alike_stay_apart(username: str, name: str, other: str) -> None:
    if name != name + other:
        assert names.full_name(name, username) != names.full_name(name + other, username)


@relaxed
@given(label_names, revisions, st.integers(1, 10**6))
def test_host_names_of_all_replicas_are_valid(service: str, revision: str, replicas: int) -> None:
    found = names.job_name(service, revision, replicas)
    assert found.endswith(f"-{revision}")
    for index in (0, replicas - 1):
        assert _LABEL_1123.fullmatch(names.pod_host_name(found, index))
    assert _LABEL_1035.fullmatch(names.headless_name(service))


@relaxed
@given(words)
def test_label_values_are_valid(text: str) -> None:
    assert _VALUE.fullmatch(names.label_value(text))


@relaxed
@given(subdomains, subdomains)
def test_secrets_have_names(service: str, name: str) -> None:
    assert _is_subdomain(names.user_secret_name(names.cut(service, 60), name))


def test_selectors() -> None:
    assert names.our_selector() == "app.kubernetes.io/managed-by=kubetorch-jupyter"
    assert names.service_selector("a") == f"{names.our_selector()},kubetorch.dev/service=a"
    assert names.revision_selector("a", "r") == f"{names.service_selector('a')},kubetorch.dev/revision=r"
    assert names.service_of(job(plan())) == "alice-train"
    assert names.service_of({"metadata": {"labels": None}}) is None


def test_who_says_nothing_of_himself_has_no_notebook() -> None:
    found = names.labels("a", "r", {}, "1+2")
    assert found[names.OWNER] == "unknown"
    assert found[names.VERSION] == "1-2"
    assert names.NOTEBOOK not in found


computes = st.builds(
    Compute,
    cpus=st.none() | st.floats(0.001, 500),
    memory=st.none() | sizes,
    disk_size=st.none() | sizes,
    gpus=st.none() | st.integers(0, 16),
    gpu_memory=st.none() | sizes,
    priority_class_name=st.none() | subdomains,
    labels=st.dictionaries(keys, values, max_size=3),
    annotations=st.dictionaries(keys, words, max_size=3),
    volumes=st.lists(subdomains.flatmap(lambda n: st.sampled_from([n, Volume(n, "1Gi")])), max_size=3, unique_by=str),
    node_selector=st.dictionaries(keys, values, max_size=3),
    service_account_name=st.none() | subdomains,
    image_pull_policy=st.sampled_from([None, "Always", "IfNotPresent", "Never"]),
    inactivity_ttl=st.none() | st.floats(0.5, 1e9),
    gpu_anti_affinity=st.none() | st.booleans(),
    shared_memory_limit=st.none() | sizes,
    replicas=st.integers(1, 300),
    queue_name=st.none() | label_names,
    concurrency=st.integers(1, 1000),
    run_as_root=st.booleans(),
)


def _distinct(items: list[Any]) -> bool:
    return len(items) == len(set(items))


def _values_in(thing: Any) -> Iterator[Any]:
    if isinstance(thing, dict):
        for value in thing.values():
            yield from _values_in(value)
    elif isinstance(thing, list):
        for value in thing:
            yield from _values_in(value)
    else:
        yield thing


@relaxed
@given(computes, label_names, revisions, words, st.lists(subdomains, max_size=3, unique=True))
def test_any_compute_gives_valid_objects(
    compute: Compute, service: str, revision: str, user: str, secrets: list[str]
) -> None:
    names_of_volumes = [v.name if isinstance(v, Volume) else v for v in compute.volumes]
    if not _distinct(names_of_volumes):
        compute = compute.replace(volumes=())
    sources = [SecretSource(n, {"k": b"v"}, {f"V{i}": "k"}, {f"~/{i}": "k"}) for i, n in enumerate(secrets)]
    made = plan(compute, service=service, revision=revision, owner={"user": user, "notebook": user}, secrets=sources)
    found = job(made)
    objects = [
        found,
        headless_service(made),
        secret(made, "t"),
        *user_secrets(made),
        bundle_config_map(made, {"data": {}}),
        *claims(made),
    ]
    for thing in [*objects, found["spec"]["template"]]:
        metadata = thing["metadata"]
        for key, value in metadata["labels"].items():
            assert _VALUE.fullmatch(value), (key, value)
        assert all(isinstance(value, str) for value in metadata.get("annotations", {}).values())
        if "name" in metadata:
            assert _is_subdomain(metadata["name"])
        assert all(value is None or isinstance(value, (str, int, bool)) for value in _values_in(thing))
        assert None not in list(_values_in(thing))
    assert _LABEL_1035.fullmatch(objects[1]["metadata"]["name"])
    assert _distinct([(thing["kind"], thing["metadata"]["name"]) for thing in objects])

    spec = found["spec"]["template"]["spec"]
    assert _LABEL_1123.fullmatch(names.pod_host_name(found["metadata"]["name"], compute.replicas - 1))
    volumes = [volume["name"] for volume in spec["volumes"]]
    assert _distinct(volumes)
    assert all(_LABEL_1123.fullmatch(name) for name in volumes)
    for container in spec["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
        assert _distinct([mount["mountPath"] for mount in container["volumeMounts"]])
        assert _distinct([variable["name"] for variable in container["env"]])
        assert all(_PORT_NAME.fullmatch(port["name"]) for port in container.get("ports", ()))
    assert {name for container in spec["containers"] for name in _names_of_mounts(container)} == set(volumes)
    # What selects the pods is on the pods.
    assert found["spec"]["template"]["metadata"]["labels"].items() >= objects[1]["spec"]["selector"].items()

    fields = read_service(found)
    assert fields is not None
    assert (fields.name, fields.revision, fields.replicas) == (service, revision, compute.replicas)
    assert fields.resources == compute.resources()
    assert fields.owner["user"] == user
    assert (fields.ttl is None) == (compute.ttl_seconds is None)
    assert len(spec_hash(compute, "b")) == 16


def _names_of_mounts(container: dict[str, Any]) -> set[str]:
    return {mount["name"] for mount in container["volumeMounts"]}
