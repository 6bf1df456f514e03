"""What a cell's function uses comes along, as it stands when it is deployed (issue case 4)."""

from __future__ import annotations

from tests.kernel.harness import Kernel

LOAD = "%load_ext kubetorch_jupyter\nimport kubetorch as kt\ncompute = kt.Compute()"


def test_what_other_cells_define(kernel: Kernel) -> None:
    (kernel.cwd / "beside.py").write_text("import json\nFACTOR = 7\ndef scaled(x): return x * FACTOR\n")
    package = kernel.cwd / "mypackage"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import deep\n")
    (package / "inner.py").write_text("from . import other\ndef deep(x): return other.OFFSET + x\n")
    (package / "other.py").write_text("OFFSET = 100\n")
    cells = [
        LOAD,
        "import math\nimport functools\nOFFSET = 10",
        "def helper(x): return math.floor(x) + OFFSET",
        "class Base:\n    k = 3\n    def times(self, x): return helper(x) * self.k",
        "class Derived(Base):\n    k = 5",
        "def logged(f):\n    @functools.wraps(f)\n    def inner(*args):\n        print('called', f.__name__)\n"
        "        return f(*args)\n    return inner",
        "@logged\ndef main(x): return Derived().times(x)",
        "def make(k):\n    def closure(x): return helper(x) + k\n    return closure",
        "import beside\nfrom mypackage import deep\nimport mypackage.inner as inner\n"
        "def local(x): return beside.scaled(x), deep(x), inner.deep(x)",
    ]
    for code in cells:
        kernel.run(code)
    cell = kernel.run("remote = kt.fn(main).to(compute, stream_logs=False)\nprint(remote(1.5, stream_logs=True))")
    assert cell.stdout == "called main\n55\n"
    for expression, expected in [
        ("kt.fn(make(5)).to(compute)(1.5)", "16"),
        ("kt.fn(lambda x: helper(x) ** 2).to(compute)(1.5)", "121"),
        ("kt.fn(functools.partial(make(1), 1.5), name='part').to(compute)()", "12"),
        ("kt.fn(Derived().times, name='bound').to(compute)(1.5)", "55"),
        ("kt.cls(Derived).to(compute).times(1.5)", "55"),
        ("kt.fn(local).to(compute)(2)", "(14, 102, 102)"),
        ("kt.fn(beside.scaled).to(compute)(3)", "21"),
        ("kt.fn(deep).to(compute)(3)", "103"),
    ]:
        cell = kernel.run(f"print('->', {expression})")
        assert cell.stdout.splitlines()[-1] == f"-> {expected}", expression
    # A cell that is run again counts from the next deploy on.
    kernel.run("def helper(x): return 1000")
    assert kernel.run("remote = kt.fn(main).to(compute)\nprint('->', remote(0))").stdout.endswith("-> 5000\n")
    kernel.run("OFFSET = 0\ndef helper(x): return OFFSET")
    assert kernel.run("remote = kt.fn(main).to(compute)\nprint('->', remote(0))").stdout.endswith("-> 0\n")
    kernel.run("OFFSET = 2")
    assert kernel.run("remote = kt.fn(main).to(compute)\nprint('->', remote(0))").stdout.endswith("-> 10\n")


def test_a_traceback_shows_the_cells_lines(kernel: Kernel) -> None:
    kernel.run(LOAD)
    kernel.run("class Mine(Exception): pass\ndef inner(x):\n    raise Mine(f'no {x}')  # the line")
    kernel.run("def outer(x):\n    return inner(x)\nremote = kt.fn(outer).to(compute, stream_logs=False)")
    cell = kernel.begin("try:\n    remote(3)\nexcept Mine as e:\n    print('caught', e)\nremote(4)").wait()
    assert cell.stdout == "caught no 3\n"
    assert cell.error is not None
    assert cell.error["ename"] == "Mine"
    text = "\n".join(cell.error["traceback"])
    import re

    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "# the line" in plain
    assert "return inner(x)" in plain
    assert "remote(4)" in plain
    assert "pod_server" not in plain
    assert "calls/invocation.py" not in plain


def test_preview_says_what_travels(newest_kernel: Kernel) -> None:
    newest_kernel.run(LOAD)
    newest_kernel.run("import numpy as np\nweights = np.zeros(3_000_000)\ndef f(): return weights.sum()")
    shown = newest_kernel.run("print(repr(kt.preview(f)))").stdout
    assert "weights" in shown
    assert "MiB" in shown
    assert "numpy" in shown
    newest_kernel.run("import threading\nlock = threading.Lock()\ndef g(): return lock")
    cell = newest_kernel.begin("kt.fn(g).to(compute)").wait()
    assert cell.error is not None
    assert cell.error["ename"] == "SerializationError"
    assert "lock" in cell.error["evalue"]
    assert newest_kernel.run("print(kt.services())").stdout.strip() == "no services"
