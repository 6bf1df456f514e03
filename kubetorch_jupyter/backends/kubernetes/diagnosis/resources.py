"""What to write in a ``kt.Compute`` so that the containers of a pod ask for what their namespace demands of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from ....errors import ResourceNotAvailableError
from ....progress import Phase
from ..names import FRONT, WORKER
from .finding import Diagnosis, Facts, fatal
from .objects import Raw, quantity, short

__all__ = ["never", "out_of_range", "over_default_limit", "unsaid"]

_REQUESTS, _LIMITS = "requests", "limits"
#: Container → ``(requests or limits, resource)`` → how much.
_Wanted = dict[str, dict[tuple[str, str], str]]

#: Where nothing is known that would say more.
_USUAL = {
    FRONT: {(_LIMITS, "cpu"): "1", (_LIMITS, "memory"): "512Mi"},
    WORKER: {
        (_REQUESTS, "cpu"): "1",
        (_LIMITS, "cpu"): "2",
        (_REQUESTS, "memory"): "2Gi",
        (_LIMITS, "memory"): "2Gi",
        (_REQUESTS, "ephemeral-storage"): "10Gi",
        (_LIMITS, "ephemeral-storage"): "10Gi",
    },
}
#: What of the worker has a name of its own in a `Compute`.
_NAMED = {
    (_REQUESTS, "cpu"): "cpus",
    (_REQUESTS, "memory"): "memory",
    (_LIMITS, "memory"): "memory_limit",
    (_REQUESTS, "ephemeral-storage"): "disk_size",
}

_SEE = "See 'kubectl describe limitrange'"

#: ``must be less than or equal to`` is said of a container whose limit is another's: a LimitRange's default.
_OVER = re.compile(
    r'spec\.(containers|initContainers)\[(\d+)\]\.resources\.requests: Invalid value: "?([^":]+)"?: '
    r"must be less than or equal to (\S+) limit of \S"
)
_BOUND = re.compile(
    r"(minimum|maximum) (\S+) usage per (Container|Pod) is ([^\s,]+?)(?:\. |, )(?:but (request|limit) is ([^\s,\]]+)|"
    r"\s*No (request|limit) is specified)"
)
_RATIO = re.compile(r"(\w[-./\w]*) max limit to request ratio per (?:Container|Pod) is (\S+), but")


# -- quotas ------------------------------------------------------------------------------------------------------------


def unsaid(facts: Facts, job: Raw | None, quota: str, demanded: str) -> Diagnosis:
    """A quota counts what a pod doesn't say.

    Parameters
    ----------
    facts, job
        Of the deploy.
    quota
        Its name.
    demanded
        ``limits.cpu for: front,worker; requests.cpu for: worker``; older clusters name no containers.
    """
    wanted: _Wanted = {}
    for part in demanded.split(";"):
        what, _, whose = part.partition(" for: ")
        for name in what.split(","):
            kind, dot, resource = name.strip().partition(".")
            key = (kind, resource) if dot else (_REQUESTS, kind)
            named = (
                [each.strip() for each in whose.split(",")] if whose else [c for c, has in _said(job) if key not in has]
            )
            for container in named:
                wanted.setdefault(container, {})[key] = _usual(job, container, key)
    what = f'is refused by the quota "{quota}" of its namespace: pods must say {demanded}'
    todo = f"Add to the kt.Compute, with amounts of your own: {_written(wanted)}"
    return never(facts, "quota", "FailedQuota", what, todo)


def _usual(job: Raw | None, container: str, key: tuple[str, str]) -> str:
    """An amount that goes with what the container says already."""
    has = dict(_said(job)).get(container, {})
    kind, resource = key
    asked = has.get((_REQUESTS, resource)) if kind == _LIMITS else None
    usual = _USUAL.get(container, _USUAL[WORKER]).get(key, "1")
    if asked is None or quantity(asked) <= quantity(usual):
        return usual
    return str(math.ceil(quantity(asked))) if resource == "cpu" else asked


# -- limit ranges ------------------------------------------------------------------------------------------------------


def over_default_limit(facts: Facts, job: Raw | None, words: str) -> Diagnosis | None:
    """A container asks for more than the limit that a LimitRange gives to those that say none; or None."""
    found = _OVER.search(words)
    if found is None:
        return None
    place, number, asked, resource = found.groups()
    container = _name(job, place, int(number))
    key = _LIMITS, resource
    if key in dict(_said(job)).get(container, {}):
        return None  # it says both itself, and they don't go together
    what = (
        "asks for more than a LimitRange of its namespace gives to containers that say no limit: container "
        f'"{container}" asks for {asked} of {resource}: {short(words[found.start() :])}'
    )
    less, enough = "", _usual(job, container, key)
    if container == WORKER:
        less = f"ask for less with kt.Compute({_NAMED.get((_REQUESTS, resource), resource)}=...), or, "
        enough = str(math.ceil(quantity(asked))) if resource == "cpu" else asked
    own = _written({container: {key: enough}})
    todo = f"{_SEE}; {less}if it allows so much, add to the kt.Compute a limit of its own: {own}"
    return never(facts, "limits", "LimitRange", what, todo)


def out_of_range(facts: Facts, job: Raw | None, words: str) -> Diagnosis | None:
    """A container, or the pod, has less or more than a LimitRange lets it have; or None."""
    bounds, ratios = list(_BOUND.finditer(words)), list(_RATIO.finditer(words))
    if not bounds and not ratios:
        return None
    wanted: _Wanted = {}
    todo, together = [_SEE], ""
    for found in bounds:
        which, resource, whose, bound, kind, is_now, lacks = found.groups()
        part = f"{kind or lacks}s"
        if which == "minimum" and whose == "Container" and is_now:
            for container in _those_with(job, (part, resource), is_now):
                enough = _with_front(job, bound) if container == WORKER and resource == "cpu" else bound
                wanted.setdefault(container, {})[part, resource] = enough
        elif lacks:
            for container, has in _said(job):
                if (part, resource) not in has:
                    wanted.setdefault(container, {})[part, resource] = _usual(job, container, (part, resource))
            together = f" (together {_MOST[which]} {bound} of {resource})" if whose == "Pod" else ""
        else:
            named = _NAMED.get((part, resource))
            todo.append(f"ask for {_MOST[which]} {bound} of {resource}{f' ({named}=...)' if named else ''}")
    for found in ratios:
        resource, ratio = found.groups()
        todo.append(f"the limit of {resource} may be {ratio} times the request, and each container has to say both")
        for container, has in _said(job):
            if (request := has.get((_REQUESTS, resource))) is not None:
                wanted.setdefault(container, {})[_LIMITS, resource] = request
    if wanted:
        todo.append(f"add to the kt.Compute, with amounts of your own{together}: {_written(wanted)}")
    brief = short(words[words.index("forbidden: ") + 11 :] if "forbidden: " in words else words)
    what = f"asks for what a LimitRange of its namespace doesn't allow: {brief}"
    return never(facts, "limits", "LimitRange", what, "; ".join(dict.fromkeys(todo)))


_MOST = {"maximum": "at most", "minimum": "at least"}


def never(facts: Facts, kind: str, reason: str, what: str, todo: str) -> Diagnosis:
    """A diagnosis, as `fatal`, that the namespace doesn't give what the pods ask for."""
    return fatal(facts, kind, reason, ResourceNotAvailableError, what, todo, phase=Phase.SCHEDULING)


