"""Check that a wheel has what it must have and nothing else.

python scripts/check_wheel.py dist/NAME.whl
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kubetorch_jupyter", "pod_server")
#: The side panel's files, in a wheel's folder of data: Jupyter finds them at PREFIX/share/jupyter/labextensions.
PANEL = re.compile(r"[^/]+\.data/data/share/jupyter/labextensions/kubetorch-jupyter/(.+)")
#: Paths of the machine that built it, which a bundle may have got into its text.
MACHINE_PATH = re.compile(rb"(?<![\w.])(?:/home/|/root/|/tmp/|/Users/|[A-Z]:\\\\?Users|node_modules/\.)")


def panel_problems(files: dict[str, bytes], version: str) -> list[str]:
    """What is wrong with the side panel's files, which have their names below its folder."""
    found = [f"missing: the side panel's {name}" for name in ("install.json", "package.json") if name not in files]
    for name, content in sorted(files.items()):
        if not re.fullmatch(r"install\.json|package\.json|schemas/.*\.json(\.orig)?|static/[\w.-]+\.(js|json)", name):
            found.append(f"should not be in the side panel: {name}")
        if path := MACHINE_PATH.search(content):
            found.append(f"a path of this machine in the side panel's {name}, at byte {path.start()}")
        if re.search(rb"# sourceMappingURL=\S+\.map", content):
            found.append(f"the side panel's {name} names a source map")
    if "package.json" in files:
        settings = json.loads(files["package.json"])
        if settings["version"] != version:
            found.append(f"the side panel is {settings['version']}, and the wheel {version}")
        if (entry := settings["jupyterlab"]["_build"]["load"]) not in files:
            found.append(f"missing: the side panel's {entry}")
    return found


def problems(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        contents = {name: archive.read(name) for name in names}
    panel = {match[1]: content for name, content in contents.items() if (match := PANEL.fullmatch(name))}
    sources = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for pattern in ("*.py", "*.css", "py.typed")
        for path in (ROOT / package).rglob(pattern)
        if "_labextension" not in path.parts
    }
    found = [f"missing: {name}" for name in sorted(sources - names)]
    for name in sorted(names):
        top = name.split("/")[0]
        if top not in PACKAGES and not top.endswith(".dist-info") and not PANEL.fullmatch(name):
            found.append(f"should not be there: {name}")
        if name.endswith((".map", ".pyc", ".so", ".ipynb", ".log")) or re.search(
            r"/tests/|__pycache__|node_modules|/_labextension/", name
        ):
            found.append(f"should not be there: {name}")
        if str(ROOT).encode() in contents[name]:
            found.append(f"this checkout's path is in {name}")
    if not any(name.endswith("/licenses/LICENSE") for name in names):
        found.append("missing: the licence")
    return found + panel_problems(panel, wheel.name.split("-")[1])


def main() -> int:
    wheel = Path(sys.argv[1])
    found = problems(wheel)
    for line in found:
        print(f"{wheel.name}: {line}")
    if not found:
        print(f"{wheel.name}: as it should be")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
