"""A magic cell's body: IPython's syntax made Python, with the line numbers and the label that the user's cell has."""

from __future__ import annotations

import ast
import re
import sys
import types
from dataclasses import dataclass
from typing import Any

__all__ = ["Body", "defined_names", "prepare", "run_here"]

_TIMED = re.compile(r"\s*%%time[ \t]*(?:\n|$)")


@dataclass(frozen=True)
class Body:
    """What is sent of a cell.

    Parameters
    ----------
    source
        Python; its lines have the numbers that they have in the cell.
    text
        The cell as the user sees it, for tracebacks.
    name
        The file name that IPython shows as ``Cell In[n]``.
    timed
        Whether it begins with ``%%time``.
    """

    source: str
    text: str
    name: str
    timed: bool = False


def prepare(shell: Any, magic: str, body: str) -> Body:
    """Take a cell's body as IPython would: ``!ls``, ``%magics`` and trailing ``?`` become Python.

    Parameters
    ----------
    shell
        The running IPython.
    magic
        The cell's first line.
    body
        What is below it.
    """
    # Line ends as IPython and the compiler have them: the cell as it was registered is then the one that ran.
    body = body.replace("\r\n", "\n").replace("\r", "\n")
    text = f"{magic}\n{body}"
    timed = _TIMED.match(body)
    rest = body[timed.end() :] if timed else body
    above = text[: len(text) - len(rest)].count("\n")
    # IPython drops empty lines at the top; the numbers are to stay those of the cell.
    stripped = rest.lstrip("\n")
    above += len(rest) - len(stripped)
    source = "\n" * above + shell.transform_cell(stripped)
    # Registered under the number of the cell that runs, the text is what tracebacks show.
    name = shell.compile.cache(text, _number(shell), raw_code=text)
    return Body(source, text, name, bool(timed))


def _number(shell: Any) -> int:
    """The cell that runs: its own code is among our callers. Whether the shell's count is that yet, versions differ."""
    frame: types.FrameType | None = sys._getframe()
    known: dict[str, int] = shell.compile._filename_map
    while frame is not None:
        if (number := known.get(frame.f_code.co_filename)) is not None:
            return number
        frame = frame.f_back
    return int(shell.execution_count)


def defined_names(source: str, name: str) -> list[str]:
    r"""The public functions and classes that a cell defines at its top level, in order.

    Examples
    --------
    >>> defined_names("def f(): pass\nclass C: pass\ndef _g(): pass\nx = 1", "<cell>")
    ['f', 'C']
    """
    found = [
        node.name
        for node in ast.parse(source, name).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    ]
    return list(dict.fromkeys(found))


def run_here(shell: Any, body: Body) -> None:
    """Run a body in the kernel, in the user's namespace; the value of its last expression is displayed."""
    import asyncio
    import inspect

    from IPython.display import display

    from pod_server.cells import compile_cell

    value = None
    for code in compile_cell(body.source, body.name):
        value = eval(code, shell.user_ns)
        if code.co_flags & inspect.CO_COROUTINE:
            value = asyncio.run(value)  # ours: a cell magic can't await on the kernel's loop
    if value is not None:
        display(value)  # type: ignore[no-untyped-call]
