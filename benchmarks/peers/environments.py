"""The peers' own virtual environments, in ``.cache/benchmarks``; made on first use, never part of the project's own."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["ROOT", "MissingEnvironment", "python"]

ROOT = Path(__file__).parents[2] / ".cache" / "benchmarks"


class MissingEnvironment(Exception):
    """A peer's packages could not be installed here; the message says why in one line."""


def python(name: str, requirements: Sequence[str], say: Callable[[str], None] = print) -> Path:
    """The interpreter of a peer's environment.

    Parameters
    ----------
    name
        The environment's; it is made again when its requirements have changed.
    requirements
        For pip; without any, the peer runs in the environment that the benchmarks run in.
    say
        Is told when something is installed, which takes a while.

    Raises
    ------
    MissingEnvironment
        When pip can't install them.
    """
    if not requirements:
        return Path(sys.executable)
    folder = ROOT / name
    interpreter, mark, wanted = folder / "bin" / "python", folder / ".installed", "\n".join(requirements)
    if mark.is_file() and mark.read_text() == wanted:
        return interpreter
    say(f"{name}: installing {', '.join(requirements)} into {folder} ...")
    venv.create(folder, clear=True, with_pip=True)
    command = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"]
        raise MissingEnvironment(f"pip can't install {', '.join(requirements)}: {lines[-1]}")
    mark.write_text(wanted)
    return interpreter
