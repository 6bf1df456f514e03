"""What a service needs to run: CPUs, memory, GPUs, an image, and how long it may take and live.

A `Compute` is a description: it does no I/O, and no deploy changes it, so that many services can be made from one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, NoReturn

from .config import config
from .errors import ConfigError, UnsupportedError
from .image import Image
from .markup import code, table
from .secret import Secret
from .values import (
    EMPTY,
    FrozenMapping,
    check_env,
    check_flag,
    check_label,
    check_list,
    check_name,
    check_names,
    check_text,
    describe,
    format_bytes,
    freeze,
    parse_bytes,
    parse_count,
    parse_cpus,
    parse_duration,
)
from .volume import Volume

__all__ = ["Compute"]

_PULL_POLICIES = ("Always", "IfNotPresent", "Never")
_SERIALIZATIONS = ("json", "pickle", "none")
_GPU_LABEL = "nvidia.com/gpu.product"
_TOLERATION_KEYS = frozenset({"key", "operator", "value", "effect", "tolerationSeconds"})

#: What a deploy passes on over the session, or what only the client looks at: none of it needs a new pod.
_NOT_THE_POD = frozenset(
    {
        "allowed_serialization",
        "concurrency",
        "env_vars",
        "freeze",
        "inactivity_ttl",
        "kubeconfig_path",
        "launch_timeout",
        "logging_config",
        "unschedulable_timeout",
        "working_dir",
    }
)

#: Kubetorch's methods that act on live pods, which a description hasn't.
_ON_SERVICE = frozenset(
    {"pods", "pod_names", "run_bash", "pip_install", "ssh", "sync_package", "rsync", "teardown", "restart"}
)


@dataclass(frozen=True, repr=False)
class Compute:
    """What a service needs. All of it is optional.

    Parameters
    ----------
    cpus
        CPU cores that are set aside (the request): ``0.5``, ``"0.5"``, ``"500m"``.
    memory
        Memory that is set aside: ``"2Gi"``, ``"500M"``.
    disk_size
        Scratch disk that is set aside.
    gpus
        Whole GPUs.
    gpu_type
        The value of the node label ``nvidia.com/gpu.product`` (``"L4"``), or ``"label: value"``.
    gpu_memory
        GPU memory that the code needs; asks for one GPU if `gpus` doesn't say how many.
    priority_class_name
        Kubernetes priority class.
    namespace
        Kubernetes namespace; by default ``kt.config.namespace``.
    image
        An `Image`, or a container image's name.
    labels, annotations
        Put on everything that belongs to the service.
    volumes
        `Volume` objects, or names of PersistentVolumeClaims.
    node_selector
        Labels that the node must have.
    service_template
        A part of the manifest, merged into ours.
    tolerations
        As in a pod's manifest, besides those that `gpus` brings.
    env_vars
        Environment variables of the code.
    secrets
        `Secret` objects, or names of secrets: a provider's (``"aws"``), or one of the cluster's.
    freeze
        Refuse to send new code to a service that lives.
    kubeconfig_path
        Which kubeconfig to use; naming one means Kubernetes.
    service_account_name
        Kubernetes service account of the pods.
    image_pull_policy
        ``"Always"``, ``"IfNotPresent"`` or ``"Never"``.
    inactivity_ttl
        How long the service lives without a call: ``"30m"``, ``"4h"``, seconds, or ``"never"``. By default
        ``kt.config.inactivity_ttl`` for cluster and detached services; others end with this process.
    gpu_anti_affinity
        Keep off GPU nodes when no GPU is asked for.
    launch_timeout
        Seconds until a deploy is given up; by default `kt.config.launch_timeout`.
    working_dir
        Absolute path that the code runs in; by default this process's folder (locally) or the image's, where one can
        write to that, else the home folder.
    shared_memory_limit
        Size of ``/dev/shm``.
    allowed_serialization
        Which of ``"json"``, ``"pickle"`` and ``"none"`` calls may use; by default all.
    replicas
        Pods.
    logging_config
        Kubetorch's; kept, not used.
    queue_name
        Kueue's LocalQueue.
    selector, endpoint
        Kubetorch's way to use pods that are there already; not in this version.
    memory_limit
        Memory that the code may use at most; more ends it with `WorkerDiedError`.
    concurrency
        Calls that run at once; 1 runs them one after another. ``async def`` calls are not bound by it.
    unschedulable_timeout
        Seconds that a pod may wait for room in the cluster; 0: not at all; by default `launch_timeout`.
    detach
        Live on when this process ends.
    run_as_root
        Run as root in the pod even though the cluster's policy would rather not.

    Raises
    ------
    ConfigError
        For a value that makes no sense; it says which, and what is accepted.

    Examples
    --------
    >>> compute = Compute(cpus="500m", memory="2Gi", gpus="1")
    >>> compute
    Compute(cpus=0.5, memory='2Gi', gpus=1)
    >>> compute == Compute(cpus=0.5, memory="2048Mi", gpus=1)
    True
    """

    cpus: float | str | None = None
    memory: str | int | None = None
    disk_size: str | int | None = None
    gpus: int | str | None = None
    gpu_type: str | None = None
    gpu_memory: str | int | None = None
    priority_class_name: str | None = None
    namespace: str | None = None
    image: Image | None = None
    labels: Mapping[str, Any] = EMPTY
    annotations: Mapping[str, Any] = EMPTY
    volumes: Sequence[str | Volume] = ()
    node_selector: Mapping[str, Any] = EMPTY
    service_template: Mapping[str, Any] = EMPTY
    tolerations: Sequence[Mapping[str, Any]] = ()
    env_vars: Mapping[str, Any] = EMPTY
    secrets: Sequence[str | Secret] = ()
    freeze: bool = False
    kubeconfig_path: str | None = None
    service_account_name: str | None = None
    image_pull_policy: str | None = None
    inactivity_ttl: str | float | None = None
    gpu_anti_affinity: bool | None = None
    launch_timeout: float = 900
    working_dir: str | None = None
    shared_memory_limit: str | int | None = None
    allowed_serialization: Sequence[str] | None = None
    replicas: int = 1
    logging_config: Any = None
    queue_name: str | None = None
    selector: Mapping[str, str] | None = None
    endpoint: Any = None
    memory_limit: str | int | None = None
    concurrency: int = 64
    unschedulable_timeout: float | None = None
    detach: bool = False
    run_as_root: bool = False

    def __post_init__(self) -> None:
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            # None stands for the default everywhere, as Kubetorch has it; code passes its own optional parameters on.
            value = default if value is None else value
            if value is not default:
                parse = _PARSERS.get(name)
                value = parse(value, f"Compute: {name}") if parse is not None else freeze(value)
            object.__setattr__(self, name, value)
        _check_together(self)

    # What others need of it, in units

    @property
    def memory_bytes(self) -> int | None:
        """`memory` in bytes."""
        return parse_bytes(self.memory) if self.memory is not None else None

    @property
    def memory_limit_bytes(self) -> int | None:
        """`memory_limit` in bytes."""
        return parse_bytes(self.memory_limit) if self.memory_limit is not None else None

    @property
    def gpu_count(self) -> int:
        """How many GPUs a pod gets."""
        if self.gpus is not None:
            return int(self.gpus)
        return 1 if self.gpu_memory is not None else 0

    @property
    def gpu_selector(self) -> dict[str, str]:
        """The node label that `gpu_type` stands for."""
        if self.gpu_type is None:
            return {}
        label, colon, value = self.gpu_type.rpartition(":")
        return {label.strip(): value.strip()} if colon else {_GPU_LABEL: self.gpu_type}

    @property
    def ttl_seconds(self) -> float | None:
        """Seconds that the service lives without a call.

        What `inactivity_ttl` says; ``kt.config``'s for a detached service that says nothing. None: it isn't ended so.
        """
        ttl = self.inactivity_ttl
        if ttl is None and self.detach:
            ttl = config.inactivity_ttl
        return None if ttl is None or ttl == "never" else parse_duration(ttl, "inactivity_ttl")

    @property
    def launch_seconds(self) -> float:
        """Seconds that a deploy may take."""
        # The default is Kubetorch's, and that of the setting: who changes the setting means all who say nothing else.
        return config.launch_timeout if self.launch_timeout == Compute.launch_timeout else self.launch_timeout

    @property
    def unschedulable_seconds(self) -> float:
        """Seconds that a pod may wait for room."""
        return self.launch_seconds if self.unschedulable_timeout is None else self.unschedulable_timeout

    def env(self) -> dict[str, str]:
        """The code's environment variables."""
        return dict(self.env_vars)

    def resources(self) -> dict[str, Any]:
        """What it asks for, as lists of services show it: those of ``cpus``, ``memory``, ``gpus`` … that were given."""
        names = ("cpus", "memory", "memory_limit", "disk_size", "gpus", "gpu_type", "gpu_memory")
        found = {name: getattr(self, name) for name in names}
        if self.gpu_count:
            found["gpus"] = self.gpu_count
        return {name: value for name, value in found.items() if value is not None}

    def pod_key(self) -> tuple[tuple[str, Any], ...]:
        """What only a new pod can change, comparable and hashable: equal keys, same pod."""
        changed = [(name, value) for name, value in self._given() if name not in _NOT_THE_POD]
        if self.image is not None:
            # Its variables reach the worker as env_vars do.
            steps = tuple(step for step in self.image.steps if step.kind != "env")
            changed = [(n, replace(self.image, name=None, steps=steps) if n == "image" else v) for n, v in changed]
        return tuple((name, value) for name, value in changed if name != "image" or value != Image())

    def replace(self, **changes: Any) -> Compute:
        """A `Compute` that differs in `changes`.

        Examples
        --------
        >>> Compute(cpus=1).replace(memory="2Gi")
        Compute(cpus=1, memory='2Gi')
        """
        unknown = sorted(set(changes) - set(_DEFAULTS))
        if unknown:
            raise ConfigError(f"Compute has no {', '.join(unknown)}; it has {', '.join(_DEFAULTS)}")
        return replace(self, **changes)

    # Kubetorch's methods that this version doesn't have

    def distribute(self, type: str | None = None, workers: int | None = None, **options: Any) -> NoReturn:
        """Several workers that know of each other; not in this version."""
        _unsupported("Compute.distribute", "send the function to several services, or map over one with .map(...)")

    def autoscale(self, **options: Any) -> NoReturn:
        """Replicas by load; not in this version."""
        _unsupported("Compute.autoscale", "set replicas=, and concurrency= for calls at once in each")

    @classmethod
    def from_manifest(cls, manifest: Any, selector: Any = None, **options: Any) -> NoReturn:
        """A `Compute` from a Kubernetes manifest; not in this version."""
        _unsupported(
            "Compute.from_manifest", "describe it with kt.Compute(...), and merge the rest by service_template="
        )

    def __getattr__(self, name: str) -> Any:
        if name in _ON_SERVICE:
            raise AttributeError(
                f"Compute.{name}: a Compute describes pods and has none, because several services may share it; "
                "live pods are reached by a deployed function's .service"
            )
        raise AttributeError(f"'Compute' object has no attribute '{name}'")

    def _given(self) -> list[tuple[str, Any]]:
        pairs = ((name, getattr(self, name)) for name in _DEFAULTS)
        return [(name, value) for name, value in pairs if value != _DEFAULTS[name]]

    def _shown(self) -> list[tuple[str, str]]:
        shown = []
        for name, value in self._given():
            if name == "env_vars":
                # Tokens are passed this way; names are enough to know it by.
                shown.append((name, f"<{', '.join(value)}>"))
            elif name == "cpus":
                shown.append((name, f"{value:g}"))
            elif isinstance(value, tuple):
                shown.append((name, repr(list(value))))
            else:
                shown.append((name, repr(value)))
        return shown

    def __repr__(self) -> str:
        return f"Compute({', '.join(f'{name}={value}' for name, value in self._shown())})"

    def _repr_html_(self) -> str:
        shown = self._shown()
        return table(shown, title="Compute", codes=True) if shown else code("Compute()")


