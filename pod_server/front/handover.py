"""Payloads that a client of this machine writes to the bulk directory, or takes from it, by itself.

Client and pod are the same user's processes, so a large payload needs no connection: a request names a file instead of
having a body, and the file gets another name. The client chooses that name, nobody can guess it, and it is looked at
before it is used, as is what lies there. What a client that has been killed leaves behind is removed after some
seconds.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import stat
import time

__all__ = ["FILE_HEADER", "Handover"]

_log = logging.getLogger(__name__)

#: Names the file that stands for a request's body, or for its answer's.
FILE_HEADER = b"x-kubetorch-file"
#: What a client may call a file. Neither we nor workers give such names.
_NAME = re.compile(rb"client-[0-9a-f]{32}", re.ASCII)
#: After so many seconds without a change nobody is going to fetch a file, or to hand it over.
_ABANDONED = 5.0
#: The clock of files may be so many seconds behind.
_SLACK = 0.05


class Handover:
    """The files of clients in the bulk directory.

    Parameters
    ----------
    directory
        The bulk directory.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._timer: asyncio.TimerHandle | None = None

    def accept(self, given: bytes, size: int, name: str) -> str | None:
        """Give a client's file a name of ours; a line for people when it is not what it should be.

        Parameters
        ----------
        given
            What the client calls it.
        size
            The bytes that it must have.
        name
            The new name.
        """
        path = self._path(given)
        if path is None:
            return "this is no name for a file that is handed over"
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return "there is no such file"
        # A second name of it might be a file that only looks like the client's.
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
            return "this is not a file that was made to be handed over"
        if found.st_size != size:
            return f"the file has {found.st_size} bytes, its frame announced {size}"
        try:
            os.rename(path, os.path.join(self._directory, name))
        except FileNotFoundError:
            return "there is no such file"  # its client has just given it up
        return None

    def lend(self, path: str, wanted: bytes) -> bool:
        """Give a file a second name, under which the client takes it; False when it can't have that."""
        target = self._path(wanted)
        if target is None:
            return False
        try:
            os.link(path, target, follow_symlinks=False)
        except OSError as e:
            _log.info("a file can't be lent: %s", e)
            return False
        self.expire()
        return True

    def _path(self, name: bytes) -> str | None:
        return os.path.join(self._directory, name.decode()) if _NAME.fullmatch(name) else None

    def expire(self) -> None:
        """Look for files that nobody wants any more, as soon as there can be some: a client may have ended."""
        if self._timer is None:
            self._look_after(_ABANDONED)

    def _look_after(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds + _SLACK, self._remove_abandoned)

    def _remove_abandoned(self) -> None:
        self._timer = None
        youngest = None
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return  # the user's code has removed it all
        for name in names:
            if _NAME.fullmatch(os.fsencode(name)) is None:
                continue
            path = os.path.join(self._directory, name)
            try:
                # A link, a rename and each piece that is written change it.
                age = time.time() - os.lstat(path).st_ctime
                if age >= _ABANDONED:
                    os.unlink(path)
                else:
                    youngest = min(age, youngest) if youngest is not None else age
            except FileNotFoundError:
                pass  # it has been taken meanwhile
        if youngest is not None:
            self._look_after(_ABANDONED - youngest)
