"""What a `Compute` asks for, as the code and the cluster see it (issue 5, items 2 and 3)."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest

import kubetorch_jupyter as kt
from tests.cells import Cells
from tests.cluster.conftest import User

#: What runs in the pods.
LOOK = """
import os

def writable(path):
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write("x")
    except OSError as e:
        return e.strerror
    return True

def read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError as e:
        return e.strerror

def look():
    status = dict(line.split(":", 1) for line in read("/proc/self/status").splitlines())
    shm = os.statvfs("/dev/shm")
    return {
        "env": dict(os.environ),
        "cwd": os.getcwd(),
        "pid": os.getpid(),
        "ids": (os.getuid(), os.getgid(), 1000 in os.getgroups()),
        "capabilities": {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")},
        "no_new_privileges": int(status["NoNewPrivs"]),
        "seccomp": int(status["Seccomp"]),
        "shm": shm.f_blocks * shm.f_frsize,
        "writable": {
            path: writable(path)
            for path in ("./new", os.path.expanduser("~/.cache/x/new"), "/tmp/new", "/dev/shm/new", "/new", "/usr/new")
        },
        "beside": writable(os.path.expanduser("~/.aws/cli/cache/new")),
        "credentials": read(os.path.expanduser("~/.aws/credentials")),
        "folders": [p for p in ("/var/run/secrets", "/run/secrets", "/kubetorch/secret") if os.path.exists(p)],
        "account": read("/var/run/secrets/kubernetes.io/serviceaccount/token"),
        "sidecar": read("/shared/hello"),
    }

def find(backwards):
    "Where in this container a text is to be seen: files, and what processes were started with."
    import glob
    text, found = backwards[::-1].encode(), []
    walks = [walk for top in ("/kubetorch", "/tmp", "/dev/shm") for walk in os.walk(top)]
    paths = [os.path.join(here, name) for here, _, names in walks for name in names]
    for path in [*paths, *glob.glob("/proc/[0-9]*/environ"), *glob.glob("/proc/[0-9]*/cmdline")]:
        try:
            with open(path, "rb") as file:
                if text in file.read():
                    found.append(path)
        except OSError:
            pass
    return found, len(paths)

def asked(what, *args):
    return {"look": look, "find": find}[what](*args)
"""

#: A container beside the worker, as users add one: it ends when it is told to, or the pod would wait for 30 s.
SIDECAR = {
    "name": "sidecar",
    "restartPolicy": "Always",
    "command": ["sh", "-c", "trap 'exit 0' TERM; echo from the sidecar > /shared/hello; sleep 600 & wait"],
    "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
}
TOLERATION = {"key": "example.org/slow", "operator": "Exists", "effect": "NoSchedule"}


@dataclass(frozen=True)
class Deployed:
    """Services: one that asks for nearly everything, one for nothing, and one for a service account."""

    compute: kt.Compute
    full: Any
    plain: Any
    account: Any
    function: Any


@pytest.fixture(scope="module")
def deployed(user: User, images: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("aws")
    (folder / "credentials").write_text("[default]\naws_access_key_id = AKIA\n")
    (folder / "config").write_text("[default]\n")
    template = {
        "tolerations": [TOLERATION],
        "initContainers": [{**SIDECAR, "image": images["examples"]}],
        "volumes": [{"name": "shared", "emptyDir": {}}],
        "containers": [{"name": "worker", "volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}],
    }
    compute = kt.Compute(
        cpus="1.1",
        memory="128Mi",
        memory_limit="512Mi",
        disk_size="64Mi",
        shared_memory_limit="32Mi",
        env_vars={"KTX_ONE": "1", "KTX_TEXT": "a $HOME, b"},
        working_dir="/tmp",
        labels={"team": "blue"},
        annotations={"example.org/why": "a test, with spaces"},
        node_selector={"kubernetes.io/os": "linux"},
        tolerations=[{"key": "example.org/own", "operator": "Equal", "value": "1", "effect": "NoExecute"}],
        image_pull_policy="IfNotPresent",
        secrets=[
            kt.secret("database", values={"DB_PASSWORD": "hunter2", "DB_USER": "me"}),
            kt.secret(provider="aws", path=str(folder)),
        ],
        service_template={"spec": {"template": {"spec": template}}},
    )
    cells = Cells()
    cells.run(LOOK)

    async def all_of_them() -> list[Any]:
        wanted = (("full", compute), ("plain", kt.Compute()), ("account", kt.Compute(service_account_name="default")))
        return list(
            await asyncio.gather(*(kt.fn(cells["asked"], name=n).to_async(c, stream_logs=False) for n, c in wanted))
        )

    handles = asyncio.run(all_of_them())
    yield Deployed(compute, *handles, cells["asked"])
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda handle: handle.teardown(), handles))


@pytest.fixture(scope="module")
def seen(deployed: Deployed) -> dict[str, Any]:
    """What the code of the first one sees."""
    found: dict[str, Any] = deployed.full("look")
    return found


@pytest.fixture(scope="module")
def objects(deployed: Deployed, user: User) -> dict[str, Any]:
    """What the cluster has of the first one: one of each kind."""
    selector = f"kubetorch.dev/service={deployed.full.service_name}"
    found = {kind: user.api.list(kind, selector)[0] for kind in ("Job", "Pod", "Service", "Secret")}
    worker = next(each for each in found["Pod"]["spec"]["containers"] if each["name"] == "worker")
    return {**found, "worker": worker, "spec": found["Pod"]["spec"]}


# -- what the code sees ------------------------------------------------------------------------------------------------


def test_variables(seen: dict[str, Any], deployed: Deployed) -> None:
    env = seen["env"]
    assert (env["KTX_ONE"], env["KTX_TEXT"]) == ("1", "a $HOME, b"), "as they are given"
    assert {env[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"2"}
    assert not [name for name in env if "_SERVICE_HOST" in name and not name.startswith("KUBERNETES_")]
    assert "OMP_NUM_THREADS" not in deployed.plain("look")["env"], "nothing was asked for"


def test_secrets(seen: dict[str, Any], objects: dict[str, Any]) -> None:
    assert (seen["env"]["DB_PASSWORD"], seen["env"]["DB_USER"]) == ("hunter2", "me")
    assert "aws_access_key_id = AKIA" in seen["credentials"]
    assert seen["beside"] is True, "tools write beside the credentials"
    assert "hunter2" not in str(objects["Job"]) + str(objects["Pod"]), "only in the Secret"


def test_folders(seen: dict[str, Any], deployed: Deployed) -> None:
    assert seen["cwd"] == "/tmp"
    plain = deployed.plain("look")
    assert plain["cwd"] == plain["env"]["HOME"] == "/kubetorch/home", "the image's own can't be written to"
    for found in (seen, plain):
        refused = {path: found["writable"].pop(path) for path in ("/new", "/usr/new")}
        assert set(refused.values()) == {"Read-only file system"}
        assert set(found["writable"].values()) == {True}


def test_shared_memory(seen: dict[str, Any], deployed: Deployed) -> None:
    assert seen["shm"] == 32 << 20
    assert deployed.plain("look")["shm"] > 64 << 20, "not the 64 MiB that containers have by default"


def test_security(seen: dict[str, Any], deployed: Deployed, objects: dict[str, Any], user: User) -> None:
    for found in (seen, deployed.plain("look")):
        assert found["ids"] == (1000, 1000, True)
        assert found["capabilities"] == {0}
        assert (found["no_new_privileges"], found["seccomp"]) == (1, 2)
        assert found["folders"] == [], "neither a service account's token nor ours"
    token = _token(user, deployed.full.service_name)
    where, looked = deployed.full("find", token[::-1])
    assert (where, looked > 100) == ([], True)


def test_a_service_account(deployed: Deployed) -> None:
    """Its token is there when it is asked for, and readable without root."""
    account = deployed.account("look")["account"]
    assert account.count(".") == 2, account


def _token(user: User, service: str) -> str:
    [secret] = [each for each in user.api.list("Secret", f"kubetorch.dev/service={service}") if "token" in each["data"]]
    return base64.b64decode(secret["data"]["token"]).decode()


# -- what the cluster has ----------------------------------------------------------------------------------------------


def test_resources(objects: dict[str, Any]) -> None:
    resources = objects["worker"]["resources"]
    assert resources["limits"] == {"memory": "512Mi"}
    assert resources["requests"]["ephemeral-storage"] == "64Mi"
    assert resources["requests"]["memory"] == "128Mi"
    requests = [each["resources"]["requests"]["cpu"] for each in objects["spec"]["containers"]]
    assert sorted(requests) == ["1080m", "20m"], "cpus= is for the pod as a whole"


def test_labels_and_annotations(objects: dict[str, Any], user: User) -> None:
    for kind in ("Job", "Pod", "Service", "Secret"):
        meta = objects[kind]["metadata"]
        assert meta["labels"]["team"] == "blue", kind
        assert meta["labels"]["kubetorch.dev/owner"] == user.name, kind
        assert meta["labels"]["app.kubernetes.io/managed-by"] == "kubetorch-jupyter"
        assert meta["annotations"]["example.org/why"] == "a test, with spaces", kind


def test_placement(objects: dict[str, Any]) -> None:
    spec = objects["spec"]
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}
    keys = {each["key"]: each for each in spec["tolerations"]}
    assert keys["example.org/own"] == {
        "key": "example.org/own",
        "operator": "Equal",
        "value": "1",
        "effect": "NoExecute",
    }
    assert objects["worker"]["imagePullPolicy"] == "IfNotPresent"
    assert spec["automountServiceAccountToken"] is False


def test_a_template_of_the_users_own(objects: dict[str, Any], seen: dict[str, Any]) -> None:
    assert TOLERATION in objects["spec"]["tolerations"]
    assert [each["name"] for each in objects["spec"]["initContainers"]] == ["sidecar"]
    assert seen["sidecar"] == "from the sidecar\n", "it runs, and shares a volume with the worker"


# -- changes -----------------------------------------------------------------------------------------------------------


def test_what_needs_no_new_pod(deployed: Deployed, objects: dict[str, Any]) -> None:
    """Variables, the folder, limits of calls: they reach the pod that runs."""
    changed = replace(deployed.compute, env_vars={"KTX_TWO": "2"}, working_dir="/dev/shm", concurrency=3)
    with_other_values = kt.fn(deployed.function, name="full").to(changed, stream_logs=False)
    found = with_other_values("look")
    assert (found["cwd"], found["env"]["KTX_TWO"], "KTX_ONE" in found["env"]) == ("/dev/shm", "2", False)
    assert found["env"]["DB_PASSWORD"] == "hunter2"
    assert found["env"]["HOSTNAME"] == objects["Pod"]["spec"]["hostname"]


def test_a_folder_that_is_not_there(deployed: Deployed) -> None:
    missing = replace(deployed.compute, working_dir="/nowhere/at/all")
    with pytest.raises(kt.StartupError, match="/nowhere/at/all"):
        kt.fn(deployed.function, name="full").to(missing, stream_logs=False)
    assert deployed.full("look")["ids"], "what was there goes on"
