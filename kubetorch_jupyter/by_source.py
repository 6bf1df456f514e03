"""A callable for a pod of another Python: pickled as always, with sources where the pickle would have bytecode.

Bytecode is good for its own minor version only. All else that a pickle of a notebook's function has is good for any:
captured values, closures, defaults, attributes. So there is one walk, pickle's own, in which each function goes as the
text that it was compiled from, and each class as its statement; `pod_server.by_source` makes them again.
"""

from __future__ import annotations

import abc
import ast
import enum
import functools
import inspect
import io
import os
import pickle
import pickletools
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from cloudpickle import cloudpickle as _cp

from pod_server import by_source as far
from pod_server import serialization
from pod_server._pickling import Pickler
from pod_server._unpicklable import describe

from .definitions import NoSource, class_piece, function_piece, functions_of, is_written, names_of_class
from .fingerprint import is_by_value

__all__ = ["NoSource", "SourcePickler", "dump_arguments", "dumps", "failure"]

#: What of a namespace its functions may look at.
_OF_MODULE = ("__package__", "__name__", "__path__", "__file__")
_NAMES = ("__name__", "__qualname__", "__module__", "__doc__")


def dumps(value: Any) -> list[serialization.Buffer]:
    """The buffers of a value, without a byte of bytecode.

    Raises
    ------
    NoSource
        When a function or class can't go by its source.
    Exception
        What else pickling raises.
    """
    buffers = _dump(value)
    if b"CodeType" in buffers[0] and _has_bytecode(bytes(buffers[0])):
        raise NoSource("something that it uses has bytecode in a pickle of its own, as numba's functions do")
    return buffers


def dump_arguments(value: Any, *, snapshot: bool) -> list[serialization.Buffer]:
    """The buffers of a call's arguments, in which functions and classes of the notebook go by their source too.

    What the pod has of the same source stays what it is there.

    Raises
    ------
    pod_server.serialization.EncodeError
        When something can't be sent; names it, and a path to it.
    """
    picklers: list[SourcePickler] = []
    try:
        buffers = _dump(value, snapshot, picklers)
    except Exception as e:
        if isinstance(e, MemoryError):
            raise
        path, type_name, reason = describe(value, e, failure)
        if isinstance(e, NoSource):
            reason = f"the pod has another Python, so that functions and classes go by their source, and {e}"
        raise serialization.EncodeError(f"can't send {path} ({type_name}): {reason}", path, type_name) from e
    if (size := serialization.nbytes(buffers)) > serialization.MAX_BYTES:
        raise serialization.TooLargeError(size)
    if not picklers[-1].has_sources:
        return buffers
    call = _Step(far.load_arguments, bytes(buffers[0]), [pickle.PickleBuffer(b) for b in buffers[1:]])
    return [pickle.dumps(call, 5, buffer_callback=lambda _: False), *buffers[1:]]


def _has_bytecode(data: bytes) -> bool:
    """Whether a pickle is among the bytes that a pickle has, and code in it."""
    file = io.BytesIO(data)
    while file.tell() < len(data):
        for _, value, _ in pickletools.genops(file):
            if isinstance(value, (bytes, bytearray)) and value[:1] == b"\x80" and b"CodeType" in value:
                return True
    return False


def _dump(value: Any, snapshot: bool = False, made: list[SourcePickler] | None = None) -> list[serialization.Buffer]:
    picklers = made if made is not None else []

    def make(kind: type[SourcePickler], *args: Any, **kwargs: Any) -> SourcePickler:
        picklers.append(kind(*args, **kwargs))
        return picklers[-1]

    try:
        return serialization.dump_with(functools.partial(make, SourcePickler), value, snapshot)
    except NoSource:  # if only an annotation is in the way, its text does as well
        return serialization.dump_with(functools.partial(make, _Bare), value, snapshot)


