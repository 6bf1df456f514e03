"""Values to buffers and back: what calls, results, items and code bundles are made of on both sides.

A value becomes ``[pickle, *out-of-band buffers]`` (protocol 5). Values made of a few builtin objects take the standard
library's pickle, everything else cloudpickle: `pickle` would take an instance of a ``__main__`` class by reference, and
the other side has no such class, or another one of that name.

A class of the user's that this process knows already stays as it is when it comes back: cloudpickle would lay the other
process's attributes over it (a registry list on the class would be replaced by the pod's). Only `load_code`, which a
deploy goes through, makes such classes anew.
"""

from __future__ import annotations

import functools
import io
import json
import pickle
import re
import sys
import threading
import types
import weakref
from collections import ChainMap
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import cloudpickle
from cloudpickle import cloudpickle as _cp

from ._unpicklable import describe

__all__ = [
    "MAX_BYTES",
    "DecodeError",
    "EncodeError",
    "TooLargeError",
    "dumps",
    "failure",
    "load_code",
    "loads",
    "nbytes",
]

Buffer = bytes | bytearray | memoryview

#: A payload of more bytes than this is refused (lengths on the wire are 32 bits).
MAX_BYTES = 4 * 1024**3 - 1
#: Arrays of fewer bytes stay in the pickle: an own buffer costs more than the copy.
_OUT_OF_BAND = 8192
#: How many buffers a payload may have; later ones stay in the pickle (their lengths have to fit a frame's meta).
_MAX_BUFFERS = 2048


class EncodeError(Exception):
    """A value can't be sent.

    Parameters
    ----------
    message
        What and why, for people.
    path
        Where in the value the culprit is, for example ``args[0].lock``.
    type_name
        The type of the culprit, for example ``_thread.lock``.
    """

    def __init__(self, message: str, path: str = "value", type_name: str = "") -> None:
        super().__init__(message, path, type_name)
        self.message = message
        self.path = path
        self.type_name = type_name

    def __str__(self) -> str:
        return self.message


class DecodeError(Exception):
    """Bytes that came can't be made a value here.

    Parameters
    ----------
    message
        What and why, for people.
    type_name
        The class or function that was being made, for example ``mylib.Model``.
    module
        The module that is missing here, if that is the reason.
    """

    def __init__(self, message: str, type_name: str = "", module: str = "") -> None:
        super().__init__(message, type_name, module)
        self.message = message
        self.type_name = type_name
        self.module = module

    def __str__(self) -> str:
        return self.message


class TooLargeError(EncodeError):
    """A value has more than `MAX_BYTES` bytes.

    Parameters
    ----------
    size
        Its size in bytes, as far as it was counted.
    """

    def __init__(self, size: int) -> None:
        gib = 1024**3
        super().__init__(
            f"the value has {size / gib:.2f} GiB and one payload can have {MAX_BYTES / gib:.0f} GiB; "
            "send it in parts, or put it into a file that both sides can read"
        )
        self.size = size

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.size,)


_ATOMS = frozenset((type(None), bool, int, float, str, bytes))


def _plain(value: Any, left: int = 32) -> int:
    """How many of ``left`` objects remain after counting a value of builtin types; negative: too many, or others."""
    t = type(value)
    if t in _ATOMS:
        return left - 1
    if t is tuple or t is list:
        left -= 1
        if len(value) > left:
            return -1
        for v in value:
            if type(v) in _ATOMS:
                left -= 1
            else:
                left = _plain(v, left)
            if left < 0:
                return -1
        return left
    if t is dict:
        left -= 1
        if len(value) > left:
            return -1
        for k, v in value.items():
            if type(k) is not str:
                return -1
            left = _plain(v, left)
            if left < 0:
                return -1
        return left
    return -1


