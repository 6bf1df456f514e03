"""The widgets. They show what they are given and hand on what is pressed; nothing in here asks a service.

All of it is written by one thread, the panel's. What is set to the value that it has isn't sent.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

import ipywidgets as w

from .doing import Order
from .looking import SERVICE_LOG, CallRow, Look, ServiceRow
from .words import call_cells, call_labels, log_html, service_cells, service_labels

__all__ = ["DeployForm", "Details", "PanelView", "Services", "close_tree"]

#: Told of what was pressed: a verb and its object. From any thread.
Tell = Callable[..., None]

EMPTY = (
    "<b>Nothing runs yet.</b> Press <b>Deploy…</b> to choose a function of this notebook, or write in a cell: "
    "<code>remote = kt.fn(my_function).to(kt.Compute(cpus=1))</code>"
)


def close_tree(widget: Any) -> None:
    """Close a widget and everything that belongs to it, so that neither side keeps any of it."""
    for child in getattr(widget, "children", ()):
        close_tree(child)
    for part in ("layout", "style"):
        owned = getattr(widget, part, None)
        if isinstance(owned, w.Widget):
            owned.close()
    widget.close()


def _html(value: str = "", *classes: str) -> Any:
    made = w.HTML(value)
    for name in classes:
        made.add_class(name)
    return made


def _box(children: Sequence[Any], *classes: str) -> Any:
    made = w.Box(list(children))
    for name in classes:
        made.add_class(name)
    return made


def _button(text: str, tip: str, pressed: Callable[[], None], *classes: str) -> Any:
    made = w.Button(description=text, tooltip=tip)
    for name in classes:
        made.add_class(name)
    made.on_click(lambda _: pressed())
    return made


def show(widget: Any, visible: bool) -> None:
    """Show or hide a widget."""
    if visible:
        widget.remove_class("kt-none")
    else:
        widget.add_class("kt-none")


def _choose(row: Any, chosen: bool) -> None:
    if chosen:
        row.add_class("kt-chosen")
    else:
        row.remove_class("kt-chosen")


class _Rows:
    """Rows that come and go, by key; one that stays keeps its widgets, and with them the focus."""

    def __init__(self, *classes: str) -> None:
        self.box = w.VBox([])
        self.box.add_class("kt-rows")
        self._classes = classes
        self._rows: dict[Any, Any] = {}

    def update(self, keys: Sequence[Any], make: Callable[[Any], Sequence[Any]]) -> None:
        """Have exactly those rows, in that order; `make` gives the widgets of a new one."""
        gone = [self._rows.pop(key) for key in list(self._rows) if key not in keys]
        for key in keys:
            if key not in self._rows:
                self._rows[key] = _box(make(key), "kt-row", *self._classes)
        children = tuple(self._rows[key] for key in keys)
        if children != self.box.children:
            self.box.children = children
        for row in gone:
            close_tree(row)

    def __getitem__(self, key: Any) -> Any:
        return self._rows[key]


class Services:
    """The table of services; the whole of a row can be pressed, and its name by the keyboard."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._titles = _html()
        self._labels = _box([_html("Service"), self._titles], "kt-row", "kt-service", "kt-labels")
        self._rows = _Rows("kt-service")
        self._empty = _html(EMPTY, "kt-message", "kt-none")
        self.box = w.VBox([self._labels, self._rows.box, self._empty])

    def update(self, services: Sequence[ServiceRow], selected: str | None) -> None:
        """Show them."""
        show(self._labels, bool(services))
        show(self._empty, not services)
        self._rows.update([row.key for row in services], lambda key: self._make(key[0]))
        gpus = any(row.gpus for row in services)
        self._titles.value = service_labels(gpus)
        for row in services:
            widget = self._rows[row.key]
            widget.children[1].value = service_cells(row, gpus)
            _choose(widget, row.name == selected)

    def _make(self, name: str) -> Sequence[Any]:
        tip = f"Show the log and the calls of {name}"
        return _button(name, tip, lambda: self._tell("select", name), "kt-name"), _html()


