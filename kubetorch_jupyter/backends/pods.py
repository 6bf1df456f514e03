"""What a local pod is started with, and what about it only another pod can change."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import config
from ..errors import StartupError
from .base import ServiceSpec
from .registry import Record
from .spawning import environment, process_env

__all__ = ["changes", "front_params", "pod_env", "pod_spec", "unused_kubeconfig"]


def pod_spec(spec: ServiceSpec) -> dict[str, Any]:
    """What can't be changed in a pod that runs."""
    return {
        "gpus": spec.compute.gpu_count,
        "detach": spec.compute.detach,
        "python": sys.executable,
        "env": process_env(environment(spec.compute)),
    }


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs, for people; empty if nothing does.

    Examples
    --------
    >>> changes({"gpus": 0, "env": {"LANG": "C"}}, {"gpus": 1, "env": {}})
    'gpus 0 → 1, LANG unset'
    """
    out = [f"{key} {old.get(key)} → {value}" for key, value in new.items() if key != "env" and old.get(key) != value]
    before, after = old.get("env", {}), new.get("env", {})
    out += [f"{name} changed" for name, value in after.items() if before.get(name) != value]
    out += [f"{name} unset" for name in before if name not in after]
    return ", ".join(out)


def front_params(record: Record, spec: ServiceSpec) -> dict[str, Any]:
    """`pod_server.front.FrontParams`, without the token."""
    port = os.environ.get("KT_LOCAL_PORT") or "0"
    if not port.isdecimal() or int(port) > 65535:
        raise StartupError(f"KT_LOCAL_PORT={port!r} is no port: use a number up to 65535, or 0 for a free one")
    return {
        "dir": str(record.dir),
        "name": spec.name,
        "port": int(port),
        "owners": [os.getpid()],
        "detach": spec.compute.detach,
        "ttl": spec.compute.ttl_seconds,
        "memory_limit": spec.compute.memory_limit_bytes,
        "concurrency": spec.compute.concurrency,
        "bulk_dir": record.service.get("bulk") or str(record.dir / "payloads"),
        "incarnation": record.incarnation,
        "devices": record.service["devices"],
    }


def pod_env(record: Record) -> dict[str, str]:
    """The variables that every worker of the pod gets, whatever the user's environment says."""
    devices = record.service["devices"]
    steps = {"KT_STEPS_ROOT": str(record.service["steps"])} if "steps" in record.service else {}
    return {**steps, **({"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {})}


# -- the first deploy --------------------------------------------------------------------------------------------------

_CONTEXT = re.compile(r"^current-context:\s*[\"']?([^\s\"']+)", re.MULTILINE)


def unused_kubeconfig() -> str | None:
    """A line that says which kubeconfig lies there unused and how to use it; None when there is none."""
    named = config.kubeconfig_path or os.environ.get("KUBECONFIG") or "~/.kube/config"
    for part in named.split(os.pathsep):
        path = Path(part).expanduser()
        try:
            found = _CONTEXT.search(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            continue  # none there, or not ours to read
        if found is not None:
            return (
                f'deploying to this machine; {path} has the context "{found[1]}": KT_BACKEND=kubernetes deploys there'
            )
    return None
