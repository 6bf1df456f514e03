"""Pyro5: a daemon with its own kind of thread pool, and a proxy for each thread that calls."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import Pyro5
import Pyro5.api

from benchmarks import functions, timing

VERSION = Pyro5.__version__
_THREADS = 80


@Pyro5.api.expose
class Worker:
    def noop(self) -> None:
        functions.noop()

    def millisecond(self) -> None:
        functions.millisecond()


def _serve() -> None:
    Pyro5.api.config.THREADPOOL_SIZE = _THREADS
    daemon = Pyro5.api.Daemon()
    print(daemon.register(Worker()), flush=True)
    daemon.requestLoop()


class _Server:
    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-m", __name__], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        self.proxy = Pyro5.api.Proxy(self.address)

    def close(self) -> None:
        self.proxy._pyroRelease()
        self._process.kill()
        self._process.wait()


class Peer:
    def __init__(self) -> None:
        self._server = _Server()

    def call(self) -> None:
        self._server.proxy.noop()

    def another(self) -> float:
        servers: list[_Server] = []

        def run() -> None:
            servers.append(_Server())
            servers[0].proxy.noop()

        seconds = timing.once(run)
        servers[0].close()
        return seconds

    def latency(self, n: int) -> float:
        timing.warm(self.call)
        return timing.median(self.call, n)

    def _threads(self, method: str, n: int, width: int) -> float:
        def caller() -> Callable[[], object]:
            made: list[Pyro5.api.Proxy] = []

            def call() -> None:
                if not made:  # a proxy belongs to the thread that makes it
                    made.append(Pyro5.api.Proxy(self._server.address))
                getattr(made[0], method)()

            return call

        return timing.in_threads([caller() for _ in range(width)], n)

    def in_flight(self, n: int, width: int) -> float:
        return n / self._threads("noop", n, width)

    def sleeps(self, n: int, width: int) -> float:
        return self._threads("millisecond", n, width)

    def close(self) -> None:
        self._server.close()


if __name__ == "__main__":
    _serve()
