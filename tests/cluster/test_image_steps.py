"""Image steps in pods of a cluster, without root and from an index at the node's address (issue case 11b)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

import kubetorch_jupyter as kt
from tests.cells import Cells
from tests.cluster.conftest import OURS, User
from tests.cluster.images import Images
from tests.cluster.node import Node
from tests.conftest import KernelFactory
from tests.promises import promise
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


def test_all_replicas_run_them(image: kt.Image, index: Index, capfd: pytest.CaptureFixture[str]) -> None:
    """And what they write is shown once."""
    cells = Cells()
    cells.run("def where():\n    import os, ktone\n    return os.environ['HOSTNAME'], ktone.VERSION\n")
    image = image.pip_install("ktone<2").run_bash("echo said in a step")
    with kt.fn(cells["where"], name="two").to(kt.Compute(cpus="0.1", image=image, replicas=2)) as handle:
        # With a prefix, where another test's output is still there to be told from.
        assert len([line for line in capfd.readouterr().out.splitlines() if line.endswith("said in a step")]) == 1
        assert index.downloads == ["ktone-1.0-py3-none-any.whl"] * 2
        found = set(handle.starmap([()] * 16, concurrency=16))
        assert len(found) == 2


def test_as_root(image: kt.Image, tmp_path: Path) -> None:
    """With a root that can be written to, for what installs into the system."""
    cells = Cells()
    cells.run(
        "def look():\n    import os\n    return os.getuid(), open('/opt/kt/made').read(), os.listdir('/srv/data')\n"
    )
    (tmp_path / "data" / "empty").mkdir(parents=True)
    (tmp_path / "data" / "a.txt").write_text("a")
    image = image.run_bash("mkdir -p /opt/kt && echo by $(id -u) > /opt/kt/made").copy(
        str(tmp_path / "data"), "/srv/data"
    )
    with kt.fn(cells["look"], name="root").to(
        kt.Compute(cpus="0.1", image=image, run_as_root=True), stream_logs=False
    ) as look:
        uid, made, files = look()
    assert (uid, made, sorted(files)) == (0, "by 0\n", ["a.txt", "empty"])


def test_an_image_without_pip(node: Node, images: Images, user: User) -> None:
    """As those are that the program makes. Nothing is left of a first deploy that fails."""
    image = kt.Image(image_id=images["examples"])
    with pytest.raises(kt.StartupError, match="there is no pip in the pod") as caught:
        kt.fn(_function(), name="no-pip").to(kt.Compute(cpus="0.1", image=image.pip_install("ktone")))
    assert "install_cmd=" in str(caught.value)
    assert user.api.list("Job", OURS) == []


def test_output_comes_while_a_step_runs(image: kt.Image, make_newest_kernel: KernelFactory) -> None:
    """In the deploying cell; and Stop ends the step and the deploy, and leaves nothing."""
    kernel = make_newest_kernel()
    kernel.run(f"import kubetorch_jupyter as kt\nimage = kt.Image(image_id={image.image_id!r})")
    kernel.run("def one(): return 1")
    script = "echo begun; sleep 600"
    cell = kernel.begin(f"kt.fn(one, name='stops').to(kt.Compute(cpus='0.1', image=image.run_bash({script!r})))")
    cell.wait_text("begun\n", 60)
    began = time.monotonic()
    kernel.interrupt()
    cell.wait(30)
    promise("a deploy whose step runs is stopped, with all that it made", time.monotonic() - began, 5.0)
    assert cell.error is not None
    assert cell.error["ename"] == "KeyboardInterrupt"
    assert kernel.run("[s.name for s in kt.services() if 'stops' in s.name]").result == "[]"
