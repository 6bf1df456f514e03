"""What brings the side panel to people: sdists and wheels have it, and take no Node.js once it is built."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

import kubetorch_jupyter as kt
from tests.conftest import ROOT, load_script

#: Of a checkout, what a build of the package takes.
CHECKOUT = ("kubetorch_jupyter", "labextension", "pod_server", "scripts", "pyproject.toml", "README.md", "LICENSE")


def need_node() -> None:
    """Skip where nothing can be built, except in CI."""
    if reason := load_script("labextension").missing_node():
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(f"building the side panel needs Node.js: {reason}")


def hatch(folder: Path, target: str, out: Path, env: dict[str, str] | None = None) -> str:
    """Build what a folder has, and give what was said."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert not done.returncode, done.stdout
    return done.stdout


@pytest.fixture
def without_node(tmp_path: Path) -> dict[str, str]:
    """An environment in which no program can be found."""
    (tmp_path / "bin").mkdir()
    return {**os.environ, "PATH": str(tmp_path / "bin")}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this checkout, in which nothing has been built."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in CHECKOUT:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "_labextension", "node_modules", "lib")
            shutil.copytree(source, copy / name, ignore=ignore)
        else:
            shutil.copy(source, copy / name)
    return copy


@pytest.fixture
def script(checkout: Path) -> ModuleType:
    """The copy's own script."""
    return load_script("labextension", checkout)


def problems(out: Path) -> list[str]:
    """What is wrong with the wheel in a folder."""
    (wheel,) = out.glob("*.whl")
    found: list[str] = load_script("check_wheel").problems(wheel)
    return found


def test_its_version_is_the_packages() -> None:
    assert json.loads((ROOT / "labextension" / "package.json").read_text())["version"] == kt.__version__


def test_the_lock_names_no_server() -> None:
    for name in ("yarn.lock", ".yarnrc.yml"):
        assert "://" not in (ROOT / "labextension" / name).read_text()


def test_a_wheel_of_an_sdist_takes_no_node(tmp_path: Path, without_node: dict[str, str]) -> None:
    need_node()
    hatch(ROOT, "sdist", tmp_path)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert not [name for name in archive.getnames() if "node_modules" in name or "/labextension/lib" in name]
        archive.extractall(tmp_path / "unpacked", filter="data")
    (folder,) = (tmp_path / "unpacked").iterdir()
    said = hatch(folder, "wheel", tmp_path, without_node)
    assert "side panel" not in said
    assert problems(tmp_path) == []


def test_a_checkout_without_node(tmp_path: Path, checkout: Path, without_node: dict[str, str]) -> None:
    """It gives a wheel without the panel, says so, and such a wheel can't be released."""
    said = hatch(checkout, "wheel", tmp_path, without_node)
    assert "there is no Node.js: built without the side panel" in said
    assert "missing: the side panel's package.json" in problems(tmp_path)


def test_an_editable_install_builds_nothing(script: ModuleType) -> None:
    """`make setup` does it afterwards, where it can."""
    hook = script.PanelHook(str(script.ROOT), {}, None, None, "", "wheel")
    data: dict[str, object] = {}
    hook.initialize("editable", data)
    assert data == {}
    assert not script.BUILT.exists()


def test_what_is_out_of_date_is_not_taken(script: ModuleType) -> None:
    script.BUILT.mkdir()
    (script.BUILT / "package.json").write_text("{}")
    assert not script.is_current(), "nobody knows what it was made of"
    script.STAMP.parent.mkdir()
    script.STAMP.write_text(script.stamp())
    assert script.is_current()

    (script.BUILT / "index.js.map").write_text("{}")
    assert not script.is_current(), "a build for development has more in it"
    script.STAMP.write_text(script.stamp())
    (script.SOURCES / "src" / "index.ts").write_text("// changed")
    assert not script.is_current(), "its sources have changed"


@pytest.mark.parametrize(
    ("said", "good"),
    [
        ("v18.20.4", False),
        ("v20.18.3", False),
        ("v20.19.0", True),
        ("v21.7.0", False),
        ("v22.11.0", False),
        ("v22.12.0", True),
        ("v24.0.0", True),
        ("", False),
    ],
)
def test_which_node_will_do(said: str, good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = tmp_path / "node"
    node.write_text(f"#!/bin/sh\necho {said}\n")
    node.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    assert (load_script("labextension").missing_node() is None) == good


def test_jupyter_sees_it(tmp_path: Path) -> None:
    """After `make setup`: as `jupyter labextension develop` would have it."""
    need_node()
    script = load_script("labextension")
    assert script.is_current(), "run `make setup`"
    for _ in range(2):
        script.show(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "jupyterlab.labextensions", "list"],
        env={**os.environ, "JUPYTER_PATH": str(tmp_path / "share" / "jupyter")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    (line,) = [line for line in done.stdout.splitlines() if "kubetorch-jupyter v" in line][:1]
    assert f"v{kt.__version__}" in line
    assert "enabled" in line
    assert "OK" in line
