"""Real kernels for tests: one process of a chosen environment, driven over its sockets as a frontend would.

`Kernel` starts the kernel and reads everything it publishes; `Cell` is one execution and whatever came with it as
parent message, also after it ended. Times are those of `time.monotonic` at arrival here.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import nbformat
import psutil
import zmq
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from jupyter_client.session import Session
from nbclient import NotebookClient

__all__ = [
    "Cell",
    "Kernel",
    "Message",
    "execute_notebook",
    "leftover_files",
    "leftover_processes",
    "run_notebook",
    "wait_until_gone",
]

#: What a test environment must not hand on to a kernel: it would take it for one of its own.
_HIDDEN = ("JPY_SESSION_NAME", "JPY_PARENT_PID", "PYTEST_CURRENT_TEST", "PYTHONPATH", "VIRTUAL_ENV", "MPLBACKEND")


@dataclass(frozen=True)
class Message:
    """One message that the kernel published; `sent` is the kernel's own time of it, in seconds since the epoch."""

    time: float
    sent: float
    type: str
    content: dict[str, Any]
    metadata: dict[str, Any]


@dataclass
class Cell:
    """One execution: everything published with it as parent, in order, and its reply."""

    code: str
    id: str
    sent: float
    messages: list[Message] = field(default_factory=list)
    reply: dict[str, Any] | None = None
    replied: float | None = None
    _changed: threading.Condition = field(default_factory=threading.Condition, repr=False)

    # -- what came

    def text(self, name: str = "stdout") -> str:
        """All text of a stream, exactly."""
        return "".join(m.content["text"] for m in self.streams(name))

    @property
    def stdout(self) -> str:
        return self.text("stdout")

    @property
    def stderr(self) -> str:
        return self.text("stderr")

    def streams(self, name: str = "stdout") -> list[Message]:
        return [m for m in list(self.messages) if m.type == "stream" and m.content["name"] == name]

    @property
    def displays(self) -> list[dict[str, Any]]:
        """The MIME bundles displayed, updates and the execution's result included."""
        kinds = ("display_data", "update_display_data", "execute_result")
        return [m.content["data"] for m in list(self.messages) if m.type in kinds]

    @property
    def result(self) -> str | None:
        """The plain text of the last expression's value."""
        found = [m.content["data"].get("text/plain") for m in list(self.messages) if m.type == "execute_result"]
        return found[-1] if found else None

    @property
    def error(self) -> dict[str, Any] | None:
        """``ename``, ``evalue``, ``traceback`` (a list of strings with ANSI codes), or None."""
        found = [m.content for m in list(self.messages) if m.type == "error"]
        if found:
            return found[-1]
        return self.reply if self.reply and self.reply.get("status") == "error" else None

    @property
    def started(self) -> float | None:
        """When the kernel began with it."""
        return next((m.time for m in list(self.messages) if m.type == "execute_input"), None)

    @property
    def idle(self) -> float | None:
        """When the kernel said that it was done."""
        for m in list(self.messages):
            if m.type == "status" and m.content["execution_state"] == "idle":
                return m.time
        return None

    @property
    def done(self) -> bool:
        return self.reply is not None and self.idle is not None

    @property
    def duration(self) -> float:
        """Seconds from the request to the reply."""
        assert self.replied is not None, "the cell has not ended"
        return self.replied - self.sent

    # -- waiting

    def wait(self, timeout: float = 60) -> Cell:
        """Wait until it has ended; `AssertionError` with what it printed so far when it takes longer."""
        return self.wait_for(lambda: self.done, timeout, "end")

    def wait_text(self, text: str, timeout: float = 60) -> Cell:
        """Wait until the text has been printed."""
        return self.wait_for(lambda: text in self.stdout or text in self.stderr, timeout, f"print {text!r}")

    def wait_for(self, condition: Any, timeout: float, what: str) -> Cell:
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                raise AssertionError(f"a cell did not {what} within {timeout} s\n{self}")
        return self

    def ok(self) -> Cell:
        """Assert that it ended without an error."""
        assert self.error is None, f"a cell failed\n{self}"
        assert self.reply is not None
        assert self.reply["status"] == "ok", f"a cell was not run\n{self}"
        return self

    def __str__(self) -> str:
        error = self.error or {}
        return "\n".join(
            (
                f"--- code\n{self.code}",
                f"--- stdout\n{self.stdout[-4000:]}",
                f"--- stderr\n{self.stderr[-4000:]}",
                f"--- error\n{chr(10).join(error.get('traceback', []))}",
                f"--- reply {(self.reply or {}).get('status')}",
            )
        )

    def _add(self, message: Message) -> None:
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()

    def _answer(self, content: dict[str, Any]) -> None:
        with self._changed:
            self.reply, self.replied = content, time.monotonic()
            self._changed.notify_all()


