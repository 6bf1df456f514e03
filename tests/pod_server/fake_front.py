"""A front for tests of the worker: a Unix socket that speaks frames, and a worker process at its other end."""

from __future__ import annotations

import itertools
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle

from pod_server import exceptions, serialization
from pod_server.wire import F_BULK, F_ENTRY, F_ERROR, Decoder, Frame, FrameType, LogDecoder, LogKind, encode

ROOT = Path(__file__).resolve().parents[2]
_START = """
import sys, json
from pod_server.worker import WorkerParams, run_worker
run_worker(WorkerParams(**json.loads(sys.argv[1])))
"""


class Failed(Exception):
    """A RESULT with F_ERROR that is none of the user's."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["type"], error.get("message"))
        self.error = error
        self.type = error["type"]


class Record:
    """What came on one channel."""

    def __init__(self, front: FakeFront, channel: int) -> None:
        self.front = front
        self.channel = channel
        self.log: list[tuple[LogKind, bytes]] = []
        self.items: list[Any] = []
        self.times: list[float] = []
        self.changed = threading.Condition()
        self.ended: float | None = None
        self.meta: dict[str, Any] = {}
        self.result: Any = None
        self.error: BaseException | None = None
        self._decoder = LogDecoder()

    def take(self, frame: Frame) -> None:
        now = time.monotonic()
        with self.changed:
            if frame.type is FrameType.LOG:
                assert not frame.flags & F_ENTRY or self._decoder._rest == b""
                self.log += self._decoder.feed(frame.buffers[0])
                self.times.append(now)
            elif frame.type is FrameType.ITEM:
                assert frame.meta["i"] == len(self.items)
                self.items.append(serialization.loads(self.front.buffers(frame), frame.meta.get("ser", "pickle")))
            elif frame.type is FrameType.RESULT:
                assert self.ended is None, f"two RESULTs for call {self.channel}"
                self.ended = now
                self.meta = frame.meta
                if frame.flags & F_ERROR:
                    error = self.meta["error"]
                    buffers = self.front.buffers(frame)
                    if error["type"] == "user":
                        self.error = exceptions.decode(buffers, lambda n, m, t, b: RuntimeError(n, m))
                    else:
                        self.error = Failed(error)
                elif "n" not in self.meta and (frame.buffers or frame.flags & F_BULK):
                    self.result = serialization.loads(self.front.buffers(frame), self.meta.get("ser", "pickle"))
            self.changed.notify_all()

    def wait(self, timeout: float = 10.0) -> Any:
        with self.changed:
            if not self.changed.wait_for(lambda: self.ended is not None, timeout):
                raise TimeoutError(f"call {self.channel} did not end; its log: {self.log[-5:]}")
        if self.error is not None:
            raise self.error
        return self.result

    def until(self, condition: Any, timeout: float = 10.0) -> None:
        with self.changed:
            if not self.changed.wait_for(lambda: condition(self), timeout):
                raise TimeoutError(f"call {self.channel}: {self.log[-5:]}, {len(self.items)} items")

    def text(self, kind: LogKind | None = None) -> str:
        with self.changed:
            return b"".join(d for k, d in self.log if kind is None or k is kind).decode(errors="replace")

    def bytes(self, kind: LogKind) -> bytes:
        with self.changed:
            return b"".join(d for k, d in self.log if k is kind)

    def displays(self) -> list[dict[str, Any]]:
        with self.changed:
            return [json.loads(d) for k, d in self.log if k is LogKind.DISPLAY]

    def cancel(self, reason: str = "user") -> None:
        self.front.send(encode(FrameType.CANCEL, self.channel, {"reason": reason}))

    def credit(self, n: int) -> None:
        self.front.send(encode(FrameType.CREDIT, self.channel, {"n": n}))


class FakeFront:
    def __init__(self, **params: Any) -> None:
        self._temp = tempfile.TemporaryDirectory(prefix="kt-worker-")
        self.dir = self._temp.name
        self.bulk = os.path.join(self.dir, "bulk")
        os.mkdir(self.bulk)
        self.records: dict[int, Record] = {}
        self.events: list[dict[str, Any]] = []
        self._channels = itertools.count(1)
        self._numbers = itertools.count(1)
        self.service = self.records.setdefault(0, Record(self, 0))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.path.join(self.dir, "front.sock"))
        listener.listen()
        given = {"dir": self.dir, "number": 1, "sys_path": [str(ROOT), *sys.path], **params}
        self.stderr_path = os.path.join(self.dir, "front.log")
        with open(self.stderr_path, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(given)], cwd=ROOT, stderr=log, start_new_session=True
            )
        listener.settimeout(10)
        self.sock, _ = listener.accept()
        self.sock.settimeout(None)
        listener.close()
        self._lock = threading.Lock()
        self.ready = threading.Event()
        self.closed = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.ready.wait(10)

    def _read(self) -> None:
        decoder = Decoder()
        while True:
            try:
                data = self.sock.recv(1 << 18)
            except OSError:
                break
            if not data:
                break
            for frame in decoder.feed(data):
                if frame.type is FrameType.EVENT:
                    self.events.append(frame.meta)
                    if frame.meta["event"] == "ready":
                        self.ready.set()
                elif frame.type is FrameType.HELLO:
                    self.hello = frame.meta
                else:
                    self.records[frame.channel].take(frame)
        self.closed.set()

    def buffers(self, frame: Frame) -> list[Any]:
        if not frame.flags & F_BULK:
            return frame.buffers
        path = os.path.join(self.bulk, frame.meta["file"])
        data = bytearray(Path(path).read_bytes())
        os.unlink(path)
        out, at = [], 0
        for n in frame.meta["lens"]:
            out.append(memoryview(data)[at : at + n])
            at += n
        assert at == len(data)
        return out

    def send(self, data: bytes) -> None:
        with self._lock:
            self.sock.sendall(data)

    def frame(self, type: FrameType, meta: dict[str, Any], buffers: list[Any]) -> tuple[Record, bytes]:
        channel = next(self._channels)
        record = self.records[channel] = Record(self, channel)
        if serialization.nbytes(buffers) <= 50_000:
            return record, encode(type, channel, meta, buffers)
        name = f"f{next(self._numbers)}"
        with open(os.path.join(self.bulk, name), "wb") as f:
            for b in buffers:
                f.write(b)
        lens = [memoryview(b).nbytes for b in buffers]
        return record, encode(type, channel, {**meta, "file": name, "lens": lens}, (), F_BULK)

    def prepare(
        self, *args: Any, _f: str | None = None, _meta: dict[str, Any] | None = None, **kwargs: Any
    ) -> tuple[Record, bytes]:
        meta = dict(_meta or {})
        if _f is not None:
            meta["f"] = _f
        return self.frame(FrameType.CALL, meta, serialization.dumps((args, kwargs), ser=meta.get("ser", "pickle")))

    def start(self, *args: Any, **kwargs: Any) -> Record:
        record, data = self.prepare(*args, **kwargs)
        self.send(data)
        return record

    def start_all(self, argss: list[tuple[Any, ...]], **kwargs: Any) -> list[Record]:
        """All in one write."""
        prepared = [self.prepare(*args, **kwargs) for args in argss]
        self.send(b"".join(data for _, data in prepared))
        return [record for record, _ in prepared]

    def call(self, *args: Any, **kwargs: Any) -> Any:
        return self.start(*args, **kwargs).wait()

    def load(
        self,
        target: Any,
        *,
        kind: str | None = None,
        init_args: Any = None,
        modules: bytes = b"",
        sources: dict[str, str] | None = None,
        header: dict[str, Any] | None = None,
        dumps: Callable[[Any], list[Any]] = serialization.dumps,
        **meta: Any,
    ) -> Record:
        kind = kind or ("cls" if isinstance(target, type) else "fn")
        full = {
            "version": "v",
            "kind": kind,
            "name": getattr(target, "__name__", "code"),
            "python": ".".join(platform.python_version_tuple()[:2]),
            "cloudpickle": cloudpickle.__version__,
            **meta,
        }
        pickled = dumps((target, init_args))
        head = json.dumps(header or {"how": "pickle", "init": init_args is not None}).encode()
        record, data = self.frame(FrameType.LOAD, full, [head, json.dumps(sources or {}).encode(), modules, *pickled])
        self.send(data)
        return record

    def deploy(self, target: Any, **kwargs: Any) -> Record:
        record = self.load(target, **kwargs)
        record.wait()
        return record

    def close(self) -> None:
        self.sock.close() if self.closed.is_set() else self.sock.shutdown(socket.SHUT_RDWR)
        try:
            self.process.wait(5)
        finally:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait(5)
            self._reader.join(5)
            self.sock.close()
            self._temp.cleanup()

    def __enter__(self) -> FakeFront:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
