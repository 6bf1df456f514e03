"""What becomes of a frame from the front: calls started, cancelled, given credit; code loaded; and how calls end."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import inspect
import os
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

from .. import serialization
from ..exceptions import Cancelled
from ..wire import F_BULK, Frame, FrameType, LogKind, encode
from .calls import (
    ENDED,
    Call,
    CallError,
    Failure,
    Handover,
    Items,
    Outcome,
    Value,
    encode_value,
    result_frame,
    value_frame,
    was_cancelled,
)
from .coroutines import Coroutines
from .interrupt import Interrupter
from .loading import Code, Loader
from .output import Log, LogHub, current_log, settle
from .pool import Pool, PoolThread
from .reports import LoadReport
from .steps import Steps

if TYPE_CHECKING:
    from .payload import Bulk
    from .pipes import Pump

__all__ = ["Dispatcher"]


class Dispatcher:
    """The calls of this worker.

    Parameters
    ----------
    hub, bulk, loader, steps
        Where output, large payloads, code and the steps of its image go.
    loop
        The user's event loop, of the main thread.
    threads
        How many ``def`` calls run at once, until a LOAD says otherwise.
    """

    def __init__(
        self,
        hub: LogHub,
        bulk: Bulk,
        loader: Loader,
        steps: Steps,
        loop: asyncio.AbstractEventLoop,
        threads: int,
    ) -> None:
        self.hub = hub
        self.bulk = bulk
        self.loader = loader
        self.steps = steps
        self.loop = loop
        self.pool = Pool(threads, self._run)
        self.coroutines = Coroutines(self)
        self.interrupter = Interrupter(self)
        self.pump: Pump | None = None
        hub.owner = self.owner
        self.code: Code | None = None
        #: Why no code can be loaded in this process, if so.
        self.problem: str | None = None
        #: Calls that have not ended.
        self.calls: dict[int, Call] = {}
        #: Those that run, in the order in which they began.
        self.running: dict[int, Call] = {}
        self._batch: list[Call] = []
        #: With ``concurrency=1``: the call that runs, and those that wait for it.
        self._serial = False
        self._serial_lock = threading.Lock()
        self._current: Call | None = None
        self._waiting: collections.deque[Call] = collections.deque()

    def owner(self) -> Log:
        """Whose output it is that comes by descriptor 1 or 2, or from nowhere: that of the call that began last."""
        while True:
            try:
                for call in reversed(self.running.values()):
                    return call.log
                return self.hub.service
            except RuntimeError:
                continue  # a call began or ended in another thread meanwhile

    # -- frames, on the i/o thread -----------------------------------------------------------------------------------

    def handle(self, frames: list[Frame]) -> None:
        """Act on the frames of one read; runs no user code and waits for nothing."""
        for frame in frames:
            kind = frame.type
            if kind is FrameType.CALL:
                self._call(frame)
            elif kind is FrameType.CREDIT:
                call = self.calls.get(frame.channel)
                if call is not None:
                    call.add_credit(int(frame.meta.get("n", 1)))
                    if call.task is not None:
                        self.loop.call_soon_threadsafe(self.coroutines.credit, call)
            elif kind is FrameType.CANCEL:
                call = self.calls.get(frame.channel)
                if call is not None and call.reason is None:
                    call.reason = frame.meta.get("reason") or "user"
                    self.interrupter.cancel(call)
            elif kind is FrameType.LOAD:
                self._load(frame)
            elif kind is FrameType.PING:
                self.hub.link.send(encode(FrameType.PONG, meta=frame.meta))
        if self._batch:
            batch, self._batch = self._batch, []
            self.loop.call_soon_threadsafe(self.coroutines.start, batch)

    def _call(self, frame: Frame) -> None:
        call = Call(frame, frame.meta, Log(self.hub, frame.channel), self.code)
        self.calls[call.id] = call
        if self._serial:
            with self._serial_lock:
                if self._current is not None:
                    self._waiting.append(call)
                    return
                self._current = call
        self._launch(call, self._batch)

    def _launch(self, call: Call, batch: list[Call] | None = None) -> None:
        code = call.code
        if code is None or not code.is_async(call.meta.get("f")):
            self.pool.submit(call)
        elif call.frame is not None and call.frame.flags & F_BULK:
            # A large pickle takes its time; the loop is not kept from other calls by it.
            self.pool.submit(call, extra=True)
        elif batch is not None:
            batch.append(call)
        else:
            self.loop.call_soon_threadsafe(self.coroutines.start, [call])

    def _load(self, frame: Frame) -> None:
        meta = frame.meta
        call = Call(frame, meta, Log(self.hub, frame.channel), None)
        self.calls[call.id] = call
        call.job = lambda: self._install(call)
        self.pool.submit(call, extra=True)

    def _install(self, call: Call) -> dict[str, Any]:
        """Load code and use it from now on; on a thread of the pool."""
        frame, meta = call.frame, call.meta
        assert frame is not None
        call.frame = None
        if self.problem is not None:
            raise CallError("StartupError", self.problem)
        try:
            buffers = self.bulk.buffers(frame, meta)
        except (OSError, ValueError) as e:
            raise CallError("StartupError", f"the code can't be read in the pod: {e}") from e
        if (image := meta.get("image")) is not None:
            of_code = len(buffers) - int(image["n"])
            self.steps.run(buffers[of_code:], LoadReport(call.log, self.hub))
            buffers = buffers[:of_code]
            if meta.get("prepare"):
                return {"prepared": True}
        if self.code is not None and self.code.kind == "cls":
            # Two models don't fit one GPU. The front has let the calls end.
            text = f"the instance of {self.code.name} is replaced: what it held is gone"
            self.code = None
            self.loader.drop()
            with call.log.lock:  # so that a cancel can't leave the link locked
                settle()
                self.hub.link.send(encode(FrameType.EVENT, meta={"event": "state-lost", "text": text}))
        code = self.loader.load(meta, buffers)
        limit = int(meta.get("concurrency") or meta.get("threads") or self.pool.limit)
        with call.log.lock:  # a cancel comes before all of it, or too late
            call.disarm()
            if call.reason is not None:
                raise Cancelled
            with self._serial_lock:
                self._serial = limit == 1
            self.pool.resize(limit)
            self.code = code
        return {"version": meta.get("version")}

    # -- def calls, on threads of the pool ---------------------------------------------------------------------------

    def _run(self, call: Call, thread: PoolThread) -> None:
        # A context of its own, and empty: what one call sets is not seen by the next one on this thread.
        contextvars.Context().run(self._run_in_context, call, thread)

    def _run_in_context(self, call: Call, thread: PoolThread) -> None:
        current_log.set(call.log)
        outcome: Outcome | None
        try:
            outcome = self._attempt(call, thread)
            if isinstance(outcome, Handover):
                self.loop.call_soon_threadsafe(self.coroutines.adopt, call, outcome.value)
            elif outcome is not None:
                self.finish(call, outcome)
        except BaseException:
            # Nothing of the user's gets here; what does must not cost the pool its thread, nor the caller his answer.
            self.blunder(call)
        finally:
            outcome = None  # an exception refers to this frame by its traceback

    def _attempt(self, call: Call, thread: PoolThread) -> Outcome | None:
        """Run a call; None if it didn't begin. When this returns, no exception can come from outside any more."""
        outcome: Outcome | None = None
        try:
            try:
                outcome = self._body(call, thread)
            except BaseException as e:
                outcome = Failure(e)
            self.leave_child(outcome)
            call.disarm()
        except Cancelled as e:
            # It came when the function had ended. It is sent once for each call, so this is not interrupted again.
            if outcome is None:
                outcome = Failure(e)
            call.disarm()
        return outcome

    def _body(self, call: Call, thread: PoolThread) -> Outcome | None:
        code = call.code
        if code is not None and code.is_async(call.meta.get("f")):
            try:
                call.ready = call.decode(self.bulk)
            except CallError as e:
                return Failure(e) if call.begin() else None
            self.loop.call_soon_threadsafe(self.coroutines.start, [call])
            return None
        if not call.begin(thread):
            return None
        self.running[call.id] = call
        if call.job is not None:
            return Value(call.job())
        function = self.function(call)
        args, kwargs = call.decode(self.bulk)
        value = function(*args, **kwargs)
        if call.credit is not None and hasattr(value, "__next__"):
            self._send_items(call, value)
            return Items()
        if inspect.iscoroutine(value) or (call.credit is not None and hasattr(value, "__anext__")):
            return Handover(value)
        return Value(value)

    def leave_child(self, outcome: Outcome | None) -> None:
        """In a child that user code has forked, and that has come to the end of the call: end, as a script would."""
        if self.pump is None or not self.pump.forked:
            return
        code: Any = 0
        if isinstance(outcome, Failure):
            exc = outcome.exception
            code = exc.code if isinstance(exc, SystemExit) else 1
            if not isinstance(exc, SystemExit):
                traceback.print_exception(type(exc), exc, exc.__traceback__)
            elif code is not None and not isinstance(code, int):
                print(code, file=sys.stderr)
                code = 1
        os._exit(int(code or 0) & 0xFF)

    def function(self, call: Call) -> Any:
        """What a call calls."""
        if call.code is None:
            raise CallError("StartupError", "no code is loaded in this pod; deploy it again with .to(...)")
        return call.code.function(call.meta.get("f"))

    def _send_items(self, call: Call, iterator: Any) -> None:
        credit = call.credit
        assert credit is not None
        try:
            while True:
                credit.get()  # first: a generator is not driven further than somebody wants to read
                settle()
                try:
                    item = next(iterator)
                except StopIteration:
                    return
                self.send_item(call, item)
                del item
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def send_item(self, call: Call, item: Any) -> None:
        """Send one item of a generator, after the output up to here.

        Raises
        ------
        CallError
            When it can't be sent.
        """
        try:
            buffers = encode_value(call, item)
            self._take_output(call)
            with call.log.lock:  # so that no file is left behind by a cancel
                settle()
                frame = value_frame(FrameType.ITEM, call, buffers, self.bulk, {"i": call.items})
                call.items += 1
                call.log.flush(frame=frame, wait=True)
        except serialization.EncodeError as e:
            raise CallError(
                "SerializationError", f"item {call.items}: {e}", type_name=e.type_name or None, path=e.path
            ) from e
        except OSError as e:
            raise CallError(
                "SerializationError", f"item {call.items} can't be passed on: {e}; make room in {self.bulk.directory}"
            ) from e

    # -- the end -----------------------------------------------------------------------------------------------------

    def _take_output(self, call: Call) -> None:
        """Take what came up to now by pipes, as the output of this call."""
        if self.pump is not None:
            self.pump.settle(call.log)

    @staticmethod
    def _show_figures(call: Call) -> None:
        """Display what pyplot still has of this call, as the end of a notebook's cell does, and close it."""
        backend = sys.modules.get("pod_server.worker.mpl_backend")
        if backend is None or call.reason is not None:
            return
        try:
            backend.show()
        except Exception:  # drawing is when matplotlib finds out, say, that a label's TeX is wrong; the result stands
            call.log.write(LogKind.STDERR, traceback.format_exc().encode("utf-8", "backslashreplace"))

    def finish(self, call: Call, outcome: Outcome) -> None:
        """End a call: its output, then its RESULT; in its own context."""
        result: bytes | None
        if call.log.figures:
            self._show_figures(call)
        if call.job is not None and isinstance(outcome, Value):  # the code is there, whoever cancels now
            result = encode(FrameType.RESULT, call.id, outcome.value)
        else:
            if call.reason is not None and isinstance(outcome, Failure) and not was_cancelled(outcome.exception):
                # Its caller gets the error of the cancel; what went wrong meanwhile is not lost.
                text = "".join(
                    traceback.format_exception(
                        type(outcome.exception), outcome.exception, outcome.exception.__traceback__
                    )
                )
                call.log.write(LogKind.STDERR, text.encode("utf-8", "backslashreplace"))
            result = result_frame(call, outcome, self.bulk)
        self._take_output(call)
        call.end()
        # Not while the pump gives this call what it has read.
        with self.pump.lock if self.pump is not None else contextlib.nullcontext():
            self.running.pop(call.id, None)
        self.calls.pop(call.id, None)
        self._release(call)
        call.log.end(result)

    def blunder(self, call: Call) -> None:
        """End a call that `finish` could not end, because of the error that is being handled: one of our own."""
        self.hub.service.write(LogKind.STDERR, traceback.format_exc().encode("utf-8", "backslashreplace"))
        if call.end():
            text = "the worker failed in a way that is an error of its own; see the service's log"
            self.finish(call, Failure(CallError("StartupError", text)))

    def abandon(self, call: Call) -> None:
        """Give away the place of a call that was cancelled and doesn't end."""
        call.abandoned = True
        if call.thread is not None and call.task is None:
            self.pool.abandon(call.thread, call)
        self._release(call)

    def _release(self, call: Call) -> None:
        """With ``concurrency=1``, let the next one begin."""
        following = None
        with self._serial_lock:
            if self._current is call:
                following = self._current = self._next()
            elif call.state == ENDED and self._waiting:
                try:
                    self._waiting.remove(call)
                except ValueError:
                    pass  # it wasn't waiting
        if following is not None:
            self._launch(following)

    def _next(self) -> Call | None:
        while self._waiting:
            call = self._waiting.popleft()
            if call.state != ENDED:
                return call
        return None
