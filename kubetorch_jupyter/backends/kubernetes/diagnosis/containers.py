"""Why a container doesn't run: its image, what it is made of, or how it ended."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ....errors import DeployError, PodContainerError, SecretNotFound
from ....progress import Phase
from .finding import Diagnosis, Facts, LogWanted, curable, fatal
from .images import PULLING, missing_image
from .objects import Raw, container, ended_how, limits, name_of, one_line, seconds_of, short, time_of

__all__ = ["container_trouble", "missing_object"]

#: A run that ended within so many seconds ended at its start.
_START = 60.0
#: One that has been started again and has run for so many seconds has come up.
_AGAIN = 10.0
#: SIGKILL and SIGTERM come from outside; so often that is taken for bad luck.
_BAD_LUCK = 3
#: The runtime is slow: the kubelet has given up waiting for it, and asks again.
_SLOW = re.compile(r"name .* is reserved|deadline exceeded|timed? ?out|failed to sync", re.IGNORECASE)
_MISSING_KEY = re.compile(r"couldn't find key (\S+) in (Secret|ConfigMap) (?:\S+/)?(\S+)", re.IGNORECASE)
_MISSING = re.compile(r'\b(secret|configmap) "([^"]+)" not found', re.IGNORECASE)
#: What the kubelet adds, and the runtime puts before what matters.
_PLACE = re.compile(r' \(pod: "[^"]*", container: [^)]*\)')
_MISSING_FILE = re.compile(r'exec: "([^"]+)".*(?:no such file|not found)', re.IGNORECASE)


def container_trouble(facts: Facts, pod: Raw, status: Raw, events: Sequence[Raw], now: float) -> Diagnosis | None:
    """What keeps one container of a pod from running, or None.

    Parameters
    ----------
    facts
        Of the deploy.
    pod
        Its pod.
    status
        The container's.
    events
        Of the pod.
    now
        Unix time.
    """
    state: Raw = status.get("state") or {}
    waiting: Raw = state.get("waiting") or {}
    reason = waiting.get("reason")
    if reason in PULLING:
        return missing_image(facts, pod, status, events)
    if reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PostStartHookError"):
        return _not_made(facts, pod, status, str(reason), one_line(str(waiting.get("message") or "")))
    ended: Raw | None = state.get("terminated")
    last: Raw | None = (status.get("lastState") or {}).get("terminated")
    if ended is not None:
        return _ended(facts, pod, status, ended, previous=False)
    if last is not None and reason == "CrashLoopBackOff":
        return _ended(facts, pod, status, last, previous=True)
    again: Raw | None = state.get("running")
    if last is not None and again is not None and now - (time_of(again.get("startedAt")) or 0.0) < _AGAIN:
        # The kubelet starts it again at once the first time, mostly before anybody sees that it had ended.
        trouble = _ended(facts, pod, status, last, previous=True)
        return trouble if trouble is not None and trouble.error is not None else None
    return None


# -- not made ----------------------------------------------------------------------------------------------------------


def _not_made(facts: Facts, pod: Raw, status: Raw, reason: str, words: str) -> Diagnosis:
    name = str(status.get("name"))
    words = _PLACE.sub("", words).rpartition("unable to start container process: ")[2]
    if found := missing_object(facts, reason, words):
        return found
    what = f'can\'t make its container "{name}": {short(words)}'
    if "runAsNonRoot" in words or "run as non-root" in words:
        return fatal(
            facts,
            "root",
            reason,
            PodContainerError,
            what,
            "The image runs as root, or as a user that has only a name: allow it with kt.Compute(run_as_root=True), "
            "or say a number with a securityContext of runAsUser in service_template",
            phase=Phase.STARTING,
        )
    if missing := _MISSING_FILE.search(words):
        return _no_command(facts, reason, missing[1], _image(pod, name), words)
    if _SLOW.search(words):
        return curable("container", reason, PodContainerError, what, phase=Phase.STARTING, detail=words)
    return fatal(facts, "container", reason, PodContainerError, what, _LOOK, phase=Phase.STARTING)


_LOOK = "Check the image, and what service_template, volumes and secrets of the kt.Compute ask for"


def missing_object(facts: Facts, reason: str, words: str) -> Diagnosis | None:
    """A Secret or ConfigMap, or a key of one, that the words say isn't there."""
    if found := _MISSING_KEY.search(words):
        key, kind, name = found[1].strip("'\""), found[2].lower(), found[3].strip("'\"")
        what, todo = f'needs the key "{key}" of the {_KINDS[kind]} "{name}", which has none of that name', "Add it"
    elif found := _MISSING.search(words):
        kind, name = found[1].lower(), found[2]
        what, todo = f'needs the {_KINDS[kind]} "{name}", which isn\'t there', "Create it"
    else:
        return None
    where = f" in namespace {facts.namespace}" if facts.namespace else ""
    error: type[DeployError] = SecretNotFound if kind == "secret" else PodContainerError
    todo = f"{todo}{where}, or leave it out of the kt.Compute"
    return fatal(facts, kind, reason, error, f"{what} ({short(words)})", todo, phase=Phase.STARTING)


