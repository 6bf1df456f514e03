"""Who this client is, for people and for the other clients of a service: user, host, process, notebook."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from .config import config

__all__ = ["describe_client"]


def describe_client() -> dict[str, Any]:
    """``user host pid notebook`` of this process.

    Examples
    --------
    >>> sorted(describe_client())
    ['host', 'notebook', 'pid', 'user']
    """
    return {"user": config.username, "host": socket.gethostname(), "pid": os.getpid(), "notebook": _notebook()}


def _notebook() -> str:
    """The notebook's path under a Jupyter server, else the script's name, else what kind of session it is."""
    if session := os.environ.get("JPY_SESSION_NAME"):
        return os.path.basename(session)
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    if "ipykernel" in name:
        return f"kernel {os.getpid()}"
    if name == "__main__.py":  # python -m package
        return os.path.basename(os.path.dirname(os.path.abspath(sys.argv[0])))
    return name or f"python {os.getpid()}"
