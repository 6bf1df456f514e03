"""``kt.logs``: what calls and services have printed, as text, whoever called and whatever a cell has shown of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, TypeAlias, overload

from pod_server.wire import parse_call_id

from .asking import heading, text_of
from .calls import Call, LogPieces, find_row, follow_log, read_log
from .deploying import find_service
from .errors import CallCancelledError, PodLostError, RecordExpiredError, UnknownCallError
from .module import Module
from .service import Service
from .transport.listing import all_calls
from .transport.portal import get_portal
from .transport.session import Session

__all__ = ["logs"]

#: Of a service's last calls so many are read at most, and so many bytes of all of them together.
_CALLS, _BYTES = 50, 1 << 20
#: How often a service is asked for new calls while it is followed, in seconds.
_POLL = 0.5
#: How often it is looked for pods that have taken the place of others meanwhile.
_LOOK = 2.0
#: How long one of several replicas may take to give its log, in seconds.
_PATIENCE = 20.0
_Target: TypeAlias = str | Call[Any] | Module | Service


@overload
def logs(target: _Target, follow: Literal[False] = False, namespace: str | None = None) -> str: ...
@overload
def logs(target: _Target, follow: Literal[True], namespace: str | None = None) -> LogPieces: ...
@overload
def logs(target: _Target, follow: bool, namespace: str | None = None) -> str | LogPieces: ...
def logs(target: _Target, follow: bool = False, namespace: str | None = None) -> str | LogPieces:
    """What a call, or a service, has printed: all that its pod keeps, also what no cell has shown.

    Parameters
    ----------
    target
        A call's id (as `calls` lists them), or a `Call`: its whole output from the start, standard output and error in
        the order in which they came. A service's name, or a handle: what was written outside of any call (by threads of
        its own, by C code), then the output of loading it and of its last calls, each under a line with its id, 1 MiB
        at most.
    follow
        Give an iterator of pieces instead, that goes on with what comes: until the call has ended, or the service.
        Stop ends it, and nothing else.
    namespace
        Kubernetes namespace of a name or an id, if it isn't that of the settings.

    Raises
    ------
    ServiceNotFoundError
        When there is no such service, or it has ended.
    UnknownCallError
        When the service never had that call.
    RecordExpiredError
        When its pod no longer keeps the call: it ended more than an hour ago, or others took its place.

    Examples
    --------
    >>> print(kt.logs("train-model/01JD0000000000000800000003"))    # doctest: +SKIP
    >>> for piece in kt.logs(train, follow=True):                   # doctest: +SKIP
    ...     print(piece, end="")
    """
    __tracebackhide__ = True
    if isinstance(target, Call):
        return target.logs(True) if follow else target.logs()
    if isinstance(target, Module):
        target = target.service
    if isinstance(target, Service):
        name, namespace = target.name, target.namespace
    elif isinstance(target, str):
        if "/" in target:
            return _of_call(target, follow, namespace)
        name = target
    else:
        raise TypeError(f"kt.logs takes a call's id, a Call, a service's name or a handle, not {type(target).__name__}")
    # Not by the handle, which would deploy again what has ended.
    service: Service = get_portal().run(find_service(name, namespace))
    return LogPieces(partial(_follow_service, service)) if follow else get_portal().run(_read_service(service))


def _of_call(id: str, follow: bool, namespace: str | None) -> str | LogPieces:
    __tracebackhide__ = True
    try:
        name, _, _ = parse_call_id(id)
    except ValueError as e:
        raise UnknownCallError(f"{e}; kt.calls() lists the ids", call_id=id) from None
    service: Service = get_portal().run(find_service(name, namespace))

    async def read() -> str:
        session = await service.session_of(id)
        return await read_log(session, id, await find_row(session, id))

    async def read_on(add: Callable[[str], None]) -> None:
        await follow_log(await service.session_of(id), id, add)

    return LogPieces(read_on) if follow else get_portal().run(read())


# -- services ----------------------------------------------------------------------------------------------------------


def _heading(row: dict[str, Any]) -> str:
    return f"==> {row['id']} {row['f']}, {row['state']} <==\n"


def _last(rows: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """The last calls, in the order in which they began, each with how many bytes of its end there is room for."""
    chosen: list[tuple[dict[str, Any], int]] = []
    room = _BYTES
    for row in sorted(rows, key=_start, reverse=True)[:_CALLS]:
        if room <= 0:
            break
        chosen.append((row, room))
        room -= int(row["log"])
    return chosen[::-1]


def _start(row: dict[str, Any]) -> tuple[float, str]:
    return row.get("started") or 0.0, row["id"]


def _left_out(row: dict[str, Any], room: int) -> str:
    left = int(row["log"]) - room
    return f'[kubetorch: about {left:,} bytes before this are left out: kt.logs("{row["id"]}")]\n' if left > 0 else ""


async def _read_service(service: Service) -> str:
    replicas = await service.replicas()
    return text_of(service.name, await replicas.ask(_read_pod, _PATIENCE), replicas.size > 1)


async def _read_pod(session: Session) -> str:
    texts = [str((await session.request("service_log"))["text"])]
    for row, room in _last(row for row in await all_calls(session, loads=True) if row["log"]):
        try:
            text = await read_log(session, row["id"], row, room)
        except (RecordExpiredError, UnknownCallError):
            continue  # it has made room for another one in this moment
        texts += _ended(texts[-1]), _heading(row), _left_out(row, room), text
    return "".join(texts)


def _ended(text: str) -> str:
    """What ends the last line of a text."""
    return "" if not text or text.endswith("\n") else "\n"


class _Merged:
    """The texts of several logs as one, each under its heading whenever another one has been writing."""

    def __init__(self, add: Callable[[str], None]) -> None:
        self._add = add
        self._last: str | None = None
        self._end = ""

    @property
    def begun(self) -> bool:
        """Whether anything has been written."""
        return self._last is not None

    def add(self, source: str, heading: str, text: str) -> None:
        if source != self._last:
            self._add(_ended(self._end) + heading)
            self._last = source
        self._add(text)
        self._end = text[-1:]


async def _follow_service(service: Service, add: Callable[[str], None]) -> None:
    merged = _Merged(add)
    replicas = await service.replicas()
    if replicas.size == 1:
        await _follow_pod(await replicas.session(), f"==> {service.name} <==\n", merged)
        return
    followed: dict[Session, asyncio.Task[None]] = {}
    async with asyncio.TaskGroup() as group:
        while True:
            for replica in await replicas.all():  # others may have taken the place of some
                session = replica.session
                if session is not None and session.usable and session not in followed:
                    above = heading(service.name, replica.rank)
                    followed[session] = group.create_task(_follow_pod(session, above, merged))
            if all(task.done() for task in followed.values()):
                return
            await asyncio.sleep(_LOOK)


async def _follow_pod(session: Session, heading: str, merged: _Merged) -> None:
    end = 0
    known: set[str] = set()
    try:
        async with asyncio.TaskGroup() as group:
            while True:
                answer = await session.request("service_log", after=end)
                if answer["text"]:
                    merged.add(heading, heading if known or merged.begun else "", answer["text"])
                end = answer["end"]
                fresh = [row for row in await all_calls(session, loads=True) if row["id"] not in known]
                wanted = [row for row in fresh if row["log"] or not row["ended"]]
                # At first the last calls only; of those that come later, everything.
                for row, room in [(row, _BYTES) for row in sorted(wanted, key=_start)] if known else _last(wanted):
                    group.create_task(_follow_call(session, row, room, merged))
                known.update(row["id"] for row in fresh)
                await asyncio.sleep(_POLL)
    except ExceptionGroup as e:
        _, others = e.split((PodLostError, CallCancelledError))
        if others is not None:
            raise others.exceptions[0] from None
        # Else the service has ended, and with it its log.


async def _follow_call(session: Session, row: dict[str, Any], room: int, merged: _Merged) -> None:
    def add(text: str) -> None:
        merged.add(row["id"], _heading(row), text)

    try:
        await follow_log(session, row["id"], add, max(0, int(row["log"]) - room))
    except (RecordExpiredError, UnknownCallError) as e:
        add(f"[kubetorch: {e}]\n")