class Kernel:
    """A kernel process.

    Parameters
    ----------
    python
        The interpreter of the environment.
    cwd
        The kernel's working directory.
    env
        More environment variables.

    Attributes
    ----------
    runtime_dir
        The kernel's own ``KT_RUNTIME_DIR``.
    orphans
        What it published without a parent that is a cell.
    comms
        Every comm message that it published, in order, whatever its parent: ``(type, content)``.
    """

    def __init__(self, python: Path, cwd: Path, env: dict[str, str] | None = None) -> None:
        self._private = Path(tempfile.mkdtemp(prefix="kt-kernel-"))
        # Short, since a Unix socket's path ends at 108 bytes.
        self.runtime_dir = self._private / "run"
        self.runtime_dir.mkdir(mode=0o700)
        self.cwd = cwd
        self.env = {
            **{k: v for k, v in os.environ.items() if k not in _HIDDEN and not k.startswith(("KT_", "COV_"))},
            "KT_RUNTIME_DIR": str(self.runtime_dir),
            "IPYTHONDIR": str(self._private / "ipython"),
            # This checkout, also where the environments were made for another one (a git worktree).
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            **(env or {}),
        }
        # Ours, so that the manager, which closes its own when the kernel ends, leaves the reader's sockets alone.
        self._context = zmq.Context()
        self.manager = _manager(python, self._private, self._context)
        self.orphans: list[Message] = []
        self.comms: list[tuple[str, dict[str, Any]]] = []
        self._cells: dict[str, Cell] = {}
        self._infos: dict[str, set[str]] = {}
        self._lock = threading.Condition()
        self._outbox: queue.SimpleQueue[tuple[str, dict[str, Any]] | None] = queue.SimpleQueue()
        self._wake_in, self._wake_out = socket.socketpair()
        self._thread: threading.Thread | None = None
        self._session: Session | None = None
        self._log: IO[bytes] | None = None

    # -- life

    def start(self) -> Kernel:
        """Start it and wait until it executes."""
        # Kept open: a restart starts the next process with the same.
        self._log = (self._private / "kernel.log").open("ab")
        self.manager.start_kernel(cwd=str(self.cwd), env=self.env, stdout=self._log, stderr=self._log)
        # A session (and so an identity) of our own; the key is the kernel's.
        self._session = Session(key=self.manager.session.key, signature_scheme=self.manager.session.signature_scheme)
        sockets = {
            "iopub": self.manager.connect_iopub(),
            "shell": self.manager.connect_shell(identity=self._session.bsession),
        }
        self._thread = threading.Thread(target=self._read, args=(sockets,), name="kernel-reader", daemon=True)
        self._thread.start()
        self._wait_ready()
        return self

    @property
    def pid(self) -> int:
        pid = self.manager.provisioner.pid if self.manager.provisioner else None
        assert pid is not None, "the kernel is not running"
        return int(pid)

    @property
    def log(self) -> str:
        """What its process wrote to its own stdout and stderr: warnings, and exceptions that belong to no cell."""
        path = self._private / "kernel.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def rest(self) -> None:
        """Wait until it is done with output that has come: it is idle then, and not still awake from that.

        A Stop in the instant in which a cell prints may also get lost in ipykernel.
        """
        time.sleep(0.25)

    def interrupt(self) -> None:
        """What the Stop button does: SIGINT to the kernel's process group."""
        self.manager.interrupt_kernel()

    def restart(self) -> None:
        """What the Restart button does: asks the kernel to end, then starts another on the same ports."""
        self.manager.restart_kernel(now=False)
        self._wait_ready()

    def kill(self) -> None:
        """``kill -9`` of the kernel's process only."""
        os.kill(self.pid, signal.SIGKILL)
        psutil.wait_procs([p for p in [_process(self.pid)] if p], timeout=5)

    def stop(self, *, now: bool = False) -> None:
        """End it, if it hasn't ended, and close the sockets. The runtime directory stays, to be looked at."""
        if self._thread is None:
            return
        # Also after a kill: the manager reaps the process and removes the connection file.
        self.manager.shutdown_kernel(now=now or not self.manager.is_alive())
        self._outbox.put(None)
        self._wake_in.send(b"x")
        self._thread.join(10)
        self._thread = None

    def close(self) -> None:
        """Stop, then remove its temporary files."""
        self.stop()
        self._wake_in.close()
        self._wake_out.close()
        self._context.destroy(linger=0)
        if self._log is not None:
            self._log.close()
        shutil.rmtree(self._private, ignore_errors=True)

    def assert_nothing_left(self, timeout: float = 10) -> None:
        """Assert that, after the kernel's end, no process of its pods and no file of theirs is left."""
        left = wait_until_gone(self.runtime_dir, timeout)
        try:
            assert not left, f"{timeout} s after the kernel's end these still run:\n" + "\n".join(map(_describe, left))
        finally:
            for process in left:
                process.kill()
        files = leftover_files(self.runtime_dir)
        assert not files, f"left in the runtime directory: {files}"

    # -- cells

    def begin(self, code: str, *, stop_on_error: bool = True) -> Cell:
        """Send a cell, without waiting; several wait in the kernel's queue, in order."""
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": stop_on_error,
        }
        assert self._session is not None, "the kernel has not been started"
        message = self._session.msg("execute_request", content)
        cell = Cell(code, message["header"]["msg_id"], time.monotonic())
        with self._lock:
            self._cells[cell.id] = cell
        self._send("shell", message)
        return cell

    def run(self, code: str, timeout: float = 60) -> Cell:
        """Run a cell to its end; its error is the test's."""
        return self.begin(code).wait(timeout).ok()

    def run_all(self, codes: Sequence[str], timeout: float = 120) -> list[Cell]:
        """What Run All does: send all cells at once, then wait for all of them."""
        cells = [self.begin(code) for code in codes]
        return [cell.wait(timeout) for cell in cells]

    def complete(self, code: str, timeout: float = 20) -> list[str]:
        """What Tab at the end of the code offers."""
        assert self._session is not None
        message = self._session.msg("complete_request", {"code": code, "cursor_pos": len(code)})
        cell = Cell(code, message["header"]["msg_id"], time.monotonic())
        with self._lock:
            self._cells[cell.id] = cell
        self._send("shell", message)
        cell.wait_for(lambda: cell.reply is not None, timeout, "be completed")
        assert cell.reply is not None
        start = cell.reply["cursor_start"]
        word = len(code) - len(code.split(" ")[-1])
        # From where the word begins, whatever part of it is replaced.
        return [code[word:start] + match for match in cell.reply["matches"]]

    # -- what a side panel does

    def make_subshell(self, timeout: float = 10) -> str:
        """Have a subshell made; its id."""
        assert self._session is not None
        with self.manager.connect_control(identity=os.urandom(8)) as control:
            self._session.send(control, "create_subshell_request", {})
            assert control.poll(timeout * 1000), "no subshell was made"
            _, frames = self._session.feed_identities(control.recv_multipart())
            content = self._session.deserialize(frames)["content"]
        assert content["status"] == "ok", content
        return str(content["subshell_id"])

    def evaluate(self, name: str, expression: str, subshell: str | None = None) -> Cell:
        """Have an expression evaluated silently, without waiting; its value is in the reply."""
        assert self._session is not None
        content = {
            "code": "",
            "silent": True,
            "store_history": False,
            "user_expressions": {name: expression},
            "allow_stdin": True,
            "stop_on_error": False,
        }
        message = self._session.msg("execute_request", content)
        if subshell is not None:
            message["header"]["subshell_id"] = subshell
        cell = Cell(expression, message["header"]["msg_id"], time.monotonic())
        with self._lock:
            self._cells[cell.id] = cell
        self._send("shell", message)
        return cell

    # -- comms

    def open_comm(self, target: str, id: str) -> None:
        """Open a comm to a target that the kernel has registered."""
        assert self._session is not None
        self._send("shell", self._session.msg("comm_open", {"comm_id": id, "target_name": target, "data": {}}))

    def send_comm(self, id: str, data: dict[str, Any]) -> None:
        """Send to a comm, as a front end does when somebody presses a button."""
        assert self._session is not None, "the kernel has not been started"
        self._send("shell", self._session.msg("comm_msg", {"comm_id": id, "data": data}))

    def wait_for_comms(self, count: int, timeout: float) -> None:
        """Wait until more than that many comm messages have come, or the time is over."""
        with self._lock:
            self._lock.wait_for(lambda: len(self.comms) > count, timeout)

    # -- inside

    def _send(self, channel: str, message: dict[str, Any]) -> None:
        self._outbox.put((channel, message))
        self._wake_in.send(b"x")

    def _wait_ready(self, timeout: float = 60) -> None:
        # The reply says that the shell works; the status on iopub, that our subscription has reached the kernel: until
        # then what it publishes is lost, so ask again until both are there.
        assert self._session is not None
        deadline = time.monotonic() + timeout
        while True:
            message = self._session.msg("kernel_info_request", {})
            seen: set[str] = set()
            with self._lock:
                self._infos[message["header"]["msg_id"]] = seen
            self._send("shell", message)
            with self._lock:
                if self._lock.wait_for(lambda seen=seen: {"shell", "iopub"} <= seen, 1.0):
                    self._infos.clear()
                    return
            assert self.manager.is_alive(), "the kernel ended while it started"
            assert time.monotonic() < deadline, f"the kernel was not ready within {timeout} s"

    def _read(self, sockets: dict[str, zmq.Socket[bytes]]) -> None:
        assert self._session is not None
        poller = zmq.Poller()
        for channel in sockets.values():
            poller.register(channel, zmq.POLLIN)
        poller.register(self._wake_out.fileno(), zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll())
                if self._wake_out.fileno() in ready:
                    self._wake_out.recv(4096)
                    while not self._outbox.empty():
                        item = self._outbox.get()
                        if item is None:
                            return
                        self._session.send(sockets[item[0]], item[1])
                for name, channel in sockets.items():
                    while channel.poll(0):
                        _, frames = self._session.feed_identities(channel.recv_multipart())
                        self._dispatch(name, self._session.deserialize(frames))
        finally:
            for channel in sockets.values():
                channel.close(linger=0)

    def _dispatch(self, channel: str, raw: dict[str, Any]) -> None:
        parent = raw["parent_header"].get("msg_id")
        header = raw["header"]
        message = Message(
            time.monotonic(), header["date"].timestamp(), header["msg_type"], raw["content"], raw["metadata"]
        )
        with self._lock:
            cell = self._cells.get(parent)
            if parent in self._infos:
                self._infos[parent].add(channel)
                self._lock.notify_all()
                return
        if channel == "shell":
            if cell is not None:
                cell._answer(message.content)
        elif message.type.startswith("comm_"):
            with self._lock:
                self.comms.append((message.type, message.content))
                self._lock.notify_all()
        elif cell is not None:
            cell._add(message)
        elif message.type not in ("status", "iopub_welcome"):
            self.orphans.append(message)


