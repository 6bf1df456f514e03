"""Values to buffers and back, in this process and through another."""

from __future__ import annotations

import collections
import functools
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kubetorch_jupyter.shipping import pack
from pod_server import serialization
from pod_server.serialization import DecodeError, EncodeError, TooLargeError, dumps, load_code, loads, nbytes
from tests.podlet import Cells, Podlet


@pytest.fixture
def cells() -> Iterator[Cells]:
    made = Cells()
    yield made
    made.clear()


def roundtrip(value: Any, **options: Any) -> Any:
    return loads([bytes(b) for b in dumps(value, **options)])


@pytest.mark.parametrize(
    "value",
    [
        *(None, 0, -1, 2**80, 1.5, "é\ud800", b"\x00", True, ..., 1j, (), [], {}, frozenset([1]), {1, 2}),
        ((1, "a"), {"k": [1, {"b": None}]}),
        {1: 2, (3, 4): [5]},
        [[[[[[[[1]]]]]]]],
        list(range(1000)),
        collections.OrderedDict(a=1),
        slice(1, 2),
        range(3),
        b"x" * 100_000,
    ],
)
def test_values_come_back_equal(value: Any) -> None:
    back = roundtrip(value)
    assert back == value
    assert type(back) is type(value)


def test_a_small_call_is_quick() -> None:
    value = ((1, "a", 2.5), {"k": 1})
    best = min(_time(lambda: loads(dumps(value)), 2000) for _ in range(5))
    print(f"dumps and loads of a small call: {best * 1e6:.2f} µs")
    assert best < 20e-6


def _time(f: Any, n: int) -> float:
    start = time.perf_counter()
    for _ in range(n):
        f()
    return (time.perf_counter() - start) / n


def test_objects_of_main_never_go_by_reference(cells: Cells) -> None:
    cells.run("class M:\n    pass\ndef f():\n    return 1\nclass S(str):\n    pass")
    for value in (cells["M"](), [cells["M"]], {"k": (1, cells["f"])}, ((cells["S"]("x"),), {}), cells["S"]("x")):
        data = dumps(value)[0]
        assert b"_make_skeleton_class" in data or b"_make_function" in data


# -- arrays ------------------------------------------------------------------------------------------------------------


def test_arrays_are_out_of_band_and_writable() -> None:
    big, small = np.arange(100_000), np.arange(3)
    buffers = dumps({"a": [big], "b": small, "c": big.reshape(2, -1).T})
    assert len(buffers) == 3
    assert len(buffers[0]) < 1000
    assert np.shares_memory(np.frombuffer(buffers[1], "i8"), big)
    for inline in (True, False):
        back = loads([bytes(b) if inline else bytearray(b) for b in buffers])
        for key in ("b", "c"):
            back[key][0] = 7
        back["a"][0][0] = 7
        assert big[0] == 0
        assert back["a"][0][1] == 1
        assert back["c"].flags.f_contiguous


def test_writable_buffers_are_taken_as_they_are() -> None:
    big = np.arange(100_000)
    buffers = dumps(big)
    memory = bytearray(buffers[1])
    back = loads([buffers[0], memoryview(memory)])
    back[0] = 9
    assert memory[0] == 9


def test_a_snapshot_does_not_see_later_changes() -> None:
    big = np.zeros(100_000)
    view, copy = dumps(big), dumps(big, snapshot=True)
    big[0] = 1
    assert loads(view)[0] == 1
    assert loads(copy)[0] == 0


def test_many_arrays_do_not_make_too_many_buffers() -> None:
    arrays = [np.full(2000, i) for i in range(3000)]
    buffers = dumps(arrays)
    assert len(buffers) < 2100
    assert all((a == b).all() for a, b in zip(arrays, loads(buffers), strict=True))


def test_frames_and_object_arrays() -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    pd.testing.assert_frame_equal(roundtrip(frame), frame)
    odd = np.array([None, "x", 3], dtype=object)
    assert (roundtrip(odd) == odd).all()
    strided = np.arange(100_000)[::2]
    assert (roundtrip(strided) == strided).all()


def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serialization, "MAX_BYTES", 10_000)
    for value in (np.zeros(10_000), b"x" * 20_000, "x" * 20_000):
        with pytest.raises(TooLargeError, match="GiB"):
            dumps(value)
    for ser in ("json", "none"):
        with pytest.raises(TooLargeError):
            dumps("x" * 20_000 if ser == "json" else b"x" * 20_000, ser=ser)
    assert nbytes(dumps(b"x")) < 100


# -- classes -----------------------------------------------------------------------------------------------------------


def test_a_known_class_keeps_its_attributes(cells: Cells) -> None:
    cells.run(
        "import enum\n"
        "class Base:\n"
        "    made = []\n"
        "    def __init_subclass__(cls):\n"
        "        Base.made.append(cls.__name__)\n"
        "class M(Base):\n"
        "    registry = []\n"
        "class Colour(enum.Enum):\n"
        "    RED = 1\n"
    )
    M, Colour = cells["M"], cells["Colour"]
    buffers = dumps([M(), Colour.RED])
    M.registry.append("here")
    M.extra = 1
    back, red = loads(buffers)
    assert type(back) is M
    assert M.registry == ["here"]
    assert M.extra == 1
    assert cells["Base"].made == ["M"]
    assert red is Colour.RED


