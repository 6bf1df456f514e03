"""Calls of generator functions: items as they are made, with back-pressure.

The pod may be a window of items ahead of who consumes them, and stops there. Breaking off, closing and forgetting the
iterator all cancel the generator in the pod, whose ``finally`` blocks run.
"""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from time import monotonic
from typing import Any

from pod_server import wire

from ..transport.portal import Inlet, get_inlet, get_portal
from .run import DRAIN, Bell, Payload, Run, decode_value, encode_arguments
from .target import CallOptions, Target

__all__ = ["AsyncItems", "Items", "iterate", "iterate_async"]

#: How many items the pod may be ahead.
_WINDOW = 16


class _StreamRun(Run):
    """A call whose items are taken one by one."""

    __slots__ = ("_new", "_taken", "index", "waiting")

    def __init__(self, target: Target, method: str | None, payload: Payload, options: CallOptions) -> None:
        super().__init__(target, method, payload, options, gen=_WINDOW)
        self.waiting: dict[int, tuple[Mapping[str, Any], Sequence[wire.Buffer]]] = {}
        #: The next item's number.
        self.index = 0
        self._taken = 0

    def on_item(self, index: int, meta: Mapping[str, Any], buffers: Sequence[wire.Buffer]) -> None:
        """Keep it until it is asked for, and until what was printed before it has been written."""
        if self.output is None:
            self._arrived(index, meta, buffers)
        else:
            self.output.after(functools.partial(self._arrived, index, meta, buffers))

    def _arrived(self, index: int, meta: Mapping[str, Any], buffers: Sequence[wire.Buffer]) -> None:
        self.waiting[index] = meta, buffers
        self.notify()

    def take(self) -> tuple[Mapping[str, Any], Sequence[wire.Buffer]] | None:
        """The next item, when it is there; asks for more in time."""
        item = self.waiting.pop(self.index, None)
        if item is None:
            return None
        self.index += 1
        self._taken += 1
        if self._taken >= _WINDOW // 2 and self.session is not None:
            get_portal().call(self._grant, self.index)
            self._taken = 0
        return item

    def _grant(self, taken: int) -> None:
        """Let so many more come that the pod is a window ahead again; on the portal."""
        more = taken + _WINDOW - self.granted
        if more > 0 and self.session is not None:
            self.session.credit(self, more)

    def ready(self) -> bool:
        """Whether there is something to take."""
        return self.done or self.index in self.waiting

    def forget(self) -> None:
        """Nobody wants the rest."""
        if not self.done:
            self.cancel("abandoned")
        self.abandon()
        self.waiting.clear()


class _Items:
    """What both kinds of iterators share."""

    def __init__(
        self, target: Target, method: str | None, payload: Payload | Exception | None, options: CallOptions
    ) -> None:
        self._target = target
        self._method = method
        #: None once the call has begun, or will never be.
        self._payload = payload
        self._options = options
        self._run: _StreamRun | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._finished = False

    def _start(self) -> _StreamRun:
        """Make the run, in the context of who iterates: its output goes there."""
        __tracebackhide__ = True
        payload, self._payload = self._payload, None
        if isinstance(payload, Exception):
            self._finished = True
            raise payload
        assert payload is not None
        run = self._run = _StreamRun(self._target, self._method, payload, self._options)
        self._finalizer = weakref.finalize(self, run.forget)
        self._finalizer.atexit = False
        return run

    def _end(self) -> None:
        self._finished = True
        if self._finalizer is not None:
            self._finalizer.detach()
        self._payload = None

    def _close(self) -> _StreamRun | None:
        """Ask for the end; the run to wait for, if it has begun and not ended."""
        run = self._run
        self._end()
        if run is None or run.done:
            return None
        run.cancel("abandoned")
        return run

    def _value(self, run: _StreamRun, item: tuple[Mapping[str, Any], Sequence[wire.Buffer]]) -> Any:
        __tracebackhide__ = True
        try:
            return decode_value(item[0], item[1], self._target.name)
        except BaseException:
            self._end()
            run.forget()
            raise

    def _last(self, run: _StreamRun) -> None:
        """There are no more items: return if that is the end, raise if it is an error."""
        __tracebackhide__ = True
        self._end()
        outcome = run.outcome
        if not isinstance(outcome, Exception) and outcome is not None:
            flags, meta, _ = outcome
            if not flags & wire.F_ERROR:
                if "n" not in meta:
                    raise TypeError(
                        f"{self._label} returned a value, not items: it is no generator function in the pod"
                    )
                return
        run.value()

    @property
    def _label(self) -> str:
        return self._method or self._target.label

    def __repr__(self) -> str:
        state = "finished" if self._finished else "running" if self._run is not None else "not started"
        at = self._run.index if self._run is not None else 0
        return f"<items of {self._label} on service {self._target.name!r}, {state}, {at} taken>"


