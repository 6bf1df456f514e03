"""Pods of other Python versions: the server runs there, and by-value code is refused before it is unpickled."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kubetorch_jupyter as kt
from kubetorch_jupyter import shipping
from kubetorch_jupyter.transport.endpoint import Endpoint
from kubetorch_jupyter.transport.portal import get_portal
from kubetorch_jupyter.transport.session import Session
from tests.cells import Cells
from tests.foreign import OTHERS, foreign_pod


@pytest.fixture(params=OTHERS)
def pod(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Endpoint]]:
    """A whole pod run by another Python."""
    with foreign_pod(request.param, tmp_path) as endpoint:
        yield request.param, endpoint


def test_code_by_value_is_refused_before_it_is_unpickled(pod: tuple[str, Endpoint], tmp_path: Path) -> None:
    version, endpoint = pod
    cells = Cells()
    cells["path"] = str(tmp_path / "boom")
    cells.run(
        """
        class Bomb:
            def __reduce__(self): return (open, (path, "w"))
        bomb = Bomb()
        def f(): return bomb
        """
    )
    bundle = shipping.pack(cells["f"], name="f", kind="fn")

    async def run() -> None:
        session = Session(endpoint)
        await session.open()
        try:
            assert session.welcome["python"] == version
            await session.load({**bundle.meta, "version": "1", "worker": "1"}, bundle.buffers)
        finally:
            await session.close()

    with pytest.raises(kt.VersionMismatchError) as caught:
        get_portal().run(run())
    assert version in str(caught.value)
    assert "{}.{}".format(*sys.version_info) in str(caught.value)
    assert not (tmp_path / "boom").exists()
