"""What a callable is made of, and a hash of it that changes exactly when the code or what it captures does.

A pickle differs from kernel to kernel (file names hold process ids, classes get random ids), so a hash of it says
"changed" when nothing did. `Survey` goes through a callable as cloudpickle would and hashes what it finds by content:
the bytecode and constants of functions and classes that go by value, captured globals, closures and defaults; arrays by
their bytes; other objects by how they would be pickled. On the way it notes which variables are captured and which
modules are needed.

File names, line numbers, comments, ids and the order of sets have no part in the hash. What can't be hashed by content
(a reduction that fails, a structure that is nested too deeply) counts as changed each time; `Survey.unstable` says
what.
"""

from __future__ import annotations

import copyreg
import dis
import enum
import functools
import hashlib
import marshal
import os
import pickle
import struct
import sys
import types
import typing
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from cloudpickle import cloudpickle as _cp

from .sources import is_local_file

__all__ = ["Survey", "class_id", "is_by_value", "is_users"]

_ATOMS = frozenset((type(None), bool, int, float, complex, str, bytes, type(Ellipsis)))
#: Containers of more items are first tried as a whole.
_MANY = 64
#: Attributes of a class that Python makes itself, or that say nothing about the code.
_CLASS_NOISE = frozenset(
    (
        *("__dict__", "__weakref__", "__module__", "_abc_impl", "__slotnames__", "__firstlineno__"),
        *("__static_attributes__", "__annotate_func__", "__annotations_cache__", "__annotate__"),
        # pydantic makes these of the fields, which count, and writes the address of the class into them.
        *("__pydantic_core_schema__", "__pydantic_validator__", "__pydantic_serializer__"),
    )
)


def is_by_value(obj: Any) -> bool:
    """Whether a function or class travels itself, rather than by the name of a module that the pod imports."""
    return not _cp._should_pickle_by_reference(obj)


def _code_globals(code: types.CodeType) -> list[str]:
    """Global names that code and the code inside it may use, in a fixed order."""
    return sorted(_cp._extract_code_globals(code))


def _code_imports(code: types.CodeType) -> set[str]:
    """Modules that code and the code inside it import absolutely."""
    names = {i.argval for i, level in _import_levels(code) if level == 0 and isinstance(i.argval, str)}
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names |= _code_imports(const)
    return names


def _import_levels(code: types.CodeType) -> Iterable[tuple[dis.Instruction, Any]]:
    level: Any = None
    before: Any = None
    for i in dis.get_instructions(code):
        if i.opname == "IMPORT_NAME":
            yield i, level  # the level is loaded before the list of names
        if i.opname not in ("CACHE", "EXTENDED_ARG"):
            level, before = before, i.argval


class _OnlyBuiltins(pickle.Pickler):
    """Fails at whatever isn't made of builtin types, at the speed of C."""

    def reducer_override(self, obj: Any) -> Any:
        raise TypeError


class _Sink:
    def write(self, data: Any) -> int:
        return len(data)


def _marshal(value: Any) -> bytes | None:
    """The content of a large container of nothing but builtin types; None for any other.

    Python's own `marshal` (version 2, where nothing depends on identity) sorts the members of sets, but takes arrays
    for bytes, so that pickle has to say first that there are none.
    """
    try:
        _OnlyBuiltins(_Sink(), 5).dump(value)
        return marshal.dumps(value, 2)
    except (TypeError, ValueError, RecursionError):  # something else in it, or too deep for either
        return None


@functools.lru_cache(maxsize=1024)
def is_users(file: str) -> bool:
    """Whether code was written by the user: not by a library's decorator, nor generated as by `dataclasses`."""
    return file != "<string>" and (not os.path.isabs(file) or is_local_file(file))


