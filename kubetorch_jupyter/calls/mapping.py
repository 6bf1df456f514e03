"""Many calls of one function, lazy on both sides: never more than a window ahead of who consumes the results."""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from time import monotonic
from typing import Any

from ..errors import ConfigError
from ..progress import MapProgress, await_shown, wait_shown
from ..transport.portal import Inlet, get_inlet
from .run import DRAIN, Bell, Payload, Run, encode_arguments
from .target import CallOptions, Target

__all__ = ["Mapping", "map_calls"]


class _Window:
    """The calls under way. It doesn't know the iterator, so that the iterator can be forgotten."""

    def __init__(self) -> None:
        self.running: dict[int, Run] = {}
        #: Numbers of calls that are done; put there by any thread.
        self.done: deque[int] = deque()
        #: When the last one was.
        self.ended = 0.0
        #: Wakes a consumer that blocks.
        self.bell = Bell()
        #: Wakes one that awaits. Never taken back: it may be the next one already when a call that ends does so.
        self.waiter: tuple[Inlet, asyncio.Future[None]] | None = None
        #: Once it has begun, unless nothing is to be shown.
        self.progress: MapProgress | None = None

    def finished(self, number: int) -> None:
        self.ended = monotonic()
        self.done.append(number)
        self.bell.ring()
        if (waiter := self.waiter) is not None:
            waiter[0].post(waiter[1])

    def rest(self) -> None:
        """The consumer waits from here to `go_on`; outside of it, it may print."""
        if self.progress is not None:
            self.progress.resume()

    def go_on(self) -> None:
        if self.progress is not None:
            self.progress.pause()

    def cancel(self, reason: str) -> None:
        for run in self.running.values():
            if not run.done:
                run.cancel(reason)

    def quiet(self) -> bool:
        return all(run.done for run in self.running.values())

    def forget(self) -> None:
        """Nobody wants the results any more."""
        self.cancel("abandoned")
        for run in self.running.values():
            run.abandon()
        self.running.clear()

    def drop(self) -> None:
        """The iterator is forgotten half-way."""
        if self.progress is not None:
            self.progress.finish(GeneratorExit())
        self.forget()


