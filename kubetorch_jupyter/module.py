"""What `Fn` and `Cls` share: naming, deploying, ending, and the state that is Kubetorch's."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from . import shipping
from .calls import CallOptions, load_error
from .code import take_code
from .compute import Compute
from .config import config
from .errors import ConfigError, NotDeployedError
from .identity import service_name
from .interface import Interface
from .invocation import KEYWORDS, check_serialization, with_options
from .markup import summary
from .packing import pack
from .progress import DeployProgress
from .service import Service, deploy, find_service
from .streams import open_output
from .transport.portal import get_portal
from .transport.session import RemoteFailure

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
        make, up, progress = self._deploying(compute, init_args, stream_logs, get_if_exists, dryrun)
        with progress:
            bundle = make()
            if not dryrun:
                try:
                    get_portal().run(up(bundle))
                except RemoteFailure as e:
                    error = load_error(e, service_name(self._source.name))
                    raise error from error.__cause__
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
        make, up, progress = self._deploying(compute, init_args, stream_logs, get_if_exists, dryrun)

        async def run() -> None:
            bundle = await pack(make)
            if not dryrun:
                await up(bundle)

        async with progress:
            try:
                await get_portal().wrap(run())
            except RemoteFailure as e:
                error = load_error(e, service_name(self._source.name))
                raise error from error.__cause__
        return self

    def _deploying(
        self, compute: Compute | None, init_args: Any, stream_logs: bool | None, get_if_exists: bool, dryrun: bool
    ) -> tuple[Callable[[], shipping.Bundle], Callable[[shipping.Bundle], Coroutine[Any, Any, None]], DeployProgress]:
        """The two steps of a deploy, pack in a thread of the user's and bring up on the portal, and what shows them."""
        source = self._source
        if source.target is None:
            raise NotDeployedError(f'"{source.name}" was made from a name only and has no code to deploy')
        compute = compute if compute is not None else Compute()
        if not isinstance(compute, Compute):
            raise ConfigError(f".to() takes a kt.Compute, not {type(compute).__name__}")
        name = service_name(source.name)
        if self._kind == "fn" and init_args is not None:
            raise ConfigError("init_args= is for classes; a function's arguments are given when it is called")
        if init_args is not None and not isinstance(init_args, (dict, list, tuple)):
            raise ConfigError(
                f"init_args= is a dict of keyword arguments or a list of positional ones, not "
                f"{type(init_args).__name__}: one argument alone is init_args=[value]"
            )
        shown = self._options.stream_logs if stream_logs is None else bool(stream_logs)
        self._options = replace(self._options, stream_logs=shown)
        progress = DeployProgress(name, quiet=not shown or dryrun)
        # Where the load's own output goes: the deploying cell.
        output = open_output(name) if shown else None
        here = os.getcwd()

        def make() -> shipping.Bundle:
            return shipping.pack(
                source.target,
                name=shipping.display_name(source.target),
                kind=self._kind,
                init_args=init_args,
                sync_dir=source.sync_dir,
                compute=compute,
            )

        async def up(bundle: shipping.Bundle) -> None:
            code = take_code(bundle, compute, here)
            # That ``_`` becomes ``-`` is seen in the next line.
            if name != source.name.lower().replace("_", "-"):
                progress.note(f'the service of "{source.name}" is called "{name}"')
            for line in self._hidden(bundle):
                progress.note(line)
            service = await deploy(code, name, progress, output, get_if_exists=get_if_exists)
            self._adopt(service)
            self._compute, self._init_args = compute, init_args

        return make, up, progress

    def _adopt(self, service: Service) -> None:
        self._live = service

    @classmethod
    def _own_names(cls) -> frozenset[str]:
        return frozenset(n for n in dir(cls) if not n.startswith("_"))

    def _hidden(self, bundle: shipping.Bundle) -> list[str]:
        """What to say about the user's names that win over ours."""
        lines = []
        for key, entry in Interface(bundle.meta["interface"], bundle.meta["name"]).entries.items():
            if theirs := sorted(entry.parameters & KEYWORDS):
                names = ", ".join(theirs)
                lines.append(f"{entry.name} has its own parameter {names}: in calls of it the name is yours")
            if self._kind == "cls" and key == "service":
                lines.append(f"{entry.name} can't be called on the handle: .service is ours there; rename it")
            elif self._kind == "cls" and key in self._own_names():
                lines.append(f"{entry.name} hides ours of that name on the handle; ours are on .service")
        return lines

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
        await get_portal().wrap(self._deployed().teardown_async())

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
