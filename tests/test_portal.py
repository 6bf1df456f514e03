"""transport/portal.py: handing work over from any thread and loop, interrupts, forks, the end."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from kubetorch_jupyter.transport.portal import TICK, get_inlet, get_portal
from tests.waiting import interrupt_after

pytestmark = pytest.mark.short


async def _value(x: object) -> object:
    await asyncio.sleep(0)
    return x


def _python(code: str, timeout: float = 20) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=timeout
    )


def test_run_gives_the_value_and_raises_the_error() -> None:
    portal = get_portal()
    assert portal.run(_value(3)) == 3

    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        portal.run(fail())


def test_run_gives_up_after_the_timeout_and_cancels() -> None:
    ended = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        get_portal().run(forever(), 0.05)
    assert ended.wait(2)


def test_run_on_the_portal_itself_is_refused() -> None:
    async def wrong() -> None:
        get_portal().run(_value(1))

    with pytest.raises(RuntimeError, match="wait for itself"):
        get_portal().run(wrong())


def test_calls_of_one_thread_run_in_order_and_those_of_many_all() -> None:
    portal = get_portal()
    seen: list[tuple[int, int]] = []
    done = threading.Event()

    def work(k: int) -> None:
        for i in range(500):
            portal.call(seen.append, (k, i))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    portal.call(done.set)
    assert done.wait(5)
    assert len(seen) == 2000
    for k in range(4):
        assert [i for j, i in seen if j == k] == list(range(500))


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError])
def test_an_error_in_a_callback_is_logged_and_stops_nothing(
    caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    def fail() -> None:
        raise error

    portal = get_portal()
    done, ended = threading.Event(), threading.Event()

    def turn() -> None:
        portal.at_end_of_turn(fail)
        portal.at_end_of_turn(ended.set)

    portal.call(fail)
    portal.call(turn)
    portal.call(done.set)
    assert done.wait(5)
    assert ended.wait(5)
    assert caplog.text.count(error.__name__) >= 2


def test_an_interrupt_while_the_portal_is_woken_costs_nobody_the_wakeup(monkeypatch: pytest.MonkeyPatch) -> None:
    portal = get_portal()
    portal.run(_value(1))
    wake = portal.loop.call_soon_threadsafe

    def interrupted(*args: object, **kwargs: object) -> None:
        monkeypatch.setattr(portal.loop, "call_soon_threadsafe", wake)
        raise KeyboardInterrupt

    monkeypatch.setattr(portal.loop, "call_soon_threadsafe", interrupted)
    done = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        portal.call(done.set)
    assert done.wait(5)
    assert portal.run(_value(2), 5) == 2


def test_an_interrupt_while_a_loop_is_woken_costs_nobody_the_wakeup(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        inlet = get_inlet()
        first, second = inlet.loop.create_future(), inlet.loop.create_future()

        def interrupted(*args: object, **kwargs: object) -> None:
            monkeypatch.undo()
            raise KeyboardInterrupt

        inlet.enter()
        monkeypatch.setattr(inlet.loop, "call_soon_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            inlet.post(first)
        inlet.post(second)
        async with asyncio.timeout(5):
            await first
            await second
        inlet.leave()

    asyncio.run(main())


def test_submitted_coroutines_see_the_submitters_context() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    async def look() -> str:
        return variable.get()

    variable.set("here")
    assert get_portal().run(look()) == "here"


def test_wrap_works_in_any_loop_and_thread() -> None:
    async def many() -> list[object]:
        return await asyncio.gather(*(get_portal().wrap(_value(i)) for i in range(50)))

    assert asyncio.run(many()) == list(range(50))
    out: list[object] = []
    thread = threading.Thread(target=lambda: out.extend(asyncio.run(many())))
    thread.start()
    thread.join()
    assert out == list(range(50))


def test_cancelling_what_awaits_cancels_the_portals_coroutine() -> None:
    ended = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(get_portal().wrap(forever()), 0.05)

    asyncio.run(main())
    assert ended.wait(2)


def test_a_loop_ticks_only_while_it_awaits_us() -> None:
    async def main() -> tuple[bool, bool]:
        inlet = get_inlet()
        await get_portal().wrap(asyncio.sleep(TICK * 1.5))
        while_waiting = inlet._handle is not None
        await asyncio.sleep(TICK * 2.5)
        return while_waiting, inlet._handle is None

    assert asyncio.run(main()) == (True, True)


def test_a_signal_is_seen_by_an_otherwise_idle_loop_within_the_tick() -> None:
    # As in a kernel: a handler that only sets a flag for the loop to look at when something wakes it.
    result = _python(
        """
        import asyncio, os, signal, threading, time
        from kubetorch_jupyter.transport.portal import get_portal

        async def main():
            loop = asyncio.get_running_loop()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, lambda *_: loop.call_soon(task.cancel))
            task = asyncio.current_task()
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            start = time.monotonic()
            try:
                await get_portal().wrap(asyncio.sleep(5))
            except asyncio.CancelledError:
                print(time.monotonic() - start)

        asyncio.run(main())
        """
    )
    assert result.returncode == 0, result.stderr
    assert 0.25 < float(result.stdout) < 3  # 5 without the tick


def test_keyboard_interrupt_ends_run_and_cancels() -> None:
    ended = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), interrupt_after(0.2):
        get_portal().run(forever())
    assert time.monotonic() - start < 5
    assert ended.wait(5)


def test_a_forked_child_gets_a_portal_of_its_own_and_the_parents_goes_on() -> None:
    result = _python(
        """
        import asyncio, os
        from kubetorch_jupyter.transport.portal import get_portal

        async def pid():
            return os.getpid()

        before = get_portal()
        assert before.run(pid()) == os.getpid()
        child = os.fork()
        if not child:
            assert get_portal() is not before
            assert get_portal().run(pid()) == os.getpid()
            raise SystemExit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert get_portal() is before and before.run(pid()) == os.getpid()
        """
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_interpreter_ends_quickly_and_silently_with_work_under_way() -> None:
    start = time.monotonic()
    result = _python(
        """
        import asyncio
        from kubetorch_jupyter.transport.portal import get_portal

        async def forever():
            await asyncio.Event().wait()

        get_portal().submit(forever())
        get_portal().run(asyncio.sleep(0.01))
        """
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert time.monotonic() - start < 5


def test_what_is_wanted_after_the_end_of_the_interpreter_is_refused_and_does_not_hang() -> None:
    result = _python(
        """
        import asyncio, builtins
        from kubetorch_jupyter.errors import ConnectionFailedError
        from kubetorch_jupyter.transport.portal import get_portal

        class Late:
            def __del__(self):
                try:
                    self.portal.run(self.sleep(0))
                except self.error as e:
                    print(e)

        builtins.late = late = Late()
        late.portal, late.sleep, late.error = get_portal(), asyncio.sleep, ConnectionFailedError
        """
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Python is ending")
