"""Bare pods: the limits of what runs on a cluster. A Job with one container, without anything of ours but the bundle.

They are reached by the very same ways as a service's pods: the API server's proxy of the pod, or the pod's address.
"""

from __future__ import annotations

import asyncio
import http.client
import secrets
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import websockets

from kubetorch_jupyter.backends.kubernetes import access
from kubetorch_jupyter.backends.kubernetes.bundle import the_bundle
from kubetorch_jupyter.backends.kubernetes.client import Cluster, Kind
from kubetorch_jupyter.backends.kubernetes.names import bundle_name
from kubetorch_jupyter.transport.endpoint import Endpoint

__all__ = ["ANSWERS", "ECHOES", "Bare", "Way", "bulk", "in_flight", "latency"]

_LABEL = "kubetorch.dev/benchmark"
#: Seconds between two looks whether the pod answers, and until it is given up: its script has failed.
_PROBE = 0.04
_TOO_LONG = 60.0

#: Puts the bundle on the path, as ``boot.py`` does it for the front.
_UNPACK = """
import sys
sys.path.insert(0, "/kubetorch/bundle")
import boot
boot._set_path(boot._unpack("/kubetorch/bundle/bundle.tar.xz", "/kubetorch/lib"), "front")
"""
#: Imports what the front imports, opens a port, and answers.
ANSWERS = (
    _UNPACK
    + """
from pod_server.front import preload
preload()
import asyncio

async def answer(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.0 200 OK\\r\\ncontent-length: 0\\r\\nx-kubetorch-pod: bare\\r\\n\\r\\n")
    writer.close()

async def serve():
    async with await asyncio.start_server(answer, "0.0.0.0", 32300) as server:
        await server.serve_forever()

asyncio.run(serve())
"""
)
#: Gives back what it gets: the body of a POST, and the messages of a WebSocket on the next port.
ECHOES = (
    _UNPACK
    + """
import asyncio, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from websockets.asyncio.server import serve

class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    memory = memoryview(bytearray(64 << 20))

    def do_GET(self):
        self.send_response(200)
        self.send_header("x-kubetorch-pod", "bare")
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self):
        size, got = int(self.headers["content-length"]), 0
        while got < size:
            got += self.rfile.readinto(self.memory[got : min(got + (4 << 20), size)])
        self.send_response(200)
        self.send_header("content-length", str(size))
        self.end_headers()
        self.wfile.write(self.memory[:size])

    def log_message(self, *args):
        pass

async def echo(connection):
    async for message in connection:
        await connection.send(message)

async def main():
    async with serve(echo, "0.0.0.0", 32301, compression=None):
        threading.Thread(target=ThreadingHTTPServer(("0.0.0.0", 32300), Echo).serve_forever).start()
        await asyncio.get_running_loop().create_future()

asyncio.run(main())
"""
)


@dataclass(frozen=True)
class Way:
    """One way to a port of a bare pod."""

    url: str
    headers: Mapping[str, str]
    tls: ssl.SSLContext | None
    tls_name: str | None


