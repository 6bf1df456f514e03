"""What a cell shows of an error: the user's frames and the message, not our insides."""

from __future__ import annotations

import re

import pytest

from tests.kernel.harness import Kernel


def _shown(kernel: Kernel, code: str) -> str:
    cell = kernel.begin(code).wait()
    assert cell.error is not None, f"no error\n{cell}"
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(cell.error["traceback"]))


@pytest.mark.parametrize("deploy", ["kt.fn(train).to(big)", "await kt.fn(train).to_async(big)"])
def test_a_refused_deploy_shows_the_cell_and_the_message(kernel: Kernel, deploy: str) -> None:
    kernel.run("%load_ext kubetorch_jupyter\ndef train(): pass\nbig = kt.Compute(gpus=99)")
    shown = _shown(kernel, deploy)
    assert deploy in shown
    assert 'ResourceNotAvailableError: service "train" asks for 99 GPUs' in shown
    files = re.findall(r"^File .*", shown, re.MULTILINE)
    assert len(files) <= 1, shown


def test_a_class_that_fails_to_start_shows_its_own_line(kernel: Kernel) -> None:
    kernel.run(
        "%load_ext kubetorch_jupyter\n"
        "class Model:\n"
        "    def __init__(self): raise ValueError('no weights here')\n"
        "    def f(self): pass"
    )
    shown = _shown(kernel, "kt.cls(Model).to(kt.Compute())")
    assert "raise ValueError('no weights here')" in shown
    assert 'StartupError: service "model"' in shown
    assert len(re.findall(r"^File .*", shown, re.MULTILINE)) <= 1, shown
