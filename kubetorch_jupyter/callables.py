"""What the user holds: `fn` and `cls` make `Fn` and `Cls`, handles that are deployed with ``.to`` and then called.

A handle is thin: it packs the callable (`shipping`), asks `service` for a live service, checks a call's arguments
against the interface and hands them to `calls`. Blocking and awaiting faces of one thing stand side by side and share
all but the waiting. None of that is imported before the first deploy, which begins a local pod's process first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from .errors import ConfigError
from .interface import display_name, local_signature
from .invocation import RemoteCallable, with_options
from .markup import summary
from .module import Module, Source
from .options import CallOptions

if TYPE_CHECKING:
    from .calls import Call
    from .service import Service

__all__ = ["Cls", "Fn", "Module", "RemoteMethod", "cls", "fn"]

P = ParamSpec("P")
R = TypeVar("R")


class Fn(Module, RemoteCallable, Generic[P, R]):
    """A function that runs in a pod; made by `fn`."""

    def __init__(self, source: Source, *, service: Service | None = None) -> None:
        super().__init__(source, service=service)
        target = source.target
        self.__name__ = getattr(target, "__name__", source.name)
        self.__qualname__ = getattr(target, "__qualname__", self.__name__)
        if target is not None:
            self.__doc__ = inspect.getdoc(target)
            self.__wrapped__ = target
            self.__signature__: inspect.Signature | None
            try:
                self.__signature__ = inspect.signature(target)
            except (TypeError, ValueError):  # a builtin without one: nothing to show, and nothing to check
                self.__signature__ = None

    def _deployed(self) -> Service:
        return Module._deployed(self)

    def _adopt(self, service: Service) -> None:
        super()._adopt(service)
        entry = service.interface.entries.get("") if service.interface else None
        if entry is not None and self._source.target is None:
            self.__signature__, self.__doc__ = entry.signature, entry.doc

    def _mode(self) -> tuple[bool, CallOptions]:
        return self._async, self._options

    def aio(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Call it and get a coroutine (an async iterator of a generator function); every keyword is the function's."""
        return cast("Coroutine[Any, Any, R]", self._aio(args, kwargs))

    def spawn(self, /, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Start a call and get its `Call` at once; every keyword is the function's."""
        return self._spawn(args, kwargs)

    def options(
        self,
        *,
        timeout: float | None = None,
        retries: int | None = None,
        stream_logs: bool | None = None,
        serialization: str | None = None,
    ) -> Fn[P, R]:
        """A view of this handle whose calls have other options; the service is the same.

        Parameters
        ----------
        timeout
            Seconds from the call to its result; then it is cancelled and raises `CallTimeoutError`.
        retries
            How often to run it again when its worker or pod was lost; never for a generator function.
        stream_logs, serialization
            As the properties of these names.
        """
        return self._view(timeout=timeout, retries=retries, stream_logs=stream_logs, serialization=serialization)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        for local in ("__wrapped__", "__signature__"):
            state.pop(local, None)
        return state


class RemoteMethod(RemoteCallable):
    """One method of a deployed class; what ``handle.method`` gives."""

    def __init__(self, owner: Cls, key: str, options: CallOptions | None = None) -> None:
        self._owner = owner
        self._key = key
        self._own_options = options
        entry = self._entry()
        self.__name__ = key
        self.__qualname__ = entry.name
        self.__doc__ = entry.doc

    def __getattr__(self, name: str) -> Any:
        if name != "__signature__":  # made when somebody looks: it takes longer than the rest of an access
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        known = self._entry().signature
        target = object.__getattribute__(self._owner, "__dict__")["_source"].target
        self.__signature__ = local_signature(target, self._key, known) if target is not None else known
        return self.__signature__

    def _deployed(self) -> Service:
        return object.__getattribute__(self._owner, "_deployed")()  # type: ignore[no-any-return]

    def _mode(self) -> tuple[bool, CallOptions]:
        state = object.__getattribute__(self._owner, "__dict__")
        return state["_async"], self._own_options or state["_options"]

    def aio(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call it and get a coroutine (an async iterator of a generator method); every keyword is the method's."""
        return self._aio(args, kwargs)

    def spawn(self, /, *args: Any, **kwargs: Any) -> Call[Any]:
        """Start a call and get its `Call` at once; every keyword is the method's."""
        return self._spawn(args, kwargs)

    def options(
        self,
        *,
        timeout: float | None = None,
        retries: int | None = None,
        stream_logs: bool | None = None,
        serialization: str | None = None,
    ) -> RemoteMethod:
        """The same method with other options for its calls, as `Fn.options`."""
        changed = with_options(
            self._mode()[1], timeout=timeout, retries=retries, stream_logs=stream_logs, serialization=serialization
        )
        return RemoteMethod(self._owner, self._key, changed)

    def __repr__(self) -> str:
        return "<{} {}: {}>".format(*self._looks())

    def _repr_html_(self) -> str:
        return summary(*self._looks())

    def _looks(self) -> tuple[str, str, str]:
        kind, name, state = self._owner._looks()
        return f"kubetorch method of {kind.removeprefix('kubetorch ')} {name}", self.__qualname__, state


class Cls(Module):
    """A class whose one instance lives in a pod; made by `cls`. Its public methods are called on the handle.

    The class's own public methods win over ours of the same name once it is deployed; ours are on ``.service``, which
    is always there. A class with ``__call__`` makes the handle callable.
    """

    _kind = "cls"

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name != "service":
            live = object.__getattribute__(self, "__dict__").get("_live")
            if live is not None and live.interface is not None and name in live.interface.entries:
                return RemoteMethod(self, name)
        return object.__getattribute__(self, name)

    def __getattr__(self, name: str) -> Any:
        # Reached for names that neither the interface nor we have. Never any I/O: completion and probes come here too.
        state = object.__getattribute__(self, "__dict__")
        live, source = state.get("_live"), state.get("_source")
        if name.startswith("_") or source is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if live is None:
            raise AttributeError(
                f'"{source.name}" has not been deployed, so it has no {name!r} yet: call .to(kt.Compute(...)) first'
            )
        methods = ", ".join(live.interface.methods) if live.interface else ""
        raise AttributeError(
            f"{source.name} has no public method {name!r}; it has: {methods or 'none'}. "
            "Data attributes are not read through the handle: add a method that returns them"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        # What `Module` has as its own begins with "_", or is a property.
        if not name.startswith("_") and not isinstance(getattr(type(self), name, None), property):
            raise AttributeError(
                f"{name!r} can't be set through the handle, since the instance is in the pod: "
                "add a method to the class that sets it"
            )
        object.__setattr__(self, name, value)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the instance, when its class has ``__call__``."""
        __tracebackhide__ = True
        interface = object.__getattribute__(self, "_deployed")().interface
        if interface is not None and "__call__" not in interface.entries:
            name = object.__getattribute__(self, "_source").name
            methods = ", ".join(interface.methods) or "none"
            raise TypeError(
                f"{name} has no __call__, and its instance is in the pod already: call one of its methods ({methods})"
            )
        return RemoteMethod(self, "__call__")(*args, **kwargs)

    def __dir__(self) -> list[str]:
        live = object.__getattribute__(self, "__dict__").get("_live")
        own = [n for n in object.__dir__(self) if not n.startswith("_")]
        return sorted({*own, *(live.interface.methods if live is not None and live.interface is not None else ())})

    def options(
        self,
        *,
        timeout: float | None = None,
        retries: int | None = None,
        stream_logs: bool | None = None,
        serialization: str | None = None,
    ) -> Cls:
        """A view of this handle whose calls have other options, as `Fn.options`."""
        return self._view(timeout=timeout, retries=retries, stream_logs=stream_logs, serialization=serialization)


def _unwrapped(given: Any, name: str | None, made: type[Module]) -> tuple[Any, str | None]:
    """What a handle was made of, for ``f = kt.fn(f).to(...)`` in a cell that is run again."""
    if not isinstance(given, Module):
        return given, name
    known: Source = object.__getattribute__(given, "_source")
    if not isinstance(given, made) or known.target is None:
        raise ConfigError(f"{given!r} is a handle already: use it, or give kt.{made._kind} what it should be made of")
    return known.target, name or known.name


def fn(
    function_obj: Callable[P, R] | None = None,
    name: str | None = None,
    get_if_exists: bool = True,
    reload_prefixes: Sequence[str] | None = None,
    sync_dir: str | bool | None = None,
    remote_dir: str | None = None,
    remote_import_path: str | None = None,
) -> Fn[P, R]:
    """Wrap a function, to be sent to a `Compute` with ``.to``.

    Parameters
    ----------
    function_obj
        Anything that can be called: a function of a cell or a module, a lambda, closure, partial or bound method.
    name
        The service's name; by default the function's. With a name only: the handle of the live service of that name.
    sync_dir
        None finds the local modules that the function uses by itself, False sends none, a path sends that folder.
    get_if_exists, reload_prefixes, remote_dir, remote_import_path
        Taken for Kubetorch's sake.

    Returns
    -------
    Fn

    Examples
    --------
    >>> import kubetorch_jupyter as kt
    >>> handle = kt.fn(lambda x: x + 1, name="plus-one")
    >>> handle
    <kubetorch Fn plus-one: not deployed>
    """
    if function_obj is None:
        if name is None:
            raise ConfigError("kt.fn needs a function, or the name= of a live service")
        return cast("Fn[P, R]", Fn.from_name(name))
    function_obj, name = _unwrapped(function_obj, name, Fn)
    if inspect.isclass(function_obj):
        raise ConfigError(f"kt.fn was given the class {function_obj.__name__}: use kt.cls for classes")
    if not callable(function_obj):
        raise ConfigError(f"kt.fn needs something that can be called, not {type(function_obj).__name__}")
    return Fn(Source(function_obj, name or display_name(function_obj), sync_dir))


def cls(
    class_obj: type[Any] | None = None,
    name: str | None = None,
    get_if_exists: bool = True,
    reload_prefixes: Sequence[str] | None = None,
    sync_dir: str | bool | None = None,
    remote_dir: str | None = None,
    remote_import_path: str | None = None,
) -> Cls:
    """Wrap a class, to be constructed once in a pod; parameters as those of `fn`.

    Returns
    -------
    Cls

    Examples
    --------
    >>> import kubetorch_jupyter as kt
    >>> class Counter:
    ...     def __init__(self, start=0): self.n = start
    ...     def add(self, k): self.n += k; return self.n
    >>> with kt.cls(Counter).to(kt.Compute(), init_args={"start": 5}, stream_logs=False) as counter:
    ...     counter.add(2)
    7
    """
    if class_obj is None:
        if name is None:
            raise ConfigError("kt.cls needs a class, or the name= of a live service")
        return cast(Cls, Cls.from_name(name))
    class_obj, name = _unwrapped(class_obj, name, Cls)
    if not inspect.isclass(class_obj):
        raise ConfigError(f"kt.cls needs a class, not {type(class_obj).__name__}; kt.fn is for functions")
    return Cls(Source(class_obj, name or class_obj.__name__, sync_dir))
