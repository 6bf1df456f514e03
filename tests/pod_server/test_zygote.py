"""The zygotes with real processes; these tests are the front."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pod_server
from pod_server import processes
from pod_server.wire import Decoder, Frame, FrameType, encode
from pod_server.zygote.child import Poller, fork
from tests.kernel.harness import leftover_processes
from tests.waiting import until

CHECKOUT = str(Path(pod_server.__file__).parent.parent)


class Front:
    """The front's end of ``front.sock``: takes the zygote and the workers as they come."""

    def __init__(self, dir: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(dir / "front.sock"))
        self.listener.listen()
        self.listener.settimeout(10)
        (dir / "front.json").write_text("{}")
        self.peers: list[Peer] = []

    def take(self, role: str) -> Peer:
        """The next connection, which must be that role's."""
        connection, _ = self.listener.accept()
        peer = Peer(connection)
        hello = peer.read()
        assert hello.type is FrameType.HELLO
        assert hello.meta["role"] == role
        self.peers.append(peer)
        return peer

    def close(self) -> None:
        for peer in self.peers:
            peer.connection.close()
        self.listener.close()


class Peer:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.connection.settimeout(10)
        self.decoder = Decoder()
        self.frames: list[Frame] = []

    def read(self) -> Frame:
        while not self.frames:
            data = self.connection.recv(65536)
            assert data, "the connection has ended"
            self.frames += self.decoder.feed(data)
        return self.frames.pop(0)

    def send(self, type: FrameType, **meta: Any) -> None:
        self.connection.sendall(encode(type, 0, meta))


def wait_ended(pid: int, start: int | None = None, timeout: float = 10) -> bool:
    try:
        fd = processes.open_pidfd(pid, start)
    except ProcessLookupError:
        return True
    assert fd is not None
    try:
        return bool(select.select([fd], [], [], timeout)[0])
    finally:
        os.close(fd)


def python_env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": CHECKOUT}


