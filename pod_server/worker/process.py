"""A worker process from its fork to its end: environment, connection, threads, event loop."""

from __future__ import annotations

import asyncio
import builtins
import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
import traceback
from types import ModuleType
from typing import Any, NoReturn

from ..wire import Decoder, FrameType, LogKind, WireError, encode
from .dispatch import Dispatcher
from .display import Display
from .hooks import after_import
from .interrupt import patch_sleep
from .link import Link
from .loading import Loader
from .output import LogHub, Stream, current_log, patch_print
from .params import WorkerParams
from .payload import Bulk
from .pipes import Pump
from .steps import Steps
from .threads import patch_threads

__all__ = ["run_worker"]

_RECEIVE = 1 << 18
_PR_SET_PDEATHSIG = 1
_exit = os._exit


def run_worker(params: WorkerParams) -> NoReturn:
    """Be a worker: connect to the front and run what it sends, until it hangs up. Never returns.

    Parameters
    ----------
    params
        Which service, and in what surroundings.
    """
    _follow_parent()
    problem = _enter(params)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    _connect(sock, os.path.join(params.dir, "front.sock"))
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    worker = _Worker(params, sock, loop)
    worker.start(problem)
    worker.loop_forever()


def _follow_parent() -> None:
    """End when the zygote ends (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (OSError, AttributeError):
        return  # no such call here; the end of the connection to the front ends us too
    if os.getppid() != parent:
        _exit(1)


def _enter(params: WorkerParams) -> str | None:
    """Take on environment, working directory, path and a fresh ``__main__``; what went wrong, for whoever deploys."""
    problem = None
    if params.env is not None:
        if params.sys_path is not None:  # the place is the client's, and not the pod's own
            os.environ.clear()
        os.environ.update(params.env)
        time.tzset()
    # A notebook's environment names a backend that needs its kernel.
    if os.environ.get("MPLBACKEND") in (None, "", "inline", "module://matplotlib_inline.backend_inline"):
        os.environ["MPLBACKEND"] = "module://pod_server.worker.mpl_backend"
    if params.cwd is not None:
        try:
            os.chdir(params.cwd)
        except OSError as e:
            problem = f"the working directory can't be entered in the pod: {e}"
    if params.sys_path is not None:
        sys.path[:] = params.sys_path
    sys.argv = [""]
    main = ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    # A handler that does nothing, and not SIG_IGN, which the user's child processes would inherit.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Many threads, few of which are the i/o thread: it must get its turn soon.
    sys.setswitchinterval(0.001)
    return problem


def _connect(sock: socket.socket, path: str) -> None:
    """Connect, also when the path is too long for an address (107 bytes)."""
    try:
        sock.connect(path)
    except OSError as e:
        if "too long" not in str(e):
            raise
        fd = os.open(os.path.dirname(path), os.O_RDONLY)
        try:
            sock.connect(f"/proc/self/fd/{fd}/{os.path.basename(path)}")
        finally:
            os.close(fd)


class _Worker:
    """The parts of a worker and how they are joined."""

    def __init__(self, params: WorkerParams, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._params = params
        self._sock = sock
        self._loop = loop
        self._link = Link(sock)
        self._hub = LogHub(self._link)
        self._dispatcher = Dispatcher(
            self._hub, Bulk(params.bulk), Loader(params.dir), Steps(params.dir), loop, params.threads
        )
        self._pump = Pump(self._dispatcher.owner)
        self._dispatcher.pump = self._pump
        self._streams = [Stream(self._hub, LogKind.STDOUT), Stream(self._hub, LogKind.STDERR)]

    def start(self, problem: str | None) -> None:
        """Redirect, patch, start the threads, and say that we are ready.

        Parameters
        ----------
        problem
            Why no code can be loaded, if so.
        """
        self._dispatcher.problem = problem
        self._watch_faults()
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
        builtins.input = _no_input
        sys.breakpointhook = _breakpoint
        after_import("pdb", _patch_pdb)
        sys.stdout, sys.stderr = self._streams
        sys.__stdout__, sys.__stderr__ = self._streams  # type: ignore[misc, assignment]
        self._hub.start()
        self._pump.start()
        patch_print()
        patch_sleep()
        self._dispatcher.interrupter.watch_losses()
        patch_threads()
        self._pump.after_fork = self._after_fork
        self._pump.patch()
        self._patch_exit()
        Display(self._hub, lambda: self._pump.forked).install()
        self._link.post(
            (
                encode(FrameType.HELLO, meta={"role": "worker", "worker": self._params.number, "pid": os.getpid()}),
                encode(FrameType.EVENT, meta={"event": "ready"}),
            )
        )
        self._link.flush()
        threading.Thread(target=self._read, name="kt-io", daemon=True).start()

    def loop_forever(self) -> NoReturn:
        """Run the user's event loop."""
        while True:
            try:
                # It stops when user code stops it, or when a task of its own ends with SystemExit or KeyboardInterrupt.
                # Other calls' tasks are in it, so it goes on.
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                continue

    def _read(self) -> NoReturn:
        receive, decoder, handle = self._sock.recv, Decoder(), self._dispatcher.handle
        try:
            while True:
                data = receive(_RECEIVE)
                if not data:
                    break
                handle(decoder.feed(data))
        except ConnectionError:
            pass  # as good as its end
        except WireError as e:
            self._hub.service.write(LogKind.STDERR, f"the front sent what is no frame: {e}\n".encode())
        except BaseException:
            self._hub.service.write(LogKind.STDERR, traceback.format_exc().encode())
            self._link.finish()
            _exit(70)  # without this thread the worker is deaf: a fresh one is better
        _exit(0)

    def _watch_faults(self) -> None:
        """Have crashes written where this process's stderr went before: to the service's log."""
        try:
            faulthandler.enable(os.dup(2), all_threads=True)
        except (OSError, RuntimeError, ValueError):
            pass  # no stderr

    def _patch_exit(self) -> None:
        def leave(status: int) -> NoReturn:
            """Exit to the system with specified status, without normal exit processing."""
            if not self._pump.forked:
                self._pump.take_all()
                running = (call.log for call in list(self._dispatcher.running.values()))
                self._hub.flush_all({self._hub.current(), self._hub.service, *running})
                self._link.finish()
            _exit(status)

        os._exit = leave

    def _after_fork(self) -> None:
        log = current_log.get()
        if log is not None:
            log.clear()
        for stream in self._streams:
            stream.after_fork()
        self._link.abandon()


def _no_input(prompt: Any = "", /) -> str:
    """Read a string from standard input: nobody is there to type it in a pod."""
    raise EOFError("input() can't ask anybody: this code runs in a pod. Pass the value as an argument instead.")


def _breakpoint(*args: Any, **kwargs: Any) -> Any:
    """As `sys.breakpointhook`, but for pdb, which would ask for commands, and end the call when nobody answers."""
    if os.environ.get("PYTHONBREAKPOINT", "pdb.set_trace") in ("", "pdb.set_trace"):
        raise _no_debugger("breakpoint()")
    return sys.__breakpointhook__(*args, **kwargs)  # noqa: T100


def _patch_pdb(module: Any) -> None:
    def set_trace(*args: Any, **kwargs: Any) -> NoReturn:
        """Enter the debugger: nobody is there to type its commands in a pod."""
        raise _no_debugger("pdb.set_trace()")

    module.set_trace = set_trace


def _no_debugger(what: str) -> RuntimeError:
    return RuntimeError(
        f"{what} can't ask anybody: this code runs in a pod. Print what you want to see, or call the function itself "
        "in the notebook, where the debugger works."
    )
