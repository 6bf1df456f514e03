"""The side panel's own unit tests, which are TypeScript and run in Node.js."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT

from .test_packaging import need_node


def test_the_model() -> None:
    need_node()
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "labextension.py"), "test"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout)
    assert not done.returncode, done.stdout
