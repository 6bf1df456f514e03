"""Code and its workers: which worker gets the calls, how new code takes the place of old, and what follows a death.

One task does everything that takes time (loads, and new workers for dead ones), one thing after the other; what must
happen at once (a death, a cancel) is done by callbacks. ``docs/architecture.md``, *Redeploy*, has the rules.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from ..wire import F_BULK, F_ERROR, Frame, FrameType, WireError, encode
from .faults import error_of, failed, failure
from .fleet import Fleet
from .records import Client, Record, State
from .worker import Code, Worker, WorkerDied, calls_ended, death

if TYPE_CHECKING:
    from collections.abc import Callable

    from .pod import Pod

__all__ = ["Supervisor"]

_log = logging.getLogger(__name__)

#: Seconds that a cancelled call may take to end before its retired worker, or a class that is replaced, doesn't wait
#: for it any more.
_CLEANUP = 3.0
#: Seconds to wait before a worker is started anew that died again and again while it loaded.
_BACKOFF = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
#: The same when a call waits for it.
_WANTED = 0.5


class _Cancelled(Exception):
    """The LOAD was cancelled while it waited."""


class Supervisor:
    """The code of a pod and the worker that has it.

    Parameters
    ----------
    pod
        What it belongs to.
    """

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self._loop = asyncio.get_running_loop()
        self.fleet = Fleet(pod, self._worker_died)
        self.state = "starting"
        #: Why the code can't be loaded, an ``error`` object, in the state ``failed``.
        self.error: dict[str, Any] | None = None
        #: The worker that gets the calls.
        self.current: Worker | None = None
        #: Calls wait although there is a worker.
        self.holding = False
        self.held: deque[Record] = deque()
        #: The last code that could be loaded.
        self.code: Code | None = None
        self._loads: deque[Record] = deque()
        #: The LOAD that is being done; its cancellation.
        self._active: Record | None = None
        self._cancel: asyncio.Future[None] = self._loop.create_future()
        #: Who waits for a worker's RESULT of a LOAD, by call number.
        self._answers: dict[int, tuple[Worker, asyncio.Future[Frame]]] = {}
        self._wake = asyncio.Event()
        #: A worker is to be started for `code`; the one that is being started; not to wait before it is tried again.
        self._revive = False
        self._reviving: Worker | None = None
        self._hurry: asyncio.Future[None] = self._loop.create_future()
        self._failures = 0
        #: Since when it is waited before a worker is started anew, and what ends that for a call's sake.
        self._pausing: float | None = None
        self._nudge: asyncio.TimerHandle | None = None
        #: How often an instance of a class was lost with all that it held.
        self.losses = 0
        self._own = Client("0" * 26)
        self._restarts: list[Callable[[dict[str, Any] | None], None]] = []

    # -- what others ask -----------------------------------------------------------------------------------------------

    def refusal(self) -> dict[str, Any] | None:
        """Why a call can't wait for a worker, an ``error`` object; None when it can."""
        name = self._pod.params.name
        if self.state == "stopping":
            return {"type": "PodTerminatedError", "message": f'service "{name}" is being ended'}
        if self._loads or self._active is not None or self._revive:
            return None
        if self.state == "failed":
            reason = (self.error or {}).get("message", "")
            return {"type": "StartupError", "message": f'the code of service "{name}" could not be loaded: {reason}'}
        return self._pod.kept.refusal()

    @property
    def ready(self) -> bool:
        """Whether the code is loaded and its worker lives."""
        return self.state == "ready" and self.current is not None

    def restore(self, code: Code) -> None:
        """Begin with code that another front has had."""
        self.code, self.state, self._revive = code, "restarting", True
        self._wake.set()

    def load(self, record: Record) -> None:
        """A complete LOAD; it is done after those that came before."""
        self._loads.append(record)
        # What a client sends after its LOAD is meant for the new code.
        self.holding = self.holding or self._excludes(record)
        if self._reviving is not None:
            # Nobody wants to wait until old code has been loaded again only to be replaced.
            self.fleet.kill(self._reviving, {"message": "was replaced by a redeploy", "cause": "restart"})
        self._hasten()
        self._wake.set()

    def cancel_load(self, record: Record) -> None:
        """The client doesn't want a LOAD any more."""
        worker = record.worker
        if record is not self._active:
            self._pod.bulk.give_up(record.client.id, record.seq)
            if record in self._loads:
                self._loads.remove(record)
                if self._active is None:
                    self._release()  # it held calls, and the task may find nothing to do any more
            self._finish(record, failure({"type": "CallCancelledError", "reason": record.cancelled}), State.CANCELLED)
        elif worker is None:
            if not self._cancel.done():
                self._cancel.set_result(None)
        elif worker.loaded_at is None:
            self.fleet.kill(worker, {"message": "was ended because its load was cancelled", "cause": "restart"})
        else:
            worker.send(encode(FrameType.CANCEL, record.number, {"reason": record.cancelled}))

    def hold(self, record: Record) -> None:
        """Keep a call until there is a worker, which it hurries a little."""
        self.held.append(record)
        self._want()

    def _want(self) -> None:
        if self._pausing is not None and self._nudge is None:
            self._nudge = self._loop.call_at(self._pausing + _WANTED, self._hasten)

    def restart(self, done: Callable[[dict[str, Any] | None], None]) -> None:
        """Replace the worker; `done` is told when the new one is ready, or of an ``error`` object."""
        if self.code is None or self.state == "stopping":
            done(self.refusal() or self._pod.kept.refusal())
            return
        self._restarts.append(done)
        self._failures = 0
        self._hasten()
        if self.current is not None:
            self.fleet.kill(self.current, {"message": "was restarted on request", "cause": "restart"})

    def _hasten(self) -> None:
        if not self._hurry.done():
            self._hurry.set_result(None)

    def loaded(self, worker: Worker, frame: Frame) -> None:
        """A RESULT that is no call's: a LOAD's."""
        expected, answer = self._answers.get(frame.channel, (None, None))
        if expected is worker and answer is not None and not answer.done():
            answer.set_result(frame)

    def settle(self, worker: Worker) -> None:
        """End a retired worker when it has nothing more to do."""
        why = {"message": "was replaced by a redeploy", "cause": "restart"}
        if not worker.calls:
            self.fleet.kill(worker, why)
        elif not worker.busy:
            self._loop.call_later(_CLEANUP, self.fleet.kill, worker, why)

    async def run(self) -> None:
        """Do loads and revivals as they come, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._loads or self._revive:
                if not self._loads:
                    await self._revive_worker()
                    continue
                self._active = record = self._loads.popleft()
                self._cancel = self._loop.create_future()
                try:
                    await self._load(record)
                finally:
                    self._active = None
                    self._release()

    # -- loads ---------------------------------------------------------------------------------------------------------

    async def _load(self, record: Record) -> None:
        frame = record.frame
        assert frame is not None
        code = Code(record.meta, [bytes(b) for b in frame.buffers], record.input)
        record.input = None  # the code's from now on
        if self._unchanged(record):
            assert self.current is not None
            self._adopt_limits(code, self.current)
            self._drop(code)
            self._finish(record, encode(FrameType.RESULT, 0, {"unchanged": True}), State.DONE)
            return
        if not self.ready:
            self.state = "loading"
        try:
            answer = await self._put_in_place(code, record)
        except (_Cancelled, WorkerDied) as e:
            if record.cancelled is not None:
                error, state = {"type": "CallCancelledError", "reason": record.cancelled}, State.CANCELLED
            else:
                error, state = e.error if isinstance(e, WorkerDied) else {}, State.FAILED
            self._load_failed(code, error)
            self._finish(record, failure(error), state)
            return
        if answer.flags & F_ERROR:
            self._load_failed(code, error_of(answer))
        self._pod.calls.result(record, answer)

    async def _put_in_place(self, code: Code, record: Record) -> Frame:
        """Load code where the rules say so, and have it get the calls if that worked; the worker's RESULT."""
        old = self.current
        prepared: Worker | None = None
        if self._excludes(record) and old is not None and code.image and old.fingerprint != code.worker:
            # The steps of its image may take minutes, and fail: meanwhile the old instance goes on.
            prepared = await self._spawn(code, record)
            answer = await self._send_load(prepared, code, record, prepare=True)
            record.worker = None
            if answer.flags & F_ERROR:
                self.fleet.kill(prepared, {"message": "was ended: its image steps failed", "cause": "restart"})
                return answer
        try:
            return await self._replace(old, prepared, code, record)
        except BaseException:
            if prepared is not None:
                self.fleet.kill(prepared, {"message": "was ended: its load did not end", "cause": "restart"})
            raise

    async def _replace(self, old: Worker | None, prepared: Worker | None, code: Code, record: Record) -> Frame:
        """The same, in the old worker, or in a new one, which may have been prepared."""
        exclusive = self._excludes(record)
        if exclusive and old is not None:
            self.holding = True
            if not await calls_ended(old, self._cancel, _CLEANUP):
                raise _Cancelled
            if prepared is not None and prepared.dead:
                raise WorkerDied(death(prepared, self._pod.params.name))
            self.state = "loading"
        reuse = old is not None and not old.dead and old.fingerprint == code.worker
        if old is not None and reuse:
            try:
                answer = await self._send_load(old, code, record)
            except WorkerDied:
                if exclusive or record.cancelled is not None:
                    raise
                # Most likely a call that ran in it was the end of it, and not the new code.
                return await self._put_in_new(code, record, None)
            if not answer.flags & F_ERROR:
                self._install(old, code)
            elif exclusive:
                # The old instance is gone, the new one can't be made: the old code begins anew in a clean process.
                self.fleet.kill(old, {"message": "was ended: its class could not be replaced", "cause": "restart"})
                await old.gone
            return answer
        if exclusive and old is not None and not old.dead:
            self.current = None
            self._revive = True  # unless the new code takes its place
            self.fleet.kill(old, {"message": "was replaced by a redeploy", "cause": "restart"})
            await old.gone
        return await self._put_in_new(code, record, old, prepared)

    async def _put_in_new(self, code: Code, record: Record, old: Worker | None, new: Worker | None = None) -> Frame:
        """Load code into a new worker, which takes the place of an old one."""
        worker = new or await self._spawn(code, record)
        if record.cancelled is not None:
            raise _Cancelled
        answer = await self._send_load(worker, code, record)
        if answer.flags & F_ERROR:
            self.fleet.kill(worker, {"message": "was ended because its code could not be loaded", "cause": "restart"})
            return answer
        self._install(worker, code)
        if old is not None and not old.dead:
            old.retired = True
            self.settle(old)
        return answer

    async def _spawn(self, code: Code, record: Record) -> Worker:
        """A new worker for a LOAD; the client may cancel while it comes."""
        worker = await self.fleet.spawn(code, code.memory_limit(self._pod.params.memory_limit))
        if record.cancelled is not None:
            self.fleet.kill(worker, {"message": "was ended because its load was cancelled", "cause": "restart"})
            raise _Cancelled
        return worker

    def _load_failed(self, code: Code, error: dict[str, Any]) -> None:
        """A LOAD went wrong: what was there goes on; when there was nothing, the pod has failed."""
        self._drop(code)
        self._pod.tell("load-failed", str(error.get("message") or error.get("type", ""))[:2000])
        if self.state == "stopping":
            return
        if self.current is not None:
            self.state = "ready"
        elif self.code is not None:
            self.state = "restarting"
        else:
            self.state, self.error = "failed", error

    def _excludes(self, record: Record) -> bool:
        """Whether a LOAD's code can't be there together with the old one.

        Two instances of a class may not fit the machine: the old one goes first. Functions are loaded beside each
        other.
        """
        cls = record.meta["kind"] != "fn" or (self.code is not None and self.code.kind != "fn")
        return cls and not self._unchanged(record)

    def _unchanged(self, record: Record) -> bool:
        known, meta = self.code, record.meta
        if known is None or not self.ready or meta.get("force"):
            return False
        return (known.version, known.worker, known.kind) == (meta["version"], meta["worker"], meta["kind"])

    # -- new workers for dead ones -------------------------------------------------------------------------------------

    async def _revive_worker(self) -> None:
        """Start a new worker for one that died, and load the code into it."""
        code = self.code
        if code is None or self.current is not None or self.state == "stopping":
            self._revive = False
            return
        await self._pause(_BACKOFF[min(self._failures, len(_BACKOFF) - 1)])
        if self._loads:
            return  # new code goes first; what it leaves to be done is done afterwards
        self._own.high_water += 1
        record = self._pod.store.add(self._own, self._own.high_water, "", "load")
        record.log = self._pod.store.service_log
        try:
            worker = await self.fleet.spawn(code, code.memory_limit(self._pod.params.memory_limit))
            self._reviving = worker
            answer = await self._send_load(worker, code, record)
        except WorkerDied as e:
            self._revival_failed(e.error)
            return
        finally:
            self._reviving = None
            self._pod.store.forget(record)
        if answer.flags & F_ERROR:
            self.fleet.kill(worker, {"message": "was ended because its code could not be loaded", "cause": "restart"})
            self._revival_failed({**error_of(answer), "type": "StartupError"})
            return
        self._install(worker, code, again=True)
        self._release()

    async def _pause(self, delay: float) -> None:
        """Wait before a worker is started, less long when somebody wants it."""
        self._hurry = self._loop.create_future()
        if not delay:
            return
        self._pausing = self._loop.time()
        if self.held:
            self._want()
        try:
            await asyncio.wait({self._hurry}, timeout=delay)
        finally:
            self._pausing = None
            if self._nudge is not None:
                self._nudge.cancel()
                self._nudge = None

    def _revival_failed(self, error: dict[str, Any]) -> None:
        """Who waits for this worker gets the error; it is tried again, later and later."""
        if self._loads:
            return  # ended by ourselves, in favour of new code; the calls wait for that
        self._failures += 1
        for record in self._take_held():
            self._pod.calls.fail(record, error)
        for done in self._take_restarts():
            done(error)

    def _take_held(self) -> deque[Record]:
        taken, self.held = self.held, deque()
        self._pod.calls.held_bytes = 0
        return taken

    def _take_restarts(self) -> list[Callable[[dict[str, Any] | None], None]]:
        taken, self._restarts = self._restarts, []
        return taken

    def _drop(self, code: Code) -> None:
        if code.file is not None:
            self._pod.bulk.remove(code.file)
            code.file = None

    def _finish(self, record: Record, raw: bytes, state: str) -> None:
        if record.ended is None:
            self._pod.calls.end(record, raw, state)

    async def _send_load(self, worker: Worker, code: Code, record: Record, prepare: bool = False) -> Frame:
        """Send a worker its code (`prepare`: only for the steps of its image); the RESULT frame."""
        answer: asyncio.Future[Frame] = self._loop.create_future()
        self._answers[record.number] = worker, answer
        record.worker = worker
        record.state = State.RUNNING
        record.started = time.time()
        meta, flags = {**{k: v for k, v in code.meta.items() if k != "file"}, "prepare": prepare}, 0
        try:
            if worker.dead:
                raise WorkerDied(death(worker, self._pod.params.name))
            try:
                if code.file is not None:
                    flags, meta["file"] = F_BULK, self._pod.bulk.duplicate(code.file)
                frame = encode(FrameType.LOAD, record.number, meta, code.buffers, flags)
            except (OSError, WireError) as e:  # no room for another name of the file, or for that name in the frame
                return failed({"type": "StartupError", "message": f"the code can't be handed to a worker: {e}"})
            worker.send(frame)
            return await answer
        finally:
            del self._answers[record.number]
            if "file" in meta:
                self._pod.bulk.remove(meta["file"])

    def _install(self, worker: Worker, code: Code, *, again: bool = False) -> None:
        """From here on this worker, with this code, gets the calls."""
        before = self.code
        # A restart that was asked for is done with any new worker: with that of a redeploy too.
        restarts = self._take_restarts() if worker is not self.current else []
        self._adopt_limits(code, worker)
        worker.fingerprint = code.worker
        worker.loaded_at = time.monotonic()
        self.current, self.code = worker, code
        self._revive = False
        if self.state != "stopping":
            self.state, self.error = "ready", None
        if before is not None and before is not code:
            self._drop(before)
        self._pod.kept.save(code)
        name = code.meta.get("name") or self._pod.params.name
        where = {"worker": worker.number, "pid": worker.pid, "version": code.version, "by": code.meta.get("by")}
        event, more = ("worker-ready", " into a new worker") if again else ("loaded", "")
        self._pod.tell(event, f"{name} has been loaded{more}", **where)
        if before is not None and before.kind == "cls":
            self.losses += 1
            why = "by a restart" if restarts else "since its worker ended" if again else "by a redeploy"
            text = f"{before.meta.get('name')} was constructed anew, {why}; what the old instance held is lost"
            self._pod.tell("state-lost", text, losses=self.losses)
        for done in restarts:
            done(None)

    def _adopt_limits(self, code: Code, worker: Worker) -> None:
        worker.memory_limit = code.memory_limit(self._pod.params.memory_limit)
        if "ttl" in code.meta:
            ttl = code.meta["ttl"]
            self._pod.life.set_ttl(float(ttl) if type(ttl) in (int, float) and ttl > 0 else None)

    def _release(self) -> None:
        """Let the calls go that were held, unless the next LOAD holds them again."""
        self.holding = any(map(self._excludes, self._loads))
        for record in self._take_held():
            if record.ended is None:
                self._pod.calls.submit(record)

    def _worker_died(self, worker: Worker, error: dict[str, Any]) -> None:
        wanted = worker.killed_for is not None and worker.killed_for.get("cause") == "restart"
        was_current = worker is self.current
        if was_current:
            self.current = None
            if self.state == "ready":
                self.state = "restarting"
            brief = worker.loaded_at is not None and time.monotonic() - worker.loaded_at < 10
            if brief and not wanted and not worker.served:
                self._failures += 1
            else:
                self._failures = 0
            self._revive = self.code is not None
            self._wake.set()
        if self.state != "stopping" and (not wanted or was_current):
            _log.warning("%s", error.get("message"))
            fields = {k: v for k, v in error.items() if k not in ("type", "message")}
            self._pod.tell("worker-died", str(error.get("message")), worker=worker.number, pid=worker.pid, **fields)
        self._pod.calls.worker_lost(worker, error)
        self._pod.bulk.remove_unsent(worker.pid)
        for expected, answer in list(self._answers.values()):
            if expected is worker and not answer.done():
                answer.set_exception(WorkerDied(error))

    def stop(self) -> None:
        """End all workers and all calls; the pod ends."""
        self.state = "stopping"
        self.holding = True  # what comes now is refused, and not given to a worker that is being killed
        self.fleet.stop()
        text = f'service "{self._pod.params.name}" was ended while the call ran'
        error = {"type": "PodTerminatedError", "message": text}
        for record in self._pod.store:
            if record.client is not self._own:
                self._pod.calls.fail(record, error)
        for done in self._take_restarts():
            done(error)
