"""The root zygote: one warm process for each client that forks the front and the zygote of every local pod.

It speaks wire frames over a socket that it inherited: REQUEST and RESPONSE, channel = the request's number.

=============  =========================================================================================================
``init``       ``path``: directories to look for modules in, after its own; ``env``: variables that it was started
without ``spawn_pod``  ``dir``, ``params`` (of `FrontParams`, without the token), ``env`` (the pod's own variables),
``also``, ``link``
               (see `pod_zygote`); buffer: the token. Answered when the front accepts, with what ``front.json`` says
``kill_pod``   ``dir``: kill that pod, remove what is left of it; answered when it is gone
=============  =========================================================================================================

An EVENT ``pod-ended`` {``incarnation``, ``reason``} tells of each end. The pods don't need this process: they watch
their owners by themselves. It ends when its client does, after the pods that end with it.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .. import processes
from ..wire import Decoder, Frame, FrameType, encode
from .child import Poller, drain, fork, send_all, take_signals
from .pod import pod_zygote, remove_directory, remove_rest

__all__ = ["Pod", "Root", "preload_front", "root_zygote"]

#: Seconds without a request after which there is time to import what is not urgent.
_IDLE = 0.3


@contextmanager
def _importing() -> Iterator[None]:
    """Import what forked processes share, with nobody looking for garbage in it, now or later.

    Each look would go through everything that has been imported, a tenth of the time, and finds next to nothing.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def preload_front() -> None:
    """Import what a front needs, and have the forked ones share the memory of it."""
    with _importing():
        from .. import front

        front.preload()


def preload_worker() -> None:
    """The same for a pod's zygote and its workers, which would import it by themselves."""
    with _importing():
        from .. import worker  # noqa: F401


@dataclass
class Pod:
    """A pod as its root zygote sees it."""

    dir: str
    params: dict[str, Any]
    env: dict[str, str]
    also: list[str]
    link: str | None
    request: int
    front: int = 0
    zygote: int = 0
    words: int = -1  # where the front's last words come from
    gate: int = -1  # ends when the front accepts, or has ended
    ready: bool = False
    held: int = -1  # the directory, open, so that no other one can have its identity
    #: The requests that want to know when it is gone.
    killers: list[int] = field(default_factory=list)
    front_status: int | None = None
    last_words: str = ""
    #: The file that its processes' own output goes to.
    log: str = ""
    url: str = ""

    def __post_init__(self) -> None:
        self.log = self.log or os.path.join(self.dir, "front.log")


