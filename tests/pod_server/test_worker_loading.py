"""Code in the worker: loaded, replaced, refused."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kubetorch_jupyter import by_source
from tests.podlet import Cells

from .fake_front import Failed, FakeFront

THIS = sys.modules[__name__]


@pytest.fixture(scope="module")
def front() -> Iterator[FakeFront]:
    import cloudpickle

    cloudpickle.register_pickle_by_value(THIS)
    try:
        with FakeFront() as front:
            yield front
    finally:
        cloudpickle.unregister_pickle_by_value(THIS)


def make_zip(**files: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name, text in files.items():
            z.writestr(name.replace("__", "/") + ".py", text)
    return out.getvalue()


def test_call_before_load() -> None:
    with FakeFront() as front, pytest.raises(Failed) as info:
        front.call()
    assert info.value.type == "StartupError"


def test_result_and_log_of_a_load(front: FakeFront) -> None:
    class Talks:
        def __init__(self, *names: str) -> None:
            print("hello", *names)

    record = front.deploy(Talks, init_args=["a", "b"], version="v7")
    assert record.meta == {"version": "v7"}
    assert record.text() == "hello a b\n"


@pytest.mark.parametrize(("given", "what"), [({"python": "2.7"}, "python"), ({"cloudpickle": "99.1"}, "cloudpickle")])
def test_versions_are_compared_first(front: FakeFront, given: dict[str, str], what: str) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return print, ("unpickled",)

    record = front.load(Bomb(), kind="fn", **given)
    with pytest.raises(Failed) as info:
        record.wait()
    assert info.value.type == "VersionMismatchError"
    assert info.value.error["what"] == what
    assert info.value.error["client"] in info.value.error["message"]
    assert record.text() == ""


def test_error_in_the_constructor(front: FakeFront) -> None:
    front.deploy(lambda: "old")

    class Broken:
        def __init__(self) -> None:
            raise ValueError("can't")

    with pytest.raises(ValueError, match="can't"):
        front.deploy(Broken)
    assert front.call() == "old"  # a function was there, and is still


def test_missing_package(front: FakeFront) -> None:
    class Needs:
        def __init__(self) -> None:
            import sklearn_is_not_here  # type: ignore[import-not-found]  # noqa: F401

    with pytest.raises(ModuleNotFoundError, match=r'pip_install\(\["sklearn_is_not_here"\]\)'):
        front.deploy(Needs)

    import types

    module = types.ModuleType("yaml")
    module.f = lambda: 1  # type: ignore[attr-defined]
    sys.modules["yaml_gone"] = module
    try:
        module.__name__ = "yaml_gone"
        with pytest.raises(ModuleNotFoundError, match="pip_install") as info:
            front.deploy(lambda: module.f())
        assert info.value.name == "yaml_gone"
    finally:
        del sys.modules["yaml_gone"]


def test_damaged_code(front: FakeFront) -> None:
    from pod_server.wire import FrameType

    for buffers in (
        [b"{}"],
        [b"{", b"{}", b"", b"N."],
        [b"{}", b"{}", b"no zip", b"N."],
        [b"{}", b"{}", b"", b"garbage"],
    ):
        record, data = front.frame(FrameType.LOAD, {"kind": "fn"}, buffers)
        front.send(data)
        with pytest.raises(Failed) as info:
            record.wait()
        assert info.value.type == "StartupError"


def test_redeploy_of_a_function_under_calls(front: FakeFront) -> None:
    def make(version: int) -> Any:
        def work(nap: float) -> int:
            time.sleep(nap)
            return version

        return work

    front.deploy(make(0))
    for version in range(1, 31):
        before = front.start_all([(0.01,)] * 5)
        load = front.load(make(version))
        assert [r.wait() for r in before] == [version - 1] * 5
        load.wait()
        assert front.call(0) == version


def test_redeploy_of_a_class(front: FakeFront) -> None:
    class Counter:
        def __init__(self) -> None:
            import gc

            # what is left of the one before
            print("others:", sum(type(o).__name__ == "Counter" for o in gc.get_objects()) - 1)
            self.n = 0

        def up(self) -> int:
            self.n += 1
            return self.n

    front.deploy(Counter)
    assert [front.call(_f="up") for _ in range(3)] == [1, 2, 3]
    for r in front.start_all([()] * 50, _f="up"):
        r.wait()
    front.events.clear()
    record = front.deploy(Counter)
    assert record.text() == "others: 0\n"
    assert front.call(_f="up") == 1
    assert [e["event"] for e in front.events] == ["state-lost"]


def test_changed_class_of_the_same_identity(front: FakeFront) -> None:
    class Model:
        def get(self) -> str:
            return "old"

    front.deploy(Model)
    assert front.call(_f="get") == "old"
    Model.get = lambda self: "new"  # type: ignore[method-assign]
    front.deploy(Model)
    assert front.call(_f="get") == "new"


def test_large_code(front: FakeFront) -> None:
    array = np.arange(1_000_000)
    front.deploy(lambda i: int(array[i]))
    assert front.call(77) == 77
    assert os.listdir(front.bulk) == []


def test_sources_are_in_tracebacks(front: FakeFront) -> None:
    import inspect

    name = "/cells/ipykernel_1/2.py"
    text = "def f(x):\n    return 1 / x  # here it breaks\n"
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, name, "exec"), space)
    front.deploy(space["f"], sources={name: text})
    record = front.start(0)
    with pytest.raises(ZeroDivisionError) as info:
        record.wait()
    assert any(str(e.path).endswith("2.py") and e.lineno == 1 for e in info.traceback)

    def show(x: int) -> str:
        import traceback

        try:
            space["f"](x)
        except ZeroDivisionError:
            return traceback.format_exc()
        return inspect.getsource(space["f"])

    front.deploy(show, sources={name: text})
    assert "here it breaks" in front.call(0)
    assert "here it breaks" in front.call(1)


def test_modules(front: FakeFront) -> None:
    files = {
        "kt_helper": "VALUE = 5\nfrom kt_package.inner import twice\n",
        "kt_package____init__": "",
        "kt_package__inner": "twice = lambda x: 2 * x\n",
    }
    data = make_zip(**files)

    def use(x: int) -> Any:
        import kt_helper  # type: ignore[import-not-found]

        return kt_helper.VALUE, kt_helper.twice(x), kt_helper.__file__

    front.deploy(use, modules=data)
    value, twice, path = front.call(4)
    assert (value, twice) == (5, 8)
    assert path.startswith(front.dir)
    front.deploy(use, modules=data)
    assert front.call(4)[2] == path
    assert len(os.listdir(os.path.join(front.dir, "code"))) == 1


def test_by_source(front: FakeFront) -> None:
    cells = Cells()
    try:
        cells.run("import math\nBASE = int(math.floor(100.5))\n")
        cells.run("class Adder:\n def __init__(self, n): self.n = n\n def add(self, x): return BASE + self.n + x\n")
        cells.run("class Other:\n def __init__(self): raise ValueError(BASE)\n")
        how = {"header": {"how": "source"}, "dumps": by_source.dumps, "python": "2.7"}
        front.deploy(cells["Adder"], init_args={"n": 10}, **how)
        assert front.call(1, _f="add") == 111
        with pytest.raises(ValueError, match="100"):
            front.deploy(cells["Other"], **how)
    finally:
        cells.clear()


def test_threads_of_the_constructor_have_the_loads_log(front: FakeFront) -> None:
    class Background:
        def __init__(self) -> None:
            self.stop = threading.Event()
            threading.Thread(target=self.run, daemon=True).start()

        def run(self) -> None:
            while not self.stop.wait(0.01):
                print("tick")

        def end(self) -> None:
            self.stop.set()

    record = front.deploy(Background)
    record.until(lambda r: r.text().count("tick") >= 2)
    call = front.start(_f="end")
    call.wait()
    assert call.text() == ""


def test_memory_of_calls(front: FakeFront) -> None:
    """Calls, their logs and their errors leave nothing behind."""

    def work(i: int) -> Any:
        print("call", i)
        if i % 2:
            raise ValueError(i)
        return i

    def count() -> int:
        import gc

        gc.collect()
        return len(gc.get_objects())

    def both(i: int) -> Any:
        return count() if i < 0 else work(i)

    front.deploy(both, concurrency=4)  # a thread that comes late would look like something left behind

    def run(n: int) -> int:
        for r in front.start_all([(i,) for i in range(n)]):
            try:
                r.wait()
            except ValueError:
                pass
        found: int = front.call(-1)
        return found

    run(2000)
    before = run(300)
    assert run(2000) - before < 300
