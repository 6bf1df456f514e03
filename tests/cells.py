"""Cells without a kernel: code that is defined in `__main__` as a notebook's is, with its sources in linecache.

For what doesn't need a kernel: the same functions, shipped the same way, called from the test's own process.
"""

from __future__ import annotations

import itertools
import linecache
import textwrap
from typing import Any

__all__ = ["Cells"]

_numbers = itertools.count(1)


class Cells:
    """A namespace that stands for a notebook's.

    Examples
    --------
    >>> cells = Cells()
    >>> cells.run("def double(x): return 2 * x")
    >>> cells["double"](21)
    42
    """

    def __init__(self) -> None:
        self.namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}

    def run(self, source: str) -> None:
        """Execute one cell."""
        source = textwrap.dedent(source)
        name = f"/tmp/ipykernel_1/{next(_numbers)}.py"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        exec(compile(source, name, "exec"), self.namespace)

    def __getitem__(self, name: str) -> Any:
        return self.namespace[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.namespace[name] = value
