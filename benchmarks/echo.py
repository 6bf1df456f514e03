"""``python -m benchmarks.echo [CPU]``: the far end of the limits, a bare TCP socket in another process.

Its first line of output is its port. The first byte of a connection says what it does: ``m`` messages of 100 bytes,
each read whole and sent back by itself; ``b`` a body, received into memory of its own and then sent back, for as long
as the connection lives; ``c`` code, unpickled and answered.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
from collections.abc import Callable

import numpy as np

__all__ = ["MESSAGE", "PIECE", "receive_exactly"]

MESSAGE = b"x" * 100
#: Of a body, in one send or receive.
PIECE = 4 << 20


def receive_exactly(connection: socket.socket, size: int) -> memoryview:
    """That many bytes, in memory that is new: as an array that somebody is to own."""
    # A bytearray would be filled with zeros first.
    memory = memoryview(np.empty(size, dtype=np.uint8)).cast("B")
    got = 0
    while got < size:
        n = connection.recv_into(memory[got : got + PIECE])
        if not n:
            raise EOFError
        got += n
    return memory


def _messages(connection: socket.socket) -> None:
    while True:
        message = connection.recv(len(MESSAGE), socket.MSG_WAITALL)
        if not message:
            raise EOFError
        connection.sendall(message)


def _bodies(connection: socket.socket) -> None:
    while True:
        size = int.from_bytes(receive_exactly(connection, 8), "big")
        connection.sendall(receive_exactly(connection, size))


def _code(connection: socket.socket) -> None:
    while True:
        size = int.from_bytes(receive_exactly(connection, 8), "big")
        pickle.loads(receive_exactly(connection, size))
        connection.sendall(MESSAGE)


_KINDS: dict[bytes, Callable[[socket.socket], None]] = {b"m": _messages, b"b": _bodies, b"c": _code}


def main() -> None:
    """Serve one connection after the other."""
    if sys.argv[1:]:
        os.sched_setaffinity(0, {int(sys.argv[1])})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection:
                try:
                    _KINDS[connection.recv(1)](connection)
                except (EOFError, ConnectionError):
                    pass  # the client has what it wanted


if __name__ == "__main__":
    main()
