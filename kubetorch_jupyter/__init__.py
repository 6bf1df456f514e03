"""Run a notebook's Python on pods: ``import kubetorch_jupyter as kt``.

The public names, and nothing else. Each is imported when it is first used, so that the import itself costs next to
nothing. Modules of this package import names from ``.calls``, ``.config`` … and never ``from . import calls``, because
five names here are also those of modules.

Examples
--------
>>> import kubetorch_jupyter as kt
>>> kt.Compute(cpus="0.5")
Compute(cpus=0.5)
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if sys.version_info < (3, 11):  # noqa: UP036 - it travels to every pod, and a pod's Python may be 3.10
    raise ImportError(
        f"{__name__} needs Python 3.11 or later, and this is {sys.version_info[0]}.{sys.version_info[1]}: functions "
        "run here all the same, but they can't call other services; use an image with a newer Python for that"
    )

if TYPE_CHECKING:
    from . import errors as errors
    from . import images as images
    from .callables import Cls, Fn, Module, cls, fn
    from .calls import Call
    from .cells import Cells
    from .compat import install_as_kubetorch, uninstall_as_kubetorch
    from .compute import Compute
    from .config import config
    from .errors import (
        AuthenticationError,
        CallCancelledError,
        CallError,
        CallTimeoutError,
        Cancelled,
        ConfigError,
        ConnectionFailedError,
        DeployError,
        ImagePullError,
        KubernetesCredentialsError,
        KubetorchError,
        NotDeployedError,
        NotebookError,
        PayloadTooLargeError,
        PodContainerError,
        PodLostError,
        PodTerminatedError,
        RecordExpiredError,
        RemoteError,
        ResourceNotAvailableError,
        SecretNotFound,
        SerializationError,
        ServiceHealthError,
        ServiceNotFoundError,
        ServiceTimeoutError,
        StartupError,
        UnknownCallError,
        UnsupportedError,
        VersionMismatchError,
        WorkerDiedError,
        WorkerMembershipChanged,
    )
    from .image import Image
    from .logs import logs
    from .notebook.panel import panel
    from .overview import attach, calls, services, teardown
    from .preview import preview
    from .secret import Secret, secret
    from .storage import Volume

__version__ = "0.1.0"

__all__ = [
    "AuthenticationError",
    "Call",
    "CallCancelledError",
    "CallError",
    "CallTimeoutError",
    "Cancelled",
    "Cells",
    "Cls",
    "Compute",
    "ConfigError",
    "ConnectionFailedError",
    "DeployError",
    "Fn",
    "Image",
    "ImagePullError",
    "KubernetesCredentialsError",
    "KubetorchError",
    "Module",
    "NotDeployedError",
    "NotebookError",
    "PayloadTooLargeError",
    "PodContainerError",
    "PodLostError",
    "PodTerminatedError",
    "RecordExpiredError",
    "RemoteError",
    "ResourceNotAvailableError",
    "Secret",
    "SecretNotFound",
    "SerializationError",
    "ServiceHealthError",
    "ServiceNotFoundError",
    "ServiceTimeoutError",
    "StartupError",
    "UnknownCallError",
    "UnsupportedError",
    "VersionMismatchError",
    "Volume",
    "WorkerDiedError",
    "WorkerMembershipChanged",
    "__version__",
    "attach",
    "calls",
    "cls",
    "config",
    "errors",
    "fn",
    "images",
    "install_as_kubetorch",
    "load_ipython_extension",
    "logs",
    "panel",
    "preview",
    "secret",
    "services",
    "teardown",
    "uninstall_as_kubetorch",
    "unload_ipython_extension",
]

# Name → the module that has it. What isn't here, and isn't a module itself, is an error's class.
_HOME = {
    "Call": "calls",
    "Cells": "cells",
    "Cls": "callables",
    "Compute": "compute",
    "Fn": "callables",
    "Image": "image",
    "Module": "callables",
    "Secret": "secret",
    "Volume": "storage",
    "attach": "overview",
    "calls": "overview",
    "cls": "callables",
    "config": "config",
    "fn": "callables",
    "install_as_kubetorch": "compat",
    "logs": "logs",
    "panel": "notebook.panel",
    "preview": "preview",
    "secret": "secret",
    "services": "overview",
    "teardown": "overview",
    "uninstall_as_kubetorch": "compat",
}
_MODULES = frozenset({"errors", "images"})
_LATER = frozenset(
    {"App", "app", "async_", "autoscale", "compute", "distribute", "distributed", "get", "ls", "put", "rm"}
)


def load_ipython_extension(ipython: Any) -> None:
    """Do what ``%load_ext kubetorch_jupyter`` asks for."""
    import_module(".notebook.extension", __name__).load_ipython_extension(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """Undo `load_ipython_extension`."""
    import_module(".notebook.extension", __name__).unload_ipython_extension(ipython)


class _Package(ModuleType):
    # The import system binds each submodule to its name in the package. Some names here are a function or an object
    # beside a submodule of the same name (kt.config, kt.secret, kt.calls, kt.preview): those stay.
    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in _HOME:
            return
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    value: Any
    if name in _MODULES:
        value = import_module(f".{name}", __name__)
    elif name in _HOME:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    elif name in __all__:
        value = getattr(import_module(".errors", __name__), name)
    elif name in _LATER:
        raise AttributeError(f"{name} is Kubetorch's and not part of this version of {__name__} ({__version__})")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


sys.modules[__name__].__class__ = _Package
