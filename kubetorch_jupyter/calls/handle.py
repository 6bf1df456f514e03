"""Calls that nobody waits for at once: `Call`, made by ``spawn`` and ``attach``."""

from __future__ import annotations

import _thread
import asyncio
import contextvars
import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Mapping
from typing import Any, Generic, Literal, TypeVar, cast, overload

from pod_server import wire
from pod_server.wire import FrameType

from ..errors import CallCancelledError, KubetorchError, RecordExpiredError, UnknownCallError
from ..markup import summary
from ..transport.portal import TICK, acquire, get_inlet, get_portal
from ..transport.session import Session
from .log import LogPieces, find_row, follow_log, read_log
from .run import Payload, Run, encode_arguments, nobody
from .target import CallOptions, Target

__all__ = ["Call", "attach_call", "recent_calls", "spawn"]

T = TypeVar("T")

#: The last calls of this process that were spawned or attached to, as long as somebody holds them.
_recent: deque[weakref.ref[Call[Any]]] = deque(maxlen=200)


class _HeldRun(Run):
    """A call whose record the pod keeps until its result has been read."""

    __slots__ = ("begun",)

    #: Set while it has its number.
    begun: threading.Event
    acknowledges = False

    def _begin_on(self, session: Session) -> None:
        super()._begin_on(session)
        if self.channel:  # else the session had just ended
            self.begun.set()

    def _again(self) -> None:
        self.begun.clear()
        super()._again()


class _AttachedRun(_HeldRun):
    """Somebody's call, from the start of its log."""

    __slots__ = ()

    def __init__(self, target: Target, label: str, id: str, options: CallOptions) -> None:
        self._setup(FrameType.RESUME, target, label, {"id": id}, [], options)

    @property
    def id(self) -> str | None:
        """The id that it was attached to by."""
        return str(self.meta["id"]) if self.meta else None

    def _live(self) -> None:
        """None: not any pod of the service has the call."""

    async def _session(self) -> Session:
        return await self.target.session_of(self.id or "")

    def _cancel(self, reason: str) -> None:
        # It runs already: until the pod that has it is found, there is nothing else that could be stopped.
        if self._early is None:
            self._early = reason
        if self.session is not None and self.channel:
            self.session.cancel(self, reason)


