"""Front and zygote as two containers: each with processes of its own, and a life of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pod_server.codefile import missing, pack
from tests.pod_server.containers import ISOLATED, Containers, User, load_of, memory_group, of_a_cell, on_a_loop, python
from tests.waiting import until

needs_namespaces = pytest.mark.skipif(not ISOLATED, reason="process namespaces are for root, with unshare (util-linux)")


@pytest.fixture
def pod() -> Iterator[Containers]:
    with Containers() as pod:
        yield pod.start()


@asynccontextmanager
async def user(pod: Containers) -> AsyncIterator[User]:
    found = User(pod)  # type: ignore[arg-type]
    await found.open()
    try:
        yield found
    finally:
        await found.cut()


@of_a_cell
def where() -> tuple[int, int, str]:
    """What the worker sees of itself: its pid, its parent's, and what runs beside it."""
    import os

    names = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with open(f"/proc/{entry}/comm") as f:
                names.append(f.read().strip())
    return os.getpid(), os.getppid(), " ".join(sorted(names))


@of_a_cell
def busy(text: str) -> str:
    import time

    print(text, flush=True)
    time.sleep(60)
    return text


@of_a_cell
class Counter:
    def __init__(self) -> None:
        self.n = 0

    def add(self) -> int:
        self.n += 1
        return self.n

    def busy(self) -> None:
        import time

        time.sleep(60)

    def die(self) -> None:
        import os

        os._exit(3)


@on_a_loop
async def test_a_session_and_a_teardown(pod: Containers) -> None:
    async with user(pod) as me:
        await me.deploy(where)
        pid, parent, beside = await me.ask()
        if ISOLATED:
            assert parent == 1
            assert "kt-worker-1" in beside
            assert "kt-front" not in beside
            assert len(beside.split()) == 2, beside
        assert pid != parent
        await me.request("teardown")
    assert pod.ended() == (0, 0)
    assert not (pod.dir / "front.sock").exists()


@on_a_loop
async def test_adopting_is_for_processes_of_the_same_machine(pod: Containers) -> None:
    """The client's pid may be that of anything here: pid 1 is."""
    async with user(pod) as me:
        assert await me.request("adopt", pid=1, start=None) == {"owners": []}
        assert (await me.request("status"))["owners"] == []


@on_a_loop
async def test_usage_is_asked_of_the_other_container(pod: Containers) -> None:
    async with user(pod) as me:
        before = await me.request("status", usage=True)
        assert before["memory"] in (0, None)  # no worker yet, or no zygote
        await me.deploy(_hold)
        await me.ask()
        await asyncio.sleep(0.5)
        usage = await me.request("status", usage=True)
        assert usage["memory"] > 80 << 20
        assert usage["cpu"] > 0
        assert usage["at"] is not None


@of_a_cell
def _hold() -> None:
    import builtins

    builtins.held = bytearray(b"x" * (80 << 20))  # type: ignore[attr-defined]
    sum(range(3_000_000))


@on_a_loop
async def test_several_who_ask_at_once_all_get_an_answer_when_the_zygote_goes(pod: Containers) -> None:
    async with user(pod) as me:
        await me.deploy(where)
        os.kill(pod.zygote, signal.SIGKILL)
        answers = await asyncio.gather(*(me.request("status", usage=True) for _ in range(5)))
        assert all("memory" in answer for answer in answers)


@on_a_loop
async def test_the_gpus_are_those_that_the_worker_container_sees(tmp_path: Path) -> None:
    """The front's container has no device, and may have no driver's program."""
    smi = tmp_path / "nvidia-smi"
    # It is asked without names of devices: the container has its own and no others.
    smi.write_text('#!/bin/sh\ncase "$*" in *--id*) exit 1;; esac\necho "0, 37, 1024, 81559"\n')
    smi.chmod(0o755)
    with Containers(env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}) as pod:
        pod.start()
        async with user(pod) as me:
            await me.deploy(where)
            await asyncio.sleep(0.5)
            usage = await me.request("status", usage=True)
            assert usage["gpus"] == [{"index": "0", "use": 37, "memory": 1 << 30, "memory_total": 81559 << 20}]


# -- whose packages ----------------------------------------------------------------------------------------------------


