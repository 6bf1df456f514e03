"""Bad input gets one clear error that says what to do, and leaves nothing behind (issue case 16)."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kubetorch_jupyter as kt
from tests.cells import Cells


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Any:
    before = {s.name for s in kt.services()}
    yield
    assert {s.name for s in kt.services()} == before


@pytest.fixture
def cells() -> Cells:
    cells = Cells()
    cells.run(
        """
        def scale(x, by=2, *, shift=0): return x * by + shift
        class Model:
            def __init__(self): self.weights = [1]
            def predict(self, x): return x
        """
    )
    return cells


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"cpus": "lots"}, "cpus"),
        ({"cpus": -1}, "cpus"),
        ({"gpus": -1}, "gpus"),
        ({"gpus": "some"}, "gpus"),
        ({"memory": "12 elephants"}, "memory"),
        ({"memory_limit": "0"}, "memory_limit"),
        ({"concurrency": 0}, "concurrency"),
        ({"inactivity_ttl": "soon"}, "inactivity_ttl"),
        ({"env_vars": {"A=B": "1"}}, "env_vars"),
    ],
)
def test_a_compute_that_makes_no_sense(given: dict[str, Any], words: str) -> None:
    with pytest.raises(kt.ConfigError, match=words):
        kt.Compute(**given)


def test_an_unknown_parameter_of_compute() -> None:
    with pytest.raises(TypeError, match="gpu_count"):
        kt.Compute(gpu_count=1)  # type: ignore[call-arg]


def test_a_call_before_to(cells: Cells) -> None:
    for call in (kt.fn(cells["scale"]), kt.fn(cells["scale"]).spawn, kt.fn(cells["scale"]).map):
        with pytest.raises(kt.NotDeployedError, match=r"\.to\("):
            call([1])
    with pytest.raises(AttributeError, match=r"\.to\("):
        kt.cls(cells["Model"]).predict(1)
    with pytest.raises(kt.NotDeployedError):
        kt.fn(cells["scale"]).teardown()


def test_a_call_after_teardown(cells: Cells) -> None:
    handle = kt.fn(cells["scale"]).to(kt.Compute(), stream_logs=False)
    handle.teardown()
    with pytest.raises(kt.NotDeployedError, match="torn down"):
        handle(1)
    with pytest.raises(kt.NotDeployedError, match="torn down"):
        asyncio.run(handle.aio(1))


def test_a_method_that_does_not_exist(cells: Cells) -> None:
    with kt.cls(cells["Model"]).to(kt.Compute(), stream_logs=False) as model:
        with pytest.raises(AttributeError, match=r"predcit.*predict"):
            model.predcit(1)
        with pytest.raises(AttributeError, match="add a method"):
            _ = model.weights
        with pytest.raises(AttributeError, match=r"'weights' can't be set .*: add a method"):
            model.weights = 1
        with pytest.raises(AttributeError, match="'predict' can't be set"):
            model.predict = len
        model.async_ = True
        call = model.predict(1)
        assert asyncio.iscoroutine(call)
        call.close()
        assert not hasattr(model, "_repr_png_")


def test_wrong_arguments_read_like_pythons(cells: Cells) -> None:
    with kt.fn(cells["scale"]).to(kt.Compute(), stream_logs=False) as scale:
        for args, kwargs in [((), {}), ((1, 2, 3), {}), ((1,), {"bye": 2}), ((1,), {"x": 2})]:
            with pytest.raises(TypeError) as here:
                cells["scale"](*args, **kwargs)
            for call in (scale, scale.spawn, scale.aio):
                with pytest.raises(TypeError) as there:
                    call(*args, **kwargs)
                assert str(there.value) == str(here.value)
    with kt.cls(cells["Model"]).to(kt.Compute(), stream_logs=False) as model:
        with pytest.raises(TypeError) as there:
            model.predict()
        assert str(there.value) == "Model.predict() missing 1 required positional argument: 'x'"


def test_a_working_directory_that_is_gone(cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    with monkeypatch.context() as there:
        there.chdir(folder)
        folder.rmdir()
        with pytest.raises(kt.ConfigError, match=r"working directory .*os\.chdir"):
            kt.fn(cells["scale"]).to(kt.Compute(), stream_logs=False)


def test_names(cells: Cells, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(kt.ConfigError, match="63"):
        kt.fn(cells["scale"], name="x" * 64).to(kt.Compute())
    with pytest.raises(kt.ConfigError, match="name"):
        kt.fn(cells["scale"], name="---").to(kt.Compute())
    with kt.fn(cells["scale"], name="My Model").to(kt.Compute()) as handle:
        assert handle.service_name == "my-model"
        assert '"my-model"' in capsys.readouterr().out


def test_what_cannot_be_wrapped(cells: Cells) -> None:
    for wrong in (3, "scale", None):
        with pytest.raises(kt.ConfigError):
            kt.fn(wrong)  # type: ignore[arg-type]
    with pytest.raises(kt.ConfigError, match=r"kt\.cls"):
        kt.fn(cells["Model"])
    with pytest.raises(kt.ConfigError, match=r"kt\.fn"):
        kt.cls(cells["scale"])
    with pytest.raises(kt.ConfigError, match="Compute"):
        kt.fn(cells["scale"]).to("cpu")
    with pytest.raises(kt.ConfigError, match="init_args"):
        kt.fn(cells["scale"]).to(kt.Compute(), init_args={"a": 1})


def test_too_many_gpus(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KT_LOCAL_GPUS", "2")
    with pytest.raises(kt.ResourceNotAvailableError, match=r"4.*2"):
        kt.fn(cells["scale"]).to(kt.Compute(gpus="4"), stream_logs=False)
    cells.run("import os\ndef devices(): return os.environ.get('CUDA_VISIBLE_DEVICES')\n")
    with (
        kt.fn(cells["devices"], name="one").to(kt.Compute(gpus=1), stream_logs=False) as one,
        kt.fn(cells["devices"], name="two").to(kt.Compute(gpus=1), stream_logs=False) as two,
    ):
        assert {one(), two()} == {"0", "1"}
        with pytest.raises(kt.ResourceNotAvailableError, match="one"):
            kt.fn(cells["devices"], name="three").to(kt.Compute(gpus=1), stream_logs=False)


def test_an_environment_that_is_too_large(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENORMOUS", "x" * 50_000)
    with pytest.raises(kt.ConfigError, match="ENORMOUS"):
        kt.fn(cells["scale"]).to(kt.Compute(), stream_logs=False)


def test_deploying_twice_at_once_under_one_name(cells: Cells) -> None:
    async def run() -> list[Any]:
        handles = [kt.fn(cells["scale"], name="twice") for _ in range(4)]
        await asyncio.gather(*(h.to_async(kt.Compute(), stream_logs=False) for h in handles))
        return await asyncio.gather(*(h(2, async_=True) for h in handles))

    assert asyncio.run(run()) == [4] * 4
    assert [s.name for s in kt.services()].count("twice") == 1
    kt.fn(name="twice").teardown()


def test_a_full_disk(cells: Cells, tmp_path: Path) -> None:
    """A runtime directory that nothing can be written to."""
    script = tmp_path / "script.py"
    script.write_text(
        "import kubetorch_jupyter as kt\n"
        "def f(): return 1\n"
        "try:\n"
        "    kt.fn(f).to(kt.Compute())\n"
        "except kt.KubetorchError as e:\n"
        "    print('refused:', e)\n"
    )
    mount = tmp_path / "tiny"
    mount.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(mount)]).returncode:
        pytest.skip("a full disk needs the right to mount one")
    try:
        (mount / "filler").write_bytes(b"x" * 4096)
        done = subprocess.run(
            [sys.executable, str(script)],
            env={**os.environ, "KT_RUNTIME_DIR": str(mount / "run")},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert "refused:" in done.stdout
        assert "space" in done.stdout
        assert [p.name for p in mount.iterdir() if p.name != "filler"] == []
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


SCRIPT = """
import os, sys
import kubetorch_jupyter as kt
def f(): return 1
{before}
try:
    kt.fn(f).to(kt.Compute())
