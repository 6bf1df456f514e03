"""Volumes that outlive services, and secrets: made, found missing, and changed (issue 5, item 3)."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import kubetorch_jupyter as kt
from tests.cluster.conftest import User
from tests.cluster.images import Images
from tests.conftest import ROOT


class Pod:
    """What runs in pods; by value, since this module's imports aren't there."""

    def __init__(self) -> None:
        def write(path: str, text: str) -> None:
            with open(path, "w") as file:
                file.write(text)

        def read(path: str) -> str:
            with open(path) as file:
                return file.read()

        def value(name: str) -> str | None:
            import os

            return os.environ.get(name)

        def look_after(name: str) -> list[object]:
            """A volume's whole life, asked for in the pod."""
            import kubetorch_jupyter as kt

            volume = kt.Volume(name, size="10Mi", storage_class="local-now")
            seen: list[object] = [volume.exists()]
            volume.create()
            seen += [volume.exists(), kt.Volume.from_name(name).size]
            volume.delete()
            return [*seen, volume.exists()]

        self.write, self.read, self.value, self.look_after = write, read, value, look_after


pod = Pod()


@pytest.fixture
def name(user: User) -> Iterator[str]:
    """A volume's, which is gone after the test."""
    name = f"data-{secrets.token_hex(3)}"
    yield name
    kt.Volume(name).delete()


def claims(user: User) -> dict[str, str]:
    """The namespace's claims with their sizes."""
    found = user.api.list("PersistentVolumeClaim")
    return {each["metadata"]["name"]: each["spec"]["resources"]["requests"]["storage"] for each in found}


def test_a_volume_keeps_what_a_service_writes(user: User, name: str) -> None:
    volume = kt.Volume(name, size="1Gi", mount_path="/data")
    assert not volume.exists()
    with kt.fn(pod.write, name="writer").to(kt.Compute(volumes=[volume])) as writer:
        writer("/data/model", "weights")
        assert volume.exists()
        with pytest.raises(kt.DeployError, match=f'while service "{user.name}-writer" uses it') as caught:
            volume.delete()
        assert caught.value.reason == "InUse"
    assert claims(user)[name] == "1Gi"

    # By its name, and with what it says of itself: size, and where it is mounted.
    again = kt.Volume.from_name(name)
    assert (again.size, again.mount_path, again.namespace) == ("1Gi", "/data", user.namespace)
    with kt.fn(pod.read, name="reader").to(kt.Compute(volumes=[again])) as reader:
        assert reader("/data/model") == "weights"
    with kt.fn(pod.read, name="reader").to(kt.Compute(volumes=[kt.Volume(name, mount_path="/there")])) as reader:
        assert reader("/there/model") == "weights"

    began = time.monotonic()
    volume.delete()
    assert time.monotonic() - began < 10
    assert name not in claims(user)
    assert not volume.exists()
    volume.delete()  # once more is no error


def test_a_volume_is_made_without_a_service(user: User, name: str) -> None:
    volume = kt.Volume(name, size="10Mi", storage_class="local-now", access_mode="ReadWriteMany")
    assert volume.create() is volume
    [claim] = [each for each in user.api.list("PersistentVolumeClaim") if each["metadata"]["name"] == name]
    assert claim["spec"]["storageClassName"] == "local-now"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert "ownerReferences" not in claim["metadata"]
    volume.create()  # it is there, and as it should be: nothing is said
    with pytest.warns(UserWarning, match="has 10Mi, not 20Mi"):
        kt.Volume(name, size="20Mi", storage_class="local-now", access_mode="ReadWriteMany").create()
    assert kt.Volume.from_name(name, mount_path="/x").mount_path == "/x"


def test_a_volume_that_is_not_there(user: User) -> None:
    with pytest.raises(kt.ResourceNotAvailableError, match=f'no volume "nothing" in namespace {user.namespace}'):
        kt.Volume.from_name("nothing")
    with pytest.raises(kt.ConfigError, match="without a size"):
        kt.Volume("nothing").create()
    with pytest.raises(kt.ResourceNotAvailableError, match="nothing"):
        kt.fn(pod.read, name="mounts-nothing").to(kt.Compute(volumes=["nothing"]))


