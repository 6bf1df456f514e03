"""transport/session.py and link.py against a scripted pod: breaks, black holes, other pods, refusals."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kubetorch_jupyter.calls import invoke, invoke_async, spawn
from kubetorch_jupyter.calls.run import Run, encode_arguments
from kubetorch_jupyter.config import config
from kubetorch_jupyter.errors import (
    AuthenticationError,
    CallCancelledError,
    ConnectionFailedError,
    PodLostError,
    PodTerminatedError,
    VersionMismatchError,
    WorkerDiedError,
)
from kubetorch_jupyter.transport import link
from kubetorch_jupyter.transport.endpoint import Endpoint
from kubetorch_jupyter.transport.portal import get_portal
from kubetorch_jupyter.transport.session import RemoteFailure, Session
from kubetorch_jupyter.transport.sharing import get_session, hold_reading
from pod_server import wire
from pod_server.wire import FrameType, LogKind
from tests.scripted import PLAIN, SHOWN, ScriptedCall, ScriptedPod, ScriptedTarget
from tests.waiting import until


@pytest.fixture
def pod() -> Iterator[ScriptedPod]:
    with ScriptedPod() as pod:
        yield pod


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timings of a tenth, so that silence needn't be waited for."""
    for name in ("_SILENCE_BUSY", "_SILENCE_IDLE", "_OPEN_TIMEOUT", "_CONNECT_TIMEOUT"):
        monkeypatch.setattr(link, name, getattr(link, name) / 10)


def _open(pod: ScriptedPod) -> Session:
    return get_portal().run(get_session(pod.endpoint), 10)


def _sent(pod: ScriptedPod, type: FrameType) -> list[tuple[int, dict[str, Any]]]:
    return [(channel, meta) for t, channel, meta in pod.seen if t is type]


async def _echo(call: ScriptedCall) -> None:
    call.result(call.args[0])


def test_one_session_for_one_pod_and_its_hello(pod: ScriptedPod) -> None:
    first, second = _open(pod), _open(pod)
    assert first is second
    assert first.usable
    assert first.connected
    [hello] = pod.hellos
    assert hello["client"] == first.client
    assert {"protocol", "pid", "host", "user", "notebook", "python", "cloudpickle"} <= hello.keys()
    assert first.welcome["service"] == "echo"


def test_a_wrong_token_is_an_authentication_error(pod: ScriptedPod) -> None:
    endpoint = Endpoint("echo", pod.endpoint.url, "wrong")
    with pytest.raises(AuthenticationError, match="refused our token"):
        get_portal().run(get_session(endpoint), 5)
    assert "wrong" not in repr(endpoint)


def test_another_protocol_is_a_version_mismatch(pod: ScriptedPod) -> None:
    pod.protocol = 99
    with pytest.raises(VersionMismatchError, match="99"):
        _open(pod)


@pytest.mark.usefixtures("quick")
def test_nobody_there_is_a_connection_error_that_names_the_service() -> None:
    with pytest.raises(ConnectionFailedError, match='"ghost"'):
        get_portal().run(get_session(Endpoint("ghost", "http://127.0.0.1:1", "t")), 5)


def test_a_pod_that_is_known_to_be_gone_is_not_waited_for() -> None:
    lost = PodLostError(service="ghost", reason="its process ended with code 3")
    endpoint = Endpoint("ghost", "http://127.0.0.1:1", "t", gone=lambda _: lost)
    start = time.monotonic()
    with pytest.raises(PodLostError, match="code 3"):
        get_portal().run(get_session(endpoint), 5)
    assert time.monotonic() - start < 1