def run_notebook(cells: Iterable[str], python: Path, kernel: Kernel, timeout: float = 120) -> nbformat.NotebookNode:
    """Run cells headless with nbclient, as a kernel that was made but not started would.

    The kernel is asked for its directory, environment and runtime directory; gives the executed notebook.
    """
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells])
    return execute_notebook(notebook, python, kernel, timeout)


def execute_notebook(
    notebook: nbformat.NotebookNode, python: Path, kernel: Kernel, timeout: float = 120
) -> nbformat.NotebookNode:
    """As `run_notebook`, of a whole notebook, in place; the tags of its cells count."""
    client = NotebookClient(notebook, km=_async_manager(python, kernel._private), timeout=timeout)
    # A manager that nbclient was given it would leave running. On a loop that ends, for callers in threads.
    asyncio.run(client.async_execute(cleanup_kc=True, cwd=str(kernel.cwd), env=kernel.env))
    return notebook


def _spec_manager(python: Path, folder: Path) -> KernelSpecManager:
    spec = folder / "kernels" / "chosen"
    spec.mkdir(parents=True, exist_ok=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "chosen", "language": "python"}))
    return KernelSpecManager(kernel_dirs=[str(spec.parent)], ensure_native_kernel=False)


def _manager(python: Path, folder: Path, context: zmq.Context[Any]) -> KernelManager:
    return KernelManager(
        context=context,
        kernel_name="chosen",
        kernel_spec_manager=_spec_manager(python, folder),
        connection_file=str(folder / "connection.json"),
        # Over TCP another process may take a port between its choice and the kernel's start.
        transport="ipc",
    )


