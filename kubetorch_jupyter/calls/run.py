"""One attempt at one call: from the caller's thread to the portal, and its outcome back.

Arguments are encoded, and results decoded, in the caller's thread (user code may run there: ``__reduce__``,
``__setstate__``); the portal only moves bytes. The caller waits on a lock or on a future of its own loop; being
interrupted cancels the call in the pod and gives control back within half a second.
"""

from __future__ import annotations

import _thread
import asyncio
import functools
import logging
import queue
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from pod_server import serialization, wire
from pod_server.wire import FrameType, LogKind

from ..by_source import dump_arguments
from ..errors import (
    CallCancelledError,
    CallTimeoutError,
    KubetorchError,
    PayloadTooLargeError,
    PodLostError,
    SerializationError,
    WorkerDiedError,
)
from ..streams import Output, open_output
from ..transport.exchange import Exchange, RemoteFailure
from ..transport.portal import acquire, drop_frames, get_inlet, get_portal, in_slices
from ..transport.session import Session
from .failures import decode_error, load_error
from .target import CallOptions, Target

__all__ = ["DRAIN", "Bell", "Outcome", "Payload", "Run", "decode_error", "encode_arguments", "nobody"]

log = logging.getLogger(__name__)

#: How long a cancelled call's last output is waited for, in seconds. Control is to be back half a second after Stop,
#: and a loop may notice that a tick late (`transport.portal`).
DRAIN = 0.2
#: How often a call that no pod has seen is begun on another: a service's replicas may all end in the same moment.
_MOVES = 3
Payload = list[serialization.Buffer]
#: A RESULT's flags, meta and buffers, or why there is none.
Outcome = tuple[int, Mapping[str, Any], Sequence[wire.Buffer]] | Exception


def encode_arguments(
    target: Target, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions, *, snapshot: bool
) -> Payload:
    """The payload of a call.

    Parameters
    ----------
    target
        What is called: whether its pod has this Python is what counts.
    args, kwargs
        The arguments.
    options
        ``serialization`` is what counts.
    snapshot
        Copy arrays' memory: the caller goes on before it has been sent.

    Raises
    ------
    SerializationError
        When they can't be sent; it names the culprit.
    """
    __tracebackhide__ = True
    ser = options.serialization
    value: Any = (args, kwargs)
    if ser == "none":
        if kwargs or len(args) > 1:
            raise SerializationError(
                'serialization="none" sends one argument, bytes; use "pickle" or "json" for others'
            )
        value = args[0] if args else None
    try:
        if ser == "pickle" and target.foreign:
            return dump_arguments(value, snapshot=snapshot)
        return serialization.dumps(value, ser=ser, snapshot=snapshot)
    except serialization.TooLargeError as e:
        raise PayloadTooLargeError(str(e), size=e.size, limit=serialization.MAX_BYTES) from None
    except serialization.EncodeError as e:
        raise SerializationError(str(e), type_name=e.type_name, path=e.path) from e.__cause__


class Bell:
    """Wakes one thread that waits for any of several things; rung by any thread, and only when somebody sleeps."""

    __slots__ = ("_asleep", "_rings")

    def __init__(self) -> None:
        self._rings: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._asleep = False

    def ring(self) -> None:
        """Wake who waits."""
        if self._asleep:
            self._asleep = False
            self._rings.put(None)

    def wait(self, ready: Callable[[], object], timeout: float | None = None) -> None:
        """Sleep until rung, unless ``ready()``; may also wake for nothing. Interruptible."""
        self._asleep = True
        if ready():
            self._asleep = False
            return
        # Not one slice and back to the caller: Stop is to come where that expects it.
        if not in_slices(self._rung, timeout):
            self._asleep = False  # the caller looks at the clock

    def _rung(self, timeout: float) -> bool:
        try:
            self._rings.get(timeout=timeout)
        except queue.Empty:
            return False
        return True


