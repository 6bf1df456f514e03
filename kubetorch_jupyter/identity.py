"""Who this client is, for people and for the other clients of a service, and what its services are called."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Mapping
from typing import Any

from .config import config
from .errors import ConfigError

__all__ = ["describe_client", "of_another", "service_name"]


def describe_client() -> dict[str, Any]:
    """``user host pid notebook`` of this process.

    Examples
    --------
    >>> sorted(describe_client())
    ['host', 'notebook', 'pid', 'user']
    """
    return {"user": config.username, "host": socket.gethostname(), "pid": os.getpid(), "notebook": _notebook()}


def of_another(by: Mapping[str, Any] | None) -> str | None:
    """Who that is and from where, for people; None when it is this process, or isn't known.

    Parameters
    ----------
    by
        As `describe_client` gives it.

    Examples
    --------
    >>> of_another({"user": "ann", "host": "elsewhere", "pid": 7, "notebook": "train.ipynb"})
    'ann from train.ipynb'
    >>> of_another(describe_client())
    """
    if not by or (by.get("host"), by.get("pid")) == (socket.gethostname(), os.getpid()):
        return None
    where = by.get("notebook") or f"process {by.get('pid')}"
    return f"{by.get('user')} from {where}"


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


_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def service_name(name: str) -> str:
    """A valid service name made of a Python name: lower case, other characters become ``-``.

    Raises
    ------
    ConfigError
        When nothing is left of it, or more than the 63 characters of an RFC 1123 label.

    Examples
    --------
    >>> service_name("train_Model")
    'train-model'
    """
    out = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if len(out) > 63:
        raise ConfigError(f"the service name {out!r} has {len(out)} characters; 63 are allowed: give a shorter name=")
    if not _NAME.fullmatch(out):
        raise ConfigError(f"no service name can be made of {name!r}: give a name= of letters, digits and '-'")
    return out
