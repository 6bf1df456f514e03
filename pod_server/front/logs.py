"""One log's bytes: the newest in memory, older ones in files, the oldest gone when a budget says so.

A log is a stream with offsets (``wire.encode_log``); it may only be cut where an entry begins, because what follows a
cut must be readable by itself. Used by `records`; the files lie in ``<dir>/spill``.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from typing import NamedTuple

from ..wire import LogKind, encode_log

__all__ = ["Chunk", "Log", "notice"]

_log = logging.getLogger(__name__)

#: Bytes of one log that stay in memory before they go to a file.
MEMORY = 1 << 20
#: About the size of one file: what is dropped at once when a log is too long.
SEGMENT = 4 << 20
#: How far apart places are remembered at which a log may be cut.
_CUT_EVERY = 64 << 10


class Chunk(NamedTuple):
    """Some of a log: where it begins, its bytes, and whether an entry begins there."""

    start: int
    data: bytes
    entry: bool


class _Segment:
    """One file of a log: the bytes from `start` to `end`."""

    __slots__ = ("cut", "end", "path", "start")

    def __init__(self, path: str, start: int, cut: bool) -> None:
        self.path = path
        self.start = self.end = start
        #: Whether its first byte begins an entry.
        self.cut = cut

    def append(self, data: bytes) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            # A write that failed in the middle (disk full) must not shift what comes after it.
            os.ftruncate(fd, self.end - self.start)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
        self.end += len(data)

    def read(self, offset: int, size: int) -> bytes:
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, min(size, self.end - offset), offset - self.start)
        finally:
            os.close(fd)

    def remove(self) -> None:
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass  # the directory went first: the pod is ending


class Log:
    """A log that takes bytes at its end and gives them from any offset that it still has.

    Parameters
    ----------
    stem
        Path of its files without their suffixes.
    limit
        Bytes that are kept at most; older entries are dropped.

    Examples
    --------
    >>> log = Log("/nonexistent/1", 1 << 20)
    >>> log.append(b"abc", True)
    3
    >>> log.read(1, 10)
    Chunk(start=1, data=b'bc', entry=False)
    """

    __slots__ = (
        "_broken",
        "_cuts",
        "_files",
        "_limit",
        "_newest",
        "_parts",
        "_segment",
        "_stem",
        "_tail",
        "base",
        "end",
    )

    def __init__(self, stem: str, limit: int) -> None:
        self._stem = stem
        self._limit = limit
        self._segment = min(SEGMENT, max(limit // 8, 1))
        #: The first offset that is still there, and the one after the last.
        self.base = 0
        self.end = 0
        self._files: list[_Segment] = []
        self._newest = 0
        #: What is in memory: pieces, and the offset of the first.
        self._parts: list[bytes] = []
        self._tail = 0
        #: Offsets in memory at which an entry begins, not all of them.
        self._cuts: deque[int] = deque()
        #: The middle of an entry was dropped: what comes is of no use until the next entry begins.
        self._broken = False

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self.end - self.base

    def append(self, data: bytes, entry: bool) -> int:
        """Add bytes; by how much the log has grown (less than nothing when older ones had to go).

        Parameters
        ----------
        data
            The bytes.
        entry
            Whether they begin with a new entry.
        """
        before = self.size
        if entry:
            self._broken = False
            if not self._cuts or self.end - self._cuts[-1] >= _CUT_EVERY:
                self._cuts.append(self.end)
        elif self._broken:
            self.end += len(data)
            self.base = self._tail = self.end
            return 0
        self._parts.append(data)
        self.end += len(data)
        if self.end - self._tail > MEMORY:
            self._spill()
            if self.size > self._limit:
                self.trim(self._limit)
        return self.size - before

    def read(self, offset: int, size: int) -> Chunk:
        """Up to `size` bytes from `offset`, or from the first that is still there.

        Raises
        ------
        OSError
            When the file can't be read.
        """
        start = max(offset, self.base)
        if start >= self.end:
            return Chunk(self.end, b"", False)
        for segment in self._files:
            if start < segment.end:
                data = segment.read(start, size)
                return Chunk(start, data, start == self.base or (segment.cut and start == segment.start))
        skip = start - self._tail
        if len(self._parts) > 1:
            # Joined once, not at each read: a reader comes again and again for what follows.
            self._parts = [b"".join(self._parts)]
        whole = self._parts[0]
        data = whole if not skip and len(whole) <= size else whole[skip : skip + size]
        return Chunk(start, data, start == self.base or start in self._cuts)

    def last(self, size: int) -> int:
        """An offset at which an entry begins, with at least the last `size` bytes behind it, or all that there are."""
        for cut in reversed(self._cuts):
            if self.end - cut >= size:
                return cut
        return next((s.start for s in reversed(self._files) if s.cut and self.end - s.start >= size), self.base)

    def trim(self, limit: int) -> None:
        """Drop the oldest entries until no more than `limit` bytes are left, as far as the log can be cut."""
        while self.size > limit:
            files = self._files
            cut = next((i for i in range(1, len(files)) if files[i].cut), None)
            if cut is not None:
                self._forget_files(cut)
                self.base = self._files[0].start
            elif self._cuts and (files or self._cuts[-1] > self.base):
                self._forget_files(len(files))
                self._forget_memory(next((c for c in self._cuts if self.end - c <= limit), self._cuts[-1]))
            else:
                return

    def drop(self) -> None:
        """Forget everything that is here; the offsets go on."""
        self._forget_files(len(self._files))
        self._parts = []
        self._cuts.clear()
        self.base = self._tail = self.end
        self._broken = True

    def _forget_files(self, n: int) -> None:
        for segment in self._files[:n]:
            segment.remove()
        del self._files[:n]

    def _forget_memory(self, start: int) -> None:
        """Let memory and the log begin at `start`, a place where an entry begins."""
        self._parts = [b"".join(self._parts)[start - self._tail :]]
        self._tail = self.base = start
        while self._cuts and self._cuts[0] < start:
            self._cuts.popleft()

    def _spill(self) -> None:
        """Move what is in memory to a file, if possible up to the beginning of an entry."""
        data = b"".join(self._parts)
        cut = self._cuts[-1] if self._cuts and self._cuts[-1] - self._tail >= MEMORY // 2 else self.end
        begins = bool(self._cuts) and self._cuts[0] == self._tail
        last = self._files[-1] if self._files else None
        try:
            if last is None or (begins and last.end - last.start >= self._segment):
                self._newest += 1
                last = _Segment(f"{self._stem}.{self._newest}.log", self._tail, begins)
                self._files.append(last)
            last.append(data[: cut - self._tail])
        except OSError as e:
            # No room for the log is no reason to stop the call: what can't be kept is dropped, and the reader is told
            # ("gap").
            _log.warning("the log %s loses what is older than %d bytes: %s", self._stem, MEMORY // 2, e)
            self._forget_files(len(self._files))
            keep = next((c for c in self._cuts if self.end - c <= MEMORY // 2), None)
            if keep is None:
                self.drop()
            else:
                self._forget_memory(keep)
            return
        self._parts = [data[cut - self._tail :]] if cut < self.end else []
        self._tail = cut
        self._cuts.clear()
        if cut < self.end:
            self._cuts.append(cut)


def notice(text: str) -> bytes:
    """A log entry of ours, one line."""
    return encode_log(LogKind.NOTICE, f"{text}\n".encode())