class Items(_Items, Iterator[Any]):
    """The items of a remote generator.

    The call begins with the first item that is asked for.
    """

    def __iter__(self) -> Items:
        return self

    def __aiter__(self) -> AsyncItems:
        """The same call for ``async for``, which is what one writes with an asynchronous generator function."""
        if self._run is not None:
            raise TypeError(f"items of {self._label} are taken with for already: call it again for async for")
        other = AsyncItems(self._target, self._method, self._payload, self._options)
        other._finished = self._finished
        self._end()
        return other

    def __next__(self) -> Any:
        __tracebackhide__ = True
        if self._finished:
            raise StopIteration
        run = self._run
        if run is None:
            run = self._start()
            self._bell = Bell()
            run.notify = self._bell.ring
            run.start()
        while True:
            item = run.take()
            if item is not None:
                return self._value(run, item)
            if run.done and run.index not in run.waiting:
                self._last(run)
                raise StopIteration
            if run.done:
                continue  # the last item came in just now
            try:
                self._bell.wait(run.ready)
            except BaseException:
                # KeyboardInterrupt, or whatever else a signal handler of the user's raises.
                run.cancel()
                self._end()
                self._drain(run)
                raise

    def _drain(self, run: _StreamRun) -> None:
        """Let the last of its output come."""
        deadline = monotonic() + DRAIN
        try:
            while not run.done and (left := deadline - monotonic()) > 0:
                self._bell.wait(lambda: run.done, left)
        finally:
            run.abandon()

    def close(self) -> None:
        """End the generator in the pod; does nothing if it has ended."""
        run = self._close()
        if run is not None:
            self._drain(run)


class AsyncItems(_Items, AsyncIterator[Any]):
    """The items of a remote generator, for ``async for`` on any loop."""

    def __aiter__(self) -> AsyncItems:
        return self

    async def __anext__(self) -> Any:
        __tracebackhide__ = True
        if self._finished:
            raise StopAsyncIteration
        run = self._run
        inlet = get_inlet()
        if run is None:
            run = self._start()
            run.start()
        inlet.enter()
        try:
            while True:
                waiter = self._listen(run, inlet)
                item = run.take()
                if item is not None:
                    return self._value(run, item)
                if run.done and run.index not in run.waiting:
                    self._last(run)
                    raise StopAsyncIteration
                if run.done:
                    continue  # the last item came in just now
                await waiter
        except asyncio.CancelledError:
            run.cancel()
            self._end()
            await self._drain(run, inlet)
            raise
        finally:
            inlet.leave()

    @staticmethod
    def _listen(run: _StreamRun, inlet: Inlet) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = inlet.loop.create_future()
        run.notify = functools.partial(inlet.post, waiter)
        return waiter

    async def _drain(self, run: _StreamRun, inlet: Inlet) -> None:
        deadline = monotonic() + DRAIN
        try:
            while (left := deadline - monotonic()) > 0:
                waiter = self._listen(run, inlet)
                if run.done:
                    break
                await asyncio.wait((waiter,), timeout=left)
        finally:
            run.abandon()

    async def aclose(self) -> None:
        """End the generator in the pod; does nothing if it has ended."""
        run = self._close()
        if run is not None:
            await self._drain(run, get_inlet())


def _encode(
    target: Target, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions
) -> Payload | Exception:
    try:
        return encode_arguments(target, args, kwargs, options, snapshot=True)
    except Exception as e:
        return e  # raised by the first item that is asked for, as a generator's own errors are


def iterate(
    target: Target, method: str | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions
) -> Items:
    """Call a generator function; the iterator of its items.

    Parameters
    ----------
    target, method, args, kwargs, options
        As for `invoke`. The arguments are taken as they are now.
    """
    return Items(target, method, _encode(target, args, kwargs, options), options)


def iterate_async(
    target: Target, method: str | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions
) -> AsyncItems:
    """Call a generator function; the asynchronous iterator of its items.

    Parameters
    ----------
    target, method, args, kwargs, options
        As for `invoke`. The arguments are taken as they are now.
    """
    return AsyncItems(target, method, _encode(target, args, kwargs, options), options)
