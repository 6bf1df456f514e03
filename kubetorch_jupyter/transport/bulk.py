"""Payloads too long for a frame: HTTP beside the session, straight from and into their final memory.

The standard library's `http.client` in a few threads is the fastest way measured (docs/architecture.md): no joining, no
second copy. A transfer that breaks is taken up again until the call it belongs to has ended.
"""

from __future__ import annotations

import asyncio
import http.client
import logging
import queue
import random
import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..errors import KubetorchError, RecordExpiredError
from .endpoint import Endpoint
from .payload import PIECE, Broken, Inbound, Outbound, Transfer
from .shared_files import FILE_HEADER
from .tunnel import proxy_headers
from .websocket import POD_HEADER, TOKEN_HEADER, refusal

if TYPE_CHECKING:
    from pod_server.wire import Buffer

__all__ = ["Bulk"]

log = logging.getLogger(__name__)

#: Threads (and connections) for transfers of one session, at most.
_THREADS = 4
#: A thread without work ends after this many seconds.
_IDLE = 10.0
#: A transfer on which nothing moves for this many seconds is broken off and taken up anew.
_STALLED = 10.0
_CONNECT_TIMEOUT = 5.0
_SOCKET_BUFFER = 4 << 20


class Bulk:
    """The transfers of one session; its methods run on the portal, the work in threads that come and go.

    Parameters
    ----------
    endpoint
        The pod.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0
        self._free: list[http.client.HTTPConnection] = []
        self._transfers: set[Transfer] = set()
        self._closed = False

    # -- the portal's side -------------------------------------------------------------------------------------------

    async def upload(self, path: str, buffers: Sequence[Buffer]) -> None:
        """PUT the buffers, one after another; returns when the pod has them or no longer wants them.

        Raises
        ------
        KubetorchError
            When the pod refuses them for good.
        """
        outbound = Outbound(buffers, self._endpoint.folder)
        try:
            await self._until_done(lambda transfer: self._put(transfer, path, outbound))
        finally:
            outbound.forget()

    async def download(self, path: str, lens: Sequence[int]) -> list[memoryview]:
        """GET buffers of these lengths into new memory.

        Raises
        ------
        RecordExpiredError
            When the pod has them no longer.
        """
        inbound = Inbound(lens, self._endpoint.folder)
        await self._until_done(lambda transfer: self._get(transfer, path, inbound))
        return inbound.memory

    async def _until_done(self, step: Callable[[Transfer], None]) -> None:
        """Run ``step`` in a thread, again and again while it breaks; being cancelled ends it."""
        loop = asyncio.get_running_loop()
        transfer = Transfer()
        self._transfers.add(transfer)
        pause = 0.05
        try:
            while True:
                transfer.headers = await self._endpoint.all_headers(transfer.stale)
                transfer.stale = False
                future: asyncio.Future[None] = loop.create_future()
                self._run(lambda future=future: _report(loop, future, step, transfer))  # type: ignore[misc]
                try:
                    await future
                    return
                except Broken as e:
                    log.debug("transfer broken (%s), trying again", e)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, 2.0)
        finally:
            # Also when we were cancelled: the thread must let go of the caller's memory.
            transfer.cancel()
            self._transfers.discard(transfer)

    def close(self) -> None:
        """Break everything off and let the threads end."""
        self._closed = True
        for transfer in list(self._transfers):
            transfer.cancel()
        with self._lock:
            free, self._free = self._free, []
            for _ in range(self._threads):
                self._jobs.put(None)
        for connection in free:
            connection.close()

    # -- threads -----------------------------------------------------------------------------------------------------

    def _run(self, job: Callable[[], None]) -> None:
        with self._lock:
            self._jobs.put(job)
            if self._idle < self._jobs.qsize() and self._threads < _THREADS:
                self._threads += 1
                threading.Thread(target=self._work, name="kubetorch-bulk", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            job: Callable[[], None] | None = None
            try:
                job = self._jobs.get(timeout=_IDLE)
            except queue.Empty:
                pass  # nothing to do for a while: this thread ends
            with self._lock:
                self._idle -= 1
                if job is None and not self._jobs.empty() and not self._closed:
                    continue  # one came in just now and counts on us
                if job is None:
                    self._threads -= 1
                    return
            job()
            del job  # it holds the payload

    # -- in a thread -------------------------------------------------------------------------------------------------

    def _connect(self) -> http.client.HTTPConnection:
        with self._lock:
            if self._free:
                return self._free.pop()
        parts = urlsplit(self._endpoint.url)
        host = parts.hostname or ""
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            connection = _HTTPS(self._endpoint, host, parts.port)
        else:
            connection = http.client.HTTPConnection(host, parts.port, timeout=_CONNECT_TIMEOUT, blocksize=PIECE)
        connection.connect()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        connection.sock.settimeout(_STALLED)
        return connection

    def _release(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if not self._closed and connection.sock is not None and len(self._free) < _THREADS:
                self._free.append(connection)
                return
        connection.close()

    def _begin(
        self,
        transfer: Transfer,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        headers: Mapping[str, str],
    ) -> None:
        prefix = urlsplit(self._endpoint.url).path
        connection.putrequest(method, prefix + path, skip_accept_encoding=True)
        for name, value in {**transfer.headers, TOKEN_HEADER: self._endpoint.token, **headers}.items():
            connection.putheader(name, value)
        connection.endheaders()

    def _exchange(
        self, transfer: Transfer, work: Callable[[http.client.HTTPConnection], http.client.HTTPResponse]
    ) -> None:
        """Do ``work`` on a connection; whatever the network does becomes `Broken`."""
        if transfer.cancelled or self._closed:
            return
        connection: http.client.HTTPConnection | None = None
        try:
            connection = self._connect()
            transfer.using(connection)
            response = work(connection)
            transfer.using(None)
            if response.isclosed() and not response.will_close:
                self._release(connection)
                connection = None
        except (OSError, http.client.HTTPException) as e:
            if isinstance(e, KubetorchError):
                raise  # some of ours are OSErrors, too
            raise Broken(f"{type(e).__name__}: {e}") from e
        finally:
            transfer.using(None)
            if connection is not None:
                connection.close()

    def _put(self, transfer: Transfer, path: str, outbound: Outbound) -> None:
        def work(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
            self._begin(transfer, connection, "PUT", path, outbound.headers())
            sent_before = outbound.sent
            try:
                outbound.send(connection.sock, transfer)
            except OSError as e:
                # It may have answered before it had read everything; the answer says more than the broken pipe.
                try:
                    response = connection.getresponse()
                except (OSError, http.client.HTTPException):
                    raise e from None
            else:
                response = connection.getresponse()
            text = response.read(2000).decode("utf-8", "replace").strip()
            if response.status == 409:
                if sent_before:
                    return response  # it has had all of it already, only the answer got lost
                raise Broken("the pod isn't waiting for it; the call's frame may still be on its way")
            if response.status == 422 and outbound.file is not None:
                outbound.forget()
                raise Broken(f"the pod doesn't take the file: {text}")
            self._check(transfer, response, text, (200, 204))
            return response

        file = outbound.file
        try:
            outbound.write(transfer)
            self._exchange(transfer, work)
        finally:
            if transfer.cancelled and file is not None:
                file.remove()  # who cancelled may have done that before there was one

    def _get(self, transfer: Transfer, path: str, inbound: Inbound) -> None:
        file = inbound.file()

        def work(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
            self._begin(transfer, connection, "GET", path, inbound.headers(file))
            response = connection.getresponse()
            if file is not None and response.status == 204 and response.getheader(FILE_HEADER) == file.name:
                response.read()  # nothing, but http.client takes it for closed only then
                inbound.take(file)
                return response
            if response.status not in (200, 206):
                text = response.read(2000).decode("utf-8", "replace").strip()
                if response.status in (404, 410) and response.getheader(POD_HEADER) is not None:
                    raise RecordExpiredError(service=self._endpoint.service)
                self._check(transfer, response, text, ())
            if response.status == 200:
                inbound.done = 0  # it doesn't know Range: from the start
            inbound.fill(response, transfer)
            if not response.isclosed():
                response.read(1)  # http.client takes it for closed only when it has seen the end
            return response

        try:
            self._exchange(transfer, work)
        finally:
            if file is not None:
                file.remove()

    def _check(self, transfer: Transfer, response: http.client.HTTPResponse, text: str, good: tuple[int, ...]) -> None:
        status = response.status
        if status in good:
            return
        ours = response.getheader(POD_HEADER) is not None
        if status == 401 and not ours and self._endpoint.credentials is not None and not transfer.renewed:
            transfer.stale = transfer.renewed = True
            raise Broken("the proxy refused our credentials")
        if status in (400, 404) and not ours:
            raise Broken("the proxy doesn't find the pod, or has no address for it yet")
        if status in (408, 425, 429, 500, 502, 503, 504) and not (ours and status == 500):
            raise Broken(f"status {status}")
        raise refusal(self._endpoint, status, ours, text)


class _HTTPS(http.client.HTTPSConnection):
    """HTTPS, perhaps through a proxy, to a server whose certificate may have another name than its host."""

    def __init__(self, endpoint: Endpoint, host: str, port: int | None) -> None:
        way = urlsplit(endpoint.proxy) if endpoint.proxy is not None else None
        tls = endpoint.tls or ssl.create_default_context()
        first, first_port = (host, port) if way is None else (way.hostname or "", way.port or 80)
        super().__init__(first, first_port, timeout=_CONNECT_TIMEOUT, context=tls, blocksize=PIECE)
        if endpoint.proxy is not None:
            self.set_tunnel(host, port or 443, proxy_headers(endpoint.proxy))
        self._tls = tls
        self._name = endpoint.tls_name or host

    def connect(self) -> None:
        """As the base, but for the certificate's name."""
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._name)


def _report(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[None],
    step: Callable[[Transfer], None],
    transfer: Transfer,
) -> None:
    """Run a step and tell the portal how it went."""
    error: BaseException | None = None
    try:
        step(transfer)
    except Exception as e:
        error = e

    def tell() -> None:
        if future.done():
            return  # cancelled meanwhile
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(None)

    try:
        loop.call_soon_threadsafe(tell)
    except RuntimeError:
        log.debug("a transfer ended after the portal")
