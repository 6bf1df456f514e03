"""Forking, and what the forked process must give up of its parent; and the parent's small event loop.

The zygotes keep their descriptors as plain numbers: no object of theirs owns one, so that nothing in a child closes by
its finalizer a number that the child has given to something else.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterable

from .. import processes

__all__ = ["INHERIT", "Poller", "drain", "fork", "reset_signals", "send_all", "take_signals"]


def reset_signals() -> None:
    """Give every signal the meaning that it has in a fresh Python, and block none."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if hasattr(signal, "SIGXFSZ"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def take_signals(ignore: Iterable[int] = ()) -> int:
    """Have SIGCHLD wake a poll, and ignore some others.

    Returns
    -------
    int
        The descriptor that becomes readable at SIGCHLD.
    """
    reset_signals()
    for number in ignore:
        signal.signal(number, signal.SIG_IGN)
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    # Without a handler of Python's, the wakeup descriptor isn't written to.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return read_end


def _close_others(keep: set[int]) -> None:
    try:
        held = [int(name) for name in os.listdir("/proc/self/fd")]
    except FileNotFoundError:
        held = list(range(3, 1024))
    for fd in held:
        if fd > 2 and fd not in keep:
            try:
                os.close(fd)
            except OSError:
                pass  # the listing's own descriptor, closed already


#: Instead of a log's path: stdout and stderr stay the parent's.
INHERIT = "-"


def _stdio(log: str | None) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    if log == INHERIT:
        if null > 2:
            os.close(null)
        return
    out = null
    if log is not None:
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError:
            out = null  # the directory went, or the disk is full: a log that is missing is no reason to stop
    os.dup2(out, 1)
    os.dup2(out, 2)
    for fd in {null, out}:
        if fd > 2:
            os.close(fd)
    # New ones: what the parent's hold unwritten is the parent's to write.
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def fork(
    main: Callable[[], object],
    *,
    name: str,
    log: str | None = None,
    keep: Iterable[int] = (),
    bound: bool = False,
) -> int:
    """Fork a process that runs `main` and ends.

    The child has a session of its own, the signals of a fresh Python, no descriptor of its parent's but 0-2 (which lead
    to nothing, or to the log) and those of `keep`, and never returns into its parent's frames.

    Parameters
    ----------
    main
        What it runs; what it returns, if a number, is its exit code.
    name
        For ``ps``.
    log
        Path of the file that its stdout and stderr go to; None: nowhere; `INHERIT`: where the parent's go.
    keep
        Descriptors to keep.
    bound
        Whether it is killed when this process ends.

    Returns
    -------
    int
        The child's pid.

    Raises
    ------
    OSError
        When the system allows no more processes.
    """
    parent = os.getpid()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        raise
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return pid
    code = 1
    try:
        if bound:
            processes.die_with_parent(parent)
        os.setsid()
        processes.name_process(name)
        _stdio(log)
        _close_others(set(keep))
        reset_signals()
        result = main()
        code = result if isinstance(result, int) else 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        # The last frame of this process: whatever it was, the log is the one place left to tell it.
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def send_all(fd: int, data: bytes) -> bool:
    """Write all of it to a socket; False when nobody reads there any more."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


class Poller:
    """Descriptors and what to do when they can be read."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}

    def add(self, fd: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever `fd` is readable or at its end."""
        self._handlers[fd] = handler
        self._poll.register(fd, select.POLLIN)

    def remove(self, fd: int) -> None:
        """Look at it no more; it isn't closed."""
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    @property
    def descriptors(self) -> list[int]:
        """What is looked at."""
        return list(self._handlers)

    def once(self, timeout: float | None = None) -> bool:
        """Wait for something to happen and handle it; False when nothing did within `timeout` seconds."""
        found = self._poll.poll(None if timeout is None else max(timeout, 0) * 1000)
        ready = [(fd, self._handlers[fd]) for fd, _ in found]
        for fd, handler in ready:
            # A handler may close what another one was found ready for, and open something that gets the same number:
            # that isn't ready, and reading it would wait for ever.
            if self._handlers.get(fd) is handler:
                handler()
        return bool(ready)


def drain(fd: int) -> None:
    """Empty a pipe that only wakes."""
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        pass
