"""What comes back from a call, and what can't: sizes, arrays, snapshots, objects that can't travel (issue case 14)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

import kubetorch_jupyter as kt
from tests.cells import Cells


@pytest.fixture(scope="module")
def service() -> Iterator[object]:
    cells = Cells()
    cells.run(
        """
        import threading
        import numpy as np

        class Values:
            def none(self): return None
            def echo(self, value): return value
            def zeros(self, n): return np.zeros(n, dtype=np.uint8)
            def nested(self, n):
                return {"a": [np.arange(n), (np.ones((n, 2)), b"x" * n)], "b": {"c": np.float32(1.5)}}
            def total(self, array, seconds=0.0):
                import time
                time.sleep(seconds)
                return int(array.sum())
            def lock(self): return {"inner": [threading.Lock()]}
            def generator(self):
                yield np.zeros(3_000_000, dtype=np.uint8)
                yield 7
            def only_here(self):
                import sys, types
                module = types.ModuleType("only_in_the_pod")
                exec("class Thing: pass", module.__dict__)
                sys.modules["only_in_the_pod"] = module
                module.Thing.__module__ = "only_in_the_pod"
                return module.Thing()
            def huge(self): return np.empty((4 << 30) + 1, dtype=np.uint8)
            def big_text(self, n): return "é" * n
        """
    )
    with kt.cls(cells["Values"]).to(kt.Compute(), stream_logs=False) as handle:
        yield handle


def test_none_and_nothing(service: kt.Cls) -> None:
    assert service.none() is None
    assert service.echo(b"") == b""
    assert service.echo("") == ""
    assert service.echo(np.zeros(0)).shape == (0,)


@pytest.mark.parametrize("n", [1, 50_000, 57_344, 60_000, 65_536, 70_000, 1 << 20])
def test_sizes_around_the_inline_limit(service: kt.Cls, n: int) -> None:
    data = bytes(range(256)) * (n // 256 + 1)
    assert service.echo(data[:n]) == data[:n]
    array = np.frombuffer(data[:n], dtype=np.uint8)
    assert (service.echo(array) == array).all()


def test_a_256_mib_array_is_writable(service: kt.Cls) -> None:
    array = service.zeros(256 << 20)
    assert array.nbytes == 256 << 20
    assert not array.any()
    array[0] = 1
    assert array[0] == 1


def test_small_arrays_are_writable(service: kt.Cls) -> None:
    array = service.echo(np.arange(4))
    array += 1
    assert array.tolist() == [1, 2, 3, 4]


def test_nested_arrays(service: kt.Cls) -> None:
    for n in (3, 100_000):
        value = service.nested(n)
        inner = value["a"]
        assert (inner[0] == np.arange(n)).all()
        assert inner[1][0].shape == (n, 2)
        assert inner[1][1] == b"x" * n
        assert value["b"]["c"] == np.float32(1.5)
        inner[0][0] = 5
        inner[1][0][0] = 2.0


def test_large_items_of_a_generator(service: kt.Cls) -> None:
    first, second = service.generator()
    assert first.nbytes == 3_000_000
    first[0] = 1
    assert second == 7


@pytest.mark.parametrize("n", [1_000, 40 << 20])
def test_a_call_that_does_not_block_takes_a_snapshot(service: kt.Cls, n: int) -> None:
    array = np.ones(n, dtype=np.uint8)
    call = service.total.spawn(array, seconds=0.2)
    array[:] = 0
    assert call.result(timeout=60) == n

    async def run() -> int:
        array[:] = 1
        task = asyncio.ensure_future(service.total(array, async_=True))
        await asyncio.sleep(0)
        array[:] = 0
        return await task

    assert asyncio.run(run()) == n


def test_more_than_4_gib_is_refused(service: kt.Cls) -> None:
    with pytest.raises(kt.PayloadTooLargeError, match="4"):
        service.huge()
    with pytest.raises(kt.PayloadTooLargeError, match="4"):
        service.echo(np.empty((4 << 30) + 1, dtype=np.uint8))
    assert service.echo(1) == 1


def test_a_result_that_cannot_be_pickled(service: kt.Cls) -> None:
    with pytest.raises(kt.SerializationError, match="lock"):
        service.lock()
    assert service.echo(1) == 1


def test_an_argument_that_cannot_be_pickled(service: kt.Cls) -> None:
    import threading

    with pytest.raises(kt.SerializationError, match="lock"):
        service.echo(threading.Lock())


def test_a_result_that_cannot_be_unpickled_here(service: kt.Cls) -> None:
    with pytest.raises(kt.SerializationError, match="only_in_the_pod"):
        service.only_here()
    assert service.echo(1) == 1


def test_other_serializations(service: kt.Cls) -> None:
    assert service.echo({"a": [1, None, "é"]}, serialization="json") == {"a": [1, None, "é"]}
    with pytest.raises(kt.SerializationError, match=r"ndarray|JSON"):
        service.zeros(3, serialization="json")
    with pytest.raises(kt.ConfigError, match="serialization"):
        service.echo(1, serialization="yaml")


def test_a_long_text(service: kt.Cls) -> None:
    assert service.big_text(3_000_000) == "é" * 3_000_000