def failure(value: object) -> Exception | None:
    """Why a value can't go, or None when it can: as `serialization.failure`."""
    try:
        dumps(value)
    except Exception as e:  # whatever a user's __reduce__ raises is the answer
        return e
    return None


def _is_users_class(obj: Any) -> bool:
    return obj.__module__ not in sys.builtin_module_names and is_by_value(obj)


def _say(what: str, obj: Any, reason: NoSource | str) -> NoSource:
    name = obj.__qualname__
    if name.endswith("<lambda>"):
        code = obj.__code__
        what, name = "lambda", f"of line {code.co_firstlineno} in {os.path.basename(code.co_filename)}"
    return NoSource(f"the {what} {name} {reason}")


class _Step:
    """In a pickle: a call that is made when the reader comes to it."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._call = function, args

    def __reduce__(self) -> Any:
        return self._call


class SourcePickler(Pickler):
    """cloudpickle's, for another Python."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: The namespaces of functions: a key for each, and the dict itself, so that its id stays its own.
        self._keys: dict[int, tuple[str, Any]] = {}
        #: Classes whose statement has been gone into, by id, and how often.
        self._begun: dict[int, int] = {}
        #: Globals to be set at the end: ``(key of the namespace, {name: value})``.
        self._later: list[tuple[str, dict[str, Any]]] = []

    @property
    def has_sources(self) -> bool:
        """Whether there was anything that goes by its source."""
        return bool(self._keys or self._begun)

    def dump(self, obj: Any) -> None:
        """Write the value, what has to wait until then, and None."""
        super().dump(obj)
        while self._later:
            later, self._later = self._later, []
            super().dump(later)
        super().dump(None)

    def reducer_override(self, obj: Any) -> Any:
        """What becomes of anything that isn't of a basic builtin type."""
        kind = type(obj)
        if isinstance(obj, type):
            return self._class(obj) if _is_users_class(obj) else super().reducer_override(obj)
        if kind is types.FunctionType:
            return self._function(obj) if is_by_value(obj) else NotImplemented
        if kind is types.MethodType:
            return _method(obj)
        if kind is types.CellType:
            return _cell(obj)
        if kind is types.CodeType:
            raise NoSource(f"the code object {obj.co_name} is bytecode")
        reduced = super().reducer_override(obj)
        return self._by_name(obj) if reduced is NotImplemented else reduced

    def _by_name(self, obj: Any) -> Any:
        """As its own ``__reduce__`` says; which may be a name, and names of the notebook mean nothing to the pod."""
        kind = type(obj)
        if kind in self.dispatch_table:
            return NotImplemented
        reduced = obj.__reduce_ex__(5)
        if not isinstance(reduced, str) or (_cp._whichmodule(obj, reduced) or kind.__module__) != "__main__":
            return reduced
        if kind is typing.NewType:
            return typing.NewType, (obj.__name__, obj.__supertype__)
        if kind is getattr(typing, "TypeAliasType", ()):
            return far.make_alias, (obj.__name__, obj.__value__)
        raise NoSource(f"the {kind.__name__} {reduced} goes by a name that the pod doesn't have")

    # -- functions ---------------------------------------------------------------------------------------------------

    def _space(self, namespace: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The key of a namespace in the pod, and what it begins with."""
        base = {name: namespace[name] for name in _OF_MODULE if isinstance(namespace.get(name), (str, list))}
        if id(namespace) not in self._keys:
            name = str(namespace.get("__name__"))
            taken = any(key == name for key, _ in self._keys.values())
            self._keys[id(namespace)] = (f"{name}:{len(self._keys)}" if taken else name, namespace)
        return self._keys[id(namespace)][0], base

    def _globals(self, key: str, used: dict[str, Any], submodules: list[Any]) -> _Step:
        """The step that sets globals; a class whose statement is being gone into has to wait."""
        later = {
            name: value for name, value in used.items() if isinstance(value, type) and self._begun.get(id(value)) == 1
        }
        if later:
            self._later.append((key, later))
        return _Step(far.set_globals, key, {n: v for n, v in used.items() if n not in later}, submodules)

    def _annotations(self, function: types.FunctionType) -> dict[str, Any]:
        return dict(function.__annotations__)

    def _function(self, function: types.FunctionType) -> Any:
        owner, _, name = function.__qualname__.rpartition(".")
        if owner and "<locals>" not in owner:
            cls = _find(function.__globals__, owner)
            if isinstance(cls, type) and _is_users_class(cls) and name in vars(cls):
                value = vars(cls)[name]
                if value is function or getattr(value, "__func__", None) is function:
                    return far.member, (cls, name)
        try:
            piece = function_piece(function)
        except NoSource as e:
            raise _say("function", function, e) from None
        code = function.__code__
        used = {
            name: function.__globals__[name]
            for name in _cp._extract_code_globals(code)
            if name in function.__globals__ and name != "__builtins__"
        }
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        attributes = {name: getattr(function, name) for name in _NAMES}
        attributes |= {"__defaults__": function.__defaults__, "__kwdefaults__": function.__kwdefaults__}
        attributes["__annotations__"] = self._annotations(function)
        key, base = self._space(function.__globals__)
        submodules = _submodules(code, [*used.values(), *map(_contents, cells.values())])
        state = (self._globals(key, used, submodules), function.__dict__, attributes)
        return far.make_function, (key, base, piece, cells), state, None, None, far.set_function

    # -- classes -----------------------------------------------------------------------------------------------------

    def _class(self, cls: type) -> Any:
        # It is asked for again as long as its arguments aren't written: something that its statement needs refers to
        # it. Then it is made from there, and pickle drops what was begun; a second time there is no end to it.
        self._begun[id(cls)] = self._begun.get(id(cls), 0) + 1
        if self._begun[id(cls)] > 2:
            raise _say("class", cls, "needs itself while its statement is executed")
        namespace = _namespace_of(cls)
        owner, _, name = cls.__qualname__.rpartition(".")
        if owner and "<locals>" not in owner:
            outer = _find(namespace, owner)
            if isinstance(outer, type) and vars(outer).get(name) is cls:
                return getattr, (outer, name)
        try:
            piece, node = class_piece(cls)
            without = [i for i, d in enumerate(node.decorator_list) if _is_users_decorator(d, namespace)]
            now, later = names_of_class(piece, node, without)
        except NoSource as e:
            if (plain := _plain(cls)) is not None:
                return plain
            raise _say("class", cls, e) from None
        needed = {name: namespace[name] for name in now if name in namespace and namespace[name] is not cls}
        used = {name: namespace[name] for name in later if name in namespace}
        # Names of libraries in annotations that are strings (ClassVar): dataclasses look for them at once.
        needed |= {name: value for name, value in used.items() if _is_librarys(value)}
        last = piece.line + piece.text.count("\n")
        attributes = dict(_changed(cls, piece.file, range(piece.line, last)))
        codes = [f.__code__ for _, f in functions_of(cls)]
        key, base = self._space(namespace)
        submodules = [m for code in codes for m in _submodules(code, [*needed.values(), *used.values()])]
        state = (self._globals(key, used, submodules), attributes)
        bound = namespace.get(cls.__name__) is cls
        return far.make_class, (key, base, piece, needed, tuple(without), bound), state, None, None, far.set_class


class _Bare(SourcePickler):
    """The same with the names of functions' annotations in place of what they are."""

    def _annotations(self, function: types.FunctionType) -> dict[str, Any]:
        return {name: inspect.formatannotation(value) for name, value in function.__annotations__.items()}


# -- what things are ---------------------------------------------------------------------------------------------------


def _method(method: types.MethodType) -> Any:
    """By its name, so that it is the class's own; unless it is bound to something that doesn't have it so."""
    name = method.__func__.__name__
    try:
        plain = getattr(method.__self__, name, None) == method
    except Exception:  # a __getattr__ of the user's
        plain = False
    return (getattr, (method.__self__, name)) if plain else (types.MethodType, (method.__func__, method.__self__))


def _cell(cell: types.CellType) -> Any:
    """Made empty and filled when what refers to it is there: functions that share a variable go on to share it."""
    try:
        return types.CellType, (), (cell.cell_contents,), None, None, far.fill_cell
    except ValueError:  # not set yet
        return types.CellType, ()


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None


def _submodules(code: types.CodeType, values: Iterable[Any]) -> list[Any]:
    """``scipy.stats``, where code says so and only ``scipy`` is a variable."""
    found: list[Any] = _cp._find_imported_submodules(code, list(values))
    return found


def _find(namespace: dict[str, Any], dotted: str) -> Any:
    first, *rest = dotted.split(".")
    found = namespace.get(first)
    for name in rest:
        found = vars(found).get(name) if isinstance(found, type) else None
    return found


def _namespace_of(cls: type) -> dict[str, Any]:
    """The globals of a class's statement."""
    for _, function in functions_of(cls):
        if function.__module__ == cls.__module__ and function.__globals__.get("__name__") == cls.__module__:
            return function.__globals__
    return vars(sys.modules[cls.__module__]) if cls.__module__ in sys.modules else {}


def _plain(cls: Any) -> Any:
    """A named tuple or enum that was made by a call: what makes another; None for anything else."""
    if cls.__bases__ == (tuple,) and hasattr(cls, "_field_defaults"):
        parts: Any = (cls._fields, tuple(cls._field_defaults.values()))
        return far.make_plain, ("tuple", cls.__name__, cls.__module__, parts)
    if isinstance(cls, enum.EnumMeta) and len(cls.__bases__) == 1 and cls.__bases__[0].__module__ == "enum":
        parts = (cls.__bases__[0], [(m.name, m.value) for m in cast("Any", cls)])
        return far.make_plain, ("enum", cls.__name__, cls.__module__, parts)
    return None


def _is_users_decorator(node: ast.expr, namespace: dict[str, Any]) -> bool:
    """Whether a class's decorator is the notebook's own: what it has done to the class is seen in the class."""
    while isinstance(node, (ast.Call, ast.Attribute, ast.Subscript)):
        node = node.func if isinstance(node, ast.Call) else node.value
    value = namespace.get(node.id) if isinstance(node, ast.Name) else None
    if isinstance(value, types.FunctionType):
        return is_by_value(value)
    return _is_users_class(value if isinstance(value, type) else type(value))


def _is_librarys(value: Any) -> bool:
    if isinstance(value, type):
        return not _is_users_class(value)
    return isinstance(value, types.ModuleType) or type(value).__module__ == "typing"


_WRAPPERS = (types.FunctionType, staticmethod, classmethod, property, functools.cached_property)


def _changed(cls: type, file: str, lines: range) -> Iterator[tuple[str, Any]]:
    """The attributes of a class that its statement doesn't give it, or that may have changed since."""
    functions: dict[str, list[types.FunctionType]] = {}
    for name, function in functions_of(cls):
        functions.setdefault(name, []).append(function)
    plain = type(cls) in (type, abc.ABCMeta) and not (issubclass(cls, tuple) and hasattr(cls, "_fields"))
    for name, value in list(vars(cls).items()):
        if isinstance(value, _WRAPPERS):
            codes = [f.__code__ for f in functions.get(name, ()) if is_by_value(f)]
            by_user = [c for c in codes if is_written(c.co_filename)]
            if by_user and not any(c.co_filename == file and c.co_firstlineno in lines for c in by_user):
                yield name, value
        elif plain and not _is_pythons(name) and not isinstance(value, type) and not hasattr(type(value), "__get__"):
            yield name, value


def _is_pythons(name: str) -> bool:
    return name == "_abc_impl" or (name.startswith("__") and name.endswith("__"))
