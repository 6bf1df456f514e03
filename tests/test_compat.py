from __future__ import annotations

import importlib
import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kubetorch_jupyter as kt


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    assert "kubetorch" not in sys.modules
    yield
    kt.uninstall_as_kubetorch()
    assert "kubetorch" not in sys.modules


def test_import_kubetorch_means_us() -> None:
    assert kt.install_as_kubetorch()
    assert kt.install_as_kubetorch()
    kubetorch = importlib.import_module("kubetorch")
    assert kubetorch is kt
    namespace: dict[str, object] = {}
    exec("import kubetorch as k, kubetorch.errors\nfrom kubetorch import Compute, fn, config", namespace)
    assert namespace["k"] is kt
    assert namespace["Compute"] is kt.Compute
    assert namespace["config"] is kt.config
    assert importlib.util.find_spec("kubetorch") is not None


def test_submodules_are_ours_and_not_copies() -> None:
    kt.install_as_kubetorch()
    assert importlib.import_module("kubetorch.errors") is kt.errors
    assert importlib.import_module("kubetorch.images") is kt.images
    spec = importlib.import_module("kubetorch_jupyter.compute").__spec__
    compute = importlib.import_module("kubetorch.compute")
    assert compute.Compute is kt.Compute
    assert compute.__spec__ is spec
    assert compute.__name__ == "kubetorch_jupyter.compute"
    assert pickle.loads(pickle.dumps(compute.Compute(cpus=1))) == kt.Compute(cpus=1)
    with pytest.raises(ModuleNotFoundError, match="kubetorch"):
        importlib.import_module("kubetorch.no_such_module")


def test_undone() -> None:
    before = list(sys.meta_path)
    kt.install_as_kubetorch()
    importlib.import_module("kubetorch.errors")
    kt.uninstall_as_kubetorch()
    assert sys.meta_path == before
    assert not [name for name in sys.modules if name.split(".")[0] == "kubetorch"]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("kubetorch")
    kt.uninstall_as_kubetorch()


def test_the_real_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kubetorch.py").write_text("real = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.warns(UserWarning, match=r"kubetorch\.py.*import kubetorch_jupyter as kt"):
        assert not kt.install_as_kubetorch()
    real = importlib.import_module("kubetorch")
    assert real.real
    with pytest.warns(UserWarning, match="installed here"):
        assert not kt.install_as_kubetorch()
    kt.uninstall_as_kubetorch()
    assert sys.modules.pop("kubetorch") is real


def test_names_that_are_also_modules_stay_what_they_are() -> None:
    code = """
import kubetorch_jupyter.config, kubetorch_jupyter.secret, kubetorch_jupyter.compute
import kubetorch_jupyter as kt
from kubetorch_jupyter.config import Config
assert isinstance(kt.config, Config), kt.config
assert kt.secret(provider="aws").name == "aws"
assert kt.errors.ConfigError is kt.ConfigError
assert callable(kt.Compute)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_that_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kt.nothing
    with pytest.raises(AttributeError, match="put is Kubetorch's and not part of this version"):
        _ = kt.put
    assert not hasattr(kt, "__wrapped__")
    assert dir(kt) == sorted(kt.__all__)


def test_import_kubetorch_works_inside_a_pod() -> None:
    from tests.cells import Cells

    cells = Cells()
    cells.run(
        """
        def inner():
            import kubetorch as kt
            from kubetorch import Compute
            return kt.__name__, Compute(cpus=2).cpus
        """
    )
    assert kt.install_as_kubetorch()
    try:
        with kt.fn(cells["inner"]).to(kt.Compute(), stream_logs=False) as remote:
            assert remote()[0] == "kubetorch_jupyter"
    finally:
        kt.uninstall_as_kubetorch()
