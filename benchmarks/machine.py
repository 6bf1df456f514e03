"""What a run was measured on: part of its output, since figures without it say nothing."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["SETTINGS", "described", "look", "unset_what_changes_the_figures"]

_PACKAGES = ("cloudpickle", "httptools", "numpy", "uvicorn", "uvloop", "websockets")
#: With them every import compiles, or nothing that is printed is buffered: in ours, in the limits and in the peers.
SETTINGS = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONDEVMODE", "PYTHONASYNCIODEBUG", "PYTHONMALLOC")


def unset_what_changes_the_figures() -> None:
    """Take the settings of Python out of the environment that would change what is measured."""
    for name in SETTINGS:
        os.environ.pop(name, None)
    sys.dont_write_bytecode = False


def look() -> dict[str, Any]:
    """The machine as it is now."""
    return {
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "load": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None  # not Linux
    return found[1] if found is not None else platform.machine()


def described(machine: dict[str, Any]) -> str:
    """One line for people."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    memory = f"{machine['memory'] / (1 << 30):.0f} GiB"
    return (
        f"{machine['system']}, {machine['processor']}, {machine['cores']} cores, {memory}; "
        f"Python {machine['python']}, {packages}; load {machine['load']} at the start"
    )
