"""What every error of ours has in common, and the words that several of their messages use.

Used by ``errors`` and ``remote_error``; everybody else imports from ``errors``.
"""

from __future__ import annotations

import signal as _signal
from typing import Any, ClassVar, dataclass_transform

__all__ = ["KubetorchError", "describe_death", "describe_size", "of_service", "rebuild"]


def rebuild(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    """An error as it was pickled."""
    # The message is already built, and every class has its own keywords, all of which may be left out. (Not by
    # cls.__new__: which of the bases' is the safe one differs from builtin to builtin.)
    error = cls()
    error.args = args
    error.__dict__.update(state)
    return error


def describe_size(amount: int | None) -> str:
    """Bytes, for people."""
    if amount is None:
        return "its limit"
    for power, unit in ((4, "Ti"), (3, "Gi"), (2, "Mi"), (1, "Ki")):
        if amount >= 1024**power:
            return f"{amount / 1024**power:.4g}{unit}"
    return f"{amount} bytes"


def of_service(service: str | None) -> str:
    """The service's name as a part of a sentence."""
    return f' of service "{service}"' if service else ""


@dataclass_transform()
class _Described(Exception):
    """Gives every error a keyword for each attribute that its class declares."""

    _fields: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = {name: getattr(cls, name) for name in cls.__annotations__ if name != "message"}
        cls._fields = {**cls._fields, **own}

    def __init__(self, message: str = "", **data: Any) -> None:
        unknown = data.keys() - self._fields.keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        for name, default in self._fields.items():
            value = data.get(name, default)
            setattr(self, name, list(value) if default == () else value)
        self.message = message or self._say()
        # Directly, not by super(): a class that is also an OSError or a UnicodeError must not parse our message.
        Exception.__init__(self, self.message)

    def _say(self) -> str:
        """The message, where nobody gave one."""
        return ""

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (type(self), self.args, dict(self.__dict__))


class KubetorchError(_Described):
    """Base of all errors of this package.

    Parameters
    ----------
    message
        What happened, to what, and what to do next; many classes make one from the rest if it is empty.
    service
        Name of the service that it is about, where there is one.

    Examples
    --------
    >>> error = KubetorchError("the service is busy", service="train")
    >>> str(error), error.service
    ('the service is busy', 'train')
    """

    message: str = ""
    service: str | None = None


_SIGNAL_HINTS = {
    "SIGSEGV": "native code crashed",
    "SIGBUS": "native code crashed",
    "SIGILL": "native code crashed: perhaps it was built for another processor",
    "SIGFPE": "native code crashed",
    "SIGABRT": "native code gave up",
    "SIGKILL": "something outside this service killed it, often the system because memory ran out",
    "SIGTERM": "something asked it to end",
}


def _signal_name(number: int) -> str:
    try:
        return _signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def describe_death(cause: str | None, exit_code: int | None, signal: int | None, limit: int | None) -> tuple[str, str]:
    """How a worker ended, and what its user may do about it."""
    if cause == "oom":
        return (
            f"was killed: it used more than its memory_limit of {describe_size(limit)}"
            if limit is not None
            else "was killed: the memory ran out"
        ), "Ask for more with kt.Compute(memory_limit=...), or hold less in memory at once"
    if cause == "restart":
        return "was restarted on request while this call ran", "Call again"
    if signal is not None:
        name = _signal_name(signal)
        hint = _SIGNAL_HINTS.get(name)
        return (
            f"was ended by {name}" + (f" ({hint})" if hint else ""),
            "The next call gets a new worker; the call's log may show the reason",
        )
    if exit_code is not None:
        return (
            f"ended itself with exit code {exit_code}",
            "Look in your code, or in the libraries that it uses, for os._exit; the next call gets a new worker",
        )
    return "died", "The next call gets a new worker; the call's log may show the reason"
