"""The user's own part of the manifest, merged into ours, as ``kubectl patch`` does it.

Dictionaries are merged; lists of things that have names by their names (mounts by their paths), so that a container's
part reaches that container; other lists take the place of ours, tolerations are added; null removes. What would break
the service is refused, with the path.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NoReturn

from ....errors import ConfigError
from .. import names

__all__ = ["merged"]

_Path = tuple[str, ...]

_POD: _Path = ("spec", "template", "spec")
_CONTAINERS: _Path = (*_POD, "containers")
_FRONT: _Path = (*_CONTAINERS, names.FRONT)
_RESTART = "a restart would end the service"
_EACH_OTHER = "replicas find each other by it"
_HOME = "the service lives there"

#: What is ours alone, with all that lies below it, and what to do instead or why. "*" is any word.
_OURS: Mapping[_Path, str] = {
    ("apiVersion",): "the service is a Job of batch/v1",
    ("kind",): "the service is a Job",
    ("status",): "it is the cluster's",
    ("metadata", "name"): "name the function or class instead",
    ("metadata", "generateName"): "name the function or class instead",
    ("metadata", "namespace"): "use Compute(namespace=...)",
    ("metadata", "ownerReferences"): "a service ends by teardown or by its inactivity_ttl",
    ("metadata", "finalizers"): "the service couldn't be removed",
    ("spec", "completionMode"): "replicas know each other by their index",
    ("spec", "completions"): "use Compute(replicas=...)",
    ("spec", "parallelism"): "use Compute(replicas=...)",
    ("spec", "backoffLimit"): _RESTART,
    ("spec", "backoffLimitPerIndex"): _RESTART,
    ("spec", "maxFailedIndexes"): _RESTART,
    ("spec", "podFailurePolicy"): _RESTART,
    ("spec", "successPolicy"): "one replica's end would end the others",
    ("spec", "suspend"): "the service is released when everything that it needs is there",
    ("spec", "selector"): "the cluster makes it",
    ("spec", "manualSelector"): "the cluster makes it",
    ("spec", "ttlSecondsAfterFinished"): "what has ended is removed at once; use Compute(inactivity_ttl=...)",
    (*_POD, "restartPolicy"): "a container that fails has to start again in its pod",
    (*_POD, "subdomain"): _EACH_OTHER,
    (*_POD, "hostname"): _EACH_OTHER,
    (*_POD, "shareProcessNamespace"): "the code could read the service's token",
    (*_POD, "hostPID"): "the code could read the service's token",
    (*_CONTAINERS, "*", "command"): "it starts the service",
    (*_CONTAINERS, "*", "args"): "it starts the service",
    (*_FRONT, "ports"): "the client connects there",
    (*_FRONT, "readinessProbe"): "it tells whether the service takes calls",
    (*_FRONT, "livenessProbe"): "it tells whether the service lives",
    **{(*_POD, "volumes", name): _HOME for name in ("bundle", "secret", "run", "lib")},
    **{
        (*_CONTAINERS, "*", "volumeMounts", path): _HOME
        for path in (names.BUNDLE_PATH, names.RUN_PATH, names.LIB_PATH, names.SECRET_PATH)
    },
    **{
        (*place, "labels", label): "the service is found by it"
        for place in (("metadata",), ("spec", "template", "metadata"))
        for label in names.LABELS
    },
    **{("metadata", "annotations", name): "other clients read it" for name in names.ANNOTATIONS},
}

#: Things that are one of several kinds, each under a key of its own: another kind takes the place of ours.
_ONE_OF = ("volumes", "env")

#: Kubetorch's name of the container that runs the user's code.
_ALIASES = {"kubetorch": names.WORKER}


def merged(ours: Mapping[str, Any], template: Mapping[str, Any]) -> dict[str, Any]:
    """`ours` with `template` merged into a copy.

    Parameters
    ----------
    ours
        The Job.
    template
        What the user wants of it besides, in the Job's own form.

    Raises
    ------
    ConfigError
        When something that the service needs would be another, or the template isn't of a manifest's form.
    """
    result = copy.deepcopy(dict(ours))
    _merge(result, template, ())
    return result


def _merge(target: dict[str, Any], part: Mapping[str, Any], path: _Path) -> None:
    for key, value in part.items():
        here = (*path, key)
        before = target.get(key)
        if isinstance(value, Mapping):
            if before is not None and not isinstance(before, dict):
                _refuse(here, "it is no mapping")
            if before is None:
                _check(here)
                before = target[key] = {}
            _merge(before, value, here)
            continue
        if isinstance(value, list) and isinstance(before, list) and (name := _key_of(key, before + value)):
            target[key] = _merge_named(before, value, name, here)
            continue
        if value == before and key in target:
            continue
        _check(here)
        if value is None:
            target.pop(key, None)
        elif key == "tolerations" and isinstance(value, list) and isinstance(before, list):
            target[key] = before + [item for item in value if item not in before]
        else:
            target[key] = copy.deepcopy(value)


def _key_of(key: str, items: list[Any]) -> str | None:
    """What tells the items of a list apart, if anything does."""
    name = "mountPath" if key == "volumeMounts" else "name"
    if key == "containers" and not all(isinstance(item, Mapping) and item.get("name") for item in items):
        _refuse(_CONTAINERS, f'say which container is meant: name: "{names.WORKER}" runs the code')
    return name if items and all(isinstance(item, Mapping) and item.get(name) for item in items) else None


def _merge_named(before: list[Any], part: list[Any], name: str, path: _Path) -> list[Any]:
    found = {item[name]: item for item in before}
    for item in part:
        word = item[name]
        if path == _CONTAINERS:
            word = _ALIASES.get(word, word)
            if word not in found:
                _refuse(
                    (*path, word),
                    "a container beside the service's own would keep it from ending: make it one of initContainers "
                    "with restartPolicy: Always, which runs beside them and ends with them",
                )
        if name == "mountPath" and item.get("name") == "secret":
            _refuse((*path, word), "it would show the service's token")
        if path[-1] in _ONE_OF and word in found and set(item) & set(found[word]) == {name}:
            del found[word]
        if word in found:
            _merge(found[word], {key: value for key, value in item.items() if key != name}, (*path, word))
        else:
            _check((*path, word))
            found[word] = copy.deepcopy(dict(item))
    return list(found.values())


def _check(path: _Path) -> None:
    for ours, why in _OURS.items():
        if all(word in ("*", part) for word, part in zip(ours, path, strict=False)):
            # At it, below it, or all of what it is in.
            _refuse(path, why if len(path) >= len(ours) else f"it has {'.'.join(ours)} in it, and {why}")


def _refuse(path: _Path, why: str) -> NoReturn:
    raise ConfigError(f"Compute: service_template: {'.'.join(path)} can't be set: {why}")
