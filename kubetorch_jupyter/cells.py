"""Cells that run in a pod: `Cells`, a namespace that lasts. ``%%kt`` is a face of it; scripts can use it as well."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any, cast

from pod_server.cells import Namespace, compile_cell

from . import sources
from .callables import Cls, RemoteMethod, cls
from .calls import Call
from .compute import Compute
from .errors import ConfigError, NotDeployedError, ServiceNotFoundError
from .identity import describe_client, service_name
from .module import Module
from .overview import services
from .service import Service

__all__ = ["Cells", "default_name"]

#: What a namespace's service says of itself.
_LABEL = Namespace.__name__


def default_name() -> str:
    """The name of this notebook's own namespace: of its path, so that it is found again after a restart.

    Without a Jupyter server, which says what the notebook is called, it is this process's.

    Examples
    --------
    >>> default_name().startswith("cells-")
    True
    """
    path = os.environ.get("JPY_SESSION_NAME")
    if not path:
        return f"cells-{os.getpid()}"
    stem = re.sub(r"[^a-z0-9]+", "-", os.path.splitext(os.path.basename(path))[0].lower()).strip("-")[:30].strip("-")
    digest = hashlib.blake2b(os.path.abspath(path).encode(), digest_size=3).hexdigest()
    return f"cells-{stem}-{digest}" if stem else f"cells-{digest}"


def _whose(name: str) -> str:
    """Who else has deployed a service, to be put after its name; nothing when it was this notebook, by any kernel."""
    owner: Mapping[str, Any] = next((info.owner for info in services() if info.name == name), {})
    me = describe_client()
    if not owner or all(owner.get(key) == me[key] for key in ("user", "host", "notebook")):
        return ""
    return f", deployed by {owner.get('user')} from {owner.get('notebook') or owner.get('pid')},"


class Cells:
    """A namespace in a pod that code runs in, piece by piece, as cells do in a kernel.

    Its code runs on one thread with an event loop that lasts: ``await`` is allowed at the top level, and a task that
    one cell has made can be awaited in the next. It is a service like any other: ``.service`` manages it.

    Parameters
    ----------
    name
        The service's name; by default one of this notebook.

    Examples
    --------
    >>> import kubetorch_jupyter as kt
    >>> cells = kt.Cells("doctest-cells").to(kt.Compute(), stream_logs=False)
    >>> cells.put({"x": 20})
    >>> cells.run("y = x + 1")
    >>> cells.fetch("y")
    {'y': 21}
    >>> cells.teardown()
    """

    def __init__(self, name: str | None = None) -> None:
        self._name = service_name(name if name is not None else default_name())
        self._handle: Cls | None = None
        self._compute: Compute | None = None
        self._count = 0

    @property
    def name(self) -> str:
        """The service's name."""
        return self._handle.service.name if self._handle is not None else self._name

    @property
    def compute(self) -> Compute | None:
        """What it was deployed on; None before that, and when a live one was taken as it is."""
        return self._compute

    @property
    def service(self) -> Service:
        """The live service, for management.

        Raises
        ------
        NotDeployedError
            Before `to`.
        """
        return self._deployed().service

    @property
    def deployed(self) -> bool:
        """Whether `to` has been called, and `teardown` not since."""
        return self._handle is not None

    def __repr__(self) -> str:
        return f"<kubetorch Cells {self._name}: {'deployed' if self.deployed else 'not deployed'}>"

    def _deployed(self) -> Cls:
        if self._handle is None:
            raise NotDeployedError(
                f'the namespace "{self._name}" has not been deployed: call .to(kt.Compute(...)) first'
            )
        return self._handle

    # -- life --------------------------------------------------------------------------------------------------------

    def to(self, compute: Compute | None = None, *, stream_logs: bool | None = None) -> Cells:
        """Deploy it, and block until code can run.

        Parameters
        ----------
        compute
            What it needs. None takes a live namespace of this name as it is, with its variables.
        stream_logs
            Show how it goes, and what cells print; None for ``config.stream_logs``.

        Returns
        -------
        Cells
            Itself.

        Raises
        ------
        ConfigError
            When a service of that name is no namespace; for more than one replica: each would have variables of its
            own.
        DeployError
            When no pod can be had.
        """
        __tracebackhide__ = True
        if compute is not None and compute.replicas > 1:
            raise ConfigError(
                f'"{self._name}" is a namespace for cells, which is one pod: with replicas={compute.replicas} each '
                "would have variables of its own"
            )
        handle = cls(Namespace, name=self._name)
        lives = self._lives()
        if lives and compute is None:
            shown = handle.stream_logs if stream_logs is None else stream_logs
            handle.to(stream_logs=False, get_if_exists=True)  # what it was deployed with differs, and doesn't matter
            handle.stream_logs = shown
            if shown:
                print(f'kubetorch: "{self._name}"{_whose(self._name)} is live, and its variables are there')
        else:
            handle.to(compute, stream_logs=stream_logs)
        self._handle, self._compute = handle, compute
        return self

    def _lives(self) -> bool:
        """Whether there is a live namespace of this name; a deploy would replace the code of another service."""
        try:
            live = Module.from_name(self._name).service
        except (ServiceNotFoundError, NotDeployedError):
            return False  # the second: a pod that has no code yet, or whose deploy was given up
        if live.label != _LABEL:
            raise ConfigError(
                f'"{self._name}" is the service of {live.label}, and no namespace for cells: give another name'
            )
        return True

    def restart(self) -> None:
        """Begin with an empty namespace, in a fresh process; what runs there ends."""
        self.service.restart()

    def teardown(self) -> None:
        """End the service and remove everything that belongs to it."""
        self._deployed().teardown()
        self._handle = self._compute = None

    # -- cells -------------------------------------------------------------------------------------------------------

    def run(
        self,
        source: str,
        *,
        name: str | None = None,
        text: str | None = None,
        timed: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Run code there and block until it has ended; what it prints, and its last expression, are shown here.

        Parameters
        ----------
        source
            Python; ``await`` is allowed.
        name
            The file name that tracebacks show.
        text
            The lines that tracebacks show, if they aren't those of ``source``.
        timed
            Print how long it took in the pod.
        timeout
            Seconds after which it is cancelled.

        Raises
        ------
        SyntaxError
            When it is no Python; it isn't sent then.
        Exception
            What the code raised.
        """
        __tracebackhide__ = True
        arguments = self._arguments(source, name, text)
        self._method("run", timeout)(*arguments, timed)

    def spawn(
        self,
        source: str,
        *,
        name: str | None = None,
        text: str | None = None,
        timed: bool = False,
        timeout: float | None = None,
    ) -> Call[None]:
        """Start code there and go on; parameters as those of `run`.

        Returns
        -------
        Call
            To wait for it, cancel it, or read what it has printed.
        """
        __tracebackhide__ = True
        arguments = self._arguments(source, name, text)
        return self._method("run", timeout).spawn(*arguments, timed)

    def _arguments(self, source: str, name: str | None, text: str | None) -> tuple[str, str, str]:
        if name is None:
            self._count += 1
            name = f"<{self._name} {self._count}>"
        compile_cell(source, name)  # a SyntaxError is raised here
        self._bring_modules(source)
        return source, name, text if text is not None else source

    def _bring_modules(self, source: str) -> None:
        """Send the user's own modules that a cell imports, where the pod isn't in this directory and has them not."""
        if self._deployed().service.backend.here:
            return
        tree = sources.collect(sources.imported_names(source))
        if tree.files:
            data, digest = sources.pack_zip(tree)
            if not self._method("modules")(digest):
                self._method("modules")(digest, data)

    def put(self, values: Mapping[str, Any]) -> None:
        """Set variables there, by value.

        Raises
        ------
        SerializationError
            When one can't be sent; names it.
        """
        __tracebackhide__ = True
        self._method("put")(dict(values))

    def fetch(self, *names: str) -> dict[str, Any]:
        """The values of variables there, by value; those that there aren't are left out.

        Raises
        ------
        SerializationError
            When one can't be sent or made here.
        PayloadTooLargeError
            When they have more than 4 GiB.
        """
        __tracebackhide__ = True
        return cast("dict[str, Any]", self._method("fetch")(list(names)))

    def names(self) -> dict[str, str]:
        """The variables there, and the names of their types."""
        __tracebackhide__ = True
        return cast("dict[str, str]", self._method("names")())

    def _method(self, name: str, timeout: float | None = None) -> RemoteMethod:
        method: RemoteMethod = getattr(self._deployed(), name)
        return method.options(timeout=timeout) if timeout is not None else method
