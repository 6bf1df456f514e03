"""Values as people read them, and as HTML. Whatever comes from outside is escaped here."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterable

from .looking import CallRow, ServiceRow

__all__ = ["age", "call_cells", "call_labels", "log_html", "service_cells", "service_labels", "size", "span"]

#: Colours, cursor movements, titles of windows: https://en.wikipedia.org/wiki/ANSI_escape_code
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")
_OTHER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

_LOOKS = {
    "ready": "kt-good",
    "running": "kt-good",
    "done": "kt-good",
    "failed": "kt-bad",
    "no answer": "kt-bad",
    "cancelled": "",
}


def age(seconds: float) -> str:
    """A time for people, in a unit that changes rarely: what is shown again and again is sent again and again.

    Examples
    --------
    >>> age(0.4), age(59), age(61), age(7200), age(200_000)
    ('0 s', '59 s', '1 min', '2 h', '2 d')
    """
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def size(amount: int) -> str:
    """Bytes for people.

    Examples
    --------
    >>> size(700), size(120 << 20), size(3 << 30)
    ('1 KiB', '120 MiB', '3.0 GiB')
    """
    if amount >= 1 << 30:
        return f"{amount / (1 << 30):.1f} GiB"
    if amount >= 1 << 20:
        return f"{amount / (1 << 20):.0f} MiB"
    return f"{-(-amount // 1024)} KiB"


def span(text: str, look: str = "", tip: str = "") -> str:
    """A piece of text as HTML."""
    title = f' title="{html.escape(tip)}"' if tip else ""
    return f'<span class="{look}"{title}>{html.escape(text)}</span>'


def _state(state: str, tip: str = "") -> str:
    dot = f'<i class="kt-dot {_LOOKS.get(state, "kt-busy")}" aria-hidden="true"></i>'
    title = f' title="{html.escape(tip)}"' if tip else ""
    return f"<span{title}>{dot}{html.escape(state)}</span>"


def _cells(cells: Iterable[str], look: str = "") -> str:
    return f'<div class="{look}">{"".join(cells)}</div>'


def service_labels(gpus: bool) -> str:
    """What the columns of `service_cells` are called."""
    numbers = ("Calls", "Age", "CPU", "Memory")
    labels = [span("Where"), span("State"), *(span(n, "kt-n") for n in numbers)]
    return _cells([*labels, span("GPU")], "kt-gpus") if gpus else _cells(labels)


def service_cells(row: ServiceRow, gpus: bool) -> str:
    """One service, but for its name; the last column is left out where no service has a GPU."""
    used = "; ".join(row.gpus)
    return _cells(
        [
            span(row.where + (", detached" if row.detached else "")),
            _state(row.state, row.reason),
            span(_known(row.calls), "kt-n"),
            span(age(time.time() - row.created), "kt-n"),
            span("–" if row.cpu is None else f"{100 * row.cpu:.0f} %", "kt-n"),
            span("–" if row.memory is None else size(row.memory), "kt-n"),
            *([span(used or "–", "", used)] if gpus else ()),
        ],
        "kt-gpus" if gpus else "",
    )


def _known(value: int | None) -> str:
    return "–" if value is None else str(value)


def call_labels() -> str:
    """What the columns of `call_cells` are called."""
    return _cells([span("State"), span("Took", "kt-n"), span("Log", "kt-n"), span("By")])


def call_cells(row: CallRow) -> str:
    """One call, but for its name."""
    took = "" if row.started is None else age((row.ended or time.time()) - row.started)
    return _cells(
        [
            _state(row.state),
            span(took, "kt-n"),
            span(size(row.log) if row.log else "–", "kt-n"),
            span(row.owner, "kt-soft", row.owner),
        ]
    )


def log_html(text: str) -> str:
    r"""The text of a log, as a terminal would leave it: without colours, and lines that were written over gone.

    Examples
    --------
    >>> log_html("10 %\r20 %\n<b>\x1b[31mred\x1b[0m")
    '<pre>20 %\n&lt;b&gt;red</pre>'
    """
    lines = _ANSI.sub("", text).replace("\r\n", "\n").split("\n")
    plain = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
    return f"<pre>{html.escape(_OTHER.sub('', plain), quote=False)}</pre>"
