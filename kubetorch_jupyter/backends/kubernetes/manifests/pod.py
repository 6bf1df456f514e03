"""The pod of a replica: two containers of one image, what they mount, what they may."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from ....values import format_bytes, parse_bytes, parse_cpus
from .. import names
from ..secrets import SecretSource
from ..volumes import mounts
from .plan import Plan

__all__ = ["pod_template"]

_GPU = "nvidia.com/gpu"
_USER = 1000

#: Kubetorch's own, so that clusters set up for it take our pods.
_GPU_TOLERATIONS = (
    {"key": _GPU, "operator": "Exists", "effect": "NoSchedule"},
    {"key": "dedicated", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"},
)
#: Labels that only nodes with GPUs have: NVIDIA's feature discovery, EKS, GKE.
_GPU_NODE_LABELS = (
    "nvidia.com/gpu.present",
    "nvidia.com/gpu.count",
    "eks.amazonaws.com/instance-gpu-count",
    "cloud.google.com/gke-accelerator",
)
#: The front's request, in thousandths of a CPU.
_FRONT_CPU = 20
#: How many threads numerical libraries start; left alone they take one for each CPU of the node.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

#: Finds the image's Python. A plain name comes before one with a version: in an image of Python 3.12 Debian's own
#: python3.11 may lie beside it.
_FIND_PYTHON = """\
for py in python3 python python3.14 python3.13 python3.12 python3.11 python3.10 \
/usr/local/bin/python3 /opt/conda/bin/python /opt/venv/bin/python; do
  if command -v "$py" >/dev/null 2>&1; then exec "$py" "$@"; fi
done
echo "kubetorch: there is no Python in this image: use one that has Python 3.10 or later, or say where it is with \
kt.Image(python_path=...)" >&2
exit 127
"""

#: Puts links to mounted secrets where tools look for them, then becomes what follows. Not mounts: what a mount needs
#: above it belongs to root, and nothing could be written beside the file.
_LINK = """\
import os, sys
n = int(sys.argv[1])
for source, path in zip(sys.argv[2:2 + 2 * n:2], sys.argv[3:3 + 2 * n:2]):
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    if os.path.lexists(path):
        os.unlink(path)
    os.symlink(source, path)
os.execv(sys.executable, [sys.executable, *sys.argv[2 + 2 * n:]])
"""


def pod_template(plan: Plan) -> dict[str, Any]:
    """``spec.template`` of the Job, before the user's own template is merged in."""
    annotations = dict(plan.annotations)
    if plan.compute.gpu_memory is not None:
        # What schedulers that share GPUs (KAI, Run:ai) read, in MiB.
        annotations["gpu-memory"] = str(math.ceil(parse_bytes(plan.compute.gpu_memory) / 2**20))
    metadata: dict[str, Any] = {"labels": dict(plan.labels)}
    if annotations:
        metadata["annotations"] = annotations
    return {"metadata": metadata, "spec": _spec(plan)}


def _spec(plan: Plan) -> dict[str, Any]:
    compute = plan.compute
    volumes, front, worker = _mounts(plan)
    spec: dict[str, Any] = {
        "restartPolicy": "OnFailure",
        "subdomain": names.headless_name(plan.service),
        "terminationGracePeriodSeconds": 30,
        "enableServiceLinks": False,
        "automountServiceAccountToken": compute.service_account_name is not None,
        "securityContext": _pod_security(compute.run_as_root),
        "containers": [
            {**_container(plan, names.FRONT, _front_arguments(plan)), **_front(front)},
            {**_container(plan, names.WORKER, _worker_arguments(plan)), **_worker(plan, worker)},
        ],
        "volumes": volumes,
    }
    selector = {**compute.gpu_selector, **compute.node_selector}
    tolerations = _tolerations(plan)
    optional = {
        "serviceAccountName": compute.service_account_name,
        "priorityClassName": compute.priority_class_name,
        "nodeSelector": selector,
        "tolerations": tolerations,
        "affinity": _off_gpu_nodes() if compute.gpu_anti_affinity and not compute.gpu_count else None,
    }
    spec.update({key: value for key, value in optional.items() if value})
    return spec


# Containers


def _container(plan: Plan, name: str, arguments: Sequence[str]) -> dict[str, Any]:
    compute = plan.compute
    container: dict[str, Any] = {"name": name, "image": plan.image}
    # A crash is told with its last lines in the pod's own status.
    container["terminationMessagePolicy"] = "FallbackToLogsOnError"
    if compute.image_pull_policy is not None:
        container["imagePullPolicy"] = compute.image_pull_policy
    python = compute.image.python_path if compute.image is not None else None
    # Named, it needs no shell, which some images haven't.
    container["command"] = [python] if python is not None else ["/bin/sh", "-c", _FIND_PYTHON, "sh"]
    container["args"] = list(arguments)
    container["securityContext"] = _security(root=compute.run_as_root and name == names.WORKER)
    return container


