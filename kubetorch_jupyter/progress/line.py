"""One line and its clock.

All decisions fall on the portal, where one timer serves all lines; showing is done by one thread for all of them, in
order. So a line never waits for a terminal, and no thread that runs the user's code waits for a line but at its end.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from time import monotonic
from typing import TypeVar

from ..transport.portal import Portal, get_portal
from .status import State, Status, View
from .text import text_view

__all__ = ["Line", "await_shown", "set_view_factory", "wait_shown"]

T = TypeVar("T")

log = logging.getLogger(__name__)

#: How often lines are described anew, in seconds.
_TICK = 0.25
#: With many lines, less often: so many seconds for each. Jupyter Server counts messages, and drops output when there
#: are too many.
_EACH = 0.02
#: How long the first thing shown stands, in seconds: what takes less doesn't flicker.
_FIRST = 0.3
#: How long one waits for the end to be shown, in seconds: a terminal that is held (Ctrl-S) must hold nobody else.
_PATIENCE = 1.0

_factory: Callable[[], View] = text_view


def set_view_factory(factory: Callable[[], View] | None) -> None:
    """Have lines shown otherwise than as text.

    Parameters
    ----------
    factory
        Called in the thread and context of the cell that begins something; None for text.
    """
    global _factory
    _factory = factory if factory is not None else text_view


class Line:
    """A line in the cell that makes it.

    Parameters
    ----------
    describe
        Gives what to say, and is given the time (`time.monotonic`); called on the portal. What it gives must be cheap
        and must not hold whoever would end the line by being forgotten.
    delay
        Seconds before it is shown at all.
    """

    def __init__(self, describe: Callable[[float], Status], delay: float = 0.0) -> None:
        self._context = contextvars.copy_context()
        self.view = _factory()
        self._describe = describe
        self._not_before = monotonic() + delay
        self._last: Status | None = None
        self._showing: Future[None] | None = None
        self._ended = False
        self._broken = False

    def begin(self) -> None:
        """Start its clock; any thread."""
        get_portal().call(self._begin)

    def note(self, text: str) -> None:
        """Write a line of its own; any thread."""
        get_portal().call(self._submit, self.view.note, text)

    def finish(self, status: Status) -> Future[None]:
        """Show this, and nothing any more; any thread, and the first one counts.

        Returns
        -------
        Future
            Done when it has been shown.
        """
        shown: Future[None] = Future()
        portal = get_portal()
        if portal.closed:
            shown.set_result(None)
        else:
            portal.call(self._finish, status, shown)
        return shown

    def drop(self, status: Status) -> None:
        """End it, and show this only if something has been shown; any thread."""
        get_portal().call(self._drop, status)

    # -- on the portal -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if not self._ended:
            _ticker.add(self)

    def _finish(self, status: Status, shown: Future[None]) -> None:
        if self._ended:
            shown.set_result(None)
            return
        self._ended = True
        _ticker.discard(self)
        last = self._submit(self.view.show, status)
        if last is None:
            shown.set_result(None)
        else:
            last.add_done_callback(lambda _: shown.set_result(None))

    def _drop(self, status: Status) -> None:
        if self._last is not None:
            self._finish(status, Future())
        self._ended = True
        _ticker.discard(self)

    def update(self, now: float) -> None:
        """Show what is to be said now, if it is time for it and nothing is on its way already; on the portal."""
        if now < self._not_before or (self._showing is not None and not self._showing.done()):
            return
        status = self._describe(now)
        if status != self._last:
            self._not_before = now + (_FIRST if self._last is None else 0.0)
            self._last = status
            self._showing = self._submit(self.view.show, status)

    def interrupt(self) -> None:
        """The process ends: say so; on the portal."""
        text = self._describe(monotonic()).text
        self._drop(Status(f"{text}; stopped, because Python ended", State.STOPPED))

    def _submit(self, write: Callable[[T], None], what: T) -> Future[None] | None:
        try:
            return _painter.submit(self._context.run, self._guarded, write, what)
        except RuntimeError:
            # The interpreter is ending and takes no work for threads any more; and nobody waits for the portal now.
            self._context.run(self._guarded, write, what)
            return None

    def _guarded(self, write: Callable[[T], None], what: T) -> None:
        if self._broken:
            return
        try:
            write(what)
        except Exception as e:
            # A closed pipe, a closed file, a broken stand-in for sys.stdout: the deploy is worth more than its line.
            self._broken = True
            log.warning("progress can't be shown: %s: %s", type(e).__name__, e)


def wait_shown(shown: Future[None]) -> None:
    """Wait until it has been shown, but not for long."""
    wait((shown,), timeout=_PATIENCE)


async def await_shown(shown: Future[None]) -> None:
    """Await that it has been shown, but not for long."""
    await asyncio.wait((asyncio.wrap_future(shown),), timeout=_PATIENCE)


class _Ticker:
    """The clock of all lines; lives on the portal, and stops when there are none."""

    def __init__(self) -> None:
        self._lines: dict[Line, None] = {}
        self._handle: asyncio.TimerHandle | None = None
        self._portal: Portal | None = None

    def add(self, line: Line) -> None:
        self._lines[line] = None
        line.update(monotonic())
        if self._portal is None:
            self._portal = get_portal()
            self._portal.farewells.add(self._farewell)
        if self._handle is None:
            self._arm()

    def discard(self, line: Line) -> None:
        self._lines.pop(line, None)
        if not self._lines and self._portal is not None:
            if self._handle is not None:
                self._handle.cancel()
                self._handle = None
            self._portal.farewells.discard(self._farewell)
            self._portal = None

    def _arm(self) -> None:
        assert self._portal is not None
        self._handle = self._portal.loop.call_later(max(_TICK, _EACH * len(self._lines)), self._tick)

    def _tick(self) -> None:
        now = monotonic()
        for line in list(self._lines):
            line.update(now)
        self._arm()

    async def _farewell(self) -> None:
        for line in list(self._lines):
            line.interrupt()


def _make_painter() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="kubetorch-progress")


_painter = _make_painter()
_ticker = _Ticker()


def _after_fork() -> None:
    global _painter, _ticker
    _painter = _make_painter()
    _ticker = _Ticker()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
