"""Local pods when something is killed: client, front, zygote, worker; and two clients at once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import kubetorch_jupyter as kt
from kubetorch_jupyter.backends import registry
from kubetorch_jupyter.backends.base import Phase, ServiceSpec
from kubetorch_jupyter.backends.local import local_backend
from kubetorch_jupyter.transport.portal import get_portal
from pod_server import processes
from tests.kernel.harness import leftover_files
from tests.local import Client, Lines, alive, apply, delete, find, pids, record_of, runtime, shared_memory, wait_gone
from tests.promises import promise
from tests.waiting import until

__all__ = ["runtime"]  # a fixture


# -- the client --------------------------------------------------------------------------------------------------------


@pytest.mark.timed
@pytest.mark.parametrize("end", ["kill", "exit", "error", "term"])
def test_the_clients_end_ends_its_pods(runtime: Path, end: str) -> None:
    """However it ends, and whatever children of its own hold its descriptors open."""
    code = """
        import subprocess
        apply("t-one"); apply("t-two")
        child = subprocess.Popen(["sleep", "1000"], close_fds=False)
        forked = os.fork()
        if not forked: time.sleep(1000)
        tell([child.pid, forked])
        line = sys.stdin.readline()
        if line == "error\\n": raise RuntimeError("the client fails, as it is meant to")
    """
    with Client(code, stderr=subprocess.DEVNULL) as client:
        children = client.read()
        named = [p for name in ("t-one", "t-two") for p in pids(record_of(name))]
        named += [(p.pid, p.start) for p in processes.tree(client.process.pid) if p.pid not in children]
        assert client.process.stdin is not None
        if end == "kill":
            client.process.kill()
        elif end == "term":
            client.process.terminate()
        else:
            client.process.stdin.write(f"{end}\n".encode())
            client.process.stdin.flush()
        client.process.wait(10)
        try:
            took = max(wait_gone(named, runtime / name) for name in ("t-one", "t-two"))
        finally:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
    promise(f"pods gone after the client's {end}", took, 2.0)
    assert leftover_files(runtime) == []
    assert not shared_memory(runtime)


def test_stop_is_not_for_the_pods(runtime: Path) -> None:
    """Jupyter's Stop and its restart signal the kernel's whole process group."""
    code = """
        import signal
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        apply("t-one"); tell(0); sys.stdin.readline(); tell(0); sys.stdin.readline()
    """
    with Client(code, start_new_session=True) as client:
        client.read()
        named = pids(record_of("t-one"))
        os.killpg(client.process.pid, signal.SIGINT)
        client.go_on()
        client.read()
        assert len(alive(named)) == len(named)
        os.killpg(client.process.pid, signal.SIGKILL)
        wait_gone(named, runtime / "t-one", 3)


def test_a_detached_service_outlives_its_client(runtime: Path) -> None:
    with Client("apply('t-one', detach=True); tell(0)") as client:
        client.read()
        client.process.wait(10)
    info = find("t-one")
    assert info is not None
    assert info.endpoint is not None
    assert info.endpoint.gone is not None
    assert (info.detached, info.ttl, info.endpoint.gone(False)) == (True, 4 * 3600, None)
    named = pids(record_of("t-one"))
    assert len(alive(named)) == 2
    delete("t-one")
    assert not alive(named)
    assert leftover_files(runtime) == []


def test_a_detached_service_ends_by_its_ttl(runtime: Path) -> None:
    endpoint = apply("t-one", detach=True, inactivity_ttl=2)
    wait_gone(pids(record_of("t-one")), runtime / "t-one")
    assert endpoint.gone is not None
    assert endpoint.gone(False) is not None


def test_a_service_lives_as_long_as_one_of_its_clients(runtime: Path) -> None:
    def answer() -> int:
        return 42

    with Client("def f(): return 42\nkt.fn(f, name='t-one').to(kt.Compute()); tell(0); sys.stdin.readline()") as first:
        # Its own lines come before ours.
        while first.process.stdout is not None and not first.process.stdout.readline().startswith(b"0"):
            pass
        handle = kt.fn(answer, name="t-one").to(kt.Compute())
        named = pids(record_of("t-one"))
        first.process.kill()
        first.process.wait(10)
    assert handle() == 42
    assert set(alive(named)) >= {pid for pid, _ in named[:2]}
    handle.teardown()


# -- a pod's own processes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["front", "zygote", "both"])
def test_a_killed_pod_is_gone_and_says_why(runtime: Path, which: str) -> None:
    endpoint = apply("t-one")
    record = record_of("t-one")
    named = pids(record)
    assert endpoint.gone is not None
    assert record.front is not None
    assert record.zygote is not None
    for pid in [record.front[0]] * (which != "zygote") + [record.zygote[0]] * (which != "front"):
        os.kill(pid, signal.SIGKILL)
    wait_gone(named, runtime / "t-one", 5)
    assert endpoint.gone(False) is not None
    deadline = time.monotonic() + 5
    while which != "zygote" and "SIGKILL" not in str(endpoint.gone(False) or ""):
        assert time.monotonic() < deadline, endpoint.gone(False)
        time.sleep(0.01)
    assert find("t-one") is None
    assert apply("t-one").url != endpoint.url


def start_children(directory: str) -> list[int]:
    """User code whose children do all to get away; their pids."""
    import subprocess
    import sys

    pid_file = os.path.join(directory, "daemon")
    daemon = (
        "import os, time\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid()\n"
        "if os.fork(): os._exit(0)\n"
        f"open({pid_file + '.new'!r}, 'w').write(str(os.getpid())); os.rename({pid_file + '.new'!r}, {pid_file!r})\n"
        "time.sleep(1000)\n"
    )
    own_session = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    plain = subprocess.Popen(["sleep", "1000"])
    subprocess.run([sys.executable, "-c", daemon], check=True, env={})
    while not os.path.exists(pid_file):
        time.sleep(0.01)
    with open(pid_file) as f:
        return [own_session.pid, plain.pid, int(f.read())]


@pytest.mark.parametrize("end", ["teardown", "worker", "exit", "front", "zygote"])
def test_what_user_code_started_ends_with_it(runtime: Path, tmp_path: Path, end: str) -> None:
    """Children in sessions of their own and daemons without an environment too."""
    handle = kt.fn(start_children, name="t-one").to(kt.Compute())
    children = [(pid, processes.start_of(pid) or 0) for pid in handle(str(tmp_path))]
    assert len(alive(children)) == 3
    record = record_of("t-one")
    assert record.front is not None
    assert record.zygote is not None
    worker = handle.service.status()["worker"]
    if end == "teardown":
        handle.teardown()
        assert not alive(children)
        return
    if end == "worker":
        os.kill(worker, signal.SIGKILL)
    elif end == "exit":
        handle.service.restart()
    else:
        os.kill(record.front[0] if end == "front" else record.zygote[0], signal.SIGKILL)
    wait_gone(children, tmp_path / "nothing", 5)
    handle.teardown()


def test_calls_beside_a_pods_end_are_run_once_or_fail(runtime: Path, tmp_path: Path) -> None:
    """A pod that is told to end, as by a drain of its node, again and again while it is called."""

    def mark(path: str) -> int:
        with open(path, "a") as f:
            return f.write("x")

    handle = kt.fn(mark, name="t-one").to(kt.Compute(), stream_logs=False)
    ended: list[BaseException] = []
    done = threading.Event()
    front: tuple[int, int] | None = None

    def next_front() -> tuple[int, int] | None:
        record = registry.read("t-one")
        if record is None or record.state != "running" or record.front == front:
            return None
        return record.front

    def call(worker: int) -> None:
        number = 0
        while not done.is_set():
            path = tmp_path / f"{worker}-{number}"
            number += 1
            try:
                assert handle(str(path), stream_logs=False) == 1
                assert path.read_text() == "x"
            except kt.PodLostError as e:
                ended.append(e)
                assert not path.exists() or path.read_text() in ("", "x")

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(call, worker) for worker in range(4)]
        try:
            for _ in range(8):
                time.sleep(0.5)
                front = until(next_front)
                os.kill(front[0], signal.SIGTERM)
                wait_gone([front], runtime / "nothing", 5)
        finally:
            done.set()
        for future in futures:
            future.result(60)
    # Of those that it had read it can't be said whether they have begun; the others were begun on the next one.
    assert {str(e).partition('"t-one" ')[2] for e in ended} <= {"was ended while the call ran"}
    assert handle(str(tmp_path / "last"), stream_logs=False) == 1
    handle.teardown()


# -- what was left -----------------------------------------------------------------------------------------------------


def kill_everything(runtime: Path, name: str) -> registry.Record:
    """End a pod as a crash of the machine would: nobody cleans up."""
    with Client(f"apply({name!r}, gpus=1); tell(0); sys.stdin.readline()") as client:
        client.read()
        record = record_of(name)
        everybody = [*processes.tree(client.process.pid), *processes.tree(record.zygote[0])]  # type: ignore[index]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for p in everybody:
                os.kill(p.pid, number)
    wait_gone([(p.pid, p.start) for p in everybody], runtime / "nothing")
    assert (runtime / name / "service.json").exists()
    return record


def test_a_dead_pods_files_are_cleaned_up(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KT_LOCAL_GPUS", "1")
    dead = kill_everything(runtime, "t-one")
    assert shared_memory(runtime)
    assert dead.state == "dead"
    assert find("t-one") is None
    apply("t-two", gpus=1)  # the device is free, and another name's deploy tidies up as well
    assert leftover_files(runtime)[0].startswith("t-two")
    assert all("-t-two-" in name for name in shared_memory(runtime))
    delete("t-two")
    kill_everything(runtime, "t-one")
    assert apply("t-one").url
    delete("t-one")
    kill_everything(runtime, "t-one")
    delete("t-one")
    assert leftover_files(runtime) == []


def test_pids_that_came_back_are_not_taken_for_a_pod(runtime: Path) -> None:
    path = runtime / "t-one"
    path.mkdir()
    pid, start = processes.this_process()
    said = {"machine": processes.machine(), "deployer": [pid, start - 1], "pod": {}, "detached": True}
    (path / "service.json").write_text(json.dumps(said))
    (path / "processes.json").write_text(json.dumps({"front": [pid, start - 1], "zygote": [pid, start - 1]}))
    assert record_of("t-one").state == "dead"
    apply("t-one")
    assert record_of("t-one").state == "running"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"machine": 1'])
def test_a_directory_that_makes_no_sense_is_replaced(runtime: Path, text: str) -> None:
    (runtime / "t-one").mkdir()
    (runtime / "t-one" / "service.json").write_text(text)
    assert find("t-one") is None
    apply("t-one")
    delete("t-one")


def test_what_was_half_made_is_removed(runtime: Path) -> None:
    pid, start = processes.this_process()
    (runtime / f".new-{pid}-{start - 1}-abc").mkdir()
    (runtime / f".new-{pid}-{start}-abc").mkdir()
    (runtime / "t-gone").symlink_to(runtime / "nowhere")
    apply("t-one")
    assert sorted(os.listdir(runtime)) == [f".new-{pid}-{start}-abc", "t-one"]
    (runtime / f".new-{pid}-{start}-abc").rmdir()


def test_a_pod_ends_in_the_moment_of_the_next_deploy(runtime: Path) -> None:
    """The root zygote finds both in one look, and the new pod gets the numbers of the old one's descriptors."""
    apply("t-one")
    front, zygote = pids(record_of("t-one"))[:2]
    root = processes.table()[front[0]].parent

    async def deploy() -> str:
        [started] = local_backend()._zygotes.values()
        task = asyncio.ensure_future(local_backend().apply(ServiceSpec("t-two", kt.Compute()), lambda *_: None))
        while not started.result()._waiting:
            await asyncio.sleep(0.001)
        os.kill(root, signal.SIGCONT)
        return (await task).endpoints[0].url

    os.kill(root, signal.SIGSTOP)
    try:
        for pid, _ in (front, zygote):
            os.kill(pid, signal.SIGKILL)
        while alive([front, zygote]):
            time.sleep(0.001)
        assert get_portal().run(deploy(), 10).startswith("http")
    finally:
        os.kill(root, signal.SIGCONT)
    delete("t-two")


