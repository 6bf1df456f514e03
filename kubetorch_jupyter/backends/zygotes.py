"""The client's side of a root zygote: asks it for pods, hears of their ends.

Runs on the portal. One for each interpreter and each environment that only a new process can take on.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from pod_server.wire import Decoder, Frame, FrameType, WireError, encode

from ..errors import StartupError
from .spawning import Spawned, spawn, take

__all__ = ["RootZygote", "ZygoteEnded"]

log = logging.getLogger(__name__)


class ZygoteEnded(StartupError):
    """The process has ended, perhaps before it heard what was asked of it."""


class RootZygote:
    """A running root zygote.

    Parameters
    ----------
    spawned
        The process, our end of its socket, and what it writes to stderr.
    on_end
        Called with ``(incarnation, reason)`` when one of its pods has ended.
    """

    def __init__(self, spawned: Spawned, on_end: Callable[[str, str], None]) -> None:
        self._process = spawned.process
        self._connection = spawned.connection
        self._connection.setblocking(False)
        self._stderr = spawned.stderr
        self._on_end = on_end
        self._decoder = Decoder()
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next = 1  # `init` was the first
        self._said = ""
        self._loop = asyncio.get_running_loop()
        self.closed = False
        self._loop.add_reader(self._connection, self._on_readable)

    @classmethod
    async def start(cls, env: Mapping[str, str], on_end: Callable[[str, str], None]) -> RootZygote:
        """Start one, or take the one that was started early; its imports go on when this returns.

        Parameters
        ----------
        env
            Its environment.
        on_end
            See the class.

        Raises
        ------
        StartupError
            When there is no interpreter, or the system starts no more processes.
        """
        if not sys.executable:
            raise StartupError("local pods need to know the Python interpreter, and sys.executable is empty here")
        try:
            spawned = take(env)
            if spawned is None:
                spawned = await asyncio.to_thread(spawn, env)
        except OSError as e:
            raise StartupError(f"the process that starts local pods can't be started: {e.strerror or e}") from e
        return cls(spawned, on_end)

    # -- requests ----------------------------------------------------------------------------------------------------

    async def request(self, op: str, buffer: bytes | None = None, **fields: Any) -> dict[str, Any]:
        """Ask for something.

        Raises
        ------
        StartupError
            When the answer is an error (``.reason`` is an errno's name, if there is one), or the process has ended.
        """
        number = self._number()
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._waiting[number] = future
        try:
            self._post(number, {"op": op, **fields}, buffer)
            answer = await future
        finally:
            self._waiting.pop(number, None)
        error = answer.get("error")
        if error is not None:
            raise StartupError(str(error.get("message")), traceback=error.get("log") or None)
        return answer

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _post(self, number: int, meta: dict[str, Any], buffer: bytes | None = None) -> None:
        data = encode(FrameType.REQUEST, number, meta, [] if buffer is None else [buffer])
        try:
            # Requests are small and few, and the socket holds hundreds of kilobytes: it is never full.
            sent = self._connection.send(data)
        except OSError as e:
            self._fail(f"its socket: {e.strerror or e}")
            raise self._ended() from e
        if sent != len(data):
            self._fail("it doesn't read its socket")
            raise self._ended()

    def _on_readable(self) -> None:
        try:
            data = self._connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._fail("")
            return
        try:
            for frame in self._decoder.feed(data):
                self._handle(frame)
        except WireError as e:
            self._fail(str(e))

    def _handle(self, frame: Frame) -> None:
        if frame.type is FrameType.EVENT:
            meta = frame.meta
            if meta.get("event") == "pod-ended":
                self._on_end(meta["incarnation"], meta["reason"])
            return
        future = self._waiting.pop(frame.channel, None)
        if future is not None and not future.done():
            future.set_result(frame.meta)
        elif future is None and "error" in (meta := frame.meta):
            # Nobody waits for the answer to `init`; what it couldn't import every later request will miss too.
            log.error("the local zygote: %s", meta["error"].get("message"))

    def _ended(self, why: str = "") -> ZygoteEnded:
        said = self.stderr()
        last = f": {said.strip().splitlines()[-1]}" if said.strip() else ""
        return ZygoteEnded(
            f"the process that starts local pods has ended{f' ({why})' if why else ''}{last}", traceback=said or None
        )

    def stderr(self) -> str:
        """What the process has written to stderr."""
        if self._stderr.closed:
            return self._said
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")[-8000:]

    # -- the end -----------------------------------------------------------------------------------------------------

    def _fail(self, why: str) -> None:
        if self.closed:
            return
        error = self._ended(why)
        waiting, self._waiting = self._waiting, {}
        self.close()
        # It has ended or is about to; somebody must take its status.
        self._loop.run_in_executor(None, self.wait, 5.0)
        for future in waiting.values():
            if not future.done():
                future.set_exception(error)

    def close(self) -> None:
        """Let it go: it ends by itself, after its pods that end with this process."""
        if self.closed:
            return
        self.closed = True
        if not self._loop.is_closed():
            self._loop.remove_reader(self._connection)
        self._connection.close()
        # What it says from now on is for nobody; what it said is kept.
        self._said = self.stderr()
        self._stderr.close()

    def abandon(self) -> None:
        """In a forked child: it is the parent's. Touches neither the process nor the parent's loop."""
        self.forget()

    def forget(self) -> None:
        """At this process's end, from any thread: let go without waiting, and without a warning."""
        if not self.closed:
            self.closed = True
            # Not taken from the loop, which may be running in its thread, or be the parent's: a closed descriptor is.
            self._connection.close()
            self._stderr.close()
        if self._process.poll() is None:
            # The only way to tell Popen that nobody is going to wait for it, and that this is meant.
            self._process.returncode = 0

    def wait(self, timeout: float) -> bool:
        """Wait until the process has ended, after `close`; blocks."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True