def _front_arguments(plan: Plan) -> list[str]:
    compute = plan.compute
    arguments = [f"{names.BUNDLE_PATH}/boot.py", "front", "--dir", names.SERVICE_DIR, "--name", plan.service]
    arguments += ["--host", "0.0.0.0", "--port", str(names.PORT)]
    arguments += ["--token-file", f"{names.SECRET_PATH}/token", "--code-file", f"{names.SECRET_PATH}/code"]
    arguments += ["--containers", "--concurrency", str(compute.concurrency)]
    if compute.ttl_seconds is not None:
        arguments += ["--ttl", f"{compute.ttl_seconds:.15g}"]
    if compute.replicas > 1:
        arguments += ["--peers", ",".join(names.peer_names(plan.job_name, plan.service, compute.replicas))]
    return arguments


def _worker_arguments(plan: Plan) -> list[str]:
    boot = [f"{names.BUNDLE_PATH}/boot.py", "worker", "--dir", names.SERVICE_DIR, "--site", names.SITE]
    links: list[str] = []
    for source in plan.secrets:
        for path, key in source.files.items():
            if path.startswith("~/"):
                links += [f"{_secret_folder(source)}/{key}", _literal(_in_pod(path))]
    return ["-c", _LINK, str(len(links) // 2), *links, *boot] if links else boot


def _literal(text: str) -> str:
    """An argument that may have ``$(NAME)`` in it, which Kubernetes would replace by a variable's value."""
    return text.replace("$", "$$")


def _front(volume_mounts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "ports": [{"name": names.PORT_NAME, "containerPort": names.PORT, "protocol": "TCP"}],
        # Of a CUDA image NVIDIA's runtime gives a container every GPU of the node, unless it says that it wants none.
        "env": _env({"HOME": names.TMP, "TMPDIR": names.TMP, "NVIDIA_VISIBLE_DEVICES": "void"}),
        "resources": {"requests": {"cpu": f"{_FRONT_CPU}m", "memory": "96Mi"}},
        # The client waits for neither: it tries the session. A front that answers nothing for a minute has hung.
        "readinessProbe": {**_probe("/ready"), "periodSeconds": 5, "timeoutSeconds": 3},
        "livenessProbe": {**_probe("/health"), "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        "volumeMounts": volume_mounts,
    }


def _worker(plan: Plan, volume_mounts: list[dict[str, Any]]) -> dict[str, Any]:
    worker: dict[str, Any] = {"env": _worker_env(plan)}
    existing = [{"secretRef": {"name": source.name}} for source in plan.secrets if source.existing]
    if existing:
        worker["envFrom"] = existing
    resources = _resources(plan)
    if resources:
        worker["resources"] = resources
    worker["volumeMounts"] = volume_mounts
    return worker


def _probe(path: str) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": names.PORT}}


def _env(variables: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in variables.items()]


def _worker_env(plan: Plan) -> list[dict[str, Any]]:
    compute = plan.compute
    root = compute.run_as_root
    variables = {
        "HOME": names.HOME,
        "XDG_CACHE_HOME": f"{names.HOME}/.cache",
        "TMPDIR": names.TMP,
        # The user has no line in the image's passwd file, and libraries ask for the name.
        "USER": "root" if root else "kubetorch",
        "LOGNAME": "root" if root else "kubetorch",
    }
    if compute.cpus is not None:
        threads = str(max(1, math.ceil(parse_cpus(compute.cpus))))
        users = {*compute.env_vars, *(compute.image.env() if compute.image is not None else ())}
        variables.update({name: threads for name in _THREADS if name not in users})
    found: list[dict[str, Any]] = []
    for source in plan.secrets:
        name = names.user_secret_name(plan.job_name, source.name)
        for variable, key in source.env.items():
            variables.pop(variable, None)
            found.append({"name": variable, "valueFrom": {"secretKeyRef": {"name": name, "key": key}}})
    return [*_env(variables), *found]


def _resources(plan: Plan) -> dict[str, Any]:
    compute = plan.compute
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    if compute.cpus is not None:
        millis = round(parse_cpus(compute.cpus) * 1000)
        # What is asked for is the pod's, front and all: four services with cpus="1" fit on four cores.
        if millis >= 5 * _FRONT_CPU:
            millis -= _FRONT_CPU
        requests["cpu"] = f"{millis}m" if millis % 1000 else str(millis // 1000)
    if compute.memory is not None:
        requests["memory"] = _size(compute.memory)
    if compute.memory_limit is not None:
        limits["memory"] = _size(compute.memory_limit)
    if compute.disk_size is not None:
        requests["ephemeral-storage"] = _size(compute.disk_size)
    if _whole_gpus(plan):
        requests[_GPU] = limits[_GPU] = str(_whole_gpus(plan))
    return {key: value for key, value in (("requests", requests), ("limits", limits)) if value}


def _size(value: str | int) -> str:
    return format_bytes(parse_bytes(value))


def _whole_gpus(plan: Plan) -> int:
    """GPUs that a pod takes as a whole.

    With ``gpu_memory`` alone a scheduler of the user's own choice shares one by the annotation, and refuses pods that
    ask for a whole one besides. Kubernetes' own knows nothing of shares.
    """
    compute = plan.compute
    if compute.gpus is None and compute.gpu_memory is not None and _own_scheduler(compute.service_template):
        return 0
    return compute.gpu_count


def _own_scheduler(template: Mapping[str, Any]) -> bool:
    found: Any = template
    for key in ("spec", "template", "spec", "schedulerName"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found not in (None, "default-scheduler")


# What it mounts


def _mounts(plan: Plan) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes of the pod; mounts of the front and of the worker."""
    compute = plan.compute
    readable = 0o400 if compute.run_as_root else 0o440
    shm: dict[str, Any] = {"medium": "Memory"}
    if compute.shared_memory_limit is not None:
        shm["sizeLimit"] = _size(compute.shared_memory_limit)
    pod: list[dict[str, Any]] = [
        {"name": "bundle", "configMap": {"name": names.bundle_name(plan.bundle), "defaultMode": 0o444}},
        {"name": "secret", "secret": {"secretName": plan.job_name, "defaultMode": readable}},
        {"name": "run", "emptyDir": {}},
        {"name": "lib", "emptyDir": {}},
        {"name": "front-tmp", "emptyDir": {}},
    ]
    both: list[dict[str, Any]] = [
        {"name": "bundle", "mountPath": names.BUNDLE_PATH, "readOnly": True},
        {"name": "run", "mountPath": names.RUN_PATH},
        {"name": "lib", "mountPath": names.LIB_PATH},
    ]
    front: list[dict[str, Any]] = [
        *both,
        {"name": "secret", "mountPath": names.SECRET_PATH, "readOnly": True},
        {"name": "front-tmp", "mountPath": names.TMP},
    ]
    users_volumes, users_mounts = mounts(plan.volumes)
    taken = {mount["mountPath"] for mount in users_mounts}
    worker = list(both)
    for name, path, medium in (("home", names.HOME, {}), ("tmp", names.TMP, {}), ("shm", "/dev/shm", shm)):
        if path not in taken:  # a volume of the user's may be the home folder, or scratch
            pod.append({"name": name, "emptyDir": medium})
            worker.append({"name": name, "mountPath": path})
    for number, source in enumerate(plan.secrets):
        if source.files:
            name = f"user-secret-{number}"
            secret_name = names.user_secret_name(plan.job_name, source.name)
            pod.append({"name": name, "secret": {"secretName": secret_name, "defaultMode": readable}})
            worker += _secret_mounts(name, source)
    return [*pod, *users_volumes], front, [*worker, *users_mounts]


def _secret_mounts(volume: str, source: SecretSource) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if any(path.startswith("~/") for path in source.files):
        found.append({"name": volume, "mountPath": _secret_folder(source), "readOnly": True})
    for path, key in source.files.items():
        if not path.startswith("~/"):
            found.append({"name": volume, "mountPath": path, "subPath": key, "readOnly": True})
    return found


def _secret_folder(source: SecretSource) -> str:
    return f"{names.USER_SECRETS_PATH}/{source.name}"


def _in_pod(path: str) -> str:
    return posixpath.join(names.HOME, path.removeprefix("~/"))


# What it may, and where it goes


def _pod_security(root: bool) -> dict[str, Any]:
    context: dict[str, Any] = {"seccompProfile": {"type": "RuntimeDefault"}}
    if root:
        return {"runAsUser": 0, "runAsGroup": 0, **context}
    return {
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "runAsGroup": _USER,
        "fsGroup": _USER,
        # Or each start changes the owner of every file of a large volume.
        "fsGroupChangePolicy": "OnRootMismatch",
        **context,
    }


def _security(*, root: bool) -> dict[str, Any]:
    if root:
        return {}
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _tolerations(plan: Plan) -> list[dict[str, Any]]:
    compute = plan.compute
    found: list[dict[str, Any]] = [dict(item) for item in _GPU_TOLERATIONS] if compute.gpu_count else []
    for item in compute.tolerations:
        plain = {key: value if key == "tolerationSeconds" else _word(value) for key, value in item.items()}
        if plain not in found:
            found.append(plain)
    return found


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _off_gpu_nodes() -> dict[str, Any]:
    expressions = [{"key": label, "operator": "DoesNotExist"} for label in _GPU_NODE_LABELS]
    required = {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
