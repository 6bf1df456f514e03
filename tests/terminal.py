"""A terminal for tests: runs a process on one, and says what stands on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from typing import Self

__all__ = ["Terminal", "run_in_terminal", "screen"]


def run_in_terminal(command: Sequence[str], env: Mapping[str, str], *, columns: int = 100) -> str:
    """Everything that a command writes to a terminal that is its stdout and stderr."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env={**env, "TERM": "xterm"}
    )
    os.close(theirs)
    written = b""
    try:
        while piece := os.read(ours, 1 << 16):
            written += piece
    except OSError:
        pass  # EIO: nobody has the other side open any more
    finally:
        os.close(ours)
        process.kill()
        process.wait(10)
    return written.decode()


class Terminal:
    """A process with a terminal to itself, typed into: Ctrl-C is ``"\\x03"``.

    Attributes
    ----------
    process
        The process, whose controlling terminal it is.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**env, "TERM": "xterm"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait(10)
        os.close(self._ours)

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._ours, text.encode())

    def read_until(self, pattern: str, timeout: float = 20) -> str:
        """What has been written since the last time, up to a pattern; `AssertionError` when it doesn't come."""
        written, deadline = b"", time.monotonic() + timeout
        while re.search(pattern, text := written.decode(errors="replace")) is None:
            left = max(0, deadline - time.monotonic())
            assert select.select([self._ours], [], [], left)[0], f"no {pattern!r} within {timeout} s\n{text}"
            written += os.read(self._ours, 1 << 16)
        return text


def screen(written: str) -> list[str]:
    """The rows of the screen after all that; knows carriage returns and "erase to the end of the row".

    Examples
    --------
    >>> screen("one\\rtw\\r\\n12345\\r\\x1b[Kthree")
    ['twe', 'three']
    """
    rows: list[list[str]] = [[]]
    column = 0
    for token in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|[^\x1b]", written):
        if token == "\r":
            column = 0
        elif token == "\n":
            rows.append([])
            column = 0
        elif token == "\x1b[K":
            del rows[-1][column:]
        elif not token.startswith("\x1b"):
            row = rows[-1]
            row.extend(" " * (column + 1 - len(row)))
            row[column] = token
            column += 1
    return ["".join(row) for row in rows]
