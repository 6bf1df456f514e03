"""The stand-in for a user's exception that can't be rebuilt here; everybody imports it from ``errors``."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

from .error_base import KubetorchError, rebuild

__all__ = ["RemoteError", "remote_error"]


class RemoteError(KubetorchError):
    """An exception of the user's code whose class is missing here, or that can't be rebuilt.

    What arrives is an instance of a class made for it by `remote_error`, which has the name of the original and derives
    from its nearest builtin base too, so that ``except ValueError`` catches what it would have caught in the pod.

    Attributes
    ----------
    type_name
        The original's name with its module.
    remote_traceback
        The pod's traceback as text.
    """

    type_name: str = "Exception"
    remote_traceback: str = ""
    base: str = "Exception"

    def __reduce__(self) -> tuple[Any, ...]:
        if type(self) is RemoteError:
            return super().__reduce__()
        return _rebuild_remote, (self.type_name, self.base, self.args, dict(self.__dict__))


_remote_classes: dict[tuple[str, str], type[RemoteError]] = {}
_MAX_REMOTE_CLASSES = 1000


def _builtin_base(base: str | type[BaseException]) -> type[Exception]:
    """The nearest builtin `Exception` class of `base` that an ordinary error may derive from."""
    if isinstance(base, str):
        found = getattr(builtins, base, None)
        candidates: Sequence[Any] = found.__mro__ if isinstance(found, type) else ()
    else:
        candidates = base.__mro__
    # The iteration protocols give these two a meaning of their own, and a group can't be made from a message.
    unfit = (StopIteration, StopAsyncIteration, BaseExceptionGroup)
    for candidate in candidates:
        builtin = getattr(candidate, "__module__", None) == "builtins"
        if builtin and issubclass(candidate, Exception) and not issubclass(candidate, unfit):
            found_class: type[Exception] = candidate
            return found_class
    return Exception


def _remote_class(type_name: str, base: str | type[BaseException]) -> type[RemoteError]:
    builtin = _builtin_base(base)
    key = type_name, builtin.__name__
    cls = _remote_classes.get(key)
    if cls is None:
        if len(_remote_classes) >= _MAX_REMOTE_CLASSES:
            # Someone makes exception classes in a loop; old ones stay valid, they are only no longer shared.
            _remote_classes.clear()
        bases = (RemoteError,) if builtin is Exception else (RemoteError, builtin)
        name = type_name.rpartition(".")[2] or "RemoteError"
        doc = f"``{type_name}`` as it was raised in a pod; its class is missing here."
        cls = type(name, bases, {"__module__": f"{__package__}.errors", "__doc__": doc})
        cls = _remote_classes.setdefault(key, cls)
    return cls


def _rebuild_remote(type_name: str, base: str, args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    return rebuild(_remote_class(type_name, base), args, state)


def remote_error(
    type_name: str, message: str, traceback: str = "", base: str | type[BaseException] = "Exception"
) -> RemoteError:
    """Make the stand-in for an exception that can't be rebuilt here.

    Parameters
    ----------
    type_name
        Name of the original's class, with its module (``"__main__.MyError"``).
    message
        ``str()`` of the original.
    traceback
        The pod's traceback as text.
    base
        The original's nearest builtin base: its name or the class. One that is no `Exception` (``SystemExit``), and
        ``StopIteration``, which would end a loop here, count as `Exception`.

    Returns
    -------
    RemoteError
        An instance of a subclass of both; one class for each name and base.

    Examples
    --------
    >>> try:
    ...     raise remote_error("lib.BadInput", "negative", base="ValueError")
    ... except ValueError as error:
    ...     print(type(error).__name__, error)
    BadInput negative
    """
    cls = _remote_class(type_name, base)
    return cls(message, type_name=type_name, remote_traceback=traceback, base=_builtin_base(base).__name__)
