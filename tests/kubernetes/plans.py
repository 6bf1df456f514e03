"""Plans that the tests share: fixed in all that differs from run to run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kubetorch_jupyter.backends.kubernetes.manifests import Plan
from kubetorch_jupyter.backends.kubernetes.secrets import SecretSource
from kubetorch_jupyter.compute import Compute

OWNER = {"user": "alice", "host": "laptop", "pid": 4321, "notebook": "train model.ipynb"}
IMAGE = "python:3.11-slim"


def plan(compute: Compute | None = None, *, secrets: Sequence[SecretSource] = (), **changes: Any) -> Plan:
    chosen = compute if compute is not None else Compute()
    if chosen.image is None:
        chosen = chosen.replace(image=IMAGE)
    given: dict[str, Any] = {
        "service": "alice-train",
        "namespace": "team-a",
        "revision": "0a1b2c3d",
        "compute": chosen,
        "bundle": "00112233445566ff",
        "owner": OWNER,
        "created": 1795773600.25,
        "version": "0.1.0",
        "spec": "8f3c52ab9d01e677",
        "secrets": tuple(secrets),
    }
    return Plan(**{**given, **changes})
