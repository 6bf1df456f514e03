"""``python -m benchmarks [W2 …] [--cluster] [--rounds N] [--json FILE] [--markdown FILE]``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import kubetorch_jupyter as kt

from . import calls, deploys, payloads, places, printed
from .rows import markdown, measure, table_line

WORKLOADS = [*calls.WORKLOADS, *payloads.WORKLOADS, *printed.WORKLOADS, *deploys.WORKLOADS]


def _machine() -> dict[str, Any]:
    packages = ("cloudpickle", "numpy", "uvicorn", "websockets")
    return {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "load": round(os.getloadavg()[0], 1),
    }


def _said(machine: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"{machine['system']}, {machine['cores']} cores, Python {machine['python']}, {packages}; load {machine['load']}"
    )


def main() -> None:
    """Run the workloads asked for and print the table; the exit status is 1 when a goal isn't reached."""
    known = {w.name for w in WORKLOADS}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="W", help=f"of {', '.join(sorted(known))}; default all")
    parser.add_argument("--cluster", action="store_true", help="also on the kubeconfig's cluster, namespace and image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table of docs/performance.md")
    given = parser.parse_args()
    if unknown := set(given.names) - known:
        parser.error(f"there is no workload {', '.join(sorted(unknown))}")
    chosen = [w for w in WORKLOADS if not given.names or w.name in given.names]
    machine = _machine()
    print(_said(machine))
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        there: list[places.Place] = [stack.enter_context(places.local())]
        if given.cluster:
            there += stack.enter_context(places.cluster(_on_the_cluster()))
        for workload in chosen:
            load = os.getloadavg()[0]
            for row in measure(workload, there, given.rounds):
                rows.append({**row, "load": round(load, 1)})
                print(table_line(row), f"; load {load:.1f}", sep="", flush=True)
            # After each, for who stops it.
            if given.json:
                given.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
            if given.markdown:
                given.markdown.write_text(f"{_said(machine)}\n\n{markdown(rows)}")
    sys.exit(0 if all(row["reached"] for row in rows) else 1)


def _on_the_cluster() -> kt.Compute:
    """A service of the cluster, while one without a namespace stays on this machine."""
    kt.config.backend = "auto"
    return kt.Compute(namespace=kt.config.namespace or _current_namespace())


def _current_namespace() -> str:
    from kubetorch_jupyter.backends.kubernetes.backend import kubernetes_backend
    from kubetorch_jupyter.transport.portal import get_portal

    kt.config.backend = "kubernetes"
    namespace = get_portal().run(kubernetes_backend(kt.Compute()).space()).namespace
    kt.config.backend = "auto"
    return namespace


if __name__ == "__main__":
    main()
