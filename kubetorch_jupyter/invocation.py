"""One call on its way from a handle: Kubetorch's call-time keywords, the check of the arguments, and the mode.

Functions and methods of classes share all of this; what differs is where their service and their options come from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .errors import ConfigError
from .interface import Entry
from .options import CallOptions

if TYPE_CHECKING:
    from .calls import Call
    from .service import Service

__all__ = ["KEYWORDS", "RemoteCallable", "check_serialization", "with_options"]

SERIALIZATIONS = ("pickle", "json", "none")
#: Kubetorch's call-time keywords. ``workers``, ``debug`` and ``stream_metrics`` are taken and have no effect on one
#: worker.
KEYWORDS = frozenset({"async_", "stream_logs", "serialization", "workers", "debug", "stream_metrics"})


def check_serialization(value: Any) -> str:
    """``value``, when it is a wire format; `ConfigError` when not."""
    if value not in SERIALIZATIONS:
        raise ConfigError(f"serialization={value!r} is not one of {', '.join(map(repr, SERIALIZATIONS))}")
    return str(value)


class RemoteCallable(ABC):
    """One thing that can be called on a service: a function, or one method of a class."""

    _key: str = ""

    @abstractmethod
    def _deployed(self) -> Service:
        """The live service; `NotDeployedError` before there is one."""

    @abstractmethod
    def _mode(self) -> tuple[bool, CallOptions]:
        """Whether calls give coroutines, and their options, where the call doesn't say."""

    def _entry(self) -> Entry:
        interface = self._deployed().interface
        if interface is None or self._key not in interface.entries:
            return Entry(self._key or self._deployed().name)
        return interface.entries[self._key]

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call it in the pod: the result, a coroutine with ``async_=True``, an iterator of a generator function."""
        __tracebackhide__ = True
        service = self._deployed()
        entry = self._entry()
        async_, options = self._mode()
        if kwargs and not KEYWORDS.isdisjoint(kwargs):
            async_, options = self._take_keywords(entry, kwargs, async_, options)
        if entry.check is not None:
            entry.check(*args, **kwargs)
        return service.ways[async_, entry.generator](service, self._key or None, args, kwargs, options)

    def _take_keywords(
        self, entry: Entry, kwargs: dict[str, Any], async_: bool, options: CallOptions
    ) -> tuple[bool, CallOptions]:
        taken = {k: kwargs.pop(k) for k in KEYWORDS & kwargs.keys() if k not in entry.parameters}
        if "async_" in taken:
            async_ = bool(taken["async_"])
        if taken.get("stream_logs") is not None:
            options = replace(options, stream_logs=bool(taken["stream_logs"]))
        if taken.get("serialization") is not None:
            options = replace(options, serialization=check_serialization(taken["serialization"]))
        return async_, options

    def _checked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Service, str | None]:
        __tracebackhide__ = True
        entry = self._entry()
        if entry.check is not None:
            entry.check(*args, **kwargs)
        return self._deployed(), self._key or None

    def _aio(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        service, method = self._checked(args, kwargs)
        return service.ways[True, self._entry().generator](service, method, args, kwargs, self._mode()[1])

    def _spawn(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call[Any]:
        service, method = self._checked(args, kwargs)
        self._refuse_generator("spawn")
        from .calls import spawn

        return spawn(service, method, args, kwargs, self._mode()[1])

    def _refuse_generator(self, verb: str) -> None:
        __tracebackhide__ = True
        entry = self._entry()
        if entry.generator:
            raise ConfigError(
                f"{entry.name} is a generator function, which .{verb}() can't run: iterate over a call of it, "
                "or deploy a function that returns a list"
            )

    def map(
        self, items: Iterable[Any], *, concurrency: int = 64, ordered: bool = True, return_exceptions: bool = False
    ) -> Iterator[Any]:
        """Call it with each item; lazy on both sides.

        Parameters
        ----------
        items
            Any iterable; it is read only as far as ``concurrency`` calls ahead of what has been consumed.
        concurrency
            How many calls are in flight at most.
        ordered
            Results in the order of the items, else as they come.
        return_exceptions
            Give a call's exception as its result; otherwise the first error cancels the rest.

        Returns
        -------
        Iterator
            To be used with ``for`` or ``async for``; one that is abandoned cancels what is in flight.

        Examples
        --------
        >>> for loss in train.map([0.1, 0.01]):    # doctest: +SKIP
        ...     print(loss)
        """
        __tracebackhide__ = True
        return self._map(((item,) for item in items), items, concurrency, ordered, return_exceptions)

    def starmap(
        self,
        items: Iterable[Sequence[Any]],
        *,
        concurrency: int = 64,
        ordered: bool = True,
        return_exceptions: bool = False,
    ) -> Iterator[Any]:
        """`map` with several arguments: each item is the sequence of a call's positional arguments."""
        __tracebackhide__ = True
        return self._map((tuple(item) for item in items), items, concurrency, ordered, return_exceptions)

    def _map(
        self,
        argss: Iterable[tuple[Any, ...]],
        items: Iterable[Any],
        concurrency: int,
        ordered: bool,
        return_exceptions: bool,
    ) -> Iterator[Any]:
        __tracebackhide__ = True
        self._refuse_generator("map")
        service = self._deployed()
        from .calls import map_calls

        return map_calls(
            service,
            self._key or None,
            argss,
            self._mode()[1],
            concurrency=concurrency,
            ordered=ordered,
            return_exceptions=return_exceptions,
            total=_count(items),
        )


def _count(items: Iterable[Any]) -> int | None:
    """How many there are, if they know: a file, a generator, a data loader without a length don't."""
    try:
        return len(items)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def with_options(options: CallOptions, **changes: Any) -> CallOptions:
    """``options`` with those of ``changes`` that are not None, checked."""
    given = {k: v for k, v in changes.items() if v is not None}
    if "serialization" in given:
        check_serialization(given["serialization"])
    timeout, retries = given.get("timeout"), given.get("retries")
    if timeout is not None and not (isinstance(timeout, (int, float)) and timeout > 0):
        raise ConfigError(f"timeout={timeout!r} is not a positive number of seconds")
    if retries is not None and not (isinstance(retries, int) and retries >= 0):
        raise ConfigError(f"retries={retries!r} is not a whole number of 0 or more")
    return replace(options, **given)