# Checks, one for each kind of parameter: what the user wrote → the one form of it


def _unsupported(what: str, instead: str) -> NoReturn:
    raise UnsupportedError(f"{what} is Kubetorch's and not part of this version: {instead}")


def _size(value: Any, what: str) -> str:
    return format_bytes(parse_bytes(value, what))


def _patience(value: Any, what: str) -> float:
    return 0.0 if value == 0 and not isinstance(value, bool) else parse_duration(value, what)


def _gpus(value: Any, what: str) -> int | None:
    return parse_count(value, what, most=1000) or None


def _name(value: Any, what: str) -> str:
    return check_name(value, what)


def _dotted(value: Any, what: str) -> str:
    return check_name(value, what, dots=True)


def _gpu_type(value: Any, what: str) -> str:
    text = check_text(value, what)
    label, colon, product = text.rpartition(":")
    check_label(label.strip() if colon else _GPU_LABEL, product.strip(), what)
    return text


def _labels(value: Any, what: str) -> FrozenMapping:
    return FrozenMapping(dict(check_label(key, item, what) for key, item in check_names(value, what).items()))


def _annotations(value: Any, what: str) -> FrozenMapping:
    return FrozenMapping({key: str(item) for key, item in check_names(value, what).items()})


def _mapping(value: Any, what: str) -> FrozenMapping:
    return FrozenMapping(check_names(value, what))


