"""The objects of a service: Job, Service, Secrets, ConfigMap, claims."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .. import names
from ..volumes import claim
from .merge import merged
from .plan import Plan
from .pod import pod_template

__all__ = [
    "bundle_config_map",
    "claims",
    "code",
    "headless_service",
    "job",
    "kept",
    "owner_reference",
    "secret",
    "user_secrets",
]

#: Restarts of containers and lost pods never fail the Job; the API's largest number.
_NEVER = 2147483647
#: Seconds until a Job that has ended is removed, with all that it owns.
_REMOVED_AFTER = 5


def job(plan: Plan) -> dict[str, Any]:
    """The Job, suspended: what it owns is made before it is released.

    Raises
    ------
    ConfigError
        When the user's ``service_template`` or volumes would break the service.
    """
    compute = plan.compute
    labels = dict(plan.labels)
    if compute.queue_name is not None:
        labels[names.QUEUE] = compute.queue_name
    annotations = {
        **plan.annotations,
        names.OWNER: json.dumps(dict(plan.owner), sort_keys=True, default=str),
        names.SPEC: plan.spec,
        names.RESOURCES: json.dumps(compute.resources(), sort_keys=True),
        names.CREATED: repr(plan.created),
    }
    if compute.ttl_seconds is not None:
        annotations[names.TTL] = f"{compute.ttl_seconds:.15g}"
    ours = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": plan.job_name,
            "namespace": plan.namespace,
            "labels": labels,
            "annotations": annotations,
        },
        "spec": {
            "completionMode": "Indexed",
            "completions": compute.replicas,
            "parallelism": compute.replicas,
            "backoffLimit": _NEVER,
            "ttlSecondsAfterFinished": _REMOVED_AFTER,
            "suspend": True,
            "template": pod_template(plan),
        },
    }
    if not compute.service_template:
        return ours
    template: Any = compute.service_template
    return merged(ours, template.thaw())


def kept(plan: Plan) -> dict[str, str | None]:
    """The annotations of a Job whose pods have their code, for a merge patch: None removes one."""
    ttl = plan.compute.ttl_seconds
    return {
        names.OWNER: json.dumps(dict(plan.owner), sort_keys=True, default=str),
        names.RESOURCES: json.dumps(plan.compute.resources(), sort_keys=True),
        names.TTL: f"{ttl:.15g}" if ttl is not None else None,
        names.LOADED: "true",
    }


def code(file: bytes, version: str, *, too_large: bool) -> dict[str, Any]:
    """The Secret's code, with what tells which it is without reading it; for a merge patch: None removes.

    Parameters
    ----------
    file
        A code file.
    version
        That of the code.
    too_large
        It had no room: the file only says so.
    """
    annotations = {names.CODE: version, names.TOO_LARGE: "true" if too_large else None}
    return {"metadata": {"annotations": annotations}, "data": {"code": base64.b64encode(file).decode("ascii")}}


def headless_service(plan: Plan, owners: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The Service that gives the pods of the revision their names."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(plan, names.headless_name(plan.service), owners),
        "spec": {
            "clusterIP": "None",
            "selector": {names.SERVICE: plan.service, names.REVISION: plan.revision},
            "ports": [{"name": names.PORT_NAME, "port": names.PORT, "targetPort": names.PORT, "protocol": "TCP"}],
            "publishNotReadyAddresses": True,
        },
    }


def secret(
    plan: Plan, token: str, code: bytes | None = None, owners: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The Secret with the service's token, and its code when that is known.

    Each revision has its own: a new pod must not begin with the code of the revision that it replaces.
    """
    data = {"token": token.encode()}
    if code is not None:
        data["code"] = code
    return _secret(_metadata(plan, plan.job_name, owners), data)


def user_secrets(plan: Plan, owners: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """A Secret for each of the user's whose values come from this client."""
    return [
        _secret(_metadata(plan, names.user_secret_name(plan.job_name, source.name), owners), source.data)
        for source in plan.secrets
        if not source.existing
    ]


def bundle_config_map(
    plan: Plan, content: Mapping[str, Any], owners: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The ConfigMap with what every pod needs; shared by all services whose bundle has that hash.

    Parameters
    ----------
    plan
        Of a service that needs it.
    content
        ``data`` and ``binaryData``, as ``Bundle.config_map_data`` has them.
    owners
        One reference for each Job that uses it.
    """
    metadata: dict[str, Any] = {
        "name": names.bundle_name(plan.bundle),
        "namespace": plan.namespace,
        "labels": dict(plan.shared_labels),
    }
    if owners:
        metadata["ownerReferences"] = [dict(owner) for owner in owners]
    # Its name says its content. Nodes needn't watch it then.
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True, **content}


def claims(plan: Plan) -> list[dict[str, Any]]:
    """The claims of volumes that are made if they aren't there."""
    owner = plan.labels[names.OWNER]
    labels = {**plan.shared_labels, names.OWNER: owner}
    return [claim(volume, plan.namespace, labels) for volume in plan.volumes if volume.size is not None]


def owner_reference(owner: Mapping[str, Any]) -> dict[str, Any]:
    """What makes an object go with that Job.

    Parameters
    ----------
    owner
        The Job, as the API server gave it back.
    """
    metadata = owner["metadata"]
    return {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}


def _metadata(plan: Plan, name: str, owners: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "namespace": plan.namespace, "labels": dict(plan.labels)}
    if plan.annotations:
        found["annotations"] = dict(plan.annotations)
    if owners:
        found["ownerReferences"] = [dict(owner) for owner in owners]
    return found


def _secret(metadata: dict[str, Any], data: Mapping[str, bytes]) -> dict[str, Any]:
    encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": encoded}
