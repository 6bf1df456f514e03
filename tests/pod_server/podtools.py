"""A real front process, with a zygote and workers that the test plays, and a client that speaks frames."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from pod_server.wire import (
    F_BULK,
    F_ENTRY,
    F_ERROR,
    PROTOCOL,
    Decoder,
    Frame,
    FrameType,
    LogKind,
    encode,
    encode_log,
    new_client_id,
)
from tests.waiting import until

TOKEN = "t" * 43
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

#: Forks fronts: each line is the parameters of one and the file for its exit status; the answer is its pid.
SERVER = """
import json, os, signal, sys, traceback
from pod_server.front import FrontParams, preload, run_front
preload()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    params, status_file = json.loads(line)
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.close(0)
    os.setsid()
    status = 70
    try:
        status = run_front(FrontParams(**params))
    except BaseException:
        traceback.print_exc()
    with open(status_file, "w") as f:
        f.write(str(status))
    sys.stderr.flush()
    os._exit(status)
"""


class Forker:
    """One process that has imported everything and forks fronts, so that a test's front starts in milliseconds."""

    _process: subprocess.Popen[str] | None = None

    @classmethod
    def fork(cls, params: dict[str, Any], status_file: str) -> int:
        if cls._process is None:
            cls._process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", SERVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                # Not the tests' own: fronts aren't looked for by their environment, `Front.close` checks them.
                env={k: v for k, v in os.environ.items() if not k.startswith("KT_")},
            )
            atexit.register(cls._end)
        assert cls._process.stdin is not None
        assert cls._process.stdout is not None
        cls._process.stdin.write(json.dumps([params, status_file]) + "\n")
        cls._process.stdin.flush()
        return int(cls._process.stdout.readline())

    @classmethod
    def _end(cls) -> None:
        assert cls._process is not None
        cls._process.kill()
        cls._process.communicate()


class Front:
    """A front process in a directory of its own."""

    def __init__(self, *, wait: bool = True, **params: Any) -> None:
        self.root = tempfile.mkdtemp(prefix="kt-front-")
        # The front removes the directory above its own too when that is empty.
        self.dir = os.path.join(self.root, "runtime", "svc")
        os.makedirs(self.dir)
        self.params = {"dir": self.dir, "name": "svc", "token": TOKEN, **params}
        self._status = os.path.join(self.root, "exit")
        self.pid = Forker.fork(self.params, self._status)
        # None: one that can't start may have ended, and been reaped by the fork server, before this line.
        self._pidfd: int | None = None
        with contextlib.suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(self.pid)
        self.info: dict[str, Any] = {}
        #: Clients that were opened, so that a test that fails leaves none.
        self.clients: list[Client] = []
        if wait:
            path = os.path.join(self.dir, "front.json")
            until(lambda: os.path.exists(path) or self.ended(), 15)
            with open(path) as f:
                self.info = json.load(f)
        self.bulk = ""
        with contextlib.suppress(OSError):
            self.bulk = os.path.realpath(os.path.join(self.dir, "bulk"), strict=True)

    @property
    def port(self) -> int:
        return int(self.info["port"])

    @property
    def url(self) -> str:
        return str(self.info["url"])

    def log(self) -> str:
        with contextlib.suppress(FileNotFoundError), open(os.path.join(self.dir, "front.log")) as f:
            return f.read()
        return ""

    def memory(self) -> int:
        """Bytes of its heap and of the files in memory that it has mapped.

        Not the kernel's "private" pages: a library's become that when another process that had them ends, and the
        server's that it was forked from when they are written to.
        """
        with open(f"/proc/{self.pid}/smaps_rollup") as f:
            return sum(int(line.split()[1]) * 1024 for line in f if line.startswith(("Anonymous:", "Pss_Shmem:")))

    def ended(self, timeout: float = 0.0) -> bool:
        """Whether the process has ended, or ends within so many seconds."""
        return self._pidfd is None or bool(select.select([self._pidfd], [], [], timeout)[0])

    @property
    def status(self) -> int | None:
        """How it ended; None when it was killed."""
        try:
            with open(self._status) as f:
                return int(f.read())
        except FileNotFoundError:
            return None

    def signal(self, number: int) -> None:
        if self._pidfd is not None and not self.ended():
            signal.pidfd_send_signal(self._pidfd, number)

    def remove_directory(self) -> None:
        """What the backend does for a front that could not start."""
        shutil.rmtree(os.path.dirname(self.dir))

    def close(self) -> None:
        bulk = self.bulk
        try:
            self.signal(signal.SIGTERM)
            if not self.ended(5):
                self.signal(signal.SIGKILL)
                raise AssertionError("the front did not end")
            assert not os.listdir(self.root) or os.listdir(self.root) == ["exit"], "the front left its directory"
            assert not os.path.exists(bulk), "the front left its bulk directory"
        finally:
            if self._pidfd is not None:
                os.close(self._pidfd)
            shutil.rmtree(self.root, ignore_errors=True)
            shutil.rmtree(bulk, ignore_errors=True)

    def __enter__(self) -> Front:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


