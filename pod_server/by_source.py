"""Functions and classes made of their source, for a client of another Python: bytecode is good for its own minor only.

The client pickles a callable with all that it uses, as always. Where that pickle would have bytecode it has a `Piece`
of source instead, and the functions here, which the pickle calls, compile it. A function is compiled, not executed
again: its defaults, closure, decorators and attributes are the live ones. A class statement is executed, so that what
Python or a library generates for a class (dataclasses, enums, named tuples) is made by the Python that is to run it.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import collections
import enum
import io
import pickle
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import CellType, CodeType, FunctionType
from typing import Any, NamedTuple, cast

__all__ = [
    "FEATURES",
    "Piece",
    "Space",
    "code_of",
    "compile_piece",
    "fill_cell",
    "find_code",
    "load_arguments",
    "make_alias",
    "make_class",
    "make_function",
    "make_plain",
    "member",
    "set_class",
    "set_function",
    "set_globals",
]

#: The compiler flags of all ``from __future__`` imports.
FEATURES = 0
for _name in __future__.all_feature_names:
    FEATURES |= getattr(__future__, _name).compiler_flag


class Piece(NamedTuple):
    """The source of one definition.

    Parameters
    ----------
    file
        The name of the file or cell that it is from.
    text
        The lines of a ``def`` or ``class`` with its decorators, as they stand there; or the text of a lambda.
    line
        The number of its first line.
    column
        Of a lambda: where it begins in that line.
    name
        As its code object has it.
    within
        The class around it, for names that begin with two underscores; empty when there is none.
    free
        The variables of functions around it that it uses.
    flags
        ``from __future__`` imports.
    """

    file: str
    text: str
    line: int
    column: int | None
    name: str
    within: str = ""
    free: tuple[str, ...] = ()
    flags: int = 0


def _parse(piece: Piece) -> Any:
    """The statement, with the line numbers and columns that it has in its file."""
    if piece.column is not None:
        text = "\n" * (piece.line - 1) + "(" + " " * (piece.column - 1) + piece.text + "\n)"
        return ast.parse(text, piece.file).body[0]
    if piece.text[:1] in (" ", "\t") and piece.line > 1:
        tree: Any = ast.parse("\n" * (piece.line - 2) + "if 1:\n" + piece.text, piece.file)
        return tree.body[0].body[0]
    return ast.parse("\n" * (piece.line - 1) + piece.text, piece.file).body[0]


def compile_piece(piece: Piece, without: Sequence[int] = ()) -> CodeType:
    """The code of a module that has this definition and nothing else; it is in the scopes that it is in.

    Parameters
    ----------
    without
        The decorators that are left out, counted from the first.

    Raises
    ------
    SyntaxError
        When this Python doesn't know the syntax.
    """
    node = _parse(piece)
    if without:
        node.decorator_list = [d for i, d in enumerate(node.decorator_list) if i not in without]
    body = [node]
    if piece.within:
        body = _inside(f"class {piece.within}: pass", body)
    if piece.free:
        body = _inside(f"def scope({', '.join(piece.free)}): pass", body)
    flags = piece.flags & FEATURES
    code: CodeType = compile(ast.Module(body=body, type_ignores=[]), piece.file, "exec", flags, dont_inherit=True)
    return code


def _inside(head: str, body: list[Any]) -> list[Any]:
    outer: Any = ast.parse(head).body[0]
    outer.body = body
    return [outer]


def code_of(piece: Piece) -> CodeType:
    r"""The code object of a function's piece.

    Examples
    --------
    >>> code = code_of(Piece("cell.py", "def f(x):\n    return x\n", 7, None, "f"))
    >>> code.co_name, code.co_firstlineno
    ('f', 7)
    """
    found = find_code(compile_piece(piece), piece.name, piece.line)
    if found is None:
        raise ValueError(f"{piece.file}, line {piece.line}: there is no {piece.name}")
    return found


def find_code(code: CodeType, name: str, line: int) -> CodeType | None:
    """The outermost function of that name and first line."""
    todo = [code]
    while todo:
        code = todo.pop(0)
        if code.co_name == name and code.co_firstlineno == line:
            return code
        todo += [const for const in code.co_consts if isinstance(const, CodeType)]
    return None


#: What the functions and classes of ``__main__`` were made of here.
_pieces: weakref.WeakKeyDictionary[Any, Piece] = weakref.WeakKeyDictionary()


def _remember(made: Any, piece: Piece) -> None:
    try:
        _pieces[made] = piece
    except TypeError:  # of a metaclass without a hash: it is made anew each time that it comes
        return


def _piece_of(made: Any) -> Piece | None:
    try:
        return _pieces.get(made)
    except TypeError:  # as above
        return None


#: What has come with arguments and was given its name in ``__main__``.
_brought: dict[str, Any] = {}


class Space:
    """The globals of what one deploy brings: one namespace for the notebook, and one for each other module.

    What is unpickled inside ``with space.open():`` goes there.

    Parameters
    ----------
    known
        For arguments: what ``__main__`` has of the same source stays as it is.
    """

    def __init__(self, known: bool = False) -> None:
        self.known = known
        self._kept: dict[int, Any] = {}
        self._namespaces: dict[str, dict[str, Any]] = {}

    def keep(self, piece: Piece) -> Any:
        """What there is of this source already, if that counts; else None."""
        if not self.known or piece.free:
            return None
        found = vars(sys.modules["__main__"]).get(piece.name)
        known = _piece_of(found) if isinstance(found, (type, FunctionType)) else None
        if known is None or (known.text, known.flags) != (piece.text, piece.flags):
            return None
        self._kept[id(found)] = found
        return found

    def is_kept(self, made: Any) -> bool:
        """Whether something was there before."""
        return id(made) in self._kept

    def name(self, piece: Piece, made: Any) -> None:
        """Let a class that came with arguments be found by its name, so that it can be part of results."""
        main = vars(sys.modules["__main__"])
        if self.known and main.get(piece.name) is _brought.get(piece.name):
            main[piece.name] = _brought[piece.name] = made

    @contextmanager
    def open(self) -> Iterator[None]:
        """Make functions and classes here meanwhile."""
        token = _space.set(self)
        try:
            yield
        finally:
            _space.reset(token)

    def namespace(self, key: str, base: Mapping[str, Any] = {}) -> dict[str, Any]:
        """One of them, made when it is asked for first."""
        found = self._namespaces.get(key)
        if found is None:
            found = self._namespaces[key] = {"__builtins__": builtins, **base}
        return found

    def add(self, later: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Set globals: ``(key of the namespace, {name: value})``."""
        for key, values in later:
            self.namespace(key).update(values)

    def main(self) -> dict[str, Any]:
        """The notebook's."""
        return self.namespace("__main__", {"__name__": "__main__"})


