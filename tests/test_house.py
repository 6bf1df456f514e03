"""What the repository says of itself is true."""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import version

import kubetorch_jupyter as kt
from tests.conftest import ROOT
from tests.docs.examples import COMPLETE


def test_one_version() -> None:
    assert version("kubetorch-jupyter") == kt.__version__


def test_the_readmes_example_is_the_documents() -> None:
    assert COMPLETE.code in (ROOT / "README.md").read_text()


def test_links_of_the_documentation() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken


def test_make_lists_its_commands() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^  make ([a-z-]+)", done.stdout, re.MULTILINE))
    assert {"help", "setup", "demo", "test", "lint", "lab", "bench", "soak", "cluster-test"} <= listed
