"""What the system says of processes: who lives, who descends from whom, who has ended.

A process is named by its pid *and* the time it began (clock ticks since boot, proc(5)), since pids come back. The calls
that only Linux has are all here; where one is missing the function says so by its result. Used by the zygotes, the
front and the local backend.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

__all__ = [
    "DirectoryWatch",
    "Process",
    "become_subreaper",
    "die_with_parent",
    "is_alive",
    "kill_all",
    "machine",
    "name_process",
    "open_pidfd",
    "start_of",
    "status_text",
    "table",
    "this_process",
    "tree",
]

#: Who doesn't stand still after so many seconds is in a system call that takes long: it is killed as it is.
_STANDING = 0.5

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36


class Process(NamedTuple):
    """One line of the process table."""

    pid: int
    parent: int
    session: int
    start: int
    #: One letter as in proc(5); ``Z`` and ``X`` have ended and only wait for their parent.
    state: str

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.state in "ZX"


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _prctl(option: int, value: int | bytes) -> bool:
    libc = _libc()
    if libc is None:
        return False
    argument = value if isinstance(value, bytes) else ctypes.c_ulong(value)
    return bool(libc.prctl(option, argument, 0, 0, 0) == 0)


def become_subreaper() -> bool:
    """Have orphans below this process become its children instead of init's; False where the system can't."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Have the system kill this process when its parent ends; at once if it has ended already."""
    if _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def name_process(name: str) -> None:
    """Give this process a name for ``ps`` and ``top`` (15 bytes)."""
    _prctl(_PR_SET_NAME, name.encode()[:15])


def _read(which: int | str) -> Process | None:
    """A process, or with ``pid/task/tid`` one of its threads."""
    try:
        with open(f"/proc/{which}/stat", "rb") as f:
            text = f.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may itself hold spaces and parentheses.
    pid, _, rest = text.partition(b" (")
    fields = rest.rpartition(b")")[2].split()
    return Process(int(pid), int(fields[1]), int(fields[3]), int(fields[19]), fields[0].decode())


def start_of(pid: int) -> int | None:
    """When the process began, in clock ticks since boot; None when there is none of that pid, or it has ended."""
    found = _read(pid)
    return None if found is None or found.ended else found.start


def this_process() -> tuple[int, int]:
    """``(pid, start)`` of this process."""
    return os.getpid(), start_of(os.getpid()) or 0


def is_alive(pid: int, start: int | None) -> bool:
    """Whether exactly that process runs; ``start=None`` asks only for the pid."""
    found = start_of(pid)
    return found is not None and (start is None or found == start)


def table() -> dict[int, Process]:
    """All processes by pid, the ended ones too."""
    found = (_read(entry) for entry in os.listdir("/proc") if entry.isdecimal())
    return {p.pid: p for p in found if p is not None}


def tree(root: int, processes: dict[int, Process] | None = None) -> list[Process]:
    """What descends from `root`, parents first, without itself and without those that have ended.

    Examples
    --------
    >>> [p for p in tree(os.getpid()) if p.parent != os.getpid()]
    []
    """
    processes = table() if processes is None else processes
    children: dict[int, list[Process]] = {}
    for p in processes.values():
        children.setdefault(p.parent, []).append(p)
    out: list[Process] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        out += below
        queue += [p.pid for p in below]
    return [p for p in out if not p.ended]


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        # It ended by itself, or it became another user's (a setuid program): nothing that we could do.
        pass


