"""W6: what is printed in the pod, until it is written here."""

from __future__ import annotations

import contextlib

from . import limits, timing
from .functions import dense, spaced
from .places import Place
from .rows import Goal, Row

__all__ = ["ROWS"]

_ONE, _MANY = 100, 100_000
_PLACES = ("local", "direct", "proxy")


def _line(place: Place) -> float:
    handle, cell = place.handle(spaced), timing.Lines()
    with contextlib.redirect_stdout(cell):
        handle(_ONE)
    return cell.delay(_ONE)


def _lines(place: Place, flush: bool) -> float:
    handle, cell = place.handle(dense), timing.Lines()
    with contextlib.redirect_stdout(cell):
        seconds = timing.once(lambda: handle(_MANY, flush))
    cell.wait(_MANY, timeout=0)  # a call returns after its last line
    return seconds


def _printed(name: str, what: str, question: str, *, flush: bool) -> Row:
    return Row(
        name,
        what,
        "ms",
        lambda _: limits.lines(_MANY, flush),
        lambda place: _lines(place, flush),
        (question, _MANY),
        goals={"local": [Goal(1.2)]},
        places=_PLACES,
    )


ROWS = [
    Row(
        "W6 line",
        "a printed line until it is here, median",
        "µs",
        lambda _: limits.line_delay(_ONE),
        _line,
        ("line", _ONE),
        goals={"local": [Goal(5)]},
        places=_PLACES,
    ),
    _printed("W6 100,000", "100,000 printed lines, none lost", "lines", flush=False),
    _printed("W6 flushed", "100,000 printed lines, each flushed, none lost", "flushed_lines", flush=True),
]
