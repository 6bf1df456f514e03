"""Which GPUs this machine has, and which of them a service may have: shared out whole, by ``CUDA_VISIBLE_DEVICES``.

Devices are named as ``CUDA_VISIBLE_DEVICES`` names them. Who holds one is in the services' records (`registry`);
nothing here looks at what other programs do with a GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from ..config import config
from ..errors import ResourceNotAvailableError

__all__ = ["choose", "devices"]

_DEVICE_FILE = re.compile(r"nvidia\d+")


def devices() -> list[str]:
    """The GPUs that a service of this process may be given.

    Those of ``KT_LOCAL_GPUS`` (or ``config.local_gpus``), a number, if it is set; else those that the process itself
    may use by its ``CUDA_VISIBLE_DEVICES``; else all that the NVIDIA driver has. Takes up to seconds where
    ``nvidia-smi`` must be asked: not for a loop.
    """
    visible = _visible(os.environ.get("CUDA_VISIBLE_DEVICES"))
    declared = config.local_gpus
    if declared is not None:
        # A declared number beside a restriction that has as many: the restriction says which.
        return visible[:declared] if visible and len(visible) >= declared else [str(n) for n in range(declared)]
    return visible if visible is not None else _installed()


def _visible(variable: str | None) -> list[str] | None:
    """What ``CUDA_VISIBLE_DEVICES`` allows, up to the first entry that is no device, as CUDA reads it; None: all."""
    if variable is None:
        return None
    out: list[str] = []
    for entry in variable.split(","):
        name = entry.strip()
        if not (name.isdecimal() or name.startswith(("GPU-", "MIG-"))):
            break
        out.append(name)
    return out


def _installed() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is not None:
        try:
            asked = subprocess.run(
                [program, "--query-gpu=index", "--format=csv,noheader"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            asked = None  # a broken driver: the device files are the other witness
        if asked is not None and asked.returncode == 0:
            return [line.strip() for line in asked.stdout.splitlines() if line.strip().isdecimal()]
    try:
        files = [name for name in os.listdir("/dev") if _DEVICE_FILE.fullmatch(name)]
    except OSError:
        files = []
    return [str(n) for n in range(len(files))]


def choose(service: str, count: int, available: Sequence[str], held: Mapping[str, str]) -> list[str]:
    """The first `count` free devices.

    Parameters
    ----------
    service
        Who asks, for the error.
    count
        How many.
    available
        All devices.
    held
        Who holds a device already: device to service.

    Raises
    ------
    ResourceNotAvailableError
        When fewer are free.

    Examples
    --------
    >>> choose("train", 1, ["0", "1"], {"0": "other"})
    ['1']
    """
    free = [device for device in available if device not in held]
    if len(free) >= count:
        return free[:count]
    if not available:
        what = "this machine has none that the NVIDIA driver knows of"
        todo = "Deploy to a machine that has, or declare some with KT_LOCAL_GPUS=N"
    else:
        users = sorted({f'"{held[device]}"' for device in available if device in held})
        by = f" (the others are held by {', '.join(users)})" if users else ""
        what = f"{len(free)} of {len(available)} are free{by}"
        todo = "Tear one of those services down, or ask for fewer" if users else "Ask for fewer"
    raise ResourceNotAvailableError(
        f'service "{service}" asks for {count} GPU{"s" * (count != 1)}: {what}. {todo}.',
        service=service,
        reason="InsufficientGPUs",
    )
