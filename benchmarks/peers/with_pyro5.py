"""Pyro5: a daemon with its own kind of thread pool, and a proxy for each thread that calls."""

from __future__ import annotations

from collections.abc import Callable

import Pyro5
import Pyro5.api

from benchmarks import functions, timing

from .spawned import Server, first_result

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


class _Server(Server):
    def __init__(self) -> None:
        super().__init__(__name__)
        self.proxy = Pyro5.api.Proxy(self.said)

    def close(self) -> None:
        self.proxy._pyroRelease()
        super().close()


class Peer:
    def __init__(self) -> None:
        self._server = _Server()

    def call(self) -> None:
        self._server.proxy.noop()

    def another(self) -> float:
        return first_result(_Server, lambda server: server.proxy.noop())

    def latency(self, n: int) -> float:
        timing.warm(self.call)
        return timing.median(self.call, n)

    def _threads(self, method: str, n: int, width: int) -> float:
        def caller() -> Callable[[], object]:
            made: list[Pyro5.api.Proxy] = []

            def call() -> None:
                if not made:  # a proxy belongs to the thread that makes it
                    made.append(Pyro5.api.Proxy(self._server.said))
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
