"""What a diagnosis starts from and what it comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ....errors import DeployError, ServiceTimeoutError
from ....progress import Phase
from ..names import FRONT, WORKER
from .objects import last_lines, short

__all__ = ["Diagnosis", "Facts", "LogWanted", "curable", "expired", "fatal"]

#: What waits for room: ``unschedulable_timeout`` is for these, ``launch_timeout`` for all else.
_ROOM = frozenset({"unschedulable", "gated", "queue"})

#: So many characters of it are a line.
_LINE = 300


@dataclass(frozen=True)
class LogWanted:
    """Whose last log lines would tell why it ended.

    Parameters
    ----------
    pod, container
        Names.
    previous
        The lines of the container's last run, not of the one that runs now: what it said is in the log of before.
    """

    pod: str
    container: str
    previous: bool = False


@dataclass(frozen=True)
class Facts:
    """What is known of a revision besides its objects.

    Parameters
    ----------
    service
        The service's name.
    namespace
        Where it is.
    replicas
        How many pods there should be.
    quota_held
        An older revision of the same service still counts in the quota, so that its end makes room.
    deleted
        Its Job was there, and isn't any more.
    loaded
        Its pods have had their code: a container that ends is started again, and is no deploy that has failed.
    logs
        Last lines that were asked for by `Diagnosis.log` and have been fetched; empty text where there are none.
    front, worker
        Names of the two containers.
    """

    service: str
    namespace: str | None = None
    replicas: int = 1
    quota_held: bool = False
    deleted: bool = False
    loaded: bool = False
    logs: Mapping[LogWanted, str] = field(default_factory=dict)
    front: str = FRONT
    worker: str = WORKER


@dataclass(frozen=True)
class Diagnosis:
    """How a revision of a service comes up, or why it doesn't.

    Parameters
    ----------
    phase
        Where it is.
    detail
        What it waits for, on one line, in Kubernetes' own words as far as they are short.
    kind
        What holds it up, in a word of ours: ``"unschedulable"``, ``"image"``, ``"crash"`` … ; empty where nothing does.
    reason
        The same in Kubernetes' word: ``"Unschedulable"``, ``"ErrImagePull"``.
    error
        What to raise now: waiting can't cure it.
    curable
        Why it isn't up yet, where time may cure that; a sentence for the error that `expired` makes of it.
    hint
        What the user may do about it.
    error_type
        What `expired` raises.
    pod
        The pod that it is about, if it is about one.
    log
        Whose log the error should quote: with it in `Facts.logs`, the next diagnosis does.
    events
        What the cluster reported of the service, oldest first, as lines.
    running
        How many of the pods run.
    service
        The service's name.
    """

    phase: Phase
    detail: str = ""
    kind: str = ""
    reason: str | None = None
    error: DeployError | None = None
    curable: str | None = None
    hint: str = ""
    error_type: type[DeployError] = ServiceTimeoutError
    pod: str | None = None
    log: LogWanted | None = None
    events: Sequence[str] = ()
    running: int = 0
    service: str = ""

    @property
    def room(self) -> bool:
        """Whether it waits for room in the cluster, which ``unschedulable_timeout`` limits."""
        return self.curable is not None and self.kind in _ROOM

    @property
    def state(self) -> str:
        """The same as lists of services have it: ``"failed"``, ``"pending"``, ``"running"`` or ``"starting"``."""
        if self.weight:
            return "failed" if self.error is not None else "pending"
        return "running" if self.phase is Phase.CONNECTING else "starting"

    @property
    def weight(self) -> int:
        """How bad it is: 2 can't be cured, 1 may be, 0 comes up."""
        return 2 if self.error is not None else 1 if self.curable is not None else 0

    def wanting(self, log: LogWanted) -> Diagnosis:
        """The same, which would say more with that log."""
        return replace(self, log=log)

    def told(self, facts: Facts, events: Sequence[str], **changes: Any) -> Diagnosis:
        """The same with what its error, too, should know."""
        error = self.error
        if error is not None:
            error.service, error.reason, error.events = facts.service, self.reason, list(events)
        return replace(self, service=facts.service, events=events, **changes)


def fatal(
    facts: Facts,
    kind: str,
    reason: str | None,
    error: type[DeployError],
    what: str,
    todo: str,
    *,
    phase: Phase,
    detail: str = "",
    log: LogWanted | None = None,
    said: str = "",
) -> Diagnosis:
    """A diagnosis that waiting can't change.

    `what` goes on after ``service "train" ``, and `todo` is a sentence without its full stop. The last lines of `log`
    end the message: those that were fetched, or those that the cluster itself has kept (`said`).
    """
    lines = ""
    if log is not None:
        lines = last_lines(facts.logs.get(log) or said)
        todo += f'. The last lines of container "{log.container}"' if lines else ""
    message = f'service "{facts.service}" {what.rstrip(".")}. {todo}{":" if lines else "."}'
    found = error(f"{message}\n{lines}" if lines else message)
    wanted = log if log not in facts.logs and not lines else None
    return Diagnosis(phase, short(detail or what, _LINE), kind, reason, found, log=wanted)


def curable(
    kind: str,
    reason: str | None,
    error: type[DeployError],
    what: str,
    hint: str = "",
    *,
    phase: Phase,
    detail: str = "",
) -> Diagnosis:
    """A diagnosis that time may change; `what` goes on after ``service "train" ``."""
    return Diagnosis(phase, short(detail or what, _LINE), kind, reason, curable=what, hint=hint, error_type=error)


def expired(diagnosis: Diagnosis, seconds: float, limit: str = "") -> DeployError:
    """The error for something that time might have cured, and hasn't within `seconds`.

    Parameters
    ----------
    diagnosis
        The last one before the time was over; one without a reason gives a `ServiceTimeoutError`.
    seconds
        How long it was waited for.
    limit
        The name of the setting that said so; by default the one that is for this kind.

    Examples
    --------
    >>> print(str(expired(Diagnosis(Phase.STARTING, service="train"), 900)).split(". ")[0])
    service "train" was not ready after 900 s (launch_timeout); it was starting its pod
    """
    limit = limit or ("unschedulable_timeout" if diagnosis.room else "launch_timeout")
    service, setting = diagnosis.service, f"kt.Compute({limit}=...)"
    error: DeployError
    if diagnosis.curable is not None:
        waited = f"{limit} is {seconds:g} s" if seconds else f"It is not waited for: {limit} is 0"
        hint = f"{diagnosis.hint}, or wait" if diagnosis.hint else "Wait"
        what = f"{diagnosis.curable.rstrip('.')}. {waited}. {hint} longer with {setting}."
        error = diagnosis.error_type(f'service "{service}" {what}')
    else:
        where = f": {diagnosis.detail}" if diagnosis.detail else ""
        error = ServiceTimeoutError(
            f'service "{service}" was not ready after {seconds:g} s ({limit}); it was {diagnosis.phase}{where}. Look '
            f"at its events with 'kubectl describe pods -l kubetorch.dev/service={service}', or give it more time with "
            f"{setting}."
        )
    error.service, error.reason, error.events = service, diagnosis.reason, list(diagnosis.events)
    return error
