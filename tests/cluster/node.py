"""The one-node cluster's program: what it can do that no user of a cluster can."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.cluster.api import Api, ApiError

__all__ = ["Node", "find_program"]

#: What the node says it has when a test begins.
GPUS = 2
#: A machine with two cores has no place for what some examples ask for at once, so the node says that it has more.
CPUS = 16
#: For `Node.make_roomy`: Kubernetes has it, but leaves it out by default.
FLAGS = (
    "kube-apiserver:feature-gates=MutatingAdmissionPolicy=true",
    "kube-apiserver:runtime-config=admissionregistration.k8s.io/v1beta1=true",
)
_POLICIES = "/apis/admissionregistration.k8s.io/v1beta1/mutatingadmissionpolicies"
_BINDINGS = "/apis/admissionregistration.k8s.io/v1beta1/mutatingadmissionpolicybindings"


def find_program() -> tuple[Path | None, str]:
    """The program, and why it can't be used when there is none."""
    named = os.environ.get("KT_TEST_CLUSTER") or shutil.which("cluster")
    if not named:
        return None, "no `cluster` program (KT_TEST_CLUSTER, or on PATH)"
    if not os.access(named, os.X_OK):
        return None, f"{named} is no program"
    if os.geteuid() != 0:
        return None, "the `cluster` program needs root"
    return Path(named), ""


class Node:
    """A cluster that the program runs, and its node.

    Parameters
    ----------
    program
        The program's path.
    """

    def __init__(self, program: Path) -> None:
        self.program = program

    def run(self, *words: str, **environment: str) -> str:
        """Run a verb; gives what it printed."""
        # For `image`. Compiling takes longer than all else, and images of this kind come without bytecode.
        pip = {"PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_COMPILE": "1"}
        done = subprocess.run(
            [str(self.program), *words],
            env={**os.environ, **pip, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode:
            raise RuntimeError(f"cluster {' '.join(words)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    # -- the cluster ---------------------------------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        """Whether it runs, also where one of its programs has ended: it isn't ours to stop then."""
        done = subprocess.run([str(self.program), "status"], capture_output=True, text=True, timeout=60)
        return re.search(r"^namespace +pid \d", done.stdout, re.MULTILINE) is not None

    def up(self) -> None:
        self.run("up", "--gpus", str(GPUS), *(word for flag in FLAGS for word in ("--flag", flag)))

    def down(self) -> None:
        self.run("down", "--keep-images")

    def admin(self, namespace: str = "default") -> Api:
        """The API with an administrator's rights."""
        return Api(self._kubeconfig, namespace)

    @cached_property
    def _kubeconfig(self) -> Path:
        # `up` of a cluster that runs prints the line again. Once only: it also starts what a test has stopped.
        [path] = re.findall(r"^export KUBECONFIG=(.+)$", self.run("up"), re.MULTILINE)
        return Path(path)

    def make_roomy(self) -> None:
        """Have the node say that it has `CPUS`, whatever its kubelet finds; without the flags it stays as it is."""
        admin = self.admin()
        rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["nodes/status"]}
        patches = (
            f'JSONPatch{{op: "replace", path: "/status/{kind}/cpu", value: "{CPUS}"}}'
            for kind in ("capacity", "allocatable")
        )
        policy = {
            "matchConstraints": {"resourceRules": [rule]},
            "matchConditions": [{"name": "it-has", "expression": "has(object.status.allocatable)"}],
            "failurePolicy": "Ignore",
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": f"[{', '.join(patches)}]"}}],
        }
        for path, spec in ((_POLICIES, policy), (_BINDINGS, {"policyName": "roomy"})):
            try:
                admin.request("POST", path, {"metadata": {"name": "roomy"}, "spec": spec})
            except ApiError as e:
                if e.status == 404:
                    return  # the cluster is somebody else's, and has no such policies
                if e.status != 409:
                    raise
                admin.request("PATCH", f"{path}/roomy", {"spec": spec})
        admin.wait("the node has room", self._is_roomy, 30, 1.0)

    def _is_roomy(self) -> bool:
        # Whatever changes its status has the policy applied.
        self.run("gpus", str(GPUS))
        [node] = self.admin().request("GET", "/api/v1/nodes")["items"]
        return bool(node["status"]["allocatable"]["cpu"] == str(CPUS))

    def make_user(self, name: str, namespace: str, out: Path, role: str = "edit") -> None:
        """A service account with a role in a namespace, both made here, and its kubeconfig."""
        self.run("user", name, "-n", namespace, "--role", role, "--out", str(out))

    def has_image(self, name: str) -> bool:
        """Whether the node has an image."""
        [node] = self.admin().request("GET", "/api/v1/nodes")["items"]
        # One that another has replaced has no names any more.
        return any(name in (image.get("names") or ()) for image in node["status"].get("images") or ())

    # -- breaking things -----------------------------------------------------------------------------------------------

    def kill(self, pod: str, namespace: str, signal: str = "KILL") -> None:
        """A signal to the first process of each of the pod's containers."""
        self.run("kill", pod, "-n", namespace, "-s", signal)

    def kill_container(self, pod: dict[str, Any], name: str) -> None:
        """SIGKILL to the first process of one container of a pod, as the API has it."""
        [status] = [each for each in pod["status"]["containerStatuses"] if each["name"] == name]
        id = status["containerID"].rpartition("/")[2]
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                first = re.search(r"^NSpid:.*\b1$", (process / "status").read_text(), re.MULTILINE)
                if first and id in (process / "cgroup").read_text():
                    os.kill(int(process.name), signal.SIGKILL)
                    return
        raise RuntimeError(f"container {name} of {pod['metadata']['name']} doesn't run")

    @contextlib.contextmanager
    def frozen(self, program: str) -> Iterator[None]:
        """One of the cluster's programs stands still meanwhile."""
        self.run("freeze", program)
        try:
            yield
        finally:
            self.run("thaw", program)

    @contextlib.contextmanager
    def stopped(self, program: str, *, kill: bool = False) -> Iterator[None]:
        """One of the cluster's programs has ended meanwhile."""
        self.run("stop", program, *(["--kill"] if kill else []))
        try:
            yield
        finally:
            self.run("start", program)

    def wake(self) -> None:
        """Have all look for the API server at once: after an outage some do so only within a minute."""
        for program in ("kubelet", "kube-controller-manager", "kube-scheduler", "coredns"):
            with self.stopped(program):
                pass

    @contextlib.contextmanager
    def gpus(self, count: int) -> Iterator[None]:
        """The node says meanwhile that it has so many GPUs."""
        self.run("gpus", str(count))
        try:
            yield
        finally:
            self.run("gpus", str(GPUS))
