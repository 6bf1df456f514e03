"""What things are called in the cluster: objects, labels, annotations, paths in the pod. One place for all of it.

A name that Kubernetes would find too long is cut and gets a part of its hash, so that two long names that begin alike
stay two names. Nothing here can fail for a valid service name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from ...transport.endpoint import POD_PORT

__all__ = [
    "ANNOTATIONS",
    "BUNDLE_PATH",
    "CODE",
    "CREATED",
    "FRONT",
    "HOME",
    "INDEX",
    "LABELS",
    "LIB_PATH",
    "LOADED",
    "MANAGED_BY",
    "MANAGER",
    "NAME",
    "NOTEBOOK",
    "OWNER",
    "PORT",
    "PORT_NAME",
    "QUEUE",
    "RESOURCES",
    "REVISION",
    "RUN_PATH",
    "SECRET_PATH",
    "SERVICE",
    "SERVICE_DIR",
    "SITE",
    "SPEC",
    "TMP",
    "TOO_LARGE",
    "TTL",
    "USER_SECRETS_PATH",
    "VERSION",
    "WORKER",
    "bundle_name",
    "cut",
    "full_name",
    "headless_name",
    "index_of",
    "job_name",
    "label_value",
    "labels",
    "our_selector",
    "peer_names",
    "pod_host_name",
    "revision_selector",
    "service_of",
    "service_selector",
    "shared_labels",
    "user_secret_name",
]

# Labels, on everything that we make

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "kubetorch-jupyter"
NAME = "app.kubernetes.io/name"
SERVICE = "kubetorch.dev/service"
REVISION = "kubetorch.dev/revision"
#: As a label the user's name, as an annotation of the Job JSON of who deployed (user, host, pid, notebook).
OWNER = "kubetorch.dev/owner"
NOTEBOOK = "kubetorch.dev/notebook"
VERSION = "kubetorch.dev/version"
LABELS = (MANAGED_BY, NAME, SERVICE, REVISION, OWNER, NOTEBOOK, VERSION)
#: Kueue's, on the Job only.
QUEUE = "kueue.x-k8s.io/queue-name"

#: The rank of a pod, put there by the Job controller.
INDEX = "batch.kubernetes.io/job-completion-index"

# Annotations of the Job

#: A hash of what only a new pod can change.
SPEC = "kubetorch.dev/spec"
#: JSON of what the service asks for, as lists show it.
RESOURCES = "kubetorch.dev/resources"
#: Seconds without a call; missing where the service isn't ended so.
TTL = "kubetorch.dev/ttl"
#: Unix time.
CREATED = "kubetorch.dev/created"
#: Its pods have had their code: from then on the revision is the service.
LOADED = "kubetorch.dev/loaded"
ANNOTATIONS = (OWNER, SPEC, RESOURCES, TTL, CREATED, LOADED)

# Annotations of the Secret

#: The version of the code that it holds.
CODE = "kubetorch.dev/code"
#: "true" where that code had no room, and only its version is there.
TOO_LARGE = "kubetorch.dev/code-too-large"

# The pod

FRONT = "front"
WORKER = "worker"
PORT = POD_PORT
PORT_NAME = "http"
RUN_PATH = "/kubetorch/run"
SERVICE_DIR = f"{RUN_PATH}/pod"
LIB_PATH = "/kubetorch/lib"
BUNDLE_PATH = "/kubetorch/bundle"
SECRET_PATH = "/kubetorch/secret"
HOME = "/kubetorch/home"
#: Where pip installs to; on the worker's path.
SITE = f"{HOME}/site"
TMP = "/tmp"
#: Below it, files of the user's own secrets, by the secret's name.
USER_SECRETS_PATH = "/kubetorch/secrets"

#: An RFC 1123 label, and a label's value.
_LABEL = 63
#: What a user's name takes of a service's at most.
_PREFIX = 30
#: What a hash adds to a name that is cut: "-" and eight digits.
_DIGEST = 8
#: Digits of a replica's index that a Job's name leaves room for in its pods' host names; more replicas, more digits.
_INDEX_DIGITS = 2


def cut(name: str, most: int) -> str:
    """`name`, or what fits in `most` characters: its beginning and a part of its hash.

    Examples
    --------
    >>> cut("train", 63)
    'train'
    >>> cut("a-rather-long-name", 15)
    'a-rath-87d02c79'
    """
    if len(name) <= most:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGEST]
    return f"{name[: most - _DIGEST - 1].rstrip('-._')}-{digest}"


def label_value(text: object) -> str:
    """`text` as a label's value: what a label can't hold becomes ``-``; empty when nothing is left.

    Examples
    --------
    >>> label_value("Zoë Smith <zoe@example.org>"), label_value("0.1.0+local"), label_value("???")
    ('Zo-Smith-zoe-example.org', '0.1.0-local', '')
    """
    kept = re.sub(r"[^A-Za-z0-9_.]+", "-", str(text)).strip("-_.")
    return cut(kept, _LABEL)


def full_name(name: str, username: str) -> str:
    """The service's name on a cluster that several people share: ``<username>-<name>``, unless it begins so.

    Parameters
    ----------
    name
        A valid service name.
    username
        As ``kt.config.username`` has it; what a name can't hold becomes ``-``.

    Examples
    --------
    >>> full_name("train", "alice"), full_name("alice-train", "alice"), full_name("train", "Bob B.")
    ('alice-train', 'alice-train', 'bob-b-train')
    """
    # Never so long that it would be cut with the name: the result must be known by it.
    prefix = cut(re.sub(r"[^a-z0-9]+", "-", username.lower()).strip("-"), _PREFIX)
    if not prefix or name == prefix or name.startswith(f"{prefix}-"):
        return cut(name, _LABEL)
    return cut(f"{prefix}-{name}", _LABEL)


def job_name(service: str, revision: str, replicas: int = 1) -> str:
    """The Job of one revision; short enough that its pods' host names, ``<job>-<index>``, are valid.

    Examples
    --------
    >>> job_name("alice-train", "0a1b2c3d")
    'alice-train-0a1b2c3d'
    >>> len(job_name("x" * 63, "0a1b2c3d"))
    60
    """
    index = 1 + max(_INDEX_DIGITS, len(str(replicas - 1)))
    return f"{cut(service, _LABEL - index - len(revision) - 1)}-{revision}"


def headless_name(service: str) -> str:
    """The Service that the pods' names are found by: the service's own name, unless it begins with a digit.

    A Service's name, other than a Job's or a Secret's, has to begin with a letter.

    Examples
    --------
    >>> headless_name("alice-train"), headless_name("3d-model")
    ('alice-train', 's-3d-model')
    """
    return service if service[:1].isalpha() else cut(f"s-{service}", _LABEL)


def pod_host_name(job: str, index: int) -> str:
    """The host name that a Job gives to its pod of that index."""
    return f"{job}-{index}"


def index_of(pod: Mapping[str, Any]) -> int:
    """The rank of a pod among the replicas.

    Examples
    --------
    >>> index_of({"metadata": {"labels": {"batch.kubernetes.io/job-completion-index": "2"}}})
    2
    """
    meta: Mapping[str, Any] = pod.get("metadata") or {}
    # Before Kubernetes 1.28 it is an annotation only.
    found = (meta.get("labels") or {}).get(INDEX) or (meta.get("annotations") or {}).get(INDEX)
    return int(found) if found is not None and str(found).isdecimal() else 0


def peer_names(job: str, service: str, replicas: int) -> list[str]:
    """``host:port`` of each replica's front, by index, as the pods of the namespace can find it.

    Examples
    --------
    >>> peer_names("train-0a1b2c3d", "train", 2)
    ['train-0a1b2c3d-0.train:32300', 'train-0a1b2c3d-1.train:32300']
    """
    domain = headless_name(service)
    return [f"{pod_host_name(job, index)}.{domain}:{PORT}" for index in range(replicas)]


def bundle_name(bundle_hash: str) -> str:
    """The ConfigMap of what every pod needs; services with the same bundle share it."""
    return f"kubetorch-pod-{bundle_hash}"


def user_secret_name(job: str, secret: str) -> str:
    """The Secret that holds values of a ``kt.Secret``; a revision has its own, so that the old one keeps what it has.

    Examples
    --------
    >>> user_secret_name("alice-train-0a1b2c3d", "aws")
    'alice-train-0a1b2c3d-aws'
    """
    return cut(f"{job}-{secret}", _LABEL)


def labels(service: str, revision: str, owner: Mapping[str, Any], version: str) -> dict[str, str]:
    """What is on everything that belongs to a service, by whom it was deployed."""
    found = {
        MANAGED_BY: MANAGER,
        NAME: service,
        SERVICE: service,
        REVISION: revision,
        OWNER: label_value(owner.get("user") or "") or "unknown",
        NOTEBOOK: label_value(owner.get("notebook") or ""),
        VERSION: label_value(version),
    }
    return {key: value for key, value in found.items() if value}


def shared_labels(version: str) -> dict[str, str]:
    """What is on things of ours that are no single service's: the bundle, claims."""
    return {MANAGED_BY: MANAGER, VERSION: label_value(version)}


# What a list or a watch asks for


def our_selector() -> str:
    """Everything of ours in a namespace."""
    return f"{MANAGED_BY}={MANAGER}"


def service_selector(service: str) -> str:
    """Everything of one service, all its revisions."""
    return f"{MANAGED_BY}={MANAGER},{SERVICE}={service}"


def revision_selector(service: str, revision: str) -> str:
    """Everything of one revision of a service."""
    return f"{service_selector(service)},{REVISION}={revision}"


def service_of(thing: Mapping[str, Any]) -> str | None:
    """Which service an object of ours belongs to; None for what is no service's."""
    found = ((thing.get("metadata") or {}).get("labels") or {}).get(SERVICE)
    return str(found) if found else None
