"""What `serialization` pickles with: cloudpickle and what people have in cells; known classes stay as they are."""

from __future__ import annotations

import functools
import io
import logging
import pickle
import sys
import threading
import types
import weakref
from collections import ChainMap
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import cloudpickle
from cloudpickle import cloudpickle as _cp

from .loggers import reduce_logger

__all__ = ["ForeignCodeError", "NamePickler", "Pickler", "Unpickler", "failure", "name_failure", "set_class_ids"]

Buffer = bytes | bytearray | memoryview


def _make_lru_cache(function: Any, parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _reduce_lru_cache(wrapper: Any) -> Any:
    """An ``@lru_cache`` function of a notebook by value; by itself it goes by the name that it has in ``__main__``."""
    if _cp._lookup_module_and_qualname(wrapper) is not None:
        return wrapper.__reduce__()
    return _make_lru_cache, (wrapper.__wrapped__, wrapper.cache_parameters())


def _make_cached_property(function: Any, name: str | None) -> Any:
    made = functools.cached_property(function)
    made.attrname = name
    return made


def _reduce_cached_property(value: Any) -> Any:
    """Python 3.11's has a lock, which can't be pickled."""
    return _make_cached_property, (value.func, value.attrname)


def _reduce_weak_dict(value: Any) -> Any:
    return type(value), (dict(value),)


#: Where the constructor of code objects takes the file's name (3.8 to 3.13).
_FILENAME = 10


class ForeignCodeError(Exception):
    """Bytecode of another Python came."""


_PYTHON = "{}.{}".format(*sys.version_info)


def _make_code(python: str, make: Any, args: tuple[Any, ...]) -> Any:
    """A code object, if its bytecode is this Python's: another one takes it without complaint and misbehaves."""
    if python != _PYTHON:
        raise ForeignCodeError(
            f"the function {args[_FILENAME + 1]} was compiled by Python {python}, this is {_PYTHON}, and bytecode is "
            "good for its own version only: use an image with the client's Python, or deploy the function"
        )
    return make(*args)


def _reduce_code(code: types.CodeType) -> Any:
    """With the name of its file, by which tracebacks find the cell's lines: cloudpickle 3.1.3 leaves it out."""
    make, args = _cp._code_reduce(code)
    return _make_code, (_PYTHON, make, (*args[:_FILENAME], code.co_filename, *args[_FILENAME + 1 :]))


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's, and a few things that people have in cells and that it can't pickle."""

    dispatch_table: ClassVar[Any] = ChainMap(
        {
            types.CodeType: _reduce_code,
            functools._lru_cache_wrapper: _reduce_lru_cache,
            functools.cached_property: _reduce_cached_property,
            logging.Logger: reduce_logger,
            weakref.WeakKeyDictionary: _reduce_weak_dict,
            weakref.WeakValueDictionary: _reduce_weak_dict,
        },
        cloudpickle.Pickler.dispatch_table,
    )

    def reducer_override(self, obj: Any) -> Any:
        """As cloudpickle's; packages that are lazy have modules of a class of their own, which go by name as others."""
        if obj is sys.stdout or obj is sys.stderr:  # cloudpickle knows only those that are files
            return getattr, (sys, "stdout" if obj is sys.stdout else "stderr")
        if isinstance(obj, type):
            _identify(obj)
        elif type(obj) is not types.ModuleType and issubclass(type(obj), types.ModuleType):
            return _cp._module_reduce(obj)
        return super().reducer_override(obj)


class NamePickler(Pickler):
    """For a Python of another minor version: what cloudpickle would take by value goes by its name in ``__main__``."""

    def reducer_override(self, obj: Any) -> Any:
        """As `Pickler`'s, but for functions and classes of ``__main__``."""
        if isinstance(obj, (types.FunctionType, functools._lru_cache_wrapper)):
            by_value = not _cp._should_pickle_by_reference(obj) if isinstance(obj, types.FunctionType) else True
        else:
            by_value = isinstance(obj, type) and obj.__module__ != "builtins"
            by_value = by_value and not _cp._should_pickle_by_reference(obj)
        if not by_value:
            return super().reducer_override(obj)
        if _is_named(obj):
            return obj.__qualname__
        kind = "class" if isinstance(obj, type) else "function"
        raise pickle.PicklingError(
            f"the other side has another Python than {_PYTHON}, where a {kind} of the notebook can only go by its "
            f"name, and {obj.__qualname__} isn't what that name stands for: send data, use a name of the deployed "
            "code, or use an image with the client's Python"
        )


def _find(module: str, qualname: str) -> Any:
    """What a module has by this name, or None."""
    found: Any = sys.modules.get(module)
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


def _is_named(obj: Any) -> bool:
    """Whether pickle finds it by its name, in ``__main__`` or, a cached function, in a module."""
    return _find(obj.__module__, obj.__qualname__) is obj


class _Sink:
    """A file that forgets."""

    def write(self, data: Any) -> int:
        return len(data)


def failure(value: object) -> Exception | None:
    """Why a value can't be pickled, or None when it can be."""
    return _failure(Pickler, value)


def name_failure(value: object) -> Exception | None:
    """The same for a Python of another minor version."""
    return _failure(NamePickler, value)


def _failure(pickler: type[Pickler], value: object) -> Exception | None:
    try:
        pickler(_Sink(), protocol=5, buffer_callback=lambda _: False).dump(value)
    except Exception as e:  # whatever a user's __reduce__ raises is the answer
        return e
    return None


# -- the ids of classes ------------------------------------------------------------------------------------------------

_BY_ID: Any = _cp._DYNAMIC_CLASS_TRACKER_BY_ID
_BY_CLASS: Any = _cp._DYNAMIC_CLASS_TRACKER_BY_CLASS
_TRACKER_LOCK = _cp._DYNAMIC_CLASS_TRACKER_LOCK
_class_id: Callable[[type], str | None] | None = None
#: The classes that have got their id here: those of this process's own cells, not those that came to it.
_own: weakref.WeakSet[type] = weakref.WeakSet()


def set_class_ids(make: Callable[[type], str | None]) -> None:
    """Say, in a client, which id a class of ``__main__`` has on both sides; None: a random one, as cloudpickle's.

    By its id a class is known again when it comes back. With one that tells what the class is made of, a cell that is
    run again, also in another kernel, defines the class that a pod has already: what comes from there belongs to it, so
    that ``except MyError`` and ``isinstance`` work.
    """
    global _class_id
    _class_id = make


def _identify(cls: type) -> None:
    """Give a class its id, if ``__main__`` has it under its name: another one of that name may be something else."""
    if _class_id is None or cls.__module__ != "__main__" or cls in _BY_CLASS or not _is_named(cls):
        return
    made = _class_id(cls)
    with _TRACKER_LOCK:
        if made is not None and cls not in _BY_CLASS:
            _BY_CLASS[cls] = made
            _BY_ID[made] = cls
            _own.add(cls)


def _of_this_name(tracker: str, name: str) -> Any:
    """The class that a name stands for in ``__main__`` now, if it is the one of this id; else None."""
    if _class_id is None:
        return None
    known = _BY_ID.get(tracker)
    found = _find("__main__", name if known is None else known.__qualname__)
    if not isinstance(found, type):
        return None
    _identify(found)
    return found if found in _own and _BY_CLASS[found] == tracker else None


# -- back --------------------------------------------------------------------------------------------------------------

#: Tracker ids of classes that some thread is making right now: they have no methods yet, so "known" isn't true of them.
_unfinished: dict[str, int] = {}
_unfinished_lock = threading.Lock()


class Unpickler(pickle.Unpickler):
    """Leaves known classes alone, and remembers what was looked up last, to say which type failed."""

    def __init__(self, data: Buffer, buffers: Iterable[Buffer], fresh: bool) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self.last = ""
        self._fresh = fresh
        self._made: set[str] = set()
        #: id() of each class that stays as it is, with the class, so that the number isn't used again meanwhile.
        self._kept: dict[int, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == _cp.__name__:
            if name == "_make_skeleton_class":
                return self._skeleton_class
            if name == "_make_skeleton_enum":
                return self._skeleton_enum
            if name == "_class_setstate":
                return self._class_setstate
        elif module != "builtins":
            self.last = f"{module}.{name}"
        return super().find_class(module, name)

    def close(self) -> None:
        with _unfinished_lock:
            for tracker in self._made:
                count = _unfinished[tracker] - 1
                if count:
                    _unfinished[tracker] = count
                else:
                    del _unfinished[tracker]
        self._made.clear()

    def _known(self, tracker: Any, name: str) -> Any:
        """The class of this id that this process has, or None when one has to be made."""
        self.last = f"__main__.{name}"
        if tracker is None:
            return None
        if not self._fresh and (found := _of_this_name(tracker, name)) is not None:
            self._kept[id(found)] = found
            return found
        with _unfinished_lock:
            known = None if self._fresh and tracker not in self._made else _BY_ID.get(tracker)
            if known is not None and tracker not in _unfinished:
                self._kept[id(known)] = known
                return known
            if tracker not in self._made:
                self._made.add(tracker)
                _unfinished[tracker] = _unfinished.get(tracker, 0) + 1
            return known

    def _track(self, tracker: Any, made: Any) -> Any:
        if self._fresh and tracker is not None:
            with _TRACKER_LOCK:
                _BY_ID[tracker] = made
                _BY_CLASS[made] = tracker
            return made
        return _cp._lookup_class_or_track(tracker, made)

    def _skeleton_class(self, kind: Any, name: str, bases: Any, kwargs: Any, tracker: Any, extra: Any) -> Any:
        known = self._known(tracker, name)
        if known is not None:
            return known
        return self._track(tracker, _cp._make_skeleton_class(kind, name, bases, kwargs, None, extra))

    def _skeleton_enum(
        self, bases: Any, name: str, qualname: str, members: Any, module: str, tracker: Any, extra: Any
    ) -> Any:
        known = self._known(tracker, name)
        if known is not None:
            return known
        return self._track(tracker, _cp._make_skeleton_enum(bases, name, qualname, members, module, None, extra))

    def _class_setstate(self, cls: Any, state: Any) -> Any:
        if id(cls) in self._kept:
            return cls
        return _cp._class_setstate(cls, state)
