"""Progress in a notebook: one display a line, in the cell that began it, which is updated in its place.

What it says is in the plain text and in the HTML alike, so that a front end that shows only one of them misses nothing.
"""

from __future__ import annotations

import html
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from typing import Any

from ..progress import State, Status, View, set_view_factory, text_view
from ..streams import parent_message, show_bundle

__all__ = ["Shown", "install", "recent", "uninstall"]

#: How long a line that has ended is still recent, in seconds, and how many lines are kept.
_STAYS, _KEPT = 10.0, 20

#: The notebook's own colours, so that they suit its theme; the others are for front ends that have none.
_COLOURS = {
    State.RUNNING: "var(--jp-brand-color1, #1976d2)",
    State.DONE: "var(--jp-success-color1, #388e3c)",
    State.FAILED: "var(--jp-error-color1, #d32f2f)",
    State.STOPPED: "var(--jp-warn-color1, #f57c00)",
}


@dataclass(frozen=True)
class Shown:
    """What a line of this kernel says, and how long it has not changed (`time.monotonic`)."""

    id: str
    status: Status
    at: float


_shown: dict[str, Shown] = {}
_lock = threading.Lock()


def recent() -> list[Shown]:
    """The lines of this kernel that are under way, and those that ended lately; oldest first, for the side panel."""
    with _lock:
        _forget()
        return list(_shown.values())


def _remember(id: str, status: Status) -> None:
    with _lock:
        _shown[id] = Shown(id, status, time.monotonic())
        _forget()


def _forget() -> None:
    now = time.monotonic()
    old = [id for id, line in _shown.items() if line.status.final and now - line.at > _STAYS]
    for id in old or list(_shown)[: max(0, len(_shown) - _KEPT)]:
        del _shown[id]


class _DisplayView:
    """One display, made by what is shown first."""

    def __init__(self, parent: dict[str, Any]) -> None:
        # The message of the cell is kept, for whatever runs when the line changes: by itself, ipykernel 6 would put an
        # update under the cell that runs then.
        self._parent = parent
        self._id = uuid.uuid4().hex
        self._there = False

    def show(self, status: Status) -> None:
        _remember(self._id, status)
        bundle = {
            "data": {"text/plain": status.plain(), "text/html": _markup(status)},
            "transient": {"display_id": self._id},
            "update": self._there,
        }
        self._there = True
        show_bundle(bundle, self._parent)

    def note(self, text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def pause(self) -> None:
        """A display is in nobody's way."""

    def resume(self) -> None:
        """It was not taken away."""


def _markup(status: Status) -> str:
    colour = _COLOURS[status.state]
    bar = ""
    if status.share is not None:
        shape = "height: 4px; border-radius: 2px"
        bar = (
            f'<div style="{shape}; max-width: 30em; margin-top: 3px; '
            'background: var(--jp-border-color2, rgba(128, 128, 128, .35))">'
            f'<div style="{shape}; width: {status.share:.1%}; background: {colour}"></div></div>'
        )
    return (
        f'<div style="border-left: 3px solid {colour}; padding: 1px 0 1px 8px; '
        "font-family: var(--jp-code-font-family, monospace); font-size: var(--jp-code-font-size, 13px); "
        f'white-space: pre-wrap">{html.escape(status.text)}{bar}</div>'
    )


def _make_view() -> View:
    parent = parent_message()
    return _DisplayView(parent) if parent is not None else text_view()


def install() -> None:
    """Show progress in displays where there is a kernel."""
    set_view_factory(_make_view)


def uninstall() -> None:
    """Show it as text again; lines that are under way stay where they are."""
    set_view_factory(None)
