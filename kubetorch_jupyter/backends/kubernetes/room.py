"""Whether the end of a revision makes room for the next one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...values import parse_bytes, parse_cpus
from .diagnosis import Diagnosis

__all__ = ["makes_room"]

_LACKING = re.compile(r"Insufficient ([\w./-]+)")


def makes_room(found: Diagnosis, new: Mapping[str, Any], old: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the new pods find their place when the old ones have gone.

    What runs isn't ended for a mere chance: the old ones must hold at least as much of all that is lacking.

    Parameters
    ----------
    found
        What keeps the new pods from running.
    new
        The Job of the new revision.
    old
        Those of the revisions that it replaces.

    Examples
    --------
    >>> from ...progress import Phase
    >>> def job(gpus):
    ...     container = {"resources": {"requests": {"nvidia.com/gpu": gpus}}}
    ...     return {"spec": {"parallelism": 1, "template": {"spec": {"containers": [container]}}}}
    >>> found = Diagnosis(Phase.SCHEDULING, curable="0/1 nodes are available: 1 Insufficient nvidia.com/gpu")
    >>> makes_room(found, job("2"), [job("2")]), makes_room(found, job("4"), [job("2")])
    (True, False)
    """
    if found.kind == "quota":
        return found.curable is not None
    lacking = set(_LACKING.findall(f"{found.curable} {found.detail}"))
    return bool(lacking) and all(_requested(new, name) <= sum(_requested(job, name) for job in old) for name in lacking)


def _requested(job: Mapping[str, Any], resource: str) -> float:
    spec = job["spec"]
    requests = [
        (container.get("resources") or {}).get("requests") or {} for container in spec["template"]["spec"]["containers"]
    ]
    return int(spec.get("parallelism") or 1) * sum(_quantity(resource, each.get(resource)) for each in requests)


def _quantity(resource: str, value: object) -> float:
    if value is None:
        return 0.0
    if resource == "cpu":
        return parse_cpus(value)
    # What is counted, and not measured, has no unit.
    return float(str(value)) if str(value).isdecimal() else float(parse_bytes(value))
