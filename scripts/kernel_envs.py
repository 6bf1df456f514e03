"""Make one virtual environment for each ipykernel that the tests run cells in.

    python scripts/kernel_envs.py [VERSION ...]

The environments are ``.venvs/ipykernel-VERSION``, with this project installed editable and what the tests' cells
import. They are made side by side, and anew only when what ``pyproject.toml`` says of the project, or this file, has
changed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

VERSIONS = ("6.31.0", "7.3.0", "7.4.0")
ROOT = Path(__file__).resolve().parent.parent


def environment(version: str) -> Path:
    """Where the environment of an ipykernel version is."""
    return ROOT / ".venvs" / f"ipykernel-{version}"


def stamp() -> str:
    """Changes when the environments must be made anew."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = json.dumps([settings["build-system"], settings["project"]], sort_keys=True)
    return hashlib.sha256(f"{sys.version} {project} {Path(__file__).read_text()}".encode()).hexdigest()


def is_ready(version: str) -> bool:
    """Whether the environment exists and is up to date."""
    path = environment(version) / "ready"
    return path.exists() and path.read_text() == stamp()


def make(version: str) -> None:
    """Make one environment, from nothing."""
    path = environment(version)
    shutil.rmtree(path, ignore_errors=True)
    commands = (
        [sys.executable, "-m", "venv", str(path)],
        [
            str(path / "bin" / "python"),
            *("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-compile"),
            *(f"ipykernel=={version}", "--editable", f"{ROOT}[examples]"),
        ],
    )
    for command in commands:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode:
            raise SystemExit(f"the environment for ipykernel {version} could not be made:\n{done.stdout}")
    (path / "ready").write_text(stamp())


def main() -> None:
    wanted = sys.argv[1:] or VERSIONS
    missing = [v for v in wanted if not is_ready(v)]
    if not missing:
        return
    print(f"kernel environments: {', '.join(missing)} ...", flush=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(make, missing))


if __name__ == "__main__":
    main()