_space: ContextVar[Space] = ContextVar("kubetorch-space")


# -- what the pickles call ---------------------------------------------------------------------------------------------


def make_function(key: str, base: Mapping[str, Any], piece: Piece, cells: Mapping[str, CellType]) -> FunctionType:
    """A function without its globals, which `set_globals` sets."""
    space = _space.get()
    if (found := space.keep(piece)) is not None:
        return found  # type: ignore[no-any-return]
    code = code_of(piece)
    closure = tuple(cells[name] for name in code.co_freevars)
    function = FunctionType(code, space.namespace(key, base), piece.name, None, closure)
    _remember(function, piece)
    return function


def set_globals(key: str, values: Mapping[str, Any], submodules: Sequence[Any]) -> None:
    """Give functions what they use; it is a step of its own, to be done before what comes next is unpickled.

    The submodules are those that code uses as attributes of a package; they are imported by being unpickled.
    """
    _space.get().namespace(key).update(values)


def set_function(function: FunctionType, state: tuple[None, Mapping[str, Any], Mapping[str, Any]]) -> None:
    """Give a function what it has: ``(set_globals(...), __dict__, attributes)``."""
    _, own, attributes = state
    if _space.get().is_kept(function):
        return
    function.__dict__.update(own)
    for name, value in attributes.items():
        setattr(function, name, value)


def make_class(
    key: str, base: Mapping[str, Any], piece: Piece, needed: Mapping[str, Any], without: Sequence[int], bound: bool
) -> Any:
    """Execute a class statement.

    Parameters
    ----------
    key, base
        The namespace, and what it begins with.
    piece, without
        As for `compile_piece`.
    needed
        The globals that it uses while it is executed.
    bound
        Whether its name stands for it.
    """
    space = _space.get()
    if (found := space.keep(piece)) is not None:
        return found
    namespace = space.namespace(key, base)
    namespace.update(needed)
    made: dict[str, Any] = {}
    main = vars(sys.modules["__main__"])
    # dataclasses and typing look names of annotations up in the module that the class says it is of.
    lent = [name for name in namespace if name not in main]
    main.update((name, namespace[name]) for name in lent)
    try:
        exec(compile_piece(piece, without), namespace, made)
    finally:
        for name in lent:
            main.pop(name, None)
    cls = made[piece.name]
    _remember(cls, piece)
    if bound:
        namespace[piece.name] = cls
        space.name(piece, cls)
    return cls


def make_plain(kind: str, name: str, module: str, parts: tuple[Any, ...]) -> Any:
    """A class that was made by a call and not by a statement.

    Parameters
    ----------
    kind, parts
        ``"tuple"``: the fields and defaults of a named tuple; ``"enum"``: the base and the members.
    name, module
        The class's.
    """
    found = vars(sys.modules["__main__"]).get(name) if _space.get().known and module == "__main__" else None
    if kind == "tuple":
        fields, defaults = parts
        if isinstance(found, type) and getattr(found, "_fields", None) == fields:
            return found
        return collections.namedtuple(name, fields, defaults=defaults, module=module)  # noqa: PYI024 - not known here
    base, members = parts
    if isinstance(found, enum.EnumMeta) and [(m.name, m.value) for m in cast("Any", found)] == members:
        return found
    return base(name, members, module=module)


def set_class(cls: Any, state: tuple[None, Mapping[str, Any]]) -> None:
    """Give a class the attributes that it has got since its statement: ``(set_globals(...), attributes)``."""
    if not _space.get().is_kept(cls):
        for name, value in state[1].items():
            setattr(cls, name, value)


def member(owner: Any, name: str) -> Any:
    """The function or class of that name that is defined in a class."""
    found = vars(owner)[name]
    return found.__func__ if isinstance(found, (staticmethod, classmethod)) else found


def fill_cell(cell: CellType, contents: tuple[Any]) -> None:
    """Set a closure's variable."""
    cell.cell_contents = contents[0]


def make_alias(name: str, value: Any) -> Any:
    """A ``type X = ...`` of Python 3.12 and later."""
    import typing

    return typing.TypeAliasType(name, value)  # type: ignore[attr-defined, unused-ignore]


def load_arguments(data: bytes, buffers: Sequence[Any]) -> Any:
    """What a call's arguments are when there are functions or classes of the notebook among them."""
    space = Space(known=True)
    with space.open():
        unpickler = pickle.Unpickler(io.BytesIO(data), buffers=buffers)
        value = unpickler.load()
        while (later := unpickler.load()) is not None:
            space.add(later)
    return value
