"""Exceptions to buffers and back, with their tracebacks: a pod's exception is raised in the client as itself.

`encode` never fails: what can't travel as an object travels as text. `decode` gives the user's own class where it
exists here, with its attributes, its chain (``from``, "during handling") and real traceback objects, and otherwise what
``fallback`` makes of the name, the message and the nearest builtin base.
"""

from __future__ import annotations

import asyncio
import bdb
import builtins
import concurrent.futures
import json
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any, cast

from . import _tracebacks, serialization
from ._unpicklable import type_name as _type_name
from .cancelled import Cancelled

__all__ = ["Cancelled", "Fallback", "decode", "encode", "format", "message"]

#: ``fallback(type_name, message, traceback_text, base)`` makes the stand-in for an exception that can't be rebuilt.
Fallback = Callable[[str, str, str, type[BaseException]], BaseException]
Buffer = serialization.Buffer


#: Exceptions that steer the program which raises them. Raised in the pod they say nothing about the client's own loop,
#: task or process, so they arrive as `RemoteError`.
_CONTROL: tuple[type[BaseException], ...] = (
    asyncio.CancelledError,
    concurrent.futures.CancelledError,
    StopIteration,
    StopAsyncIteration,
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    Cancelled,
    bdb.BdbQuit,  # IPython ends a cell on it and says nothing
)
_GROUP: Any = getattr(builtins, "BaseExceptionGroup", ())
_MAX_TEXT = 1_000_000
#: How many exceptions of a chain or group travel.
_MAX_EXCEPTIONS = 200
_CHAIN = frozenset(("__traceback__", "__cause__", "__context__", "__suppress_context__"))


# -- there -------------------------------------------------------------------------------------------------------------


def message(exc: BaseException) -> str:
    """``str(exc)``, or a word about it when it has none that works."""
    try:
        text = str(exc)
        if type(text) is not str:
            text = str.__str__(text)
    except BaseException as e:  # a hostile __str__ may raise anything
        return f"<str() of the exception failed with {type(e).__name__}>"
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"


def encode(exc: BaseException) -> list[Buffer]:
    """The buffers of an exception: a JSON description, and pickles of what can be pickled.

    Parameters
    ----------
    exc
        With its ``__traceback__``, ``__cause__``, ``__context__``, notes; groups with their members.

    Examples
    --------
    >>> error = decode(encode(KeyError("é")), lambda name, *_: RuntimeError(name))
    >>> type(error).__name__, error.args
    ('KeyError', ('é',))
    """
    found = _walk(exc)
    index = {id(e): i for i, e in enumerate(found)}
    buffers: list[Buffer] = [b""]
    described = []
    for e in found:
        try:
            described.append(_describe(e, index, buffers))
        except BaseException as problem:  # e.g. a hostile metaclass or __reduce__; the text has to get through
            described.append(_describe_by_text(e, problem))
    header = {"v": 1, "exceptions": described, "text": _safe_format(exc)}
    buffers[0] = json.dumps(header, separators=(",", ":")).encode()
    return buffers


def _get(e: BaseException, name: str) -> Any:
    """An attribute of `BaseException` itself, past a ``__getattribute__`` of the user's."""
    return vars(BaseException)[name].__get__(e)


def _walk(exc: BaseException) -> list[BaseException]:
    """All exceptions that can be reached, the given one first."""
    found: list[BaseException] = []
    seen: set[int] = set()
    todo = [exc]
    while todo and len(found) < _MAX_EXCEPTIONS:
        e = todo.pop(0)
        if id(e) in seen:
            continue
        seen.add(id(e))
        found.append(e)
        todo += [x for x in (_get(e, "__cause__"), _get(e, "__context__")) if x is not None]
        if issubclass(type(e), _GROUP):
            todo += cast(Any, e).exceptions
    return found


def _builtin_base(cls: type[BaseException]) -> type[BaseException]:
    """The nearest base that every Python has."""
    for base in cls.__mro__:
        if issubclass(base, BaseException) and getattr(builtins, base.__name__, None) is base:
            return cast("type[BaseException]", base)
    return Exception


