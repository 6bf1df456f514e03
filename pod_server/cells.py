"""A namespace for cells, deployed as any other class: what runs a notebook's ``%%kt`` cells in a pod.

The client deploys `Namespace` by this module's name and calls its methods; the worker's parts that it is made of are
imported in the pod only.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import inspect
import io
import linecache
import sys
import time
import tokenize
from collections.abc import Sequence
from types import CodeType
from typing import Any

__all__ = ["Namespace", "compile_cell"]

_FEATURES = 0
for _name in __future__.all_feature_names:
    _FEATURES |= getattr(__future__, _name).compiler_flag


def compile_cell(source: str, name: str, flags: int = 0) -> list[CodeType]:
    """The code of a cell: of its statements, and of the last one's value if that is to be shown.

    Parameters
    ----------
    source
        Python, in which ``await`` is allowed at the top level.
    name
        The file name for tracebacks.
    flags
        Compiler flags: ``from __future__`` imports of cells before.

    Raises
    ------
    SyntaxError
        As Python's compiler.

    Examples
    --------
    >>> [eval(code) for code in compile_cell("6 * 7", "<cell>")]
    [None, 42]
    """
    flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    tree: Any = compile(source, name, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) and not _ends_quietly(source) else None
    # The statements first: their imports from __future__ count for the last one too.
    codes = [compile(tree, name, "exec", flags, dont_inherit=True)]
    if last is not None:
        flags |= codes[0].co_flags & _FEATURES
        codes.append(compile(ast.Expression(last.value), name, "eval", flags, dont_inherit=True))
    return codes


def _ends_quietly(source: str) -> bool:
    """Whether the last thing in it is a semicolon: then the value isn't shown, as in IPython."""
    last = ""
    skipped = (tokenize.NEWLINE, tokenize.NL, tokenize.COMMENT, tokenize.ENDMARKER, tokenize.INDENT, tokenize.DEDENT)
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type not in skipped:
                last = token.string
    except (tokenize.TokenError, IndentationError):
        return False  # the compiler says what is wrong
    return last == ";"


class Namespace:
    """Cells' variables, and the thread that their code runs on; they are the worker's ``__main__``."""

    def __init__(self) -> None:
        from .worker.cells import CellThread
        from .worker.shell import Shell

        self._thread = CellThread()
        variables = vars(sys.modules["__main__"])
        for name in [name for name in variables if not name.startswith("__")]:
            del variables[name]  # those of a namespace that this one takes the place of
        # So that pickle, dataclasses and multiprocessing find in __main__ what cells have defined, as in a notebook.
        self._variables: dict[str, Any] = variables
        self._flags = 0
        #: Where the user's own modules are, and the digest of them.
        self._folder: str | None = None
        self._modules = ""
        shell = Shell(self._variables, self._run_now)
        builtins.get_ipython = lambda: shell  # type: ignore[attr-defined]

    def __del__(self) -> None:
        if (thread := self.__dict__.get("_thread")) is not None:
            thread.close()

    async def run(self, source: str, name: str, text: str, timed: bool = False) -> None:
        """Run a cell; the value of its last expression is displayed.

        Parameters
        ----------
        source
            Python; its line numbers are those of ``text``.
        name
            The file name for tracebacks.
        text
            The cell as the user sees it.
        timed
            Say how long it took.
        """
        # Without a time of modification an entry is never checked against a file.
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        codes = compile_cell(source, name, self._flags)
        for code in codes:
            self._flags |= code.co_flags & _FEATURES
        await self._thread.run(self._execute(codes, timed))

    async def _execute(self, codes: Sequence[CodeType], timed: bool) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        value = None
        try:
            for code in codes:
                value = eval(code, self._variables)
                if code.co_flags & inspect.CO_COROUTINE:
                    value = await value
        finally:
            if timed:
                from .worker.shell import say_times

                say_times(time.perf_counter() - wall, time.process_time() - cpu)
        if value is not None:
            self._variables["_"] = value
            builtins.display(value)  # type: ignore[attr-defined]

    def _run_now(self, source: str) -> Any:
        """For magics: the value of the last expression."""
        value = None
        for code in compile_cell(source, "<magic>", self._flags):
            value = eval(code, self._variables)
            if code.co_flags & inspect.CO_COROUTINE:
                value.close()
                raise SyntaxError("await can't be used in this magic; %%time as the cell's first line can")
        return value

    def modules(self, digest: str, data: bytes | None = None) -> bool:
        """Have the user's own modules on the path, as they are now where the cells are written.

        Parameters
        ----------
        digest
            Of their files.
        data
            A zip of them; None only asks.

        Returns
        -------
        bool
            Whether they are there.
        """
        from .worker.modules import use_modules

        if digest != self._modules and data is not None:
            self._folder, self._modules = use_modules(data, self._folder), digest
        return digest == self._modules

    def put(self, values: dict[str, Any]) -> None:
        """Set variables."""
        self._variables.update(values)

    def fetch(self, names: Sequence[str]) -> dict[str, Any]:
        """The values of those variables that there are."""
        return {name: self._variables[name] for name in names if name in self._variables}

    def names(self) -> dict[str, str]:
        """The variables, and the names of their types."""
        from .worker.shell import user_names

        return user_names(self._variables)