class Bare:
    """One bare pod, from its Job's creation to its deletion; on the portal.

    Parameters
    ----------
    cluster, namespace
        Where; a service of this package's version must live there, since its ConfigMap is what the pod mounts.
    image
        The container's.
    """

    def __init__(self, cluster: Cluster, namespace: str, image: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.image = image
        self.name = f"bare-{secrets.token_hex(4)}"
        self.pod: dict[str, Any] = {}

    async def start(self, script: str) -> float:
        """Create the Job; seconds until the first HTTP answer of its pod has come through the proxy."""
        manifest = await self._manifest(script)
        # As for a service, whose watch runs already when it is deployed.
        selector = f"{_LABEL}={self.name}"
        _, version = await self.cluster.list(Kind.POD, self.namespace, selector)
        opened = asyncio.Event()
        watch = self.cluster.watch(Kind.POD, self.namespace, selector=selector, version=version, opened=opened.set)
        seen = asyncio.ensure_future(self._addressed(watch))
        await opened.wait()
        start = time.perf_counter()
        await self.cluster.create(Kind.JOB, self.namespace, manifest)
        self.pod = await seen
        endpoint = await self.endpoint()
        while (why := await access.probe(endpoint)) is not None:
            if time.perf_counter() - start > _TOO_LONG:
                raise RuntimeError(f"the bare pod {self.name} doesn't answer: {why}")
            await asyncio.sleep(_PROBE)  # as a deploy does
        return time.perf_counter() - start

    async def _addressed(self, watch: Any) -> dict[str, Any]:
        async for _, pod in watch:
            if (pod.get("status") or {}).get("podIP"):
                await watch.aclose()
                return dict(pod)
        raise RuntimeError("the watch ended before the pod had an address")

    async def endpoint(self) -> Endpoint:
        """The pod's port 32300, through the proxy."""
        return await access.endpoint(self.cluster, self.namespace, self.name, self.pod, "none")

    async def ways(self) -> tuple[Way, Way]:
        """Directly, and through the proxy."""
        endpoint = await self.endpoint()
        direct = Way(f"http://{self.pod['status']['podIP']}:{access.PORT}", {}, None, None)
        return direct, Way(endpoint.url, await endpoint.all_headers(), endpoint.tls, endpoint.tls_name)

    async def end(self) -> None:
        """Delete it, at once."""
        await self.cluster.delete(Kind.JOB, self.namespace, self.name)
        if self.pod:
            await self.cluster.delete(Kind.POD, self.namespace, self.pod["metadata"]["name"], grace=0)

    async def _manifest(self, script: str) -> dict[str, Any]:
        container = {
            "name": "bare",
            "image": self.image,
            "command": ["python3", "-c", script],
            # The front's requests, so that both have the same share of a busy node.
            "resources": {"requests": {"cpu": "20m", "memory": "96Mi"}},
            "volumeMounts": [
                {"name": "bundle", "mountPath": "/kubetorch/bundle"},
                {"name": "lib", "mountPath": "/kubetorch/lib"},
            ],
        }
        volumes = [
            {"name": "bundle", "configMap": {"name": bundle_name((await the_bundle()).hash)}},
            {"name": "lib", "emptyDir": {}},
        ]
        spec = {"restartPolicy": "Never", "enableServiceLinks": False, "automountServiceAccountToken": False}
        template = {
            "metadata": {"labels": {_LABEL: self.name}},
            "spec": {**spec, "terminationGracePeriodSeconds": 1, "containers": [container], "volumes": volumes},
        }
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": self.name, "labels": {_LABEL: self.name}},
            # Whatever happens to this process, it is gone in an hour.
            "spec": {"activeDeadlineSeconds": 3600, "ttlSecondsAfterFinished": 5, "template": template},
        }


# -- what is measured with one that echoes ---------------------------------------------------------------------------


def _connect(way: Way) -> Any:
    url = way.url.replace("http", "ws", 1).replace(str(access.PORT), str(access.PORT + 1))
    more = {"server_hostname": way.tls_name} if way.tls_name else {}
    tls = {"ssl": way.tls, **more} if way.tls is not None else {}
    return websockets.connect(
        f"{url}/", additional_headers=dict(way.headers), compression=None, proxy=None, open_timeout=5, **tls
    )


def latency(way: Way, n: int) -> float:
    """Seconds of a WebSocket message of 100 bytes there and back, the median of ``n``."""

    async def run() -> float:
        message, times = b"x" * 100, []
        async with _connect(way) as connection:
            for _ in range(n):
                start = time.perf_counter()
                await connection.send(message)
                await connection.recv()
                times.append(time.perf_counter() - start)
        return sorted(times)[n // 2]

    return asyncio.run(run())


def in_flight(way: Way, n: int, width: int) -> float:
    """WebSocket messages of 100 bytes a second there and back, with ``width`` on the way, each sent by itself."""

    async def run() -> float:
        message = b"x" * 100
        async with _connect(way) as connection:
            start = time.perf_counter()
            for _ in range(width):
                await connection.send(message)
            for i in range(n):
                await connection.recv()
                if i < n - width:
                    await connection.send(message)
            return n / (time.perf_counter() - start)

    return asyncio.run(run())


class _CutOffError(Exception):
    """The API server has cut an answer off."""


def bulk(way: Way, size: int) -> float:
    """Seconds for a POST of ``size`` bytes whose answer is the same bytes, on a connection that is open already.

    The API server's proxy cuts some off: when an answer begins before the proxy has seen that the request has ended,
    Go's server and its client both want to read the rest of the body. Those are asked for again, and not counted.
    """
    for _ in range(9):
        try:
            return _bulk(way, size)
        except _CutOffError:
            pass
    return _bulk(way, size)


def _bulk(way: Way, size: int) -> float:
    data, back = memoryview(bytearray(size)), memoryview(bytearray(size))
    parts = urlsplit(way.url)
    connection: http.client.HTTPConnection
    if way.tls is not None:
        connection = http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=30, context=way.tls, blocksize=1 << 20
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30, blocksize=1 << 20)
    try:
        connection.connect()
        start = time.perf_counter()
        connection.request("POST", f"{parts.path}/", body=data, headers=dict(way.headers))
        response = connection.getresponse()
        got = 0
        while got < size:
            n = response.readinto(back[got:])
            if not n:
                raise _CutOffError(f"the answer ended after {got} of {size} bytes, status {response.status}")
            got += n
        return time.perf_counter() - start
    finally:
        connection.close()
