"""Storage that outlives pods: a PersistentVolumeClaim and where it is mounted. A description only.

What users have as ``kt.Volume`` is the one of ``storage.py``, which can also make and delete what it describes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from .errors import ConfigError
from .markup import code
from .values import check_name, describe, format_bytes, parse_bytes

__all__ = ["Volume"]

_ACCESS_MODES = ("ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany", "ReadWriteOncePod")


@dataclass(frozen=True)
class Volume:
    """The description of a volume that services mount.

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

    name: str
    size: str | None = None
    mount_path: str | None = None
    storage_class: str | None = None
    access_mode: str = "ReadWriteOnce"
    namespace: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "Volume: name", dots=True)
        if self.size is not None:
            object.__setattr__(self, "size", format_bytes(parse_bytes(self.size, "Volume: size")))
        if self.mount_path is None:
            object.__setattr__(self, "mount_path", f"/ktfs/{self.name}")
        elif not str(self.mount_path).startswith("/") or ":" in self.mount_path:
            raise ConfigError(f'Volume: mount_path={describe(self.mount_path)} must be an absolute path without ":"')
        if self.storage_class is not None:
            check_name(self.storage_class, "Volume: storage_class", dots=True)
        if self.access_mode not in _ACCESS_MODES:
            raise ConfigError(f"Volume: access_mode={describe(self.access_mode)} is none of {', '.join(_ACCESS_MODES)}")
        if self.namespace is not None:
            check_name(self.namespace, "Volume: namespace")

    @classmethod
    def from_name(cls, name: str, *, mount_path: str | None = None, namespace: str | None = None) -> Self:
        """A volume that is already there."""
        return cls(name, mount_path=mount_path, namespace=namespace)

    def _repr_html_(self) -> str:
        return code(repr(self))