class Survey:
    """Everything that a callable takes with it.

    Parameters
    ----------
    name
        What messages call the callable.

    Attributes
    ----------
    captured
        Variables that go by value, in the order in which they are met: ``train.<globals>.table`` and the value.
        Functions and classes of the notebook are listed as well.
    modules
        Full names of the modules that are needed, other than ``__main__``.
    files
        File names of the code that goes by value.
    unstable
        What could not be hashed by content.
    """

    def __init__(self, name: str = "value") -> None:
        self.captured: dict[str, Any] = {}
        self.modules: set[str] = set()
        self.files: set[str] = set()
        self.unstable: list[str] = []
        self._name = name
        self._hash = hashlib.blake2b(digest_size=16)
        self._numbers: dict[int, int] = {}
        self._keep: list[Any] = []
        self._seen_variables: set[tuple[int, str]] = set()

    def add(self, value: Any, path: str | None = None) -> None:
        """Go through a value."""
        path = self._name if path is None else path
        try:
            self._visit(value, path)
        except Exception as e:  # the user's own code (a property, a __getattr__), or another thread that changes things
            self._give_up(path, f"{type(e).__name__} while it was looked at")

    def hexdigest(self) -> str:
        """The hash of all that was added."""
        return self._hash.hexdigest()

    # -- tokens ------------------------------------------------------------------------------------------------------

    def _put(self, tag: str, data: bytes | str = b"") -> None:
        raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
        self._hash.update(f"{tag}{len(raw)}:".encode())
        self._hash.update(raw)

    def _give_up(self, path: str, why: str) -> None:
        self.unstable.append(f"{path} ({why})")
        self._put("unstable", os.urandom(16))

    def _visit(self, value: Any, path: str) -> None:
        cls = type(value)
        if cls in _ATOMS:
            self._put("atom", marshal.dumps(value, 2))
            return
        if cls is tuple or cls is frozenset:
            # Never by identity: equal ones may or may not be one object, which is nothing that the user decides.
            self._visit_container(value, cls, path)
            return
        number = self._numbers.get(id(value))
        if number is not None:
            self._put("again", str(number))
            return
        self._numbers[id(value)] = len(self._numbers)
        self._keep.append(value)
        try:
            self._visit_object(value, cls, path)
        except RecursionError:
            self._give_up(path, "nested too deeply")

    def _visit_object(self, value: Any, cls: type, path: str) -> None:
        if cls in (list, dict, set):
            self._visit_container(value, cls, path)
        elif cls is bytearray:
            self._put("bytearray", bytes(value))
        elif value is sys.stdout or value is sys.stderr:
            self._put("stream", "stdout" if value is sys.stdout else "stderr")
        elif isinstance(value, types.ModuleType):
            self._visit_module(value, path)
        elif isinstance(value, type):
            self._visit_class(value, path)
        elif isinstance(value, types.FunctionType):
            self._visit_function(value, path)
        elif cls is types.CodeType:
            self._visit_code(value, path)
        elif (visit := _SPECIAL.get(cls) or _SPECIAL_BY_NAME.get(f"{cls.__module__}.{cls.__qualname__}")) is not None:
            self._put("special", cls.__qualname__)
            for label, part in visit(value):
                self._visit(part, path + label)
        elif self._is_array(value):
            self._visit_array(value, path)
        else:
            self._visit_instance(value, cls, path)

    def _visit_container(self, value: Any, cls: type, path: str) -> None:
        self._put(cls.__name__, str(len(value)))
        if len(value) > _MANY and (data := _marshal(value)) is not None:
            self._put("plain", data)
            return
        if cls is dict:
            if set(map(type, value)) <= _ATOMS and set(map(type, value.values())) <= _ATOMS:
                self._put("atoms", marshal.dumps(value, 2))
                return
            for k, v in list(value.items()):
                self._visit(k, f"{path}.<key>")
                self._visit(v, f"{path}[{k!r}]" if type(k) in _ATOMS else f"{path}[...]")
        elif set(map(type, value)) <= _ATOMS:
            if cls in (set, frozenset):
                parts = sorted(marshal.dumps(v, 2) for v in value)
                self._put("atoms", b"".join(struct.pack("<I", len(p)) + p for p in parts))
            else:
                self._put("atoms", marshal.dumps(value, 2))
        elif cls in (set, frozenset):
            for digest in sorted(self._apart(v, path) for v in value):
                self._put("item", digest)
        else:
            for i, v in enumerate(value):
                self._visit(v, f"{path}[{i}]")

    def _apart(self, value: Any, path: str) -> bytes:
        """A hash of its own, for members of sets, whose order means nothing."""
        other = Survey(path)
        other._visit(value, path)
        self.modules |= other.modules
        self.files |= other.files
        self.unstable += other.unstable
        self._keep += other._keep
        return other._hash.digest()

    # -- code --------------------------------------------------------------------------------------------------------

    def _reference(self, obj: Any) -> None:
        """Something that the pod imports."""
        module = _cp._whichmodule(obj, obj.__qualname__) or ""
        self._put("reference", f"{module}:{obj.__qualname__}")
        if module not in ("", "builtins"):
            self.modules.add(module)

    def _visit_module(self, module: types.ModuleType, path: str) -> None:
        self._put("module", module.__name__)
        if module.__name__ in sys.modules:
            self.modules.add(module.__name__)
        else:  # made by hand; travels by value
            self._visit(
                {k: v for k, v in vars(module).items() if k not in ("__builtins__", "__loader__", "__spec__")}, path
            )

    def _visit_function(self, f: types.FunctionType, path: str) -> None:
        if not is_by_value(f):
            self._reference(f)
            return
        if f.__module__ not in (None, "__main__"):
            self.modules.add(f.__module__)
        self._put("function", f.__qualname__)
        self._visit_code(f.__code__, path)
        self._visit(f.__defaults__, f"{path}.<defaults>")
        self._visit(f.__kwdefaults__, f"{path}.<defaults>")
        self._visit(getattr(f, "__annotations__", None), f"{path}.__annotations__")
        for key, value in sorted(f.__dict__.items()):
            self._put("attribute", key)
            self._visit(value, path if key == "__wrapped__" else f"{path}.{key}")
        for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=False):
            self._put("free", name)
            try:
                content = cell.cell_contents
            except ValueError:  # not set yet
                self._put("empty")
                continue
            self._variable(f, cell, name, content, f"{path}.<closure>.{name}")
        for name in _code_globals(f.__code__):
            if name in f.__globals__ and name != "__builtins__":
                self._put("global", name)
                self._variable(f, f.__globals__, name, f.__globals__[name], f"{path}.<globals>.{name}")

    def _variable(self, f: types.FunctionType, where: Any, name: str, value: Any, path: str) -> None:
        """A captured variable; one that several functions use is listed once."""
        key = (id(where), name)
        if key not in self._seen_variables:
            self._seen_variables.add(key)
            self._keep.append(where)
            if not isinstance(value, types.ModuleType) and is_users(f.__code__.co_filename):
                self.captured[path] = value
        self._visit(value, path)

    def _visit_code(self, code: types.CodeType, path: str) -> None:
        self.files.add(code.co_filename)
        self.modules |= {name for name in _code_imports(code) if name != "__main__"}
        self._put("code", code.co_name)
        self._put("bytes", code.co_code)
        self._put("table", getattr(code, "co_exceptiontable", b""))
        self._put("flags", f"{code.co_flags} {code.co_argcount} {code.co_posonlyargcount} {code.co_kwonlyargcount}")
        for names in (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars):
            self._put("names", "\0".join(names))
        for const in code.co_consts:
            if isinstance(const, types.CodeType):
                self._visit_code(const, path)
            else:
                self._visit(const, path)

    def _visit_class(self, cls: type, path: str) -> None:
        if cls.__module__ == "builtins" or not is_by_value(cls):
            self._reference(cls)
            return
        if cls.__module__ not in (None, "__main__"):
            self.modules.add(cls.__module__)
        self._put("class", cls.__qualname__)
        self._visit(type(cls), f"{path}.<metaclass>")
        for base in cls.__bases__:
            self._visit(base, f"{path}.<base {base.__name__}>")
        namespace: dict[str, Any] = dict(vars(cls))
        if issubclass(cls, enum.Enum):
            namespace = dict(_cp._enum_getstate(cls)[0])
            self._visit({m.name: m.value for m in cls}, path)
        for name, value in sorted(namespace.items()):
            if name in _CLASS_NOISE or isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType)):
                continue
            self._put("attribute", name)
            self._visit(value, f"{path}.{name}")

    # -- objects -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _is_array(value: Any) -> bool:
        numpy = sys.modules.get("numpy")
        array = getattr(numpy, "ndarray", None)
        return array is not None and type(value) is array

    def _visit_array(self, array: Any, path: str) -> None:
        self.modules.add("numpy")
        self._put("array", f"{array.dtype.descr if array.dtype.names else array.dtype.str} {array.shape}")
        if array.dtype.hasobject:
            self._visit(array.tolist(), path)
            return
        if not array.flags.c_contiguous:
            array = array.T if array.flags.f_contiguous else array.copy()
            self._put("order", "F" if array.flags.c_contiguous else "C")
        if array.size:
            self._hash.update(array.reshape(-1).view("u1"))

    def _visit_instance(self, value: Any, cls: type, path: str) -> None:
        reducer = copyreg.dispatch_table.get(cls)
        try:
            reduced: Any = reducer(value) if reducer is not None else value.__reduce_ex__(4)
        except Exception as e:  # cloudpickle may have its own way; here it only means that nothing can be compared
            self._visit(cls, f"{path}.__class__")
            self._give_up(path, f"{cls.__qualname__}: {type(e).__name__}")
            return
        if isinstance(reduced, str):
            module = _cp._whichmodule(value, reduced) or cls.__module__
            # Only the package: which of its modules the search comes upon first depends on what was imported when.
            self._put("name", f"{module.partition('.')[0]}:{reduced}")
            if module not in ("__main__", "builtins"):
                self.modules.add(module)
            return
        self._put("object")
        function, arguments = reduced[:2]
        self._visit(function, f"{path}.<constructor>")
        self._visit(arguments, path)
        state = reduced[2] if len(reduced) > 2 else None
        if isinstance(state, dict):
            self._put("state", str(len(state)))
            for k, v in list(state.items()):
                self._visit(k, path)
                self._visit(v, f"{path}.{k}")
        else:
            self._visit(state, path)
        for items in reduced[3:5]:
            self._visit(None if items is None else list(items), path)
        self._visit(reduced[5] if len(reduced) > 5 else None, path)