@pytest.fixture
def dir() -> Iterator[Path]:
    # Not pytest's own: a socket's path must be short.
    path = Path(tempfile.mkdtemp(prefix="kt-z-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def pod(dir: Path) -> Iterator[tuple[Front, Peer, subprocess.Popen[bytes]]]:
    process = subprocess.Popen([sys.executable, "-m", "pod_server", "zygote", "--dir", str(dir)], env=python_env())
    front = Front(dir)
    try:
        yield front, front.take("zygote"), process
    finally:
        front.close()
        process.wait(10)


def fork_worker(front: Front, zygote: Peer, number: int, **meta: Any) -> tuple[int, Peer]:
    zygote.send(FrameType.FORK, worker=number, env={}, threads=2, **meta)
    answer = zygote.read()
    assert answer.type is FrameType.FORKED, answer.meta
    return answer.meta["pid"], front.take("worker")


# -- the pod's zygote --------------------------------------------------------------------------------------------------


def test_forks_workers_and_tells_of_their_deaths(pod: tuple[Front, Peer, Any]) -> None:
    front, zygote, _ = pod
    first, _ = fork_worker(front, zygote, 1)
    second, _ = fork_worker(front, zygote, 2)
    assert os.getsid(first) == first
    os.kill(first, signal.SIGKILL)
    died = zygote.read()
    assert (died.type, died.meta) == (FrameType.DIED, {"worker": 1, "pid": first, "status": 9})
    zygote.send(FrameType.KILL, worker=2, signal=9)
    assert zygote.read().meta == {"worker": 2, "pid": second, "status": 9}


def test_a_fork_is_fast(pod: tuple[Front, Peer, Any]) -> None:
    front, zygote, _ = pod
    fork_worker(front, zygote, 1)  # imports the worker
    times = []
    for number in range(2, 7):
        begun = time.perf_counter()
        zygote.send(FrameType.FORK, worker=number, env={})
        assert zygote.read().type is FrameType.FORKED
        times.append(time.perf_counter() - begun)
        front.take("worker")
    print(f"fork: {min(times) * 1e3:.1f}-{max(times) * 1e3:.1f} ms")
    assert sorted(times)[2] < 0.05


def test_the_front_ends_everything_ends(pod: tuple[Front, Peer, subprocess.Popen[bytes]]) -> None:
    front, zygote, process = pod
    worker, _ = fork_worker(front, zygote, 1)
    start = processes.start_of(worker)
    # It is not the terminal's, nor a container's stop's, to end it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    assert process.poll() is None
    front.close()
    assert process.wait(5) == 0
    assert not processes.is_alive(worker, start)


def test_workers_die_with_a_killed_zygote(pod: tuple[Front, Peer, subprocess.Popen[bytes]]) -> None:
    front, zygote, process = pod
    worker, _ = fork_worker(front, zygote, 1)
    start = processes.start_of(worker)
    process.kill()
    assert wait_ended(worker, start, 2)


def test_bad_bytes_end_the_zygote_and_its_workers(pod: tuple[Front, Peer, subprocess.Popen[bytes]]) -> None:
    front, zygote, process = pod
    worker, _ = fork_worker(front, zygote, 1)
    zygote.connection.sendall(b"\xff" * 64)
    process.wait(5)
    assert wait_ended(worker, None, 2)


def test_waits_for_a_front_and_gives_up_without_its_directory(dir: Path) -> None:
    command = [sys.executable, "-m", "pod_server", "zygote", "--dir", str(dir)]
    process = subprocess.Popen(command, env=python_env())
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        shutil.rmtree(dir)
        assert process.wait(5) == 0
    finally:
        process.kill()


# -- what a child is given ---------------------------------------------------------------------------------------------


def test_a_child_holds_nothing_of_its_parent(dir: Path) -> None:
    """No descriptor, no signal handler, no session; what it prints goes to the log."""
    report = dir / "report"
    read_end, write_end = os.pipe()

    def main() -> int:
        report.write_text(
            json.dumps(
                {
                    "fds": sorted(int(n) for n in os.listdir("/proc/self/fd")),
                    "session": os.getsid(0) == os.getpid(),
                    "term": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
                    "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
                    "stdin": os.readlink("/proc/self/fd/0"),
                }
            )
        )
        print("to the log")
        return 7

    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        pid = fork(main, name="kt-test", log=str(dir / "log"), keep=(write_end,))
    finally:
        signal.signal(signal.SIGTERM, previous)
    os.close(write_end)
    assert os.waitpid(pid, 0)[1] == 7 << 8
    os.close(read_end)
    said = json.loads(report.read_text())
    assert said["session"]
    assert said["term"]
    assert said["blocked"] == 0
    assert said["stdin"] == os.devnull
    # One more than those is the listing's own.
    assert set(said["fds"]) >= {0, 1, 2, write_end}
    assert len(said["fds"]) == 5
    assert (dir / "log").read_text() == "to the log\n"


def test_an_error_of_a_child_is_in_its_log(dir: Path) -> None:
    def main() -> None:
        raise ValueError("gone wrong")

    pid = fork(main, name="kt-test", log=str(dir / "log"))
    assert os.waitpid(pid, 0)[1] == 1 << 8
    assert "ValueError: gone wrong" in (dir / "log").read_text()


def test_a_bound_child_dies_with_its_parent(dir: Path) -> None:
    def parent() -> None:
        pid = fork(lambda: signal.pause(), name="kt-inner", bound=True)
        (dir / "pid").write_text(str(pid))
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(fork(parent, name="kt-outer"), 0)
    assert wait_ended(int((dir / "pid").read_text()), None, 2)


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time_", range(20))
def test_killing_a_tree_leaves_nothing(dir: Path, time_: int) -> None:
    """Also what went into a session of its own, and what forks on and on, faster than anybody looks.

    With so many mappings that a fork takes as long as a look, and is often under way when the signal comes.
    """
    script = (
        "import mmap, os, subprocess, time\n"
        "maps = [mmap.mmap(-1, 4096, prot=1 + 2 * (i % 2)) for i in range(3_000)]\n"
        "subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "if os.fork() == 0:\n"
        "    while True:\n"
        "        if os.fork() == 0: time.sleep(1000)\n"
        "        time.sleep(0.0005)\n"
        "time.sleep(1000)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(dir)])
    until(lambda: len(processes.tree(process.pid)) >= 5)

    def find() -> list[processes.Process]:
        known = processes.table()
        own = known.get(process.pid)
        return [*processes.tree(process.pid, known), *([own] if own is not None and not own.ended else [])]

    before = find()
    left = processes.kill_all(find, time.sleep)
    process.wait(5)
    assert not left
    # Those below it are init's when it is dead, and a busy machine takes its time over them.
    assert all(wait_ended(p.pid, p.start, 5) for p in before)
    assert not leftover_processes(dir)


def test_a_pid_alone_names_nobody() -> None:
    pid, start = processes.this_process()
    assert processes.is_alive(pid, start)
    assert not processes.is_alive(pid, start - 1)
    with pytest.raises(ProcessLookupError):
        processes.open_pidfd(pid, start - 1)
    child = subprocess.Popen([sys.executable, "-c", ""])
    wait_ended(child.pid)
    assert not processes.is_alive(child.pid, None), "a zombie has ended"
    child.wait()
    assert processes.start_of(child.pid) is None


def test_a_directory_watch_tells_of_a_rename(dir: Path) -> None:
    watch = processes.DirectoryWatch(dir)
    try:
        assert watch.fd is not None
        assert not watch.wait(0.01)
        (dir / "a").write_text("")
        assert watch.wait(1)
        os.rename(dir / "a", dir / "b")
        assert watch.wait(1)
        assert not watch.wait(0.01)
    finally:
        watch.close()
    with pytest.raises(FileNotFoundError):
        processes.DirectoryWatch(dir / "missing")


def test_a_poller_calls_who_can_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        got: list[bytes] = []
        poller = Poller()
        poller.add(ours.fileno(), lambda: got.append(ours.recv(10)))
        assert not poller.once(0)
        theirs.send(b"x")
        assert poller.once(1)
        assert got == [b"x"]
        poller.remove(ours.fileno())
        theirs.send(b"y")
        assert not poller.once(0)


def test_a_poller_does_not_take_a_new_descriptor_for_an_old_one_of_its_number() -> None:
    """One look finds both; the first one's handler closes the second, and opens what gets its number."""
    first, (old, end) = os.pipe(), os.pipe()
    poller = Poller()
    called: list[str] = []

    def replace() -> None:
        poller.remove(old)
        os.close(old)
        assert os.dup(first[0]) == old
        poller.add(old, lambda: called.append("new"))

    try:
        poller.add(first[0], replace)
        poller.add(old, lambda: called.append("old"))
        os.close(end)
        os.write(first[1], b"x")
        assert poller.once(1)
        assert called == []  # nobody has found the new one ready yet: reading it might wait for ever
        poller.remove(first[0])
        assert poller.once(1)
        assert called == ["new"]
    finally:
        for fd in (*first, old):
            os.close(fd)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["zygote"], "--dir is needed"),
        (["front", "--dir", "/tmp/x"], "--name is needed"),
        (["front", "--dir", "/tmp/x", "--name", "x"], "--token-file or --token-fd is needed"),
        (["--name", "x", "--token-file", "/nowhere"], "the token can't be read"),
    ],
)
def test_the_command_says_what_is_missing(arguments: list[str], says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pod_server", *arguments], env=python_env(), capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 2
    assert says in done.stderr


def health(url: str, path: str = "/health", token: str | None = None) -> int:
    request = urllib.request.Request(url + path, headers={} if token is None else {"X-Kubetorch-Token": token})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as e:
        e.close()
        return e.code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_whole_pod_as_one_command(number: int) -> None:
    command = [sys.executable, "-m", "pod_server", "--name", "t-whole"]
    with subprocess.Popen(command, env=python_env(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url, _, path = process.stdout.readline().strip().partition(" token in ")
            assert health(url) == 200
            assert health(url, "/ready") == 503
            assert health(url, "/call/f") in (401, 405)
            assert os.stat(path).st_mode & 0o777 == 0o600
            below = processes.tree(process.pid)
            assert len(below) == 2
            process.send_signal(number)
            assert process.wait(10) == 0
            assert not os.path.exists(os.path.dirname(path))
            assert not [p for p in below if processes.is_alive(p.pid, p.start)]
        finally:
            process.kill()


def test_a_whole_pod_that_cannot_listen(dir: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        command = [sys.executable, "-m", "pod_server", "--dir", str(dir / "pod"), "--name", "t-whole", "--port", port]
        done = subprocess.run(command, env=python_env(), capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "Address already in use" in done.stderr


def test_front_and_zygote_as_two_commands(dir: Path) -> None:
    """As the two containers of a pod on Kubernetes; the zygote may come first."""
    read_end, write_end = os.pipe()
    os.write(write_end, b"secret\n")
    os.close(write_end)
    pod_server = [sys.executable, "-m", "pod_server"]
    zygote = subprocess.Popen([*pod_server, "zygote", "--dir", str(dir)], env=python_env())
    command = [*pod_server, "front", "--dir", str(dir), "--name", "t-two", "--token-fd", str(read_end)]
    front = subprocess.Popen(command, env=python_env(), pass_fds=[read_end])
    os.close(read_end)
    try:
        watch = processes.DirectoryWatch(dir)
        while not (dir / "front.json").exists():
            assert watch.wait(10)
        watch.close()
        url = json.loads((dir / "front.json").read_text())["url"]
        assert health(url) == 200
        assert health(url, "/session", "wrong") == 403
        front.terminate()
        assert front.wait(10) == 0
        assert zygote.wait(10) == 0
    finally:
        front.kill()
        zygote.kill()
        front.wait()
        zygote.wait()