# -- two at once -------------------------------------------------------------------------------------------------------


def test_two_processes_deploy_one_name_at_once(runtime: Path) -> None:
    """One of them makes the pod, the other uses it."""
    code = "tell(0); sys.stdin.readline(); tell(apply('t-one').url); sys.stdin.readline()"
    clients = [Client(code) for _ in range(3)]
    try:
        for client in clients:
            client.read()
        for client in clients:
            client.go_on()
        assert len({client.read() for client in clients}) == 1
    finally:
        for client in clients:
            client.__exit__()


def test_a_deployer_that_dies_is_not_waited_for(runtime: Path) -> None:
    """Its half-made service is taken over by who waits."""
    with Client("tell(os.getpid()); sys.stdin.readline()") as other:
        pid = other.read()
        path = runtime / "t-one"
        path.mkdir()
        said = {"machine": processes.machine(), "deployer": [pid, processes.start_of(pid)], "pod": {}}
        (path / "service.json").write_text(json.dumps(said))
        assert record_of("t-one").state == "starting"
        waiting = asyncio.Event()

        class Watching(Lines):
            def __call__(self, phase: Phase, detail: str = "") -> None:
                if phase is Phase.WAITING and f"process {pid}" in detail:
                    waiting.set()

        async def wait_and_deploy() -> str:
            task = asyncio.ensure_future(local_backend().apply(ServiceSpec("t-one", kt.Compute()), Watching()))
            await waiting.wait()
            other.process.kill()
            return (await task).endpoints[0].url

        assert get_portal().run(wait_and_deploy(), 10).startswith("http")
