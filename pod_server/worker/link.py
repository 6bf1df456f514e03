"""The way to the front: any thread puts frames in, whoever finds nobody writing writes for all.

Results that several threads finish at the same time go out in one write, and no thread is woken only to write.
"""

from __future__ import annotations

import collections
import socket
import threading
from collections.abc import Iterable

__all__ = ["Link"]

#: How much is joined into one write.
_GATHER = 256 * 1024
#: With more frames than this waiting, a producer of logs or items has to wait too.
_HIGH = 256


class Link:
    """The sending half of the connection to the front.

    Parameters
    ----------
    sock
        A connected, blocking stream socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._out: collections.deque[bytes] = collections.deque()
        self._writing = threading.Lock()
        self._writer = 0
        self.closed = False

    @property
    def writing_here(self) -> bool:
        """Whether this thread is in the midst of writing, so that what runs is a finalizer or a signal's handler."""
        return self._writer == threading.get_ident()

    def post(self, frames: Iterable[bytes]) -> None:
        """Put frames in line, in order, without writing."""
        self._out.extend(frames)

    def send(self, frame: bytes) -> None:
        """Put a frame in line and see that it is written."""
        self._out.append(frame)
        self.flush()

    def flush(self, wait: bool = False) -> None:
        """Write what is in line, or leave it to the thread that is writing now.

        Parameters
        ----------
        wait
            Wait for that thread when very much is in line: back-pressure for who produces without end.
        """
        out, lock = self._out, self._writing
        if wait and len(out) > _HIGH and self._writer != threading.get_ident():
            with lock:
                self._write()
        # Looked at again after the release: what was put in line while this thread held the lock is its to write.
        # A finalizer that prints while this thread writes finds the lock taken; its frames are taken by that loop.
        while out and lock.acquire(False):
            try:
                self._write()
            finally:
                lock.release()

    def finish(self) -> None:
        """Write what is in line, and wait until it is written."""
        if self._writer != threading.get_ident():
            with self._writing:
                self._write()

    def _write(self) -> None:
        self._writer = threading.get_ident()
        out = self._out
        try:
            while out:
                data = out.popleft()
                if out:
                    parts, size = [data], len(data)
                    while out and size < _GATHER:
                        data = out.popleft()
                        parts.append(data)
                        size += len(data)
                    data = b"".join(parts)
                if not self.closed:
                    self._sock.sendall(data)
        except OSError:
            # The front is gone; the i/o thread reads the end of the connection and ends the process.
            self.closed = True
            out.clear()
        finally:
            self._writer = 0

    def abandon(self) -> None:
        """In a forked child: the connection is the parent's."""
        self.closed = True
        self._writing = threading.Lock()
        self._out = collections.deque()
        self._sock.close()
