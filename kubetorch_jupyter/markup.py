"""HTML for the reprs of public objects: escaped, and in the words of their plain text.

No colours of our own: what is shown has the theme's, light or dark, in any front end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["code", "summary", "table"]

_LEFT = ' style="text-align: left"'
_INHERIT = ' style="color: inherit"'


def code(text: str) -> str:
    """Text as code.

    Examples
    --------
    >>> code("Image('a<b')")
    '<code>Image(&#x27;a&lt;b&#x27;)</code>'
    """
    return f"<code>{escape(text)}</code>"


def summary(kind: str, name: str, says: str) -> str:
    """One line: what it is, its name, and how it is.

    Examples
    --------
    >>> summary("kubetorch Fn", "train", "not deployed")
    '<div><code>kubetorch Fn</code> <b>train</b>: not deployed</div>'
    """
    return f"<div>{code(kind)} <b>{escape(name)}</b>: {escape(says)}</div>"


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = (), title: str = "", codes: bool = False) -> str:
    """A table.

    Parameters
    ----------
    rows
        The texts of the cells.
    head
        The columns' names.
    title
        Stands above it.
    codes
        The second column is code, and the first one names it.

    Examples
    --------
    >>> table([["cpus", "1"]], title="Compute", codes=True)
    '<div><code>Compute</code></div><table style="color: inherit"><tbody><tr><td style="text-align: left">cpus</td><td style="text-align: left"><code>1</code></td></tr></tbody></table>'
    """  # noqa: E501
    above = f"<div>{code(title) if codes else escape(title)}</div>" if title else ""
    names = "".join(f"<th{_LEFT}>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(_cell(text, codes and i == 1) for i, text in enumerate(row))}</tr>" for row in rows)
    # Where the page has no doctype, a table doesn't take the colour of its surroundings: black on black.
    return f"{above}<table{_INHERIT}>{f'<thead><tr>{names}</tr></thead>' if names else ''}<tbody>{body}</tbody></table>"


def _cell(text: str, is_code: bool) -> str:
    return f"<td{_LEFT}>{code(text) if is_code else escape(text)}</td>"