async def until_async(condition: Callable[[], Any], timeout: float = 5.0) -> Any:
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.002)
    return value


class Peer:
    """A connection to front.sock."""

    def __init__(self, dir: str) -> None:
        self.dir = dir
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter
        self.task: asyncio.Task[None]
        self.closed = asyncio.Event()

    async def open(self, hello: dict[str, Any]) -> None:
        self.reader, self.writer = await asyncio.open_unix_connection(os.path.join(self.dir, "front.sock"))
        self.send(FrameType.HELLO, 0, hello)
        self.task = asyncio.create_task(self._read())

    def send(
        self, type: FrameType, channel: int = 0, meta: dict[str, Any] | None = None, buffers: Any = (), flags: int = 0
    ) -> None:
        self.writer.write(encode(type, channel, meta, buffers, flags))

    async def _read(self) -> None:
        decoder = Decoder()
        try:
            while data := await self.reader.read(1 << 18):
                for frame in decoder.feed(data):
                    self.take(frame)
        except ConnectionError:
            pass
        self.closed.set()

    def take(self, frame: Frame) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        self.writer.close()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class Worker(Peer):
    """A worker that the test plays: calls do what their name says."""

    def __init__(self, zygote: Zygote, number: int, fork: dict[str, Any]) -> None:
        super().__init__(zygote.dir)
        self.zygote = zygote
        self.number = number
        self.fork = fork
        self.frames: list[Frame] = []
        self.version = ""
        self.loads = 0
        self.calls: dict[int, Frame] = {}
        self.dead = False

    def named(self, type: FrameType) -> list[Frame]:
        return [f for f in self.frames if f.type is type]

    def take(self, frame: Frame) -> None:
        self.frames.append(frame)
        if frame.type is FrameType.LOAD:
            self.loads += 1
            self.zygote.on_load(self, frame)
        elif frame.type is FrameType.CALL:
            self.calls[frame.channel] = frame
            name = frame.meta.get("f") or "version"
            getattr(self, "do_" + name)(frame)

    def result(self, channel: int, *buffers: bytes, meta: dict[str, Any] | None = None, flags: int = 0) -> None:
        self.calls.pop(channel, None)
        self.send(FrameType.RESULT, channel, meta, buffers, flags)

    def fail(self, channel: int, error: dict[str, Any]) -> None:
        self.result(channel, meta={"error": error}, flags=F_ERROR)

    def loaded(self, frame: Frame) -> None:
        self.version = frame.meta["version"]
        self.result(frame.channel, meta={"version": self.version})

    def log(self, channel: int, data: bytes) -> None:
        entry = encode_log(LogKind.STDOUT, data)
        for i in range(0, len(entry), 60_000):
            self.send(FrameType.LOG, channel, None, [entry[i : i + 60_000]], 0 if i else F_ENTRY)

    async def die(self, status: int = 9, *, eof_first: bool = True) -> None:
        """End as a process does: the connection and then the status, or the other way round."""
        if self.dead:
            return
        self.dead = True
        if eof_first:
            with contextlib.suppress(ConnectionError):
                await self.writer.drain()
            self.writer.close()
        self.zygote.died(self, status)
        self.writer.close()

    # -- what calls do

    def do_version(self, frame: Frame) -> None:
        self.result(frame.channel, self.version.encode())

    def do_echo(self, frame: Frame) -> None:
        self.result(frame.channel, *[bytes(b) for b in frame.buffers])

    def do_hang(self, frame: Frame) -> None:
        pass

    def do_lines(self, frame: Frame) -> None:
        n = int(bytes(frame.buffers[0]))
        for i in range(n):
            self.log(frame.channel, b"line %d\n" % i)
        self.result(frame.channel, b"%d" % n)

    def do_flood(self, frame: Frame) -> None:
        """Log so many MiB in entries of 50 KB, then end."""
        mib = int(bytes(frame.buffers[0]))
        for i in range(mib * 20):
            self.log(frame.channel, b"%08d" % i + b"x" * 52_420)
        self.result(frame.channel, b"")

    def do_cancelled(self, frame: Frame) -> None:
        self.fail(frame.channel, {"type": "CallCancelledError"})

    def do_big(self, frame: Frame) -> None:
        n = int(bytes(frame.buffers[0]))
        name = f"w{self.number}-{frame.channel}"
        with open(os.path.join(self.dir, "bulk", name), "wb") as f:
            f.write(os.urandom(1 << 20) * (n >> 20))
        self.result(frame.channel, meta={"file": name, "lens": [n]}, flags=F_BULK)

    def do_sum(self, frame: Frame) -> None:
        path = os.path.join(self.dir, "bulk", frame.meta["file"])
        with open(path, "rb") as f:
            data = f.read()
        os.unlink(path)
        assert len(data) == sum(frame.meta["lens"])
        self.result(frame.channel, b"%d" % (sum(data) & 0xFFFFFFFF))

    def do_json(self, frame: Frame) -> None:
        self.result(frame.channel, b'{"got":%b}' % bytes(frame.buffers[0]), meta={"ser": "json"})

    def do_bad(self, frame: Frame) -> None:
        self.fail(frame.channel, {"type": "user", "message": "no", "class": "KeyError", "traceback": "Traceback"})


