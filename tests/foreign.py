"""Pods of other Python versions: whole ones, and a backend that knows nothing but one of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kubetorch_jupyter.backends.base import Event, ServiceInfo, ServiceSpec
from kubetorch_jupyter.compute import Compute
from kubetorch_jupyter.transport.endpoint import Endpoint

__all__ = ["OTHERS", "FixedBackend", "foreign_pod", "interpreter"]

ROOT = Path(__file__).resolve().parent.parent
OTHERS = [v for v in ("3.10", "3.12", "3.13") if v != "{}.{}".format(*sys.version_info)]


def interpreter(version: str, *, whole: bool) -> str:
    """A Python of that version; skips the test when there is none.

    For a ``whole`` pod of Python 3.10 it is of an environment of its own, since today's websockets needs a later
    Python; CI makes that.
    """
    import pytest  # a kernel that imports this module may have none

    if version == "3.10" and whole:
        python = os.environ.get("POD_SERVER_PYTHON_310", "")
        if not python:
            pytest.skip("no environment of Python 3.10 with the pod server's packages: .ci/run makes one")
        return python
    found = subprocess.run([str(ROOT / "scripts" / "find-python"), version], capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"no Python {version} on this machine")
    return found.stdout.strip()


@contextmanager
def foreign_pod(version: str, directory: Path) -> Iterator[Endpoint]:
    """A whole pod run by another Python; the pure-Python packages that it needs are this one's."""
    python = interpreter(version, whole=True)
    path = [str(ROOT)] if version == "3.10" else [str(ROOT), sysconfig.get_paths()["purelib"]]
    token = directory / "token"
    token.write_text("a-token-of-the-test")
    scratch = tempfile.mkdtemp(prefix="kt-")  # a test's own folder may have too long a name for sockets
    process = subprocess.Popen(
        [python, "-m", "pod_server", "--name", "other", "--token-file", str(token)],
        cwd=directory,
        env={
            **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            "PYTHONPATH": os.pathsep.join(path),
            "TMPDIR": scratch,
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().split()[0]
        yield Endpoint("other", url, token.read_text())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        process.stdout.close()
        os.rmdir(scratch)  # the pod leaves nothing, and not even an empty directory is its to remove


class FixedBackend:
    """A backend whose pod is there: all that differs from others is whose Python it has.

    It is a `Revision` too.
    """

    name = "other"
    here = False
    new = False

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoints = (endpoint,)

    def full_name(self, name: str) -> str:
        return name

    def complete(self, compute: Compute) -> Compute:
        return compute

    def where(self) -> str:
        return "in the test's pod"

    async def apply(self, spec: ServiceSpec, progress: Any) -> FixedBackend:
        return self

    async def keep(self, meta: Mapping[str, Any], buffers: Sequence[Any], progress: Any, *, loaded: bool) -> None:
        self.kept = meta, buffers

    async def discard(self) -> None:
        pass

    async def find(self, name: str) -> ServiceInfo | None:
        return ServiceInfo(name, self.name, "running", time.time(), {}, {}, self.endpoints)

    async def list(self) -> Sequence[ServiceInfo]:
        return ()

    def known(self) -> Sequence[ServiceInfo]:
        return ()

    async def delete(self, name: str) -> None:
        pass

    async def watch(self, name: str) -> AsyncIterator[Event]:
        return
        yield
