"""Output that doesn't come through ``sys.stdout``: of child processes, and of C code (descriptors 1 and 2).

A child that user code starts without redirecting its output gets a pipe of its own, which belongs to the log of the
context that starts it. Descriptors 1 and 2 themselves are pipes too; what comes through them has no owner, and is
given to the call that began last. One thread reads all pipes, and a call's end (or its next `print`) first takes
what has been written before.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from ..wire import LogKind
from .output import Log, Stream, current_log, settle

__all__ = ["Pump", "Readers"]

_READ = 65536
#: Most that one look at a pipe takes; more than a pipe holds, so that all that was written before the look is taken.
_MOST = 1 << 20
#: How long the process's end waits for what is in the pipes to be read, in seconds.
_FAREWELL = 1.0
_F_SETPIPE_SZ = 1031
_KINDS = (LogKind.STDOUT, LogKind.STDERR)


class _Poller:
    """Which descriptors can be read; other threads may add some meanwhile."""

    def __init__(self) -> None:
        self._epoll: Any = select.epoll() if hasattr(select, "epoll") else None
        self._fds: set[int] = set()
        if self._epoll is None:
            # Without epoll, a new descriptor has to interrupt the wait.
            self._wake_r, self._wake_w = os.pipe()
            os.set_blocking(self._wake_r, False)
            self._fds.add(self._wake_r)

    def add(self, fd: int) -> None:
        if self._epoll is not None:
            self._epoll.register(fd, select.EPOLLIN)
        else:
            self._fds.add(fd)
            os.write(self._wake_w, b"x")

    def remove(self, fd: int) -> None:
        if self._epoll is not None:
            self._epoll.unregister(fd)
        else:
            self._fds.discard(fd)

    def poll(self, timeout: float) -> list[int]:
        """Readable ones; `timeout` in seconds, -1 for ever."""
        if self._epoll is not None:
            return [fd for fd, _ in self._epoll.poll(timeout)]
        try:
            found = select.select(list(self._fds), [], [], None if timeout < 0 else timeout)[0]
        except OSError as e:
            if e.errno == errno.EBADF:  # one was closed meanwhile
                return []
            raise
        if self._wake_r in found:
            os.read(self._wake_r, 4096)
            found.remove(self._wake_r)
        return found


class _Reader:
    """The reading end of one pipe.

    Parameters
    ----------
    pump
        Who reads.
    fd, kind
        The descriptor, and what its bytes are.
    log
        Whose they are; None: nobody's in particular.
    """

    __slots__ = ("_pump", "fd", "kind", "log")

    def __init__(self, pump: Pump, fd: int, kind: LogKind, log: Log | None) -> None:
        self._pump = pump
        self.fd = fd
        self.kind = kind
        self.log = log
        os.set_blocking(fd, False)

    def read(self) -> set[Log]:
        """Take what is there; gives the logs in which it has only been put in line, of a pipe that is nobody's."""
        logs: set[Log] = set()
        taken = 0
        while self.fd >= 0 and taken < _MOST:
            with self.log.lock if self.log is not None else self._pump.lock:
                try:
                    data = os.read(self.fd, _READ) if self.fd >= 0 else b""
                except BlockingIOError:
                    break
                if not data:
                    self._close()
                    break
                taken += len(data)
                if self.log is not None:
                    self.log.put(self.kind, data)
                else:
                    # Nothing that waits: every call that ends wants this lock.
                    log = self._pump.owner()
                    log.add(self.kind, data)
                    logs.add(log)
        return logs

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        self._pump.forget(fd)
        if self.log is not None and self.log.readers is not None:
            self.log.readers.remove(self)
        os.close(fd)


class Readers(list["_Reader"]):
    """The open pipes of one log; its lock guards them."""

    def drain(self) -> None:
        """Take what is there."""
        for reader in self[:]:
            reader.read()