def test_somebody_elses_pod_that_uses_a_volume_is_named(user: User, name: str) -> None:
    kt.Volume(name, size="10Mi").create()
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": name}}]
    # It is Pending for good, and would run when its claim is bound.
    container = {"name": "c", "image": "127.0.0.1:1/nothing:1", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    body = {"metadata": {"name": name}, "spec": {"containers": [container], "volumes": volumes}}
    user.api.create("Pod", {"apiVersion": "v1", "kind": "Pod", **body})
    try:
        with pytest.raises(kt.DeployError, match=f"while the pod {name} uses it"):
            kt.Volume(name).delete()
    finally:
        user.api.delete("Pod", name, gracePeriodSeconds=0)
    user.api.wait("the pod is gone", lambda: name not in [p["metadata"]["name"] for p in user.api.list("Pod")], 30)


def test_a_namespace_that_is_not_ours(other_user: User) -> None:
    with pytest.raises(kt.KubernetesCredentialsError, match="persistentvolumeclaims") as caught:
        kt.Volume("data", size="1Gi", namespace=other_user.namespace).create()
    assert caught.value.rule is not None


def test_volumes_are_looked_after_from_a_services_pod(user: User, images: Images, name: str) -> None:
    """With an account that may, and an image that has this package; else a typed error says which is missing."""
    if user.account is None:
        pytest.skip("no service account for a pod that asks the cluster: KT_TEST_SERVICE_ACCOUNT names one")
    whole = kt.Image(image_id=images["client"]).sync_package(str(ROOT / "kubetorch_jupyter"))
    cases: dict[str, tuple[dict[str, object], type[kt.KubetorchError] | None, str]] = {
        "may": ({"image": whole, "service_account_name": user.account}, None, ""),
        "weak": (
            {"image": whole, "service_account_name": "default"},
            kt.KubernetesCredentialsError,
            'may not get persistentvolumeclaims in namespace .*verbs: \\["get"\\]',
        ),
        "part": ({"service_account_name": user.account}, kt.ConfigError, "needs kubetorch-jupyter in this pod's image"),
        "no-token": ({"image": whole}, kt.UnsupportedError, "no service account token.*service_account_name="),
    }

    async def deploy() -> list[kt.Fn]:
        made = (
            kt.fn(pod.look_after, name=f"looks-{what}").to_async(kt.Compute(cpus="0.1", **compute))
            for what, (compute, _, _) in cases.items()
        )
        return list(await asyncio.gather(*made))

    handles = asyncio.run(deploy())
    try:
        for handle, (_, error, words) in zip(handles, cases.values(), strict=True):
            if error is None:
                assert handle(name) == [False, True, "10Mi", False]
                continue
            with pytest.raises(error, match=f"(?s){words}"):
                handle(name)
        assert name not in claims(user)
    finally:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda handle: handle.teardown(), handles))


@pytest.mark.usefixtures("empty_namespace")
def test_a_named_secret_that_is_not_there_fails_before_anything_is_made(user: User) -> None:
    began = time.monotonic()
    with pytest.raises(kt.SecretNotFound, match=f'no Secret "absent" in namespace {user.namespace}') as caught:
        kt.fn(pod.value, name="wants").to(kt.Compute(secrets=["absent"]))
    assert caught.value.reason == "NotFound"
    assert time.monotonic() - began < 1.5
    assert user.ours() == []


def test_a_named_secret_that_is_there(user: User) -> None:
    body = {"metadata": {"name": "team-database"}, "stringData": {"DB_PASSWORD": "hunter2"}}
    user.api.create("Secret", {"apiVersion": "v1", "kind": "Secret", **body})
    try:
        with kt.fn(pod.value, name="wants").to(kt.Compute(secrets=["team-database"])) as wants:
            assert wants("DB_PASSWORD") == "hunter2"
    finally:
        user.api.delete("Secret", "team-database")


def test_changed_values_of_a_secret_make_a_new_pod(user: User, tmp_path: Path) -> None:
    """Equal ones don't: the pod, and what it holds, goes on."""
    here = tmp_path / "credentials"
    here.write_text("first")

    def deploy() -> kt.Fn:
        secret = kt.secret("login", path=str(here))
        return kt.fn(pod.read, name="logs-in").to(kt.Compute(secrets=[secret]))

    def pods() -> list[str]:
        found = user.api.list("Pod", f"kubetorch.dev/service={user.name}-logs-in")
        return sorted(each["metadata"]["uid"] for each in found if "deletionTimestamp" not in each["metadata"])

    handle = deploy()
    try:
        first = pods()
        assert handle(str(here)) == "first"
        here.write_text("first")
        deploy()
        assert pods() == first
        here.write_text("second")
        handle = deploy()
        assert handle(str(here)) == "second"
        user.api.wait("only the new pod", lambda: len(pods()) == 1 and pods() != first, 30)
    finally:
        handle.teardown()


@pytest.mark.usefixtures("empty_namespace")
def test_a_service_is_made_of_what_the_page_lists(user: User, name: str) -> None:
    """docs/kubernetes.md, "What is created"."""
    volume, secret = kt.Volume(name, size="10Mi"), kt.secret("db", values={"DB_PASSWORD": "hunter2"})
    with kt.fn(pod.value, name="train").to(kt.Compute(volumes=[volume], secrets=[secret])) as train:
        assert train("DB_PASSWORD") == "hunter2"
        found = user.ours()
        job = next(each.split()[1] for each in found if each.startswith("Job "))
        assert job.startswith(f"{user.name}-train-")
        listed = [f"Job {job}", f"PersistentVolumeClaim {name}", f"Secret {job}", f"Secret {job}-db"]
        rest = [each for each in found if each not in listed]
        assert len(found) == len(listed) + len(rest)
        assert [each.split("-")[0] for each in rest] == [
            "ConfigMap kubetorch",
            f"Pod {user.name}",
            f"Service {user.name}",
        ]
        assert len(rest) == 3
    user.api.wait("only the volume is left", lambda: user.ours() == [f"PersistentVolumeClaim {name}"], 30)
