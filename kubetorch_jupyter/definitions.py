"""Where a live function or class is defined: the piece of a cell's or file's text that it was made of.

The text of cells is what `linecache` has: IPython puts each there as it is compiled, with its magics made calls.
Nothing is believed because of its name: a function's text is compiled and has to give its very code, so that a cell
that was edited and run again, or a file that was edited since, can't be taken for what lives.
"""

from __future__ import annotations
import __future__

import ast
import dis
import enum
import functools
import inspect
import linecache
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

from pod_server.by_source import FEATURES, Piece, code_of, compile_piece, find_code

from .fingerprint import is_users

__all__ = ["NoSource", "class_piece", "function_piece", "functions_of", "is_written", "names_of_class"]

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class NoSource(Exception):
    """Why something can't be made of its source: a clause that goes on from "it"."""


class _File:
    """A text, parsed."""

    def __init__(self, text: str, tree: ast.Module) -> None:
        self.lines = text.splitlines(keepends=True)
        self.nodes: list[ast.AST] = list(ast.walk(tree))
        self.tree = tree
        self.parents = {child: node for node in self.nodes for child in ast.iter_child_nodes(node)}
        self.text = text

    def around(self, node: ast.AST) -> Iterator[ast.AST]:
        """What a node is in, from the inside out."""
        parent = self.parents.get(node)
        while parent is not None:
            yield parent
            parent = self.parents.get(parent)

    def segment(self, node: Any) -> str:
        """The whole lines of a statement."""
        text = "".join(self.lines[_first_line(node) - 1 : node.end_lineno])
        return text if text.endswith("\n") else text + "\n"


def _first_line(node: Any) -> int:
    """Where a definition begins, with its decorators: what Python calls a code object's first line."""
    lines: list[int] = [node.lineno, *(d.lineno for d in node.decorator_list)]
    return min(lines)


@functools.lru_cache(maxsize=64)
def _parse(text: str) -> _File | None:
    try:
        return _File(text, ast.parse(text))
    except (SyntaxError, ValueError, RecursionError):  # a magic in a plain file, or edited since
        return None


def _open(file: str) -> _File | None:
    linecache.checkcache(file)
    lines = linecache.getlines(file)
    return _parse("".join(lines)) if lines else None


def is_written(file: str) -> bool:
    """Whether code of that file name was written by the user, in a cell or a file of the project."""
    return is_users(file) and (not file.startswith("<") or file.startswith("<ipython-input"))


# -- functions ---------------------------------------------------------------------------------------------------------


def function_piece(function: FunctionType) -> Piece:
    """The source that a function was compiled from.

    Raises
    ------
    NoSource
        When there is none, when it has changed since, or when it is a lambda without a name of its own.
    """
    code = function.__code__
    file = _open(code.co_filename)
    if file is None:
        raise NoSource("has no source: it was defined by exec, by a tool that generates code, or at a prompt")
    found = False
    for node in file.nodes:
        piece = _piece_of(file, node, code)
        if piece is None:
            continue
        found = True
        if any(_same(made, code) for made in _compile(file, node, piece)):
            return piece
    if found:
        raise NoSource(f"isn't what {_place(code)} says: the text has changed since it was defined")
    if code.co_name == "<lambda>":
        raise NoSource("has no source of its own, as it would in `name = lambda ...`")
    raise NoSource(f"isn't found in {_place(code)}: the text has changed since it was defined")


def _compile(file: _File, node: ast.AST, piece: Piece) -> Iterator[CodeType]:
    """What the node may have given: by itself, as IPython compiles, and with the imports that stand beside it.

    Python 3.11 calls what is an attribute of a module otherwise if it sees the import.
    """
    try:
        yield code_of(piece)
        statement = [node, *file.around(node)][-2]
        for beside in ([], [n for n in file.tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]):
            tree = ast.Module(body=[*beside, statement], type_ignores=[])  # type: ignore[list-item]
            flags = piece.flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            made = find_code(compile(tree, piece.file, "exec", flags, dont_inherit=True), piece.name, piece.line)
            if made is not None:
                yield made
    except (SyntaxError, ValueError):  # e.g. a comment that ends the lines of a lambda
        return


def _place(code: CodeType) -> str:
    return f"line {code.co_firstlineno} of {os.path.basename(code.co_filename)}"


