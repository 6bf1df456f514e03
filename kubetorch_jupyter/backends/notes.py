"""What of a `Compute` means nothing where it is deployed: said once at the deploy, not ignored in silence."""

from __future__ import annotations

from ..compute import Compute

__all__ = ["local_notes"]

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
_NOT_YET = ("allowed_serialization", "freeze")


def local_notes(compute: Compute) -> list[str]:
    """What was asked for and means nothing on this machine."""
    notes = [compute.image.local_note()] if compute.image is not None else []
    unset = Compute()
    if ignored := [name for name in _CLUSTER_ONLY if getattr(compute, name) != getattr(unset, name)]:
        notes.append(f"{', '.join(ignored)} of the Compute mean something on Kubernetes only, and are ignored here")
    if ignored := [name for name in _NOT_YET if getattr(compute, name) != getattr(unset, name)]:
        notes.append(f"{', '.join(ignored)} of the Compute has no effect in this version")
    return [note for note in notes if note]
