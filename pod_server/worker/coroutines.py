"""``async def`` calls and asynchronous generators, on the user's event loop; all of it runs on the main thread."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from .calls import Call, Failure, Items, Outcome, Value
from .output import current_log
from .watchdog import Watchdog

if TYPE_CHECKING:
    from .dispatch import Dispatcher

__all__ = ["Coroutines"]


class Coroutines:
    """Runs calls on the event loop.

    Parameters
    ----------
    dispatcher
        Whose calls they are.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._waiters: dict[int, asyncio.Event] = {}
        self.watchdog = Watchdog(dispatcher.loop)

    def start(self, calls: list[Call]) -> None:
        """Make a task of each call."""
        loop = self._dispatcher.loop
        for call in calls:
            token = current_log.set(call.log)
            try:
                # The dispatcher keeps the call, and the call its task, until the task ends.
                call.task = loop.create_task(self._serve(call))
            finally:
                current_log.reset(token)

    def adopt(self, call: Call, value: Any) -> None:
        """Go on with what a ``def`` returned: a coroutine or an asynchronous generator."""
        token = current_log.set(call.log)
        try:
            call.task = self._dispatcher.loop.create_task(self._serve(call, value))
            if call.reason is not None:
                # After its first step: a task that is cancelled before never runs, and nobody would send the result.
                self._dispatcher.loop.call_soon(call.task.cancel)
        finally:
            current_log.reset(token)

    def credit(self, call: Call) -> None:
        """Wake a generator that waits for credit."""
        waiter = self._waiters.get(call.id)
        if waiter is not None:
            waiter.set()

    async def _serve(self, call: Call, adopted: Any = None) -> None:
        dispatcher = self._dispatcher
        if adopted is None and not call.begin():
            return  # cancelled before
        dispatcher.running[call.id] = call
        self.watchdog.enter()
        outcome: Outcome | None = None
        try:
            outcome = await self._attempt(call, adopted)
        except GeneratorExit as e:
            # The user's, out of a task that the call awaits: throwing it closes what is inside, past `_attempt`.
            outcome = Failure(e)
        finally:
            dispatcher.leave_child(outcome)
            self.watchdog.leave()
            try:
                dispatcher.finish(call, outcome if outcome is not None else Failure(asyncio.CancelledError()))
            except Exception:
                dispatcher.blunder(call)
            outcome = None  # an exception refers to this frame by its traceback
            call.task = None

    async def _attempt(self, call: Call, adopted: Any) -> Outcome:
        # Every exception is caught here: a task that ends with SystemExit would stop the event loop.
        try:
            value = adopted
            if value is None:
                function = self._dispatcher.function(call)
                args, kwargs = call.decode(self._dispatcher.bulk)
                value = function(*args, **kwargs)
                del args, kwargs
            if call.credit is not None and hasattr(value, "__anext__"):
                await self._send_items(call, value)
                return Items()
            if isinstance(value, Awaitable):
                value = await value
            return Value(value)
        except BaseException as e:
            return Failure(e)

    async def _send_items(self, call: Call, generator: Any) -> None:
        credit = call.credit
        assert credit is not None
        waiter = self._waiters[call.id] = asyncio.Event()
        try:
            while True:
                while credit.empty():
                    waiter.clear()
                    if credit.empty():
                        await waiter.wait()
                credit.get()
                try:
                    item = await generator.__anext__()
                except StopAsyncIteration:
                    return
                self._dispatcher.send_item(call, item)
                del item
        finally:
            del self._waiters[call.id]
            close = getattr(generator, "aclose", None)
            if close is not None:
                await close()
