"""Build the side panel for JupyterLab: `labextension/` into `kubetorch_jupyter/_labextension`.

    python scripts/labextension.py          # build it if it is out of date, and show it to this Python's Jupyter
    python scripts/labextension.py lint     # types, eslint, prettier
    python scripts/labextension.py test     # its unit tests

Hatch runs `PanelHook` of this file for each wheel and sdist. Node.js builds the panel and nobody needs it afterwards:
wheels and sdists have the built one. Where Node.js is missing one line says so, and everything else works.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent.parent
NAME = "kubetorch-jupyter"
SOURCES = ROOT / "labextension"
BUILT = ROOT / "kubetorch_jupyter" / "_labextension"
#: Where Jupyter looks for panels, below a prefix.
PLACE = Path("share", "jupyter", "labextensions", NAME)
#: What the last build was made of and what came of it. A build for development doesn't match it.
STAMP = SOURCES / "lib" / ".stamp"
#: What a build depends on.
INPUTS = (".yarnrc.yml", "package.json", "schema/**/*", "src/**/*", "style/**/*", "tsconfig.json", "yarn.lock")
BUILDER = "jupyter-builder>=1"


class BuildError(Exception):
    """A step of the build failed; the message has its output."""


def missing_node() -> str | None:
    """Why Node.js can't build the panel; None if it can."""
    node = shutil.which("node") or shutil.which("nodejs")
    if node is None:
        return "there is no Node.js"
    said = subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip()
    numbers = re.match(r"v(\d+)\.(\d+)", said)
    version = tuple(map(int, numbers.groups())) if numbers else (0, 0)
    # The builder's own words are "^20.19.0 || >=22.12.0".
    if version >= (22, 12) or (20, 19) <= version < (21, 0):
        return None
    return f"Node.js is {said or 'unknown'}, and has to be 20.19 or later, or 22.12 or later"


def _digest(files: Iterable[Path], base: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(files):
        found.update(f"{path.relative_to(base)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


def stamp() -> str:
    """Changes when the sources or what was built of them change."""
    sources = {path for pattern in INPUTS for path in SOURCES.glob(pattern) if path.is_file()}
    return f"{_digest(sources, SOURCES)} {_digest((p for p in BUILT.rglob('*') if p.is_file()), BUILT)}\n"


def is_sdist() -> bool:
    """Whether this is an unpacked sdist, which brings what was built."""
    return (ROOT / "PKG-INFO").exists()


def is_current() -> bool:
    """Whether what is built is what a build would make."""
    return BUILT.is_dir() and (is_sdist() or (STAMP.exists() and STAMP.read_text() == stamp()))


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(
        command, cwd=SOURCES, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if "YN0013" not in line]  # one for each package
        raise BuildError(f"{' '.join(command[-3:])} failed\n" + "\n".join(lines[-60:]))


def jlpm(*arguments: str) -> list[str]:
    """The command that runs jlpm: by this Python, since another one's may stand on the path."""
    return [sys.executable, "-c", "from jupyter_builder.jlpm import main; main()", *arguments]


def install() -> None:
    """The packages of `yarn.lock`; those that are there already take a second."""
    _run(jlpm("install", "--immutable"))


def build() -> None:
    """Build from nothing, as it is published: no source maps, no file of an earlier build."""
    install()
    shutil.rmtree(BUILT, ignore_errors=True)
    shutil.rmtree(SOURCES / "lib", ignore_errors=True)
    _run(jlpm("run", "build:lib"))
    _run([sys.executable, "-m", "jupyter_builder.extension_commands.build", "."])
    shutil.copy(SOURCES / "install.json", BUILT)
    STAMP.write_text(stamp())


def show(prefix: Path) -> None:
    """Let the Jupyter of an environment find what is built here, as an editable install does for Python."""
    link = prefix / PLACE
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        raise BuildError(f"{link} is of another installation: pip uninstall {NAME}")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(BUILT, target_is_directory=True)


class PanelHook(BuildHookInterface[Any]):
    """Puts the panel into a wheel, and the built one into an sdist, of which a wheel is then made without Node.js.

    An editable install has none of it: `make setup` builds and shows it. Without Node.js a checkout gives a wheel
    without the panel, and a warning: everything else works, and the panel's work can be done by magics too.
    """

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What a build needs besides hatchling."""
        return [] if is_current() or missing_node() else [BUILDER]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, and name what goes where."""
        if version == "editable":
            return
        if not is_current():
            reason = "this sdist was made without Node.js" if is_sdist() else missing_node()
            if reason:
                self.app.display_warning(f"{NAME}: {reason}: built without the side panel for JupyterLab")
                return
            self.app.display_info(f"{NAME}: builds the side panel for JupyterLab ...")
            try:
                build()
            except BuildError as error:
                self.app.abort(f"{error}\nHATCH_BUILD_NO_HOOKS=true builds without the side panel for JupyterLab")
        if self.target_name == "wheel":
            build_data["shared_data"][str(BUILT)] = PLACE.as_posix()
        else:
            build_data["artifacts"].append(f"/{BUILT.relative_to(ROOT).as_posix()}/")


def setup() -> None:
    if not is_current():
        if reason := missing_node():
            print(f"setup: the side panel for JupyterLab is left out: {reason}")
            return
        print("setup: the side panel for JupyterLab ...", flush=True)
        build()
    show(Path(sys.prefix))


def lint() -> int:
    if reason := missing_node():
        print(f"lint of labextension left out: {reason}")
        return 0
    install()
    return subprocess.run(jlpm("run", "lint"), cwd=SOURCES).returncode


def test() -> int:
    if reason := missing_node():
        print(f"tests of labextension left out: {reason}")
        return 0
    install()
    return subprocess.run(jlpm("run", "test"), cwd=SOURCES).returncode


def main(command: str = "setup") -> int:
    commands = {"setup": setup, "lint": lint, "test": test}
    if command not in commands:
        sys.exit(f"labextension: there is no command {command!r}; there are: {', '.join(commands)}")
    try:
        return commands[command]() or 0
    except BuildError as error:
        print(f"labextension: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    # Scripts of package.json look up jlpm by its name.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    sys.exit(main(*sys.argv[1:2]))
