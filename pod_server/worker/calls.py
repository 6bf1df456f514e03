"""One call in the worker, and the frame that ends it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from .. import exceptions, serialization
from ..exceptions import Cancelled
from ..wire import F_ERROR, Frame, FrameType
from .output import Log, settle
from .payload import Bulk, arguments
from .raising import raise_cancelled

if TYPE_CHECKING:
    import asyncio

    from .loading import Code
    from .pool import PoolThread

__all__ = [
    "ENDED",
    "NEW",
    "RUNNING",
    "Call",
    "CallError",
    "Failure",
    "Handover",
    "Items",
    "Value",
    "encode_value",
    "result_frame",
]

NEW, RUNNING, ENDED = range(3)

#: The longest message of an error that a frame carries beside the exception itself.
_MESSAGE = 4000
#: The same for who can't unpickle, in bytes of JSON, where a character may take twelve.
_JSON_MESSAGE = 16_000
_JSON_TRACEBACK = 32_000


class CallError(Exception):
    """An error of ours that ends a call: the fields are those of RESULT's ``error``."""

    def __init__(self, type: str, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.fields = {"type": type, "message": message[:_MESSAGE], **fields}


class Value:
    """A call's outcome: a value."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Items:
    """A call's outcome: all its items have been sent."""

    __slots__ = ()


class Failure:
    """A call's outcome: an exception."""

    __slots__ = ("exception",)

    def __init__(self, exception: BaseException) -> None:
        self.exception = exception


class Handover:
    """A ``def`` gave a coroutine or an asynchronous generator, for the event loop to go on with."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


Outcome = Value | Items | Failure | Handover


class Call:
    """A CALL or LOAD from the moment its frame was read until its RESULT is on its way.

    Its log's lock guards ``state`` and ``armed``.
    """

    __slots__ = (
        "abandoned",
        "armed",
        "code",
        "credit",
        "frame",
        "id",
        "interrupted",
        "items",
        "job",
        "log",
        "meta",
        "ready",
        "reason",
        "state",
        "task",
        "thread",
    )

    def __init__(self, frame: Frame, meta: dict[str, Any], log: Log, code: Code | None) -> None:
        self.id = frame.channel
        self.frame: Frame | None = frame
        self.meta = meta
        self.log = log
        self.code = code
        self.state = NEW
        #: Why it is to be cancelled; None: it isn't.
        self.reason: str | None = None
        #: What runs it instead of the user's function: a LOAD.
        self.job: Callable[[], dict[str, Any]] | None = None
        self.thread: PoolThread | None = None
        self.task: asyncio.Task[None] | None = None
        #: Identity of the thread that may be interrupted for this call.
        self.armed: int | None = None
        self.interrupted = False
        #: It did not end when it was cancelled; its place was given to another call.
        self.abandoned = False
        #: Arguments that were decoded ahead.
        self.ready: tuple[Any, Any] | None = None
        gen = meta.get("gen")
        #: Permits to send items; a generator's `def` takes one for each.
        self.credit: SimpleQueue[None] | None = None
        self.items = 0
        if gen is not None:
            self.credit = SimpleQueue()
            self.add_credit(gen)

    @property
    def ser(self) -> str:
        """How values travel."""
        ser: str = self.meta.get("ser") or "pickle"
        return ser

    def add_credit(self, n: int) -> None:
        """Allow `n` more items."""
        if self.credit is not None:
            for _ in range(n):
                self.credit.put(None)

    def decode(self, bulk: Bulk) -> tuple[Any, Any]:
        """Positional and keyword arguments."""
        if self.ready is not None:
            ready, self.ready = self.ready, None
            return ready
        frame = self.frame
        assert frame is not None
        self.frame = None  # the arguments' bytes are not needed longer than this
        try:
            ser = self.ser
            return arguments(serialization.loads(bulk.buffers(frame, self.meta), ser), ser)
        except serialization.DecodeError as e:
            raise CallError("SerializationError", f"the arguments: {e}", type_name=e.type_name or None) from e
        except (OSError, ValueError, TypeError, KeyError) as e:
            raise CallError("SerializationError", f"the arguments can't be read in the pod: {e}") from e

    def begin(self, thread: PoolThread | None = None) -> bool:
        """Start; in a thread of the pool, it can be interrupted from now on. False when it was cancelled before."""
        with self.log.lock:
            if self.state != NEW:
                return False
            self.state = RUNNING
            if thread is not None:
                self.thread = thread
                thread.call = self
                self.armed = threading.get_ident()
            return True

    def raise_cancelled(self) -> None:
        """Raise `Cancelled` in its thread, if that may be interrupted for it at this moment."""
        with self.log.lock:
            if self.armed is not None:
                raise_cancelled(self.armed, self.thread)

    def disarm(self) -> None:
        """Be not interruptible any more; what was on its way is raised here."""
        with self.log.lock:
            settle()
            if self.armed is not None:
                self.armed = None
                thread = self.thread
                if thread is not None:
                    thread.call = None
                    if self.interrupted:
                        thread.nap.acquire(False)  # if nothing slept, the alarm is still set

    def end(self) -> bool:
        """Mark as ended; False when it was."""
        with self.log.lock:
            ended, self.state = self.state == ENDED, ENDED
            return not ended


def _error(call: Call, fields: dict[str, Any], bulk: Bulk, buffers: Any = ()) -> bytes:
    meta: dict[str, Any] = {"error": fields}
    if call.credit is not None:
        meta["n"] = call.items
    return bulk.frame(FrameType.RESULT, call.id, meta, buffers, F_ERROR)


def cancelled_fields(call: Call) -> dict[str, Any]:
    """The ``error`` of a call that was cancelled."""
    if call.reason == "timeout":
        timeout = call.meta.get("timeout")
        after = f" after {timeout:g} s" if isinstance(timeout, (int, float)) else ""
        return {
            "type": "CallTimeoutError",
            "message": f"the call was cancelled{after}: its timeout was over",
            "timeout": timeout,
        }
    return {"type": "CallCancelledError", "message": "the call was cancelled"}


def user_fields(exc: BaseException, ser: str) -> dict[str, Any]:
    """The ``error`` of an exception of the user's code; as text too for who can't unpickle."""
    fields = {"type": "user", "message": exceptions.message(exc)[:_MESSAGE]}
    if ser != "pickle":
        message = fields["message"]
        while len(json.dumps(message)) > _JSON_MESSAGE:
            message = message[: len(message) * 7 // 8]
        text = exceptions.format(exc)[-_JSON_TRACEBACK:]
        while len(json.dumps(text)) > _JSON_TRACEBACK:
            text = text[len(text) // 8 + 1 :]
        fields.update({"message": message, "class": type(exc).__qualname__[:_MESSAGE], "traceback": text})
    return fields


def _encode_error(e: serialization.EncodeError) -> dict[str, Any]:
    message = f"the result: {e}"[:_MESSAGE]
    if isinstance(e, serialization.TooLargeError):
        return {"type": "PayloadTooLargeError", "message": message, "size": e.size, "limit": serialization.MAX_BYTES}
    return {"type": "SerializationError", "message": message, "type_name": e.type_name or None, "path": e.path}


def encode_value(call: Call, value: Any) -> Sequence[serialization.Buffer]:
    """A value's bytes; runs the user's ``__reduce__`` and the like, which may wait for threads that print."""
    return serialization.dumps(value, ser=call.ser)


def value_frame(
    type: FrameType, call: Call, buffers: Sequence[serialization.Buffer], bulk: Bulk, meta: dict[str, Any]
) -> bytes:
    """The frame of an encoded value."""
    if call.ser != "pickle":
        meta["ser"] = call.ser
    return bulk.frame(type, call.id, meta, buffers)


def result_frame(call: Call, outcome: Outcome, bulk: Bulk) -> bytes:
    """The RESULT of a call: whatever the outcome, there is one."""
    try:
        if call.reason is not None:
            return _error(call, cancelled_fields(call), bulk)
        if isinstance(outcome, Value):
            return value_frame(FrameType.RESULT, call, encode_value(call, outcome.value), bulk, {})
        if isinstance(outcome, Items):
            return bulk.frame(FrameType.RESULT, call.id, {"n": call.items}, ())
        assert isinstance(outcome, Failure)
        exc = outcome.exception
        if isinstance(exc, CallError):
            buffers = exceptions.encode(exc.__cause__) if exc.__cause__ is not None else ()
            return _error(call, exc.fields, bulk, buffers)
        return _error(call, user_fields(exc, call.ser), bulk, exceptions.encode(exc))
    except serialization.EncodeError as e:
        return _error(call, _encode_error(e), bulk)
    except OSError as e:
        text = f"the result can't be passed on: {e}. Make room in {bulk.directory}, or return less."
        return _error(call, {"type": "SerializationError", "message": text}, bulk)
    except BaseException as e:  # e.g. sys.exit() in a __reduce__: the call must end all the same
        return _error(call, user_fields(e, call.ser), bulk, exceptions.encode(e))


def was_cancelled(exc: BaseException) -> bool:
    """Whether an exception is what a cancelled call ends with of itself."""
    import asyncio

    return isinstance(exc, (Cancelled, asyncio.CancelledError))
