"""Cells on a cluster: the namespace's pod has no part in the notebook's directory."""

from __future__ import annotations

from tests.conftest import KernelFactory


def test_cells_import_the_users_own_modules(make_kernel: KernelFactory) -> None:
    kernel = make_kernel()
    kernel.run("%load_ext kubetorch_jupyter")
    kernel.run("from pathlib import Path\nPath('kt_lib.py').write_text('def value(): return 1')")
    first = kernel.run("%%kt -n lab\nimport kt_lib\nprint(kt_lib.value())")
    assert first.stdout.splitlines()[-1] == "1"
    kernel.run("Path('kt_lib.py').write_text('def value(): return \"changed\"')")
    again = kernel.run("%%kt -n lab\nimport kt_lib\nprint(kt_lib.value())")
    assert again.stdout.splitlines()[-1] == "changed", "as the file is now"
    kept = kernel.run("%%kt -n lab\nkt_lib.value()")
    assert "changed" in str(kept.displays)
    down = kernel.run("%kt down lab")
    assert "has ended" in down.stdout, "its own name is enough"