def test_what_the_pod_does_to_a_class_stays_there(cells: Cells, tmp_path: Path) -> None:
    cells.run(
        "class M:\n"
        "    registry = []\n"
        "    version = 1\n"
        "    def go(self, other=None):\n"
        "        type(self).registry.append('pod')\n"
        "        type(self).fresh = True\n"
        "        return self, M.registry, M.version\n"
        "class Error(Exception):\n"
        "    def __init__(self, code, *, why):\n"
        "        super().__init__('failed')\n"
        "        self.code, self.why = code, why\n"
        "def f(m, fail=False):\n"
        "    if fail:\n"
        "        raise Error(3, why='é')\n"
        "    assert isinstance(m, M)\n"
        "    return m.go()\n"
    )
    M = cells["M"]
    with Podlet(tmp_path) as pod:
        pod.load(pack(cells["f"]))
        back, registry, _ = pod.call(M())
        assert type(back) is M
        assert (M.registry, registry) == ([], ["pod"])
        assert not hasattr(M, "fresh")
        # The pod has the class already: what comes with a call leaves the pod's alone.
        M.version = 2
        assert pod.call(M())[1:] == (["pod", "pod"], 1)
        with pytest.raises(cells["Error"]) as caught:
            pod.call(M(), fail=True)
        assert (caught.value.code, caught.value.why, str(caught.value)) == (3, "é", "failed")
        # A deploy brings the class as it is now.
        pod.load(pack(cells["f"]))
        assert pod.call(M())[1:] == (["pod"], 2)


def test_code_keeps_the_name_of_its_file(cells: Cells) -> None:
    """Tracebacks find the cell's lines by it, and cloudpickle 3.1.3 leaves it out."""
    cells.run("def f(x):\n    return [lambda: x]")
    f = serialization.loads(serialization.dumps(cells["f"]))
    assert f.__code__.co_filename == cells["f"].__code__.co_filename
    assert f(1)[0].__code__.co_filename == cells["f"].__code__.co_filename
    assert (f.__code__.co_name, f.__code__.co_firstlineno) == ("f", 1)


def test_load_code_makes_classes_anew(cells: Cells) -> None:
    cells.run("class M:\n    n = 1\n    def me(self):\n        return M")
    M = cells["M"]
    buffers = dumps((M, [M()]))
    del cells.namespace["M"]  # no pod has it there
    fresh, (instance,) = load_code(buffers)
    assert fresh is not M
    assert type(instance) is fresh
    assert instance.me() is fresh
    assert loads(buffers)[0] is fresh


def test_threads_that_meet_a_class_together_all_get_it_whole(cells: Cells, tmp_path: Path) -> None:
    cells.run("class M:\n    def __init__(self):\n        self.x = 1\n    def go(self):\n        return self.x")
    path = tmp_path / "pickle"
    path.write_bytes(dumps(cells["M"]())[0])
    with Podlet(tmp_path) as pod:
        cells.run(
            "def race(path):\n"
            "    import concurrent.futures, sys\n"
            "    from pod_server import _pickling, serialization\n"
            "    sys.setswitchinterval(1e-6)\n"
            "    data = open(path, 'rb').read()\n"
            "    with concurrent.futures.ThreadPoolExecutor(16) as pool:\n"
            "        found = list(pool.map(lambda _: serialization.loads([data]), range(200)))\n"
            "    return len({type(m) for m in found}), sum(m.go() for m in found), len(_pickling._unfinished)\n"
        )
        pod.load(pack(cells["race"]))
        assert pod.call(str(path)) == (1, 200, 0)


def test_what_cells_have_and_cloudpickle_alone_can_not_send(cells: Cells, tmp_path: Path) -> None:
    cells.run(
        "import functools, weakref\n"
        "@functools.lru_cache(maxsize=5)\n"
        "def cached(n):\n"
        "    return n + 1\n"
        "class C:\n"
        "    @functools.cached_property\n"
        "    def value(self):\n"
        "        return 42\n"
        "@functools.singledispatch\n"
        "def show(x):\n"
        "    return 'any'\n"
        "@show.register\n"
        "def _(x: int):\n"
        "    return 'int'\n"
        "def f():\n"
        "    return cached(1), cached.cache_info().maxsize, C().value, show(1), show('')\n"
    )
    with Podlet(tmp_path) as pod:
        pod.load(pack(cells["f"]))
        assert pod.call() == (2, 5, 42, "int", "any")


# -- what can't be sent ------------------------------------------------------------------------------------------------


class Holder:
    def __init__(self, lock: Any) -> None:
        self.lock = lock


