"""``kt.Volume``: the description of a volume, and what can be done with the volume that it describes."""

from __future__ import annotations

import warnings
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from . import volume as descriptions
from .backends import get_backend
from .backends.base import Backend
from .compute import Compute
from .errors import ResourceNotAvailableError
from .transport.portal import get_portal

__all__ = ["Volume"]

T = TypeVar("T")


class Volume(descriptions.Volume):
    """A volume that services mount: a PersistentVolumeClaim, made when a service is deployed with it, or by `create`.

    Parameters
    ----------
    name
        Of the PersistentVolumeClaim.
    size
        A Kubernetes quantity; it is made with that size if it isn't there. None: it must be there.
    mount_path
        Absolute path in the pod; by default ``/ktfs/<name>``.
    storage_class
        By default the cluster's.
    access_mode
        ``"ReadWriteOnce"``, ``"ReadWriteMany"``, ``"ReadOnlyMany"`` or ``"ReadWriteOncePod"``.
    namespace
        By default the service's.

    Examples
    --------
    >>> Volume("datasets", size="10Gi").mount_path
    '/ktfs/datasets'
    """

    @classmethod
    def from_name(cls, name: str, *, mount_path: str | None = None, namespace: str | None = None) -> Self:
        """A volume that is already there, as it is there.

        Raises
        ------
        ResourceNotAvailableError
            When the cluster hasn't got it. Where services go to this machine, which has none, nobody is asked.
        """
        given = super().from_name(name, mount_path=mount_path, namespace=namespace)
        backend = given._backend()
        if backend.here:
            return given

        async def find() -> descriptions.Volume | None:
            return await (await backend.volumes()).find(given)

        found = _run(find())
        if found is None:
            raise ResourceNotAvailableError(
                f'there is no volume "{name}" {backend.where()}; kt.Volume("{name}", size="10Gi").create() makes one',
                reason="NotFound",
            )
        path = mount_path or found.mount_path
        return cls(found.name, found.size, path, found.storage_class, found.access_mode, found.namespace)

    def create(self) -> Self:
        """Make the volume, unless it is there: then it is left as it is, and a warning says what differs.

        A deploy with it makes it too; this is for filling it first, or for knowing early that it can be had.

        Raises
        ------
        UnsupportedError
            Where services go to this machine: volumes are Kubernetes'.
        ConfigError
            When it isn't there, and its size isn't known.
        """
        backend = self._backend()

        async def create() -> list[str]:
            return list(await (await backend.volumes()).create(self))

        for line in _run(create()):
            warnings.warn(line, stacklevel=2)
        return self

    def exists(self) -> bool:
        """Whether the cluster has it."""
        backend = self._backend()

        async def find() -> bool:
            return await (await backend.volumes()).find(self) is not None

        return _run(find())

    def delete(self) -> None:
        """Delete the volume and all data on it; returns when it is gone. One that isn't there is no error.

        Raises
        ------
        DeployError
            When services or pods use it; they are named.
        """
        backend = self._backend()

        async def delete() -> bool:
            return await (await backend.volumes()).delete(self)

        _run(delete())

    def _backend(self) -> Backend:
        return get_backend(Compute(namespace=self.namespace))


def _run(coro: Coroutine[Any, Any, T]) -> T:
    __tracebackhide__ = True
    return get_portal().run(coro)
