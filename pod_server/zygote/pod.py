"""A pod's zygote: forks the workers, reports how they end, kills them and all that they started.

It is the subreaper of what the workers start: a process that detaches itself, by a session of its own and by the
death of its parents, becomes the zygote's child instead of init's, and is found. It ends when the front does.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import processes
from ..processes import DirectoryWatch, Process
from ..wire import Decoder, Frame, FrameType, WireError, encode
from .child import Poller, drain, fork, send_all, take_signals

__all__ = ["PodZygote", "WorkerProcess", "pod_zygote", "remove_directory", "remove_rest"]


def _mark_of(pid: int | str) -> int | None:
    try:
        with open(f"/proc/{pid}/oom_score_adj") as f:
            return int(f.read())
    except (OSError, ValueError):
        return None


def _mark(base: int, number: int) -> int:
    """A worker's ``oom_score_adj`` (proc(5)).

    When the machine's memory runs out, the worker is to go, not its front or the notebook. And since everything that
    it starts inherits the value, through fork, exec and setsid alike, it also tells one worker's orphans from
    another's.
    """
    return min(base + 100 + number % 100, 1000)


@dataclass
class WorkerProcess:
    """A worker that was forked."""

    number: int
    pid: int
    start: int
    status: int | None = None


@dataclass
class PodZygote:
    """The state of the process, for as long as its front lives. Its descriptors are numbers (see `child`)."""

    dir: str
    env: Mapping[str, str]
    front: int
    decoder: Decoder = field(default_factory=Decoder)
    poller: Poller = field(default_factory=Poller)
    workers: dict[int, WorkerProcess] = field(default_factory=dict)  # by pid, the ended ones until their death is told
    wake: int = -1
    adjust: int = field(default_factory=lambda: _mark_of("self") or 0)
    over: bool = False
    #: Where the workers' own output goes.
    log: str = ""

    def __post_init__(self) -> None:
        self.log = self.log or os.path.join(self.dir, "front.log")

    # -- loop --------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve the front until it closes the connection."""
        self.poller.add(self.wake, self._on_children)
        self.poller.add(self.front, self._on_front)
        try:
            self._send(FrameType.HELLO, role="zygote", pid=os.getpid())
            while not self.over:
                left = self.waits()
                if left == 0:
                    break
                self.poller.once(left)
        finally:
            self.kill(lambda: processes.tree(os.getpid()), 10.0)

    def waits(self) -> float | None:
        """Seconds until it ends by itself; None: it doesn't."""
        return None

    def _send(self, type: FrameType, channel: int = 0, **meta: Any) -> None:
        if not send_all(self.front, encode(type, channel, meta)):
            self.over = True

    def _on_front(self) -> None:
        try:
            data = os.read(self.front, 65536)
        except ConnectionResetError:
            data = b""
        if not data:
            self.over = True
            return
        try:
            for frame in self.decoder.feed(data):
                self._handle(frame)
        except (WireError, KeyError) as e:
            print(f"the front sent something that makes no sense: {e!r}", file=sys.stderr)
            self.over = True

    def _handle(self, frame: Frame) -> None:
        meta = frame.meta
        if frame.type is FrameType.FORK:
            self._fork(meta)
        elif frame.type is FrameType.KILL:
            for worker in [w for w in self.workers.values() if w.number == meta["worker"] and w.status is None]:
                self._kill_worker(worker, int(meta.get("signal") or signal.SIGKILL))
        else:
            self.handle_more(frame)
        self._tell_deaths()

    def handle_more(self, frame: Frame) -> None:
        """A frame that only some zygotes know; this one has been told by the connection's end, or doesn't care."""

    def about_death(self, worker: WorkerProcess) -> dict[str, Any]:
        """More to say of a worker's end than its status."""
        return {}

    # -- workers -----------------------------------------------------------------------------------------------------

    def _fork(self, meta: dict[str, Any]) -> None:
        # Imported by the root zygote already; here for a container's zygote.
        from ..worker import run_worker
        from ..worker.params import WorkerParams

        number = int(meta["worker"])
        params = WorkerParams(
            dir=self.dir,
            number=number,
            # The pod's own variables (which GPUs it has) are not the user's to change.
            env={**(meta.get("env") or {}), **self.env},
            cwd=meta.get("cwd"),
            sys_path=meta.get("sys_path"),
            threads=meta.get("threads") or 64,
        )
        try:
            pid = fork(lambda: self._work(run_worker, params), name=f"kt-worker-{number}", log=self.log, bound=True)
        except OSError as e:
            self._send(FrameType.DIED, worker=number, pid=0, status=1 << 8, error=f"no process can be started: {e}")
            return
        self.workers[pid] = WorkerProcess(number, pid, processes.start_of(pid) or 0)
        self._send(FrameType.FORKED, worker=number, pid=pid)

    def _work(self, run_worker: Callable[[Any], object], params: Any) -> object:
        """In the worker's process."""
        try:
            with open("/proc/self/oom_score_adj", "w") as f:
                f.write(str(_mark(self.adjust, params.number)))
        except OSError as e:
            print(f"worker {params.number} is not marked: {e}", file=sys.stderr)
        return run_worker(params)

    def _started_by(self, worker: WorkerProcess) -> list[Process]:
        """Everything that the worker started and that still runs, whatever it did to hide.

        An orphan is this process's child. When several workers live, its session or its mark says whose it is; where
        neither does (who may can change them), it is left for the last of them.
        """
        known = processes.table()
        out = processes.tree(worker.pid, known)
        others = any(w.status is None and w.pid != worker.pid for w in self.workers.values())
        for p in known.values():
            if p.parent != os.getpid() or p.pid in self.workers:
                continue
            if not others or p.session == worker.pid or _mark_of(p.pid) == _mark(self.adjust, worker.number):
                out += [p] * (not p.ended) + processes.tree(p.pid, known)
        return out

    def _kill_worker(self, worker: WorkerProcess, number: int) -> None:
        own = Process(worker.pid, os.getpid(), worker.pid, worker.start, "R")

        def find() -> list[Process]:
            return self._started_by(worker) + [own] * (worker.status is None)

        if number == signal.SIGKILL:
            self.kill(find, 5.0)
            return
        for p in find():
            try:
                os.kill(p.pid, number)
            except (ProcessLookupError, PermissionError):
                pass  # ended meanwhile, or another user's by now

    def kill(self, find: Any, timeout: float) -> None:
        """Kill what `find` gives; what can't be killed in that time is left to the system."""
        processes.kill_all(find, self._wait, timeout)

    # -- deaths ------------------------------------------------------------------------------------------------------

    def _wait(self, timeout: float) -> None:
        watch = Poller()
        watch.add(self.wake, lambda: drain(self.wake))
        watch.once(timeout)
        self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            worker = self.workers.get(pid)
            if worker is not None:
                worker.status = status

    def _on_children(self) -> None:
        drain(self.wake)
        self._reap()
        self._tell_deaths()

    def _tell_deaths(self) -> None:
        # Until there are none: while what one has left is killed, another may end, and is only noted then.
        while (worker := next((w for w in self.workers.values() if w.status is not None), None)) is not None:
            # First what it left, so that the next worker finds memory, ports and GPUs free.
            self.kill(lambda worker=worker: self._started_by(worker), 2.0)
            del self.workers[worker.pid]
            more = self.about_death(worker)
            self._send(FrameType.DIED, worker=worker.number, pid=worker.pid, status=worker.status, **more)


