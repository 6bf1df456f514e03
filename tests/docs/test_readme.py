"""The README's own examples run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.kernel.harness import Kernel

_BEFORE = """
import kubetorch_jupyter as kt

def train_model(epochs):
    print("training")
    return epochs

"""


def _blocks(start: str) -> list[str]:
    """The README's Python that begins like that."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [block for block in blocks if block.startswith(start)]


def test_ways_to_call(tmp_path: Path) -> None:
    [code] = _blocks("train = kt.fn(train_model)")
    script = tmp_path / "script.py"
    script.write_text(_BEFORE + code)
    done = subprocess.run(
        [sys.executable, "-m", "kubetorch_jupyter", str(script)],
        env={**os.environ, "KT_RUNTIME_DIR": str(Path(os.environ["KT_RUNTIME_DIR"]) / "readme")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("training") >= 5


def test_curl(tmp_path: Path) -> None:
    """The line that ``service.curl()`` gives, and the answer's form."""
    script = tmp_path / "script.py"
    script.write_text(
        _BEFORE
        + "import json, subprocess\n"
        + "line = kt.fn(train_model).to(kt.Compute()).service.curl().replace('{}', '{\"epochs\": 3}')\n"
        + "assert 'X-Kubetorch-Token' in line and 'POST' in line\n"
        + "print(json.loads(subprocess.check_output(line + ' -s', shell=True, text=True)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "kubetorch_jupyter", str(script)],
        env={**os.environ, "KT_RUNTIME_DIR": str(Path(os.environ["KT_RUNTIME_DIR"]) / "curl")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "{'result': 3}"


def test_magic_cells(newest_kernel: Kernel) -> None:
    run, deploy = _blocks("%%kt")
    newest_kernel.run("%load_ext kubetorch_jupyter")
    newest_kernel.run("x, y = 1, 2")
    newest_kernel.run("%%kt\ndef fit(x, y): return x + y")
    newest_kernel.run(run)
    assert newest_kernel.run("model").result == "3"
    newest_kernel.run(deploy)
    assert newest_kernel.run("isinstance(train_model, kt.Fn), train_model(3)").result == "(True, None)"


@pytest.mark.parametrize(
    "path", [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    missing = [t for t in targets if not t.startswith(("https://", "http://")) and not (path.parent / t).exists()]
    assert not missing
