"""Reading what the API server says: raw JSON in, plain values out, and nothing raised for what is missing."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from ..names import INDEX

__all__ = [
    "Raw",
    "about",
    "asks",
    "condition",
    "container",
    "ended_how",
    "event_lines",
    "event_time",
    "events_of",
    "index_of",
    "last_lines",
    "latest",
    "limits",
    "message_of",
    "name_of",
    "node_lost",
    "one_line",
    "quantity",
    "seconds_of",
    "short",
    "statuses",
    "time_of",
    "times_seen",
]

Raw = Mapping[str, Any]

_LONGEST = 1000
#: Times of one thing that are told by two objects differ by less, in seconds.
_SAME = 2.0


def name_of(thing: Raw | None) -> str:
    """An object's name."""
    return str(((thing or {}).get("metadata") or {}).get("name") or "")


def time_of(text: object) -> float | None:
    """The API's time as unix time.

    Examples
    --------
    >>> time_of("2026-11-27T10:00:00Z"), time_of("2026-11-27T10:00:00.250000Z"), time_of(None)
    (1795773600.0, 1795773600.25, None)
    """
    try:
        return datetime.fromisoformat(str(text)).timestamp() if text else None
    except ValueError:
        return None


def seconds_of(begin: object, end: object) -> float | None:
    """Seconds between two of the API's times; None where one is missing, or is that of what never began (1970).

    Examples
    --------
    >>> seconds_of("2026-11-27T10:00:00Z", "2026-11-27T10:00:02Z")
    2.0
    >>> seconds_of("1970-01-01T00:00:00Z", "2026-11-27T10:00:02Z")
    """
    first, last = time_of(begin), time_of(end)
    return last - first if first and last else None


def condition(thing: Raw, kind: str) -> Raw:
    """The condition of that type, or an empty one."""
    found: Iterable[Raw] = (thing.get("status") or {}).get("conditions") or ()
    return next((c for c in found if c.get("type") == kind), {})


def index_of(pod: Raw) -> str:
    """Which replica a pod is; its own name where it has no index."""
    meta: Raw = pod.get("metadata") or {}
    for place in ("annotations", "labels"):
        index = (meta.get(place) or {}).get(INDEX)
        if index is not None:
            return str(index)
    return name_of(pod)


def statuses(pod: Raw) -> Iterator[Raw]:
    """The states of its containers, those that come first in its life first."""
    status: Raw = pod.get("status") or {}
    for key in ("initContainerStatuses", "containerStatuses"):
        yield from status.get(key) or ()


