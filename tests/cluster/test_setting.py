"""What the other tests of this folder take for granted: who they are in the cluster, and what their images have."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cluster.api import Api, ApiError
from tests.cluster.conftest import User
from tests.cluster.images import Images
from tests.cluster.node import GPUS, Node

REFUSED = ["/api/v1/nodes", "/api/v1/namespaces", "/api/v1/persistentvolumes", "/api/v1/namespaces/kube-system/secrets"]


@pytest.mark.parametrize("path", REFUSED)
def test_the_user_has_rights_in_one_namespace(make_user: Any, user: User, path: str) -> None:
    with pytest.raises(ApiError) as caught:
        user.api.request("GET", path)
    assert caught.value.status == 403


def test_the_other_user_has_rights_in_another(user: User, other_user: User) -> None:
    assert other_user.namespace != user.namespace
    with pytest.raises(ApiError) as caught:
        Api(other_user.kubeconfig, user.namespace).list("Secret")
    assert caught.value.status == 403
    assert other_user.api.list("Pod") == []


@pytest.mark.parametrize(
    ("name", "says"), [("examples", "no"), ("python310", "no"), ("python313", "no"), ("bare", "-")]
)
def test_images_have_nothing_of_this_project(user: User, images: Images, name: str, says: str) -> None:
    script = "command -v python3 >/dev/null || { echo -; exit; }; python3 -c 'import kubetorch_jupyter' 2>&- || echo no"
    container = {"name": "look", "image": images[name], "command": ["sh", "-c", script]}
    body = {"metadata": {"generateName": "look-"}, "spec": {"restartPolicy": "Never", "containers": [container]}}
    pod = user.api.create("Pod", {"apiVersion": "v1", "kind": "Pod", **body})["metadata"]["name"]
    try:
        user.api.wait(f"the end of {pod}", lambda: user.api.get("Pod", pod)["status"]["phase"] == "Succeeded", 30)
        assert user.api.log(pod, "look").strip() == says
    finally:
        user.api.delete("Pod", pod, gracePeriodSeconds=0)


def test_the_node_has_gpus_to_give(node: Node) -> None:
    def allocatable() -> int:
        [found] = node.admin().request("GET", "/api/v1/nodes")["items"]
        return int(found["status"]["allocatable"].get("nvidia.com/gpu", 0))

    assert allocatable() == GPUS
    with node.gpus(4):
        node.admin().wait("4 GPUs", lambda: allocatable() == 4, 10)
    node.admin().wait("as many as before", lambda: allocatable() == GPUS, 10)