class Call(Generic[T]):
    """One call that was spawned, or attached to: its identity, state, result and log.

    Waiting for it, by `result` or ``await``, and being interrupted in that doesn't cancel it; `cancel` does. Its record
    stays in the pod until the result has been read, or for an hour after its end, so ``kt.attach(call.id)`` finds it
    from another kernel.

    Examples
    --------
    >>> call = train.spawn(epochs=3)      # doctest: +SKIP
    >>> call.status, call.id              # doctest: +SKIP
    ('running', 'train/01JD0000000000000800000003')
    >>> call.result(timeout=60)           # doctest: +SKIP
    """

    def __init__(
        self, target: Target, function: str, id: str | None, make: Callable[[], _HeldRun], retries: int
    ) -> None:
        self._target = target
        self._function = function
        self._given_id = id
        self._make = make
        self._retries = retries
        self._lock = threading.Lock()
        #: Set while it has its number, and when it has ended.
        self._begun = threading.Event()
        self._waiters: list[Callable[[], None]] = []
        self._cancel_wanted = False
        self._ended = False
        self._read = False
        self._value: Any = None
        self._error: tuple[BaseException, Any] | None = None
        with self._lock:  # it may end before we know it
            self._run = self._launch()
        _recent.append(weakref.ref(self))

    def _launch(self) -> _HeldRun:
        run = self._make()
        # The run holds the call until it ends, which is right: its output is to be shown although nobody waits.
        run.notify = self._on_end
        run.begun = self._begun
        self._begun.clear()
        run.start()
        if not self._retries:
            self._make = _nothing  # it holds the arguments
        return run

    def _on_end(self) -> None:
        with self._lock:
            if self._retries and not self._cancel_wanted and self._run.lost():
                self._retries -= 1
                self._run = self._launch()
                return
            self._ended = True
            self._make = _nothing
            self._run.notify = nobody
            waiters, self._waiters = self._waiters, []
        self._begun.set()
        for wake in waiters:
            wake()

    # -- what it is --------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Its public id, for ``kt.attach`` in any kernel; waits until it has been sent.

        Raises
        ------
        KubetorchError
            When it could not be sent.
        """
        if self._given_id is not None:
            return self._given_id
        while (id := self._run.id) is None:
            # One that failed may be tried again, and one that is on its way to another pod gets another there.
            if self._ended and isinstance(outcome := self._run.outcome, Exception):
                raise outcome
            self._begun.wait(TICK)
        return id

    @property
    def function(self) -> str:
        """The name of what was called."""
        return self._function

    @property
    def service(self) -> str:
        """The name of the service."""
        return self._target.name

    @property
    def status(self) -> str:
        """Where it is, as far as is known here.

        ``"starting"``, ``"running"``, ``"cancelling"``, ``"done"``, ``"failed"``, ``"cancelled"`` or ``"lost"``.
        """
        run = self._run
        if not self._ended:
            if self._cancel_wanted:
                return "cancelling"
            return "running" if run.sent else "starting"
        if run.lost():
            return "lost"
        outcome = run.outcome
        if isinstance(outcome, Exception):
            return "cancelled" if isinstance(outcome, CallCancelledError) else "failed"
        if outcome is None or not outcome[0] & wire.F_ERROR:
            return "done"
        return "cancelled" if (outcome[1].get("error") or {}).get("type") == "CallCancelledError" else "failed"

    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._ended

    def __repr__(self) -> str:
        kind, function, status = self._looks()
        return f"<{kind} {function}: {status}>"

    def _repr_html_(self) -> str:
        return summary(*self._looks())

    def _looks(self) -> tuple[str, str, str]:
        id = self._given_id or self._run.id
        return f"Call {id} of" if id else "Call of", self._function, self.status

    # -- its result --------------------------------------------------------------------------------------------------

    def _add_waiter(self, wake: Callable[[], None]) -> bool:
        with self._lock:
            if self._ended:
                return False
            self._waiters.append(wake)
            return True

    def _drop_waiter(self, wake: Callable[[], None]) -> None:
        with self._lock:
            if wake in self._waiters:
                self._waiters.remove(wake)

    def result(self, timeout: float | None = None) -> T:
        """Its value, waiting for it; what it raised is raised.

        Parameters
        ----------
        timeout
            How many seconds to wait.

        Raises
        ------
        TimeoutError
            When it hasn't ended by then; it runs on.
        Exception
            What it raised.
        """
        __tracebackhide__ = True
        lock = _thread.allocate_lock()
        lock.acquire()
        wake = lock.release
        if self._add_waiter(wake):
            try:
                if not acquire(lock, timeout):
                    raise TimeoutError(f"{self!r} has not ended within {timeout:g} s; it runs on")
            finally:
                self._drop_waiter(wake)
        return self._take()

    async def _await(self) -> T:
        __tracebackhide__ = True
        inlet = get_inlet()
        waiter: asyncio.Future[None] = inlet.loop.create_future()
        wake = functools.partial(inlet.post, waiter)
        if self._add_waiter(wake):
            inlet.enter()
            try:
                await waiter
            finally:
                inlet.leave()
                self._drop_waiter(wake)
        return self._take()

    def __await__(self) -> Generator[Any, None, T]:
        return self._await().__await__()

    def _take(self) -> T:
        """The value or exception; the same one each time. The first time tells the pod that it may forget the call."""
        __tracebackhide__ = True
        with self._lock:
            if not self._read:
                run = self._run
                # An interrupt of the decoding goes through: it is not the call's result, which can be read again.
                try:
                    self._value, error = run.answer()
                except Exception as e:
                    error = e
                self._read = True
                if error is not None:
                    self._error = error, error.__traceback__
                if not isinstance(run.outcome, Exception) and run.session is not None:
                    acknowledge = functools.partial(run.session.acknowledge, keep=run.keeps_log)
                    get_portal().call(acknowledge, run.channel)
                    flags, meta, _ = cast(Any, run.outcome)
                    run.outcome = flags, meta, ()  # decoded once: the bytes aren't needed twice
        if self._error is not None:
            error, traceback = self._error
            raise error.with_traceback(traceback)
        return cast(T, self._value)

    # -- what else can be done with it -------------------------------------------------------------------------------

    def cancel(self) -> bool:
        """Ask the pod to cancel it: an ``async def`` gets CancelledError, a ``def`` `Cancelled`.

        Returns
        -------
        bool
            False if it had ended already.
        """
        with self._lock:  # or a retry that begins at this moment would be missed
            if self._ended:
                return False
            self._cancel_wanted = True
            self._run.cancel("user")
            return True

    @overload
    def logs(self, follow: Literal[False] = False) -> str: ...
    @overload
    def logs(self, follow: Literal[True]) -> LogPieces: ...
    def logs(self, follow: bool = False) -> str | LogPieces:
        """What it has printed so far, also what isn't shown anywhere (``stream_logs=False``).

        Parameters
        ----------
        follow
            Give an iterator of pieces instead, from the start and as they come, that ends with the call.

        Raises
        ------
        RecordExpiredError
            When the pod no longer keeps it.
        """
        __tracebackhide__ = True
        id = self.id

        async def read() -> str:
            session = await self._target.session_of(id)
            return await read_log(session, id, None if self._ended else await find_row(session, id))

        async def read_on(add: Callable[[str], None]) -> None:
            await follow_log(await self._target.session_of(id), id, add)

        return LogPieces(read_on) if follow else get_portal().run(read())


def _nothing() -> Any:
    raise AssertionError("a call that has ended is not made again")


def spawn(
    target: Target, method: str | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions
) -> Call[Any]:
    """Start a call and go on; its output is shown in this cell, also later.

    Parameters
    ----------
    target, method, args, kwargs, options
        As for `invoke`. The arguments are taken as they are now.
    """
    payload: Payload = encode_arguments(target, args, kwargs, options, snapshot=True)

    here = contextvars.copy_context()

    def make() -> _HeldRun:
        # A retry begins in another thread; its output belongs to this cell all the same.
        return here.copy().run(lambda: _HeldRun(target, method, payload, options, mode="spawn"))

    return Call(target, method or target.label, None, make, options.retries)


def attach_call(target: Target, call_id: str) -> Call[Any]:
    """The call of that id, whoever made it, with its log from the start.

    Parameters
    ----------
    target
        The service that has it.
    call_id
        ``service/ULID``.

    Raises
    ------
    UnknownCallError
        When the service never had it.
    RecordExpiredError
        When its record is no longer kept.
    """
    try:
        wire.parse_call_id(call_id)
    except ValueError as e:
        raise UnknownCallError(f"{e}; kt.calls() lists the ids", call_id=call_id) from None

    async def ask() -> dict[str, Any] | None:
        return await find_row(await target.session_of(call_id), call_id)

    row = get_portal().run(ask())
    function = str(row["f"]) if row is not None else ""
    options = CallOptions()
    call: Call[Any] = Call(
        target,
        function or target.label,
        call_id,
        lambda: _AttachedRun(target, function or target.label, call_id, options),
        0,
    )
    if row is None:
        # Not among those that are listed: the pod says so at once, before it answers another request.
        get_portal().run(ask())
        outcome = call._run.outcome
        if outcome is not None:
            try:
                call._run.value()
            except (UnknownCallError, RecordExpiredError):
                raise
            except KubetorchError:
                return call  # it failed in the pod: `result` says so
    return call


def recent_calls() -> list[Call[Any]]:
    """The calls that this process spawned or attached to and still holds, oldest first."""
    return [call for ref in list(_recent) if (call := ref()) is not None]
