"""How a pod ends: with its owner, when nobody calls, on request; and what it does about memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from pod_server.processes import start_of
from pod_server.wire import FrameType
from tests.waiting import until

from .podtools import ROOT, Client, Front, played, until_async


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def test_ends_with_its_last_owner(owner: subprocess.Popen[bytes]) -> None:
    with Front(owners=[owner.pid]) as front:
        bulk = os.path.realpath(os.path.join(front.dir, "bulk"))
        assert os.path.isdir(bulk)
        second = subprocess.Popen(["sleep", "60"])

        async def adopt() -> None:
            client = await Client(front).open()
            answer = await client.request("adopt", pid=second.pid, start=start_of(second.pid))
            assert set(answer["owners"]) == {owner.pid, second.pid}
            again = await client.request("adopt", pid=second.pid, start=start_of(second.pid))
            assert again == answer
            for bad in ({"pid": 0}, {"pid": "x"}, {"pid": 2**22 + 5}, {"pid": second.pid, "start": 1}, {}):
                assert (await client.request("adopt", **bad))["error"]["type"] == "CallError"
            await client.close()

        asyncio.run(adopt())
        end(owner)
        assert not front.ended(0.3)
        begin = time.monotonic()
        end(second)
        assert front.ended(2)
        print(f"ended {(time.monotonic() - begin) * 1000:.0f} ms after its owner")
        assert front.status == 0
        assert not os.path.exists(bulk)
        assert not os.path.exists(os.path.dirname(front.dir)), "the empty runtime directory was left"


def test_an_owner_that_has_ended_before(owner: subprocess.Popen[bytes]) -> None:
    end(owner)
    front = Front(owners=[owner.pid], wait=False)
    assert front.ended(5)
    front.close()


def test_detached_outlives_its_owner(owner: subprocess.Popen[bytes]) -> None:
    with Front(owners=[owner.pid], detach=True) as front:
        end(owner)
        assert not front.ended(0.4)


def test_other_services_in_the_runtime_directory_stay() -> None:
    with Front() as front:
        other = os.path.join(os.path.dirname(front.dir), "other")
        os.mkdir(other)
        front.signal(15)
        assert front.ended(5)
        assert os.path.isdir(other)
        os.rmdir(other)
        os.rmdir(os.path.dirname(other))


def test_ttl_counts_calls_only() -> None:
    async def run(front: Front) -> None:
        async with played(front) as (zygote, client):
            seq = await client.call("hang")
            await until_async(lambda: zygote.last.calls)
            # Only now is it so short: what came before may take its time.
            await client.value(await client.load("v1", ttl=0.6))
            begin = time.monotonic()
            while time.monotonic() - begin < 1.0:
                await client.request("status")
                await asyncio.sleep(0.05)
            assert not front.ended(), "it ended in the middle of a call"
            begin = time.monotonic()
            zygote.last.result(next(iter(zygote.last.calls)), b"")
            await client.value(seq)
            await client.until(lambda: client.goodbye)
            # Listings and sessions were no activity; a touch is.
            assert 0.6 <= time.monotonic() - begin < 5
            assert "time to live" in client.goodbye["reason"]  # type: ignore[index]

    with Front(ttl=30) as front:
        asyncio.run(run(front))
        assert front.ended(2)


def test_ttl_of_a_load_and_touch() -> None:
    async def run(front: Front) -> None:
        async with played(front) as (zygote, client):
            seq = await client.call("hang")  # nothing ends meanwhile, however long it takes
            await until_async(lambda: zygote.last.calls)
            for ttl in (0.3, None):
                await client.value(await client.load("v1", ttl=ttl))
                assert (await client.request("status"))["ttl"] == ttl
            zygote.last.result(next(iter(zygote.last.calls)), b"")
            await client.value(seq)
            await asyncio.sleep(0.6)
            assert client.goodbye is None
            await client.value(await client.load("v1", ttl=2))
            await asyncio.sleep(0.5)
            touched = time.monotonic()
            await client.request("touch")
            await client.until(lambda: client.goodbye)
            assert time.monotonic() - touched >= 2

    with Front(ttl=30) as front:
        asyncio.run(run(front))
        assert front.ended(2)


def test_ends_with_its_zygote() -> None:
    async def run(front: Front) -> None:
        async with played(front) as (zygote, client):
            zygote.writer.close()
            await client.until(lambda: client.code is not None)
            assert "zygote" in client.goodbye["reason"]  # type: ignore[index]

    with Front() as front:
        asyncio.run(run(front))
        assert front.ended(2)


def test_teardown_kills_workers_first() -> None:
    async def run(front: Front) -> None:
        async with played(front) as (zygote, client):
            await client.request("teardown")
            await until_async(lambda: front.ended())
            assert not zygote.alive
            assert client.goodbye is not None

    with Front() as front:
        asyncio.run(run(front))


@pytest.mark.timed
def test_a_front_that_ends_takes_nothing_more_and_says_what_it_has_read() -> None:
    async def run(front: Front) -> None:
        async with played(front) as (zygote, client):
            take = zygote.take
            zygote.take = lambda frame: frame.type is FrameType.KILL or take(frame)  # type: ignore[assignment, method-assign]
            begun = await client.call("hang")
            await until_async(lambda: zygote.last.named(FrameType.CALL))
            front.signal(15)
            await client.until(lambda: client.events and client.events[-1]["event"] == "stopping")
            with contextlib.suppress(ConnectionClosed):
                await client.call("hang")
            await client.until(lambda: client.code is not None)
            assert client.results[begun].meta["error"]["type"] == "PodTerminatedError"
            assert list(client.results) == [begun - 1, begun]  # the first was the LOAD
            assert client.goodbye is not None
            assert client.goodbye["high_water"] == begun
            # It waits for its workers, and has a little time for nobody else.
            late = await Client(front).open()
            await late.until(lambda: late.code is not None)
            assert not late.welcome
            assert late.goodbye == {"reason": "the pod is ending"}
            assert len(zygote.last.named(FrameType.CALL)) == 1
            await until_async(lambda: front.ended())

    with Front() as front:
        asyncio.run(run(front))
        assert front.status == 0, "a worker that doesn't end is left to the zygote"


def test_memory_limit_with_a_played_worker() -> None:
    """The worker's process is one of ours that takes more and more; the played zygote is only told to kill it."""
    code = "import time; b = [(b'x' * (1 << 20), time.sleep(0.005)) for _ in range(400)]; time.sleep(60)"
    hog = subprocess.Popen([sys.executable, "-c", code])

    async def run(front: Front) -> None:
        async with played(front, load=None) as (zygote, client):

            async def pose(worker: Any) -> bool:
                # As if the hog had connected.
                zygote.send(FrameType.FORKED, 0, {"worker": worker.number, "pid": os.getpid()})
                return True

            zygote.on_fork = pose
            await client.value(await client.load("v1"))
            zygote.send(FrameType.FORKED, 0, {"worker": 1, "pid": hog.pid})
            seq = await client.call("hang")
            # The limit comes with new code, without a new worker.
            await client.value(await client.load("v2", memory_limit=200 << 20))
            error = await client.error(seq)
            assert (error["type"], error["cause"], error["limit"]) == ("WorkerDiedError", "oom", 200 << 20)
            assert "200 MiB" in error["message"]

    try:
        with Front() as front:
            asyncio.run(run(front))
    finally:
        end(hog)


def test_with_the_real_zygote() -> None:
    """Front and zygote as on Kubernetes: two processes that only share a directory."""
    with Front() as front:
        zygote = subprocess.Popen([sys.executable, "-m", "pod_server", "zygote", "--dir", front.dir], cwd=ROOT)

        async def run() -> None:
            client = await Client(front).open()
            # No code that could be loaded: a real worker says so.
            seq = await client.load("v1", env={"PATH": os.environ["PATH"]}, cwd=ROOT, sys_path=sys.path)
            error = await client.error(seq, 20)
            print(error)
            assert error["type"] in ("user", "StartupError")
            assert (await client.request("status"))["state"] == "failed"
            await client.close()

        asyncio.run(run())
        front.signal(15)
        assert front.ended(5)
        until(lambda: zygote.poll() is not None)
        assert zygote.returncode == 0