class Root:
    """The forking and reaping of pods.

    Parameters
    ----------
    control
        The descriptor of the socket to the client; None when there is none (a whole pod as one command).
    """

    def __init__(self, control: int | None) -> None:
        self._control = control
        self._decoder = Decoder()
        self._poller = Poller()
        self._pods: dict[str, Pod] = {}
        self._closing = False
        self._complete = False  # whether everything is imported
        self._spawned = False
        self._wake = take_signals()
        self._poller.add(self._wake, self._on_children)
        if control is not None:
            self._poller.add(control, self._on_control)

    # -- loop --------------------------------------------------------------------------------------------------------

    def serve(self, owner: tuple[int, int] | None, grace: float = 10.0) -> None:
        """Serve until the owner ends or closes the socket, and then until the pods that end with it have ended."""
        if owner is not None:
            try:
                fd = processes.open_pidfd(*owner)
            except ProcessLookupError:
                return
            if fd is not None:
                self._poller.add(fd, self._close)
        while not self._closing:
            # The first pod's zygote imports the worker while its front starts; we do that for the later ones, when
            # nobody waits, or with the next pod.
            if not self._poller.once(None if self._complete else _IDLE):
                self._import_rest()
        # Reaped by us rather than left to an init that perhaps reaps nobody (a container's).
        deadline = time.monotonic() + grace
        while any(not p.params.get("detach") for p in self._pods.values()):
            if not self._poller.once(deadline - time.monotonic()):
                return

    def _import_rest(self) -> None:
        preload_worker()
        self._complete = True

    def once(self, timeout: float | None = None) -> bool:
        """Handle what happens next."""
        return self._poller.once(timeout)

    @property
    def pods(self) -> dict[str, Pod]:
        """The pods of which a process lives, by directory."""
        return self._pods

    def _close(self) -> None:
        self._closing = True
        for fd in [*self._poller.descriptors]:
            if fd != self._wake:
                self._poller.remove(fd)
        self._control = None

    def _on_control(self) -> None:
        assert self._control is not None
        try:
            data = os.read(self._control, 65536)
        except ConnectionResetError:
            data = b""
        if not data:
            self._close()
            return
        for frame in self._decoder.feed(data):
            if frame.type is FrameType.REQUEST:
                self._on_request(frame)

    def _send(self, type: FrameType, channel: int, meta: dict[str, Any]) -> None:
        if self._control is not None and channel >= 0 and not send_all(self._control, encode(type, channel, meta)):
            self._close()

    def _fail(self, request: int, message: str, **more: Any) -> None:
        self._send(FrameType.RESPONSE, request, {"error": {"type": "StartupError", "message": message, **more}})

    def _on_request(self, frame: Frame) -> None:
        meta, request = frame.meta, frame.channel
        op = meta.get("op")
        try:
            if op == "init":
                sys.path += [p for p in meta["path"] if p not in sys.path]
                os.environ.update(meta.get("env") or {})
                preload_front()
                self._send(FrameType.RESPONSE, request, {"pid": os.getpid()})
            elif op == "spawn_pod":
                pod = Pod(meta["dir"], meta["params"], meta["env"], meta["also"], meta["link"], request)
                self.spawn(pod, bytes(frame.buffers[0]).decode("ascii"))
            elif op == "kill_pod":
                self._kill(meta["dir"], request)
            else:
                self._fail(request, f"no such request: {op}")
        except Exception as e:
            # Reported to the client, whose deploy it was; this process serves others too.
            traceback.print_exc()
            self._fail(request, f"{type(e).__name__}: {e}", errno=getattr(e, "errno", None))

    # -- starting ----------------------------------------------------------------------------------------------------

    def spawn(self, pod: Pod, token: str) -> None:
        """Fork a pod's two processes; the answer goes out when the front accepts."""
        pod.held = os.open(pod.dir, os.O_RDONLY | os.O_CLOEXEC)
        pod.words, words = os.pipe()
        pod.gate, gate = os.pipe()
        try:
            params = {**pod.params, "ready_fd": gate}
            pod.front = fork(lambda: _front(params, token, words), name="kt-front", log=pod.log, keep=(words, gate))
        except OSError as e:
            for fd in (pod.held, pod.words, pod.gate):
                os.close(fd)
            raise OSError(e.errno, f"no process can be started: {e.strerror}") from e
        finally:
            os.close(words)
            os.close(gate)
        self._pods[pod.dir] = pod
        self._poller.add(pod.words, lambda: self._on_words(pod))
        self._poller.add(pod.gate, lambda: self._on_gate(pod))
        try:
            if self._spawned and not self._complete and all(p.ready for p in self._pods.values() if p is not pod):
                self._import_rest()  # its front starts meanwhile; else its zygote would do it, and that of the next pod
            self._spawned = True
            self._fork_zygote(pod)
        except OSError as e:
            pod.last_words = json.dumps({"reason": f"no process can be started: {e.strerror}"})
            _kill(pod.front)
            return
        write_json(
            os.path.join(pod.dir, "processes.json"),
            {
                "front": [pod.front, processes.start_of(pod.front)],
                "zygote": [pod.zygote, processes.start_of(pod.zygote)],
            },
        )

    def _fork_zygote(self, pod: Pod) -> None:
        pod.zygote = fork(
            lambda: pod_zygote(pod.dir, env=pod.env, owns=True, also=pod.also, link=pod.link, ready=pod.gate),
            name="kt-zygote",
            log=pod.log,
            keep=(pod.gate,),
        )

    def _on_gate(self, pod: Pod) -> None:
        self._poller.remove(pod.gate)
        os.close(pod.gate)
        pod.gate = -1
        try:
            with open(os.path.join(pod.dir, "front.json"), encoding="utf-8") as f:
                said = json.load(f)
        except FileNotFoundError:
            return  # it has ended; the answer is given when we have its status
        if said.get("error"):
            pod.last_words = json.dumps({"reason": str(said["error"])})
            return
        pod.ready, pod.url = True, str(said.get("url", ""))
        answer = {
            **said,
            "front": [pod.front, processes.start_of(pod.front)],
            "zygote": [pod.zygote, processes.start_of(pod.zygote)],
        }
        self._send(FrameType.RESPONSE, pod.request, answer)

    # -- ending ------------------------------------------------------------------------------------------------------

    def _kill(self, dir: str, request: int) -> None:
        pod = self._pods.get(dir)
        if pod is None:
            self._send(FrameType.RESPONSE, request, {})
            return
        pod.killers.append(request)
        # The zygote sees the connection end, kills what it forked, and removes the directory.
        _kill(pod.front)
        if not pod.ready:
            _kill(pod.zygote, signal.SIGTERM)

    def _on_words(self, pod: Pod) -> None:
        data = os.read(pod.words, 65536)
        pod.last_words += data.decode(errors="replace")
        if not data:
            self._poller.remove(pod.words)
            os.close(pod.words)
            pod.words = -1

    def _on_children(self) -> None:
        drain(self._wake)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            for pod in self._pods.values():
                if pid == pod.front:
                    pod.front, pod.front_status = 0, status
                elif pid == pod.zygote:
                    pod.zygote = 0
                    if pod.front and not pod.killers:
                        reason = f"its zygote ended: {processes.status_text(status)}"
                        pod.last_words = pod.last_words or json.dumps({"reason": reason})
                    # Workers die with their zygote; what they started has become our child and is nobody's any more.
                    self._kill_orphans()
        for pod in [p for p in self._pods.values() if not (p.front and p.zygote)]:
            self._on_end(pod)

    def _kill_orphans(self) -> None:
        ours = {p.front for p in self._pods.values()} | {p.zygote for p in self._pods.values()}

        def find() -> list[processes.Process]:
            known = processes.table()
            orphans = [p for p in known.values() if p.parent == os.getpid() and p.pid not in ours]
            return [q for p in orphans for q in [*([] if p.ended else [p]), *processes.tree(p.pid, known)]]

        watch = Poller()
        watch.add(self._wake, lambda: None)
        processes.kill_all(find, watch.once, 5.0)

    def _on_end(self, pod: Pod) -> None:
        if pod.front:
            # It ends by itself when it loses its zygote; but it may not have had it yet.
            _kill(pod.front, signal.SIGTERM)
            return
        if pod.zygote and not pod.ready:
            _kill(pod.zygote, signal.SIGTERM)  # it may still wait for a front; once connected it ignores this
        if pod.zygote:
            return
        del self._pods[pod.dir]
        if pod.gate >= 0:
            self._on_gate(pod)
        while pod.words >= 0:
            self._on_words(pod)
        reason = self._reason(pod)
        if not pod.ready and not pod.killers:
            self._fail(pod.request, reason, log=_tail(pod.log), **_json(pod.last_words))
        # The pod's own processes do this; unless both were killed.
        found = os.fstat(pod.held)
        try:
            remove_directory(pod.dir, (found.st_dev, found.st_ino))
            remove_rest(pod.also, pod.link)
        except OSError:
            traceback.print_exc()
        os.close(pod.held)
        end = {"event": "pod-ended", "incarnation": pod.params.get("incarnation"), "reason": reason}
        self._send(FrameType.EVENT, 0, end)
        for request in pod.killers:
            self._send(FrameType.RESPONSE, request, {})

    def _reason(self, pod: Pod) -> str:
        said = _json(pod.last_words).get("reason")
        if said:
            return str(said)
        status = pod.front_status
        if status is None:
            return "its front is gone"
        return f"its front process ended: {processes.status_text(status)}"


