"""Which part of a value can't be pickled: a path to it and its type, for error messages."""

from __future__ import annotations

import pickle
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["describe", "type_name"]

#: Looking for the culprit pickles parts of the value again and again; an error message is worth this many seconds.
_SECONDS = 2.0


def type_name(value: object) -> str:
    """A type's name as people write it: builtins without their module.

    Examples
    --------
    >>> type_name(1), type_name(__import__("threading").Lock())
    ('int', '_thread.lock')
    """
    cls = type(value)
    module = cls.__module__
    name = cls.__qualname__.replace("<locals>.", "")
    return name if module in ("builtins", "__main__") else f"{module}.{name}"


#: Says why a value can't be pickled; None when it can be.
Failure = Callable[[object], "Exception | None"]


def describe(value: Any, error: Exception, failure: Failure, root: str | None = None) -> tuple[str, str, str]:
    """Where in a value the part is that can't be pickled.

    Parameters
    ----------
    value
        The value; ``(args, kwargs)`` of a call is recognised.
    error
        What pickling it raised.
    failure
        `serialization.failure`.
    root
        What the path begins with.

    Returns
    -------
    tuple
        Path, name of the type, reason.

    Examples
    --------
    >>> from pod_server.serialization import failure
    >>> describe({"a": [1, __import__("threading").Lock()]}, ValueError(), failure)[:2]
    ("value['a'][1]", '_thread.lock')
    """
    end = time.monotonic() + _SECONDS
    path = "value" if root is None else root
    reason = error
    if root is None and _is_call(value):
        found = _pick({"args": value[0], "kwargs": value[1]}.items(), failure, end)
        if found is not None:
            path, value, reason = found
    seen: set[int] = set()
    while id(value) not in seen and time.monotonic() < end:
        seen.add(id(value))
        found = _pick(_children(value), failure, end)
        if found is None:
            break
        label, value, reason = found
        path += label
    return path, type_name(value), _reason(reason)


def _is_call(value: Any) -> bool:
    return (
        type(value) is tuple
        and len(value) == 2
        and type(value[0]) is tuple
        and type(value[1]) is dict
        and all(type(k) is str for k in value[1])
    )


def _pick(children: Any, failure: Failure, end: float) -> tuple[str, Any, Exception] | None:
    for label, child in children:
        if time.monotonic() > end:
            return None
        e = failure(child)
        if e is not None:
            return label, child, e
    return None


def _reason(e: Exception) -> str:
    if isinstance(e, RecursionError) or isinstance(e.__cause__, RecursionError):
        return "it is nested too deeply"
    try:
        text = str(e)
    except Exception:  # a hostile __str__; the type alone has to do
        text = ""
    if isinstance(e, (TypeError, pickle.PicklingError)) and text:
        return text
    return f"{type(e).__name__}: {text}" if text else type(e).__name__


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value is made of, as cloudpickle would go through it, with what to write behind the path."""
    if isinstance(value, dict):
        for k, v in value.items():
            yield f"[{k!r}]" if isinstance(k, (str, int, float, bool, type(None))) else f"[<{type_name(k)}>]", v
            yield ".<key>", k
    elif isinstance(value, (list, tuple, set, frozenset)):
        for i, v in enumerate(value):
            yield f"[{i}]", v
    elif isinstance(value, types.FunctionType):
        yield from _function_parts(value)
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
    elif isinstance(value, (staticmethod, classmethod)):
        yield "", value.__func__
    elif isinstance(value, property):
        yield from ((f".{n}", getattr(value, n)) for n in ("fget", "fset", "fdel"))
    elif isinstance(value, type):
        for name, v in list(vars(value).items()):
            if name not in ("__dict__", "__weakref__", "__doc__", "__module__", "_abc_impl") and not isinstance(
                v, (types.MemberDescriptorType, types.GetSetDescriptorType)
            ):
                yield f".{name}", v
        for base in value.__bases__:
            yield f".<base {base.__name__}>", base
    else:
        yield from _instance_parts(value)


def _function_parts(f: types.FunctionType) -> Iterator[tuple[str, Any]]:
    code = f.__code__
    if "__wrapped__" in f.__dict__:  # the function that a decorator was given has its name
        yield "", f.__dict__["__wrapped__"]
    for name, cell in zip(code.co_freevars, f.__closure__ or (), strict=False):
        try:
            yield f".<closure>.{name}", cell.cell_contents
        except ValueError:  # a variable that isn't set yet
            continue
    names: set[str] = set()
    todo = [code]
    while todo:
        c = todo.pop()
        names.update(c.co_names)
        todo.extend(const for const in c.co_consts if isinstance(const, types.CodeType))
    for name in sorted(names):
        if name in f.__globals__:
            yield f".<globals>.{name}", f.__globals__[name]
    yield ".__defaults__", f.__defaults__
    yield ".__kwdefaults__", f.__kwdefaults__
    yield ".__dict__", f.__dict__
    yield ".__annotations__", f.__annotations__


def _instance_parts(value: Any) -> Iterator[tuple[str, Any]]:
    state = getattr(value, "__dict__", None)
    if isinstance(state, dict):
        for name, v in list(state.items()):
            yield f".{name}", v
    for cls in type(value).__mro__:
        if "__slots__" not in vars(cls):  # what C types have inside is nothing that a user could change
            continue
        for name, v in vars(cls).items():
            if isinstance(v, types.MemberDescriptorType):
                try:
                    yield f".{name}", v.__get__(value)
                except AttributeError:  # a slot that isn't set
                    continue
    yield ".__class__", type(value)
    # What isn't in attributes (a deque's items, a partial's arguments) shows in the reduction.
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:  # this very object is the culprit then
        return
    if isinstance(reduced, tuple):
        parts = list(reduced[:3])
        for extra in reduced[3:5]:
            parts.append(list(extra) if extra is not None else None)
        for i, part in enumerate(parts):
            yield "" if i else ".<constructor>", part
