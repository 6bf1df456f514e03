"""The Role of docs/kubernetes.md is enough, ``%kt doctor`` says what is missing, and curl's line works when pasted."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

import kubetorch_jupyter as kt
from kubetorch_jupyter.backends.kubernetes.backend import KubernetesBackend
from kubetorch_jupyter.backends.kubernetes.rights import OTHERWISE, ROLE, Right
from kubetorch_jupyter.notebook.doctor import examine
from kubetorch_jupyter.transport.portal import get_portal
from tests.cluster.conftest import User
from tests.cluster.node import Node

MakeWithRole = Callable[..., User]


@pytest.fixture
def make_with_role(make_user: Any, node: Node) -> Iterator[MakeWithRole]:
    """A user who has these rights in a namespace of its own, and nothing else."""
    admin = node.admin()
    roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
    made = []

    def make(name: str, *rights: Right) -> User:
        role = f"kt-{name}-{secrets.token_hex(3)}"
        # The program binds ClusterRoles, in one namespace.
        rules = [yaml.safe_load(right.rule)[0] for right in rights]
        kind = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole"}
        admin.request("POST", roles, {**kind, "metadata": {"name": role}, "rules": rules})
        made.append(role)
        user: User = make_user(name, f"kt-{name}", role)
        return user

    yield make
    for role in made:
        admin.request("DELETE", f"{roles}/{role}")


def use(monkeypatch: pytest.MonkeyPatch, user: User) -> None:
    """Act as this user from here on."""
    for name, value in user.environment.items():
        monkeypatch.setenv(name, value)


def left(user: User, node: Node) -> list[str]:
    """What is left of the user's services after a while; the Role doesn't let the user list all of it."""
    return User(user.name, node.admin().kubeconfig, user.namespace).left()


def everything(user: User) -> None:
    """All that a user does with services."""
    volume = kt.Volume("scratch", size="10Mi", mount_path="/data")

    def work(data: bytes) -> tuple[int, bytes, str]:
        import os

        print("working")
        with open("/data/file", "ab") as file:
            file.write(data[:10])
        return os.path.getsize("/data/file"), data, os.environ["PASSWORD"]

    compute = kt.Compute(volumes=[volume], secrets=[kt.secret("login", values={"PASSWORD": "hunter2"})])
    large = b"x" * (3 << 20)
    handle = kt.fn(work, name="work").to(compute)
    assert handle(large) == (10, large, "hunter2")
    first = [pod["metadata"]["uid"] for pod in user.api.list("Pod")]
    handle = kt.fn(lambda data: len(data), name="work").to(compute)
    assert handle(large) == len(large)
    assert [pod["metadata"]["uid"] for pod in user.api.list("Pod")] == first
    # A new revision, whose Secrets are others.
    handle = kt.fn(work, name="work").to(compute.replace(env_vars={"A": "b"}, cpus=0.05))
    assert handle(b"") == (10, b"", "hunter2")
    assert [info.name for info in kt.services(user.namespace)] == [f"{user.name}-work"]
    assert "working" in kt.logs("work")
    assert kt.Fn.from_name("work")(b"") == (10, b"", "hunter2")
    first_of_all = {"name": "first", "image": os.environ["KT_IMAGE"], "command": ["sh", "-c", "echo no luck; exit 3"]}
    broken = kt.Compute(service_template={"spec": {"template": {"spec": {"initContainers": [first_of_all]}}}})
    with pytest.raises(kt.PodContainerError, match="no luck"):
        kt.fn(len, name="fails").to(broken)
    kt.teardown("work")
    volume.delete()


def test_the_role_is_enough(monkeypatch: pytest.MonkeyPatch, make_with_role: MakeWithRole, node: Node) -> None:
    user = make_with_role("role", *ROLE)
    use(monkeypatch, user)
    report = examine(None)
    assert not report.problems, report
    assert "by the API server's proxy" in repr(report)
    assert f"all that services need in namespace {user.namespace}" in repr(report)
    everything(user)
    assert left(user, node) == []


def test_a_port_forward_does_too(monkeypatch: pytest.MonkeyPatch, make_with_role: MakeWithRole, node: Node) -> None:
    user = make_with_role("forward", *(right for right in ROLE if right.resource != "pods/proxy"), OTHERWISE)
    use(monkeypatch, user)
    report = examine(None)
    assert not report.problems, report
    assert "by a port-forward" in repr(report)
    everything(user)
    assert left(user, node) == []


def test_what_is_missing_is_said_with_its_rule(monkeypatch: pytest.MonkeyPatch, make_with_role: MakeWithRole) -> None:
    user = make_with_role("watcher", *(right for right in ROLE if right.resource in ("pods", "events")))
    use(monkeypatch, user)
    report = examine(None)
    jobs = "may not get, list, watch, create, patch, delete jobs: nothing can be deployed"
    assert jobs in repr(report)
    assert '- {apiGroups: ["batch"], resources: ["jobs"], verbs: ["get", "list", "watch",' in repr(report)
    assert any(finding.what == "way to pods" for finding in report.problems)
    assert not any("pods:" in finding.text for finding in report.problems)
    assert report[-1].text == "not tried"


def test_doctor_says_which_cluster_and_as_whom(user: User) -> None:
    began = time.monotonic()
    report = examine(None, deploy=True)
    assert time.monotonic() - began < 20
    assert not report.problems, report
    text = repr(report)
    assert user.namespace in text
    assert "Kubernetes v1." in text
    if user.account is not None:
        assert f"as system:serviceaccount:{user.namespace}:{user.account}" in text
        assert "nodes can't be looked at with these rights" in text
    assert os.environ["KT_IMAGE"] in text
    assert "a function was deployed in" in text


def test_doctor_counts_gpus_for_who_may_look(node: Node) -> None:
    backend = KubernetesBackend(str(node.admin().kubeconfig), None, "default")
    found = {finding.what: finding.text for finding in get_portal().run(backend.examine())}
    assert found["GPUs"] == "2 on 1 of 1 nodes"


def test_credentials_that_are_refused(monkeypatch: pytest.MonkeyPatch, user: User, tmp_path: Any) -> None:
    config = yaml.safe_load(user.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": "expired"}
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(config))
    backend = KubernetesBackend(str(path), None, user.namespace)
    began = time.monotonic()
    [problem] = [finding for finding in get_portal().run(backend.examine()) if finding.state == "problem"]
    assert time.monotonic() - began < 5.5
    assert "Log in to the cluster again" in problem.text


@pytest.mark.skipif(not (shutil.which("kubectl") and shutil.which("curl")), reason="needs kubectl and curl on PATH")
def test_curl_works_when_it_is_pasted(user: User) -> None:
    def add(a: int, b: int) -> int:
        return a + b

    with kt.fn(add).to(kt.Compute()) as handle:
        lines = handle.service.curl()
        assert len(lines.splitlines()) == 2
        pasted = lines.replace('"args": []', '"args": [20, 22]')
        done = subprocess.run(pasted, shell=True, capture_output=True, text=True, timeout=30)
        assert json.loads(done.stdout) == {"result": 42}, done.stderr
        # Nothing of it goes on, and no token is shown.
        secret = user.api.get("Secret", lines.split("job/")[1].split()[0])
        assert secret["data"]["token"] not in lines
