"""transport/bulk.py: large payloads both ways, broken downloads, memory."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest

from kubetorch_jupyter.calls import invoke, invoke_async
from kubetorch_jupyter.errors import PayloadTooLargeError, RecordExpiredError
from kubetorch_jupyter.transport import bulk, payload
from kubetorch_jupyter.transport.portal import get_portal
from pod_server import serialization
from pod_server.wire import INLINE_LIMIT, FrameType
from tests.scripted import PLAIN, ScriptedCall, ScriptedPod, ScriptedTarget


@pytest.fixture(scope="module")
def pod() -> Iterator[ScriptedPod]:
    with ScriptedPod() as pod:
        yield pod


@pytest.fixture
def target(pod: ScriptedPod) -> ScriptedTarget:
    pod.handlers["echo"] = _echo
    pod.requests.clear()
    return ScriptedTarget(pod)


async def _echo(call: ScriptedCall) -> None:
    call.result(call.args[0])


@pytest.mark.parametrize("size", [0, INLINE_LIMIT - 100, INLINE_LIMIT, INLINE_LIMIT + 1, 1 << 20, (9 << 20) + 3])
def test_bytes_of_any_size(target: ScriptedTarget, size: int) -> None:
    data = os.urandom(1024) * (size // 1024 + 1)
    assert invoke(target, "echo", (data[:size],), {}, PLAIN) == data[:size]


def test_arrays_come_back_writable(target: ScriptedTarget) -> None:
    np = pytest.importorskip("numpy")
    arrays = {
        "large": np.arange(300_000.0),
        "small": np.arange(3),
        "empty": np.empty((0, 3)),
        "nested": [np.ones(5000)],
    }
    came = invoke(target, "echo", (arrays,), {}, PLAIN)
    assert all((came[k] == arrays[k]).all() for k in ("large", "small", "empty"))
    assert (came["nested"][0] == 1).all()
    for array in (came["large"], came["small"], came["nested"][0]):
        array[0] = 5
        assert array[0] == 5


def test_small_calls_go_on_beside_a_large_one(target: ScriptedTarget) -> None:
    async def slowest_of_all() -> float:
        large = asyncio.create_task(invoke_async(target, "echo", (bytes(32 << 20),), {}, PLAIN))
        slowest = 0.0
        while not large.done():
            start = time.monotonic()
            await invoke_async(target, "echo", (1,), {}, PLAIN)
            slowest = max(slowest, time.monotonic() - start)
        await large
        return slowest

    # The scripted pod copies the payload on its loop; the client holds nothing up. A pause of this process does.
    assert min(asyncio.run(slowest_of_all()) for _ in range(3)) < 0.5


def test_a_broken_download_goes_on_where_it_broke(target: ScriptedTarget, pod: ScriptedPod) -> None:
    data = os.urandom(1 << 20) * 6
    pod.cut_download_at = 3 << 20
    assert invoke(target, "echo", (data,), {}, PLAIN) == data
    assert len(pod.requests) == 2
    assert pod.requests[0] == b""
    start = int(pod.requests[1].removeprefix(b"bytes=").removesuffix(b"-"))
    assert 0 < start <= 3 << 20


def test_a_stalled_download_is_broken_off_and_taken_up_again(
    target: ScriptedTarget, pod: ScriptedPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "_STALLED", 0.3)
    monkeypatch.setattr(bulk, "_IDLE", 0.1)
    original = pod._get
    stalls = iter([True])

    async def stall(scope: object, receive: object, send: object) -> None:
        if next(stalls, False):
            await asyncio.sleep(2)
        else:
            await original(scope, receive, send)

    monkeypatch.setattr(pod, "_get", stall)
    data = bytes(300_000)
    with ScriptedTargetSession(target):
        assert invoke(target, "echo", (data,), {}, PLAIN) == data


class ScriptedTargetSession:
    """A session of its own, so that no connection from before is used."""

    def __init__(self, target: ScriptedTarget) -> None:
        self.target = target

    def __enter__(self) -> None:
        session = self.target.live
        if session is not None:
            get_portal().run(session.close())

    def __exit__(self, *exc: object) -> None: ...


def test_a_break_of_the_session_in_an_upload_does_not_start_the_call_twice(
    target: ScriptedTarget, pod: ScriptedPod
) -> None:
    started: list[int] = []

    async def count(call: ScriptedCall) -> None:
        started.append(len(call.args[0]))
        await asyncio.sleep(0.1)
        call.result(len(call.args[0]))

    pod.handlers["count"] = count
    timer = threading.Timer(0.05, pod.cut)
    timer.start()
    assert invoke(target, "count", (bytes(48 << 20),), {}, PLAIN) == 48 << 20
    timer.join()
    assert started == [48 << 20]


def test_a_result_that_is_no_longer_kept(target: ScriptedTarget, pod: ScriptedPod) -> None:
    async def lose(call: ScriptedCall) -> None:
        call.final = b""
        frame = pod.payload_frame(FrameType.RESULT, call.channel, {}, serialization.dumps(bytes(200_000)))
        pod.files.clear()
        call.send(frame)

    pod.handlers["lose"] = lose
    with pytest.raises(RecordExpiredError):
        invoke(target, "lose", (), {}, PLAIN)


def test_more_than_the_limit_is_refused_before_it_is_sent(
    target: ScriptedTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serialization, "MAX_BYTES", 1 << 20)
    with pytest.raises(PayloadTooLargeError, match="GiB"):
        invoke(target, "echo", (bytes(2 << 20),), {}, PLAIN)


def test_stop_in_an_upload_lets_go_of_the_arguments(target: ScriptedTarget, pod: ScriptedPod) -> None:
    async def main() -> None:
        task = asyncio.create_task(invoke_async(target, "echo", (bytes(64 << 20),), {}, PLAIN))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    start = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - start < 1.5
    assert invoke(target, "echo", (1,), {}, PLAIN) == 1


def test_allocate_is_writable_and_of_the_size() -> None:
    for size in (0, 1, 1 << 10, 1 << 20):
        memory = payload.allocate(size)
        assert memory.nbytes == size
        assert not memory.readonly


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures with /proc")
def test_the_client_needs_hardly_more_than_one_payload(pod: ScriptedPod) -> None:
    async def make(call: ScriptedCall) -> None:
        call.result(len(call.args[0]))

    pod.handlers["length"] = make
    size = 128 << 20
    code = f"""
        import resource
        from kubetorch_jupyter.calls import CallOptions, invoke
        from kubetorch_jupyter.transport.endpoint import Endpoint
        from kubetorch_jupyter.transport.sharing import get_session

        class Target:
            name = label = "echo"
            live, foreign = None, False
            async def session(self):
                return await get_session(Endpoint("echo", "{pod.endpoint.url}", "{pod.token}"))

        options = CallOptions(stream_logs=False)
        data = bytearray({size})
        invoke(Target(), "length", (b"x" * 100_000,), {{}}, options)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert invoke(Target(), "length", (data,), {{}}, options) == {size}
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=30, check=False
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 0.05 * size + (30 << 20)
