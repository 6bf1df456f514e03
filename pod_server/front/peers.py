"""The replicas of a service: they end together, when nobody has called any of them for the time to live.

Each looks when its own time has come, and asks the others; the one with the lowest rank of those that live decides, and
tells them. A replica that can't be reached counts as gone after some tries: one that has ended keeps its name and its
address.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from .life import Life
from .params import FrontParams

__all__ = ["Peers"]

_log = logging.getLogger(__name__)

#: Seconds for one question, how often it is tried, and the seconds between two tries.
_ANSWER = 3.0
_TRIES = 3
_PAUSE = 1.0
#: Seconds after which is looked again, when another one is to decide, or one didn't want to end.
_AGAIN = 5.0
#: Bytes that an answer may have.
_LONGEST = 65536


class Peers:
    """The other replicas.

    Parameters
    ----------
    params
        Has their addresses, which of them this is, and the token that they share.
    life
        When this one's time comes.
    """

    def __init__(self, params: FrontParams, life: Life) -> None:
        self._params = params
        self._life = life
        self._others = [(i, address) for i, address in enumerate(params.peers) if i != params.rank]
        self._task: asyncio.Task[None] | None = None
        if self._others:
            life.agree = self._agree

    def said(self) -> dict[str, Any]:
        """What this one answers when it is asked (``GET /idle``)."""
        life = self._life
        return {"idle": life.idle, "calls": life.active, "ttl": life.ttl, "rank": self._params.rank}

    def told_to_end(self) -> bool:
        """Another one has decided (``POST /end``); False when a call has come to this one meanwhile."""
        if not self._life.due:
            return False
        self._life.expire()
        return True

    def close(self) -> None:
        """Ask nobody any more."""
        if self._task is not None:
            self._task.cancel()

    def _agree(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        answers = await asyncio.gather(*(self._ask(address) for _, address in self._others))
        life = self._life
        if not life.due:
            life.again(0.01)  # a call has come; it says itself when its time has come again
            return
        living = [
            (rank, address, said)
            for (rank, address), said in zip(self._others, answers, strict=True)
            if said is not None
        ]
        waits = [_left(said) for _, _, said in living]
        left = max(waits, default=0.0)
        if left > 0:
            life.again(min(left, 1e8))
        elif any(rank < self._params.rank for rank, _, _ in living):
            life.again(_AGAIN)  # it will tell us, unless something happens to it
        else:
            agreed = await asyncio.gather(*(self._tell(address) for _, address, _ in living))
            if all(agreed) and life.due:
                life.expire()
            else:
                life.again(_AGAIN)

    async def _ask(self, address: str) -> dict[str, Any] | None:
        """What another one says; None when it is gone."""
        for n in range(_TRIES):
            if n:
                await asyncio.sleep(_PAUSE)
            try:
                status, body = await self._request("GET", "/idle", address)
                said = json.loads(body) if status == 200 else None
            except (OSError, asyncio.TimeoutError, ValueError, asyncio.IncompleteReadError) as e:
                _log.info("replica %s doesn't answer: %s", address, repr(e))
                continue
            if isinstance(said, dict):
                return said
            _log.warning("replica %s answers with status %d", address, status)
        return None

    async def _tell(self, address: str) -> bool:
        """Tell another one to end; whether it does, or is gone."""
        try:
            status, _ = await self._request("POST", "/end", address)
        except (OSError, asyncio.TimeoutError, ValueError, asyncio.IncompleteReadError):
            return True  # it has just answered, so it has ended by itself
        return status == 202

    async def _request(self, method: str, path: str, address: str) -> tuple[int, bytes]:
        return await asyncio.wait_for(self._exchange(method, path, address), _ANSWER)

    async def _exchange(self, method: str, path: str, address: str) -> tuple[int, bytes]:
        """One HTTP request; the status and the body."""
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), limit=_LONGEST)
        try:
            lines = (f"{method} {path} HTTP/1.1", f"Host: {address}", f"X-Kubetorch-Token: {self._params.token}")
            writer.write("\r\n".join((*lines, "Content-Length: 0", "Connection: close", "", "")).encode("ascii"))
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            # It closes the connection behind its answer, or says how long that is.
            length = next(
                (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
            )
            return status, await reader.readexactly(min(length, _LONGEST))
        except (IndexError, asyncio.LimitOverrunError):
            raise ValueError("it is no HTTP answer") from None
        finally:
            writer.close()


def _left(said: dict[str, Any]) -> float:
    """Seconds until another one's time comes, as far as it can know; 0: it has come.

    Examples
    --------
    >>> _left({"idle": 10, "calls": 0, "ttl": 60}), _left({"idle": 0, "calls": 1, "ttl": 60})
    (50, 60)
    >>> _left({"idle": 80, "calls": 0, "ttl": 60}), _left({"idle": 80, "calls": 0, "ttl": None}) > 1e6
    (0.0, True)
    """
    idle, ttl = said.get("idle"), said.get("ttl")
    if not isinstance(ttl, (int, float)):
        return 1e8  # it is to live for ever
    if said.get("calls") or not isinstance(idle, (int, float)):
        return ttl
    return max(ttl - idle, 0.0)
