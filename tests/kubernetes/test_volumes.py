"""What a ``kt.Volume`` stands for: its claim, and where it is mounted."""

from __future__ import annotations

from typing import Any

import pytest

from kubetorch_jupyter.backends.kubernetes.manifests import claims
from kubetorch_jupyter.backends.kubernetes.volumes import as_volumes, claim, differences, mounts, of_claim
from kubetorch_jupyter.compute import Compute
from kubetorch_jupyter.errors import ConfigError
from kubetorch_jupyter.volume import Volume

from .plans import plan


def _there(**spec: Any) -> dict[str, Any]:
    found = claim(Volume("data", "10Gi"), "team-a", {})
    found["spec"] |= {"storageClassName": "standard", **spec}
    return found


def test_a_claim_is_made_only_for_a_size_and_belongs_to_no_service() -> None:
    made = claims(plan(Compute(volumes=[Volume("data", "10Gi"), "there", Volume("also-there")])))
    assert [item["metadata"]["name"] for item in made] == ["data"]
    assert "ownerReferences" not in made[0]["metadata"]
    assert not any("service" in key or "revision" in key for key in made[0]["metadata"]["labels"])
    assert "storageClassName" not in made[0]["spec"]  # the cluster's default


def test_what_differs_from_a_claim_that_is_there_is_said_in_one_line() -> None:
    assert differences(Volume("data", "10Gi"), _there()) == []
    assert differences(Volume("data", "10240Mi"), _there()) == []
    assert differences(Volume("data"), _there(accessModes=["ReadWriteMany"])) == []
    asked = Volume("data", "20Gi", storage_class="fast", access_mode="ReadWriteMany")
    assert differences(asked, _there()) == [
        'volume "data" is there already and has 10Gi, not 20Gi, and is of storage class standard, not fast, '
        "and has access mode ReadWriteOnce, not ReadWriteMany; it is used as it is"
    ]
    assert "(none)" in differences(asked, {"spec": {"storageClassName": None}})[0]


def test_a_claim_reads_back() -> None:
    asked = Volume("data", "10Gi", "/data", "fast", "ReadWriteMany", "team-a")
    assert of_claim(claim(asked, "team-a", {})) == asked
    assert of_claim({"metadata": {"name": "theirs"}}) == Volume("theirs")
    assert of_claim(_there(), "/elsewhere").mount_path == "/elsewhere"


def test_mounts() -> None:
    long = f"{'a' * 100}.{'b' * 100}"
    pod, container = mounts(as_volumes([Volume(long, mount_path="//data/../data/x/"), "other"], "team-a"))
    assert [item["persistentVolumeClaim"]["claimName"] for item in pod] == [long, "other"]
    assert [(item["name"], item["mountPath"]) for item in container] == [
        ("volume-0", "/data/x"),
        ("volume-1", "/ktfs/other"),
    ]
    _, (readonly,) = mounts([Volume("w", access_mode="ReadOnlyMany")])
    assert readonly["readOnly"] is True


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/kubetorch",
        "/kubetorch/run",
        "/kubetorch/secret/x",
        "/data/../kubetorch/lib",
        "/dev/shm",
        "/proc/x",
        "/sys",
    ],
)
def test_where_the_service_lives_is_no_place_for_a_volume(path: str) -> None:
    with pytest.raises(ConfigError, match='Volume "data": mount_path'):
        as_volumes([Volume("data", mount_path=path)], "team-a")


def test_two_at_one_place_and_one_of_another_namespace() -> None:
    with pytest.raises(ConfigError, match="both to be mounted at /x"):
        as_volumes([Volume("a", mount_path="/x"), Volume("b", mount_path="/x/")], "team-a")
    with pytest.raises(ConfigError, match="both to be mounted at /ktfs/a"):
        as_volumes(["a", "a"], "team-a")
    with pytest.raises(ConfigError, match="of namespace team-b"):
        as_volumes([Volume("a", namespace="team-b")], "team-a")
    assert as_volumes([Volume("a", namespace="team-a")], "team-a")
