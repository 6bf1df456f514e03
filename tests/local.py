"""What the tests of local pods share: deploying without a callable, looking at processes, other clients."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kubetorch_jupyter as kt
from kubetorch_jupyter.backends import local, registry
from kubetorch_jupyter.backends.base import Phase, ServiceInfo, ServiceSpec
from kubetorch_jupyter.backends.local import local_backend
from kubetorch_jupyter.backends.registry import Record
from kubetorch_jupyter.transport.endpoint import Endpoint
from kubetorch_jupyter.transport.portal import get_portal
from pod_server import processes
from tests.kernel.harness import leftover_files, wait_until_gone

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of the test's own, empty again afterwards, and without processes that know it."""
    path = Path(tempfile.mkdtemp(prefix="kt-l-"))
    monkeypatch.setenv("KT_RUNTIME_DIR", str(path))
    local.shutdown()  # so that the root zygotes are this test's
    try:
        yield path
        local.shutdown()
        assert not wait_until_gone(path, 5)
        assert leftover_files(path) == []
        assert not shared_memory(path)
    finally:
        for record in registry.read_all(path):
            for pid, start in record.living:
                if processes.is_alive(pid, start):
                    os.kill(pid, signal.SIGKILL)
        for name in shared_memory(path):
            shutil.rmtree(f"/dev/shm/{name}", ignore_errors=True)
        shutil.rmtree(path, ignore_errors=True)


def shared_memory(runtime: Path) -> list[str]:
    """What that runtime directory's services have in shared memory."""
    return [name for name in os.listdir("/dev/shm") if name.startswith(registry.bulk_prefix(runtime))]


class Lines:
    """A `Progress` that keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.phases: list[Phase] = []

    def __call__(self, phase: Phase, detail: str = "") -> None:
        self.phases.append(phase)

    def note(self, text: str) -> None:
        self.texts.append(text)


def apply(name: str, progress: Lines | None = None, **compute: Any) -> Endpoint:
    spec = ServiceSpec(name, kt.Compute(**compute), {"user": "tester", "pid": os.getpid()})
    return get_portal().run(local_backend().apply(spec, progress or Lines())).endpoints[0]


def find(name: str) -> ServiceInfo | None:
    return get_portal().run(local_backend().find(name))


def delete(name: str) -> None:
    get_portal().run(local_backend().delete(name))


def record_of(name: str) -> Record:
    record = registry.read(name)
    assert record is not None
    return record


def pids(record: Record) -> list[tuple[int, int]]:
    """The pod's processes and everything below them."""
    assert record.front is not None
    assert record.zygote is not None
    return [record.front, record.zygote, *((p.pid, p.start) for p in processes.tree(record.zygote[0]))]


def alive(named: list[tuple[int, int]]) -> list[int]:
    return [pid for pid, start in named if processes.is_alive(pid, start)]


def wait_gone(named: list[tuple[int, int]], path: Path, timeout: float = 10) -> float:
    """Seconds until those processes and the path were gone."""
    begun = time.monotonic()
    while alive(named) or os.path.lexists(path):
        assert time.monotonic() - begun < timeout, (alive(named), os.path.lexists(path))
        time.sleep(0.01)
    return time.monotonic() - begun


CLIENT = """
import json, os, sys, time
import kubetorch_jupyter as kt
from kubetorch_jupyter.backends import registry
from kubetorch_jupyter.backends.base import ServiceSpec
from kubetorch_jupyter.backends.local import local_backend
from kubetorch_jupyter.progress import DeployProgress
from kubetorch_jupyter.transport.portal import get_portal

def apply(name, **compute):
    spec = ServiceSpec(name, kt.Compute(**compute), {"user": "other"})
    return get_portal().run(local_backend().apply(spec, DeployProgress(name, quiet=True))).endpoints[0]

def tell(value):
    print(json.dumps(value), flush=True)

"""


class Client:
    """Another process that deploys."""

    def __init__(self, code: str, **options: Any) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        text = CLIENT + textwrap.dedent(code)
        self.process = subprocess.Popen(
            [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, **options
        )

    def read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the client has ended"
        return json.loads(line)

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            # Of a process that may have ended: what is unwritten is of no use.
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self.process.wait(10)
