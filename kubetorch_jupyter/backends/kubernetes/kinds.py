"""The kinds of Kubernetes objects that we deal with."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

__all__ = ["Kind"]


class Kind(enum.Enum):
    """The kinds of objects that we deal with: Kubernetes' name, what it is called in paths, its group and version."""

    JOB = "Job", "jobs", "batch", "v1"
    POD = "Pod", "pods", "", "v1"
    SERVICE = "Service", "services", "", "v1"
    SECRET = "Secret", "secrets", "", "v1"
    CONFIG_MAP = "ConfigMap", "configmaps", "", "v1"
    CLAIM = "PersistentVolumeClaim", "persistentvolumeclaims", "", "v1"
    EVENT = "Event", "events", "", "v1"
    ENDPOINT_SLICE = "EndpointSlice", "endpointslices", "discovery.k8s.io", "v1"

    @classmethod
    def of(cls, obj: Mapping[str, Any]) -> Kind:
        """The kind of a manifest.

        Examples
        --------
        >>> Kind.of({"kind": "Job"}).plural
        'jobs'
        """
        return next(kind for kind in cls if kind.label == obj["kind"])

    @property
    def label(self) -> str:
        """Kubernetes' name for it."""
        return self.value[0]

    @property
    def plural(self) -> str:
        """As paths and rules have it."""
        return self.value[1]

    @property
    def group(self) -> str:
        """The API group; empty for the core's."""
        return self.value[2]

    @property
    def api_version(self) -> str:
        """As a manifest has it."""
        _, _, group, version = self.value
        return f"{group}/{version}" if group else version

    def path(self, namespace: str, name: str | None = None, subresource: str = "") -> str:
        """Where the API server has them.

        Examples
        --------
        >>> Kind.POD.path("team", "train-0", "log")
        '/api/v1/namespaces/team/pods/train-0/log'
        """
        parts = [
            "apis" if self.group else "api",
            self.api_version,
            "namespaces",
            quote(namespace, safe=""),
            self.plural,
        ]
        if name is not None:
            parts.append(quote(name, safe=""))
        if subresource:
            parts.append(subresource)
        return "/" + "/".join(parts)
