"""What can be called on a service: names, signatures, and the check of a call's arguments before it is sent.

An interface is made from the local callable when it is packed, travels with the code, and comes back from the pod, so
that a handle from `from_name` knows as much as the one that deployed it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Entry", "Interface", "display_name", "local_signature"]

_P = inspect.Parameter
_KINDS = {
    int(kind): kind
    for kind in (_P.POSITIONAL_ONLY, _P.POSITIONAL_OR_KEYWORD, _P.VAR_POSITIONAL, _P.KEYWORD_ONLY, _P.VAR_KEYWORD)
}


def display_name(target: Any) -> str:
    """What messages call a callable.

    Examples
    --------
    >>> import functools
    >>> display_name(functools.partial(print, 1)), display_name(lambda: 0)
    ('print', 'lambda')
    """
    while isinstance(target, functools.partial):
        target = target.func
    name = getattr(target, "__name__", None) or type(target).__name__
    return "lambda" if name == "<lambda>" else str(name)


@dataclass(frozen=True)
class Entry:
    """One function or method.

    Parameters
    ----------
    name
        What a TypeError calls it: ``train`` or ``Model.predict``.
    generator
        Whether a call gives an iterator.
    signature
        Without ``self``; a default that only the pod knows is ``...``. None when it isn't known: then nothing is
        checked here.
    doc
        The docstring.
    """

    name: str
    generator: bool = False
    signature: inspect.Signature | None = None
    doc: str | None = None
    check: Callable[..., None] | None = field(default=None, repr=False, compare=False)

    @functools.cached_property
    def parameters(self) -> frozenset[str]:
        """The names that the user's function itself gives to parameters."""
        if self.signature is None:
            return frozenset()
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return frozenset(p.name for p in self.signature.parameters.values() if p.kind not in variadic)


def _checker(name: str, signature: inspect.Signature, *, method: bool) -> Callable[..., None]:
    """A function of the same signature that does nothing.

    Calling it costs 0.1 µs where ``Signature.bind`` takes 5, and Python itself words the TypeError.
    """
    parameters = list(signature.parameters.values())
    placeholder = object()
    source: list[str] = ["__self__"] if method else []
    only_positional = [p for p in parameters if p.kind is p.POSITIONAL_ONLY]
    keyword_marked = False
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not keyword_marked:
            source.append("*")
            keyword_marked = True
        prefix = "*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else ""
        keyword_marked = keyword_marked or p.kind is p.VAR_POSITIONAL
        source.append(prefix + p.name + ("=__default__" if p.default is not p.empty else ""))
        if only_positional and p is only_positional[-1]:
            source.append("/")
    namespace: dict[str, Any] = {"__default__": placeholder}
    exec(f"def check({', '.join(source)}): pass", namespace)  # the names come from a compiled function's own signature
    check: Callable[..., None] = namespace["check"]
    check.__qualname__ = name
    if not method:
        return check

    def check_method(*args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        check(None, *args, **kwargs)

    return check_method


def _signature_of(rows: list[list[Any]] | None) -> inspect.Signature | None:
    if rows is None:
        return None
    return inspect.Signature(
        [
            inspect.Parameter(name, _KINDS[int(kind)], default=... if has_default else inspect.Parameter.empty)
            for name, kind, has_default in rows
        ]
    )


def local_signature(owner: Any, key: str, known: inspect.Signature | None) -> inspect.Signature | None:
    """The signature of a method with the annotations and defaults that don't travel, if it is the one that is known."""
    try:
        found = list(inspect.signature(getattr(owner, key)).parameters.values())
    except (AttributeError, TypeError, ValueError):  # the service has another version of the class, or a builtin
        return known
    wanted = [(p.name, p.kind) for p in known.parameters.values()] if known is not None else None
    for parameters in (found, found[1:]):
        if [(p.name, p.kind) for p in parameters] == wanted:
            return inspect.Signature(parameters)
    return known


class Interface:
    """The entries of one service; the function itself has the key ``""``.

    Parameters
    ----------
    rows
        As in a LOAD frame's ``interface``: ``{"": {"gen", "async", "sig", "doc"}}`` or one for each public method.
    name
        The name of the function or class.
    """

    def __init__(self, rows: Mapping[str, Mapping[str, Any]], name: str) -> None:
        self.label = name
        self.rows = {key: dict(row) for key, row in rows.items()}
        self.entries: dict[str, Entry] = {}
        for key, row in self.rows.items():
            label = f"{name}.{key}" if key else name
            signature = _signature_of(row.get("sig"))
            usable = signature is not None and all(p.isidentifier() for p in signature.parameters)
            check = _checker(label, signature, method=bool(key)) if usable and signature is not None else None
            self.entries[key] = Entry(label, bool(row.get("gen")), signature, row.get("doc"), check)

    @property
    def methods(self) -> list[str]:
        """The names of the methods, sorted; empty for a function."""
        return sorted(key for key in self.entries if key)
