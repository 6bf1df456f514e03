"""Values to buffers and back: what calls, results, items and code bundles are made of on both sides.

A value becomes ``[pickle, *out-of-band buffers]`` (protocol 5). Values made of a few builtin objects take the standard
library's pickle, everything else cloudpickle: `pickle` would take an instance of a ``__main__`` class by reference, and
the other side has no such class, or another one of that name.

A class of the user's that this process knows already stays as it is when it comes back: cloudpickle would lay the other
process's attributes over it (a registry list on the class would be replaced by the pod's). Only `load_code`, which a
deploy goes through, makes such classes anew.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ._pickling import ForeignCodeError, NamePickler, Pickler, Unpickler, failure, name_failure
from ._unpicklable import describe
from .by_source import Space

__all__ = [
    "MAX_BYTES",
    "DecodeError",
    "EncodeError",
    "TooLargeError",
    "dump_with",
    "dumps",
    "failure",
    "load_code",
    "loads",
    "nbytes",
    "set_foreign",
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


def _dump_any(value: Any, snapshot: bool) -> list[Buffer]:
    try:
        return dump_with(NamePickler if _foreign else Pickler, value, snapshot)
    except Exception as e:
        if isinstance(e, MemoryError):
            raise
        path, type_name, reason = describe(value, e, name_failure if _foreign else failure)
        raise EncodeError(f"can't send {path}, {_an(type_name)}: {reason}", path, type_name) from e


def dump_with(pickler: Callable[..., Any], value: Any, snapshot: bool = False) -> list[Buffer]:
    """The buffers of a value that a pickler makes; what it raises is raised as it is."""
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
    pickler(file, protocol=5, buffer_callback=keep).dump(value)
    return [file.getvalue(), *out]


_foreign = False


def set_foreign(foreign: bool) -> None:
    """Say, in a pod, whether the code's client has another Python.

    Then functions and classes of ``__main__`` go by their names: they are the client's own, and bytecode would mean
    nothing there.
    """
    global _foreign
    _foreign = foreign


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


def load_code(buffers: Sequence[Buffer], space: Space | None = None) -> Any:
    """Like `loads`, for the code of a deploy: the user's classes are made anew, also those of an earlier deploy.

    Instances that come with later calls belong to the new classes; calls that still run keep the old ones.

    Parameters
    ----------
    buffers
        As the client made them.
    space
        Where code that came by its source is made; None: it came by value.
    """
    if space is None:
        return _load(buffers, fresh=True)
    with space.open():
        return _load(buffers, fresh=True, space=space)


_DYNAMIC = re.compile(rb"_class_setstate")


def _load(buffers: Sequence[Buffer], fresh: bool, space: Space | None = None) -> Any:
    if not buffers:
        raise DecodeError("no bytes came")
    data = buffers[0]
    rest = [b if isinstance(b, bytearray) or not memoryview(b).readonly else bytearray(b) for b in buffers[1:]]
    # One pass over the bytes costs less than a copy into a file object. The code of a deploy goes the other way: a
    # failure here is looked into by failing again, and the user's modules are not to be imported twice.
    if not fresh and _DYNAMIC.search(data) is None:
        try:
            return pickle.loads(data, buffers=rest) if rest else pickle.loads(data)
        except Exception as e:
            raise _decode_error(e, _last_global(data, rest)) from e
    unpickler = Unpickler(data, rest, fresh)
    try:
        value = unpickler.load()
        if space is not None:
            while (later := unpickler.load()) is not None:
                space.add(later)
        return value
    except Exception as e:
        raise _decode_error(e, unpickler.last) from e
    finally:
        unpickler.close()


def _last_global(data: Buffer, rest: list[Any]) -> str:
    """The class that a failed pickle was about: the plain unpickler doesn't tell, so a second one has to fail too."""
    unpickler = Unpickler(data, rest, False)
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
    if isinstance(e, ForeignCodeError):
        return DecodeError(str(e), last)
    if isinstance(e, AttributeError) and last.startswith("__main__."):
        return DecodeError(
            f"there is no {last.partition('.')[2]} here: between different versions of Python, functions and classes "
            "of a notebook go by their names, and the deployed code has to use it",
            last,
        )
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
