"""Redeploy over the open session, without a new pod (core issue, case 11)."""

from __future__ import annotations

import base64
from typing import Any

import pytest

import kubetorch_jupyter as kt
from pod_server import codefile
from tests.cells import Cells
from tests.cluster.conftest import User
from tests.test_redeploy import (
    test_a_class_that_fails_leaves_the_old_class_constructed_anew,
    test_a_failed_redeploy_leaves_the_old_function,
    test_redeploys_under_64_calls_in_flight,
    test_unchanged_code_keeps_the_instance,
)


@pytest.fixture
def rounds() -> int:
    """How often it is deployed anew."""
    return 25


def test_an_unchanged_deploy_leaves_the_secret_alone(user: User) -> None:
    """Unless it hasn't got the code: whose deployer died between the pod and the Secret."""
    cells = Cells()
    cells.run("def number(): return 1\n")

    def deploy() -> kt.Fn:
        return kt.fn(cells["number"], name="kept").to(kt.Compute())

    def secret() -> dict[str, Any]:
        [found] = user.api.list("Secret", f"kubetorch.dev/service={user.name}-kept")
        return found

    def version(found: dict[str, Any]) -> str:
        return str(codefile.unpack(base64.b64decode(found["data"]["code"])).meta["version"])

    with deploy() as number:
        first = secret()
        deploy()
        assert secret()["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]

        cells.run("def number(): return 2\n")
        deploy()
        second = secret()
        assert (number(), version(second) == version(first)) == (2, False)

        path = f"/api/v1/namespaces/{user.namespace}/secrets/{first['metadata']['name']}"
        annotations = first["metadata"]["annotations"]
        user.api.request("PATCH", path, {"metadata": {"annotations": annotations}, "data": first["data"]})
        deploy()
        assert version(secret()) == version(second)
        again = secret()["metadata"]["resourceVersion"]
        deploy()
        assert secret()["metadata"]["resourceVersion"] == again
