"""Payloads of pods on this machine: written to, and mapped from, files that we share with the pod.

A copy through a connection costs several times what the memory itself does. A pod of this machine is the same user's
processes and keeps its payloads in files of one folder anyway, so we write them there, or take them from there, and
only their names go over the connection (docs/protocol.md). Whatever is odd makes the payload go by HTTP.
"""

from __future__ import annotations

import logging
import mmap
import os
import secrets
import stat
import weakref
from collections.abc import Callable, Sequence

__all__ = ["FILE_HEADER", "SharedFile"]

log = logging.getLogger(__name__)

#: Names the file that stands for a request's body, or for its answer's.
FILE_HEADER = "X-Kubetorch-File"
#: Left free, for the pod's own files and for everybody else, in bytes.
_SPARE = 64 << 20
#: How much is written or read at once, in bytes; whoever cancels waits for so much.
_PIECE = 4 << 20
#: Below this memory is filled and not mapped, in bytes: a mapping costs a descriptor and some system calls.
_MAPPED = 1 << 20
#: Mappings that this process may have at a time: each holds a descriptor.
_MAPPINGS = 64

_mappings: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


class SharedFile:
    """One file in the pod's folder under a name of ours, which nobody can guess.

    Parameters
    ----------
    folder
        The pod's bulk folder.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.name = f"client-{secrets.token_hex(16)}"

    def _open(self, flags: int) -> tuple[int, int]:
        """Descriptors of the folder and the file.

        Raises
        ------
        OSError
            When one of them isn't there, or isn't ours alone.
        """
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(folder)
            if found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise PermissionError(f"{self._folder} is not only ours")
            return folder, os.open(self.name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        except BaseException:
            os.close(folder)
            raise

    def write(self, views: Sequence[memoryview], cancelled: Callable[[], bool]) -> bool:
        """Make the file of these bytes; False when it was cancelled.

        Raises
        ------
        OSError
            When there is no room, or no such folder.
        """
        folder, fd = self._open(os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            room = os.fstatvfs(folder)
            if room.f_bavail * room.f_frsize < sum(view.nbytes for view in views) + _SPARE:
                raise OSError(f"{self._folder} has no room for the payload")
            for view in views:
                at = 0
                while at < view.nbytes:
                    if cancelled():
                        return False
                    at += os.write(fd, view[at : at + _PIECE])
        finally:
            os.close(fd)
            os.close(folder)
        return True

    def take(self, lens: Sequence[int], allocate: Callable[[int], memoryview]) -> list[memoryview]:
        """The file's buffers, which can be written to; its name is gone afterwards.

        Raises
        ------
        OSError
            When it can't be opened or read.
        ValueError
            When it is not as long as it should be.
        """
        folder, fd = self._open(os.O_RDONLY)
        try:
            os.unlink(self.name, dir_fd=folder)
            total = sum(lens)
            if not stat.S_ISREG(os.fstat(fd).st_mode) or os.fstat(fd).st_size != total:
                raise ValueError(f"a payload's file has {os.fstat(fd).st_size} bytes and should have {total}")
            room = os.fstatvfs(folder)
            # As long as one buffer is mapped the whole file stays, so the others must not be most of it; and what a
            # notebook keeps for long must not fill the room of all payloads.
            least = max(_MAPPED, total // 2) if room.f_bavail > room.f_blocks // 2 else total + 1
            out: list[memoryview] = []
            at = 0
            for n in lens:
                view = _map(fd, at, n) if n >= least else None
                out.append(view if view is not None else _read(fd, at, allocate(n)))
                at += n
            return out
        finally:
            os.close(fd)
            os.close(folder)

    def remove(self) -> None:
        """Remove the file if it still has this name: neither the pod nor we have taken it."""
        try:
            os.unlink(os.path.join(self._folder, self.name))
        except (FileNotFoundError, NotADirectoryError):
            pass  # as it should be
        except OSError:
            log.debug("a payload's file can't be removed; the pod does that", exc_info=True)


def _map(fd: int, at: int, size: int) -> memoryview | None:
    """Private memory of a part of a file; None when it has to be read."""
    # Arrays want to be aligned, which they are when it is their own memory.
    if at % 64 or len(_mappings) >= _MAPPINGS:
        return None
    before = at % mmap.ALLOCATIONGRANULARITY
    try:
        mapped = mmap.mmap(fd, before + size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE, offset=at - before)
    except OSError:
        log.debug("a payload can't be mapped, so it is read", exc_info=True)
        return None
    _mappings.add(mapped)
    return memoryview(mapped)[before:]


def _read(fd: int, at: int, view: memoryview) -> memoryview:
    done = 0
    while done < view.nbytes:
        got = os.preadv(fd, [view[done : done + _PIECE]], at + done)
        if not got:
            raise ValueError("a payload's file became shorter")
        done += got
    return view
