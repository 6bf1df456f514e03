"""pyzmq: the guide's multithreaded server (ROUTER to DEALER, a thread for each call that runs), and pickles."""

from __future__ import annotations

import itertools
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import zmq

from benchmarks import timing
from benchmarks.functions import echo, millisecond, noop

from .spawned import Server, first_result

VERSION = zmq.__version__
_THREADS = 64


def _pack(value: Any) -> list[Any]:
    buffers: list[pickle.PickleBuffer] = []
    return [pickle.dumps(value, protocol=5, buffer_callback=buffers.append), *(b.raw() for b in buffers)]


def _unpack(frames: list[Any]) -> Any:
    return pickle.loads(frames[0].buffer, buffers=[frame.buffer for frame in frames[1:]])


def _work(context: zmq.Context[Any]) -> None:
    with context.socket(zmq.REP) as socket:
        socket.connect("inproc://work")
        while True:
            function, arguments = _unpack(socket.recv_multipart(copy=False))
            socket.send_multipart(_pack(function(*arguments)), copy=False)


def _serve() -> None:
    context = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    port = front.bind_to_random_port("tcp://127.0.0.1")
    back.bind("inproc://work")
    for _ in range(_THREADS):
        threading.Thread(target=_work, args=(context,), daemon=True).start()
    print(port, flush=True)
    zmq.proxy(front, back)


class _Server(Server):
    """A process, and a client's socket to it."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        super().__init__(__name__)
        self.address = f"tcp://127.0.0.1:{int(self.said)}"
        self._socket = context.socket(zmq.REQ)
        self._socket.connect(self.address)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self._socket.send_multipart(_pack((function, arguments)), copy=False)
        return _unpack(self._socket.recv_multipart(copy=False))

    def close(self) -> None:
        self._socket.close(0)
        super().close()


class Peer:
    def __init__(self) -> None:
        self._context = zmq.Context()
        self._server = _Server(self._context)

    def call(self) -> None:
        self._server.call(noop)

    def another(self) -> float:
        return first_result(lambda: _Server(self._context), lambda server: server.call(noop))

    def latency(self, n: int) -> float:
        timing.warm(self.call)
        return timing.median(self.call, n)

    def _windowed(self, function: Callable[[], None], n: int, width: int) -> float:
        """Seconds for ``n`` calls, ``width`` at once; each answer goes to the call that it belongs to."""
        open_calls: dict[bytes, Future[Any]] = {}
        numbers = itertools.count()
        with self._context.socket(zmq.DEALER) as socket:
            socket.connect(self._server.address)

            def send() -> None:
                call = b"%d" % next(numbers)
                open_calls[call] = Future()
                # What stands before the empty frame comes back with the answer.
                socket.send_multipart([call, b"", *_pack((function, ()))], copy=False)

            def run() -> None:
                for _ in range(width):
                    send()
                for i in range(n):
                    call, _, *answer = socket.recv_multipart(copy=False)
                    open_calls.pop(call.bytes).set_result(_unpack(answer))
                    if i < n - width:
                        send()

            return timing.once(run)

    def in_flight(self, n: int, width: int) -> float:
        self._windowed(noop, n // 10 + width, width)
        return n / self._windowed(noop, n, width)

    def sleeps(self, n: int, width: int) -> float:
        return self._windowed(millisecond, n, width)

    def bulk(self, size: int) -> float:
        array = np.ones(size, dtype=np.uint8)

        def run() -> None:
            assert self._server.call(echo, array).nbytes == size

        return 2 * size / timing.best(run, 2)

    def close(self) -> None:
        self._server.close()
        self._context.destroy(0)


if __name__ == "__main__":
    _serve()