class Pump:
    """Reads all pipes.

    Parameters
    ----------
    owner
        Whose output it is that comes through descriptors 1 and 2.
    """

    def __init__(self, owner: Callable[[], Log]) -> None:
        self.owner = owner
        #: Guards the pipes that are nobody's, for moments only, in which nothing is waited for.
        self.lock = threading.RLock()
        self._poller = _Poller()
        self._readers: dict[int, _Reader] = {}
        self._c_output = _COutput()
        self.forked = False
        #: What else is to be done in a forked child.
        self.after_fork: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Take over descriptors 1 and 2, and read from now on."""
        for kind in _KINDS:
            fd = self._open(kind, None)
            os.dup2(fd, int(kind))
            os.close(fd)
        threading.Thread(target=self._run, name="kt-pump", daemon=True).start()

    def _run(self) -> None:
        while True:
            for fd in self._poller.poll(-1):
                reader = self._readers.get(fd)
                if reader is not None:
                    for log in reader.read():
                        log.brake()

    def _open(self, kind: LogKind, log: Log | None) -> int:
        """A new pipe; gives its writing end."""
        r, w = os.pipe()
        try:
            fcntl.fcntl(w, _F_SETPIPE_SZ, 1 << 20 if log is None else _READ)
        except OSError:
            pass  # not on this system, or the user's share of pipe memory is used up: then it is smaller
        reader = _Reader(self, r, kind, log)
        self._readers[r] = reader
        if log is not None:
            with log.lock:
                if log.readers is None:
                    log.readers = Readers()
                log.readers.append(reader)
        self._poller.add(r)
        return w

    def forget(self, fd: int) -> None:
        """A pipe has come to its end."""
        self._poller.remove(fd)
        self._readers.pop(fd, None)

    def settle(self, log: Log) -> None:
        """Take what was written up to now and is (or will be counted as) this log's."""
        if self.forked:
            return  # the pipes are the parent's, and the lock may be held for ever: by a thread that wasn't forked
        self._c_output.flush()
        found = [reader for fd in self._poller.poll(0) if (reader := self._readers.get(fd)) is not None]
        if found:
            with log.lock:
                settle()
                for reader in found:
                    if reader.log is log or reader.log is None:
                        reader.read()
        with self.lock:
            pass  # what the pump has taken out of a pipe already is in line now

    def take_all(self) -> None:
        """Take what was written up to now, whoever's it is: this process is about to end."""

        def take() -> None:
            for fd in self._poller.poll(0):
                reader = self._readers.get(fd)
                if reader is not None:
                    reader.read()
            with self.lock:
                pass  # what the pump has taken out of a pipe already is in line now

        # In a thread, which no cancel can hit; and not waited for for ever: who ends the process may hold the lock of a
        # log (a finalizer may).
        taking = threading.Thread(target=take, name="kt-farewell", daemon=True)
        try:
            taking.start()
        except RuntimeError:
            return  # the system gives no thread
        taking.join(_FAREWELL)

    # -- child processes ---------------------------------------------------------------------------------------------

    def pipes(self, log: Log, kinds: tuple[LogKind, ...] = _KINDS) -> dict[LogKind, int]:
        """Writing ends of new pipes to a log, for a child; the caller closes them when the child has them."""
        return {kind: self._open(kind, log) for kind in kinds}

    def patch(self) -> None:
        """Give children that user code starts a pipe to the log of the context that starts them."""
        _patch_popen(self)
        _patch_system(self)
        forks = _Forks(self)
        os.register_at_fork(before=forks.before, after_in_parent=forks.in_parent, after_in_child=forks.in_child)

    def abandon(self) -> None:
        """In a forked child: the pipes are read by the parent."""
        self.forked = True
        for fd in list(self._readers):
            os.close(fd)
        self._readers.clear()


def _patch_popen(pump: Pump) -> None:
    original = subprocess.Popen.__init__

    def __init__(
        self: Any,
        args: Any,
        bufsize: int = -1,
        executable: Any = None,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        *rest: Any,
        **kwargs: Any,
    ) -> None:
        log = current_log.get()
        ends: dict[LogKind, int] = {}
        if log is not None and not pump.forked:
            wanted = [_wanted(stdout, LogKind.STDOUT), _wanted(stderr, LogKind.STDERR)]
            ends = pump.pipes(log, tuple({k for k in wanted if k is not None}))
            stdout, stderr = (
                given if kind is None else ends[kind] for given, kind in zip((stdout, stderr), wanted, strict=True)
            )
        try:
            original(self, args, bufsize, executable, stdin, stdout, stderr, *rest, **kwargs)
        finally:
            for fd in ends.values():
                os.close(fd)

    __init__.__wrapped__ = original  # type: ignore[attr-defined]
    subprocess.Popen.__init__ = __init__  # type: ignore[method-assign]


def _wanted(given: Any, default: LogKind) -> LogKind | None:
    """Which of our pipes an argument of `subprocess.Popen` stands for; None: it is the user's own business."""
    if given is None:
        return default
    if isinstance(given, Stream):
        return given.kind
    return None


def _patch_system(pump: Pump) -> None:
    original = os.system

    def system(command: Any) -> int:
        """Execute the command in a subshell."""
        if pump.forked or current_log.get() is None:
            return original(command)
        code = subprocess.Popen(command, shell=True).wait()
        return code << 8 if code >= 0 else -code

    os.system = system


class _Forks:
    """What happens around `os.fork`, which `multiprocessing` uses too."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump
        self._ends = threading.local()

    def before(self) -> None:
        log = current_log.get()
        self._ends.now = self._pump.pipes(log) if log is not None and not self._pump.forked else {}

    def in_parent(self) -> None:
        for fd in self._ends.now.values():
            os.close(fd)
        self._ends.now = {}

    def in_child(self) -> None:
        # Runs in user code's fork of a process of many threads: no lock of ours may be waited for.
        pump = self._pump
        if pump.forked:
            return
        for kind, fd in self._ends.now.items():
            os.dup2(fd, int(kind))
            os.close(fd)
        self._ends.now = {}
        pump.abandon()
        pump.after_fork()
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        except ValueError:
            pass  # a subinterpreter


class _COutput:
    """The buffer that the C library has for standard output."""

    def __init__(self) -> None:
        self._pending: Callable[[Any], int] | None = None
        self._flush: Callable[[Any], int] | None = None
        self._file: Any = None
        try:
            quick = ctypes.PyDLL(None)  # these take no time, so the GIL is kept
            libc = ctypes.CDLL(None)
            for name in ("stdout", "__stdoutp"):
                if hasattr(libc, name):
                    self._file = ctypes.c_void_p.in_dll(libc, name)
                    break
            if self._file is None:
                return
            # By lines, as on a terminal, so that printf isn't seen only at the end.
            libc.setvbuf(self._file, None, 1, 0)
            self._flush = libc.fflush
            if hasattr(quick, "__fpending"):
                self._pending = getattr(quick, "__fpending")
                self._pending.restype = ctypes.c_size_t  # type: ignore[union-attr]
        except (OSError, ValueError, AttributeError):
            pass  # a C library without these: C code's output comes when its buffer is full

    def flush(self) -> None:
        """Write what it holds."""
        if self._flush is not None and (self._pending is None or self._pending(self._file)):
            self._flush(self._file)