def dumps(value: Any, *, ser: str = "pickle", snapshot: bool = False) -> list[Buffer]:
    """The buffers of a value.

    Parameters
    ----------
    value
        For a call ``(args, kwargs)``; anything that can be pickled.
    ser
        ``"pickle"``; ``"json"``: one buffer of JSON; ``"none"``: the value is bytes and travels as it is.
    snapshot
        Copy the memory of arrays, since it may change before it has been sent.

    Returns
    -------
    list
        The pickle and the arrays' memory (views of it, unless ``snapshot``).

    Raises
    ------
    EncodeError
        When the value can't be pickled; names its type and a path to it.
    TooLargeError
        When it has more than `MAX_BYTES`.

    Examples
    --------
    >>> loads(dumps(((1, "a"), {"k": None})))
    ((1, 'a'), {'k': None})
    >>> import threading
    >>> dumps((([threading.Lock()],), {}))
    Traceback (most recent call last):
    ...
    pod_server.serialization.EncodeError: can't send args[0][0], a _thread.lock: cannot pickle '_thread.lock' object
    """
    if ser == "pickle":
        if _plain(value) >= 0:
            data = pickle.dumps(value, 5)
            if len(data) <= MAX_BYTES:
                return [data]
        buffers = _dump_any(value, snapshot)
    elif ser == "json":
        buffers = [_dump_json(value)]
    elif ser == "none":
        buffers = [_dump_bytes(value, snapshot)]
    else:
        raise ValueError(f'serialization is "pickle", "json" or "none", not {ser!r}')
    size = nbytes(buffers)
    if size > MAX_BYTES:
        raise TooLargeError(size)
    return buffers


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


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's, and a few things that people have in cells and that it can't pickle."""

    dispatch_table: ClassVar[Any] = ChainMap(
        {
            functools._lru_cache_wrapper: _reduce_lru_cache,
            functools.cached_property: _reduce_cached_property,
            weakref.WeakKeyDictionary: _reduce_weak_dict,
            weakref.WeakValueDictionary: _reduce_weak_dict,
        },
        cloudpickle.Pickler.dispatch_table,
    )

    def reducer_override(self, obj: Any) -> Any:
        """As cloudpickle's; packages that are lazy have modules of a class of their own, which go by name as others."""
        if isinstance(obj, types.ModuleType) and type(obj) is not types.ModuleType:
            return _cp._module_reduce(obj)
        return super().reducer_override(obj)


def _dump_any(value: Any, snapshot: bool) -> list[Buffer]:
    out: list[Buffer] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous; pickle copies it
            return True
        if raw.nbytes < _OUT_OF_BAND or len(out) >= _MAX_BUFFERS:
            return True
        out.append(bytes(raw) if snapshot else raw)
        return False

    file = io.BytesIO()
    try:
        Pickler(file, protocol=5, buffer_callback=keep).dump(value)
    except Exception as e:
        if isinstance(e, MemoryError):
            raise
        path, type_name, reason = describe(value, e, failure)
        raise EncodeError(f"can't send {path}, {_an(type_name)}: {reason}", path, type_name) from e
    return [file.getvalue(), *out]


class _Sink:
    """A file that forgets."""

    def write(self, data: Any) -> int:
        return len(data)


def failure(value: object) -> Exception | None:
    """Why a value can't be pickled, or None when it can be."""
    try:
        Pickler(_Sink(), protocol=5, buffer_callback=lambda _: False).dump(value)
    except Exception as e:  # whatever a user's __reduce__ raises is the answer
        return e
    return None


def _an(type_name: str) -> str:
    return f"{'an' if type_name[:1].lower() in 'aeiou' else 'a'} {type_name}"


def _dump_json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError) as e:
        raise EncodeError(
            f'can\'t send a {type(value).__name__} with serialization="json": {e}; use serialization="pickle"',
            type_name=type(value).__name__,
        ) from e


def _dump_bytes(value: Any, snapshot: bool) -> Buffer:
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    try:
        view = memoryview(value).cast("B")
    except TypeError:
        raise EncodeError(
            f'serialization="none" sends bytes as they are; this is {_an(type(value).__name__)}. Use '
            'serialization="pickle" or "json"',
            type_name=type(value).__name__,
        ) from None
    return bytes(view) if snapshot else view


def nbytes(buffers: Iterable[Buffer]) -> int:
    """The bytes of all buffers together."""
    return sum(b.nbytes if isinstance(b, memoryview) else len(b) for b in buffers)


