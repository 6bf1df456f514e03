"""Modules of the user's that cells import, as they are now where the cells are written."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import os, sys
from pod_server.worker.modules import use_modules
first, second = (open(path, "rb").read() for path in sys.argv[1:])
folder = use_modules(first, None)
import kt_lib, kt_pack.part
assert (kt_lib.value, kt_pack.part.value) == (1, 1)
again = use_modules(second, folder)
import kt_lib
assert kt_lib.value == 2, "as it is now"
assert sys.path[0] == again and folder not in sys.path and not os.path.exists(folder)
try:
    import kt_pack.part
except ModuleNotFoundError:
    print("gone", end="")
"""


def packed(path: Path, files: dict[str, str]) -> str:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    path.write_bytes(out.getvalue())
    return str(path)


def test_modules_as_they_are_now(tmp_path: Path) -> None:
    first = packed(
        tmp_path / "a", {"kt_lib.py": "value = 1", "kt_pack/__init__.py": "", "kt_pack/part.py": "value = 1"}
    )
    second = packed(tmp_path / "b", {"kt_lib.py": "value = 2"})
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT, first, second], env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("gone", "")
