"""The process that forks local pods, as it is started: by the deploy that needs it, or before that has been imported.

A client's first deploy imports for about as long as this process does. So `.to` starts it first, and imports while it
comes up; nothing here may need what takes long to import. Whoever is the first to need the process takes it; if the
deploy ends without anybody having done so, it is ended.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pod_server
from pod_server import processes
from pod_server.wire import FrameType, encode

from ..compute import Compute

__all__ = ["Spawned", "begin_anew", "environment", "process_env", "spawn", "spawned_early", "take"]

#: Variables that are read when a process starts, and never again.
_PROCESS_ONLY = ("LD_", "DYLD_", "MALLOC_", "GLIBC_TUNABLES", "PYTHONHASHSEED", "PYTHONMALLOC", "PYTHONUTF8")
#: What would keep the zygote from starting as it should. It gets the first by itself, as the last of its path.
_NOT_FOR_ZYGOTE = ("PYTHONPATH", "PYTHONINSPECT", "PYTHONSTARTUP", "PYTHONSAFEPATH")


def process_env(env: Mapping[str, str]) -> dict[str, str]:
    """Those variables that only a new process can take on.

    Examples
    --------
    >>> process_env({"LD_PRELOAD": "libx.so", "HOME": "/root"})
    {'LD_PRELOAD': 'libx.so'}
    """
    return {name: value for name, value in sorted(env.items()) if name.startswith(_PROCESS_ONLY)}


def environment(compute: Compute) -> dict[str, str]:
    """The client's environment with what the user asked for."""
    image = compute.image
    return {**os.environ, **(image.env() if image is not None else {}), **compute.env()}


@dataclass(frozen=True)
class Spawned:
    """A root zygote that was started, and told where packages are; that was request number 1."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    #: What it writes to stderr.
    stderr: BinaryIO

    def end(self) -> None:
        """Kill it, which has no pods yet, and wait until it has ended."""
        self.connection.close()
        self.stderr.close()
        self.process.kill()
        self.process.wait()

    def forget(self) -> None:
        """In a forked child: it is the parent's."""
        self.connection.close()
        self.stderr.close()
        self.process.returncode = 0  # Popen is told that nobody is going to wait for it, and that this is meant


def spawn(env: Mapping[str, str]) -> Spawned:
    """Start a root zygote; its imports go on when this returns.

    Parameters
    ----------
    env
        Its environment.

    Raises
    ------
    OSError
        When the system starts no more processes.
    """
    ours, theirs = socket.socketpair()
    stderr = _scratch()
    try:
        given = {name: os.environ[name] for name in _NOT_FOR_ZYGOTE if name in os.environ}
        ours.sendall(encode(FrameType.REQUEST, 1, {"op": "init", "path": _library_path(), "env": given}))
        return Spawned(_start(env, theirs, stderr), ours, stderr)
    except BaseException:
        # A process that was started all the same finds its socket closed, and ends.
        ours.close()
        stderr.close()
        raise
    finally:
        theirs.close()


def _scratch() -> BinaryIO:
    """A file without a name: nothing to clean up afterwards, and no pipe that somebody must read."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("kubetorch-zygote"), "w+b")
    import tempfile  # which imports much

    return tempfile.TemporaryFile()


def _library_path() -> list[str]:
    """Where this process's packages may be, without the folders of the user's own files."""
    own = {"", os.getcwd()}
    if sys.argv and sys.argv[0]:
        own.add(os.path.dirname(os.path.abspath(sys.argv[0])))
    return [p for p in sys.path if p not in own]


def _start(env: Mapping[str, str], control: socket.socket, stderr: BinaryIO) -> subprocess.Popen[bytes]:
    main = Path(pod_server.__file__).resolve().parent / "zygote" / "__main__.py"
    pid, start = processes.this_process()
    return subprocess.Popen(
        # -P and a path: what lies in the working directory or on PYTHONPATH can't take a module's place.
        [sys.executable, "-P", str(main), "--control", str(control.fileno()), "--owner", f"{pid}:{start}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        pass_fds=[control.fileno()],
        cwd="/",
        env={name: value for name, value in env.items() if name not in _NOT_FOR_ZYGOTE},
        # Stop and the kernel's end signal its whole process group.
        start_new_session=True,
    )


# -- before it is needed -----------------------------------------------------------------------------------------------


class _Early:
    """The one process that this client may have started early."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        #: How many deploys there are that may need it.
        self.users = 0
        #: Whether this process has started any, and not ended it as unused: later deploys find it, and need no other.
        self.begun = False
        self.waiting: tuple[dict[str, str], Spawned] | None = None


_early = _Early()


def _after_fork() -> None:
    global _early
    if _early.waiting is not None:
        _early.waiting[1].forget()
    _early = _Early()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def spawned_early(compute: Compute) -> Iterator[None]:
    """Have the root zygote for this `Compute` come up meanwhile, if this process has had none."""
    early = _early  # a child that is forked meanwhile has one of its own
    with early.lock:
        early.users += 1
    try:
        if sys.platform == "linux" and sys.executable and not early.begun:
            _spawn_into(early, process_env(environment(compute)))
        yield
    finally:
        with early.lock:
            early.users -= 1
            unused = early.waiting if not early.users else None
            if unused is not None:
                early.waiting, early.begun = None, False
        if unused is not None:
            unused[1].end()


def _spawn_into(early: _Early, own: dict[str, str]) -> None:
    with early.lock:
        if early.begun:
            return
        try:
            early.waiting = own, spawn({**os.environ, **own})
        except OSError:
            return  # the deploy will meet it again, where there is a line to say it in
        early.begun = True


def begin_anew() -> None:
    """Have the next deploy be as a process's first: none that was started lives any more."""
    with _early.lock:
        _early.begun = _early.waiting is not None


def take(env: Mapping[str, str]) -> Spawned | None:
    """The process that was started early, if it was for such an environment; it is the caller's from now on."""
    with _early.lock:
        _early.begun = True
        if _early.waiting is None or _early.waiting[0] != process_env(env):
            return None
        (_, spawned), _early.waiting = _early.waiting, None
    return spawned
