"""Check that a wheel has what it must have and nothing else.

python scripts/check_wheel.py dist/NAME.whl
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kubetorch_jupyter", "pod_server")


def problems(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for pattern in ("*.py", "*.css", "py.typed")
        for path in (ROOT / package).rglob(pattern)
    }
    found = [f"missing: {name}" for name in sorted(sources - names)]
    for name in sorted(names):
        top = name.split("/")[0]
        if top not in PACKAGES and not top.endswith(".dist-info"):
            found.append(f"should not be there: {name}")
        if name.endswith((".map", ".pyc", ".so", ".ipynb")) or "/tests/" in name or "__pycache__" in name:
            found.append(f"should not be there: {name}")
    if not any(name.endswith("/licenses/LICENSE") for name in names):
        found.append("missing: the licence")
    return found


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