def _stands(pid: int) -> bool:
    """Whether no thread of a process runs, or is about to."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return all(found is None or found.state in "TtZX" for found in (_read(f"{pid}/task/{each}") for each in threads))


def kill_all(
    find: Callable[[], Iterable[Process]], wait: Callable[[float], object], timeout: float = 5.0
) -> list[Process]:
    """Kill what `find` gives, again and again until it gives nothing.

    Nothing is killed before a look finds nobody new, and all stood still before it: who doesn't may fork while the list
    is worked off, and a child whose parent has been killed is nobody's any more. Who has got SIGSTOP stands only when a
    fork that is under way is done (since Linux 4.19 no other signal than SIGKILL breaks one off).

    Parameters
    ----------
    find
        Looks for what is to be killed; called until it finds nothing.
    wait
        Waits up to so many seconds for something to end (and reaps it).
    timeout
        How long to go on, in seconds.

    Returns
    -------
    list of Process
        What would not die in that time (a process in a system call that can't be interrupted).
    """
    begin = time.monotonic()
    stopped: set[tuple[int, int]] = set()
    still: set[tuple[int, int]] = set()
    while True:
        found = list(find())
        now = time.monotonic()
        left = begin + timeout - now
        if not found or left <= 0:
            return found
        if fresh := [p for p in found if (p.pid, p.start) not in stopped]:
            for p in fresh:
                _signal(p.pid, signal.SIGSTOP)
            stopped.update((p.pid, p.start) for p in fresh)
            continue
        restless = [p for p in found if (p.pid, p.start) not in still]
        if restless and now - begin < _STANDING:
            standing = [p for p in restless if _stands(p.pid)]
            still.update((p.pid, p.start) for p in standing)
            if len(standing) < len(restless):
                time.sleep(0.001)
            continue
        for p in found:
            _signal(p.pid, signal.SIGKILL)
        wait(min(left, 0.02))


def open_pidfd(pid: int, start: int | None = None) -> int | None:
    """A descriptor that becomes readable when the process ends.

    Returns
    -------
    int or None
        None when the system has no pidfds; then the caller looks at `is_alive` now and then.

    Raises
    ------
    ProcessLookupError
        When there is no such process (or it isn't the one that began at `start`).
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except OSError:
        return None
    # Looked at after the descriptor was opened: from here on the pid can't be anybody else's unnoticed.
    if start is not None and start_of(pid) != start:
        os.close(fd)
        raise ProcessLookupError(f"process {pid} has ended")
    return fd


@lru_cache(maxsize=1)
def machine() -> dict[str, str]:
    """What must be equal for a pid to mean the same: host name, boot, and pid namespace (a container has its own)."""
    out = {"host": os.uname().nodename}
    for key, path in (("boot", "/proc/sys/kernel/random/boot_id"),):
        try:
            with open(path) as f:
                out[key] = f.read().strip()
        except OSError:
            out[key] = ""
    try:
        out["pids"] = os.readlink("/proc/self/ns/pid")
    except OSError:
        out["pids"] = ""
    return out


class DirectoryWatch:
    """Tells when names in a directory appear or go, by inotify(7).

    Parameters
    ----------
    path
        The directory.

    Attributes
    ----------
    fd
        Readable when something happened; None where the system has no inotify: then `wait` looks every 50 ms.
    """

    # Attributes, moved from, moved to, created, deleted; itself deleted, itself moved.
    _MASK = 0x4 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.fd: int | None = None
        libc = _libc()
        if libc is None:
            return
        fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if fd < 0:
            return
        if libc.inotify_add_watch(fd, os.fsencode(path), ctypes.c_uint32(self._MASK)) < 0:
            number = ctypes.get_errno()
            os.close(fd)
            if not os.path.isdir(path):
                raise OSError(number, os.strerror(number), os.fspath(path))
            return  # no more watches are allowed to this user: look now and then instead
        self.fd = fd

    def drain(self) -> None:
        """Forget what was told so far."""
        if self.fd is None:
            return
        try:
            while os.read(self.fd, 65536):
                pass
        except BlockingIOError:
            pass

    def wait(self, timeout: float, *others: int) -> bool:
        """Wait until something happens here, or one of `others` can be read; False after `timeout` seconds."""
        fds = [*others] if self.fd is None else [self.fd, *others]
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        limit = timeout if self.fd is not None else min(timeout, 0.05)
        ready = bool(poll.poll(limit * 1000))
        self.drain()
        return ready or self.fd is None

    def close(self) -> None:
        """Give the descriptor back."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


def status_text(status: int) -> str:
    """What a status of waitpid(2) says, for people.

    Examples
    --------
    >>> status_text(9)
    'killed by SIGKILL'
    >>> status_text(3 << 8)
    'exit code 3'
    """
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"killed by {signal.Signals(number).name}"
        except ValueError:
            return f"killed by signal {number}"
    return f"exit code {os.waitstatus_to_exitcode(status)}"
