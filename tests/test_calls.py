"""calls/: every mode against a scripted pod: values, errors, cancelling, timeouts, items, maps, spawned calls."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from kubetorch_jupyter.calls import (
    CallOptions,
    attach_call,
    invoke,
    invoke_async,
    iterate,
    iterate_async,
    map_calls,
    recent_calls,
    spawn,
)
from kubetorch_jupyter.calls.mapping import _Window
from kubetorch_jupyter.calls.run import _MOVES, Bell, Run
from kubetorch_jupyter.errors import (
    CallCancelledError,
    CallTimeoutError,
    ConfigError,
    PodLostError,
    RemoteError,
    SerializationError,
    UnknownCallError,
    WorkerDiedError,
)
from kubetorch_jupyter.streams import Output, set_output_factory
from kubetorch_jupyter.transport.portal import get_inlet, get_portal
from kubetorch_jupyter.transport.session import Session
from pod_server.wire import FrameType, LogKind
from tests.promises import promise
from tests.scripted import PLAIN, SHOWN, ScriptedCall, ScriptedPod, ScriptedTarget
from tests.waiting import interrupt_after, until


@pytest.fixture(scope="module")
def pod() -> Iterator[ScriptedPod]:
    with ScriptedPod() as pod:
        yield pod


@pytest.fixture
def target(pod: ScriptedPod) -> ScriptedTarget:
    pod.handlers.clear()
    pod.seen.clear()
    pod.handlers["echo"] = _echo
    pod.handlers["forever"] = _forever
    pod.handlers["stuck"] = _stuck
    return ScriptedTarget(pod)


async def _echo(call: ScriptedCall) -> None:
    call.result(call.args[0] if call.args else call.kwargs)


async def _forever(call: ScriptedCall) -> None:
    """Ends when it is cancelled, as an ``async def`` would."""
    reason = await call.cancelled
    call.log(f"cancelled: {reason}\n".encode())
    call.error(type="CallCancelledError", reason=reason)


async def _stuck(call: ScriptedCall) -> None:
    """Can't be cancelled, as C code can't."""
    await asyncio.Event().wait()


def _cancels(pod: ScriptedPod) -> list[str]:
    return [meta["reason"] for type, _, meta in pod.seen if type is FrameType.CANCEL]


# -- values and errors -------------------------------------------------------------------------------------------------


def test_a_value_comes_back_in_each_mode(target: ScriptedTarget) -> None:
    value = {"a": [1, 2.5, None, "é"]}
    assert invoke(target, "echo", (value,), {}, PLAIN) == value
    assert asyncio.run(invoke_async(target, "echo", (value,), {}, PLAIN)) == value
    assert spawn(target, "echo", (value,), {}, PLAIN).result(5) == value
    assert list(map_calls(target, "echo", [(value,)], PLAIN)) == [value]
    assert invoke(target, "echo", (), {"x": 1}, PLAIN) == {"x": 1}


@pytest.mark.parametrize("ser", ["json", "none"])
def test_other_serializations(target: ScriptedTarget, ser: str) -> None:
    value: Any = b"bytes" if ser == "none" else [1, "x"]
    options = CallOptions(serialization=ser, stream_logs=False)
    assert invoke(target, "echo", (value,), {}, options) == value


def test_none_takes_one_argument(target: ScriptedTarget) -> None:
    with pytest.raises(SerializationError, match="one argument"):
        invoke(target, "echo", (b"a", b"b"), {}, CallOptions(serialization="none"))


def test_what_cannot_be_sent_is_named_and_nothing_is_sent(target: ScriptedTarget, pod: ScriptedPod) -> None:
    with pytest.raises(SerializationError, match="lock"):
        invoke(target, "echo", (threading.Lock(),), {}, PLAIN)
    coroutine = invoke_async(target, "echo", (threading.Lock(),), {}, PLAIN)
    with pytest.raises(SerializationError, match="lock"):
        asyncio.run(coroutine)
    assert not [t for t, _, _ in pod.seen if t is FrameType.CALL]


def test_a_users_exception_arrives_as_itself(target: ScriptedTarget, pod: ScriptedPod) -> None:
    async def fail(call: ScriptedCall) -> None:
        call.fail(FileNotFoundError(2, "no such file", "x.txt"))

    pod.handlers["fail"] = fail
    with pytest.raises(FileNotFoundError) as info:
        invoke(target, "fail", (), {}, PLAIN)
    assert info.value.filename == "x.txt"
    with pytest.raises(FileNotFoundError):
        asyncio.run(invoke_async(target, "fail", (), {}, PLAIN))


@pytest.mark.parametrize(
    "exc", [asyncio.CancelledError(), StopIteration(3), KeyboardInterrupt(), SystemExit(3), GeneratorExit()]
)
def test_exceptions_that_steer_the_pods_program_do_not_steer_ours(
    target: ScriptedTarget, pod: ScriptedPod, exc: BaseException
) -> None:
    async def fail(call: ScriptedCall) -> None:
        call.fail(exc)

    pod.handlers["fail"] = fail
    with pytest.raises(RemoteError) as info:
        invoke(target, "fail", (), {}, PLAIN)
    assert type(exc).__name__ in info.value.type_name

    async def main() -> None:
        task = asyncio.create_task(invoke_async(target, "fail", (), {}, PLAIN))
        with pytest.raises(RemoteError):
            await task
        assert not task.cancelled()

    asyncio.run(main())
    with pytest.raises(RemoteError):
        list(map_calls(target, "fail", [()], PLAIN))


def test_a_remote_timeout_error_is_the_users_own(target: ScriptedTarget, pod: ScriptedPod) -> None:
    async def fail(call: ScriptedCall) -> None:
        call.fail(TimeoutError("theirs"))

    pod.handlers["fail"] = fail

    async def main() -> None:
        with pytest.raises(TimeoutError, match="theirs") as info:
            await asyncio.wait_for(invoke_async(target, "fail", (), {}, PLAIN), 5)
        assert not isinstance(info.value, CallTimeoutError)

    asyncio.run(main())


def test_our_own_errors_say_which_call_it_was(target: ScriptedTarget, pod: ScriptedPod) -> None:
    async def die(call: ScriptedCall) -> None:
        call.error(type="WorkerDiedError", cause="exit", exit_code=3)

    pod.handlers["die"] = die
    with pytest.raises(WorkerDiedError, match="exit code 3") as info:
        invoke(target, "die", (), {}, PLAIN)
    assert info.value.service == "echo"
    assert str(info.value.call_id).startswith("echo/")


def test_frames_of_ours_are_hidden_from_tracebacks(target: ScriptedTarget, pod: ScriptedPod) -> None:
    async def fail(call: ScriptedCall) -> None:
        call.fail(ValueError("x"))

    pod.handlers["fail"] = fail
    with pytest.raises(ValueError, match="x") as info:
        invoke(target, "fail", (), {}, PLAIN)
    traceback = info.value.__traceback__
    while traceback is not None:
        if "kubetorch_jupyter" in traceback.tb_frame.f_code.co_filename:
            assert traceback.tb_frame.f_locals.get("__tracebackhide__") is True
        traceback = traceback.tb_next


def test_retries_are_for_lost_workers_only(target: ScriptedTarget, pod: ScriptedPod) -> None:
    tries: list[str] = []

    async def third_time(call: ScriptedCall) -> None:
        tries.append("died")
        if len(tries) < 3:
            call.error(type="WorkerDiedError", cause="signal", signal=9)
        else:
            call.result(call.args[0])

    async def fail(call: ScriptedCall) -> None:
        tries.append("failed")
        call.fail(ValueError("x"))

    pod.handlers["third"] = third_time
    pod.handlers["fail"] = fail
    options = replace(PLAIN, retries=2)
    assert invoke(target, "third", (7,), {}, options) == 7
    tries.clear()
    assert asyncio.run(invoke_async(target, "third", (8,), {}, options)) == 8
    tries.clear()
    assert list(map_calls(target, "third", [(9,)], options)) == [9]
    tries.clear()
    assert spawn(target, "third", (10,), {}, options).result(5) == 10
    tries.clear()
    with pytest.raises(WorkerDiedError):
        invoke(target, "third", (7,), {}, replace(PLAIN, retries=1))
    tries.clear()
    with pytest.raises(ValueError, match="x"):
        invoke(target, "fail", (), {}, options)
    assert tries == ["failed"]


# -- coroutines --------------------------------------------------------------------------------------------------------


def test_a_coroutine_begins_when_it_is_awaited_with_the_arguments_of_then(
    target: ScriptedTarget, pod: ScriptedPod
) -> None:
    np = pytest.importorskip("numpy")
    array = np.ones(100_000)
    items = [1]
    coroutine = invoke_async(target, "echo", ([array, items],), {}, PLAIN)
    assert asyncio.iscoroutine(coroutine)
    array[:] = 0
    items.append(2)
    time.sleep(0.05)
    assert not [t for t, _, _ in pod.seen if t is FrameType.CALL]
    came, plain = asyncio.run(coroutine)
    assert came.sum() == 100_000
    assert came.flags.writeable
    assert plain == [1]


def test_many_at_once_and_loops_of_several_threads(target: ScriptedTarget) -> None:
    async def many(base: int) -> list[Any]:
        return await asyncio.gather(*(invoke_async(target, "echo", (base + i,), {}, PLAIN) for i in range(200)))

    out: dict[int, list[Any]] = {}
    threads = [threading.Thread(target=lambda k=k: out.update({k: asyncio.run(many(k))})) for k in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert out == {k: list(range(k, k + 200)) for k in (0, 1000, 2000)}


def test_a_coroutine_that_is_closed_in_the_middle_cancels(target: ScriptedTarget, pod: ScriptedPod) -> None:
    async def main() -> None:
        coroutine = invoke_async(target, "forever", (), {}, PLAIN)
        coroutine.send(None)
        while not [t for t, _, _ in pod.seen if t is FrameType.CALL]:
            await asyncio.sleep(0.01)
        coroutine.close()

    asyncio.run(main())
    until(lambda: _cancels(pod) == ["abandoned"])


# -- cancelling and timeouts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["forever", "stuck"])
def test_stop_gives_control_back_and_cancels(
    target: ScriptedTarget, pod: ScriptedPod, method: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    invoke(target, "echo", (1,), {}, PLAIN)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), interrupt_after(0.2):
        invoke(target, method, (), {}, SHOWN)
    took = time.monotonic() - start - 0.2
    until(lambda: _cancels(pod) == ["user"])
    assert capsysbinary.readouterr().out == (b"cancelled: user\n" if method == "forever" else b"")
    promise(f"control back from a call after Stop, {method}", took, 0.5)
    assert invoke(target, "echo", (2,), {}, PLAIN) == 2


@pytest.mark.parametrize("way", ["call", "map", "generator", "result", "request"])
def test_a_signal_that_interrupts_no_system_call(target: ScriptedTarget, pod: ScriptedPod, way: str) -> None:
    """As one that comes just before the call that waits: here another thread gets it."""
    never = asyncio.Event()
    ways: dict[str, Callable[[], object]] = {
        "call": lambda: invoke(target, "forever", (), {}, PLAIN),
        "map": lambda: list(map_calls(target, "forever", [(1,)], PLAIN)),
        "generator": lambda: list(iterate(target, "forever", (), {}, PLAIN)),
        "result": lambda: spawn(target, "forever", (), {}, PLAIN).result(),
        "request": lambda: get_portal().run(never.wait()),
    }
    invoke(target, "echo", (1,), {}, PLAIN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with pytest.raises(KeyboardInterrupt), interrupt_after(0.2):
            ways[way]()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if way in ("call", "map", "generator"):
        until(lambda: _cancels(pod) == ["user"])


def test_a_bell_that_nobody_rings_wakes_nobody() -> None:
    """Stop has to come while it is waited for, where the caller expects it: not between two short waits."""
    bell, ready, rung = Bell(), threading.Event(), threading.Event()

    def wait() -> None:
        bell.wait(ready.is_set)
        rung.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not rung.wait(0.7)
    bell.ring()
    assert rung.wait(5)
    thread.join()


@pytest.mark.parametrize("method", ["forever", "stuck"])
def test_a_cancelled_task_cancels_remotely_and_stays_cancelled(
    target: ScriptedTarget, pod: ScriptedPod, method: str
) -> None:
    async def main() -> float:
        task = asyncio.create_task(invoke_async(target, method, (), {}, PLAIN))
        while not [t for t, _, _ in pod.seen if t is FrameType.CALL]:
            await asyncio.sleep(0.01)
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        return time.monotonic() - start

    promise(f"control back from a call after its task's cancel, {method}", asyncio.run(main()), 0.5)
    until(lambda: _cancels(pod) == ["user"])


def test_asyncio_timeout_works_around_a_call(target: ScriptedTarget) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await invoke_async(target, "stuck", (), {}, PLAIN)

    asyncio.run(main())


@pytest.mark.parametrize("method", ["forever", "stuck"])
def test_a_timeout_is_kept_here_even_if_the_pod_does_not(target: ScriptedTarget, pod: ScriptedPod, method: str) -> None:
    options = replace(PLAIN, timeout=0.2)
    start = time.monotonic()
    with pytest.raises(CallTimeoutError, match=r"0\.2 s") as info:
        invoke(target, method, (), {}, options)
    promise(f"control back from a call after its timeout, {method}", time.monotonic() - start - 0.2, 0.5)
    assert isinstance(info.value, TimeoutError)
    with pytest.raises(CallTimeoutError):
        asyncio.run(invoke_async(target, method, (), {}, options))
    until(lambda: _cancels(pod) == ["timeout", "timeout"])
    assert invoke(target, "echo", (2,), {}, options) == 2


def test_stop_while_there_is_no_session_yet(pod: ScriptedPod) -> None:
    class Slow(ScriptedTarget):
        async def session(self) -> Any:
            await asyncio.Event().wait()

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), interrupt_after(0.2):
        invoke(Slow(pod), "echo", (1,), {}, PLAIN)
    promise("control back without a session after Stop", time.monotonic() - start - 0.2, 0.5)


def test_something_is_said_while_there_is_no_session_yet(pod: ScriptedPod) -> None:
    """The writer's thread is in the call's context while the search for a session goes on in it."""
    pod.handlers["echo"] = _echo
    outputs: list[Output] = []
    writing, go_on = threading.Event(), threading.Event()

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            writing.set()
            go_on.wait(5)
            return super().write(text)

    class Searching(ScriptedTarget):
        async def session(self) -> Any:
            outputs[0].feed(LogKind.NOTICE, b"searching\n")
            await asyncio.to_thread(writing.wait, 5)
            try:
                return await super().session()
            finally:
                go_on.set()

    def make(label: str) -> Output:
        outputs.append(Output(label))
        return outputs[-1]

    async def main() -> Any:
        async with asyncio.timeout(5):
            return await invoke_async(Searching(pod), "echo", (1,), {}, SHOWN)

    set_output_factory(make)
    try:
        with contextlib.redirect_stderr(Slow()) as text:
            assert asyncio.run(main()) == 1
    finally:
        set_output_factory(None)
    assert text.getvalue() == "searching\n"


def test_a_call_that_was_never_sent_goes_to_the_new_pod(pod: ScriptedPod) -> None:
    with ScriptedPod() as old:
        old.handlers["echo"] = _echo
        pod.handlers["echo"] = _echo
        target = ScriptedTarget(old)
        invoke(target, "echo", (1,), {}, PLAIN)
        session = target.live
        assert session is not None
        old.refuse = True
        old.cut()
        until(lambda: not session.connected)
        target.pod = pod

        async def main() -> Any:
            task = asyncio.create_task(invoke_async(target, "echo", (2,), {}, PLAIN))
            await asyncio.sleep(0.05)
            get_portal().call(session.on_lost, PodLostError(service="echo"))
            return await task

        assert asyncio.run(main()) == 2


# -- generators --------------------------------------------------------------------------------------------------------


async def _count(call: ScriptedCall) -> None:
    try:
        for i in range(call.args[0]):
            call.sent_items += 1
            await call.item(i)
            if call.cancelled.done():
                call.error(type="CallCancelledError")
                return
        call.finish()
    finally:
        call.pod.ended += 0


def test_items_come_in_order_both_ways(target: ScriptedTarget, pod: ScriptedPod) -> None:
    pod.handlers["count"] = _count
    assert list(iterate(target, "count", (100,), {}, PLAIN)) == list(range(100))
    assert list(iterate(target, "count", (0,), {}, SHOWN)) == []

    async def main() -> list[Any]:
        return [i async for i in iterate_async(target, "count", (100,), {}, SHOWN)]

    assert asyncio.run(main()) == list(range(100))


def test_async_for_over_a_call_that_said_nothing_of_it(target: ScriptedTarget, pod: ScriptedPod) -> None:
    pod.handlers["count"] = _count
    items = iterate(target, "count", (100,), {}, SHOWN)

    async def main() -> list[Any]:
        return [i async for i in items]

    assert asyncio.run(main()) == list(range(100))
    assert list(items) == []
    assert asyncio.run(main()) == []

    begun = iterate(target, "count", (3,), {}, SHOWN)
    assert next(begun) == 0
    with pytest.raises(TypeError, match="call it again for async for"):
        aiter(begun)
    assert list(begun) == [1, 2]


def test_the_pod_is_never_more_than_a_window_ahead(target: ScriptedTarget, pod: ScriptedPod) -> None:
    pod.handlers["count"] = _count
    items = iterate(target, "count", (1000,), {}, PLAIN)
    assert [next(items) for _ in range(20)] == list(range(20))
    time.sleep(0.1)
    call = list(pod.calls.values())[-1]
    assert len(call.items) <= 20 + 16
    items.close()
    until(lambda: _cancels(pod))
    assert list(items) == []


def test_large_items_and_small_ones_keep_their_order(target: ScriptedTarget, pod: ScriptedPod) -> None:
    async def mixed(call: ScriptedCall) -> None:
        for i in range(12):
            await call.item(bytes([i]) * (200_000 if i % 3 else 1))
        call.finish()

    pod.handlers["mixed"] = mixed
    assert [item[0] for item in iterate(target, "mixed", (), {}, PLAIN)] == list(range(12))


def test_what_is_printed_before_an_item_is_written_before_it(
    target: ScriptedTarget, pod: ScriptedPod, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    async def chatty(call: ScriptedCall) -> None:
        for i in range(5):
            call.log(b"%d\n" % i)
            await call.item(i)
        call.finish()

    pod.handlers["chatty"] = chatty
    written = b""
    for i in iterate(target, "chatty", (), {}, SHOWN):
        written += capsysbinary.readouterr().out
        assert b"%d\n" % i in written


def test_an_error_comes_after_the_items_before_it(target: ScriptedTarget, pod: ScriptedPod) -> None:
    async def fail(call: ScriptedCall) -> None:
        await call.item(1)
        await call.item(2)
        call.fail(ValueError("third"))

    pod.handlers["fail"] = fail
    items = iterate(target, "fail", (), {}, PLAIN)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="third"):
        next(items)
    assert next(items, "end") == "end"


def test_a_forgotten_iterator_cancels(target: ScriptedTarget, pod: ScriptedPod) -> None:
    pod.handlers["count"] = _count
    for i in iterate(target, "count", (1000,), {}, PLAIN):
        if i == 3:
            break
    gc.collect()
    until(lambda: _cancels(pod) == ["abandoned"])

    async def main() -> None:
        async for i in iterate_async(target, "count", (1000,), {}, PLAIN):
            if i == 3:
                break

    asyncio.run(main())
    gc.collect()
    until(lambda: _cancels(pod) == ["abandoned"] * 2)


def test_stop_in_a_generator(target: ScriptedTarget, pod: ScriptedPod) -> None:
    async def slow(call: ScriptedCall) -> None:
        await call.item(1)
        await _forever(call)

    pod.handlers["slow"] = slow
    items = iterate(target, "slow", (), {}, PLAIN)
    assert next(items) == 1
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), interrupt_after(0.2):
        next(items)
    promise("control back from a generator after Stop", time.monotonic() - start - 0.2, 0.5)
    assert next(items, "end") == "end"
    until(lambda: _cancels(pod) == ["user"])


def test_a_cancelled_async_for(target: ScriptedTarget, pod: ScriptedPod) -> None:
    async def slow(call: ScriptedCall) -> None:
        await call.item(1)
        await _forever(call)

    pod.handlers["slow"] = slow

    async def consume(items: AsyncIterator[Any]) -> None:
        async for _ in items:
            pass

    async def main() -> None:
        task = asyncio.create_task(consume(iterate_async(target, "slow", (), {}, PLAIN)))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    until(lambda: _cancels(pod) == ["user"])


def test_items_survive_a_break(target: ScriptedTarget, pod: ScriptedPod) -> None:
    async def slow(call: ScriptedCall) -> None:
        for i in range(60):
            await call.item(bytes([i]) * (100_000 if i % 7 == 0 else 1))
            await asyncio.sleep(0.005)
        call.finish()

    pod.handlers["slow"] = slow
    seen = []
    for item in iterate(target, "slow", (), {}, PLAIN):
        seen.append(item[0])
        if len(seen) % 20 == 10:
            pod.cut()
    assert seen == list(range(60))


# -- maps --------------------------------------------------------------------------------------------------------------


def test_map_in_order_and_as_completed_both_ways(target: ScriptedTarget, pod: ScriptedPod) -> None:
    async def uneven(call: ScriptedCall) -> None:
        await asyncio.sleep(0.02 if call.args[0] % 5 == 0 else 0)
        call.result(call.args[0])

    pod.handlers["uneven"] = uneven
    argss = [(i,) for i in range(100)]
    assert list(map_calls(target, "uneven", argss, PLAIN, concurrency=8)) == list(range(100))
    unordered = list(map_calls(target, "uneven", argss, PLAIN, concurrency=8, ordered=False))
    assert sorted(unordered) == list(range(100))
    assert unordered != list(range(100))

    async def main(ordered: bool) -> list[Any]:
        return [i async for i in map_calls(target, "uneven", argss, PLAIN, concurrency=8, ordered=ordered)]

    assert asyncio.run(main(True)) == list(range(100))
    assert sorted(asyncio.run(main(False))) == list(range(100))
    assert list(map_calls(target, "uneven", [], PLAIN)) == []


def test_two_threads_end_calls_of_a_map_that_is_awaited() -> None:
    """The consumer may wait for the next one already when the slower thread is still telling of its own."""

    class Window(_Window):
        between: Callable[[], None] | None = None

        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if name == "waiter" and (between := self.between) is not None:
                self.between = None
                between()  # the other thread and the consumer have their turns after this thread has looked
            return value

    async def main() -> None:
        inlet = get_inlet()
        window = Window()
        first, second = inlet.loop.create_future(), inlet.loop.create_future()
        window.waiter = inlet, first

        def others() -> None:
            window.finished(2)
            window.waiter = inlet, second

        window.between = others
        window.finished(1)
        await asyncio.wait_for(first, 5)
        assert not second.done()
        window.finished(3)
        await asyncio.wait_for(second, 5)
        assert list(window.done) == [1, 2, 3]

    asyncio.run(main())


def test_map_is_lazy_and_bounded(target: ScriptedTarget) -> None:
    taken: list[int] = []

    def items() -> Iterator[tuple[int]]:
        for i in range(1000):
            taken.append(i)
            yield (i,)

    results = map_calls(target, "echo", items(), PLAIN, concurrency=10)
    assert taken == []
    assert next(results) == 0
    time.sleep(0.05)
    assert len(taken) <= 11
    results.close()
    assert list(results) == []


def test_the_first_error_of_a_map_cancels_the_rest(target: ScriptedTarget, pod: ScriptedPod) -> None:
    async def one_fails(call: ScriptedCall) -> None:
        if call.args[0] == 3:
            call.fail(ValueError("three"))
        else:
            await _forever(call)

    pod.handlers["fails"] = one_fails
    start = time.monotonic()
    with pytest.raises(ValueError, match="three"):
        list(map_calls(target, "fails", [(i,) for i in range(8)], PLAIN))
    assert time.monotonic() - start < 1
    until(lambda: len(_cancels(pod)) == 7)


def test_a_map_may_return_exceptions(target: ScriptedTarget, pod: ScriptedPod) -> None:
    async def odd_fail(call: ScriptedCall) -> None:
        if call.args[0] % 2:
            call.fail(ValueError(str(call.args[0])))
        else:
            call.result(call.args[0])

    pod.handlers["odd"] = odd_fail
    results = list(map_calls(target, "odd", [(i,) for i in range(6)], PLAIN, return_exceptions=True))
    assert [str(r) for r in results] == ["0", "1", "2", "3", "4", "5"]
    assert [isinstance(r, ValueError) for r in results] == [False, True] * 3


def test_stop_in_a_map_and_a_forgotten_map(target: ScriptedTarget, pod: ScriptedPod) -> None:
    invoke(target, "echo", (1,), {}, PLAIN)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), interrupt_after(0.2):
        list(map_calls(target, "forever", [(i,) for i in range(5)], PLAIN))
    promise("control back from a map after Stop", time.monotonic() - start - 0.2, 0.5)
    until(lambda: len(_cancels(pod)) == 5)

    async def first_only(call: ScriptedCall) -> None:
        if call.args[0]:
            await _forever(call)
        call.result(0)

    pod.handlers["first"] = first_only
    pod.seen.clear()
    results = map_calls(target, "first", [(i,) for i in range(5)], PLAIN)
    assert next(results) == 0
    del results
    gc.collect()
    until(lambda: _cancels(pod) == ["abandoned"] * 4)


def test_an_error_of_the_items_themselves_comes_through(target: ScriptedTarget, pod: ScriptedPod) -> None:
    def items() -> Iterator[tuple[int]]:
        yield (1,)
        raise LookupError("no more")

    invoke(target, "echo", (1,), {}, PLAIN)  # connects: a call that isn't sent yet is only forgotten
    with pytest.raises(LookupError, match="no more"):
        list(map_calls(target, "forever", items(), PLAIN))
    until(lambda: _cancels(pod) == ["user"])


def test_concurrency_is_checked(target: ScriptedTarget) -> None:
    with pytest.raises(ConfigError, match="concurrency=0"):
        map_calls(target, "echo", [], PLAIN, concurrency=0)


# -- spawned calls -----------------------------------------------------------------------------------------------------


def test_a_spawned_call_from_start_to_end(target: ScriptedTarget, pod: ScriptedPod) -> None:
    go = asyncio.run_coroutine_threadsafe(_event(), pod.loop).result(5)

    async def slow(call: ScriptedCall) -> None:
        assert call.meta["mode"] == "spawn"
        call.log(b"begun\n")
        await go.wait()
        call.log(b"ended\n")
        call.result(5)

    pod.handlers["slow"] = slow
    call = spawn(target, "slow", (), {}, PLAIN)
    assert call.id.startswith("echo/")
    until(lambda: call.status == "running")
    assert not call.done()
    assert call in recent_calls()
    assert (call.function, call.service) == ("slow", "echo")
    assert "running" in repr(call)
    assert call.id in repr(call)
    assert "slow" in call._repr_html_()
    with pytest.raises(TimeoutError, match="runs on"):
        call.result(0.05)
    until(lambda: call.logs() == "begun\n")
    pod.loop.call_soon_threadsafe(go.set)
    kept = list(pod.calls.values())[-1]
    until(call.done)
    assert not kept.acked
    assert call.status == "done"
    assert call.result() == 5
    assert call.result() == 5
    until(lambda: kept.acked)
    assert call.logs() == "begun\nended\n"
    assert call.cancel() is False

    async def main() -> int:
        return await call

    assert asyncio.run(main()) == 5


async def _event() -> asyncio.Event:
    return asyncio.Event()


def test_a_spawned_call_that_fails_raises_the_same_each_time(target: ScriptedTarget, pod: ScriptedPod) -> None:
    async def fail(call: ScriptedCall) -> None:
        call.fail(ValueError("x"))

    pod.handlers["fail"] = fail
    call = spawn(target, "fail", (), {}, PLAIN)
    depths = []
    for _ in range(2):
        with pytest.raises(ValueError, match="x") as info:
            call.result(5)
        depths.append(len(info.traceback))
    assert depths[0] == depths[1]
    assert call.status == "failed"


class _LostTarget(ScriptedTarget):
    """Its pods are lost before a call is on its way, so often; then one comes when it may."""

    def __init__(self, pod: ScriptedPod, lost: int) -> None:
        super().__init__(pod)
        self.lost = lost
        self.may_come = asyncio.Event()

    async def session(self) -> Session:
        if self.lost:
            self.lost -= 1
            raise PodLostError(service=self.name, reason="gone")
        await self.may_come.wait()
        return await super().session()


def test_the_id_of_a_call_that_is_tried_again_is_waited_for(pod: ScriptedPod) -> None:
    target = _LostTarget(pod, lost=1 + _MOVES)
    pod.handlers["echo"] = _echo
    call = spawn(target, "echo", (7,), {}, replace(PLAIN, retries=1))
    until(lambda: not target.lost)
    busy: list[float] = []
    ids: list[str] = []

    def ask() -> None:
        begin = time.thread_time()
        ids.append(call.id)
        busy.append(time.thread_time() - begin)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    get_portal().loop.call_soon_threadsafe(target.may_come.set)
    thread.join(10)
    assert ids == [call.id]
    assert call.result(5) == 7
    assert busy[0] < 0.1


def test_the_id_of_a_call_that_cannot_be_sent(pod: ScriptedPod) -> None:
    call = spawn(_LostTarget(pod, lost=2 * (1 + _MOVES)), "echo", (7,), {}, replace(PLAIN, retries=1))
    with pytest.raises(PodLostError):
        _ = call.id


class _Interrupts:
    """Its first decoding is interrupted."""

    decoded = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).decoded += 1
        if self.decoded == 1:
            raise KeyboardInterrupt
        self.__dict__.update(state)


def test_an_interrupt_while_a_result_is_decoded_is_not_the_result(target: ScriptedTarget, pod: ScriptedPod) -> None:
    async def make(call: ScriptedCall) -> None:
        value = _Interrupts()
        value.x = 5  # type: ignore[attr-defined]
        call.result(value)

    pod.handlers["make"] = make
    call: Any = spawn(target, "make", (), {}, PLAIN)
    until(call.done)
    kept = list(pod.calls.values())[-1]
    with pytest.raises(KeyboardInterrupt):
        call.result(5)
    assert not kept.acked
    assert call.result(5).x == 5
    until(lambda: kept.acked)


def test_a_spawned_call_is_cancelled_on_request_only(target: ScriptedTarget, pod: ScriptedPod) -> None:
    call = spawn(target, "forever", (), {}, PLAIN)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_wait(call), 0.1)

    asyncio.run(main())
    with pytest.raises(KeyboardInterrupt), interrupt_after(0.1):
        call.result()
    assert _cancels(pod) == []
    assert call.cancel() is True
    with pytest.raises(CallCancelledError):
        call.result(5)
    assert call.status == "cancelled"
    assert _cancels(pod) == ["user"]


async def _wait(call: Any) -> Any:
    return await call


def test_attach_gives_the_log_from_the_start_and_the_result(
    target: ScriptedTarget, pod: ScriptedPod, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    async def talk(call: ScriptedCall) -> None:
        call.log(b"one\ntwo\n")
        call.result(7)

    pod.handlers["talk"] = talk
    call = spawn(target, "talk", (), {}, PLAIN)
    assert call.result(5) == 7
    assert capsysbinary.readouterr().out == b""
    again = attach_call(target, call.id)
    assert again.id == call.id
    assert again.function == "talk"
    assert again.result(5) == 7
    assert capsysbinary.readouterr().out == b"one\ntwo\n"


def test_attach_to_what_the_pod_never_had(target: ScriptedTarget) -> None:
    invoke(target, "echo", (1,), {}, PLAIN)
    with pytest.raises(UnknownCallError):
        attach_call(target, "echo/01JD0000000000000800000003")
    with pytest.raises(UnknownCallError, match="not a ULID"):
        attach_call(target, "echo/nonsense")


# -- costs -------------------------------------------------------------------------------------------------------------


def test_calls_leave_no_threads_descriptors_or_objects(target: ScriptedTarget) -> None:
    def some() -> None:
        for i in range(100):
            invoke(target, "echo", (i,), {}, SHOWN)
        list(map_calls(target, "echo", [(i,) for i in range(200)], SHOWN))

        async def main() -> None:
            await asyncio.gather(*(invoke_async(target, "echo", (i,), {}, SHOWN) for i in range(100)))

        asyncio.run(main())

    some()
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    def objects() -> int:
        gc.collect()
        return sum(isinstance(o, (Run, Output)) for o in gc.get_objects())

    before = objects()  # the stuck calls of other tests
    some()
    assert threading.active_count() <= threads
    if files:
        assert len(os.listdir("/proc/self/fd")) <= files
    until(lambda: objects() <= before)