def _connect(dir: str, ready: int | None) -> int | None:
    """The connection to the front, as soon as there is one; None when it, or the directory, went instead."""
    path = os.path.join(dir, "front.sock")
    if ready is not None:
        os.read(ready, 1)  # nothing: it is the end that is waited for
        os.close(ready)
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        return connection.detach()
    try:
        watch = DirectoryWatch(dir)
    except FileNotFoundError:
        return None
    try:
        while os.path.isdir(dir):
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(path)
                return connection.detach()
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
            # The front binds its socket and writes front.json when it listens: both are seen here.
            # Removed while we hold it open, the directory doesn't tell: that is looked for now and then.
            watch.wait(1.0)
    finally:
        watch.close()
    return None


def remove_directory(dir: str, identity: tuple[int, int] | None = None) -> None:
    """Remove a service directory, whole or not at all for who looks at it.

    Parameters
    ----------
    dir
        Its path; nothing happens when there is none.
    identity
        ``(st_dev, st_ino)``: only if it is still that one.

    Raises
    ------
    OSError
        When something in it can't be removed.
    """
    try:
        found = os.stat(dir)
        if identity is not None and (found.st_dev, found.st_ino) != identity:
            return
        real = os.path.realpath(dir)
        aside = os.path.join(os.path.dirname(real), f".gone-{os.getpid()}-{os.path.basename(real).lstrip('.')}")
        os.rename(real, aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside)


def remove_rest(also: Iterable[str], link: str | None) -> None:
    """Remove what belongs to a pod outside of its directory; others of its processes may be doing the same."""
    for path in also:
        while os.path.isdir(path):
            try:
                shutil.rmtree(path)
            except FileNotFoundError:
                continue  # somebody was quicker with something in it: again, with what is left
    if link is not None and os.path.islink(link) and not os.path.exists(link):
        os.unlink(link)


def _front_ended(connection: int, timeout: float) -> bool:
    """Whether the process at the other end is gone, after waiting up to `timeout` seconds for it."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    with socket.socket(fileno=os.dup(connection)) as s:
        pid = int.from_bytes(s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)
    try:
        fd = processes.open_pidfd(pid) if pid else None
    except ProcessLookupError:
        return True
    if fd is None:
        return pid == 0 or not processes.is_alive(pid, None)
    watch = Poller()
    watch.add(fd, lambda: None)
    ended = watch.once(timeout)
    os.close(fd)
    return ended


def _forget_server() -> None:
    """Let the user's code import its own uvicorn: that of the front isn't whole."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "uvicorn"]:
        del sys.modules[name]


def pod_zygote(
    dir: str,
    *,
    env: Mapping[str, str] | None = None,
    owns: bool = False,
    also: Iterable[str] = (),
    link: str | None = None,
    ready: int | None = None,
) -> int:
    """Run a pod's zygote until its front ends; blocks.

    Parameters
    ----------
    dir
        The service directory, with the front's ``front.sock`` in it, now or later.
    env
        Variables that every worker gets over those that the front names.
    owns
        Whether to remove the directory at the end if the front hasn't: it may have been killed.
    also, link
        Further directories, and a symbolic link to `dir`, that are removed with it.
    ready
        A descriptor whose end says that the front accepts, or never will; None: its socket is looked for.

    Returns
    -------
    int
        The exit code.
    """
    try:
        # Held open, so that no other directory can have the same identity while we live.
        held = os.open(dir, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    identity = os.fstat(held)
    processes.become_subreaper()
    # What a worker needs, while the front starts; the root zygote may have done it already.
    from .. import worker  # noqa: F401

    _forget_server()
    front = _connect(dir, ready)
    if front is None:
        return 0
    pod = PodZygote(dir, dict(env or {}), front)
    pod.wake = take_signals(ignore=(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT))
    pod.run()
    if owns and _front_ended(front, 5.0):
        remove_directory(dir, (identity.st_dev, identity.st_ino))
        remove_rest(also, link)
    return 0
