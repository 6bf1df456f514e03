"""What `Fn` and `Cls` share: naming, deploying, ending, and the state that is Kubetorch's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from .backends import begun
from .compute import Compute
from .config import config
from .errors import ConfigError, NotDeployedError
from .identity import service_name
from .invocation import check_serialization, with_options
from .markup import summary
from .options import CallOptions

if TYPE_CHECKING:
    from .delivery import Delivery
    from .service import Service

__all__ = ["Module", "Source"]


@dataclass(frozen=True)
class Source:
    """What a handle is made of, before any deploy."""

    target: Any
    name: str
    sync_dir: str | bool | None


class Module:
    """What `Fn` and `Cls` share: naming, deploying, ending, and the state that is Kubetorch's.

    ``service`` (management: ``teardown restart logs calls events status curl``) is always there, whatever the user's
    class defines.
    """

    _kind = "fn"

    def __init__(self, source: Source, *, service: Service | None = None) -> None:
        self._source = source
        self._live: Service | None = service
        self._compute: Compute | None = None
        self._init_args: Any = None
        self._async = False
        self._options = CallOptions(stream_logs=bool(config.stream_logs))
        self._stream_logs: bool | None = None

    # -- state -------------------------------------------------------------------------------------------------------

    @property
    def service(self) -> Service:
        """The live service, for management.

        Raises
        ------
        NotDeployedError
            Before ``.to``.
        """
        return self._deployed()

    @property
    def name(self) -> str:
        """The name of the function or class, as given."""
        return self._source.name

    @property
    def service_name(self) -> str:
        """The name of its service."""
        return self._live.name if self._live is not None else service_name(self._source.name)

    @property
    def namespace(self) -> str | None:
        """The Kubernetes namespace; None on this machine."""
        return self._live.namespace if self._live is not None else None

    @property
    def compute(self) -> Compute | None:
        """What it was deployed on."""
        return self._compute

    @property
    def init_args(self) -> Any:
        """What the class was constructed with."""
        return self._init_args

    @property
    def endpoint(self) -> str | None:
        """The URL of its pod."""
        return self._live.endpoint.url if self._live is not None and self._live.endpoint is not None else None

    @property
    def async_(self) -> bool:
        """Whether calls return coroutines when they don't say ``async_=`` themselves."""
        return self._async

    @async_.setter
    def async_(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise ConfigError(f"async_ is True or False, not {value!r}")
        self._async = value

    @property
    def stream_logs(self) -> bool:
        """Whether calls show their output in the cell; the pod keeps it either way."""
        return self._options.stream_logs

    @stream_logs.setter
    def stream_logs(self, value: bool) -> None:
        self._options = replace(self._options, stream_logs=bool(value))

    @property
    def serialization(self) -> str:
        """``"pickle"``, ``"json"`` or ``"none"``."""
        return self._options.serialization

    @serialization.setter
    def serialization(self, value: str) -> None:
        self._options = replace(self._options, serialization=check_serialization(value))

    # -- deploying ---------------------------------------------------------------------------------------------------

    def to(
        self,
        compute: Compute | None = None,
        init_args: Any = None,
        stream_logs: bool | None = None,
        get_if_exists: bool = False,
        reload_prefixes: Sequence[str] = (),
        dryrun: bool = False,
    ) -> Self:
        """Deploy, and block until it can be called.

        Parameters
        ----------
        compute
            What it needs; None for one pod of this machine with no limits.
        init_args
            For a class: a dict of keyword arguments, a list or tuple of positional ones, or None.
        stream_logs
            Show the output of loading, and of calls, in the cell; None for ``config.stream_logs``.
        get_if_exists
            Use a live service of that name as it is.
        reload_prefixes
            Taken for Kubetorch's sake: sources of local modules are always sent as they are now.
        dryrun
            Check and pack only.

        Returns
        -------
        The handle itself.

        Raises
        ------
        StartupError
            When the code can't be loaded; its ``__cause__`` is the pod's own exception and traceback.
        DeployError, SerializationError, ConfigError
            When no pod can be had, or the callable can't travel. Nothing is left behind.

        Examples
        --------
        >>> import kubetorch_jupyter as kt
        >>> def double(x): return 2 * x
        >>> with kt.fn(double).to(kt.Compute(), stream_logs=False) as g:
        ...     g(21)
        42
        """
        __tracebackhide__ = True
        compute, shown = self._settled(compute, init_args, stream_logs)
        with begun(compute) if not (dryrun or get_if_exists) else nullcontext():
            self._delivery(compute, init_args, shown, get_if_exists, dryrun).run()
        return self

    async def to_async(
        self,
        compute: Compute | None = None,
        init_args: Any = None,
        stream_logs: bool | None = None,
        get_if_exists: bool = False,
        reload_prefixes: Sequence[str] = (),
        dryrun: bool = False,
    ) -> Self:
        """`to` for a running loop, which it never blocks; several may be awaited in one ``gather``."""
        __tracebackhide__ = True
        compute, shown = self._settled(compute, init_args, stream_logs)
        with begun(compute) if not (dryrun or get_if_exists) else nullcontext():
            await self._delivery(compute, init_args, shown, get_if_exists, dryrun).run_async()
        return self

    def _settled(self, compute: Compute | None, init_args: Any, stream_logs: bool | None) -> tuple[Compute, bool]:
        """What it is deployed on, and whether its output is shown, from now on."""
        source = self._source
        if source.target is None:
            raise NotDeployedError(f'"{source.name}" was made from a name only and has no code to deploy')
        compute = compute if compute is not None else Compute()
        if not isinstance(compute, Compute):
            raise ConfigError(f".to() takes a kt.Compute, not {type(compute).__name__}")
        service_name(source.name)
        if self._kind == "fn" and init_args is not None:
            raise ConfigError("init_args= is for classes; a function's arguments are given when it is called")
        if init_args is not None and not isinstance(init_args, (dict, list, tuple)):
            raise ConfigError(
                f"init_args= is a dict of keyword arguments or a list of positional ones, not "
                f"{type(init_args).__name__}: one argument alone is init_args=[value]"
            )
        shown = self._options.stream_logs if stream_logs is None else bool(stream_logs)
        self._options = replace(self._options, stream_logs=shown)
        return compute, shown

    def _delivery(self, compute: Compute, init_args: Any, shown: bool, get_if_exists: bool, dryrun: bool) -> Delivery:
        # Here, and not before: importing it takes as long as a local pod's first process needs to come up.
        from .delivery import Delivery

        def adopt(service: Service) -> None:
            self._adopt(service)
            self._compute, self._init_args = compute, init_args

        source = self._source
        return Delivery(
            target=source.target,
            given_name=source.name,
            kind=self._kind,
            sync_dir=source.sync_dir,
            compute=compute,
            init_args=init_args,
            shown=shown,
            get_if_exists=get_if_exists,
            dryrun=dryrun,
            own_names=self._own_names(),
            adopt=adopt,
        )

    def _adopt(self, service: Service) -> None:
        self._live = service

    @classmethod
    def _own_names(cls) -> frozenset[str]:
        return frozenset(n for n in dir(cls) if not n.startswith("_"))

    def _deployed(self) -> Service:
        if self._live is None:
            raise NotDeployedError(
                f'"{self._source.name}" has not been deployed: call .to(kt.Compute(...)) first, or await .to_async(...)'
            )
        return self._live

    def _view(self, **changes: Any) -> Self:
        """The same handle with other options for its calls."""
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view.__dict__["_options"] = with_options(self.__dict__["_options"], **changes)
        return view

    # -- ending ------------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Remove the service and everything that belongs to it; raises when that fails."""
        __tracebackhide__ = True
        self._deployed().teardown()

    def __enter__(self) -> Self:
        self._deployed()
        return self

    def __exit__(self, *exc: object) -> None:
        self._deployed().teardown()

    async def __aenter__(self) -> Self:
        self._deployed()
        return self

    async def __aexit__(self, *exc: object) -> None:
        service = self._deployed()
        from .transport.portal import get_portal

        await get_portal().wrap(service.teardown_async())

    # -- finding -----------------------------------------------------------------------------------------------------

    @classmethod
    def from_name(cls, name: str, namespace: str | None = None, reload_prefixes: Sequence[str] = ()) -> Any:
        """The handle of a live service, by its name; it has no code of its own.

        Raises
        ------
        ServiceNotFoundError
            When there is none of that name.
        """
        __tracebackhide__ = True
        from .deploying import find_service
        from .transport.portal import get_portal

        service = get_portal().run(find_service(service_name(name), namespace))
        made = next(kind for kind in Module.__subclasses__() if kind._kind == service.kind)
        if not issubclass(made, cls):
            raise ConfigError(f'service "{name}" is a {service.kind}: use kt.{made.__name__}.from_name')
        handle = made(Source(None, service.interface.label if service.interface else name, None))
        handle._adopt(service)
        return handle

    # -- looks -------------------------------------------------------------------------------------------------------

    def _looks(self) -> tuple[str, str, str]:
        """What it is, its name, and how it is."""
        live, kind = self._live, f"kubetorch {type(self).__name__}"
        if live is None:
            return kind, self._source.name, "not deployed"
        where = "torn down" if live.torn_down else f"service {live.name} on {live.backend.name} pods"
        return kind, self._source.name, where

    def __repr__(self) -> str:
        return "<{} {}: {}>".format(*self._looks())

    def _repr_html_(self) -> str:
        return summary(*self._looks())

    def __getstate__(self) -> dict[str, Any]:
        # A handle travels as the way to its service, not with its code: a service that calls a service needs no more.
        source = replace(self._source, target=None)
        return {**self.__dict__, "_source": source, "_compute": None, "_init_args": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
