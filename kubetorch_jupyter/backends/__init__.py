"""Where pods run. A backend brings a service's pods up and down; it knows nothing of what runs in them."""

from __future__ import annotations

import os

from ..compute import Compute
from ..config import config
from .base import Backend

__all__ = ["get_backend"]

_SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount/token"


def get_backend(compute: Compute) -> Backend:
    """The backend for a service.

    Kubernetes when the user has said so (``config.backend`` or ``KT_BACKEND``; a `namespace` or `kubeconfig_path` of
    the `Compute`; a ``config.context``), or when this process runs in a cluster; else this machine. A kubeconfig
    that merely lies there decides nothing, and there is no falling back from one to the other.
    """
    if _is_kubernetes(compute):
        from .kubernetes.backend import kubernetes_backend

        return kubernetes_backend(compute)
    from .local import local_backend

    return local_backend()


def _is_kubernetes(compute: Compute) -> bool:
    if config.backend in ("local", "kubernetes"):
        return config.backend == "kubernetes"
    named = (compute.namespace, compute.kubeconfig_path, config.context)
    if any(value is not None for value in named):
        return True
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and os.path.exists(_SERVICE_ACCOUNT)