def class_id(cls: type) -> str | None:
    """What a class of the notebook is called on both sides, the same in each kernel that defines it so.

    None when it can't be compared. It is made when the class first travels, and holds what its methods capture then: a
    class that is defined again after that has changed is another one.

    Examples
    --------
    >>> class Point: x = 1
    >>> again, Point = Point, type("Point", (), {"x": 1, "__module__": Point.__module__})
    >>> class_id(Point) == class_id(again)
    True
    """
    survey = Survey(cls.__qualname__)
    survey.add(cls)
    return None if survey.unstable else f"kubetorch-{survey.hexdigest()}"


def _parts_of_method(method: types.MethodType) -> Iterable[tuple[str, Any]]:
    return (".__func__", method.__func__), (".__self__", method.__self__)


def _parts_of_wrapper(wrapper: Any) -> Iterable[tuple[str, Any]]:
    return (("", wrapper.__func__),)


def _parts_of_property(value: property) -> Iterable[tuple[str, Any]]:
    return ((".fget", value.fget), (".fset", value.fset), (".fdel", value.fdel))


def _parts_of_cached_property(value: Any) -> Iterable[tuple[str, Any]]:
    return (("", value.func), ("", value.attrname))


def _parts_of_lru_cache(value: Any) -> Iterable[tuple[str, Any]]:
    return (("", value.__wrapped__), ("", value.cache_parameters()))


