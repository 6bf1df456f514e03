"""Real cells for pods of other Python versions: their text and flags, edits, magics, tracebacks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.foreign import OTHERS, foreign_pod
from tests.kernel.harness import Kernel

SETUP = """
%load_ext kubetorch_jupyter
import kubetorch as kt
from kubetorch_jupyter import deploying as _deploying
from kubetorch_jupyter.transport.endpoint import Endpoint as _Endpoint
from tests.foreign import FixedBackend as _FixedBackend
_backend = _FixedBackend(_Endpoint("other", {url!r}, {token!r}))
_deploying.get_backend = lambda compute: _backend
"""


@pytest.fixture(params=OTHERS)
def version(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def far_kernel(newest_kernel: Kernel, version: str, tmp_path: Path) -> Iterator[Kernel]:
    """A kernel whose services are in a pod of another Python."""
    folder = tmp_path / "pod"
    folder.mkdir()
    with foreign_pod(version, folder) as endpoint:
        newest_kernel.run(SETUP.format(url=endpoint.url, token=endpoint.token))
        yield newest_kernel


def test_cells_as_people_write_them(far_kernel: Kernel, version: str) -> None:
    run = far_kernel.run
    run("%who_ls\nimport math, sys\nRATE = 0.5\n!true\ndef helper(x):\n    return math.floor(x * RATE)")
    run("from __future__ import annotations")
    run("from dataclasses import dataclass, field\nfrom typing import ClassVar")
    run("@dataclass\nclass Conf:\n    n: int = 1\n    kind: ClassVar[NotThere] = 'k'\n")
    run("class Wrong(Exception):\n    pass\nawait __import__('asyncio').sleep(0)\nasync def later(x): return x")
    run(
        "def train(conf: Unknown, fail=False):\n    print('training')\n    if fail:\n        raise Wrong(helper(9))\n"
        "    conf.n += helper(5)\n    return conf, sys.version_info[:2]"
    )
    cell = run("g = kt.fn(train).to(kt.Compute())\nprint(g(Conf(1)))")
    assert cell.stdout.count("training") == 1
    assert f"(Conf(n=3), ({version.replace('.', ', ')}))" in cell.stdout
    assert f"the pod has Python {version}, not" in str(cell.displays) + cell.stdout + cell.stderr
    assert run("type(g(Conf(1))[0]) is Conf").result == "True"
    assert run("(await g(Conf(1), async_=True))[0]").result == "Conf(n=3)"
    cell = run("try: g(Conf(1), fail=True)\nexcept Wrong as e: print('mine', e)")
    assert cell.stdout.endswith("mine 4\n")
    failed = far_kernel.begin("g(Conf(1), fail=True)").wait().error
    assert failed is not None
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(failed["traceback"]))
    assert "raise Wrong(helper(9))" in text
    assert run("await kt.fn(later).to(kt.Compute(), stream_logs=False)(3, async_=True)").result == "3"


@pytest.mark.parametrize("version", OTHERS[-1:], indirect=True)
def test_cells_that_are_edited_and_run_again(far_kernel: Kernel) -> None:
    run = far_kernel.run
    use = "def f():\n    return Kind.code, list(Kind.__annotations__), value()\n"
    one, two = ("class Kind:\n    a: int\n    code = 1", "class Kind:\n    b: int\n    code = 2")
    deploy = "kt.fn(f).to(kt.Compute(), stream_logs=False)()"
    run(one)
    run("def value(): return 'old'")
    run(use)
    assert run(deploy).result == "(1, ['a'], 'old')"
    run(two)
    run("def value(): return 'new'")
    assert run(deploy).result == "(2, ['b'], 'new')"
    run(one)  # the very text of before: IPython gives it the file name that it had
    run("def value(): return 'old'")
    assert run(deploy).result == "(1, ['a'], 'old')"
    again = run("kt.fn(f).to(kt.Compute())")
    assert "is unchanged" in str(again.displays) + again.stdout


@pytest.mark.parametrize("version", OTHERS[-1:], indirect=True)
def test_what_has_no_source_is_an_error_of_the_deploy(far_kernel: Kernel, version: str) -> None:
    far_kernel.run("exec('def made(x): return x')\ndef f(): return made(1)")
    for code, what in (
        ("kt.fn(lambda x: x, name='l').to(kt.Compute())", "the lambda of line 1"),
        ("kt.fn(f).to(kt.Compute())", "the function made has no source"),
    ):
        error = far_kernel.begin(code, stop_on_error=False).wait().error
        assert error is not None
        assert error["ename"] == "VersionMismatchError"
        assert what in error["evalue"]
        assert f"and {version} in the pod" in error["evalue"]


@pytest.mark.parametrize("version", OTHERS[-1:], indirect=True)
def test_a_cell_in_the_pod(far_kernel: Kernel, version: str) -> None:
    far_kernel.run("x = [1, 2]\nclass C:\n    n = 5")
    cell = far_kernel.run("%%kt -i x -o y\nimport sys\ny = sum(x), '%d.%d' % sys.version_info[:2]\nprint(y)")
    assert cell.stdout.endswith(f"(3, '{version}')\n")
    assert far_kernel.run("y").result == f"(3, '{version}')"