class Details:
    """One service: what can be done to it, its calls, a log."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._title = _html()
        self.restart = _button(
            "Restart…", "Replace the worker process; its state is lost", lambda: tell("ask", "restart")
        )
        self.down = _button(
            "Tear down…", "End the service and remove everything of it", lambda: tell("ask", "tear down"), "kt-danger"
        )
        self._hide = _button("Hide", "Hide the details of this service", lambda: tell("select", None))
        self._question = _html()
        self.yes = _button("Yes", "Do it", lambda: tell("yes"), "kt-danger")
        self.no = _button("No, keep it", "Leave the service as it is", lambda: tell("no"))
        self._ask = _box([self._question, self.yes, self.no], "kt-bar", "kt-ask", "kt-none")
        self._labels = _box([_html("Call"), _html(call_labels()), _html()], "kt-row", "kt-call", "kt-labels")
        self._rows = _Rows("kt-call")
        self._more = _html("", "kt-small")
        self._log_title = _html()
        self._own = _button(
            "Service's own log", "What was written outside of any call", lambda: tell("log", SERVICE_LOG)
        )
        self._newest = _button("Newest call", "Show the log of each new call as it begins", lambda: tell("log", None))
        self._log = _html("", "kt-log")
        self._log.tabbable = True
        self.box = _box(
            [
                _box([self._title, self.restart, self.down, self._hide], "kt-bar"),
                self._ask,
                w.VBox([self._labels, self._rows.box, self._more]),
                _box([self._log_title, self._newest, self._own], "kt-bar"),
                self._log,
            ],
            "kt-part",
            "kt-none",
        )
        self._shown: tuple[CallRow, ...] = ()

    def update(
        self, look: Look, selected: str | None, following: bool, question: tuple[str, str] | None, busy: str
    ) -> None:
        """Show what was seen of the service.

        Parameters
        ----------
        following
            The log is that of the newest call, whichever it is.
        question
            What must be confirmed, and the verb.
        busy
            What is being done to it.
        """
        row = next((row for row in look.services if row.name == selected), None)
        show(self.box, row is not None)
        if row is None:
            return
        facts = [row.asks_for, f"deployed by {row.owner}" if row.owner else "", row.reason, busy]
        about = html.escape(" · ".join(filter(None, facts)))
        self._title.value = (
            f'<span class="kt-title">{html.escape(row.name)}</span> <span class="kt-soft">{about}</span>'
        )
        for button in (self.restart, self.down, self.yes):
            button.disabled = bool(busy)
        if question is not None:
            self._question.value = f'<span role="alert">{html.escape(question[0])}</span>'
            self.yes.description = f"Yes, {question[1]}"
        show(self._ask, question is not None)
        if look.selected != selected:
            return  # its calls and its log have not been seen yet
        self._update_calls(look)
        text = "of the service itself" if look.log_of == SERVICE_LOG else f"of {_named(look, following)}"
        self._log_title.value = f'<span class="kt-title">Log</span> <span class="kt-soft">{html.escape(text)}</span>'
        self._log.tooltip = f"Log {text}"
        self._log.value = log_html(look.log or "(nothing written yet)")

    def _update_calls(self, look: Look) -> None:
        self._rows.update([c.id for c in look.calls], lambda id: self._make(id, look.calls))
        for call in look.calls:
            widget = self._rows[call.id]
            widget.children[1].value = call_cells(call)
            show(widget.children[2], call.active)
            _choose(widget, call.id == look.log_of)
        show(self._labels, bool(look.calls))
        more = f"and {look.more_calls} more that have ended" if look.more_calls else ""
        self._more.value = more if look.calls else "It has not been called yet."
        show(self._more, bool(self._more.value))

    def _make(self, id: str, calls: Sequence[CallRow]) -> Sequence[Any]:
        name = next(c.function for c in calls if c.id == id)
        return (
            _button(name, f"Show the log of this call of {name} ({id})", lambda: self._tell("log", id), "kt-name"),
            _html(),
            _button("Cancel", f"Cancel this call of {name}", lambda: self._tell("cancel", id)),
        )


def _named(look: Look, following: bool) -> str:
    name = next((c.function for c in look.calls if c.id == look.log_of), "a call")
    return f"the newest call, {name}" if following else f"the chosen call, {name}"


class DeployForm:
    """Choose a function or class and what it needs; the line that does the same is shown."""

    def __init__(self, tell: Tell) -> None:
        self.what = w.Dropdown(options=[], description="Function")
        self.cpus = w.Text(description="CPUs", placeholder="1, 500m")
        self.memory = w.Text(description="Memory", placeholder="2Gi")
        self.gpus = w.BoundedIntText(description="GPUs", min=0, max=64)
        self.concurrency = w.BoundedIntText(description="Concurrency", min=1, max=10_000, value=64)
        self.detach = w.Checkbox(description="Detach: live on after this kernel", indent=False)
        self.arguments = w.Text(description="init_args", placeholder='{"size": 3}')
        self.arguments.add_class("kt-wide")
        fields = (self.what, self.cpus, self.memory, self.gpus, self.concurrency, self.detach, self.arguments)
        self._touched = False
        self._offering = False

        def changed(_: object) -> None:
            self._touched = self._touched or not self._offering
            tell("form")

        for widget in fields:
            widget.observe(changed, names=["value"])
        self._line = _html()
        self._button = _button("Deploy", "Deploy it as the line says", lambda: tell("deploy"), "kt-main")
        self._form = _box(fields, "kt-form")
        self._bar = _box([self._line, self._button], "kt-bar")
        self._none = _html("This notebook has no function or class of its own yet: define one in a cell.", "kt-soft")
        title = _html('<span class="kt-title">Deploy a function or class of this notebook</span>')
        self.box = _box([title, self._form, self._bar, self._none], "kt-part", "kt-none")

    def order(self) -> Order | None:
        """What it asks for; None when there is nothing to choose."""
        if self.what.value is None:
            return None
        return Order(
            str(self.what.value),
            cpus=self.cpus.value,
            memory=self.memory.value,
            gpus=self.gpus.value,
            concurrency=self.concurrency.value,
            detach=self.detach.value,
            init_args=self.arguments.value,
        )

    def offer(self, names: Sequence[str]) -> None:
        """What there is to choose from; the first, which is the newest, is chosen until somebody fills in the form."""
        if tuple(names) != tuple(self.what.options):
            chosen = self.what.value if self._touched else None
            self._offering = True
            try:
                with self.what.hold_sync():
                    self.what.options = tuple(names)
                    if names:
                        self.what.value = chosen if chosen in names else names[0]
            finally:
                self._offering = False
        show(self._form, bool(names))
        show(self._bar, bool(names))
        show(self._none, not names)

    def update(self, visible: bool, line: str, problem: str, is_class: bool, busy: bool) -> None:
        """Show the line, or what is wrong with the fields."""
        show(self.box, visible)
        show(self.arguments, is_class)
        shown = f'<span class="kt-error" role="alert">{html.escape(problem)}</span>' if problem else ""
        self._line.value = f'<code class="kt-code" aria-label="The same as code">{html.escape(line)}</code>{shown}'
        self._button.disabled = busy or bool(problem)
        self._button.description = "Deploying…" if busy else "Deploy"


class PanelView:
    """All of it, under one root."""

    def __init__(self, tell: Tell) -> None:
        style = files(__package__).joinpath("style.css").read_text(encoding="utf-8")
        title = _html(f'<style>{style}</style><span class="kt-title">Kubetorch services</span>')
        self.deploy = _button("Deploy…", "Deploy a function or class of this notebook", lambda: tell("form", "toggle"))
        self._close = _button("Close", "Close this panel; the services run on", lambda: tell("close"))
        self.services = Services(tell)
        self.message = _html("", "kt-message", "kt-none")
        self.details = Details(tell)
        self.form = DeployForm(tell)
        head = _box([title, self.deploy, self._close], "kt-bar", "kt-head")
        self.root = w.VBox([head, self.services.box, self.message, self.details.box, self.form.box])
        self.root.add_class("kt-panel")
        # From now on the front end counts its views in it (https://github.com/jupyter-widgets/ipywidgets, widget.py).
        self.root._view_count = 0
        self.root.observe(lambda change: tell("views", change["new"]), names=["_view_count"])

    def say(self, text: str, error: bool) -> None:
        """Show one line; an empty one hides it."""
        look, role = ("kt-error", "alert") if error else ("", "status")
        self.message.value = f'<span class="{look}" role="{role}">{html.escape(text)}</span>' if text else ""
        show(self.message, bool(text))

    def close(self) -> None:
        """Take it off the page, and forget it here."""
        close_tree(self.root)
