"""Payloads of calls: inside their frames, or in files of the bulk directory when they are large."""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Sequence
from typing import Any

from ..serialization import nbytes
from ..wire import F_BULK, F_ERROR, INLINE_LIMIT, Frame, FrameType, WireError, encode

__all__ = ["Bulk", "arguments"]

Buffer = bytes | bytearray | memoryview

#: Arrays in a file begin at a multiple of this, as far as those before them allow it.
_ALIGN = 64


class Bulk:
    """Reads and writes payloads that don't fit a frame.

    Parameters
    ----------
    directory
        Where the files are.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._prefix = f"w{os.getpid()}-{os.urandom(4).hex()}-"
        self._number = itertools.count()

    def buffers(self, frame: Frame, meta: dict[str, Any]) -> Sequence[Buffer]:
        """The buffers of a frame that came; those of a file are mapped, not read, and can be written to.

        Raises
        ------
        OSError
            When the file isn't there or can't be mapped.
        ValueError
            When it is not as long as the frame says.
        """
        if not frame.flags & F_BULK:
            return frame.buffers
        path = os.path.join(self.directory, os.path.basename(meta["file"]))
        lens = meta["lens"]
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            if size != sum(lens):
                raise ValueError(f"the payload {path} has {size} bytes and should have {sum(lens)}")
            # Pages are shared with the file until somebody writes to them.
            whole = (
                memoryview(mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)) if size else None
            )
        finally:
            os.close(fd)
            os.unlink(path)
        out: list[Buffer] = []
        at = 0
        for n in lens:
            out.append(whole[at : at + n] if whole is not None else b"")
            at += n
        return out

    def frame(
        self,
        type: FrameType,
        channel: int,
        meta: dict[str, Any],
        buffers: Sequence[Buffer],
        flags: int = 0,
    ) -> bytes:
        """The frame of a payload; a large one is written to a file first.

        Raises
        ------
        OSError
            When the file can't be written.
        """
        if len(buffers) == 1 and len(buffers[0]) <= INLINE_LIMIT and not flags & F_ERROR:
            return encode(type, channel, meta, buffers, flags)
        if nbytes(buffers) + 4 * len(buffers) <= INLINE_LIMIT:
            try:
                return encode(type, channel, meta, buffers, flags)
            except WireError:
                if not buffers:
                    raise  # a long meta, an error's message perhaps, takes the room of the buffers
        if len(buffers) > 1 and "ser" not in meta and not flags & F_ERROR and len(buffers[0]) % _ALIGN:
            # What follows a pickle's end is not looked at, so it can be as long as the arrays behind it like. An
            # exception begins with JSON, which nothing may follow.
            buffers = [bytes(buffers[0]) + bytes(-len(buffers[0]) % _ALIGN), *buffers[1:]]
        name = f"{self._prefix}{next(self._number)}"
        self._write(os.path.join(self.directory, name), buffers)
        lens = [b.nbytes if isinstance(b, memoryview) else len(b) for b in buffers]
        return encode(type, channel, {**meta, "file": name, "lens": lens}, (), flags | F_BULK)

    def _write(self, path: str, buffers: Sequence[Buffer]) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for buffer in buffers:
                left = memoryview(buffer)
                while left:
                    left = left[os.write(fd, left) :]
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)


def arguments(value: Any, ser: str) -> tuple[Sequence[Any], dict[str, Any]]:
    """Positional and keyword arguments of a decoded CALL.

    A pickle is of ``(args, kwargs)``; JSON is ``[args, kwargs]`` or ``{"args": ..., "kwargs": ...}``; bytes are
    the only argument.

    Raises
    ------
    TypeError
        When it is none of these.

    Examples
    --------
    >>> arguments({"args": [1]}, "json")
    ([1], {})
    """
    if ser == "none":
        return (value,), {}
    if isinstance(value, dict) and value.keys() <= {"args", "kwargs"}:
        value = value.get("args", []), value.get("kwargs", {})
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError('the arguments of a call are {"args": [...], "kwargs": {...}}')
    args, kwargs = value
    if not isinstance(args, (tuple, list)) or not isinstance(kwargs, dict):
        raise TypeError('the arguments of a call are {"args": [...], "kwargs": {...}}')
    return args, kwargs