class Hostile:
    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner: Any) -> None:
        self.inner = inner


LOCK = threading.Lock()


@pytest.mark.parametrize(
    ("value", "path", "type_name"),
    [
        (LOCK, "value", "_thread.lock"),
        (((1, Holder(LOCK)), {}), "args[1].lock", "_thread.lock"),
        (((), {"model": {"a b": [LOCK]}}), "kwargs['model']['a b'][0]", "_thread.lock"),
        (Slotted(LOCK), "value.inner", "_thread.lock"),
        ([collections.deque([Holder(LOCK)])], "value[0][0].lock", "_thread.lock"),
        (functools.partial(print, LOCK), "value", "_thread.lock"),
        ([Hostile()], "value[0]", "tests.pod_server.test_serialization.Hostile"),
        ((i for i in ()), "value", "generator"),
    ],
)
def test_unpicklable_names_type_and_path(value: Any, path: str, type_name: str) -> None:
    with pytest.raises(EncodeError) as caught:
        dumps(value)
    assert caught.value.path.startswith(path)
    assert caught.value.type_name == type_name
    assert path in str(caught.value)
    assert type_name in str(caught.value)


def test_unpicklable_in_functions_and_classes(cells: Cells) -> None:
    cells.run(
        "import threading\n"
        "lock = threading.Lock()\n"
        "def helper():\n    return lock\n"
        "class M:\n    shared = lock\n    def go(self):\n        return helper()\n"
        "def outer(l):\n    def inner():\n        return l\n    return inner\n"
        "inner = outer(lock)\n"
    )
    for value, path in (
        (cells["helper"], "value.<globals>.lock"),
        (cells["M"], "value.shared"),
        (cells["inner"], "value.<closure>.l"),
        ([cells["M"]().go], "value[0].__self__.__class__.shared"),
    ):
        with pytest.raises(EncodeError) as caught:
            dumps(value)
        assert caught.value.path == path


def test_deep_nesting_is_an_error_that_says_so() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(EncodeError, match="nested too deeply"):
        dumps(value)
    while value:  # taken apart by hand: dropping it all at once recurses as well
        value = value.pop()


def test_errors_can_be_pickled_themselves() -> None:
    for error in (EncodeError("m", "p", "t"), DecodeError("m", "t", "mod"), TooLargeError(5 * 1024**3)):
        back = roundtrip(error)
        assert type(back) is type(error)
        assert vars(back) == vars(error)
        assert str(back) == str(error)


# -- what can't be made here -------------------------------------------------------------------------------------------


def test_a_missing_module_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone_lib.py").write_text("class Thing:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import gone_lib  # type: ignore[import-not-found]

    buffers = dumps([gone_lib.Thing()])
    monkeypatch.undo()
    del sys.modules["gone_lib"]
    with pytest.raises(DecodeError) as caught:
        loads(buffers)
    assert caught.value.module == "gone_lib"
    assert caught.value.type_name == "gone_lib.Thing"
    assert "gone_lib" in str(caught.value)


class Changing:
    def __setstate__(self, state: Any) -> None:
        raise ValueError("an old state")

    def __getstate__(self) -> Any:
        return {"a": 1}


def test_failures_name_the_type(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DecodeError, match=r"Changing.*ValueError: an old state"):
        loads(dumps(Changing()))
    buffers = dumps(Holder(1))
    monkeypatch.delattr(sys.modules[__name__], "Holder")
    with pytest.raises(DecodeError, match="Holder"):
        loads(buffers)


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"garbage", b"\x80\x05.", b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\xff"]
)
def test_damaged_bytes(data: bytes) -> None:
    with pytest.raises(DecodeError):
        loads([data])
    with pytest.raises(DecodeError):
        loads([])


# -- json and none -----------------------------------------------------------------------------------------------------


def test_json() -> None:
    assert dumps({"a": ["é", 1]}, ser="json") == ['{"a":["é",1]}'.encode()]
    assert loads([memoryview(b"[1, 2]")], "json") == [1, 2]
    with pytest.raises(EncodeError, match="set") as caught:
        dumps({1, 2}, ser="json")
    assert 'serialization="pickle"' in str(caught.value)
    with pytest.raises(DecodeError, match="not JSON"):
        loads([b"{"], "json")


def test_none() -> None:
    assert loads(dumps(b"ab", ser="none"), "none") == b"ab"
    assert loads(dumps(None, ser="none"), "none") == b""
    memory = bytearray(b"xy")
    view, copy = dumps(memory, ser="none"), dumps(memory, ser="none", snapshot=True)
    memory[0] = 0
    assert (bytes(view[0]), bytes(copy[0])) == (b"\x00y", b"xy")
    with pytest.raises(EncodeError, match="int"):
        dumps(3, ser="none")


def test_unknown_serialization() -> None:
    with pytest.raises(ValueError, match="yaml"):
        dumps(1, ser="yaml")
    with pytest.raises(ValueError, match="yaml"):
        loads([b""], "yaml")
