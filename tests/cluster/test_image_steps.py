"""Image steps in pods of a cluster, without root and from an index at the node's address (issue case 11b)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

import kubetorch_jupyter as kt
from tests.cells import Cells
from tests.cluster.conftest import OURS, User
from tests.cluster.images import Images
from tests.cluster.node import Node
from tests.wheels import Index, serve_index


@pytest.fixture
def index(node: Node, user: User) -> Iterator[Index]:
    """An index that pods can reach: nothing else of this machine's is at an address of theirs."""
    cluster = yaml.safe_load(user.kubeconfig.read_text())["clusters"][0]["cluster"]
    with serve_index(str(urlsplit(cluster["server"]).hostname)) as index:
        index.add("ktone", "1.0", program="ktone-say")
        index.add("ktone", "2.0", program="ktone-say")
        index.add("kttwo", "1.0", requires=("ktone",))
        yield index


@pytest.fixture
def image(index: Index, images: Images) -> kt.Image:
    trusted = {"PIP_TRUSTED_HOST": str(urlsplit(index.url).hostname)}
    return kt.Image(image_id=images["pip"]).set_env_vars({**index.env, **trusted})


def _function() -> Any:
    cells = Cells()
    cells.run(
        """
        def look():
            import os
            import ktone
            found = sorted(os.listdir(os.environ["KT_STEPS_DIR"]))
            said = {"version": ktone.VERSION, "pid": os.getpid(), "uid": os.getuid()}
            return {**said, "files": found, "env": os.environ["KTX"]}
        """
    )
    return cells["look"]


def test_steps_in_a_cluster(image: kt.Image, index: Index, user: User, capfd: pytest.CaptureFixture[str]) -> None:
    image = image.set_env_vars({"KTX": "$HOME/x"}).pip_install(["kttwo", "ktone<2"]).copy(__file__)
    image = image.run_bash("echo as $(id -u); ktone-say > said.txt")

    def deploy(image: kt.Image) -> Any:
        return kt.fn(_function(), name="steps").to(kt.Compute(cpus="0.1", image=image))

    with deploy(image) as handle:
        shown = capfd.readouterr().out
        assert "Successfully installed ktone-1.0" in shown
        seen = handle()
        assert (seen["version"], seen["env"]) == ("1.0", "/kubetorch/home/x"), "expanded where the pod is"
        assert seen["uid"] != 0
        assert f"as {seen['uid']}\n" in shown
        assert {"test_image_steps.py", "said.txt"} <= set(seen["files"])
        downloads = len(index.downloads)

        assert deploy(image)()["pid"] == seen["pid"], "unchanged: the same worker"
        more = image.pip_install("ktone>=2")
        changed = deploy(more)()
        assert (changed["version"], changed["pid"] != seen["pid"]) == ("2.0", True)
        assert index.downloads[downloads:] == ["ktone-2.0-py3-none-any.whl"], "only the changed step was run"
        [pod] = user.api.list("Pod", OURS)
        assert f"as {seen['uid']}" not in capfd.readouterr().out

        with pytest.raises(kt.StartupError, match="exit code 3") as info:
            deploy(more.run_bash("echo the reason >&2; exit 3"))
        assert (info.value.exit_code, info.value.output) == (3, "the reason")
        with pytest.raises(kt.StartupError, match="run_as_root=True"):
            deploy(more.run_bash("apt-get install -y git"))
        with pytest.raises(kt.StartupError, match="run_as_root=True"):
            deploy(more.copy(__file__, "/srv/x"))
        with pytest.raises(kt.StartupError, match="No matching distribution found for ktnowhere"):
            deploy(more.pip_install("ktnowhere"))
        assert handle()["pid"] == changed["pid"], "what was there goes on"
        [same] = user.api.list("Pod", OURS)
        assert same["metadata"]["uid"] == pod["metadata"]["uid"], "no step needs a new pod"


def test_a_new_pod_runs_all_steps(image: kt.Image, index: Index, user: User) -> None:
    """The code at rest knows them: nobody who has the code is there when the pod comes."""
    image = image.set_env_vars({"KTX": "x"}).pip_install("ktone").copy(__file__)
    with kt.fn(_function(), name="again").to(kt.Compute(cpus="0.1", image=image), stream_logs=False) as handle:
        before = handle()
        downloads = len(index.downloads)
        [pod] = user.api.list("Pod", OURS)
        user.api.delete("Pod", pod["metadata"]["name"])
        # Not a call, which would deploy it again from here.
        deadline = time.monotonic() + 60
        while not _ready_again(user, pod["metadata"]["uid"]):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert index.downloads[downloads:] == ["ktone-2.0-py3-none-any.whl"]
        after = handle()
        assert {k: after[k] for k in ("version", "files")} == {k: before[k] for k in ("version", "files")}


def _ready_again(user: User, gone: str) -> bool:
    found = [pod for pod in user.api.list("Pod", OURS) if pod["metadata"]["uid"] != gone]
    conditions = {c["type"]: c["status"] for pod in found for c in pod["status"].get("conditions", ())}
    return conditions.get("Ready") == "True"
