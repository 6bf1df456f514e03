"""What an object in the cluster says of its service: the annotations and labels that ``objects`` put there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .. import names

__all__ = ["ServiceFields", "newest", "read_code", "read_service"]


@dataclass(frozen=True)
class ServiceFields:
    """A revision of a service, as its Job and pods tell it; nothing of it is asked of a pod.

    Parameters
    ----------
    name, namespace, revision, job
        Which.
    owner
        Who deployed: ``user``, ``host``, ``pid``, ``notebook``.
    created
        Unix time.
    resources
        What it asks for, as given.
    ttl
        Seconds without a call, or None.
    replicas, ready
        Pods that there should be, and those that are ready.
    spec
        What only a new pod can change; empty when somebody has removed it, so that it never seems equal.
    loaded
        Whether its pods have had their code.
    deleting, finished, suspended
        What is to become of the Job.
    """

    name: str
    namespace: str
    revision: str
    job: str
    owner: Mapping[str, Any]
    created: float
    resources: Mapping[str, Any]
    ttl: float | None
    replicas: int
    ready: int
    spec: str
    loaded: bool
    deleting: bool
    finished: bool
    suspended: bool


def read_service(job: Mapping[str, Any], pods: Iterable[Mapping[str, Any]] = ()) -> ServiceFields | None:
    """Read a Job back; None for one that isn't ours. What others have spoilt reads as if it weren't said.

    Parameters
    ----------
    job
        As the API server has it.
    pods
        Those of the namespace, or of the Job; others are left out.
    """
    metadata: Mapping[str, Any] = job.get("metadata") or {}
    labels: Mapping[str, str] = metadata.get("labels") or {}
    annotations: Mapping[str, str] = metadata.get("annotations") or {}
    service, revision = labels.get(names.SERVICE), labels.get(names.REVISION)
    if labels.get(names.MANAGED_BY) != names.MANAGER or not service or not revision:
        return None
    spec: Mapping[str, Any] = job.get("spec") or {}
    conditions = (job.get("status") or {}).get("conditions") or ()
    return ServiceFields(
        name=service,
        namespace=str(metadata.get("namespace") or ""),
        revision=revision,
        job=str(metadata.get("name") or ""),
        owner=_object(annotations.get(names.OWNER)) or {"user": labels.get(names.OWNER, "")},
        created=_number(annotations.get(names.CREATED)) or 0.0,
        resources=_object(annotations.get(names.RESOURCES)),
        ttl=_number(annotations.get(names.TTL)),
        replicas=int(spec.get("completions") or 1),
        ready=sum(_ready(pod) for pod in pods if _is_of(pod, service, revision)),
        spec=str(annotations.get(names.SPEC) or ""),
        loaded=annotations.get(names.LOADED) == "true",
        deleting=metadata.get("deletionTimestamp") is not None,
        finished=any(c.get("type") in ("Complete", "Failed") and c.get("status") == "True" for c in conditions),
        suspended=bool(spec.get("suspend")),
    )


def read_code(metadata: Mapping[str, Any]) -> tuple[str, bool]:
    """Which version of the code a Secret has, empty where it has none, and whether that had no room."""
    annotations: Mapping[str, str] = metadata.get("annotations") or {}
    return str(annotations.get(names.CODE) or ""), annotations.get(names.TOO_LARGE) == "true"


def newest(jobs: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The Job of a service's current revision: the last that was made of those that live, else of all."""
    found = [(fields, job) for job in jobs if (fields := read_service(job)) is not None]
    if not found:
        return None
    return max(found, key=lambda pair: (not (pair[0].deleting or pair[0].finished), _made(pair[1])))[1]


def _made(job: Mapping[str, Any]) -> tuple[str, str]:
    metadata = job["metadata"]
    return str(metadata.get("creationTimestamp") or ""), str(metadata.get("name") or "")


def _is_of(pod: Mapping[str, Any], service: str, revision: str) -> bool:
    labels = (pod.get("metadata") or {}).get("labels") or {}
    return labels.get(names.SERVICE) == service and labels.get(names.REVISION) == revision


def _ready(pod: Mapping[str, Any]) -> bool:
    if (pod.get("metadata") or {}).get("deletionTimestamp") is not None:
        return False
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def _object(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