def _volumes(value: Any, what: str) -> tuple[str | Volume, ...]:
    items = check_list(value, what, "kt.Volume(...) or names of volumes")
    return tuple(item if isinstance(item, Volume) else check_name(item, what, dots=True) for item in items)


def _secrets(value: Any, what: str) -> tuple[str | Secret, ...]:
    items = check_list(value, what, "kt.Secret(...) or names of secrets")
    return tuple(item if isinstance(item, Secret) else check_name(item, what, dots=True) for item in items)


def _tolerations(value: Any, what: str) -> tuple[FrozenMapping, ...]:
    found = []
    for item in check_list(value, what, "dictionaries"):
        if not isinstance(item, Mapping) or not item or not set(item) <= _TOLERATION_KEYS:
            raise ConfigError(
                f"{what}: {describe(item)} is not a toleration: use {', '.join(sorted(_TOLERATION_KEYS))}"
            )
        found.append(FrozenMapping(item))
    return tuple(found)


def _pull_policy(value: Any, what: str) -> str:
    if value in _PULL_POLICIES:
        return str(value)
    raise ConfigError(f"{what}={describe(value)} is none of {', '.join(_PULL_POLICIES)}")


def _serializations(value: Any, what: str) -> tuple[str, ...]:
    items = check_list([value] if isinstance(value, str) else value, what, "names")
    if items and all(item in _SERIALIZATIONS for item in items):
        return tuple(name for name in _SERIALIZATIONS if name in items)
    raise ConfigError(f"{what}={describe(value)} is not accepted: use a list of {', '.join(_SERIALIZATIONS)}")