def _piece_of(file: _File, node: ast.AST, code: CodeType) -> Piece | None:
    """A node's piece, if it may be the one that gave the code."""
    if isinstance(node, ast.Lambda):
        if code.co_name != "<lambda>" or node.lineno != code.co_firstlineno or not _has_name(file, node):
            return None
        text, column = ast.get_source_segment(file.text, node) or "", node.col_offset
    elif isinstance(node, _FUNCTIONS):
        if node.name != code.co_name or _first_line(node) != code.co_firstlineno:
            return None
        text, column = file.segment(node), None
    else:
        return None
    within = next((n.name for n in file.around(node) if isinstance(n, ast.ClassDef)), "")
    return Piece(
        code.co_filename,
        text,
        code.co_firstlineno,
        column,
        code.co_name,
        within,
        code.co_freevars,
        code.co_flags & FEATURES,
    )


def _has_name(file: _File, node: ast.Lambda) -> bool:
    parent = file.parents.get(node)
    if isinstance(parent, (ast.AnnAssign, ast.NamedExpr)):
        return parent.value is node
    return isinstance(parent, ast.Assign) and parent.value is node and len(parent.targets) == 1


def _same(one: CodeType, other: CodeType) -> bool:
    """Whether two code objects do the same; where they stand in a file says nothing."""
    for name in ("co_code", "co_names", "co_varnames", "co_freevars", "co_argcount", "co_kwonlyargcount"):
        if getattr(one, name) != getattr(other, name):
            return False
    if (one.co_flags ^ other.co_flags) & ~inspect.CO_NESTED:  # a function is nested without using what is around it
        return False
    if len(one.co_consts) != len(other.co_consts):
        return False
    for a, b in zip(one.co_consts, other.co_consts, strict=True):
        if isinstance(a, CodeType) and isinstance(b, CodeType):
            if not _same(a, b):
                return False
        elif type(a) is not type(b) or (a != b and repr(a) != repr(b)):
            return False
    return True


# -- classes -----------------------------------------------------------------------------------------------------------


def functions_of(cls: type) -> Iterator[tuple[str, FunctionType]]:
    """The functions in a class's namespace, also those inside properties and the like."""
    for name, value in list(vars(cls).items()):
        parts = [value, *(getattr(value, n, None) for n in ("__func__", "fget", "fset", "fdel", "func", "__wrapped__"))]
        for part in parts:
            while part is not None:
                if isinstance(part, FunctionType):
                    yield name, part
                    part = part.__dict__.get("__wrapped__")
                else:
                    break


def class_piece(cls: type) -> tuple[Piece, ast.ClassDef]:
    """The class statement that a class was made by.

    Raises
    ------
    NoSource
        When none is found, or it is inside a function, whose variables it may use.
    """
    found = list(_statements(cls))
    if not found:
        if "<locals>" in cls.__qualname__:
            raise NoSource("is defined inside a function")
        raise NoSource("has no source: no cell that was run has its class statement")
    name, file, node = max(enumerate(found), key=lambda item: (_likeness(cls, item[1][2]), item[0]))[1]
    if any(isinstance(n, _FUNCTIONS) for n in file.around(node)):
        raise NoSource("is defined inside a function")
    flags = next((f.__code__.co_flags & FEATURES for _, f in _own(cls, name)), None)
    if flags is None:
        flags = _flags(cls, node)
    return Piece(name, file.segment(node), _first_line(node), None, cls.__name__, flags=flags), node


def _own(cls: type, file: str) -> Iterator[tuple[str, FunctionType]]:
    prefix = f"{cls.__qualname__}."
    for name, function in functions_of(cls):
        if function.__code__.co_filename == file and function.__qualname__.startswith(prefix):
            yield name, function


def _statements(cls: type) -> Iterator[tuple[str, _File, ast.ClassDef]]:
    """The class statements of this name, the one that was run last at the end."""
    prefix = f"{cls.__qualname__}."
    for _, function in functions_of(cls):
        code = function.__code__
        if not function.__qualname__.startswith(prefix) or not is_written(code.co_filename):
            continue
        if (file := _open(code.co_filename)) is None:
            continue
        here = [node for node in _classes(file, cls) if _first_line(node) <= code.co_firstlineno <= _end(node)]
        if here:  # its method tells which
            yield code.co_filename, file, here[0]
            return
    for name in _cells(cls.__module__):
        if (file := _open(name)) is not None:
            for node in _classes(file, cls):
                yield name, file, node


