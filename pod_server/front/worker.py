"""One worker process as the front sees it: its connection, its calls, and how it ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from .faults import Violation
from .link import Link
from .records import Record

__all__ = ["Code", "Worker", "WorkerDied", "calls_ended", "check_load", "death", "out_of_memory"]


class WorkerDied(Exception):
    """The worker ended while something waited for it; `error` is an ``error`` object (``docs/protocol.md``)."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error.get("message"))
        self.error = error


class Code:
    """What a LOAD brought: all that is needed to load it again into another worker.

    Parameters
    ----------
    meta
        The LOAD's meta.
    buffers
        The bundle, when it came in the frame.
    file
        Name of the bulk file that holds it, when it didn't; the front keeps it and gives each worker a link.
    """

    def __init__(self, meta: dict[str, Any], buffers: list[bytes], file: str | None) -> None:
        self.meta = meta
        self.buffers = buffers
        self.file = file
        self.version = str(meta["version"])
        self.worker = str(meta["worker"])
        self.kind = str(meta["kind"])
        #: What the LOAD says of the steps of its image; None: there are none.
        self.image: dict[str, Any] | None = meta.get("image")
        self.since = time.time()

    def public(self) -> dict[str, Any]:
        """What clients are told of it."""
        out = {key: self.meta.get(key) for key in ("version", "worker", "kind", "name", "by", "interface")}
        out["since"] = self.since
        if self.image:
            out["files"] = self.image.get("files")
        return out

    def memory_limit(self, default: int | None) -> int | None:
        """Bytes that a worker with this code may hold; None: no limit."""
        limit = self.meta.get("memory_limit")
        if limit is None:
            limit = default
        return int(limit) if isinstance(limit, (int, float)) and limit > 0 else None


#: Characters that the names in a LOAD may have, and all of what says who deploys: every WELCOME repeats them.
_NAME = 1000
_BY = 4096


def _text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def _digests(value: object) -> bool:
    return value is None or (isinstance(value, list) and len(value) <= 500 and all(map(_text, value)))


def _seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e15


#: What the fields of a LOAD must be where they are given. They decide how processes are started, so what makes no sense
#: is refused before anything happens.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "name": lambda v: isinstance(v, str) and len(v) <= _NAME,
    "by": lambda v: isinstance(v, dict) and len(json.dumps(v)) <= _BY,
    "interface": lambda v: isinstance(v, dict),
    "env": lambda v: isinstance(v, dict) and all(_text(k) and k and "=" not in k and _text(x) for k, x in v.items()),
    "cwd": _text,
    "sys_path": lambda v: isinstance(v, list) and all(map(_text, v)),
    "threads": _count,
    "concurrency": _count,
    "memory_limit": _count,
    "ttl": _seconds,
    "allowed": lambda v: isinstance(v, list) and set(v) <= {"pickle", "json", "none"},
    "deployed_at": _seconds,
    "image": lambda v: isinstance(v, dict) and _count(v.get("n")) and v["n"] > 0 and _digests(v.get("files")),
}


def check_load(meta: dict[str, Any]) -> None:
    """Refuse a LOAD's meta that makes no sense.

    Raises
    ------
    Violation
        It names the field.

    Examples
    --------
    >>> check_load({"version": "1", "worker": "2", "kind": "fn", "ttl": 60})
    >>> check_load({"version": "1", "worker": "2", "kind": "fn", "ttl": "soon"})
    Traceback (most recent call last):
    ...
    pod_server.front.faults.Violation: the ttl of a LOAD makes no sense
    """
    for key in ("version", "worker", "kind"):
        value = meta.get(key)
        if not isinstance(value, str) or len(value) > _NAME:
            raise Violation(f"a LOAD has no {key}")
    if meta["kind"] not in ("fn", "cls"):
        raise Violation("the kind of a LOAD is neither fn nor cls")
    for key, valid in _FIELDS.items():
        if meta.get(key) is not None and not valid(meta[key]):
            raise Violation(f"the {key} of a LOAD makes no sense")