class Zygote(Peer):
    """A zygote that makes workers in this process."""

    def __init__(self, dir: str) -> None:
        super().__init__(dir)
        self.workers: dict[int, Worker] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self.on_load: Callable[[Worker, Frame], object] = lambda worker, frame: worker.loaded(frame)
        self.on_fork: Callable[[Worker], Awaitable[bool]] | None = None

    @property
    def last(self) -> Worker:
        return self.workers[max(self.workers)]

    @property
    def alive(self) -> list[Worker]:
        return [w for w in self.workers.values() if not w.dead]

    def take(self, frame: Frame) -> None:
        if frame.type is FrameType.FORK:
            worker = self.workers[frame.meta["worker"]] = Worker(self, frame.meta["worker"], frame.meta)
            self.tasks.append(asyncio.create_task(self._start(worker)))
        elif frame.type is FrameType.KILL:
            worker = self.workers[frame.meta["worker"]]
            self.tasks.append(asyncio.create_task(worker.die(9)))

    async def _start(self, worker: Worker) -> None:
        self.send(FrameType.FORKED, 0, {"worker": worker.number, "pid": os.getpid()})
        if self.on_fork is not None and not await self.on_fork(worker):
            return
        await worker.open({"role": "worker", "worker": worker.number, "pid": os.getpid()})
        worker.send(FrameType.EVENT, 0, {"event": "ready"})

    def died(self, worker: Worker, status: int) -> None:
        self.send(FrameType.DIED, 0, {"worker": worker.number, "pid": os.getpid(), "status": status})

    async def close(self) -> None:
        await super().close()  # first, or the front might have it make another worker meanwhile
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for worker in self.workers.values():
            if hasattr(worker, "task"):
                await worker.close()