# -- what a Job says, and what is to be written ------------------------------------------------------------------------


def _containers(job: Raw | None, place: str = "containers") -> Sequence[Raw]:
    spec: Raw = (((job or {}).get("spec") or {}).get("template") or {}).get("spec") or {}
    return spec.get(place) or ()


def _name(job: Raw | None, place: str, number: int) -> str:
    containers = _containers(job, place)
    return str(containers[number].get("name")) if number < len(containers) else f"{place}[{number}]"


def _said(job: Raw | None) -> Iterator[tuple[str, dict[tuple[str, str], str]]]:
    """What each container says of its resources; our two say nothing where the Job isn't known."""
    for each in _containers(job) or ({"name": FRONT}, {"name": WORKER}):
        resources: Raw = each.get("resources") or {}
        yield (
            str(each.get("name")),
            {
                (kind, resource): str(value)
                for kind in (_REQUESTS, _LIMITS)
                for resource, value in (resources.get(kind) or {}).items()
            },
        )


def _those_with(job: Raw | None, key: tuple[str, str], amount: str) -> list[str]:
    return [name for name, has in _said(job) if key in has and quantity(has[key]) == quantity(amount)]


def _with_front(job: Raw | None, cpu: str) -> str:
    """What the pod has to ask for, so that the worker asks for that much: the front's part is taken out of it."""
    return f"{quantity(cpu) + quantity(dict(_said(job)).get(FRONT, {}).get((_REQUESTS, 'cpu'))):g}"


def _written(wanted: Mapping[str, Mapping[tuple[str, str], str]]) -> str:
    """As keywords of a `Compute`.

    Examples
    --------
    >>> _written({"worker": {("requests", "cpu"): "1", ("limits", "memory"): "2Gi"}})
    'cpus="1", memory_limit="2Gi"'
    """
    said: list[str] = []
    rest: list[dict[str, object]] = []
    for container, amounts in wanted.items():
        resources: dict[str, dict[str, str]] = {}
        for (kind, resource), amount in amounts.items():
            if container == WORKER and (kind, resource) in _NAMED:
                said.append(f'{_NAMED[kind, resource]}="{amount}"')
            else:
                resources.setdefault(kind, {})[resource] = amount
        if resources:
            rest.append({"name": container, "resources": resources})
    if rest:
        said.append(f"service_template={json.dumps({'spec': {'template': {'spec': {'containers': rest}}}})}")
    return ", ".join(said)