def _async_manager(python: Path, folder: Path) -> Any:
    from jupyter_client.manager import AsyncKernelManager

    return AsyncKernelManager(
        kernel_name="chosen",
        kernel_spec_manager=_spec_manager(python, folder),
        connection_file=str(folder / "headless.json"),
        transport="ipc",
    )


# -- what is left ------------------------------------------------------------------------------------------------------


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {process.status()} {' '.join(process.cmdline())[:200]}"
    except psutil.Error as e:
        return f"{process.pid} ({e})"


def leftover_processes(runtime_dir: Path) -> list[psutil.Process]:
    """Living processes that name the runtime directory in environment or command line, but for this one's own line."""
    mark = os.fsencode(runtime_dir)
    mine = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in mine:
            continue
        try:
            text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile, or is another user's
        process = _process(int(entry.name)) if mark in text else None
        if process is not None and process.is_running() and not _is_zombie(process):
            found.append(process)
    return found


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(runtime_dir: Path, timeout: float) -> list[psutil.Process]:
    """Wait for the end of the processes of a runtime directory; gives those that still run."""
    deadline = time.monotonic() + timeout
    while (left := leftover_processes(runtime_dir)) and (rest := deadline - time.monotonic()) > 0:
        psutil.wait_procs(left, timeout=min(rest, 0.5))
    return left


def leftover_files(runtime_dir: Path) -> list[str]:
    """Everything in a runtime directory, relative to it."""
    # Not rglob: on Python 3.11 it raises when a folder is removed while it looks.
    found = (Path(folder, name) for folder, dirs, files in os.walk(runtime_dir) for name in (*dirs, *files))
    return sorted(str(path.relative_to(runtime_dir)) for path in found)
