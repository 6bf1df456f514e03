"""Stock httpx and uvicorn: an ASGI app that runs what is posted to it in a thread, and pickles."""

from __future__ import annotations

import asyncio
import pickle
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import uvicorn

from benchmarks import functions, timing

from .spawned import Server, first_result

VERSION = f"{httpx.__version__} + {uvicorn.__version__}"
_THREADS = 64


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS))
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    pieces, more = [], True
    while more:
        message = await receive()
        pieces.append(message["body"])
        more = message.get("more_body", False)
    if scope["path"] == "/echo":
        body = b"".join(pieces)
    else:
        body = pickle.dumps(await asyncio.to_thread(pickle.loads(b"".join(pieces))))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def _serve() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    server.run(sockets=[listener])


class _Server(Server):
    def __init__(self) -> None:
        super().__init__(__name__)
        self.url = f"http://127.0.0.1:{int(self.said)}"
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def call(self, function: Callable[[], Any]) -> Any:
        return pickle.loads(self.client.post("/call", content=pickle.dumps(function)).content)

    def close(self) -> None:
        self.client.close()
        super().close()


class Peer:
    def __init__(self) -> None:
        self._server = _Server()

    def call(self) -> None:
        self._server.call(functions.noop)

    def another(self) -> float:
        return first_result(_Server, lambda server: server.call(functions.noop))

    def latency(self, n: int) -> float:
        timing.warm(self.call)
        return timing.median(self.call, n)

    def _many(self, function: Callable[[], None], n: int, width: int) -> float:
        async def run() -> None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
            async with httpx.AsyncClient(
                base_url=self._server.url, limits=limits, timeout=60, trust_env=False
            ) as client:

                async def some(times: int) -> None:
                    for _ in range(times):
                        pickle.loads((await client.post("/call", content=pickle.dumps(function))).content)

                await asyncio.gather(*(some(n // width) for _ in range(width)))

        return timing.once(lambda: asyncio.run(run()))

    def in_flight(self, n: int, width: int) -> float:
        n = min(n, 5 * width)  # it takes long
        return n // width * width / self._many(functions.noop, n, width)

    def sleeps(self, n: int, width: int) -> float:
        return self._many(functions.millisecond, n, width)

    def bulk(self, size: int) -> float:
        array = np.ones(size, dtype=np.uint8)

        def run() -> None:
            back = np.frombuffer(self._server.client.post("/echo", content=array.tobytes()).content, dtype=np.uint8)
            assert back.nbytes == size

        return 2 * size / timing.best(run, 2)

    def close(self) -> None:
        self._server.close()


if __name__ == "__main__":
    _serve()
