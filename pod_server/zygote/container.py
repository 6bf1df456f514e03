"""The zygote as the first process of a container of its own, beside the front's container.

It has the container's processes for itself: they have a namespace of their own, so what is to be known of them (what
they use, whether the system has killed one for memory) the front learns from here. And it has a life of its own: it
outlives a front that crashes, and comes again after its container did.

It ends with 0 when the service ends, so that the pod's Job is complete, and with 143 after SIGTERM, when the pod is
deleted or evicted and is to be replaced.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from .. import processes
from ..ending import has_ended
from ..processes import DirectoryWatch
from ..resources import ask_driver, measure
from ..wire import Frame, FrameType
from .cgroup import MemoryGroup
from .child import INHERIT, drain, fork, take_signals
from .pod import PodZygote, WorkerProcess

__all__ = ["container_zygote"]

#: Seconds that the front has, after SIGTERM, to take its leave of its clients before the workers are killed. It gets
#: the signal at the same time and needs a second or two.
_FAREWELL = 5.0
_TERMINATED = 128 + signal.SIGTERM


@dataclass
class _ContainerZygote(PodZygote):
    """For as long as one front lives."""

    group: MemoryGroup = field(default_factory=MemoryGroup)
    kills: int = 0
    #: The front has said that the service ends.
    ended: bool = False
    #: SIGTERM has come; when, by the monotonic clock.
    terminated: list[float] = field(default_factory=list)

    def serve(self) -> None:
        """Serve the front until it has gone, or until it was time after SIGTERM."""
        self.kills = self.group.kills()
        self.run()

    def waits(self) -> float | None:
        """Seconds until there is something to do without being asked."""
        return max(self.terminated[0] + _FAREWELL - time.monotonic(), 0.0) if self.terminated else None

    def handle_more(self, frame: Frame) -> None:
        """A frame for this kind of zygote."""
        if frame.type is FrameType.GOODBYE:
            self.ended = frame.meta.get("status") == 0
        elif frame.type is FrameType.REQUEST:
            self._ask(frame.channel, frame.meta.get("op"))

    def about_death(self, worker: WorkerProcess) -> dict[str, Any]:
        """Whether the system has killed it because the container's memory ran out."""
        before, self.kills = self.kills, self.group.kills()
        killed = worker.status is not None and os.WIFSIGNALED(worker.status) and os.WTERMSIG(worker.status) == 9
        if not killed or self.kills <= before:
            return {}
        return {"oom": True, "limit": self.group.limit()}

    # -- what the processes use --------------------------------------------------------------------------------------

    def _ask(self, number: int, op: object) -> None:
        """Answer a question of the front's, by a process of its own: a look may take seconds."""
        if op != "usage":
            self._send(FrameType.RESPONSE, number)
            return
        pids = [w.pid for w in self.workers.values() if w.status is None]
        receive, give = os.pipe()
        try:
            fork(lambda: _look(pids, give), name="kt-usage", log=INHERIT, keep=(give,), bound=True)
        except OSError:
            pass  # no process can be started now: the answer is an empty one
        finally:
            os.close(give)
        parts: list[bytes] = []

        def take() -> None:
            data = os.read(receive, 65536)
            parts.append(data)
            if not data:
                self.poller.remove(receive)
                os.close(receive)
                self._send(FrameType.RESPONSE, number, **_object(b"".join(parts)))

        self.poller.add(receive, take)


def _look(pids: list[int], out: int) -> None:
    """In a process of its own: look, and write what was seen."""
    begun = time.monotonic()
    seen = measure(pids)
    took = time.monotonic() - begun
    gpus = ask_driver(None)
    with open(out, "w") as f:
        json.dump({**seen, "gpus": gpus, "took": took}, f)


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}  # it was killed while it looked
    return found if isinstance(found, dict) else {}


class _Life:
    """The process, from one front to the next.

    Parameters
    ----------
    dir
        The service directory.
    """

    def __init__(self, dir: str) -> None:
        self._dir = dir
        self.wake = take_signals(ignore=(signal.SIGINT, signal.SIGHUP, signal.SIGQUIT))
        #: When SIGTERM came; shared with what serves a front.
        self.terminated: list[float] = []
        # The first process of a container gets no signal that it has no handler for.
        signal.signal(signal.SIGTERM, lambda *_: self.terminated.append(time.monotonic()))

    def run(self) -> int:
        """Serve one front after the other; the exit code."""
        while True:
            begun = time.monotonic()
            front = self._connect()
            if front is None:
                return _TERMINATED if self.terminated else 0
            zygote = _ContainerZygote(self._dir, {}, front, log=INHERIT, terminated=self.terminated)
            zygote.wake = self.wake
            zygote.serve()
            os.close(front)
            if zygote.ended:
                return 0
            if not self.terminated:
                print("the front has gone; waiting for it to come again", file=sys.stderr, flush=True)
            # Not as fast as can be, where a front refuses us.
            if time.monotonic() - begun < 1.0:
                time.sleep(0.2)

    def _connect(self) -> int | None:
        """The connection to a front, as soon as there is one; None when the service has ended, or we are to end."""
        path = os.path.join(self._dir, "front.sock")
        watch = DirectoryWatch(self._dir)
        try:
            while not self.terminated and not has_ended(self._dir):
                connection = socket.socket(socket.AF_UNIX)
                try:
                    connection.connect(path)
                    return connection.detach()
                except (FileNotFoundError, ConnectionRefusedError):
                    connection.close()
                watch.wait(1.0, self.wake)
                drain(self.wake)
                self._reap()
        finally:
            watch.close()
        return None

    def _reap(self) -> None:
        """Take leave of processes that were left to us; the first process of a container is everybody's heir."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass  # there is none left


def container_zygote(dir: str, site: str | None = None) -> int:
    """Run a container's zygote until the service ends, or until SIGTERM; blocks.

    Parameters
    ----------
    dir
        The service directory, which the front's container shares; made if it isn't there yet.
    site
        A directory where packages are installed later: before all others on the path, here and in what is started
        from here.

    Returns
    -------
    int
        The exit code.
    """
    # Before anything else: until then SIGTERM is lost.
    life = _Life(dir)
    os.makedirs(dir, mode=0o700, exist_ok=True)
    if site is not None:
        # It must exist: Python remembers of a directory that it isn't there.
        os.makedirs(site, exist_ok=True)
        # Behind ours, which are what the client has, and before the image's.
        ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        sys.path.insert(sys.path.index(ours) + 1 if ours in sys.path else 0, site)
        others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
        os.environ["PYTHONPATH"] = os.pathsep.join([site, *others])
    if not os.access(".", os.W_OK) and os.path.isdir(os.environ.get("HOME", "")):
        # The image's own is root's, most often: ``open("model.pt", "w")`` is to work.
        os.chdir(os.environ["HOME"])
    processes.become_subreaper()
    processes.name_process("kt-zygote")
    # What a worker needs, while the front starts.
    from .. import worker  # noqa: F401

    return life.run()