def _ttl(value: Any, what: str) -> str | float:
    if value == "never":
        return "never"
    seconds = parse_duration(value, what)
    return value.strip() if isinstance(value, str) else seconds


def _image(value: Any, what: str) -> Image:
    if isinstance(value, Image):
        return value
    if isinstance(value, str):
        return Image(image_id=value)
    raise ConfigError(f'{what}={describe(value)} is not an image: use kt.Image(...) or "registry/image:tag"')


def _folder(value: Any, what: str) -> str:
    text = check_text(str(value), what)
    if text.startswith("/"):
        return text
    raise ConfigError(f"{what}={describe(value)} must be an absolute path")


def _path(value: Any, what: str) -> str:
    return check_text(str(value) if hasattr(value, "__fspath__") else value, what)


def _replicas(value: Any, what: str) -> int:
    return parse_count(value, what, least=1)


def _selector(value: Any, what: str) -> NoReturn:
    _unsupported(f"{what.replace(': ', '.')}", "let kt.Compute(...) make the pods")


_PARSERS: dict[str, Callable[[Any, str], Any]] = {
    "cpus": parse_cpus,
    "memory": _size,
    "disk_size": _size,
    "gpus": _gpus,
    "gpu_type": _gpu_type,
    "gpu_memory": _size,
    "priority_class_name": _dotted,
    "namespace": _name,
    "image": _image,
    "labels": _labels,
    "annotations": _annotations,
    "volumes": _volumes,
    "node_selector": _labels,
    "service_template": _mapping,
    "tolerations": _tolerations,
    "env_vars": check_env,
    "secrets": _secrets,
    "freeze": check_flag,
    "kubeconfig_path": _path,
    "service_account_name": _dotted,
    "image_pull_policy": _pull_policy,
    "inactivity_ttl": _ttl,
    "gpu_anti_affinity": check_flag,
    "launch_timeout": parse_duration,
    "working_dir": _folder,
    "shared_memory_limit": _size,
    "allowed_serialization": _serializations,
    "replicas": _replicas,
    "queue_name": _dotted,
    "selector": _selector,
    "endpoint": _selector,
    "memory_limit": _size,
    "concurrency": _replicas,
    "unschedulable_timeout": _patience,
    "detach": check_flag,
    "run_as_root": check_flag,
}

_DEFAULTS: dict[str, Any] = {item.name: None if item.default is MISSING else item.default for item in fields(Compute)}


def _check_together(compute: Compute) -> None:
    memory, limit = compute.memory_bytes, compute.memory_limit_bytes
    if memory is not None and limit is not None and memory > limit:
        raise ConfigError(
            f"Compute: memory={compute.memory!r} is more than memory_limit={compute.memory_limit!r}: what is set aside "
            "can't be more than what may be used"
        )
    if compute.gpus is None and compute.gpu_type is not None and compute.gpu_memory is None:
        raise ConfigError(f"Compute: gpu_type={compute.gpu_type!r} needs gpus=, the number of GPUs of that type")
