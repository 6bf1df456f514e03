"""Where pods run. A backend brings a service's pods up and down; it knows nothing of what runs in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..compute import Compute
from ..config import config
from .installed import is_whole, need_kubernetes

if TYPE_CHECKING:
    from .base import Backend

__all__ = ["backend_of", "begun", "get_backend"]

_SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount/token"


def get_backend(compute: Compute) -> Backend:
    """The backend for a service.

    Kubernetes when the user has said so (``config.backend`` or ``KT_BACKEND``; a `namespace` or `kubeconfig_path` of
    the `Compute`; a ``config.context``), or when this process runs in a cluster; else this machine. A kubeconfig
    that merely lies there decides nothing, and there is no falling back from one to the other.

    Raises
    ------
    ConfigError
        For Kubernetes, in a pod of a service whose image doesn't have this package in the same version.
    """
    if _is_kubernetes(compute):
        need_kubernetes()
        from .kubernetes.backend import kubernetes_backend

        return kubernetes_backend(compute)
    from .local import local_backend

    return local_backend()


def backend_of(name: str, namespace: str | None, token: str, compute: Compute) -> Backend:
    """The backend for a service of a cluster whose handle was made in another process.

    Parameters
    ----------
    name, namespace, token
        The service; a handle brings its token along.
    compute
        As for `get_backend`.
    """
    if _is_inside():
        from .inside import inside_backend

        inside = inside_backend(namespace)
        inside.tell(name, token)
        return inside
    found = get_backend(compute)
    return get_backend(Compute(namespace=namespace)) if found.here and namespace is not None else found


@contextmanager
def begun(compute: Compute) -> Iterator[None]:
    """Begin what a deploy to this `Compute` needs and what takes long; what it hasn't used at its end is taken back.

    That is the first process of this client's local pods, which comes up while the client imports what it deploys with.
    """
    image = compute.image
    if _is_kubernetes(compute) or (image is not None and image.local_problem()):
        yield
        return
    from .spawning import spawned_early

    with spawned_early(compute):
        yield


def _is_kubernetes(compute: Compute) -> bool:
    if config.backend in ("local", "kubernetes"):
        return config.backend == "kubernetes"
    named = (compute.namespace, compute.kubeconfig_path, config.context)
    if any(value is not None for value in named):
        return True
    return _in_cluster() and os.path.exists(_SERVICE_ACCOUNT)


def _is_inside() -> bool:
    """Whether this process is in a pod that may only call: without rights, or without what would use them."""
    if not _in_cluster() or config.backend == "kubernetes" or config.context is not None:
        return False
    return not os.path.exists(_SERVICE_ACCOUNT) or not is_whole()


def _in_cluster() -> bool:
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))
