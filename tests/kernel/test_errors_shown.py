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


def test_errors_of_ours_are_shown_by_the_users_lines(kernel: Kernel) -> None:
    kernel.run(
        "%load_ext kubetorch_jupyter\n"
        "import os, sys, time, types\n"
        "def f(): return 1\n"
        "def die(): os._exit(3)\n"
        "def slow(): time.sleep(5)\n"
        "def nowhere():\n"
        "    class Odd(ValueError):\n"
        "        def __reduce__(self): raise RuntimeError('not to be pickled')\n"
        "    raise Odd('odd things')\n"
        "dies, odd = kt.fn(die).to(kt.Compute()), kt.fn(nowhere).to(kt.Compute())\n"
        "late = kt.fn(slow).to(kt.Compute()).options(timeout=0.1)\n"
        "def through(): return kt.fn(f)()"
    )
    for code, says in {
        "kt.fn(f)()": 'NotDeployedError: "f" has not been deployed: call .to(',
        "kt.Compute(cpus='many')": "ConfigError: Compute: cpus='many' is not a number of CPU cores: use",
        "kt.config.nonesuch = 1": 'ConfigError: there is no setting "nonesuch"; there are',
        "kt.attach('f/01')": "kt.calls() lists the ids",
        "dies()": 'WorkerDiedError: the worker of service "die" ended itself with exit code 3',
        "await dies.aio()": 'WorkerDiedError: the worker of service "die" ended itself with exit code 3',
        "late()": 'CallTimeoutError: the call of service "slow" ran longer than its timeout of 0.1 s',
    }.items():
        shown = _shown(kernel, code)
        assert re.search(rf"-+> 1 {re.escape(code)}$", shown, re.MULTILINE), shown
        assert says in shown.splitlines()[-1]
        assert "File " not in shown, shown
        assert "hidden" not in shown, shown

    # The user's frames stay, here and in the pod.
    shown = _shown(kernel, "through()")
    assert "-> 1 through()" in shown
    assert "def through(): return kt.fn(f)()" in shown
    shown = _shown(kernel, "odd()")
    assert "raise Odd('odd things')" in shown
    assert "odd things" in shown.splitlines()[-1]

    # Who looks for a fault of ours sees all of them, and so does who has unloaded us.
    for how in ("%xmode Verbose", "%xmode Context\n%unload_ext kubetorch_jupyter\nimport kubetorch_jupyter as kt"):
        kernel.run(how)
        assert "module.py" in _shown(kernel, "kt.fn(f)()")


def test_what_can_not_be_pickled_is_shown_without_our_pickler(kernel: Kernel) -> None:
    kernel.run(
        "%load_ext kubetorch_jupyter\n"
        "import threading\n"
        "lock = threading.Lock()\n"
        "def locked(): return lock\n"
        "class Odd:\n"
        "    def __reduce__(self): raise ValueError('a part of it is missing')\n"
        "def echo(x): return x\n"
        "echo = kt.fn(echo).to(kt.Compute())"
    )
    for code in ("kt.fn(locked).to(kt.Compute())", "echo(lock)"):
        shown = _shown(kernel, code)
        assert "cannot pickle '_thread.lock' object" in shown.splitlines()[-1]
        assert "File " not in shown, shown
    shown = _shown(kernel, "echo(Odd())")
    assert "raise ValueError('a part of it is missing')" in shown
    assert "File " not in shown, shown
    kernel.run("%xmode Verbose")
    assert "serialization.py" in _shown(kernel, "echo(lock)")
