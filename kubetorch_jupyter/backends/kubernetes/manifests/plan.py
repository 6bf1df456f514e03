"""Everything that a revision's objects are made of, in one value."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ....compute import Compute
from ....config import config
from ....image import Image
from ....secret import Secret
from ....volume import Volume
from .. import names
from ..secrets import SecretSource
from ..volumes import as_volumes

__all__ = ["Plan", "effective", "spec_hash"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A revision of a service, before it exists.

    Parameters
    ----------
    service
        Its full name, an RFC 1123 label.
    namespace
        Where.
    revision
        Eight hexadecimal digits, new for each.
    compute
        What the user asked for, as `effective` gives it.
    bundle
        The hash of what travels to every pod.
    owner
        Who deploys: ``user``, ``host``, ``pid``, ``notebook``.
    created
        Unix time; that of the service, if it is older than this revision.
    version
        This package's.
    spec
        What `spec_hash` gives for it.
    secrets
        What ``compute.secrets`` stand for, read.
    """

    service: str
    namespace: str
    revision: str
    compute: Compute
    bundle: str
    owner: Mapping[str, Any] = field(default_factory=dict)
    created: float
    version: str
    spec: str
    secrets: Sequence[SecretSource] = ()

    @cached_property
    def job_name(self) -> str:
        """The Job's."""
        return names.job_name(self.service, self.revision, self.compute.replicas)

    @cached_property
    def image(self) -> str:
        """The container image of both containers."""
        image = self.compute.image
        return (image.image_id if image is not None else None) or default_image()

    @cached_property
    def labels(self) -> dict[str, str]:
        """On everything that belongs to the service; ours win over the user's."""
        ours = names.labels(self.service, self.revision, self.owner, self.version)
        return {**dict(self.compute.labels), **ours}

    @cached_property
    def shared_labels(self) -> dict[str, str]:
        """On what we make and what is no single service's: the bundle, claims."""
        return names.shared_labels(self.version)

    @cached_property
    def annotations(self) -> dict[str, str]:
        """The user's."""
        return dict(self.compute.annotations)

    @cached_property
    def volumes(self) -> tuple[Volume, ...]:
        """The user's volumes, names made into descriptions.

        Raises
        ------
        ConfigError
            For one that can't be mounted.
        """
        return as_volumes(self.compute.volumes, self.namespace)


def default_image() -> str:
    """The image of services that name none: ``config.image``, else Python of this client's version.

    Examples
    --------
    >>> default_image().startswith("python:3.")
    True
    """
    return config.image or f"python:{sys.version_info[0]}.{sys.version_info[1]}-slim"


def effective(compute: Compute) -> Compute:
    """`compute` with what the settings say where it says nothing: image, queue, volumes, TTL, namespace's excepted.

    Examples
    --------
    >>> effective(Compute(image="python:3.12-slim")).inactivity_ttl == config.inactivity_ttl
    True
    """
    image = compute.image if compute.image is not None else Image()
    if image.image_id is None:
        image = dataclasses.replace(image, image_id=default_image())
    named = {item.name if isinstance(item, Volume) else item for item in compute.volumes}
    more = [name for name in config.volumes if name not in named]
    return compute.replace(
        image=image,
        queue_name=compute.queue_name or config.queue,
        volumes=[*compute.volumes, *more],
        inactivity_ttl=compute.inactivity_ttl if compute.inactivity_ttl is not None else config.inactivity_ttl,
    )


def spec_hash(
    compute: Compute, bundle: str, *, secrets: Sequence[SecretSource] = (), key: str | bytes | None = None
) -> str:
    """What only a new pod can change, as 16 hexadecimal digits: equal ones, same pod.

    It stands in an annotation, which more people may read than Secrets. So values of secrets are part of it only under
    a key: without one, a changed password makes no new pod; with one, nobody can try passwords against it.

    Parameters
    ----------
    compute
        As `effective` gives it.
    bundle
        The hash of what travels to every pod.
    secrets
        Those of `compute`, read.
    key
        The service's token.
    """
    image = compute.image
    if image is not None:  # its steps run in the pod that is there
        image = Image(image_id=image.image_id, python_path=image.python_path)
    # Where it goes and how long it lives are no part of what it is.
    pod = compute.replace(image=image, namespace=None, detach=False)
    parts: dict[str, Any] = {"compute": _plain(pod.pod_key()), "bundle": bundle}
    if key:
        parts["secrets"] = [
            [source.name, {name: value.hex() for name, value in sorted(source.data.items())}] for source in secrets
        ]
    text = json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()
    secret = key.encode() if isinstance(key, str) else key or b""
    return hmac.new(secret, text, hashlib.sha256).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """A description as JSON that is the same in every process; values of secrets left out."""
    if isinstance(value, Secret):
        shown = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
        shown["values"] = sorted(value.values) if value.values is not None else None
        return _plain(shown)
    if dataclasses.is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(item) for item in value), key=repr)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return repr(value)
