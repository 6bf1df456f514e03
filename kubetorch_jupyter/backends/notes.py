"""What there is to say of this machine, and what of a `Compute` means nothing here: not ignored in silence."""

from __future__ import annotations

import os

from ..compute import Compute
from ..config import config
from ..errors import UnsupportedError
from .base import Finding

__all__ = ["local_findings", "local_notes", "no_volumes"]

_CLUSTER_ONLY = (
    "disk_size",
    "gpu_type",
    "gpu_memory",
    "priority_class_name",
    "volumes",
    "node_selector",
    "service_template",
    "tolerations",
    "secrets",
    "service_account_name",
    "image_pull_policy",
    "gpu_anti_affinity",
    "shared_memory_limit",
    "replicas",
    "queue_name",
    "run_as_root",
)


def local_notes(compute: Compute) -> list[str]:
    """What was asked for and means nothing on this machine."""
    notes = [compute.image.local_note()] if compute.image is not None else []
    unset = Compute()
    if ignored := [name for name in _CLUSTER_ONLY if getattr(compute, name) != getattr(unset, name)]:
        notes.append(f"{', '.join(ignored)} of the Compute mean something on Kubernetes only, and are ignored here")
    return [note for note in notes if note]


def local_findings(unused: str | None) -> list[Finding]:
    """For ``%kt doctor``.

    Parameters
    ----------
    unused
        What there is to say of a kubeconfig that lies there.
    """
    declared = config.local_gpus
    gpus = f"{declared} GPUs declared" if declared is not None else "GPUs counted when a deploy asks for some"
    return [
        Finding("backend", "ok", f"services go to this machine, {os.cpu_count()} CPUs, {gpus}"),
        Finding("cluster", "note", unused or "none is used"),
    ]


def no_volumes() -> UnsupportedError:
    """The error for who wants to make or delete one here."""
    if os.environ.get("KUBERNETES_SERVICE_HOST") and config.backend != "local":
        return UnsupportedError(
            "volumes are the cluster's, and this pod may ask it for nothing: it has no service account token. "
            "Compute(service_account_name=...) gives one to the pods of a service; in a notebook's pod whoever runs "
            "the hub can"
        )
    return UnsupportedError(
        "volumes are Kubernetes', and services go to this machine, where they see its own folders. "
        'kt.config.backend = "kubernetes" (KT_BACKEND), or the Volume\'s namespace=, means a cluster'
    )