def _describe(e: BaseException, index: dict[int, int], buffers: list[Buffer]) -> dict[str, Any]:
    cls = type(e)
    base = _builtin_base(cls)
    data: dict[str, Any] = {
        "type": _class_name(cls),
        "base": base.__name__,
        "message": message(e),
        "frames": _tracebacks.capture(_get(e, "__traceback__")),
    }
    notes = getattr(e, "__notes__", None)
    if isinstance(notes, (list, tuple)):
        data["notes"] = [n if type(n) is str else repr(n) for n in notes]
    for key, other in (("cause", e.__cause__), ("context", e.__context__)):
        if other is not None and id(other) in index:
            data[key] = index[id(other)]
    if e.__suppress_context__:
        data["suppress"] = True
    if issubclass(type(e), _GROUP):
        data["group"] = [index[id(x)] for x in cast(Any, e).exceptions if id(x) in index]
        data["group_message"] = str(cast(Any, e).message)
    if not issubclass(type(e), _CONTROL):
        lost: list[str] = []
        pickled = _pickle(e, base, lost)
        if pickled is not None:
            data["buffers"] = [len(buffers), len(pickled)]
            buffers += pickled
        if lost:
            data["lost"] = lost
    return data


def _class_name(cls: type) -> str:
    module = cls.__module__
    return cls.__qualname__ if module == "builtins" else f"{module}.{cls.__qualname__}"


def _describe_by_text(e: BaseException, problem: BaseException) -> dict[str, Any]:
    return {
        "type": type.__getattribute__(type(e), "__name__"),  # past a metaclass of the user's
        "base": "Exception",
        "message": message(e),
        "frames": _tracebacks.capture(_get(e, "__traceback__")),
        "notes": [f"(its description failed in the pod: {type(problem).__name__})"],
    }


def _pickle(e: BaseException, base: type[BaseException], lost: list[str]) -> list[Buffer] | None:
    """The pickle of one exception without its chain, or None.

    The default reduction calls the class with ``args`` again, which fails for every class whose ``__init__`` takes
    anything else. So class, args, attributes and the fields of the builtin base travel apart, and are put together
    without calling the user's ``__init__``; unless the class says itself how it wants to be pickled.
    """
    if any(name in vars(c) for c in _below(type(e), base) for name in _REDUCERS):
        pickled = _try(("own", e))
        if pickled is not None:
            return pickled
    try:
        parts = _take_apart(e, base)
    except Exception:  # properties or slots that raise; the text travels
        return None
    pickled = _try(("parts", *parts))
    if pickled is not None:
        return pickled
    # Some attribute holds a lock or a connection: leave that one out, keep the class.
    cls, args, state, fields = parts
    args = tuple(_or_text(a, f"args[{i}]", lost) for i, a in enumerate(args))
    state = {k: v for k, v in state.items() if _fits(v, k, lost)}
    fields = {k: v for k, v in fields.items() if _fits(v, k, lost)}
    return _try(("parts", cls, args, state, fields))


def _try(value: Any) -> list[Buffer] | None:
    try:
        return serialization.dumps(value)
    except Exception:  # the caller has another form to try, and text in the end
        return None


_REDUCERS = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__", "__getnewargs_ex__")


def _below(cls: type, base: type) -> list[type]:
    """The classes between an exception's class and its builtin base."""
    mro = cls.__mro__
    return list(mro[: mro.index(base)])