def container(pod: Raw, name: str) -> Raw:
    """What was asked for of a container."""
    spec: Raw = pod.get("spec") or {}
    every: list[Raw] = [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
    return next((c for c in every if c.get("name") == name), {})


def limits(pod: Raw, name: str, resource: str = "memory") -> str:
    """A container's limit and request, for people.

    Examples
    --------
    >>> pod = {"spec": {"containers": [{"name": "worker", "resources": {"limits": {"memory": "2Gi"}}}]}}
    >>> limits(pod, "worker")
    'limit 2Gi, no request'
    """
    resources: Raw = container(pod, name).get("resources") or {}
    limit = (resources.get("limits") or {}).get(resource)
    request = (resources.get("requests") or {}).get(resource)
    return f"{f'limit {limit}' if limit else 'no limit'}, {f'request {request}' if request else 'no request'}"


def asks(pod: Raw) -> str:
    """What one pod asks a node for, in one phrase.

    Examples
    --------
    >>> worker = {"resources": {"requests": {"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "1"}}}
    >>> front = {"resources": {"requests": {"cpu": "20m", "memory": "96Mi"}}}
    >>> asks({"spec": {"containers": [worker, front], "nodeSelector": {"gpu": "L4"}}})
    '1 nvidia.com/gpu, 2.02 CPUs and 4.09Gi of memory, on a node with gpu=L4'
    """
    spec: Raw = pod.get("spec") or {}
    total: dict[str, float] = {}
    for one in spec.get("containers") or ():
        for key, value in ((one.get("resources") or {}).get("requests") or {}).items():
            total[key] = total.get(key, 0.0) + quantity(value)
    parts = [f"{number:g} {key}" for key, number in sorted(total.items()) if "/" in key and number]
    if cpus := total.get("cpu"):
        parts.append(f"{cpus:g} CPU{'s' * (cpus != 1)}")
    for key, word in (("memory", "memory"), ("ephemeral-storage", "disk")):
        if size := total.get(key):
            parts.append(f"{_size(size)} of {word}")
    text = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    selector = ", ".join(f"{key}={value}" for key, value in sorted((spec.get("nodeSelector") or {}).items()))
    return f"{text}{', ' if text else ''}on a node with {selector}" if selector else text


_UNITS = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_QUANTITY = re.compile(r"([0-9.]+(?:[eE][+-]?[0-9]+)?)([numkMGTPE]?)(i?)")


def quantity(value: object) -> float:
    """A Kubernetes quantity as a number; 0 for what isn't one.

    Examples
    --------
    >>> quantity("500m"), quantity("2Gi"), quantity(4), quantity("?")
    (0.5, 2147483648.0, 4.0, 0.0)
    """
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        return 0.0
    number, unit, binary = match.groups()
    if binary:
        return float(number) * 1024.0 ** ("KMGTPE".index(unit.upper()) + 1)
    return float(number) * _UNITS.get(unit, 1.0)


def _size(size: float) -> str:
    for power, unit in ((4, "Ti"), (3, "Gi"), (2, "Mi")):
        if size >= 1024**power:
            return f"{size / 1024**power:.3g}{unit}"
    return f"{size:g} bytes"


def ended_how(code: int | None, number: int | None = None) -> str:
    """How a container's first process ended.

    Examples
    --------
    >>> ended_how(3), ended_how(139), ended_how(None), ended_how(255)
    ('ended with exit code 3', 'was ended by SIGSEGV (exit code 139)', 'ended', 'ended with exit code 255')
    """
    number = number or (code - 128 if code is not None and 128 < code < 128 + 65 else None)
    if number:
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return f"was ended by {name}" + (f" (exit code {code})" if code is not None else "")
    return "ended" if code is None else f"ended with exit code {code}"


# -- events ------------------------------------------------------------------------------------------------------------


def event_time(event: Raw) -> float:
    """When it was last seen."""
    series: Raw = event.get("series") or {}
    meta: Raw = event.get("metadata") or {}
    told = (
        series.get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
        event.get("firstTimestamp"),
        meta.get("creationTimestamp"),
    )
    return next((at for text in told if (at := time_of(text)) is not None), 0.0)


def times_seen(event: Raw) -> int:
    """How often."""
    return int((event.get("series") or {}).get("count") or event.get("count") or 1)


def about(event: Raw) -> Raw:
    """The object that it is about."""
    found: Raw = event.get("involvedObject") or event.get("regarding") or {}
    return found


def message_of(event: Raw) -> str:
    """Its words."""
    return str(event.get("message") or event.get("note") or "")


def events_of(events: Iterable[Raw], thing: Raw | None) -> list[Raw]:
    """Those that are about an object, oldest first."""
    if thing is None:
        return []
    uid, name = (thing.get("metadata") or {}).get("uid"), name_of(thing)
    found = []
    for event in events:
        what = about(event)
        if (what.get("uid") == uid) if uid and what.get("uid") else (what.get("name") == name):
            found.append(event)
    return sorted(found, key=event_time)


def latest(events: Iterable[Raw], *reasons: str) -> Raw | None:
    """The last one with such a reason."""
    return max((e for e in events if e.get("reason") in reasons), key=event_time, default=None)


def event_lines(events: Iterable[Raw], most: int = 20) -> list[str]:
    """The last events as lines, oldest first.

    Examples
    --------
    >>> event_lines([{"reason": "Failed", "message": "Error: no", "count": 3, "involvedObject": {"name": "a-0-x"}}])
    ['a-0-x: Failed: Error: no (3 times)']
    """
    lines: list[str] = []
    for event in sorted(events, key=event_time)[-most:]:
        count = times_seen(event)
        often = f" ({count} times)" if count > 1 else ""
        lines.append(f"{about(event).get('name', '')}: {event.get('reason')}: {one_line(message_of(event))}{often}")
    return lines


def node_lost(pod: Raw | None, events: Iterable[Raw]) -> Raw | None:
    """The event that says that a pod's node isn't heard of, if that is so still.

    Kubernetes makes it as it takes the pod's readiness away. A node that comes back gives that back, with a later time.
    """
    last = latest(events, "NodeNotReady")
    if last is None or pod is None:
        return last
    ready = condition(pod, "Ready")
    since = time_of(ready.get("lastTransitionTime"))
    same = since is not None and abs(event_time(last) - since) <= _SAME
    return last if ready.get("status") == "False" and same else None


def one_line(text: str) -> str:
    """Text without line ends."""
    return " ".join(text.split())


def short(text: str, longest: int = _LONGEST) -> str:
    """Text on one line that isn't too long for one."""
    line = one_line(text)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def last_lines(text: str, most: int = 10) -> str:
    """The last lines of a log, indented, for the end of a message."""
    lines: Sequence[str] = [line.rstrip() for line in text.splitlines() if line.strip()][-most:]
    return "\n".join(f"    {line}" for line in lines)