# -- back --------------------------------------------------------------------------------------------------------------


def loads(buffers: Sequence[Buffer], ser: str = "pickle") -> Any:
    """The value of some buffers.

    Parameters
    ----------
    buffers
        As `dumps` gave them. Writable ones after the first become the memory of arrays; read-only ones are copied, so
        that arrays can be written to.
    ser
        As for `dumps`.

    Raises
    ------
    DecodeError
        When the value can't be made here; names the type and, if that is why, the missing module.
    """
    if ser == "pickle":
        return _load(buffers, fresh=False)
    if ser == "json":
        try:
            return json.loads(bytes(buffers[0]).decode("utf-8", "surrogatepass"))
        except (ValueError, IndexError, RecursionError) as e:
            raise DecodeError(f"what came is not JSON: {e}") from e
    if ser == "none":
        return bytes(buffers[0]) if buffers else b""
    raise ValueError(f'serialization is "pickle", "json" or "none", not {ser!r}')


def load_code(buffers: Sequence[Buffer]) -> Any:
    """Like `loads`, for the code of a deploy: the user's classes are made anew, also those of an earlier deploy.

    Instances that come with later calls belong to the new classes; calls that still run keep the old ones.
    """
    return _load(buffers, fresh=True)


_BY_ID: Any = _cp._DYNAMIC_CLASS_TRACKER_BY_ID
_BY_CLASS: Any = _cp._DYNAMIC_CLASS_TRACKER_BY_CLASS
_TRACKER_LOCK = _cp._DYNAMIC_CLASS_TRACKER_LOCK
#: Tracker ids of classes that some thread is making right now: they have no methods yet, so "known" isn't true of them.
_unfinished: dict[str, int] = {}
_unfinished_lock = threading.Lock()


class _Unpickler(pickle.Unpickler):
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


_DYNAMIC = re.compile(rb"_class_setstate")


def _load(buffers: Sequence[Buffer], fresh: bool) -> Any:
    if not buffers:
        raise DecodeError("no bytes came")
    data = buffers[0]
    rest = [b if isinstance(b, bytearray) or not memoryview(b).readonly else bytearray(b) for b in buffers[1:]]
    # One pass over the bytes costs less than a copy into a file object. The code of a deploy goes the other way, since a
    # failure here is looked into by failing again, and the user's modules are not to be imported twice.
    if not fresh and _DYNAMIC.search(data) is None:
        try:
            return pickle.loads(data, buffers=rest) if rest else pickle.loads(data)
        except Exception as e:
            raise _decode_error(e, _last_global(data, rest)) from e
    unpickler = _Unpickler(data, rest, fresh)
    try:
        return unpickler.load()
    except Exception as e:
        raise _decode_error(e, unpickler.last) from e
    finally:
        unpickler.close()


def _last_global(data: Buffer, rest: list[Any]) -> str:
    """The class that a failed pickle was about: the plain unpickler doesn't tell, so a second one has to fail too."""
    unpickler = _Unpickler(data, rest, False)
    try:
        unpickler.load()
    except Exception:  # the caller has the same error already and reports it
        return unpickler.last
    finally:
        unpickler.close()
    return unpickler.last


def _decode_error(e: Exception, last: str) -> Exception:
    if isinstance(e, MemoryError):
        return e
    what = f"a {last}" if last else "what came"
    version = "{}.{}".format(*sys.version_info)
    if isinstance(e, ModuleNotFoundError):
        missing = e.name or ""
        return DecodeError(f"{what} can't be made here: module {missing!r} is not installed", last, missing)
    if isinstance(e, AttributeError):
        return DecodeError(f"{what} can't be made here (other version of its package?): {e}", last)
    if isinstance(e, (pickle.UnpicklingError, EOFError)):
        return DecodeError(f"{what} can't be made here, the bytes are damaged: {e}", last)
    return DecodeError(f"{what} can't be made here (Python {version}): {type(e).__name__}: {_text(e)}", last)


def _text(e: BaseException) -> str:
    try:
        return str(e)
    except Exception:  # a hostile __str__ must not hide which type failed
        return "<its message can't be shown>"
