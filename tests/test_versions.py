"""Pods of other Python versions: the server runs there, and by-value code is refused before it is unpickled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

import kubetorch_jupyter as kt
from kubetorch_jupyter import shipping
from kubetorch_jupyter.transport.endpoint import Endpoint
from kubetorch_jupyter.transport.portal import get_portal
from kubetorch_jupyter.transport.session import Session
from tests.cells import Cells
from tests.conftest import ROOT

OTHERS = [v for v in ("3.10", "3.12", "3.13") if v != "{}.{}".format(*sys.version_info)]


@pytest.fixture(params=OTHERS)
def pod(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Endpoint]]:
    """A whole pod run by another Python; the pure-Python packages that it needs are this one's.

    Python 3.10 has to have its own, since today's websockets needs a later one: CI makes an environment of it.
    """
    version: str = request.param
    path = [str(ROOT)]
    if version == "3.10":
        python = os.environ.get("POD_SERVER_PYTHON_310", "")
        if not python:
            pytest.skip("no environment of Python 3.10 with the pod server's packages: .ci/run makes one")
    else:
        found = subprocess.run([str(ROOT / "scripts" / "find-python"), version], capture_output=True, text=True)
        if found.returncode:
            pytest.skip(f"no Python {version} on this machine")
        python = found.stdout.strip()
        path.append(sysconfig.get_paths()["purelib"])
    token = tmp_path / "token"
    token.write_text("a-token-of-the-test")
    process = subprocess.Popen(
        [python, "-m", "pod_server", "--name", "other", "--token-file", str(token)],
        cwd=tmp_path,
        env={
            **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            "PYTHONPATH": os.pathsep.join(path),
            "TMPDIR": str(tmp_path),
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().split()[0]
        yield version, Endpoint("other", url, "a-token-of-the-test")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        process.stdout.close()


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