def _kill(pid: int, number: int = signal.SIGKILL) -> None:
    if pid:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass  # ended by itself


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _tail(path: str, limit: int = 4000) -> str:
    try:
        with open(path, "rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - limit))
            return f.read().decode(errors="replace")
    except OSError:
        return ""


def write_json(path: str, value: object) -> None:
    """Write a file that is there whole or not at all."""
    temporary = f"{path}.{os.getpid()}"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as f:
        json.dump(value, f)
    os.replace(temporary, path)


def _front(params: dict[str, Any], token: str, words: int) -> int:
    """What a front's process runs; how it ended goes to `words`."""
    from ..front import run_front
    from ..front.params import FrontParams

    try:
        status = run_front(FrontParams(token=token, **params))
    except BaseException as e:
        what = str(e) or type(e).__name__
        if isinstance(e, OSError) and e.errno == errno.EADDRINUSE:
            what = f"port {params.get('port')} is taken; choose another, or none to get a free one"
        os.write(words, json.dumps({"reason": what, "errno": getattr(e, "errno", None)}).encode())
        raise
    return status


def root_zygote(control: int, owner: tuple[int, int]) -> int:
    """Run a root zygote; blocks.

    Parameters
    ----------
    control
        Descriptor of the socket to the client.
    owner
        ``(pid, start)`` of the client.

    Returns
    -------
    int
        The exit code.
    """
    os.set_inheritable(control, False)
    processes.name_process("kt-root-zygote")
    processes.become_subreaper()
    root = Root(control)
    root.serve(owner)
    return 0
