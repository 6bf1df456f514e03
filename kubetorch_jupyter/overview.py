"""What runs: `services`, `calls`, `attach`. For people who come back to a notebook, or to somebody else's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from pod_server.wire import parse_call_id

from .asking import call_rows
from .backends import get_backend
from .backends.base import Backend, Finding, ServiceInfo
from .calls import Call, attach_call
from .compute import Compute
from .deploying import find_info, find_service
from .error_base import describe_size
from .errors import KubetorchError, UnknownCallError
from .identity import describe_client
from .markup import table
from .service import Service
from .transport.listing import all_calls
from .transport.portal import get_portal
from .transport.replicas import Replicas
from .transport.session import Session

__all__ = ["Table", "attach", "calls", "examine_backend", "left_running", "services", "teardown"]


class Table(list[Any]):
    """A list that shows itself as a table, in plain text and in HTML; no I/O happens when it is shown."""

    def __init__(self, rows: Iterable[Any], columns: dict[str, Callable[[Any], str]], empty: str) -> None:
        super().__init__(rows)
        self._columns = columns
        self._empty = empty

    def _cells(self) -> list[list[str]]:
        return [list(self._columns), *([make(row) for make in self._columns.values()] for row in self)]

    def __repr__(self) -> str:
        if not self:
            return self._empty
        cells = self._cells()
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)

    def _repr_html_(self) -> str:
        if not self:
            return f"<i>{escape(self._empty)}</i>"
        head, *body = self._cells()
        return table(body, head)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text("..." if cycle else repr(self))


def _age(since: float | None, until: float | None = None) -> str:
    if since is None:
        return ""
    seconds = max(0.0, (until if until is not None else time.time()) - since)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f}{unit}"
    return f"{seconds:.1f}s"


def _whose(owner: Any) -> str:
    if not owner:
        return ""
    return f"{owner.get('user') or ''} {owner.get('notebook') or owner.get('pid', '')}".strip()


#: Seconds that a pod may take to say how it is.
_PATIENCE = 2.0


async def _with_status(info: ServiceInfo) -> ServiceInfo:
    if not info.endpoints:
        return info
    try:
        async with asyncio.timeout(_PATIENCE if len(info.endpoints) == 1 else 2 * _PATIENCE):
            answers = await Replicas(info.endpoints).ask(_status, _PATIENCE)
    except (KubetorchError, OSError):  # it may end at this moment, or be deployed anew; TimeoutError is an OSError
        return info
    return replace(info, status=_together([each for _, each in answers if not isinstance(each, Exception)]))


async def _status(session: Session) -> dict[str, Any]:
    return await session.request("status", usage=True)


def _together(found: list[dict[str, Any]]) -> dict[str, Any]:
    """What the replicas of a service hold and do in all; the rest is as the first one says."""
    sums = {
        key: sum(each[key] for each in found)
        for key in ("calls", "memory", "cpu")
        if all(each.get(key) is not None for each in found)
    }
    return {**found[0], **sums}


def _said(info: ServiceInfo, key: str) -> str:
    value = info.status.get(key) if info.status is not None else None
    return "" if value is None else str(value)


def _memory(info: ServiceInfo) -> str:
    value = info.status.get("memory") if info.status is not None else None
    return "" if value is None else describe_size(value)


def _backend_of(namespace: str | None) -> Backend:
    return get_backend(Compute(namespace=namespace) if namespace else Compute())


def services(namespace: str | None = None, usage: bool = False) -> Table:
    """The services that are up, oldest first, as `ServiceInfo` s in a list that shows itself as a table.

    Parameters
    ----------
    namespace
        Kubernetes namespace to look in.
    usage
        Ask each pod as well: what it says is in ``status`` (as `Service.status` gives it), and the table shows the
        calls in flight and the memory. A pod that doesn't answer within 2 s has None there.

    Examples
    --------
    >>> services()    # doctest: +SKIP
    NAME         WHERE  STATE    AGE  WHOSE            ASKS FOR
    train-model  local  running  2.0m ada first.ipynb  cpus=1
    """
    backend = _backend_of(namespace)

    async def collect() -> Sequence[ServiceInfo]:
        found = await backend.list()
        return await asyncio.gather(*map(_with_status, found)) if usage else found

    found = sorted(get_portal().run(collect()), key=lambda s: s.created)
    columns: dict[str, Callable[[ServiceInfo], str]] = {
        "NAME": lambda s: s.name,
        "WHERE": lambda s: s.backend + (f"/{s.namespace}" if s.namespace else ""),
        "STATE": lambda s: s.state + (", detached" if s.detached and s.backend == "local" else ""),
        **({"CALLS": lambda s: _said(s, "calls"), "MEMORY": lambda s: _memory(s)} if usage else {}),
        "AGE": lambda s: _age(s.created),
        "WHOSE": lambda s: _whose(s.owner),
        "ASKS FOR": lambda s: " ".join(f"{k}={v}" for k, v in s.resources.items() if v is not None),
        **({"WAITS FOR": lambda s: s.detail} if any(s.detail for s in found) else {}),
    }
    return Table(found, columns, "no services")


def calls(service: str | None = None, namespace: str | None = None) -> Table:
    """The calls that run and those that ended lately, of all services or of one, as dicts in a table.

    Each has ``id`` (for `attach`), ``f`` (function or method), ``state``, ``started`` and ``ended`` (unix time in
    seconds), ``by`` and ``service``.
    Of a service with several replicas each also has ``replica``, the rank of its pod. A pod that can't be asked just
    now is a row of its own, with ``state`` "unreachable" and the reason in ``error``.
    """

    async def ask(info: ServiceInfo) -> list[dict[str, Any]]:
        try:
            rows = call_rows(await Replicas(info.endpoints).ask(all_calls), len(info.endpoints) > 1)
        except (KubetorchError, OSError) as e:  # it may end at this moment, or be deployed anew
            rows = [{"id": "", "f": "", "state": "unreachable", "error": str(e), "started": None}]
        return [{**row, "service": info.name} for row in rows]

    async def collect() -> list[dict[str, Any]]:
        backend = _backend_of(namespace)
        names = (service, backend.full_name(service)) if service is not None else ()
        wanted = [s for s in await backend.list() if s.endpoints and (service is None or s.name in names)]
        return [row for rows in await asyncio.gather(*map(ask, wanted)) for row in rows]

    rows = sorted(get_portal().run(collect()), key=lambda r: r.get("started") or 0.0)
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "ID": lambda r: r["id"],
        "FUNCTION": lambda r: r.get("f") or "",
        "STATE": lambda r: r["state"],
        "TOOK": lambda r: _age(r.get("started"), r.get("ended")),
        "WHOSE": lambda r: _whose(r.get("by")),
    }
    return Table(rows, columns, "no calls")


def examine_backend() -> Sequence[Finding]:
    """What there is to say of the place that services go to; takes a few seconds at most, whatever is wrong."""
    return get_portal().run(get_backend(Compute()).examine())


def teardown(name: str, namespace: str | None = None) -> None:
    """End a service, whoever deployed it, and remove everything that belongs to it; returns when that is done.

    Raises
    ------
    ServiceNotFoundError
        When there is none of that name.
    KubetorchError
        When something of it could not be removed.
    """

    async def end() -> None:
        backend, info = await find_info(name, namespace)
        await backend.delete(info.name)

    get_portal().run(end())


def left_running() -> Sequence[ServiceInfo]:
    """The services of this notebook that an earlier kernel of it deployed and that live on; asks nobody."""
    me = describe_client()
    backend = get_backend(Compute())
    return [
        info
        for info in backend.known()
        if info.owner.get("notebook") == me["notebook"]
        and info.owner.get("user") == me["user"]
        and info.owner.get("pid") != me["pid"]
    ]


def attach(id: str, namespace: str | None = None) -> Call[Any]:
    """The call of that id, in any kernel, also after a restart: its log from the start, its result when it ends.

    Parameters
    ----------
    id
        As in `calls`, or a `Call`'s ``id``: ``service/ULID``.
    namespace
        Kubernetes namespace of the service, if it isn't that of the settings.

    Raises
    ------
    ServiceNotFoundError
        When its service is gone.
    UnknownCallError
        When the service never saw it, or when it isn't an id.
    """
    try:
        name, _, _ = parse_call_id(id)
    except ValueError as e:
        raise UnknownCallError(f"{e}; kt.calls() lists the ids") from None
    found: Service = get_portal().run(find_service(name, namespace))
    return attach_call(found, id)