def _classes(file: _File, cls: type) -> Iterable[ast.ClassDef]:
    first = getattr(cls, "__firstlineno__", None)  # from Python 3.13 on
    for node in file.nodes:
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__ and first in (None, _first_line(node)):
            yield node


def _end(node: ast.ClassDef) -> int:
    return node.end_lineno or node.lineno


def _cells(module: str) -> list[str]:
    """The cells' names, as they were run, and the script's."""
    names = [name for name, entry in list(linecache.cache.items()) if len(entry) == 4 and entry[1] is None]
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    # A cell that is run again has the place in linecache that it had; IPython knows the number of its last run.
    numbers: Mapping[str, int] = getattr(getattr(shell, "compile", None), "_filename_map", {})
    names.sort(key=lambda name: numbers.get(name, 0))
    script = getattr(sys.modules.get(module), "__file__", None)
    return [script, *names] if isinstance(script, str) else names


def _likeness(cls: type, node: ast.ClassDef) -> int:
    """How well a statement fits a class that has no function to tell it by."""
    live = vars(cls)
    annotations = live.get("__annotations__", {})
    found: Any = cls if isinstance(cls, enum.EnumMeta) else ()
    members = {m.name: m.value for m in found}
    score = 0
    annotated = []
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            annotated.append(statement.target.id)
            names, value = [statement.target.id], statement.value
        elif isinstance(statement, ast.Assign):
            names, value = [t.id for t in statement.targets if isinstance(t, ast.Name)], statement.value
        else:
            continue
        for name in names:
            known = name in live or name in members or name in annotations
            score += 1 if known else -4
            if known and isinstance(value, ast.Constant):
                now = members.get(name, live.get(name))
                score += 1 if now == value.value else -1
    score += 2 if annotated == list(annotations) else -4
    missing = set(members) - {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    score -= 4 * len(missing)
    if (doc := ast.get_docstring(node, clean=False)) is not None:
        score += 2 if doc == cls.__doc__ else -2
    return score


def _flags(cls: type, node: ast.ClassDef) -> int:
    """Whether annotations are strings in a class without functions: the import may be one of a cell before."""
    live = vars(cls).get("__annotations__", {})
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = isinstance(statement.annotation, ast.Constant) and isinstance(statement.annotation.value, str)
            name = live.get(statement.target.id)
            forward = getattr(name, "__forward_arg__", None)  # typing's own classes keep strings so
            if not text and (isinstance(name, str) or forward is not None):
                return _ANNOTATIONS
    return 0


_ANNOTATIONS = __future__.annotations.compiler_flag


def names_of_class(piece: Piece, node: ast.ClassDef, without: Iterable[int]) -> tuple[list[str], list[str]]:
    """The global names that a class statement uses while it is executed, and those that its functions use later."""
    now: dict[str, None] = {}
    later: dict[str, None] = {}
    _collect(compile_piece(piece, tuple(without)), now, later, at_once=True)
    later |= {n.id: None for a in _annotations(node) for n in ast.walk(a) if isinstance(n, ast.Name)}
    return sorted(now), sorted(set(later) - set(now))


def _annotations(node: ast.ClassDef) -> Iterator[ast.AST]:
    """As trees, also those that are strings: dataclasses and typing look their names up."""
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign):
            continue
        annotation: ast.AST = statement.annotation
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            try:
                annotation = ast.parse(annotation.value, mode="eval")
            except SyntaxError:  # a string that is no type
                continue
        yield annotation


#: Instructions that look a global up.
_LOADS = frozenset(("LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS", "LOAD_CLASSDEREF"))


def _collect(code: CodeType, now: dict[str, None], later: dict[str, None], *, at_once: bool) -> None:
    stored: set[str] = set()
    function = bool(code.co_flags & 1)  # CO_OPTIMIZED, which a class's body isn't
    for i in dis.get_instructions(code):
        if i.opname in _LOADS and i.argval not in stored:
            (now if at_once else later)[i.argval] = None
        elif i.opname == "STORE_GLOBAL":
            later[i.argval] = None
        elif i.opname == "STORE_NAME" and not function:
            stored.add(i.argval)
    for const in code.co_consts:
        if isinstance(const, CodeType):
            # Comprehensions and the like run where they stand; functions run when they are called.
            runs = not const.co_flags & 1 or (const.co_name.startswith("<") and const.co_name != "<lambda>")
            _collect(const, now, later, at_once=at_once and runs)