def _parts_of_mapping(value: Any) -> Iterable[tuple[str, Any]]:
    return (("", dict(value)),)


def _parts_of_cell(value: types.CellType) -> Iterable[tuple[str, Any]]:
    try:
        return (("", value.cell_contents),)
    except ValueError:  # not set yet
        return ()


def _parts_of_view(value: Any) -> Iterable[tuple[str, Any]]:
    return (("", list(value)),)


def _parts_of_typevar(value: Any) -> Iterable[tuple[str, Any]]:
    return (("", value.__name__), ("", value.__bound__), ("", value.__constraints__))


def _parts_of_pydantic_decorator(value: Any) -> Iterable[tuple[str, Any]]:
    """All but ``cls_ref``, which has the address of the class in it."""
    return (("", value.cls_var_name), ("", value.func), ("", value.info))


def _parts_of_nothing(value: Any) -> Iterable[tuple[str, Any]]:
    return ()


#: Types that don't reduce themselves, and what they are made of: what to write behind the path, and the part.
_SPECIAL: dict[type, Callable[[Any], Iterable[tuple[str, Any]]]] = {
    types.MethodType: _parts_of_method,
    staticmethod: _parts_of_wrapper,
    classmethod: _parts_of_wrapper,
    property: _parts_of_property,
    functools.cached_property: _parts_of_cached_property,
    functools._lru_cache_wrapper: _parts_of_lru_cache,
    types.MappingProxyType: _parts_of_mapping,
    weakref.WeakKeyDictionary: _parts_of_mapping,
    weakref.WeakValueDictionary: _parts_of_mapping,
    types.CellType: _parts_of_cell,
    type({}.keys()): _parts_of_view,
    type({}.values()): _parts_of_view,
    type({}.items()): _parts_of_view,
    weakref.WeakSet: _parts_of_view,
    memoryview: lambda v: (("", bytes(v)),),
    typing.TypeVar: _parts_of_typevar,
    type(NotImplemented): _parts_of_nothing,
}

#: The same for types of libraries that need not be there.
_SPECIAL_BY_NAME: dict[str, Callable[[Any], Iterable[tuple[str, Any]]]] = {
    "pydantic._internal._decorators.Decorator": _parts_of_pydantic_decorator,
}
