"""What the panel knows of services and calls: asked for by the public functions only, put into plain values.

A `Looker` is used by one thread at a time; everything in here may take as long as a pod takes to answer, so it never
runs on the thread that shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import kubetorch_jupyter as kt

from .doing import one_line

__all__ = ["ACTIVE", "SERVICE_LOG", "CallRow", "Look", "Looker", "ServiceRow"]

#: The states of calls that can be cancelled.
ACTIVE = ("queued", "running")
#: Stands in place of a call's id for what the service writes outside of any call.
SERVICE_LOG = "service"
#: Bytes of a log that are shown.
LOG_BYTES = 16 << 10
#: Calls that are shown.
CALLS = 10


@dataclass(frozen=True)
class ServiceRow:
    """One service.

    Parameters
    ----------
    state
        ``ready``, ``loading``, ``starting`` … or ``no answer``.
    created
        Unix time, which with the name tells one life of a service from the next.
    calls, memory, cpu
        In flight; in bytes; cores in use since the last look. None: not known (yet).
    gpus
        What each of its devices does, in words.
    """

    name: str
    where: str
    state: str
    created: float
    detached: bool
    asks_for: str
    owner: str
    calls: int | None = None
    memory: int | None = None
    cpu: float | None = None
    gpus: tuple[str, ...] = ()
    reason: str = ""

    @property
    def key(self) -> tuple[str, float]:
        """Which life of which service it is."""
        return self.name, self.created


@dataclass(frozen=True)
class CallRow:
    """One call, times in unix seconds; `log` is how many bytes it has written."""

    id: str
    function: str
    state: str
    started: float | None
    ended: float | None
    log: int
    owner: str

    @property
    def active(self) -> bool:
        """Whether it can be cancelled."""
        return self.state in ACTIVE


@dataclass(frozen=True)
class Look:
    """All that one look has seen.

    Parameters
    ----------
    selected
        The service that `calls` and `log` are of, if it is still there.
    more_calls
        How many calls there are besides `calls`.
    log_of
        The call's id, or `SERVICE_LOG`.
    problem
        What could not be seen, in one line.
    """

    services: tuple[ServiceRow, ...] = ()
    selected: str | None = None
    calls: tuple[CallRow, ...] = ()
    more_calls: int = 0
    log_of: str = SERVICE_LOG
    log: str = ""
    problem: str = ""


class Looker:
    """Looks at all services, and at one of them more closely."""

    def __init__(self) -> None:
        #: Seconds of processor time and the pod's clock at the last look.
        self._cpu: dict[tuple[str, float], tuple[float, float, float | None]] = {}
        self._handles: dict[tuple[str, float], Any] = {}
        #: What was read last: of which life of a service, of which call, how long its log was.
        self._read: tuple[tuple[str, float], str, int] | None = None
        self._text = ""
        #: What was seen last of which life of a service: it stands while a question isn't answered.
        self._last: tuple[tuple[str, float] | None, Look] = (None, Look())

    def look(self, selected: str | None, log_of: str | None) -> Look:
        """Look once.

        Parameters
        ----------
        selected
            The service whose calls and log are wanted.
        log_of
            Whose log: a call's id, `SERVICE_LOG`, or None for the newest call.
        """
        try:
            services = tuple(self._row(info) for info in kt.services(usage=True))
        except (kt.KubetorchError, OSError) as e:
            return Look(problem=one_line(e))
        lives = {row.key for row in services}
        self._cpu = {key: value for key, value in self._cpu.items() if key in lives}
        self._handles = {key: value for key, value in self._handles.items() if key in lives}
        row = next((row for row in services if row.name == selected), None)
        if row is None:
            return Look(services)
        try:
            look = self._closer(services, row, log_of)
        except (kt.KubetorchError, OSError) as e:  # it may have ended between the two questions
            key, before = self._last
            before = before if key == row.key else Look(selected=row.name)
            return replace(before, services=services, problem=one_line(e))
        self._last = row.key, look
        return look

    def _closer(self, services: tuple[ServiceRow, ...], row: ServiceRow, log_of: str | None) -> Look:
        answered = list(kt.calls(service=row.name))
        # One replica that doesn't answer hides none of the others' calls.
        problem = next((r["error"] for r in answered if r["state"] == "unreachable"), "")
        found = [r for r in answered if r["state"] != "unreachable"]
        calls = [_call(r, row.name) for r in reversed(found)]  # the newest first
        calls.sort(key=lambda c: not c.active)
        if log_of is None:
            newest = max(calls, key=lambda c: c.started or 0.0, default=None)
            log_of = newest.id if newest is not None else SERVICE_LOG
        shown = calls[:CALLS]
        text = self._log(row, log_of, next((c.log for c in calls if c.id == log_of), None))
        return Look(services, row.name, tuple(shown), len(calls) - len(shown), log_of, text, problem)

    def _log(self, row: ServiceRow, log_of: str, length: int | None) -> str:
        if length is not None:
            now = (row.key, log_of, length)
            if now == self._read:
                return self._text  # nothing new
            self._read = now
            self._text = self._service(row).tail(log_of, LOG_BYTES) if length else ""
            return self._text
        self._read = None
        return str(self._service(row).tail(None if log_of == SERVICE_LOG else log_of, LOG_BYTES))

    def _service(self, row: ServiceRow) -> Any:
        handle = self._handles.get(row.key)
        if handle is None:
            handle = self._handles[row.key] = kt.Module.from_name(row.name)
        return handle.service

    def _row(self, info: Any) -> ServiceRow:
        status: Mapping[str, Any] = info.status or {}
        state = info.state if info.endpoint is None else status.get("state", "no answer")
        devices = info.resources.get("devices", ())
        asks = {k: v for k, v in info.resources.items() if v is not None and k != "devices"}
        return ServiceRow(
            name=info.name,
            where=info.backend + (f"/{info.namespace}" if info.namespace else ""),
            state=state,
            created=info.created,
            detached=info.detached,
            asks_for=", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in asks.items()),
            owner=_owner(info.owner),
            calls=status.get("calls"),
            memory=status.get("memory"),
            cpu=self._cores((info.name, info.created), status),
            gpus=tuple(map(_gpu, status.get("gpus") or ())) or tuple(f"GPU {d}" for d in devices),
            reason=status.get("reason") or info.detail,
        )

    def _cores(self, key: tuple[str, float], status: Mapping[str, Any]) -> float | None:
        cpu, at = status.get("cpu"), status.get("at")
        if cpu is None or at is None:
            return None
        before = self._cpu.get(key)
        cores = before[2] if before is not None else None
        if before is not None and at > before[1]:
            # A worker that was replaced takes its seconds with it.
            cores = max(0.0, cpu - before[0]) / (at - before[1])
        self._cpu[key] = (cpu, at, cores)
        return cores


def _call(row: Mapping[str, Any], service: str) -> CallRow:
    return CallRow(
        id=row["id"],
        function=row.get("f") or service,
        state=row["state"],
        started=row.get("started"),
        ended=row.get("ended"),
        log=row.get("log") or 0,
        owner=_owner(row.get("by")),
    )


def _owner(owner: Mapping[str, Any] | None) -> str:
    if not owner:
        return ""
    return " ".join(str(part) for part in (owner.get("user"), owner.get("notebook")) if part)


def _gpu(device: Mapping[str, Any]) -> str:
    use, memory = device.get("use"), device.get("memory")
    parts = [f"{use} %" if use is not None else "", f"{memory / (1 << 30):.1f} GiB" if memory is not None else ""]
    return f"GPU {device.get('index')}: {', '.join(filter(None, parts)) or 'not known'}"