def test_a_handshake_that_is_not_answered_is_soon_tried_again(
    pod: ScriptedPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_CONNECT_TIMEOUT", "_OPEN_TIMEOUT"):
        monkeypatch.setattr(link, name, 60.0)
    monkeypatch.setattr(link, "_FIRST_TRY", 0.1)
    pod.deaf = True
    opening = asyncio.run_coroutine_threadsafe(get_session(pod.endpoint), get_portal().loop)
    until(lambda: pod.unheard)
    pod.deaf = False
    session = opening.result(10)
    assert get_portal().run(session.request("status"), 5) == {"op": "status"}


def test_credentials_may_take_longer_than_a_connection(pod: ScriptedPod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_CONNECT_TIMEOUT", 1.0)
    asked: list[bool] = []

    async def ask(renew: bool) -> dict[str, str]:
        asked.append(renew)
        await asyncio.sleep(2.0)
        return {"X-Who": "me"}

    session = get_portal().run(get_session(dataclasses.replace(pod.endpoint, credentials=ask)), 10)
    assert get_portal().run(session.request("status"), 5) == {"op": "status"}
    assert asked == [False]


def test_requests_and_their_errors(pod: ScriptedPod) -> None:
    session = _open(pod)
    assert get_portal().run(session.request("status"), 5) == {"op": "status"}


def test_a_break_loses_no_call_no_line_and_starts_nothing_twice(
    pod: ScriptedPod, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    started: list[int] = []

    async def slow(call: ScriptedCall) -> None:
        number = call.args[0]
        started.append(number)
        for i in range(40):
            call.log(f"{number}:{i}\n".encode())
            await asyncio.sleep(0.01)
        call.result(number)

    pod.handlers[""] = slow
    target = ScriptedTarget(pod)

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(invoke_async(target, None, (n,), {}, SHOWN)) for n in range(5)]
        for _ in range(4):
            await asyncio.sleep(0.08)
            pod.cut()
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == list(range(5))
    assert sorted(started) == list(range(5))
    lines = [line.split(b" ")[-1] for line in capsysbinary.readouterr().out.splitlines()]
    for n in range(5):
        assert [line for line in lines if line.startswith(b"%d:" % n)] == [b"%d:%d" % (n, i) for i in range(40)]
    assert len(pod.hellos) > 1
    assert len({hello["client"] for hello in pod.hellos}) == 1


def test_calls_that_the_pod_never_saw_are_sent_again_and_others_resumed_in_order(pod: ScriptedPod) -> None:
    pod.handlers[""] = _echo
    target = ScriptedTarget(pod)
    assert invoke(target, None, (0,), {}, PLAIN) == 0
    pod.seen.clear()
    hold = asyncio.run_coroutine_threadsafe(_event(), pod.loop).result(5)

    async def waiting(call: ScriptedCall) -> None:
        await hold.wait()
        call.result(call.args[0])

    pod.handlers[""] = waiting

    async def main() -> list[Any]:
        seen = asyncio.create_task(invoke_async(target, None, ("seen",), {}, PLAIN))
        while not _sent(pod, FrameType.CALL):
            await asyncio.sleep(0.01)
        pod.deaf = True
        unseen = asyncio.create_task(invoke_async(target, None, ("unseen",), {}, PLAIN))
        while not pod.unheard:
            await asyncio.sleep(0.01)
        pod.cut()
        await asyncio.sleep(0.2)
        pod.loop.call_soon_threadsafe(hold.set)
        return await asyncio.gather(seen, unseen)

    assert asyncio.run(main()) == ["seen", "unseen"]
    taken_up = [(t, c) for t, c, _ in pod.seen if t in (FrameType.CALL, FrameType.RESUME)]
    assert taken_up == [(FrameType.CALL, 2), (FrameType.RESUME, 2), (FrameType.CALL, 3)]


async def _event() -> asyncio.Event:
    return asyncio.Event()


def test_a_cancel_and_acknowledgements_are_said_again_after_a_break(pod: ScriptedPod) -> None:
    reasons: list[str] = []

    async def stubborn(call: ScriptedCall) -> None:
        reasons.append(await call.cancelled)
        call.error(type="CallCancelledError")

    pod.handlers[""] = stubborn
    pod.handlers["echo"] = _echo
    target = ScriptedTarget(pod)
    invoke(target, "echo", (1,), {}, PLAIN)

    async def main() -> None:
        task = asyncio.create_task(invoke_async(target, None, (), {}, PLAIN))
        while len(_sent(pod, FrameType.CALL)) < 2:
            await asyncio.sleep(0.01)
        pod.deaf = True
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    until(lambda: pod.unheard)
    pod.cut()
    until(lambda: reasons)
    assert reasons == ["user"]
    assert [channel for channel, _ in _sent(pod, FrameType.ACK)].count(1) >= 2


def test_another_incarnation_loses_the_open_calls_and_never_reruns_them(pod: ScriptedPod) -> None:
    ran: list[int] = []

    async def forever(call: ScriptedCall) -> None:
        ran.append(1)
        await asyncio.Event().wait()

    pod.handlers[""] = forever
    target = ScriptedTarget(pod)

    async def main() -> None:
        task = asyncio.create_task(invoke_async(target, None, (), {}, PLAIN))
        while not ran:
            await asyncio.sleep(0.01)
        session = target.live
        assert session is not None
        pod.incarnation = "two"
        pod.cut()
        with pytest.raises(PodLostError, match="another process") as info:
            await task
        assert info.value.call_id is not None
        assert not session.usable

    asyncio.run(main())
    assert ran == [1]


@pytest.mark.parametrize("told", [{"cause": "oom", "limit": 1 << 20}, {}, None], ids=["told", "untold", "unknown"])
def test_how_a_worker_s_container_ended_is_asked_of_the_backend(
    pod: ScriptedPod, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any] | None
) -> None:
    async def explain() -> dict[str, Any]:
        if told is None:
            raise ConnectionFailedError("the API server is away")
        return told

    endpoint = dataclasses.replace(pod.endpoint, explain=explain)
    monkeypatch.setattr(ScriptedPod, "endpoint", endpoint)

    async def die(call: ScriptedCall) -> None:
        meta = {"event": "worker-died", "text": "it has died", "container": True}
        call.send(wire.encode(FrameType.EVENT, 0, meta))
        call.error(type="WorkerDiedError", message="ended with its container", cause="exit", container=True)

    pod.handlers[""] = die
    target = ScriptedTarget(pod)

    async def main() -> None:
        with pytest.raises(WorkerDiedError) as info:
            await invoke_async(target, None, (), {}, PLAIN)
        assert info.value.cause == (told or {}).get("cause", "exit")
        assert info.value.limit == (told or {}).get("limit")
        session = target.live
        assert session is not None
        # New calls go to other pods, if there are any, until it has a worker again.
        assert session.draining
        ready = wire.encode(FrameType.EVENT, 0, {"event": "worker-ready", "text": "loaded"})
        pod.do(lambda: pod.send(session.client, ready))
        while session.draining:
            await asyncio.sleep(0.01)

    asyncio.run(main())


@pytest.mark.usefixtures("quick")
def test_a_black_hole_is_noticed_and_left(pod: ScriptedPod) -> None:
    async def slow(call: ScriptedCall) -> None:
        await asyncio.sleep(0.1)
        pod.deaf = True
        call.result("in the hole")

    pod.handlers[""] = slow
    target = ScriptedTarget(pod)

    async def main() -> Any:
        task = asyncio.create_task(invoke_async(target, None, (), {}, PLAIN))
        while not pod.deaf:
            await asyncio.sleep(0.01)
        # New connections work, the old one takes everything and says nothing.
        while len(pod.hellos) < 2:
            await asyncio.sleep(0.02)
            if _lost_patience(pod):
                pod.deaf = False
        return await task

    start = time.monotonic()
    assert asyncio.run(main()) == "in the hole"
    assert time.monotonic() - start < 5
    assert len(pod.hellos) == 2


def _lost_patience(pod: ScriptedPod) -> bool:
    return not pod.connections


def test_silence_is_broken_by_pings_and_the_connection_kept(pod: ScriptedPod, quick: None) -> None:
    async def slow(call: ScriptedCall) -> None:
        await asyncio.sleep(0.9)
        call.result(1)

    pod.handlers[""] = slow
    assert invoke(ScriptedTarget(pod), None, (), {}, PLAIN) == 1
    assert _sent(pod, FrameType.PING)
    assert len(pod.hellos) == 1


def test_a_session_that_is_held_while_it_connects_is_welcomed(
    pod: ScriptedPod, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hello = link._hello

    def hold_and_hello(client: str) -> dict[str, Any]:
        hold_reading(True)
        return hello(client)

    monkeypatch.setattr(link, "_hello", hold_and_hello)
    session = _open(pod)
    get_portal().call(hold_reading, False)
    assert get_portal().run(session.request("status"), 5)
    assert len(pod.hellos) == 1


def test_open_calls_are_lost_when_no_connection_comes_back(pod: ScriptedPod) -> None:
    async def forever(call: ScriptedCall) -> None:
        pod.refuse = True
        for queue in pod.connections.values():
            queue.put_nowait(None)
        await asyncio.Event().wait()

    pod.handlers[""] = forever
    config.reconnect_timeout = 0.4
    try:
        with pytest.raises(PodLostError, match="no connection for"):
            invoke(ScriptedTarget(pod), None, (), {}, PLAIN)
    finally:
        config.reconnect_timeout = None


def test_goodbye_ends_open_calls_with_its_reason(pod: ScriptedPod) -> None:
    from pod_server import wire

    async def goodbye(call: ScriptedCall) -> None:
        call.send(wire.encode(FrameType.GOODBYE, 0, {"reason": "the service was torn down"}))

    pod.handlers[""] = goodbye
    with pytest.raises(PodLostError, match="torn down"):
        invoke(ScriptedTarget(pod), None, (), {}, PLAIN)


@pytest.mark.parametrize("size", [10, 2 << 20], ids=["in the frame", "beside it"])
def test_what_the_pod_has_not_read_when_it_ends_is_begun_on_another(pod: ScriptedPod, size: int) -> None:
    async def forever(call: ScriptedCall) -> None:
        if call.args[0] == b"begun":
            await asyncio.Event().wait()
        call.result(len(call.args[0]))

    pod.handlers[""] = forever
    target = ScriptedTarget(pod)
    begun = spawn(target, None, (b"begun",), {}, PLAIN)
    until(lambda: _sent(pod, FrameType.CALL))
    pod.deaf = True
    unread = spawn(target, None, (bytes(size),), {}, PLAIN)
    before = unread.id
    session = _open(pod)
    assert session.open_calls == 2
    until(lambda: pod.unheard)
    pod.deaf = False
    pod.goodbye(session.client)
    with pytest.raises(PodTerminatedError, match="it ends"):
        begun.result(10)
    assert unread.result(10) == size
    assert unread.id != before
    assert [len(call.args[0]) for call in pod.calls.values()] == [5, size]


def test_what_the_pod_has_not_read_is_not_begun_elsewhere_once_its_arguments_have_gone(pod: ScriptedPod) -> None:
    pod.handlers[""] = _echo
    target = ScriptedTarget(pod)
    call = Run(target, None, encode_arguments(target, (1,), {}, PLAIN, snapshot=True), PLAIN)
    call.frame()
    call.bulk, call.buffers = True, [b"x"]
    assert call.payload() == [b"x"]
    call.sent = True
    call.settled()
    call.take_back()
    assert call.sent


def test_a_pod_that_says_it_ends_gets_no_more_calls(pod: ScriptedPod) -> None:
    pod.handlers[""] = _echo
    target = ScriptedTarget(pod)
    assert invoke(target, None, (1,), {}, PLAIN) == 1
    session = _open(pod)
    pod.do(lambda: pod.send(session.client, wire.encode(FrameType.EVENT, 0, {"event": "stopping"})))
    until(lambda: not session.usable)
    assert invoke(target, None, (2,), {}, PLAIN) == 2
    assert len({hello["client"] for hello in pod.hellos}) == 2


def test_a_goodbye_with_an_error_type_is_that_error(pod: ScriptedPod) -> None:
    from pod_server import wire

    async def goodbye(call: ScriptedCall) -> None:
        call.send(wire.encode(FrameType.GOODBYE, 0, {"reason": "other version", "error": "VersionMismatchError"}))

    pod.handlers[""] = goodbye
    with pytest.raises(VersionMismatchError, match="other version"):
        invoke(ScriptedTarget(pod), None, (), {}, PLAIN)


def test_garbage_from_the_pod_ends_the_session_with_an_error(pod: ScriptedPod) -> None:
    async def garbage(call: ScriptedCall) -> None:
        call.send(b"\xff" * 40)

    pod.handlers[""] = garbage
    with pytest.raises(ConnectionFailedError, match="makes no sense"):
        invoke(ScriptedTarget(pod), None, (), {}, PLAIN)


def test_a_request_that_breaks_the_connection_is_not_repeated_for_ever(pod: ScriptedPod) -> None:
    session = _open(pod)
    original = pod._on_frame

    def breaking(client: str, frame: Any) -> None:
        original(client, frame)
        if frame.type is FrameType.REQUEST:
            raise RuntimeError("provoked")

    pod._on_frame = breaking  # type: ignore[method-assign]
    pod.send = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(ConnectionFailedError, match="asked to status"):
        get_portal().run(session.request("status"), 10)
    assert len(_sent(pod, FrameType.REQUEST)) == 4


def test_close_ends_open_calls_and_a_new_session_can_be_had(pod: ScriptedPod) -> None:
    pod.handlers["echo"] = _echo

    async def forever(call: ScriptedCall) -> None:
        await asyncio.Event().wait()

    pod.handlers[""] = forever
    target = ScriptedTarget(pod)

    async def main() -> None:
        task = asyncio.create_task(invoke_async(target, None, (), {}, PLAIN))
        while not _sent(pod, FrameType.CALL):
            await asyncio.sleep(0.01)
        session = target.live
        assert session is not None
        await get_portal().wrap(session.close())
        with pytest.raises(CallCancelledError, match="closed"):
            await task
        assert not session.usable

    asyncio.run(main())
    assert invoke(target, "echo", (5,), {}, PLAIN) == 5
    assert get_portal().run(get_session(Endpoint("x", "http://127.0.0.1:2", "t"), connect=False)) is None


def test_load_gives_the_meta_and_its_log_and_errors(
    pod: ScriptedPod, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    from kubetorch_jupyter.calls import decode_error
    from kubetorch_jupyter.streams import open_output

    async def load(call: ScriptedCall) -> None:
        call.log(b"loading\n", LogKind.STDOUT)
        if call.meta["version"] == "bad":
            call.fail(ValueError("broken code"))
        else:
            assert [len(b) for b in call.buffers] == [2, 3]
            call.result(None, worker=3)

    pod.handlers["load"] = load
    session = _open(pod)

    async def go(version: str) -> dict[str, Any]:
        return await session.load({"version": version, "kind": "fn"}, [b"ab", b"cde"], open_output("load"))

    assert get_portal().run(go("good"), 5)["worker"] == 3
    assert capsysbinary.readouterr().out == b"loading\n"
    with pytest.raises(RemoteFailure) as info:
        get_portal().run(go("bad"), 5)
    error = decode_error(info.value.meta, info.value.buffers)
    assert isinstance(error, ValueError)
    assert str(error) == "broken code"


def test_a_gap_in_the_log_is_said(pod: ScriptedPod, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    from pod_server import wire

    async def gap(call: ScriptedCall) -> None:
        call.log(b"first\n")
        entry = wire.encode_log(LogKind.STDOUT, b"later\n")
        call.send(wire.encode(FrameType.LOG, call.channel, {"o": 1000, "gap": True}, [entry], wire.F_ENTRY))
        call.result(1)

    pod.handlers[""] = gap
    assert invoke(ScriptedTarget(pod), None, (), {}, SHOWN) == 1
    out, err = capsysbinary.readouterr()
    assert out == b"first\nlater\n"
    assert b"no longer kept" in err
