"""The container images that the tests' pods run from: none of them has this project, or anything that it needs.

With the one-node cluster's program they are made from the Pythons of this machine, once, and stay on the node. With a
kubeconfig only they are the public ones, or those that ``KT_TEST_IMAGE_<NAME>`` names.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.node import Node

__all__ = ["Images"]

ROOT = Path(__file__).resolve().parents[2]
MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"


@dataclass(frozen=True)
class _Recipe:
    """An image: of which Python of this machine, with which of pip's packages, and what stands for it elsewhere."""

    python: str | None = MINOR
    packages: tuple[str, ...] = ()
    public: str | None = None
    odd: bool = False


_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_DEPENDENCIES = tuple(line.split(";")[0].strip() for line in _PROJECT["dependencies"])
_IMPORTED = ("numpy", "aiohttp", "requests", "pandas", "matplotlib", "ipython")

RECIPES = {
    # What the document's examples, the notebooks and the tests' cells import.
    "examples": _Recipe(packages=_IMPORTED),
    # A notebook server's, in the cluster: what this project depends on, but not the project.
    "client": _Recipe(packages=(*_IMPORTED, *_DEPENDENCIES, "nbclient")),
    "pip": _Recipe(packages=("pip",), public=f"python:{MINOR}-slim"),
    "python310": _Recipe("3.10", public="python:3.10-slim"),
    "python313": _Recipe("3.13", ("numpy",), public="python:3.13-slim"),
    "bare": _Recipe(None, public="busybox:1.37"),
    # Its one Python is off the path, and all else is as no image should be.
    "odd": _Recipe(odd=True),
}


class Images:
    """Names of images that pods can be started from; asked for, an image is made if it isn't there.

    Parameters
    ----------
    node
        The cluster that the program runs; None for another.
    """

    def __init__(self, node: Node | None) -> None:
        self._node = node
        self._ready: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        if name not in self._ready:
            self._ready[name] = self._find(name)
        return self._ready[name]

    def _find(self, name: str) -> str:
        recipe = RECIPES[name]
        if chosen := os.environ.get(f"KT_TEST_IMAGE_{name.upper()}"):
            return chosen
        if self._node is None:
            if recipe.public is None:
                packages = ", ".join(recipe.packages)
                pytest.skip(f"no image with {packages}: KT_TEST_IMAGE_{name.upper()} names one")
            return recipe.public
        # The name follows what is in it, so that one that stayed on the node is used again only while it is the same.
        tag = f"kt.local/test-{name}:{hashlib.sha256(repr(recipe).encode()).hexdigest()[:8]}"
        if not self._node.has_image(tag):
            self._make(self._node, tag, recipe)
        return tag

    def _make(self, node: Node, tag: str, recipe: _Recipe) -> None:
        with tempfile.TemporaryDirectory(prefix="kt-image-") as folder:
            if recipe.python is None or recipe.odd:
                archive = Path(folder) / "image.tar"
                scripts = node.program.resolve().parent
                root = Path(folder) / "root"
                more = _stage_odd(root, scripts) if recipe.odd else _stage_bare(root)
                script = scripts / "ociimage.py"
                _run(sys.executable, script, archive, tag, f"{root}:/", "--env", "PATH=/usr/bin:/bin", *more)
                node.run("load-image", str(archive))
                return
            more = ("--pip", *recipe.packages) if recipe.packages else ()
            # The program's script for images runs on the image's own Python, and needs a function that came with 3.11.
            (Path(folder) / "sitecustomize.py").write_text(_FILE_DIGEST)
            node.run("image", tag, "--python", _find_python(recipe.python), *more, PYTHONPATH=folder)


_STAGE = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import pyimage
pyimage.stage(pathlib.Path(sys.argv[2]), [], True)
"""

_FILE_DIGEST = """
import hashlib

def _file_digest(file, name):
    digest = hashlib.new(name)
    while data := file.read(1 << 20):
        digest.update(data)
    return digest

if not hasattr(hashlib, "file_digest"):
    hashlib.file_digest = _file_digest
"""


def _find_python(version: str) -> str:
    if version == MINOR:
        # Not a virtual environment's: the image is made of the interpreter's own files.
        return str(Path(sys.base_prefix) / "bin" / f"python{MINOR}")
    found = subprocess.run([str(ROOT / "scripts" / "find-python"), version], capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"no Python {version} here to make an image of")
    return found.stdout.strip()


def _stage_odd(root: Path, scripts: Path) -> tuple[str, ...]:
    """Python as Conda has it, but for ``python3``; no /tmp, no users, a working folder that only root may enter, and an
    entry point that ends at once."""
    root.mkdir()
    _run(_find_python(MINOR), "-c", _STAGE, scripts, root)
    (root / "opt").mkdir()
    (root / "usr/local").rename(root / "opt/conda")
    (root / "opt/conda/bin/python3").unlink()
    for folder in ("tmp", "var/tmp"):
        (root / folder).rmdir()
    for file in ("passwd", "group"):
        (root / "etc" / file).unlink()
    (root / "root").chmod(0o700)
    return "--workdir", "/root", "--entrypoint", "/bin/false"


def _stage_bare(root: Path) -> tuple[()]:
    """A shell and a few commands, with the libraries that they need."""
    for folder in ("etc", "tmp", "proc", "sys", "dev", "usr/bin", "usr/lib"):
        (root / folder).mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    commands = [Path("/bin") / name for name in ("sh", "ls", "cat", "sleep")]
    libraries = subprocess.run(["ldd", *map(str, commands)], capture_output=True, text=True, check=True).stdout
    # "libc.so.6 => /lib/.../libc.so.6 (0x...)" or, the loader, "/lib64/ld-linux-x86-64.so.2 (0x...)".
    paths = {Path(path) for path in re.findall(r"(/\S+) \(0x", libraries)}
    for path in commands:
        shutil.copy2(path.resolve(), root / "usr/bin" / path.name)
    for path in paths:
        there = root / path.relative_to("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path.resolve(), there)
    return ()


def _run(*words: object) -> None:
    done = subprocess.run([str(w) for w in words], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}:\n{done.stdout}{done.stderr}")
