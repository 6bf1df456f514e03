"""One command of an image step: run to its end, its output handed on as it comes and the end of it kept."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Ended", "run_command"]

_READ = 65536
#: Bytes of its output that are kept for an error.
_TAIL = 8192
#: Seconds after its end in which what it left in the pipe is taken.
_AFTERWARDS = 0.1
#: A cancel of the load is seen at least that often, in seconds.
_LOOK = 0.2


@dataclass(frozen=True)
class Ended:
    """How a command ended: its code, as `subprocess` has it, and the end of its output."""

    code: int
    tail: bytes


def run_command(
    argv: Sequence[str],
    *,
    cwd: str,
    env: Mapping[str, str],
    write: Callable[[bytes], None],
    afterwards: Callable[[bytes], None],
) -> Ended:
    """Run a command, in a session of its own and without any input.

    Parameters
    ----------
    argv, cwd, env
        What, where, and with which environment.
    write
        Takes its output, errors included, as it comes.
    afterwards
        Takes what processes that it has left in the background write after its end; called in another thread.

    Raises
    ------
    OSError
        When it can't be started.
    """
    r, w = os.pipe()
    try:
        process = subprocess.Popen(
            argv, cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, stdout=w, stderr=w, start_new_session=True
        )
    except BaseException:
        os.close(r)
        raise
    finally:
        os.close(w)
    os.set_blocking(r, False)
    tail = bytearray()

    def take(data: bytes) -> None:
        tail.extend(data)
        del tail[:-_TAIL]
        write(data)

    try:
        closed = _follow(process, r, take)
    except BaseException:
        # The load was cancelled: nothing of the command goes on.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(r)
        raise
    if closed:
        os.close(r)
    else:
        os.set_blocking(r, True)
        threading.Thread(target=_read_on, args=(r, afterwards), name="kt-step-output", daemon=True).start()
    return Ended(process.returncode, bytes(tail))


def _follow(process: subprocess.Popen[bytes], r: int, take: Callable[[bytes], None]) -> bool:
    """Hand on the output until the process has ended; whether everybody who could write to the pipe has."""
    poll = select.poll()
    poll.register(r, select.POLLIN)
    ended = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else -1
    if ended >= 0:
        poll.register(ended, select.POLLIN)
    closed, deadline = False, 0.0
    try:
        while True:
            # Asked before the look, so that all it wrote itself is in the pipe by then.
            over = process.poll() is not None
            readable = any(fd == r for fd, _ in poll.poll(0 if over else 1000 * _LOOK))
            if readable:
                data = os.read(r, _READ)
                if data:
                    take(data)
                else:
                    closed = True
                    poll.unregister(r)
            if not over:
                continue
            if closed:
                return True
            # Its children may hold the pipe for ever, and fill it.
            deadline = deadline or time.monotonic() + _AFTERWARDS
            if not readable or time.monotonic() > deadline:
                return False
    finally:
        if ended >= 0:
            os.close(ended)


def _read_on(r: int, afterwards: Callable[[bytes], None]) -> None:
    with open(r, "rb", buffering=0) as pipe:
        while data := pipe.read(_READ):
            afterwards(data)