@on_a_loop
async def test_the_users_packages_count_in_the_worker_and_ours_in_the_front(tmp_path: Path) -> None:
    """An image with its own click, with a wheel of an older release of ours, and with a module that hides another."""
    for name, text in (
        ("click", "version = 'the image'"),
        ("pod_server", "raise SystemExit('an older one')"),
        ("kubetorch_jupyter", "raise SystemExit('an older one')"),
        ("h11", "raise SystemExit('not ours')"),
        ("statistics", "raise SystemExit('the user has named a module so')"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)

    def look() -> list[str]:
        import os
        import subprocess
        import sys

        import click
        import later
        import websockets

        import kubetorch_jupyter
        import pod_server

        child = subprocess.run([sys.executable, "-c", "import later"], check=False).returncode
        modules = (click, kubetorch_jupyter, pod_server, later, websockets)
        return [os.path.dirname(m.__file__ or "") for m in modules] + [str(child)]

    with Containers(env={"PYTHONPATH": str(tmp_path)}) as pod:
        pod.start()
        (pod.root / "site" / "later.py").write_text("")  # what an image step installs while the pod runs
        async with user(pod) as me:
            await me.deploy(look)
            click, client, server, later, websockets, child = await me.ask()
            assert click == str(tmp_path / "click")
            assert client.endswith("/ours/kubetorch_jupyter")
            assert server.endswith("/ours/pod_server")
            assert later == str(pod.root / "site")
            assert websockets.endswith("/websockets")
            assert child == "0"


# -- ends --------------------------------------------------------------------------------------------------------------


@on_a_loop
async def test_sigterm_is_no_success(pod: Containers) -> None:
    """A Job would count the index as done, and never replace a pod that was evicted."""
    async with user(pod) as me:
        await me.deploy(busy)
        call = await me.begin("x")
        await me.until(lambda: me.logs.get(call))
        status = await asyncio.to_thread(pod.terminate)
        assert status == (143, 143)
        assert (await me.result(call)).meta["error"]["type"] == "PodTerminatedError"
        assert me.goodbye is not None
        assert me.goodbye["error"] == "PodTerminatedError"


@pytest.mark.parametrize("running", ["nothing", "loaded"])
@on_a_loop
async def test_the_front_is_terminated_alone(pod: Containers, running: str) -> None:
    """As when it fails its liveness probe: the other container waits for the next one."""
    async with user(pod) as me:
        if running == "loaded":
            await me.deploy(where)
        else:
            await me.until_state("starting")
        pod.front.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(pod.front.wait, 10) == 143
    assert pod.worker.poll() is None
    await asyncio.to_thread(_again, pod)
    async with user(pod) as me:
        if running == "loaded":
            await me.until_state("ready")
            assert (await me.ask())[0]
        await me.request("teardown")
    assert pod.ended() == (0, 0)


def _again(pod: Containers) -> None:
    pod.start_front()
    pod.wait_for_front()


def test_sigterm_before_there_is_a_front() -> None:
    with Containers() as pod:
        pod.start_worker()
        until(lambda: pod.dir.exists(), 10)
        os.kill(pod.zygote, signal.SIGTERM)
        assert pod.worker.wait(10) == 143


@on_a_loop
async def test_the_time_to_live_completes_both() -> None:
    with Containers("--ttl", "3") as pod:
        pod.start()
        async with user(pod) as me:
            await me.deploy(where)
            await me.ask()
            assert pod.front.poll() is None
        assert await asyncio.to_thread(pod.ended) == (0, 0)


@on_a_loop
async def test_a_zygote_that_was_away_hears_of_the_end(pod: Containers) -> None:
    async with user(pod) as me:
        await me.deploy(where)
        os.kill(pod.zygote, signal.SIGKILL)
        assert await asyncio.to_thread(pod.worker.wait, 10) != 0
        await me.request("teardown")
    assert await asyncio.to_thread(pod.front.wait, 10) == 0
    pod.start_worker()
    assert await asyncio.to_thread(pod.worker.wait, 10) == 0
    pod.start_front()  # and a front that is started once more, too
    assert await asyncio.to_thread(pod.front.wait, 10) == 0


# -- crashes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [busy, Counter])
@on_a_loop
async def test_the_worker_container_dies_and_comes_again(pod: Containers, target: Any) -> None:
    method = "busy" if target is Counter else None
    args = () if target is Counter else ("x",)
    async with user(pod) as me:
        await me.deploy(target)
        if target is Counter:
            assert [await me.ask(f="add") for _ in range(2)] == [1, 2]
        call = await me.begin(*args, f=method)
        await me.until_state("ready")
        await asyncio.sleep(0.2)
        begun = time.monotonic()
        os.kill(pod.zygote, signal.SIGKILL)
        error = await me.error(call)
        assert time.monotonic() - begun < 1
        assert error["type"] == "WorkerDiedError"
        assert error["cause"] == "exit"
        assert "ended with its container" in error["message"]
        assert pod.front.poll() is None
        # A call that comes meanwhile waits for the next container.
        waiting = await me.begin(f="add") if target is Counter else None
        await asyncio.to_thread(pod.worker.wait, 10)
        pod.start_worker()
        await me.until_state("ready")
        if waiting is not None:
            assert await me.get(waiting) == 1
            lost = [e for e in me.events if e["event"] == "state-lost"]
            assert "constructed anew" in lost[0]["text"]


@on_a_loop
async def test_a_worker_dies_alone(pod: Containers) -> None:
    async with user(pod) as me:
        await me.deploy(Counter)
        call = await me.begin(f="die")
        error = await me.error(call)
        assert (error["cause"], error["exit_code"]) == ("exit", 3)
        assert await me.ask(f="add") == 1
        assert pod.worker.poll() is None


@on_a_loop
async def test_the_front_crashes_and_comes_again_with_its_code(pod: Containers) -> None:
    async with user(pod) as me:
        await me.deploy(Counter, kind="cls", name="Counter")
        assert await me.ask(f="add") == 1
        first = me.welcome["incarnation"]
        pod.front.kill()
        pod.front.wait()
    await asyncio.to_thread(_again, pod)
    assert pod.worker.poll() is None
    async with user(pod) as me:
        assert me.welcome["incarnation"] != first
        assert me.welcome["code"]["version"] == "v1"
        assert await me.ask(f="add") == 1  # a fresh instance
        assert await me.deploy(Counter, kind="cls") == {"unchanged": True}
        assert await me.ask(f="add") == 2


@on_a_loop
async def test_code_that_came_beside_the_session_is_kept_too(pod: Containers) -> None:
    """Of any size: the front's copy is another name for the file."""
    data = os.urandom(3 << 20)
    meta, buffers = load_of(_size_of(data))
    async with user(pod) as me:
        await _put(me, pod, meta, buffers)
        assert await me.ask() == len(data)
        pod.front.kill()
        pod.front.wait()
    assert len([n for n in os.listdir(pod.dir / "kept") if n.startswith("payload")]) == 1
    await asyncio.to_thread(_again, pod)
    async with user(pod) as me:
        assert await me.ask() == len(data)
        # The next one takes its place: nothing of the old one is left.
        await me.deploy(where, "v2")
        assert os.listdir(pod.dir / "kept") == ["code"]


def _size_of(data: bytes) -> Callable[[], int]:
    return lambda: len(data)


async def _put(me: User, pod: Containers, meta: dict[str, Any], buffers: list[bytes]) -> None:
    import urllib.request

    from pod_server.wire import F_BULK, F_ERROR, FrameType
    from tests.pod_server.podtools import TOKEN

    me.seq += 1
    seq = me.seq
    await me.send(FrameType.LOAD, seq, {**meta, "lens": [len(b) for b in buffers]}, (), F_BULK)
    url = f"http://127.0.0.1:{pod.port}/bulk/up/{me.id}/{seq}"
    request = urllib.request.Request(url, b"".join(buffers), {"X-Kubetorch-Token": TOKEN}, method="PUT")
    with await asyncio.to_thread(urllib.request.urlopen, request) as answer:
        assert answer.status == 204
    frame = await me.result(seq, 20)
    assert not frame.flags & F_ERROR, frame.meta


# -- code at rest ------------------------------------------------------------------------------------------------------


@on_a_loop
async def test_a_new_pod_begins_with_the_code_of_the_secret() -> None:
    for target, size in ((where, 0), (_size_of(os.urandom(300_000)), 300_000)):
        meta, buffers = load_of(target, deployed_at=time.time())
        data = pack(meta, buffers)
        assert data is not None
        with Containers() as pod:
            pod.code.write_bytes(data)
            pod.start()
            async with user(pod) as me:
                got = await me.ask()  # it waits while the code is loaded
                assert got == size if size else got[0]
                assert (await me.request("status"))["code"]["version"] == "v1"


@on_a_loop
async def test_the_newer_of_two_codes_counts() -> None:
    def one() -> int:
        return 1

    def two() -> int:
        return 2

    old, new = time.time() - 100, time.time()
    for secret_at, expected in ((old - 1, 1), (new, 2)):
        with Containers() as pod:
            pod.start()
            async with user(pod) as me:
                await me.deploy(one, "v1", deployed_at=old)
            data = pack(*load_of(two, "v2", deployed_at=secret_at))
            assert data is not None
            pod.code.write_bytes(data)
            pod.front.kill()
            pod.front.wait()
            await asyncio.to_thread(_again, pod)
            async with user(pod) as me:
                assert await me.ask() == expected


@on_a_loop
async def test_code_that_had_no_room_is_missed_by_name() -> None:
    with Containers() as pod:
        pod.code.write_bytes(missing({**load_of(where)[0], "deployed_at": 1.0}, 5_000_000))
        pod.start()
        async with user(pod) as me:
            error = await me.error(await me.begin())
            assert error["type"] == "NotDeployedError"
            assert "5.0 MB" in error["message"]
            assert "must send it again" in error["message"]
            assert (await me.request("status"))["missing"] == me.welcome["missing"] == 5_000_000
            await me.deploy(where)
            assert (await me.ask())[0]
            assert (await me.request("status"))["missing"] is None


@pytest.mark.parametrize("data", [b"", b"KTCODE1\n", b"garbage" * 100])
@on_a_loop
async def test_a_damaged_file_is_as_none(data: bytes) -> None:
    with Containers() as pod:
        pod.code.write_bytes(data)
        pod.start()
        async with user(pod) as me:
            assert (await me.error(await me.begin()))["type"] == "NotDeployedError"
        assert "can't be used" in pod.log("front")


@on_a_loop
async def test_code_that_can_not_be_loaded_any_more_is_said_to_who_calls() -> None:
    def broken() -> None:
        pass

    meta, buffers = load_of(broken, deployed_at=1.0)
    buffers[3] = b"no pickle"
    data = pack(meta, buffers)
    assert data is not None
    with Containers() as pod:
        pod.code.write_bytes(data)
        pod.start()
        async with user(pod) as me:
            error = await me.error(await me.begin())
            assert error["type"] == "StartupError"
            assert "unpickled" in error["message"]
            await me.deploy(where, "v2")
            assert (await me.ask())[0]


# -- memory ------------------------------------------------------------------------------------------------------------


@of_a_cell
def hog(mib: int) -> int:
    import os

    if mib < 0:
        os.kill(os.getpid(), 9)
    return len(bytearray(b"x") * (mib << 20))


@needs_namespaces
@pytest.mark.skipif(not Path("/sys/fs/cgroup/memory").is_dir(), reason="this machine has no control groups, version 1")
@on_a_loop
async def test_the_systems_own_kill_for_memory_is_told_with_its_limit() -> None:
    with memory_group(200 << 20) as group, Containers(group=group) as pod:
        pod.start()
        async with user(pod) as me:
            await me.deploy(hog)
            assert await me.ask(10) == 10 << 20
            begun = time.monotonic()
            error = await me.error(await me.begin(1000))
            assert error["cause"] == "oom", error
            assert error["limit"] == 200 << 20
            assert "limit of 200 MiB" in error["message"]
            assert time.monotonic() - begun < 5
            assert pod.worker.poll() is None
            assert await me.ask(10) == 10 << 20
            # A kill that has nothing to do with memory isn't taken for one, although there was one before.
            call = await me.begin(-1)
            error = await me.error(call)
            assert (error["cause"], error["signal"]) == ("signal", 9)


@pytest.mark.parametrize("version", ["3.10", "3.12", "3.13"])
@on_a_loop
async def test_an_image_of_another_python(version: str) -> None:
    interpreter = python(version)
    if interpreter is None:
        pytest.skip(f"no Python {version} here")
    with Containers(python=interpreter) as pod:
        pod.start()
        async with user(pod) as me:
            assert me.welcome["python"] == version
            # Code of this Python isn't for that one, and is refused by name; so the worker is there and works.
            meta, buffers = load_of(where)
            if meta["python"] == version:
                return
            from pod_server.wire import FrameType

            me.seq += 1
            await me.send(FrameType.LOAD, me.seq, meta, buffers)
            error = await me.error(me.seq, 20)
            assert error["type"] == "VersionMismatchError"
            await me.request("teardown")
        assert await asyncio.to_thread(pod.ended) == (0, 0)