class Mapping(Iterator[Any], AsyncIterator[Any]):
    """Results of many calls, for ``for`` or for ``async for``.

    Nothing is called before the first result is asked for. The first error cancels the calls that are under way, and so
    do `close`, `aclose`, Stop, and forgetting it half-way.
    """

    def __init__(
        self,
        target: Target,
        method: str | None,
        argss: Iterable[tuple[Any, ...]],
        options: CallOptions,
        concurrency: int,
        ordered: bool,
        return_exceptions: bool,
        total: int | None,
    ) -> None:
        self._target = target
        self._method = method
        self._argss: Iterator[tuple[Any, ...]] | None = iter(argss)
        self._options = options
        self._concurrency = concurrency
        self._ordered = ordered
        self._return_exceptions = return_exceptions
        self._total = total
        self._window = _Window()
        self._finalizer = weakref.finalize(self, self._window.drop)
        self._finalizer.atexit = False
        #: Payloads of calls that may have to be made again, and how often they may.
        self._spares: dict[int, tuple[Payload, int]] = {}
        self._started = 0
        self._given = 0
        #: Those that have come before their turn.
        self._early: dict[int, Run] = {}
        self._finished = False

    def __iter__(self) -> Mapping:
        return self

    def __aiter__(self) -> Mapping:
        return self

    def __repr__(self) -> str:
        state = "finished" if self._finished else f"{len(self._window.running)} calls under way"
        return f"<map of {self._method or self._target.label} on service {self._target.name!r}, {state}>"

    # -- both ways ---------------------------------------------------------------------------------------------------

    def _show(self) -> None:
        """The results are wanted in this cell."""
        window = self._window
        if window.progress is None and self._options.stream_logs:
            window.progress = MapProgress(
                self._method or self._target.label,
                self._total,
                window.done.__len__,
                window.running.__len__,
                lambda: window.ended,
            )

    def _fill(self) -> None:
        """Start calls until the window is full or the items are at their end."""
        __tracebackhide__ = True
        window = self._window
        while self._argss is not None and self._started - self._given < self._concurrency:
            try:
                args = next(self._argss)
            except StopIteration:
                self._argss = None
                return
            payload = encode_arguments(self._target, args, {}, self._options, snapshot=True)
            number = self._started
            self._started += 1
            if self._options.retries:
                self._spares[number] = payload, self._options.retries
            self._launch(window, number, payload)

    def _launch(self, window: _Window, number: int, payload: Payload) -> None:
        run = Run(self._target, self._method, payload, self._options)
        run.notify = functools.partial(window.finished, number)
        window.running[number] = run
        run.start()

    def _next(self) -> Run | None:
        """The call whose turn it is, if it is done; all that are done are looked at."""
        window = self._window
        while window.done:
            number = window.done.popleft()
            run = window.running.pop(number)
            if self._spares and run.lost():
                payload, left = self._spares[number]
                if left:
                    self._spares[number] = payload, left - 1
                    self._launch(window, number, payload)
                    continue
            self._spares.pop(number, None)
            if window.progress is not None:
                window.progress.count(run.failed())
            if not self._ordered:
                return run
            if not self._return_exceptions and run.failed():
                return run  # nobody gets the results before it: the first error is the outcome
            self._early[number] = run
        return self._early.pop(self._given, None)

    def _value(self, run: Run) -> Any:
        __tracebackhide__ = True
        self._given += 1
        if not self._return_exceptions:
            return run.value()
        try:
            return run.value()
        except Exception as e:
            return e

    @property
    def _empty(self) -> bool:
        return self._argss is None and not self._window.running and not self._early and not self._window.done

    def _end(self) -> None:
        self._finished = True
        self._argss = None
        self._early.clear()
        self._spares.clear()
        self._finalizer.detach()

    # -- for ---------------------------------------------------------------------------------------------------------

    def __next__(self) -> Any:
        __tracebackhide__ = True
        if self._finished:
            raise StopIteration
        self._show()
        try:
            while True:
                self._fill()
                run = self._next()
                if run is not None:
                    return self._value(run)
                if self._empty:
                    break
                self._window.rest()
                self._window.bell.wait(lambda: self._window.done)
                self._window.go_on()
        except BaseException as e:
            # An error of a call, of the items themselves, or Stop: the rest is not wanted any more.
            self._cancel(e)
            raise
        self._end()
        if self._window.progress is not None:
            wait_shown(self._window.progress.finish())
        raise StopIteration

    def _cancel(self, error: BaseException) -> None:
        window = self._window
        self._end()
        # First: those that are cancelled now would count as done.
        shown = window.progress.finish(error) if window.progress is not None else None
        window.cancel("user")
        deadline = monotonic() + DRAIN
        try:
            # Some can't be interrupted where they are; the pod lists them as cancelling.
            while not window.quiet() and (left := deadline - monotonic()) > 0:
                window.bell.wait(window.quiet, left)
        finally:
            window.forget()
            if shown is not None:
                wait_shown(shown)

    def close(self) -> None:
        """Cancel what is under way."""
        if not self._finished:
            self._cancel(GeneratorExit())

    # -- async for ---------------------------------------------------------------------------------------------------

    async def __anext__(self) -> Any:
        __tracebackhide__ = True
        if self._finished:
            raise StopAsyncIteration
        window = self._window
        inlet = get_inlet()
        inlet.enter()
        self._show()
        try:
            while True:
                self._fill()
                waiter: asyncio.Future[None] = inlet.loop.create_future()
                window.waiter = inlet, waiter
                run = self._next()
                if run is not None:
                    return self._value(run)
                if self._empty:
                    break
                window.rest()
                await waiter
                window.go_on()
        except BaseException as e:
            await self._cancel_async(inlet, e)
            raise
        finally:
            inlet.leave()
        self._end()
        if self._window.progress is not None:
            await await_shown(self._window.progress.finish())
        raise StopAsyncIteration

    async def _cancel_async(self, inlet: Inlet, error: BaseException) -> None:
        window = self._window
        self._end()
        shown = window.progress.finish(error) if window.progress is not None else None
        window.cancel("user")
        deadline = monotonic() + DRAIN
        try:
            while (left := deadline - monotonic()) > 0:
                waiter: asyncio.Future[None] = inlet.loop.create_future()
                window.waiter = inlet, waiter
                if window.quiet():
                    break
                await asyncio.wait((waiter,), timeout=left)
        finally:
            window.forget()
            if shown is not None and isinstance(error, Exception):
                await await_shown(shown)

    async def aclose(self) -> None:
        """Cancel what is under way."""
        if not self._finished:
            await self._cancel_async(get_inlet(), GeneratorExit())


def map_calls(
    target: Target,
    method: str | None,
    argss: Iterable[tuple[Any, ...]],
    options: CallOptions,
    *,
    concurrency: int = 64,
    ordered: bool = True,
    return_exceptions: bool = False,
    total: int | None = None,
) -> Mapping:
    """Call with each tuple of arguments.

    Parameters
    ----------
    target, method, options
        As for `invoke`.
    argss
        Positional arguments of each call; read no further than ``concurrency`` calls ahead of what has been consumed.
    concurrency
        How many calls are under way at most.
    ordered
        Results in the order of the arguments, else as they come.
    return_exceptions
        Give a call's exception in the place of its result; otherwise the first error cancels the rest and is raised.
    total
        How many there will be, where it is known.

    Raises
    ------
    ConfigError
        When ``concurrency`` is no positive whole number.
    """
    given: object = concurrency
    if not isinstance(given, int) or given < 1:
        raise ConfigError(f"concurrency={concurrency!r} is not a positive whole number")
    return Mapping(target, method, argss, options, concurrency, ordered, return_exceptions, total)
