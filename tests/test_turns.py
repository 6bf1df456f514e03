"""Tests in several processes: they run beside each other, but for those that measure."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import ROOT

#: Of two files of tests, each is for one process. A test notes when it begins and ends.
BEGIN = """
import time
from pathlib import Path
import pytest

NOTES = Path(__file__).parent / "notes"

def note(what):
    with NOTES.open("a") as file:
        file.write(what + "\\n")
"""

#: Passes only while one of the other file runs.
TOGETHER = """
def test_it():
    note("{name}")
    deadline = time.monotonic() + 30
    while "{other}" not in NOTES.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
"""

TAKES_TIME = """
@pytest.mark.parametrize("n", range(8))
def test_it(n):
    note("{name} begins")
    time.sleep(0.05)
    note("{name} ends")
"""


def _run(folder: Path, files: Sequence[tuple[str, str]]) -> list[str]:
    """Run files of tests, ``[(name, code), ...]``, each in a process; what they have noted."""
    for name, code in files:
        (folder / f"test_{name}.py").write_text(BEGIN + code)
    (folder / "conftest.py").write_text("from tests.conftest import *\n")
    settings = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *settings, "-n", "2", "--dist", "loadfile", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (folder / "notes").read_text().split("\n")[:-1]


def test_most_run_beside_others(tmp_path: Path) -> None:
    files = [(a, TOGETHER.format(name=a, other=b)) for a, b in (("one", "other"), ("other", "one"))]
    assert sorted(_run(tmp_path, files)) == ["one", "other"]


def test_who_measures_is_alone(tmp_path: Path) -> None:
    timed, other = (TAKES_TIME.format(name=name) for name in ("timed", "other"))
    notes = _run(tmp_path, [("timed", "pytestmark = pytest.mark.timed\n" + timed), ("other", other)])
    assert len(notes) == 32
    for began, ended in zip(notes[::2], notes[1::2], strict=True):
        assert ended == began.replace("begins", "ends")
