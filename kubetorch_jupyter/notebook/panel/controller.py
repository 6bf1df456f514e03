"""`panel`, and the thread behind each one.

Widgets' callbacks run on the kernel's main thread or on a subshell's: they only put an event into a queue. One thread
of the panel takes the events, has looks and actions done by short-lived threads, which may wait for pods as long as
that takes, and is the only one that writes to widgets. It ends when nobody looks any more.
"""

from __future__ import annotations

import atexit
import contextvars
import logging
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import kubetorch_jupyter as kt

from . import doing
from .looking import Look, Looker

if TYPE_CHECKING:
    from .views import PanelView

__all__ = ["Panel", "panel"]

log = logging.getLogger(__name__)

#: Seconds between two looks: while something changes, and while nothing does.
_QUICK = 0.25
_CALM = 1.0
#: Seconds without a view after which nobody looks: a cell that is run again shows it anew.
_UNSEEN = 2.0
#: Seconds that a line about what was done stays.
_SAID = 8.0
#: Seconds that `Panel.close` waits for its thread.
_FAREWELL = 2.0

_open: weakref.WeakSet[Panel] = weakref.WeakSet()


def panel() -> Panel:
    """A panel of the services: their state, log and calls, with buttons to cancel, restart, tear down and deploy.

    It is shown where it is the last expression of a cell, or displayed. It goes on while cells run, as far as the
    kernel lets it, and asks nobody once it is closed or taken off the page.

    Returns
    -------
    Panel
        ``panel.close()`` ends it.

    Raises
    ------
    NotebookError
        Where there is no kernel, or ipywidgets is not installed.

    Examples
    --------
    >>> panel()    # doctest: +SKIP
    """
    shell = _shell()
    if shell is None:
        raise kt.NotebookError(
            "kt.panel() is made of widgets, so it needs a Jupyter kernel; kt.services() and kt.calls() tell the same "
            "in a terminal or a script"
        )
    try:
        import ipywidgets  # noqa: F401
    except ImportError:
        raise kt.NotebookError(
            "kt.panel() needs ipywidgets: pip install ipywidgets, and restart the kernel; "
            "kt.services() and kt.calls() tell the same without"
        ) from None
    return Panel(shell.user_ns)


