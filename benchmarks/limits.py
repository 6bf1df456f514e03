"""The limits: the same work on a bare socket, with nothing on either side that knows what a call is."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["bulk", "in_flight", "latency", "server"]

#: An echo server of one connection at a time; its first line of output is its port.
_SERVER = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
buffer = bytearray(1 << 20)
while True:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        while n := connection.recv_into(buffer):
            connection.sendall(memoryview(buffer)[:n])
"""


@contextmanager
def server() -> Iterator[int]:
    """The port of an echo server in another process."""
    process = subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def latency(port: int, n: int) -> float:
    """Seconds of one message of 100 bytes there and back, the median of ``n``."""
    message, times = b"x" * 100, []
    with _connect(port) as connection:
        for _ in range(n):
            start = time.perf_counter()
            connection.sendall(message)
            left = len(message)
            while left:
                left -= len(connection.recv(left))
            times.append(time.perf_counter() - start)
    return sorted(times)[n // 2]


def in_flight(port: int, n: int, width: int) -> float:
    """Messages of 100 bytes a second there and back, with ``width`` on the way, each sent by itself."""
    message = b"x" * 100
    with _connect(port) as connection:
        start = time.perf_counter()
        sent = received = 0
        while received < n * len(message):
            while sent < n and sent * len(message) - received < width * len(message):
                connection.sendall(message)
                sent += 1
            received += len(connection.recv(65536))
        return n / (time.perf_counter() - start)


def bulk(port: int, size: int) -> float:
    """Seconds for ``size`` bytes there, and then back, over TCP (the two ways one after the other, as a call's are)."""
    data, back = memoryview(bytearray(size)), bytearray(1 << 20)
    with _connect(port) as connection:
        start = time.perf_counter()
        # The server echoes as it reads, so a thread of the kernel's would be needed to overlap; a piece at a time is
        # there and back before the next, which costs no more than the two ways in turn.
        for at in range(0, size, 1 << 20):
            piece = data[at : at + (1 << 20)]
            connection.sendall(piece)
            left = len(piece)
            while left:
                left -= connection.recv_into(back, left)
        return time.perf_counter() - start