except kt.KubetorchError as e:
    print("refused:", type(e).__name__, e)
else:
    print("it ran")
"""


def _deploy(path: Path, *, before: str = "", **env: str) -> str:
    """What a script says that tries to deploy; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before)],
        # The checkout by its name: it is not the working directory.
        env={**os.environ, "PYTHONPATH": str(Path(kt.__file__).parent.parent), "KT_RUNTIME_DIR": str(path), **env},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = _deploy(tmp_path / "run", KT_LOCAL_PORT=str(port))
        assert "refused: StartupError" in said
        assert f":{port}: Address already in use; choose another port" in said
        assert list(tmp_path.iterdir()) == []
    for wrong in ("65536", "-1", "http"):
        said = _deploy(tmp_path / "run", KT_LOCAL_PORT=wrong)
        assert f"KT_LOCAL_PORT={wrong!r} is no port" in said
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("before", ["del os.fork", "sys.platform = 'darwin'"])
def test_python_without_fork(tmp_path: Path, before: str) -> None:
    said = _deploy(tmp_path / "run", before=before)
    assert "refused: StartupError" in said
    assert "local pods need Linux" in said
    assert "KT_BACKEND=kubernetes" in said
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_runtime_directory(tmp_path: Path) -> None:
    """On a file system that is mounted read-only: its rights alone don't stop root."""
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=64k", "none", str(tmp_path)], capture_output=True)
    if made.returncode:
        pytest.skip("a read-only file system needs the right to mount one")
    try:
        for path in (tmp_path, tmp_path / "run"):
            said = _deploy(path)
            assert "refused: StartupError" in said
            assert "Read-only file system" in said
            assert f"{path}" in said
            assert "KT_RUNTIME_DIR" in said
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_runtime_directory_of_somebody_else(tmp_path: Path) -> None:
    """It is refused before anything is written to it: its owner could put sockets of their own in there."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o777)
    theirs.chmod(0o777)
    os.chown(theirs, 65534, -1)
    said = _deploy(theirs)
    assert "refused: StartupError" in said
    assert "it belongs to user 65534" in said
    assert "KT_RUNTIME_DIR" in said
    assert list(theirs.iterdir()) == []
