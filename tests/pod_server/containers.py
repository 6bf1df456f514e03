"""The two containers of a pod as processes of this machine: an unpacked bundle, and nothing else, on their path.

As root the second one has a process namespace and a `/proc` of its own, as on Kubernetes; else it shares the machine's,
and the tests that need the difference are left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from kubetorch_jupyter.backends.kubernetes.bundle import Bundle, make_bundle
from kubetorch_jupyter.shipping import pack
from pod_server import serialization
from pod_server.wire import F_BULK, F_ERROR, FrameType
from tests.pod_server.podtools import TOKEN, Client
from tests.waiting import until

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent.parent


def _isolates() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], check=False).returncode == 0


#: Whether a process namespace can be had.
ISOLATED = _isolates()


@functools.cache
def the_bundle() -> Bundle:
    return make_bundle()


@functools.cache
def python(version: str) -> str | None:
    """An interpreter of that minor version on this machine."""
    found = subprocess.run(
        [str(ROOT / "scripts" / "find-python"), version], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


def write_bundle(directory: Path) -> Path:
    """What the ConfigMap is mounted as; the path of ``boot.py``."""
    directory.mkdir(exist_ok=True)
    (directory / "bundle.tar.xz").write_bytes(the_bundle().archive)
    (directory / "boot.py").write_bytes(the_bundle().boot)
    return directory / "boot.py"


class Containers:
    """A pod in a directory of its own.

    Parameters
    ----------
    python
        The image's; this one.
    group
        A control group that the worker's container is put into.
    dir
        Where it is; a temporary directory unless given.
    env
        Of the image.
    options
        Of the front's command line.
    """

    def __init__(
        self,
        *options: str,
        python: str = sys.executable,
        group: str | None = None,
        dir: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self._made = None if dir is not None else tempfile.mkdtemp(prefix="kt-containers-")
        self.root = Path(self._made or str(dir))
        self.dir = self.root / "run" / "pod"
        self.code = self.root / "code"
        self.boot = write_bundle(self.root / "bundle")
        self.python = python
        self.options = options
        self.group = group
        self.env = {"PATH": os.environ["PATH"], "HOME": str(self.root), "LANG": "C.UTF-8", **(env or {})}
        (self.root / "token").write_text(TOKEN)
        self.clients: list[Client] = []
        self.front: subprocess.Popen[bytes]
        self.worker: subprocess.Popen[bytes]

    # -- starting

    def _start(self, part: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [
            self.python,
            str(self.boot),
            "--lib",
            str(self.root / "lib"),
            part,
            "--dir",
            str(self.dir),
            *arguments,
        ]
        if part == "worker":
            if self.group is not None:
                command = ["/bin/sh", "-c", f'echo $$ > {self.group}/cgroup.procs; exec "$@"', "sh", *command]
            if ISOLATED:
                command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *command]
        with open(self.root / f"{part}.log", "ab") as log:
            return subprocess.Popen(
                command, env=self.env, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def start_front(self) -> None:
        (self.dir / "front.json").unlink(missing_ok=True)
        options = ("--name", "svc", "--token-file", str(self.root / "token"), "--code-file", str(self.code))
        self.front = self._start("front", *options, "--containers", *self.options)

    def start_worker(self) -> None:
        self.worker = self._start("worker", "--site", str(self.root / "site"))

    def start(self) -> Containers:
        self.start_front()
        self.start_worker()
        self.wait_for_front()
        return self

    def wait_for_front(self) -> None:
        until(lambda: (self.dir / "front.json").exists() or self.front.poll() is not None, 20)
        assert self.front.poll() is None, self.log("front")
        self.info = json.loads((self.dir / "front.json").read_text())

    @property
    def port(self) -> int:
        return int(self.info["port"])

    # -- looking

    def log(self, part: str) -> str:
        return (self.root / f"{part}.log").read_text(errors="replace")

    @property
    def zygote(self) -> int:
        """The pid of the worker container's first process, as this process sees it."""
        if not ISOLATED:
            return self.worker.pid
        path = f"/proc/{self.worker.pid}/task/{self.worker.pid}/children"
        until(lambda: Path(path).read_text().split() or self.worker.poll() is not None, 5)
        return int(Path(path).read_text().split()[0])

    # -- ending

    def terminate(self) -> tuple[int, int]:
        """SIGTERM to both, as when a pod is deleted; their exit codes."""
        for pid in (self.front.pid, self.zygote):
            os.kill(pid, signal.SIGTERM)
        return self.ended()

    def ended(self, timeout: float = 10) -> tuple[int, int]:
        return self.front.wait(timeout), self.worker.wait(timeout)

    def close(self) -> None:
        for name in ("front", "worker"):
            process = getattr(self, name, None)
            if process is not None and process.poll() is None:
                if name == "worker" and ISOLATED:
                    with contextlib.suppress(ProcessLookupError, IndexError):
                        os.kill(self.zygote, signal.SIGKILL)
                process.kill()
                process.wait(10)
        if self._made is not None:
            shutil.rmtree(self._made)

    def __enter__(self) -> Containers:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        if kind is not None:
            for part in ("front", "worker"):
                print(f"-- {part}", self.log(part), sep="\n")
        self.close()


def of_a_cell(target: T) -> T:
    """A function or class of a notebook's cell, which travels by value."""
    for part in (target, *(v for v in vars(target).values() if callable(v))):
        part.__module__ = "__main__"
    return target


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def load_of(target: Any, version: str = "v1", **meta: Any) -> tuple[dict[str, Any], list[bytes]]:
    """Meta and buffers of a LOAD, as the client makes them."""
    bundle = pack(target, sync_dir=False)
    full = {**bundle.meta, "version": version, "worker": "w", **meta}
    return full, [bytes(b) for b in bundle.buffers]


class User(Client):
    """A client that sends real functions and values."""

    async def deploy(self, target: Any, version: str = "v1", **meta: Any) -> dict[str, Any]:
        full, buffers = load_of(target, version, **meta)
        self.seq += 1
        await self.send(FrameType.LOAD, self.seq, full, buffers)
        frame = await self.result(self.seq, 30)
        assert not frame.flags & F_ERROR, frame.meta
        return frame.meta

    async def begin(self, *args: Any, f: str | None = None) -> int:
        self.seq += 1
        meta = {} if f is None else {"f": f}
        await self.send(FrameType.CALL, self.seq, meta, serialization.dumps((args, {})))
        return self.seq

    async def get(self, seq: int, timeout: float = 20) -> Any:
        frame = await self.result(seq, timeout)
        assert not frame.flags & F_ERROR, frame.meta
        assert not frame.flags & F_BULK
        return serialization.loads(frame.buffers)

    async def ask(self, *args: Any, f: str | None = None) -> Any:
        return await self.get(await self.begin(*args, f=f))

    async def until_state(self, state: str, timeout: float = 20) -> dict[str, Any]:
        for _ in range(int(timeout / 0.02)):
            status = await self.request("status")
            if status["state"] == state:
                return status
            await self.wait(0.02)
        raise AssertionError(f"not {state}: {status}")

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[str]:
    """A control group of version 1 with a memory limit; its directory."""
    group = Path(f"/sys/fs/cgroup/memory/kt-test-{os.getpid()}")
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit))
        yield str(group)
    finally:
        until(lambda: not (group / "cgroup.procs").read_text().strip(), 10)
        group.rmdir()
