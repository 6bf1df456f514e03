"""``kt.Volume`` acting on the cluster: claims are looked up, made and deleted, outside of any deploy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from ...errors import ConfigError, DeployError
from ...volume import Volume
from . import names
from .client import Cluster, Kind
from .volumes import claim, differences, of_claim

__all__ = ["Storage"]

#: Seconds until a claim that nobody uses must be gone, and between two looks.
_GONE = 30.0
_LOOK = 0.2


class Storage:
    """The volumes of a namespace; a `VolumeStore`.

    Parameters
    ----------
    cluster, namespace
        Where.
    version
        This package's, for the label of what is made.
    """

    def __init__(self, cluster: Cluster, namespace: str, version: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._version = version

    async def find(self, volume: Volume) -> Volume | None:
        """The volume as it is there, or None."""
        found = await self._get(volume)
        return of_claim(found) if found is not None else None

    async def create(self, volume: Volume) -> Sequence[str]:
        """Make the claim, unless it is there; what of it isn't as described, as lines for people.

        Raises
        ------
        ConfigError
            When it isn't there, and its size isn't known.
        """
        found = await self._get(volume)
        if found is None and volume.size is None:
            raise ConfigError(
                f'Volume "{volume.name}" can\'t be made without a size: kt.Volume("{volume.name}", size="10Gi")'
            )
        if found is None:
            labels = names.shared_labels(self._version)
            try:
                await self._cluster.create(Kind.CLAIM, self._namespace, claim(volume, self._namespace, labels))
                return ()
            except DeployError as e:
                if e.reason != "AlreadyExists":
                    raise
            found = await self._get(volume) or {}
        if (found.get("metadata") or {}).get("deletionTimestamp"):
            raise DeployError(
                f'Volume "{volume.name}" is being deleted in namespace {self._namespace}: try again when it is gone, '
                "or take another name",
                reason="BeingDeleted",
            )
        return differences(volume, found)

    async def delete(self, volume: Volume) -> bool:
        """Delete the claim, and with it the data; False when there was none. Returns when it is gone.

        Raises
        ------
        DeployError
            When pods use it, or it doesn't go.
        """
        found = await self._get(volume)
        if found is None:
            return False
        if users := await self._users(volume.name):
            raise DeployError(
                f'Volume "{volume.name}" can\'t be deleted while {" and ".join(users)} '
                f"{'use' if len(users) > 1 else 'uses'} it: end that first (kt.teardown, or %kt down)",
                reason="InUse",
            )
        uid = str(found["metadata"]["uid"])
        await self._cluster.delete(Kind.CLAIM, self._namespace, volume.name, uid=uid)
        deadline = time.monotonic() + _GONE
        while (left := await self._get(volume)) is not None and left["metadata"]["uid"] == uid:
            if time.monotonic() > deadline:
                users = await self._users(volume.name)
                began = f": {' and '.join(users)} began to use it" if users else ""
                raise DeployError(
                    f'Volume "{volume.name}" is marked as deleted, and still there after {_GONE:g} s{began}; '
                    f"see 'kubectl describe pvc {volume.name} -n {self._namespace}'",
                    reason="BeingDeleted",
                )
            await asyncio.sleep(_LOOK)
        return True

    async def _get(self, volume: Volume) -> dict[str, Any] | None:
        return await self._cluster.get(Kind.CLAIM, self._namespace, volume.name)

    async def _users(self, name: str) -> list[str]:
        """Who mounts it, for people: services, and pods that are nobody's service."""
        pods, _ = await self._cluster.list(Kind.POD, self._namespace)
        users = set()
        for pod in pods:
            if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
                continue
            claims = [each.get("persistentVolumeClaim") or {} for each in pod["spec"].get("volumes") or []]
            if any(each.get("claimName") == name for each in claims):
                service = names.service_of(pod)
                users.add(f'service "{service}"' if service else f"the pod {pod['metadata']['name']}")
        return sorted(users)
