"""The limits: the same work on a bare socket, pipe or process, where nothing knows what a call is."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cloudpickle
import numpy as np

from . import timing
from .echo import MESSAGE, PIECE, receive_exactly

__all__ = ["Server", "idle_memory", "line_delay", "lines", "process", "server"]


class Server:
    """A bare echo server in another process, on another core (`apart`)."""

    def __init__(self, port: int, core: int | None) -> None:
        self._port = port
        self._core = core

    @contextmanager
    def _connected(self, kind: bytes) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self._port)) as connection, _on(self._core):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(kind)
            yield connection

    def latency(self, n: int) -> float:
        """Seconds of one message of 100 bytes there and back, the median of ``n``."""
        with self._connected(b"m") as connection:

            def run() -> None:
                connection.sendall(MESSAGE)
                connection.recv(len(MESSAGE), socket.MSG_WAITALL)

            timing.warm(run)
            return timing.median(run, n)

    def in_flight(self, n: int, width: int) -> float:
        """Messages of 100 bytes a second there and back, ``width`` on the way, each read whole and sent by itself."""
        with self._connected(b"m") as connection:

            def run() -> None:
                for _ in range(width):
                    connection.sendall(MESSAGE)
                for i in range(n):
                    connection.recv(len(MESSAGE), socket.MSG_WAITALL)
                    if i < n - width:
                        connection.sendall(MESSAGE)

            return n / timing.once(run)

    def bulk(self, size: int) -> float:
        """Bytes a second of ``size`` bytes there and then back, into new memory on both sides; the best of two."""
        data = memoryview(np.ones(size, dtype=np.uint8)).cast("B")
        with self._connected(b"b") as connection:

            def run() -> None:
                connection.sendall(size.to_bytes(8, "big"))
                for at in range(0, size, PIECE):
                    connection.sendall(data[at : at + PIECE])
                receive_exactly(connection, size)

            run()
            return 2 * size / timing.best(run, 2)

    def redeploy(self, make: Callable[[int], Callable[[], int]], n: int) -> float:
        """Seconds to pickle a function by value, send it, unpickle it there and hear of that; the median of ``n``."""
        numbers = iter(range(n))
        with self._connected(b"c") as connection:

            def run() -> None:
                data = cloudpickle.dumps(make(next(numbers)))
                connection.sendall(len(data).to_bytes(8, "big") + data)
                connection.recv(len(MESSAGE), socket.MSG_WAITALL)

            return timing.median(run, n)


def apart() -> tuple[int | None, int | None]:
    """Two cores that we may use, or none to choose.

    Two processes on one core take turns and never run at the same time: a message between them costs a third, but
    nobody wants a pod for that. The kernel puts such a pair now here, now there, which would be a factor of three in
    the limit; so each end has a core of its own.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return (cores[0], cores[-1]) if len(cores) > 1 else (None, None)


@contextmanager
def _on(core: int | None) -> Iterator[None]:
    """This thread on that core."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def server() -> Iterator[Server]:
    """An echo server in another process."""
    here, there = apart()
    command = [sys.executable, "-m", "benchmarks.echo", *([] if there is None else [str(there)])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Server(int(process.stdout.readline()), here)
        finally:
            process.kill()


def process(code: str) -> float:
    """Seconds of a process of its own that runs it, from its start to its end."""
    return timing.once(lambda: subprocess.run([sys.executable, "-c", code], check=True))


def idle_memory(measure: Callable[[int], int]) -> float:
    """What a process that waits, and has imported nothing, takes in memory."""
    code = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as waiting:
        assert waiting.stdin is not None
        assert waiting.stdout is not None
        waiting.stdout.readline()
        try:
            return measure(waiting.pid)
        finally:
            waiting.stdin.close()


# -- what another process prints ---------------------------------------------------------------------------------------

_PRINTS = """
import os, sys
from benchmarks.functions import {0}
core, *arguments = map(int, sys.argv[1:])
if core >= 0:
    os.sched_setaffinity(0, {{core}})
print(flush=True)
input()
{0}(*arguments)
"""


@contextmanager
def _printing(function: str, *arguments: int) -> Iterator[io.FileIO]:
    """The pipe from a process that runs a function of ``functions``, which has imported what it needs by now."""
    here, there = apart()
    core = -1 if there is None else there
    command = [sys.executable, "-c", _PRINTS.format(function), *map(str, (core, *arguments))]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process,
        _on(here),
    ):
        assert process.stdin is not None
        assert isinstance(process.stdout, io.FileIO)
        process.stdout.readline()
        process.stdin.write(b"\n")
        yield process.stdout


def line_delay(n: int) -> float:
    """Seconds from a ``print`` in another process until it is read here, the median of ``n``."""
    lines = timing.Lines()
    with _printing("spaced", n) as pipe:
        while data := pipe.read(65536):
            lines.write(data.decode())
    return lines.delay(n)


def lines(n: int, flush: bool) -> float:
    """Seconds for ``n`` printed lines through a pipe, each flushed or not."""
    with _printing("dense", n, int(flush)) as pipe:
        start, count = time.perf_counter(), 0
        while data := pipe.read(65536):
            count += data.decode().count("\n")
        seconds = time.perf_counter() - start
    assert count == n, f"{count:,} of {n:,} lines came"
    return seconds