class Run(Exchange):
    """One attempt at a call.

    Parameters
    ----------
    target
        Whose function it is.
    method
        The method, or None for the function itself.
    payload
        As `encode_arguments` gives it.
    options
        How.
    mode
        ``"spawn"``: the pod keeps the result until it is read.
    gen
        For a generator: how many items may come unasked.
    """

    __slots__ = (
        "_early",
        "_moves",
        "_spare",
        "_starting",
        "_timed_out",
        "_timer",
        "done",
        "notify",
        "options",
        "outcome",
        "output",
        "target",
    )

    def __init__(
        self,
        target: Target,
        method: str | None,
        payload: Payload,
        options: CallOptions,
        *,
        mode: str | None = None,
        gen: int = 0,
    ) -> None:
        meta: dict[str, Any] = {}
        if method:
            meta["f"] = method
        if options.serialization != "pickle":
            meta["ser"] = options.serialization
        if options.timeout is not None:
            meta["timeout"] = options.timeout
        if not options.stream_logs:
            meta["log"] = False
        if mode is not None:
            meta["mode"] = mode
        if gen:
            meta["gen"] = gen
        self._setup(FrameType.CALL, target, method or target.label, meta or None, payload, options)

    def _setup(
        self,
        type: FrameType,
        target: Target,
        label: str,
        meta: dict[str, Any] | None,
        payload: Payload,
        options: CallOptions,
    ) -> None:
        self.output: Output | None = open_output(label) if options.stream_logs else None
        Exchange.__init__(self, type, meta, payload, self.output)
        self.target = target
        self.options = options
        self.outcome: Outcome | None = None
        #: The outcome is there, and the log has been written.
        self.done = False
        #: Called, from any thread, when `done` has become true.
        self.notify: Callable[[], None] = nobody
        #: The payload, until the session has sent it.
        self._spare: Payload = payload
        self._moves = _MOVES
        self._early: str | None = None
        self._starting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timed_out = False

    # -- on the portal -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start it, on the open session or after getting one."""
        if self._early is not None:
            self.on_error(self._cancelled())
            return
        session = self._live()
        if session is not None:
            self._begin_on(session)
        else:
            self._starting = self._own(self._begin_later())

    def _live(self) -> Session | None:
        """The session to start it on at once, if there is one."""
        return self.target.live

    async def _session(self) -> Session:
        return await self.target.session()

    def _own(self, coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it in the context of this call's cell, where it may have something to say."""
        # In a copy: the writer's thread enters the output's own, and a context can't be entered twice at a time.
        return get_portal().own(coro, self.output.context.copy() if self.output is not None else None)

    async def _begin_later(self) -> None:
        try:
            session = await self._session()
        except asyncio.CancelledError:
            self.on_error(self._cancelled())
            if self._early is None:
                raise  # the process is ending
        except Exception as e:
            self.on_error(e)
        else:
            self._begin_on(session)
        finally:
            if self._starting is asyncio.current_task():  # and not the second attempt, which `on_error` may have begun
                self._starting = None

    def _begin_on(self, session: Session) -> None:
        if self.options.timeout is not None and self._timer is None:
            self._timer = get_portal().loop.call_later(self.options.timeout, self._time_out)
        session.start(self)
        if self._early is not None:
            session.cancel(self, self._early)

    def _cancelled(self) -> KubetorchError:
        if self._timed_out:
            return CallTimeoutError(service=self.target.name, timeout=self.options.timeout)
        return CallCancelledError(service=self.target.name, reason=self._early)

    def on_sent(self) -> None:
        """From now on the pod may know of it: it can't be started elsewhere any more."""
        self.sent = True
        self._spare = []

    def take_back(self) -> None:
        """It can be started elsewhere after all, unless its arguments have left this process."""
        payload = self.payload() if self.sent else None
        if payload is not None:
            self.sent = False
            self._spare = list(payload)

    def on_result(self, flags: int, meta: Mapping[str, Any], buffers: Sequence[wire.Buffer]) -> None:
        """The pod has answered."""
        self._settle((flags, meta, buffers))

    def on_error(self, error: Exception) -> None:
        """There will be no answer."""
        unseen = not self.sent and self.outcome is None and self._early is None
        if unseen and self._moves and isinstance(error, PodLostError):
            # The pod went before this call was on its way, so starting it elsewhere starts it once.
            self._again()
            return
        self._settle(error)

    def on_notice(self, text: str) -> bool:
        """Say it in this call's cell."""
        output = self.output
        if output is None or output.muted:
            return False
        output.feed(LogKind.NOTICE, f"{text}\n".encode())
        return True

    def _again(self) -> None:
        self._moves -= 1
        self.channel = 0
        self.buffers = self._spare
        self.bulk = False
        self._starting = self._own(self._begin_later())

    def _settle(self, outcome: Outcome) -> None:
        if self.outcome is not None:
            return  # given up before
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.outcome = self._timeout_error() if self._timed_out else outcome
        if self.output is None:
            self._ready()
        else:
            if self._early is not None or self._timed_out or self._is("CallTimeoutError", "CallCancelledError"):
                # What waits for its pace is not to keep the caller waiting.
                get_portal().loop.call_later(DRAIN, self.output.mute)
            self.output.finish(self._ready)

    def _ready(self) -> None:
        self.done = True
        self.notify()

    def _time_out(self) -> None:
        self._timed_out = True
        self._cancel("timeout")
        self._timer = get_portal().loop.call_later(DRAIN, self._give_up)

    def _give_up(self) -> None:
        """The pod doesn't react to the timeout: the caller gets its error anyway."""
        if self.outcome is None:
            self._timer = None
            self.outcome = self._timeout_error()
            if self.output is not None:
                self.output.mute()
                self.output.leave()
            self._ready()

    def _timeout_error(self) -> CallTimeoutError:
        return CallTimeoutError(service=self.target.name, call_id=self.id, timeout=self.options.timeout)

    def _cancel(self, reason: str) -> None:
        if self._early is None:
            self._early = reason
        if self.session is not None and self.channel:
            self.session.cancel(self, reason)
        elif self._starting is not None:
            self._starting.cancel()

    # -- in the caller's thread --------------------------------------------------------------------------------------

    @property
    def id(self) -> str | None:
        """The call's public id, once it has been given its number."""
        return self.session.call_id(self.channel) if self.session is not None and self.channel else None

    def start(self) -> None:
        """Hand it to the portal."""
        portal = get_portal()
        if portal.closed:
            raise portal.ended()
        portal.call(self.begin)

    def cancel(self, reason: str = "user") -> None:
        """Ask the pod to cancel it; any thread."""
        get_portal().call(self._cancel, reason)

    def abandon(self) -> None:
        """Show nothing more of it: nobody waits."""
        self.notify = nobody
        if self.output is not None:
            self.output.mute()
            self.output.leave()

    def wait(self) -> None:
        """Start it and block until it is done; an interrupt cancels it."""
        __tracebackhide__ = True
        lock = _thread.allocate_lock()
        lock.acquire()
        self.notify = lock.release
        try:
            self.start()
            acquire(lock)
        except BaseException:
            # KeyboardInterrupt, or whatever else a signal handler of the user's raises.
            self.cancel()
            try:
                lock.acquire(timeout=DRAIN)
            finally:
                self.abandon()
            raise

    async def wait_async(self) -> None:
        """Start it and await it on the running loop; being cancelled cancels it."""
        __tracebackhide__ = True
        inlet = get_inlet()
        waiter = inlet.loop.create_future()
        self.notify = functools.partial(inlet.post, waiter)
        inlet.enter()
        try:
            self.start()
            await waiter
        except asyncio.CancelledError:
            self.cancel()
            last = inlet.loop.create_future()
            self.notify = functools.partial(inlet.post, last)
            try:
                if not self.done:
                    await asyncio.wait((last,), timeout=DRAIN)
            finally:
                self.abandon()
            raise
        except BaseException:
            # Closed while it waited (GeneratorExit): there is no loop to wait on any more.
            self.cancel("abandoned")
            self.abandon()
            raise
        finally:
            inlet.leave()

    def lost(self) -> bool:
        """Whether it ended because its worker or its pod did."""
        if isinstance(self.outcome, Exception):
            return isinstance(self.outcome, (PodLostError, WorkerDiedError))
        return self._is("WorkerDiedError", "PodLostError", "PodTerminatedError")

    def _is(self, *types: str) -> bool:
        """Whether the pod's answer is an error of ours of these types."""
        outcome = self.outcome
        if outcome is None or isinstance(outcome, Exception) or not outcome[0] & wire.F_ERROR:
            return False
        return (outcome[1].get("error") or {}).get("type") in types

    def failed(self) -> bool:
        """Whether it ended with an exception of any kind."""
        outcome = self.outcome
        return isinstance(outcome, Exception) or (outcome is not None and bool(outcome[0] & wire.F_ERROR))

    def answer(self) -> tuple[Any, BaseException | None]:
        """The value, decoded here, or the exception that stands for it.

        Raises
        ------
        SerializationError
            When it can't be made here.
        """
        __tracebackhide__ = True
        outcome = self.outcome
        assert outcome is not None
        if isinstance(outcome, RemoteFailure):  # the service was deployed again for this call, or would have been
            return None, load_error(outcome, self.target.name)
        if isinstance(outcome, Exception):
            if isinstance(outcome, KubetorchError):
                drop_frames(outcome)
            return None, outcome
        flags, meta, buffers = outcome
        if flags & wire.F_ERROR:
            return None, decode_error(meta, buffers, service=self.target.name, call_id=self.id)
        return decode_value(meta, buffers, self.target.name), None

    def value(self) -> Any:
        """The value, decoded here; its exception is raised.

        Raises
        ------
        Exception
            The user's own, as itself; ours when there is no result.
        """
        __tracebackhide__ = True
        value, error = self.answer()
        if error is None:
            return value
        try:
            raise error
        finally:
            del error  # or the traceback would hold this frame, and this frame the traceback


def decode_value(meta: Mapping[str, Any], buffers: Sequence[wire.Buffer], service: str) -> Any:
    """The value of a RESULT or ITEM.

    Raises
    ------
    SerializationError
        When it can't be made here.
    """
    __tracebackhide__ = True
    try:
        return serialization.loads(buffers, meta.get("ser", "pickle"))
    except serialization.DecodeError as e:
        raise SerializationError(
            f'what service "{service}" returned can\'t be made here: {e}', service=service, type_name=e.type_name
        ) from e.__cause__


def nobody() -> None:
    """Nobody is told."""
