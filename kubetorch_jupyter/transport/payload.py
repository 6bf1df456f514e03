"""One payload on its way beside a session: what is to be sent, what is being received, and how it is broken off.

A `Bulk` does the requests; here is what it sends, and where what it gets is put.
"""

from __future__ import annotations

import http.client
import io
import logging
import mmap
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .shared_files import FILE_HEADER, SharedFile

if TYPE_CHECKING:
    from pod_server.wire import Buffer

__all__ = ["PIECE", "Broken", "Inbound", "Outbound", "Transfer", "allocate"]

log = logging.getLogger(__name__)

#: How much is given to the socket at once, in bytes; the time limit counts for each such piece.
PIECE = 4 << 20
#: Below this an ordinary bytearray is as good, in bytes.
_SMALL = 256 << 10


class Broken(Exception):
    """Worth another try."""


def allocate(size: int) -> memoryview:
    """Writable memory of ``size`` bytes whose pages have not been touched.

    Page faults are most of the cost of receiving a large array, and a `bytearray`, which is filled with zeros first,
    touches each page twice.

    Examples
    --------
    >>> allocate(1 << 20).nbytes
    1048576
    """
    if size < _SMALL:
        return memoryview(bytearray(size))
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and hasattr(numpy, "empty"):
        return memoryview(numpy.empty(size, dtype=numpy.uint8))
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            log.debug("this kernel has no huge pages to offer", exc_info=True)
    return memoryview(memory)


class Transfer:
    """One payload under way; `cancel` breaks it off from any thread."""

    def __init__(self) -> None:
        self.cancelled = False
        #: The next request's, without our token.
        self.headers: Mapping[str, str] = {}
        #: Whether a proxy has just refused the last ones, and whether newer credentials have been got for that once.
        self.stale = False
        self.renewed = False
        self._connection: http.client.HTTPConnection | None = None

    def using(self, connection: http.client.HTTPConnection | None) -> None:
        """What to close when it is cancelled."""
        self._connection = connection

    def cancel(self) -> None:
        """Break it off: the thread that waits on the socket wakes up with an error."""
        self.cancelled = True
        connection = self._connection
        sock = connection.sock if connection is not None else None
        if sock is not None:
            try:
                # Of an SSL socket, too, no more than that: its own shutdown takes the TLS away from who reads on it.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                log.debug("the transfer's connection was closed already", exc_info=True)


class Outbound:
    """What is to be uploaded.

    Parameters
    ----------
    buffers
        The payload.
    folder
        Where the pod takes files from.
    """

    def __init__(self, buffers: Sequence[Buffer], folder: str | None) -> None:
        views = [memoryview(buffer) for buffer in buffers]
        self._views = [view.cast("B") for view in views if view.nbytes]
        self.size = sum(view.nbytes for view in self._views)
        #: Whether all of it has been given to the pod once.
        self.sent = False
        #: The file that holds it, or shall; None: it goes over the connection.
        self.file = SharedFile(folder) if folder is not None and self.size else None
        self._written = False

    def write(self, transfer: Transfer) -> None:
        """Write the file, if there is to be one and it isn't there yet."""
        file = self.file
        if file is None or self._written or transfer.cancelled:
            return
        try:
            self._written = file.write(self._views, lambda: transfer.cancelled)
        except OSError as e:
            log.debug("a payload goes over the connection and not in a file: %s", e)
            self.forget()

    def forget(self) -> None:
        """Remove the file, if the pod hasn't taken it; what is sent from now on goes over the connection."""
        file, self.file = self.file, None
        if file is not None:
            file.remove()
            self.sent = False

    def headers(self) -> dict[str, str]:
        """Those of the request, which say what its body is."""
        file = self.file
        if file is not None:
            return {"Content-Length": "0", FILE_HEADER: file.name}
        return {"Content-Length": str(self.size), "Content-Type": "application/octet-stream"}

    def send(self, sock: socket.socket, transfer: Transfer) -> None:
        """Send the request's body, which a file has none of."""
        for view in self._views if self.file is None else ():
            for at in range(0, view.nbytes, PIECE):
                if transfer.cancelled:
                    raise Broken("cancelled")
                sock.sendall(view[at : at + PIECE])
        self.sent = True


class Inbound:
    """What is being downloaded, and how much of it is there.

    Parameters
    ----------
    lens
        The lengths of its buffers.
    folder
        Where the pod may give us a file.
    """

    def __init__(self, lens: Sequence[int], folder: str | None) -> None:
        self._lens = lens
        self._folder = folder if sum(lens) else None
        self.memory: list[memoryview] = []
        self.done = 0

    def file(self) -> SharedFile | None:
        """What the next request is to give it as; None: it comes over the connection."""
        return SharedFile(self._folder) if self._folder is not None and not self.done else None

    def headers(self, file: SharedFile | None) -> dict[str, str]:
        """Those of the request, which say how it is wanted."""
        if file is not None:
            return {FILE_HEADER: file.name}
        return {"Range": f"bytes={self.done}-"} if self.done else {}

    def take(self, file: SharedFile) -> None:
        """Take the file that the pod has given us."""
        try:
            self.memory = file.take(self._lens, allocate)
        except (OSError, ValueError) as e:
            self._folder = None
            raise Broken(f"a payload's file can't be taken: {e}") from e

    def fill(self, response: io.BufferedIOBase, transfer: Transfer) -> None:
        """Read an answer's body."""
        if not self.memory:
            self.memory = [allocate(n) for n in self._lens]
        start = 0
        for view in self.memory:
            end = start + view.nbytes
            while self.done < end:
                if transfer.cancelled:
                    raise Broken("cancelled")
                at = self.done - start
                got = response.readinto(view[at : at + PIECE])
                if not got:
                    raise Broken("the connection ended early")
                self.done += got
            start = end
