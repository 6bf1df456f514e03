"""The worker processes: forked by the zygote on request, introduced on ``front.sock``, and their deaths.

Nothing takes time in here but `Fleet.spawn`; what a death means for calls and code is the supervisor's to say
(`Fleet.on_death`).
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..wire import Frame, FrameType, WireError, encode
from .worker import Code, Worker, WorkerDied, death, out_of_memory

if TYPE_CHECKING:
    from .link import Link
    from .pod import Pod

__all__ = ["Fleet"]

_log = logging.getLogger(__name__)

#: Seconds that the zygote, or a forked worker, may take to come.
_COMING = 60.0
#: Seconds between the two halves of the news of a death: the connection's end and the status.
_NO_STATUS = 0.7
_NO_EOF = 0.1
#: Seconds after which a killed worker counts as dead although nobody said so.
_KILLED = 5.0


class Fleet:
    """All workers of a pod that live.

    Parameters
    ----------
    pod
        What it belongs to.
    on_death
        Called with a worker that has died and an ``error`` object that says why, before anything else hears of it.
    """

    def __init__(self, pod: Pod, on_death: Callable[[Worker, dict[str, Any]], None]) -> None:
        self._pod = pod
        self._loop = asyncio.get_running_loop()
        self._on_death = on_death
        self.workers: dict[int, Worker] = {}
        self._numbers = 0
        self.zygote: Link | None = None
        self._zygote_here: asyncio.Future[None] = self._loop.create_future()
        #: Questions that the zygote hasn't answered, by number.
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._questions = 0

    async def spawn(self, code: Code, memory_limit: int | None) -> Worker:
        """A new worker that may be sent frames; `WorkerDied` when it doesn't come so far."""
        name = self._pod.params.name
        if not self._zygote_here.done():
            # Not wait_for: before Python 3.12 it loses a cancellation that comes together with what it waits for.
            await asyncio.wait({self._zygote_here}, timeout=_COMING)
        if not self._zygote_here.done():
            what = "container with the workers" if self._pod.params.containers else "zygote"
            text = f'the {what} of service "{name}" did not start within {_COMING:.0f} s'
            raise WorkerDied({"type": "StartupError", "message": text})
        self._numbers += 1
        worker = self.workers[self._numbers] = Worker(self._numbers, code.worker)
        worker.memory_limit = memory_limit
        meta = {key: code.meta.get(key) for key in ("env", "cwd", "sys_path", "threads")}
        try:
            self._to_zygote(encode(FrameType.FORK, 0, {"worker": worker.number, **meta}))
        except WireError as e:
            del self.workers[worker.number]
            raise WorkerDied({"type": "StartupError", "message": f"the environment is too large: {e}"}) from None
        await asyncio.wait({worker.ready}, timeout=_COMING)
        if not worker.ready.done():
            self.kill(worker, {"message": f"did not start within {_COMING:.0f} s", "cause": "exit"})
            text = f'a worker of service "{name}" did not start within {_COMING:.0f} s'
            raise WorkerDied({"type": "StartupError", "message": text})
        worker.ready.result()
        return worker

    def _to_zygote(self, frame: bytes) -> None:
        if self.zygote is not None:
            self.zygote.send(frame)

    def zygote_came(self, link: Link) -> None:
        """The zygote has said hello."""
        if self.zygote is not None and not self.zygote.closed:
            raise WireError("there is a zygote already")
        self.zygote = link
        if not self._zygote_here.done():
            self._zygote_here.set_result(None)
        link.on_frames = self._from_zygote
        link.on_close = self._zygote_lost

    def _zygote_lost(self, reason: str | None) -> None:
        if not self._pod.params.containers:
            self._pod.stop(f"the zygote has ended{': ' + reason if reason else ''}")
            return
        # Its container has ended, and everything in it; the system starts it again, and says why it ended.
        self._zygote_here = self._loop.create_future()
        for answer in self._asked.values():
            answer.cancel()
        self._asked.clear()
        for worker in list(self.workers.values()):
            why = {"message": "ended with its container", "cause": "exit", "container": True}
            worker.killed_for = worker.killed_for or why
            self._died(worker, None)

    def ask_zygote(self, op: str) -> asyncio.Future[dict[str, Any]]:
        """Ask the zygote something; the answer is cancelled when it goes, or isn't there."""
        answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        if self.zygote is None or self.zygote.closed:
            answer.cancel()
            return answer
        self._questions += 1
        self._asked[self._questions] = answer
        self._to_zygote(encode(FrameType.REQUEST, self._questions, {"op": op}))
        return answer

    def _from_zygote(self, frames: list[Frame]) -> None:
        for frame in frames:
            meta = frame.meta
            number = meta.get("worker")
            worker = self.workers.get(number) if isinstance(number, int) else None
            if frame.type is FrameType.FORKED:
                if worker is not None:
                    self._forked(worker, meta)
            elif frame.type is FrameType.DIED:
                if worker is not None:
                    if meta.get("error"):
                        self._died(worker, {"type": "StartupError", "message": str(meta["error"])})
                        continue
                    worker.status = meta.get("status") if isinstance(meta.get("status"), int) else None
                    if meta.get("oom") is True:
                        worker.killed_for = worker.killed_for or out_of_memory(meta.get("limit"))
                    self._half_dead(worker, _NO_EOF, worker.link is None or worker.link.closed)
            elif frame.type is FrameType.RESPONSE:
                answer = self._asked.pop(frame.channel, None)
                if answer is not None and not answer.done():
                    answer.set_result(meta)
            elif frame.type not in (FrameType.PING, FrameType.PONG):
                raise WireError(f"the zygote sent {frame.type.name}")

    def _forked(self, worker: Worker, meta: dict[str, Any]) -> None:
        if meta.get("error"):
            error = meta["error"]
            message = error.get("message", "") if isinstance(error, dict) else str(error)
            self._died(worker, {"type": "StartupError", "message": f"no worker could be started: {message}"})
            return
        worker.pid = meta.get("pid")
        self._pod.events.add("worker-started", worker=worker.number, pid=worker.pid)
        if worker.killed_for is not None:
            self._to_zygote(encode(FrameType.KILL, 0, {"worker": worker.number, "signal": int(signal.SIGKILL)}))

    def worker_came(self, link: Link, meta: dict[str, Any]) -> None:
        """A worker has said hello."""
        number = meta.get("worker")
        worker = self.workers.get(number) if isinstance(number, int) else None
        if worker is None or worker.link is not None:
            raise WireError(f"nobody waits for a worker {number}")
        # In another container its pid is another one, or none, for this process.
        known = worker.pid is not None and not self._pod.params.containers
        if known and link.pid not in (None, 0, worker.pid):
            raise WireError(f"process {link.pid} says that it is worker {number}, which is process {worker.pid}")
        worker.link = link
        link.on_frames = lambda frames: self._pod.calls.from_worker(worker, frames)
        link.on_close = lambda reason: self._half_dead(worker, _NO_STATUS, worker.status is not None, reason)

    def worker_event(self, worker: Worker, meta: dict[str, Any]) -> None:
        """An EVENT of a worker."""
        event = meta.get("event")
        if event == "ready" and not worker.ready.done():
            worker.ready.set_result(None)
        elif event == "step":
            self._pod.tell("step", str(meta.get("text") or ""), worker=worker.number)
        elif event == "steps-done":
            self._pod.tell("steps-done", "the steps of its image have been run", worker=worker.number)

    # -- deaths
    # ----------------------------------------------------------------------------------------------------------------

    def kill(self, worker: Worker, why: dict[str, Any]) -> None:
        """Kill a worker and everything that it started; `why` are fields of its `WorkerDiedError`."""
        if worker.dead:
            return
        if worker.killed_for is None:
            self._loop.call_later(_KILLED, self._died, worker, None)
        worker.killed_for = worker.killed_for or why
        self._to_zygote(encode(FrameType.KILL, 0, {"worker": worker.number, "signal": int(signal.SIGKILL)}))

    def _half_dead(self, worker: Worker, wait: float, both: bool, reason: str | None = None) -> None:
        """One half of the news: the end of the connection, or the status; the other one follows soon, if at all."""
        if worker.dead:
            return
        if worker.grace is not None:
            worker.grace.cancel()
        if both or self.zygote is None or self.zygote.closed:
            # There is no other half, or nobody who would bring it.
            self._died(worker, None)
            return
        if worker.status is None:
            # It may have closed its connection, or sent garbage, and live on.
            why = {"message": f"broke off its connection{': ' + reason if reason else ''}", "cause": "exit"}
            self._to_zygote(encode(FrameType.KILL, 0, {"worker": worker.number, "signal": int(signal.SIGKILL)}))
            if reason is not None:
                worker.killed_for = worker.killed_for or why
        worker.grace = self._loop.call_later(wait, self._died, worker, None)

    def _died(self, worker: Worker, error: dict[str, Any] | None) -> None:
        if worker.dead:
            return
        worker.dead = True
        if worker.link is not None and not worker.link.closed:
            worker.link.abort()
        del self.workers[worker.number]
        # What it started must not outlive it, holding a GPU or a port.
        self._to_zygote(encode(FrameType.KILL, 0, {"worker": worker.number, "signal": int(signal.SIGKILL)}))
        error = error or death(worker, self._pod.params.name)
        self._on_death(worker, error)
        if not worker.ready.done():
            worker.ready.set_exception(WorkerDied(error))
            worker.ready.exception()  # seen: nobody may be waiting for it
        worker.gone.set_result(None)

    def leave(self) -> None:
        """Wait no longer for workers that have been killed: one that gives back much memory takes seconds to end."""
        for worker in self.workers.values():
            if worker.link is not None:
                worker.link.abort()

    def stop(self) -> None:
        """Kill every worker; the pod ends. A zygote that is gone has taken its workers with it."""
        for worker in list(self.workers.values()):
            self.kill(worker, {"message": "was ended with its service", "cause": "restart"})