def _take_apart(
    e: BaseException, base: type[BaseException]
) -> tuple[type[BaseException], tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    reduced = base.__reduce__(e)
    args = () if issubclass(type(e), _GROUP) else tuple(reduced[1])  # OSError's has the file name, which its args lack
    state = {k: v for k, v in (getattr(e, "__dict__", None) or {}).items() if k != "__notes__"}
    fields: dict[str, Any] = {}
    for cls in type(e).__mro__:
        if cls is BaseException or cls is object:
            continue
        for name, d in vars(cls).items():
            if name in _CHAIN or name in ("__dict__", "__weakref__") or (cls is AttributeError and name == "obj"):
                continue
            slot = isinstance(d, types.MemberDescriptorType)
            if slot or (isinstance(d, types.GetSetDescriptorType) and cls.__module__ == "builtins"):
                try:
                    fields.setdefault(name, d.__get__(e))
                except (AttributeError, TypeError):  # a slot that isn't set; a field that needs more arguments first
                    continue
    if issubclass(type(e), _GROUP):
        fields.pop("message", None)
        fields.pop("exceptions", None)
    return type(e), args, state, fields


def _fits(value: Any, name: str, lost: list[str]) -> bool:
    try:
        serialization.dumps(value)
    except Exception:  # said in the note that `lost` becomes
        lost.append(f"{name} ({_type_name(value)})")
        return False
    return True


def _or_text(value: Any, name: str, lost: list[str]) -> Any:
    if _fits(value, name, lost):
        return value
    try:
        return repr(value)
    except Exception:  # a hostile __repr__
        return f"<{_type_name(value)}>"


def _safe_format(exc: BaseException) -> str:
    try:
        text = format(exc)
        return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…\n"
    except Exception as e:  # never fail: the type and the message are enough
        return f"{type(exc).__name__}: {message(exc)}\n(its traceback can't be shown: {type(e).__name__})\n"


def format(exc: BaseException) -> str:
    """The traceback as Python prints it, without this project's own frames.

    Examples
    --------
    >>> print(format(ValueError("no")), end="")
    ValueError: no
    """
    whole = traceback.TracebackException.from_exception(exc)
    files = _framework_files(exc)
    todo: list[Any] = [whole]
    seen: set[int] = set()
    while todo:
        part = todo.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        part.stack[:] = [f for f in part.stack if f.filename not in files]
        todo += [part.__cause__, part.__context__, *(getattr(part, "exceptions", None) or ())]
    return "".join(whole.format())


def _framework_files(exc: BaseException) -> set[str]:
    files = set()
    for e in _walk(exc):
        for frame, _ in traceback.walk_tb(_get(e, "__traceback__")):
            if _tracebacks.is_framework(frame):
                files.add(frame.f_code.co_filename)
    return files


# -- and back ----------------------------------------------------------------------------------------------------------


def decode(buffers: Sequence[Buffer], fallback: Fallback, *, where: str | None = None) -> BaseException:
    """The exception that `encode` made the buffers of, with its traceback, ready to be raised.

    Parameters
    ----------
    buffers
        As `encode` gave them.
    fallback
        Makes the exception for a class that is missing here, that can't be rebuilt, or that would steer this process
        (``SystemExit``, ``CancelledError``, ``StopIteration`` ...).
    where
        A note to add, for example ``'in the pod of service "train"'``: tells which frames of the traceback are remote.

    Returns
    -------
    BaseException
        Its ``__traceback__`` holds the pod's frames; raising it puts the local ones before them.
    """
    try:
        header = json.loads(bytes(buffers[0]))
        described = header["exceptions"]
        made: dict[int, BaseException] = {}
        for n, data in enumerate(described):
            _make(n, described, buffers, fallback, _text(data) if n else str(header["text"]), made)
        for n, e in made.items():
            _link(e, described[n], made)
        exc = made[0]
    except (
        Exception
    ) as e:  # not what encode makes; the call has failed in any case, and this is all that is known of it
        return fallback("Exception", f"the pod's exception can't be read here: {type(e).__name__}: {e}", "", Exception)
    if where:
        _add_note(exc, where)
    return exc


def _make(
    n: int,
    described: list[dict[str, Any]],
    buffers: Sequence[Buffer],
    fallback: Fallback,
    text: str,
    made: dict[int, BaseException],
) -> None:
    """Make exception number ``n``, the members of a group before the group."""
    if n in made:
        return
    data = described[n]
    for member in data.get("group", ()):
        if member != n:
            _make(member, described, buffers, fallback, _text(described[member]), made)
    made[n] = _make_one(data, buffers, fallback, text, made)


def _make_one(
    data: dict[str, Any], buffers: Sequence[Buffer], fallback: Fallback, text: str, made: dict[int, BaseException]
) -> BaseException:
    exc: BaseException | None = None
    if "buffers" in data:
        start, count = data["buffers"]
        try:
            exc = _put_together(serialization.loads(buffers[start : start + count]), data, made)
        except Exception:  # its class is missing here or has changed: the stand-in says what it was
            exc = None
    if exc is None or isinstance(exc, _CONTROL):
        exc = _stand_in(data, fallback, text)
    try:
        exc.__traceback__ = _tracebacks.rebuild(data.get("frames", ()))
    except Exception as e:  # frames of another version; the error itself is worth more than its frames
        _add_note(exc, f"(the pod's traceback can't be shown: {type(e).__name__})")
    if hasattr(exc, "__notes__"):  # a reduction of the user's own brought them
        del exc.__notes__
    for note in data.get("notes", ()):
        _add_note(exc, str(note))
    if data.get("lost"):
        _add_note(exc, f"left in the pod, since it can't be pickled: {', '.join(map(str, data['lost']))}")
    return exc


def _stand_in(data: dict[str, Any], fallback: Fallback, text: str) -> BaseException:
    base = getattr(builtins, str(data["base"]), Exception)
    if not (isinstance(base, type) and issubclass(base, Exception)) or issubclass(base, _CONTROL):
        base = Exception
    if _GROUP and issubclass(base, _GROUP):
        base = Exception
    try:
        return fallback(str(data["type"]), str(data["message"]), text, base)
    except Exception:  # a base that can't be combined or wants arguments of its own
        return fallback(str(data["type"]), str(data["message"]), text, Exception)


def _put_together(parts: Any, data: dict[str, Any], made: dict[int, BaseException]) -> BaseException | None:
    if parts[0] == "own":
        exc = parts[1]
        return exc if isinstance(exc, BaseException) else None
    _, cls, args, state, fields = parts
    base = _builtin_base(cls)
    if "group" in data:
        members = [made[n] for n in data["group"] if n in made]
        exc = base.__new__(cls, str(data["group_message"]), members)
    else:
        exc = base.__new__(cls, *args)
        # OSError, SyntaxError and others set their fields here; a subclass's own __init__ isn't called.
        base.__init__(exc, *args)
    assert isinstance(exc, BaseException)
    for name, value in fields.items():
        if value is None and getattr(exc, name, None) is None:
            continue  # an OSError whose filename2 has been set, even to None, reads differently
        try:
            setattr(exc, name, value)
        except (AttributeError, TypeError):  # a read-only field, which __init__ has set
            continue
    if state:
        exc.__dict__.update(state)
    return exc


def _link(exc: BaseException, data: dict[str, Any], made: dict[int, BaseException]) -> None:
    cause, context = data.get("cause"), data.get("context")
    if cause in made:
        exc.__cause__ = made[cause]
    if context in made and made[context] is not exc:
        exc.__context__ = made[context]
    exc.__suppress_context__ = bool(data.get("suppress"))


def _text(data: dict[str, Any]) -> str:
    frames = data.get("frames") or []
    head = "Traceback (most recent call last):\n" if frames else ""
    return f"{head}{_tracebacks.format_frames(frames)}{data['type']}: {data['message']}\n"


def _add_note(exc: BaseException, note: str) -> None:
    """``exc.add_note``, which Python 3.10 doesn't have."""
    notes = getattr(exc, "__notes__", None)
    try:
        exc.__notes__ = [*notes, note] if isinstance(notes, (list, tuple)) else [note]
    except (AttributeError, TypeError):  # a class that refuses attributes does without
        return
