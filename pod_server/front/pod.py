"""A pod as its front sees it: the parts, put together, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import shutil
import time
from typing import TYPE_CHECKING, Any

from ..ending import write_end
from ..wire import PROTOCOL, FrameType, WireError, encode
from .bulk import BulkStore
from .calls import Calls
from .faults import Events
from .kept import Kept
from .life import Life
from .link import Link, listen
from .memory import MemoryWatch
from .params import FrontParams
from .peers import Peers
from .records import Client, RecordStore
from .requests import Requests
from .supervisor import Supervisor
from .usage import Usage

if TYPE_CHECKING:
    from .session import Session

__all__ = ["Pod"]

_log = logging.getLogger(__name__)

#: Seconds between two looks for records that have expired.
_SWEEP = 60.0
#: Seconds that clients get to hear of the end, and workers to end.
_FAREWELL = 0.5
_KILLING = 1.0


class Pod:
    """Everything that a front has; made on its running loop.

    Parameters
    ----------
    params
        As `run_front` got them.
    """

    def __init__(self, params: FrontParams) -> None:
        self.params = params
        if params.containers:
            self._clear()
        self.since = time.time()
        self.token = params.token.encode()
        self._loop = asyncio.get_running_loop()
        spill = os.path.join(params.dir, "spill")
        os.makedirs(spill, mode=0o700, exist_ok=True)
        self.events = Events(params.debug)
        # The containers of a pod share the service directory, and not /dev/shm.
        bulk_dir = params.bulk_dir or (os.path.join(params.dir, "bulk") if params.containers else None)
        self.bulk = BulkStore(params.dir, bulk_dir, params.name)
        self.store = RecordStore(spill, params.log_budget, params.log_budget_call, self.bulk.remove)
        self.sessions: set[Session] = set()
        #: Why the pod ends, once it does, and the exit code of the front.
        self.stopped: asyncio.Future[str] = self._loop.create_future()
        #: Other pods have taken its place: clients look for them, and it ends when its calls have.
        self.draining = False
        self.status = 0
        self.life = Life(params.detach, params.ttl, self.stop)
        self.peers = Peers(params, self.life)
        self.kept = Kept(self)
        self.supervisor = Supervisor(self)
        self.calls = Calls(self)
        self.requests = Requests(self)
        self.memory = MemoryWatch(self.supervisor)
        self.usage = Usage(self.supervisor.fleet, params.devices, remote=params.containers)
        self._tasks: list[asyncio.Task[None]] = []
        self._server: asyncio.AbstractServer | None = None

    @property
    def function_name(self) -> str:
        """The name of the function or class, for people."""
        code = self.supervisor.code
        return str(code.meta.get("name") or "") if code is not None else ""

    def welcome(self, client: Client) -> bytes:
        """The WELCOME frame for a client."""
        code = self.supervisor.code
        meta: dict[str, Any] = {
            "protocol": PROTOCOL,
            "incarnation": self.params.incarnation,
            "service": self.params.name,
            "high_water": client.high_water,
            "code": code.public() if code is not None else None,
            "state": self.supervisor.state,
            "losses": self.supervisor.losses,
            "python": ".".join(platform.python_version_tuple()[:2]),
            "pid": os.getpid(),
            "draining": self.draining,
        }
        if code is None and self.kept.missing is not None:
            meta["missing"] = self.kept.missing
        try:
            return encode(FrameType.WELCOME, 0, meta)
        except WireError:
            # An interface with long docstrings: the session works without it.
            meta["code"].pop("interface", None)
            return encode(FrameType.WELCOME, 0, meta)

    def tell(self, event: str, text: str = "", **fields: Any) -> None:
        """Record an event and send it to every session."""
        self.events.add(event, text, **fields)
        frame = encode(FrameType.EVENT, 0, {"event": event, "text": text, **fields})
        for session in list(self.sessions):
            if session.client.id:
                session.send(frame)

    def drain(self) -> None:
        """Send the clients' next calls to the pods that have taken its place; what comes all the same is done."""
        if not self.draining:
            self.draining = True
            self.tell("draining", "its place is taken by other pods")

    # -- life
    # --------------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Start everything but the HTTP server."""
        self._server = await listen(os.path.join(self.params.dir, "front.sock"), self._introduce)
        work = [self.supervisor.run(), self._sweep()]
        if not self.params.containers:
            # There the system holds the container to its limit, at once, and the zygote says so (`zygote.container`).
            work.append(self.memory.run())
        for part in work:
            task = self._loop.create_task(part)
            task.add_done_callback(self._task_ended)
            self._tasks.append(task)
        self.life.begin(list(self.params.owners))
        if self.params.containers:
            self.kept.begin()

    def _introduce(self, link: Link, meta: dict[str, Any]) -> None:
        role = meta.get("role")
        if role == "zygote":
            self.supervisor.fleet.zygote_came(link)
        elif role == "worker":
            self.supervisor.fleet.worker_came(link, meta)
        else:
            raise WireError(f"there is no role {role!r}")

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            # A bug of ours: a pod that only half works would be worse than one that is gone and says why.
            _log.critical("a part of the front failed", exc_info=error)
            self.stop(f"a part of its front failed: {type(error).__name__}: {error}", 1)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP)
            self.calls.sweep(time.time())
            self.store.sweep(time.time())

    def stop(self, reason: str, status: int = 0) -> None:
        """Begin the end of the pod; a `status` other than 0 says that it was not to end."""
        if not self.stopped.done():
            self.status = status
            self.stopped.set_result(reason)

    async def close(self, reason: str) -> None:
        """End the workers and the sessions."""
        _log.info("the pod ends: %s", reason)
        text = f'service "{self.params.name}" ends: {reason}'
        self.supervisor.state = "stopping"
        self.tell("stopping", text)
        for task in self._tasks:
            task.cancel()
        self.supervisor.stop()
        await asyncio.wait(self._tasks, timeout=_FAREWELL)
        sessions = list(self.sessions)
        for session in sessions:
            session.close(text, "PodTerminatedError")
        if sessions:
            await asyncio.wait({session.over for session in sessions}, timeout=_FAREWELL)
        for session in sessions:
            if not session.over.done():
                session.drop()
        fleet = self.supervisor.fleet
        workers = list(fleet.workers.values())
        if workers and fleet.zygote is not None and not fleet.zygote.closed:
            await asyncio.wait({w.gone for w in workers}, timeout=_KILLING)
        fleet.leave()
        if self._server is not None:
            self._server.close()
        if self.params.containers and self.status == 0:
            # It may be between two lives just now, and is to find out.
            write_end(self.params.dir)
        if fleet.zygote is not None:
            fleet.zygote.send(encode(FrameType.GOODBYE, 0, {"reason": reason, "status": self.status}))
            fleet.zygote.close()
        self.peers.close()
        self.life.close()

    def _clear(self) -> None:
        """Remove what an earlier front of this pod has left: payloads, results and logs that nobody can ask for now."""
        for name in ("bulk", "spill"):
            shutil.rmtree(os.path.join(self.params.dir, name), ignore_errors=True)
        for name in ("front.json", "front.sock"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.params.dir, name))

    def remove(self) -> None:
        """Remove all files of the service, and the runtime directory if it is empty."""
        if self.params.containers:
            self._clear()  # the rest is for the next front, and goes with the pod
            return
        self.bulk.close()
        for _ in range(3):
            # Again when somebody who is about to end has just made another file.
            shutil.rmtree(self.params.dir, ignore_errors=True)
            if not os.path.exists(self.params.dir):
                break
        with contextlib.suppress(OSError):  # other services are in it, or it isn't ours
            os.rmdir(os.path.dirname(os.path.abspath(self.params.dir)))
