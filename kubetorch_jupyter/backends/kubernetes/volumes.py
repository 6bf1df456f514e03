"""What a ``kt.Volume`` stands for: a PersistentVolumeClaim, and where the worker's container mounts it.

A claim is made when it isn't there and a size is known, used as it is when it is there, and never owned by a service:
it outlives them until somebody deletes it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import ConfigError
from ...values import parse_bytes
from ...volume import Volume
from . import names

__all__ = ["as_volumes", "claim", "differences", "mounts", "of_claim"]

#: Where nothing of the user's can be: the service wouldn't run, or would give its token away.
_OURS = (names.RUN_PATH, names.LIB_PATH, names.BUNDLE_PATH, names.SECRET_PATH, names.USER_SECRETS_PATH)
_SYSTEM = ("/proc", "/sys", "/dev")
_MOUNT_PATH = "kubetorch.dev/mount-path"


def as_volumes(volumes: Sequence[str | Volume], namespace: str) -> tuple[Volume, ...]:
    """The volumes of a service; a name is that of a claim which is there.

    Raises
    ------
    ConfigError
        For one of another namespace, or where it can't be mounted.
    """
    found = tuple(item if isinstance(item, Volume) else Volume.from_name(item) for item in volumes)
    places: dict[str, str] = {}
    for volume in found:
        if volume.namespace is not None and volume.namespace != namespace:
            raise ConfigError(
                f'Volume "{volume.name}" is of namespace {volume.namespace}, and the service goes to {namespace}: '
                "a pod can mount volumes of its own namespace only"
            )
        path = _mount_path(volume)
        if path == "/" or _within(path, _OURS) or _within(path, _SYSTEM) or path == "/kubetorch":
            raise ConfigError(
                f'Volume "{volume.name}": mount_path={volume.mount_path!r} is where the service itself lives: choose '
                f"another, such as /data or the default /ktfs/{volume.name}"
            )
        other = places.setdefault(path, volume.name)
        if other != volume.name or sum(_mount_path(v) == path for v in found) > 1:
            raise ConfigError(
                f'Compute: volumes: "{other}" and "{volume.name}" are both to be mounted at {path}: give one another '
                "mount_path="
            )
    return found


def _mount_path(volume: Volume) -> str:
    return "/" + posixpath.normpath(str(volume.mount_path)).strip("/")


def _within(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def mounts(volumes: Sequence[Volume]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The pod's ``volumes`` and the container's ``volumeMounts``."""
    pod: list[dict[str, Any]] = []
    container: list[dict[str, Any]] = []
    for number, volume in enumerate(volumes):
        name = f"volume-{number}"  # a claim's name may be longer than a volume's, and have dots
        readonly = {"readOnly": True} if volume.access_mode == "ReadOnlyMany" else {}
        pod.append({"name": name, "persistentVolumeClaim": {"claimName": volume.name, **readonly}})
        container.append({"name": name, "mountPath": _mount_path(volume), **readonly})
    return pod, container


def claim(volume: Volume, namespace: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """The claim to be made for a volume that has a size.

    Parameters
    ----------
    volume, namespace
        Which, and where.
    labels
        Those of everything of ours that is no service's.
    """
    spec: dict[str, Any] = {
        "accessModes": [volume.access_mode],
        "resources": {"requests": {"storage": volume.size}},
    }
    if volume.storage_class is not None:
        spec["storageClassName"] = volume.storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": volume.name,
            "namespace": namespace,
            "labels": dict(labels),
            "annotations": {_MOUNT_PATH: str(volume.mount_path)},
        },
        "spec": spec,
    }


def differences(volume: Volume, found: Mapping[str, Any]) -> list[str]:
    """What of a volume's description isn't so of the claim that is there, as lines for people.

    The claim is used all the same: nothing of it can be changed for a service, but for its size, which is its owner's
    to decide.

    Parameters
    ----------
    volume
        The description.
    found
        The claim, as the API server has it.
    """
    spec: Mapping[str, Any] = found.get("spec") or {}
    said: list[str] = []
    size = _size(spec)
    if volume.size is not None and size is not None and parse_bytes(volume.size) != parse_bytes(size):
        said.append(f"has {size}, not {volume.size}")
    there = spec.get("storageClassName")
    if volume.storage_class is not None and there != volume.storage_class:
        said.append(f"is of storage class {there or '(none)'}, not {volume.storage_class}")
    modes = spec.get("accessModes") or []
    if volume.size is not None and volume.access_mode not in modes:
        said.append(f"has access mode {', '.join(modes) or '(none)'}, not {volume.access_mode}")
    return [f'volume "{volume.name}" is there already and {", and ".join(said)}; it is used as it is'] if said else []


def _size(spec: Mapping[str, Any]) -> str | None:
    size = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
    return str(size) if size is not None else None


def of_claim(found: Mapping[str, Any], mount_path: str | None = None) -> Volume:
    """The description of a claim that is there."""
    meta: Mapping[str, Any] = found.get("metadata") or {}
    spec: Mapping[str, Any] = found.get("spec") or {}
    modes = spec.get("accessModes") or ["ReadWriteOnce"]
    path = mount_path or (meta.get("annotations") or {}).get(_MOUNT_PATH)
    return Volume(
        str(meta["name"]), _size(spec), path, spec.get("storageClassName") or None, str(modes[0]), meta.get("namespace")
    )