def _shell() -> Any:
    """IPython's shell in a kernel, or None."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if getattr(shell, "kernel", None) is not None else None


class Panel:
    """A panel; made by `panel`.

    Parameters
    ----------
    namespace
        Where functions to deploy are found, and handles are bound.
    """

    def __init__(self, namespace: dict[str, Any]) -> None:
        from .views import PanelView

        self._namespace = namespace
        #: What the panel sends belongs to the cell that made it.
        self._context = contextvars.copy_context()
        self._events: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._looker = Looker()
        self._view: PanelView = PanelView(self._tell)
        # What follows is the thread's alone.
        self._look = Look()
        self._looking = False
        self._look_again = False
        self._next = 0.0
        self._selected: str | None = None
        self._log_of: str | None = None
        self._asked: tuple[str, tuple[str, float]] | None = None
        self._busy: dict[str, str] = {}
        self._deploying = False
        self._form_open = False
        self._said_until = 0.0
        self._bad_looks = 0
        self._unseen_since: float | None = None
        _open.add(self)
        self._tell("begin")

    # -- for people ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take it off the page and stop; the services run on. A second time changes nothing."""
        self._tell("close")
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_FAREWELL)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def __repr__(self) -> str:
        if self._closed:
            return "<kubetorch panel: closed>"
        # Not how many services: what is shown first, before anything was looked at, is what stays in the notebook.
        return "<kubetorch panel: shown by front ends with Jupyter widgets; kt.services() tells the same>"

    def _repr_mimebundle_(self, **options: Any) -> Any:
        if self._closed:
            return {"text/plain": repr(self)}
        self._tell("begin")
        bundle: dict[str, Any] = dict(self._view.root._repr_mimebundle_(**options))
        return {**bundle, "text/plain": repr(self)}

    # -- events --------------------------------------------------------------------------------------------------------

    def _tell(self, *event: Any) -> None:
        """Hand an event to the thread, which is started if it isn't there; from any thread."""
        with self._lock:
            if self._closed:
                return
            self._events.put(event)
            if self._thread is None:
                # Daemon: a kernel must be able to end in the middle of a look.
                run = self._context.copy().run
                self._thread = threading.Thread(target=run, args=(self._run,), name="kubetorch-panel", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            now = time.monotonic()
            if self._idle(now):
                with self._lock:
                    if self._events.empty():
                        self._thread = None
                        return
            event = self._take(now)
            if event is not None and event[0] in ("close", "exit"):
                self._end(event[0] == "close")
                return
            try:
                if event is not None:
                    getattr(self, f"_on_{event[0]}")(*event[1:])
                    if not self._events.empty():
                        continue  # one picture of all of them
                self._begin_look(time.monotonic())
                self._show()
            except Exception as e:
                # A panel that doesn't react to anything any more is worse than whatever this is.
                log.exception("the panel met what it doesn't know")
                self._say(doing.one_line(e), error=True)

    def _take(self, now: float) -> tuple[Any, ...] | None:
        waits = [_CALM if self._looking else self._next - now]
        if self._said_until:
            waits.append(self._said_until - now)
        try:
            return self._events.get(timeout=max(min(waits), 0.0))
        except queue.Empty:
            return None

    def _idle(self, now: float) -> bool:
        """Whether nobody looks and nothing is under way. Only front ends that count views say so."""
        since = self._unseen_since
        return since is not None and now - since > _UNSEEN and not (self._looking or self._busy or self._deploying)

    def _end(self, send: bool) -> None:
        with self._lock:
            self._closed = True
            self._thread = None
        _open.discard(self)
        if send:
            self._view.close()

    def _aside(self, work: Callable[[], Any], then: str, *about: Any) -> None:
        """Do what may take long in a thread of its own; what comes of it comes back as the event `then`."""

        def run() -> None:
            try:
                value, error = work(), None
            except BaseException as e:  # also what users' code raises when it is packed: all of it is to be shown
                value, error = None, doing.one_line(e)
            self._tell(then, value, error, *about)

        context = self._context.copy()
        threading.Thread(target=context.run, args=(run,), name=f"kubetorch-panel-{then}", daemon=True).start()

    # -- looking -------------------------------------------------------------------------------------------------------

    def _begin_look(self, now: float) -> None:
        if self._looking or now < self._next:
            return
        self._looking = True
        selected, log_of = self._selected, self._log_of
        self._aside(lambda: self._looker.look(selected, log_of), "looked")

    def _on_looked(self, look: Look | None, error: str | None) -> None:
        self._looking = False
        changed = look != self._look
        problem = error or (look.problem if look is not None else "")
        # What ends between two questions is no problem; what is still so at the next look is.
        self._bad_looks = self._bad_looks + 1 if problem else 0
        if self._bad_looks > 1:
            self._say(problem, error=True)
        if look is not None and (look.services or not look.problem):
            self._look = look
        if self._selected is not None and all(s.name != self._selected for s in self._look.services):
            self._selected = self._asked = None
        active = any(call.active for call in self._look.calls)
        wait = _QUICK if active or (changed and self._selected is not None) else _CALM
        self._next = 0.0 if self._look_again else time.monotonic() + wait
        self._look_again = False

    def _soon(self) -> None:
        """Look at once, or again as soon as the look that is under way has ended."""
        self._next = 0.0
        self._look_again = self._looking

    def _on_begin(self) -> None:
        self._unseen_since = None
        self._soon()

    def _on_views(self, count: int | None) -> None:
        self._unseen_since = time.monotonic() if count is not None and count <= 0 else None
        self._soon()

    # -- what was pressed ----------------------------------------------------------------------------------------------

    def _on_select(self, name: str | None) -> None:
        self._selected = None if name == self._selected else name
        self._log_of = self._asked = None
        self._soon()

    def _on_log(self, of: str | None) -> None:
        self._log_of = of
        self._soon()

    def _on_ask(self, verb: str) -> None:
        row = next((row for row in self._look.services if row.name == self._selected), None)
        if row is not None:
            self._asked = verb, row.key
            self._show()
            self._view.details.no.focus()

    def _on_no(self) -> None:
        self._asked = None
        self._show()
        self._view.details.down.focus()

    def _on_yes(self) -> None:
        if self._asked is None:
            return
        verb, (name, created) = self._asked
        self._asked = None
        if any(row.key == (name, created) for row in self._look.services):
            if verb == "restart":
                self._act(name, "is being restarted", lambda: doing.restart(name))
            else:
                self._act(name, "is being torn down", lambda: doing.tear_down(name, self._namespace))

    def _on_cancel(self, id: str) -> None:
        name = self._selected
        if name is not None:
            self._act(name, "", lambda: doing.cancel(name, id))

    def _act(self, name: str, words: str, work: Callable[[], str]) -> None:
        if words:
            self._busy[name] = words
        self._aside(work, "done", name if words else None)

    def _on_done(self, said: str | None, error: str | None, name: str | None) -> None:
        if name is not None:
            self._busy.pop(name, None)
        self._say(error or said or "", error=error is not None)
        self._soon()

    # -- the form ------------------------------------------------------------------------------------------------------

    def _on_form(self, what: str = "") -> None:
        if what == "toggle":
            self._form_open = not self._form_open
            if self._form_open:
                self._show()
                self._view.form.what.focus()

    def _on_deploy(self) -> None:
        order = self._view.form.order()
        if order is None or self._deploying:
            return
        self._deploying = True
        self._say(f"{order.name} is being deployed …", error=False)
        self._aside(lambda: doing.deploy(order, self._namespace), "deployed")

    def _on_deployed(self, said: str | None, error: str | None) -> None:
        self._deploying = False
        if error is None:
            self._form_open = False
        self._say(error or said or "", error=error is not None)
        self._soon()

    # -- showing -------------------------------------------------------------------------------------------------------

    def _say(self, text: str, *, error: bool) -> None:
        self._view.say(text, error)
        self._said_until = 0.0 if error and not text else time.monotonic() + (_SAID if not error else 3 * _SAID)

    def _show(self) -> None:
        view = self._view
        if self._said_until and time.monotonic() >= self._said_until:
            self._said_until = 0.0
            view.say("", False)
        view.services.update(self._look.services, self._selected)
        question = None
        if self._asked is not None:
            verb, (name, _) = self._asked
            row = next((row for row in self._look.services if row.key == self._asked[1]), None)
            if row is None:
                self._asked = None
            else:
                question = _question(verb, name, row.calls or 0), verb
        busy = self._busy.get(self._selected or "", "")
        view.details.update(self._look, self._selected, self._log_of is None, question, busy)
        self._show_form()

    def _show_form(self) -> None:
        form = self._view.form
        line = problem = ""
        is_class = False
        if self._form_open:
            form.offer(doing.can_deploy(self._namespace))
            order = form.order()
            if order is not None:
                target = self._namespace.get(order.name)
                is_class = isinstance(target, (type, kt.Cls))
                line = order.line(target)
                try:
                    order.compute()
                    order.arguments()
                except kt.ConfigError as e:
                    problem = doing.one_line(e)
        form.update(self._form_open, line, problem, is_class, self._deploying)


def _question(verb: str, name: str, calls: int) -> str:
    lost = f"; {calls} call{'s' * (calls != 1)} that run{'s' * (calls == 1)} will fail" if calls else ""
    if verb == "restart":
        return f'Restart "{name}"? The state of its worker is lost{lost}.'
    return f'Tear down "{name}"? Everything that belongs to it is removed{lost}.'


def _at_exit() -> None:
    # Nothing is sent any more: the kernel's sockets are about to close, or have.
    for each in list(_open):
        each._tell("exit")
        thread = each._thread
        if thread is not None:
            thread.join(_FAREWELL)


atexit.register(_at_exit)
