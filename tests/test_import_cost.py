"""``import kubetorch_jupyter`` costs little, and imports nothing heavy."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

HEAVY = (
    "IPython",
    "ipykernel",
    "ipywidgets",
    "kubernetes",
    "httpx",
    "uvicorn",
    "uvloop",
    "numpy",
    "yaml",
)


def import_time(code: str, rounds: int = 5) -> float:
    """Microseconds that the imports of `code` take by themselves; the best of some, since others run beside us."""
    best = float("inf")
    for _ in range(rounds):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
        )
        own = re.findall(r"^import time:\s+(\d+) \|", done.stderr, re.MULTILINE)
        best = min(best, sum(map(int, own)))
    return best


@pytest.mark.timed
def test_import_costs_no_more_than_asyncio_and_cloudpickle() -> None:
    base = import_time("import asyncio, cloudpickle")
    ours = import_time("import kubetorch_jupyter")
    both = import_time("import asyncio, cloudpickle, kubetorch_jupyter")
    print(f"asyncio and cloudpickle {base:.0f} µs, kubetorch_jupyter {ours:.0f} µs, all {both:.0f} µs")
    # The promise is 1.3; three times that share, because the machine is shared.
    assert ours < 1.9 * base
    assert both < 1.9 * base


def test_a_handle_imports_nothing_that_only_deploys_need() -> None:
    """Until then they are imported while a local pod's first process comes up."""
    code = "import kubetorch_jupyter as kt, sys; kt.fn(len), kt.cls(dict), kt.Compute(cpus=1)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    late = {"asyncio", "cloudpickle", "http.client", "subprocess", "websockets", "zipfile"}
    assert not late.intersection(done.stdout.split())


@pytest.mark.parametrize(
    "use", ["", "kt.fn, kt.cls, kt.Compute, kt.config, kt.errors, kt.images, kt.Secret, kt.Volume"]
)
def test_nothing_heavy_is_imported(use: str) -> None:
    code = f"import kubetorch_jupyter as kt, sys; {use}\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
