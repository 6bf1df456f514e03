"""Where pods run. A backend brings a service's pods up and down; it knows nothing of what runs in them."""

from __future__ import annotations

import os

from ..compute import Compute
from ..config import config
from ..errors import ConfigError
from .base import Backend

__all__ = ["get_backend"]

_SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount/token"


def get_backend(compute: Compute) -> Backend:
    """The backend for a service.

    Kubernetes when the user has said so (``config.backend`` or ``KT_BACKEND``; a `namespace` or `kubeconfig_path` of
    the `Compute`; a ``config.context``), or when this process runs in a cluster; else this machine. A kubeconfig
    that merely lies there decides nothing, and there is no falling back from one to the other.

    Raises
    ------
    ConfigError
        For Kubernetes, which this version doesn't have.
    """
    why = _why_kubernetes(compute)
    if why is not None:
        raise ConfigError(
            f"{why} means Kubernetes, and this version runs services on this machine only; "
            'set KT_BACKEND=local (or kt.config.backend = "local") to use this machine'
        )
    from .local import local_backend

    return local_backend()


def _why_kubernetes(compute: Compute) -> str | None:
    """What speaks for Kubernetes, for people; None when nothing does."""
    chosen = config.backend
    if chosen == "local":
        return None
    if chosen == "kubernetes":
        return f'backend="kubernetes" (from {config.source("backend")})'
    if compute.namespace is not None:
        return f"Compute(namespace={compute.namespace!r})"
    if compute.kubeconfig_path is not None:
        return f"Compute(kubeconfig_path={compute.kubeconfig_path!r})"
    if config.context is not None:
        return f"config.context={config.context!r}"
    if os.environ.get("KUBERNETES_SERVICE_HOST") and os.path.exists(_SERVICE_ACCOUNT):
        return "running in a cluster"
    return None