class Client:
    """A client that keeps everything it gets."""

    def __init__(self, front: Front, id: str | None = None) -> None:
        self.front = front
        self.id = id or new_client_id()
        self.ws: ClientConnection
        self.seq = 0
        self.requests = 0
        self.welcome: dict[str, Any] = {}
        self.results: dict[int, Frame] = {}
        self.items: dict[int, list[Frame]] = {}
        self.logs: dict[int, bytearray] = {}
        self.gaps: dict[int, int] = {}
        self.order: list[Frame] = []
        self.answers: dict[int, Frame] = {}
        self.events: list[dict[str, Any]] = []
        self.goodbye: dict[str, Any] | None = None
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.code: int | None = None

    async def open(self, *, hello: bool = True, read: bool = True, **more: Any) -> Client:
        url = f"ws://127.0.0.1:{self.front.port}/session"
        headers = {"X-Kubetorch-Token": TOKEN}
        self.ws = await connect(url, additional_headers=headers, compression=None, ping_interval=None, max_size=None)
        self.front.clients.append(self)
        if hello:
            meta = {"protocol": PROTOCOL, "client": self.id, "pid": os.getpid(), "host": "here", "user": "me", **more}
            await self.ws.send(encode(FrameType.HELLO, 0, meta))
        if read:
            self.task = asyncio.create_task(self._read())
            if hello:
                await self.until(lambda: self.welcome or self.goodbye)
        return self

    async def _read(self) -> None:
        decoder = Decoder()
        try:
            async for data in self.ws:
                assert isinstance(data, bytes)
                assert len(data) <= 256 << 10
                for frame in decoder.feed(data):
                    self.take(frame)
                self.changed.set()
        except (ConnectionError, OSError):
            pass
        except Exception as e:
            if type(e).__name__ != "ConnectionClosedError":
                raise
        self.code = self.ws.close_code
        self.changed.set()

    def take(self, frame: Frame) -> None:
        kind, channel = frame.type, frame.channel
        if kind is FrameType.WELCOME:
            self.welcome = frame.meta
        elif kind is FrameType.GOODBYE:
            self.goodbye = frame.meta
        elif kind is FrameType.RESULT:
            assert channel not in self.results, "a second result"
            self.results[channel] = frame
            self.order.append(frame)
        elif kind is FrameType.ITEM:
            self.items.setdefault(channel, []).append(frame)
            self.order.append(frame)
        elif kind is FrameType.LOG:
            meta = frame.meta
            assert channel not in self.results, "a log after the result"
            log = self.logs.setdefault(channel, bytearray())
            if meta.get("gap"):
                self.gaps[channel] = meta["o"]
                assert frame.flags & F_ENTRY or not len(frame.buffers[0])
            self.order.append(frame)
            log += frame.buffers[0]
        elif kind is FrameType.RESPONSE:
            self.answers[channel] = frame
        elif kind is FrameType.EVENT:
            self.events.append(frame.meta)

    async def until(self, condition: Callable[[], Any], timeout: float = 10.0) -> Any:
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            left = deadline - time.monotonic()
            if self.task is not None and self.task.done():
                self.task.result()
            assert left > 0, "it did not happen in time"
            self.changed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.changed.wait(), left)
        return value

    async def send(
        self, type: FrameType, channel: int = 0, meta: dict[str, Any] | None = None, buffers: Any = (), flags: int = 0
    ) -> None:
        await self.ws.send(encode(type, channel, meta, buffers, flags))

    async def call(self, f: str, *buffers: bytes, flags: int = 0, **meta: Any) -> int:
        self.seq += 1
        await self.send(FrameType.CALL, self.seq, {"f": f, **meta}, buffers, flags)
        return self.seq

    async def load(self, version: str, worker: str = "w1", kind: str = "fn", **meta: Any) -> int:
        self.seq += 1
        full = {
            "version": version,
            "worker": worker,
            "kind": kind,
            "name": "thing",
            "env": {"A": "b"},
            "cwd": "/",
            **meta,
        }
        await self.send(FrameType.LOAD, self.seq, full, [b"bundle " + version.encode()])
        return self.seq

    async def result(self, seq: int, timeout: float = 10.0) -> Frame:
        return await self.until(lambda: self.results.get(seq), timeout)

    async def value(self, seq: int, timeout: float = 10.0) -> bytes:
        frame = await self.result(seq, timeout)
        assert not frame.flags & F_ERROR, frame.meta
        await self.send(FrameType.ACK, seq)
        return b"".join(bytes(b) for b in frame.buffers)

    async def error(self, seq: int, timeout: float = 10.0) -> dict[str, Any]:
        frame = await self.result(seq, timeout)
        assert frame.flags & F_ERROR
        await self.send(FrameType.ACK, seq)
        return dict(frame.meta["error"])

    async def run(self, f: str, *buffers: bytes, **meta: Any) -> bytes:
        return await self.value(await self.call(f, *buffers, **meta))

    async def request(self, op: str, **fields: Any) -> dict[str, Any]:
        self.requests += 1
        number = self.requests
        await self.send(FrameType.REQUEST, number, {"op": op, **fields})
        return dict((await self.until(lambda: self.answers.get(number))).meta)

    async def cut(self) -> None:
        """Break the connection without a word."""
        self.ws.transport.abort()
        if self.task is not None:
            await asyncio.gather(self.task, return_exceptions=True)

    async def close(self) -> None:
        if self.code is None:
            await asyncio.wait_for(self.ws.close(), 5)
        if self.task is not None:
            await asyncio.gather(self.task, return_exceptions=True)


@contextlib.asynccontextmanager
async def played(front: Front, *, load: str | None = "v1", kind: str = "fn") -> AsyncIterator[tuple[Zygote, Client]]:
    """The front with a zygote, one client, and code loaded."""
    zygote = Zygote(front.dir)
    await zygote.open({"role": "zygote", "pid": os.getpid()})
    client = await Client(front).open()
    try:
        if load is not None:
            await client.value(await client.load(load, kind=kind))
        yield zygote, client
    finally:
        for opened in front.clients:
            await opened.cut()
        front.clients.clear()
        await zygote.close()