_KINDS = {"secret": "Secret", "configmap": "ConfigMap"}


def _no_command(facts: Facts, reason: str, command: str, image: str, words: str) -> Diagnosis:
    program = command.rpartition("/")[2]
    what = f'can\'t start: its image "{image}" has no {command} ({short(words)})'
    todo = "Use an image that has it"
    if program == "sh":
        todo = "It needs an image with a shell and Python 3.10 or later"
    elif "py" in program:
        todo = "Use an image that has it, or say where its Python is with kt.Image(python_path=...)"
    return fatal(facts, "command", reason, PodContainerError, what, todo, phase=Phase.STARTING)


def _image(pod: Raw, name: str) -> str:
    return str(container(pod, name).get("image") or "")


# -- ended -------------------------------------------------------------------------------------------------------------


def _ended(facts: Facts, pod: Raw, status: Raw, ended: Raw, *, previous: bool) -> Diagnosis | None:
    name, code = str(status.get("name")), ended.get("exitCode")
    reason = str(ended.get("reason") or "Error")
    restarts = int(status.get("restartCount") or 0)
    said = str(ended.get("message") or "")
    words = one_line(said)
    lived = seconds_of(ended.get("startedAt"), ended.get("finishedAt"))
    log = LogWanted(name_of(pod), name, previous)
    if reason in ("StartError", "ContainerCannotRun"):
        words = words.rpartition("unable to start container process: ")[2]
        if missing := _MISSING_FILE.search(words):
            return _no_command(facts, reason, missing[1], _image(pod, name), words)
        what = f'can\'t start its container "{name}": {short(words)}'
        if _SLOW.search(words):
            return curable("container", reason, PodContainerError, what, phase=Phase.STARTING, detail=words)
        return fatal(facts, "container", reason, PodContainerError, what, _LOOK, phase=Phase.STARTING)
    has_run = facts.loaded or (lived is not None and lived > _START and restarts < _BAD_LUCK)
    if has_run and reason in ("Error", "OOMKilled"):
        return _restarting(name, ended, reason, restarts)
    if reason == "OOMKilled":
        what = f'ran out of memory at its start: container "{name}" was OOMKilled ({limits(pod, name)})'
        todo = "Ask for more with kt.Compute(memory_limit=...)"
        if "no limit" in limits(pod, name):
            todo = "It has no limit, its node had no memory left: ask for what it needs with kt.Compute(memory=...)"
        return fatal(facts, "oom", reason, PodContainerError, what, todo, phase=Phase.STARTING)
    if code == 0:
        return None if not previous else _restarting(name, ended, reason, restarts)
    if code in (126, 127):
        return _no_python(facts, pod, name, int(code), log, said)
    if code in (137, 143) and restarts < _BAD_LUCK:
        return _restarting(name, ended, reason, restarts)
    again = f", {restarts} times now" if restarts > 1 else ""
    what = f'can\'t start: its container "{name}" {ended_how(code, ended.get("signal"))}{again}'
    last = short(facts.logs.get(log, said).strip().rpartition("\n")[2])
    todo = f"All that it said: kubectl logs {name_of(pod)} -c {name}{' --previous' * previous}{_in(facts)}"
    return fatal(
        facts,
        "crash",
        reason,
        PodContainerError,
        what,
        todo,
        phase=Phase.STARTING,
        detail=f"{what}: {last}" if last else what,
        log=log,
        said=said,
    )


def _in(facts: Facts) -> str:
    return f" -n {facts.namespace}" if facts.namespace else ""


def _restarting(name: str, ended: Raw, reason: str, restarts: int) -> Diagnosis:
    how = ended_how(ended.get("exitCode"), ended.get("signal"))
    what = f'has to start again: its container "{name}" {how}' + (f", {restarts} times now" if restarts > 1 else "")
    return curable("restart", reason, PodContainerError, what, phase=Phase.STARTING)


def _no_python(facts: Facts, pod: Raw, name: str, code: int, log: LogWanted, message: str) -> Diagnosis:
    """Exit codes 127 and 126 are those of our first lines in the container: no Python there, or one too old."""
    said = one_line(" ".join((facts.logs.get(log) or message).strip().splitlines()[-1:]))
    usual = "no Python is found in it" if code == 127 else "its Python is older than 3.10, or can't be run"
    what = f'can\'t start: image "{_image(pod, name)}": {said or usual} (exit code {code})'
    todo = "Use an image with Python 3.10 or later, or say where it is with kt.Image(python_path=...)"
    # The line is part of the message already.
    found = fatal(facts, "python", "Error", PodContainerError, what, todo, phase=Phase.STARTING)
    return found if said or log in facts.logs else found.wanting(log)
