"""A terminal for tests: runs a process on one, and says what stands on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence

__all__ = ["run_in_terminal", "screen"]


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
