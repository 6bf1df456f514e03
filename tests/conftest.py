"""What all tests share: a runtime directory of their own, kernels, and the list of what was left out.

``KT_RUNTIME_DIR`` is set before the package is imported, so that no test sees (or leaves) a service of the person who
runs the tests.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests import promises
from tests.kernel.harness import Kernel, leftover_files, wait_until_gone
from tests.places import Here, Place
from tests.turns import turn

ROOT = Path(__file__).resolve().parent.parent
RUNTIME_DIR = Path(tempfile.mkdtemp(prefix="kt-tests-"))

# A person's settings must not decide what the tests see; KT_TEST_... are the tests' own.
for _name in [n for n in os.environ if n.startswith("KT_") and not n.startswith("KT_TEST_")]:
    del os.environ[_name]
os.environ["KT_RUNTIME_DIR"] = str(RUNTIME_DIR)


def load_script(name: str, root: Path = ROOT) -> ModuleType:
    """A file of ``scripts``, as a module."""
    spec = importlib.util.spec_from_file_location(name, root / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


kernel_envs = load_script("kernel_envs")
KERNELS: tuple[str, ...] = kernel_envs.VERSIONS
NEWEST = KERNELS[-1]

# -- the session -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def _nothing_left() -> Iterator[None]:
    """After the last test no process of a pod runs and no file of one is left."""
    yield
    _shut_down()
    left = wait_until_gone(RUNTIME_DIR, 5)
    lines = [f"{p.pid} {' '.join(p.cmdline())[:200]}" for p in left if p.is_running()]
    for process in left:
        process.kill()
    files = leftover_files(RUNTIME_DIR)
    assert not lines, "the tests left processes:\n" + "\n".join(lines)
    assert not files, f"the tests left files: {files}"


def pytest_unconfigure() -> None:
    shutil.rmtree(RUNTIME_DIR, ignore_errors=True)


def _shut_down() -> None:
    """End this process's pods as its exit would."""
    backend = sys.modules.get("kubetorch_jupyter.backends.local")
    if backend is not None:
        backend.shutdown()


# -- several processes (``pytest -n``) ---------------------------------------------------------------------------------


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["turns"] = str(RUNTIME_DIR)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around the timeout: waiting doesn't count
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    turns = getattr(item.config, "workerinput", {}).get("turns")
    with turn(Path(turns), bool(item.get_closest_marker("timed"))) if turns else nullcontext():
        return (yield)


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["measured"], output["deselected"] = promises.measured, dict(_deselected)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    output = getattr(node, "workeroutput", {})  # which a process that has crashed doesn't have
    promises.measured += output.get("measured", ())
    for marker, count in output.get("deselected", {}).items():
        _deselected[marker] = count  # of each process, since all of them see all tests


# -- kernels -----------------------------------------------------------------------------------------------------------


def kernel_python(version: str) -> Path:
    """The interpreter of an ipykernel version's environment; skips the test where there is none, except in CI."""
    if not kernel_envs.is_ready(version):
        reason = f"no environment for ipykernel {version}: run `make setup`"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    path: Path = kernel_envs.environment(version)
    return path / "bin" / "python"


KernelFactory = Callable[..., Kernel]

#: Environment variables of every kernel, besides what a test gives it: how the tests on a cluster say where it is.
kernel_variables: dict[str, str] = {}


def _factory(version: str, tmp_path: Path) -> Iterator[KernelFactory]:
    python = kernel_python(version)
    kernels: list[Kernel] = []

    def make(*, start: bool = True, cwd: Path = tmp_path, env: dict[str, str] | None = None) -> Kernel:
        kernel = Kernel(python, cwd, {**kernel_variables, **(env or {})})
        kernels.append(kernel)
        return kernel.start() if start else kernel

    make.python = python  # type: ignore[attr-defined]
    yield make
    try:
        for kernel in kernels:
            kernel.stop()
        for kernel in kernels:
            kernel.assert_nothing_left()
    finally:
        for kernel in kernels:
            kernel.close()


@pytest.fixture(params=KERNELS)
def make_kernel(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KernelFactory]:
    """Make kernels (``make_kernel(start=True, cwd=..., env=...)``), in turn of each ipykernel version.

    They are ended after the test, and nothing of their pods may be left.
    """
    yield from _factory(request.param, tmp_path)


@pytest.fixture
def kernel(make_kernel: KernelFactory) -> Kernel:
    """A started kernel, in turn of each ipykernel version."""
    return make_kernel()


@pytest.fixture
def make_newest_kernel(tmp_path: Path) -> Iterator[KernelFactory]:
    """As `make_kernel`, only of the newest ipykernel."""
    yield from _factory(NEWEST, tmp_path)


@pytest.fixture
def make_kernel_of(tmp_path: Path) -> Iterator[Callable[[str], KernelFactory]]:
    """``make_kernel_of(version)`` is `make_kernel` of that version: for tests that use several kernels at once."""
    with ExitStack() as stack:
        yield lambda version: stack.enter_context(contextmanager(_factory)(version, tmp_path))


@pytest.fixture
def newest_kernel(make_newest_kernel: KernelFactory) -> Kernel:
    """A started kernel of the newest ipykernel."""
    return make_newest_kernel()


# -- processes of pods -------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Where the pods are, to look at their processes and files."""
    return Here(tmp_path)


# -- the list of what was left out -------------------------------------------------------------------------------------

#: Why the tests with a marker are left out unless they are asked for.
_DESELECTED = {
    "soak": "they take long: run `make soak`, or on a cluster `make cluster-soak`",
    "cluster": "they need a cluster: run `make cluster-test`, with a kubeconfig or the `cluster` program",
}
_deselected: Counter[str] = Counter()


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in _DESELECTED:
            if item.get_closest_marker(marker):
                _deselected[marker] += 1
                break


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    fixtures = {"kernel", "make_kernel", "make_kernel_of", "newest_kernel", "make_newest_kernel"}
    fixtures |= {"all_kernels", "speaking"}  # of single modules
    for item in items:
        if fixtures & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.kernel)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    left_out: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        left_out[reason.removeprefix("Skipped: ")] = left_out.get(reason.removeprefix("Skipped: "), 0) + 1
    for marker, count in _deselected.items():
        left_out[_DESELECTED[marker]] = count
    for line in promises.measured:
        terminalreporter.write_line(f"measured: {line}")
    for reason, count in sorted(left_out.items()):
        terminalreporter.write_line(f"left out: {count} test{'s' if count > 1 else ''}: {reason}")
