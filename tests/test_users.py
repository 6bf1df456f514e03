"""What a user tries first, and what went wrong when somebody did."""

from __future__ import annotations

import pytest

import kubetorch_jupyter as kt
from tests.cells import Cells


@pytest.fixture
def cells() -> Cells:
    return Cells()


def test_exceptions_larger_than_a_frame_arrive_as_themselves(cells: Cells) -> None:
    cells.run(
        """
        class MyError(Exception):
            def __init__(self, text, data):
                super().__init__(text)
                self.data = data

        def fail(n):
            raise MyError("é" * n, b"x" * n)

        def recurse(n=0):
            try:
                return recurse(n + 1) + 1
            except RecursionError:
                if n % 7:
                    raise
                raise RuntimeError(n)
        """
    )
    with kt.fn(cells["fail"]).to(kt.Compute(), stream_logs=False) as fail:
        for n in (100, 66_000, 300_000):
            with pytest.raises(cells["MyError"]) as caught:
                fail(n)
            assert caught.value.data == b"x" * n
    with kt.fn(cells["recurse"]).to(kt.Compute(), stream_logs=False) as recurse, pytest.raises(RuntimeError):
        recurse()