class Worker:
    """One worker, from FORK to its death.

    Parameters
    ----------
    number
        Its number; each process has its own.
    fingerprint
        The LOAD's ``worker``: what it was started for.
    """

    def __init__(self, number: int, fingerprint: str) -> None:
        self.number = number
        self.fingerprint = fingerprint
        self.pid: int | None = None
        #: Bytes that it and its children may hold; None: no limit.
        self.memory_limit: int | None = None
        #: It has been sent a call.
        self.served = False
        self.link: Link | None = None
        #: What it works on, by call number; those that were cancelled too, until it says that they have ended.
        self.calls: dict[int, Record] = {}
        loop = asyncio.get_running_loop()
        #: Done when it may be sent frames; `WorkerDied` when it never came so far.
        self.ready: asyncio.Future[None] = loop.create_future()
        #: Done when it is dead and its calls have been told.
        self.gone: asyncio.Future[None] = loop.create_future()
        #: The code in it has been loaded; when.
        self.loaded_at: float | None = None
        #: Why we killed it, an ``error`` object's fields; None: we didn't.
        self.killed_for: dict[str, Any] | None = None
        #: Takes no new calls; ends when it has none.
        self.retired = False
        self.dead = False
        #: Called when the number of its calls has become smaller.
        self.on_less: list[asyncio.Future[None]] = []
        #: Waits for the other half of the news of its death.
        self.grace: asyncio.TimerHandle | None = None
        self.status: int | None = None

    def send(self, frame: bytes) -> None:
        """Send it a frame."""
        if self.link is not None:
            self.link.send(frame)

    @property
    def waiting(self) -> int:
        """Bytes that it has not taken yet."""
        return self.link.waiting if self.link is not None else 0

    async def taken(self) -> None:
        """Wait until it has taken some of that."""
        if self.link is not None:
            await self.link.taken()

    @property
    def busy(self) -> bool:
        """Whether a call runs in it that somebody still waits for."""
        return any(r.ended is None and r.cancelled is None for r in self.calls.values())

    def less(self) -> None:
        """A call of it has ended."""
        if self.on_less:
            waiting, self.on_less = self.on_less, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)


def death(worker: Worker, service: str) -> dict[str, Any]:
    """The ``error`` object of a worker's end.

    Examples
    --------
    The worker's status is that of ``waitpid``: 9 is SIGKILL, ``3 << 8`` is ``os._exit(3)``; None when nobody could
    tell.
    """
    head = f'worker {worker.number} (process {worker.pid}) of service "{service}"'
    if worker.killed_for is not None:
        fields = dict(worker.killed_for)
        what = fields.pop("message")
        return {"type": "WorkerDiedError", "message": f"{head} {what}", **fields}
    status = worker.status
    if status is None:
        return {"type": "WorkerDiedError", "message": f"{head} broke off its connection", "cause": "exit"}
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = str(number)
        return {
            "type": "WorkerDiedError",
            "message": f"{head} was killed by {name}",
            "cause": "signal",
            "signal": number,
        }
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
    return {"type": "WorkerDiedError", "message": f"{head} exited with code {code}", "cause": "exit", "exit_code": code}


def out_of_memory(limit: object) -> dict[str, Any]:
    """Why a worker was killed (`Worker.killed_for`) when the system says that its container's memory ran out.

    Examples
    --------
    >>> out_of_memory(1 << 30)["message"]
    'was killed by the system: its container reached its limit of 1024 MiB'
    """
    why: dict[str, Any] = {"message": "was killed by the system: the memory ran out", "cause": "oom"}
    if type(limit) is int and limit > 0:
        why["message"] = f"was killed by the system: its container reached its limit of {limit >> 20} MiB"
        why["limit"] = limit
    return why


async def calls_ended(worker: Worker, cancel: asyncio.Future[None], cleanup: float) -> bool:
    """Wait until the calls that run in a worker have ended; False when `cancel` was done before.

    Parameters
    ----------
    worker
        Gets no new calls.
    cancel
        Ends the waiting.
    cleanup
        Seconds to wait for calls that were cancelled: what they wait for may never come.
    """
    loop = asyncio.get_running_loop()
    give_up: float | None = None
    while worker.calls and not worker.dead:
        left: float | None = None
        if not worker.busy:
            give_up = give_up or loop.time() + cleanup
            left = give_up - loop.time()
            if left <= 0:
                break
        less: asyncio.Future[None] = loop.create_future()
        worker.on_less.append(less)
        await asyncio.wait({less, cancel}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if cancel.done():
            return False
    return True
