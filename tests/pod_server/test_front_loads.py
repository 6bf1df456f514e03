"""Which code a call gets: first loads, redeploys, and what becomes of calls when a worker dies."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pod_server.wire import F_ERROR, Frame, FrameType, LogDecoder, encode
from tests.promises import promise

from .podtools import Client, Front, Worker, Zygote, played, until_async

Scenario = Callable[[Front, Zygote, Client], Coroutine[Any, Any, None]]


def play(scenario: Scenario, *, load: str | None = "v1", kind: str = "fn", **params: Any) -> None:
    async def run(front: Front) -> None:
        async with played(front, load=load, kind=kind) as (zygote, client):
            await asyncio.wait_for(scenario(front, zygote, client), 60)

    with Front(**params) as front:
        asyncio.run(run(front))


def named(client: Client, event: str) -> list[dict[str, Any]]:
    return [e for e in client.events if e["event"] == event]


class Gate:
    """Loads that the test answers itself."""

    def __init__(self, zygote: Zygote) -> None:
        self.waiting: list[tuple[Worker, Frame]] = []
        zygote.on_load = lambda worker, frame: self.waiting.append((worker, frame))

    async def next(self) -> tuple[Worker, Frame]:
        await until_async(lambda: self.waiting)
        return self.waiting.pop(0)


def refuse(worker: Worker, frame: Frame, message: str = "no such module") -> None:
    worker.fail(frame.channel, {"type": "user", "message": message})


# -- functions ---------------------------------------------------------------------------------------------------------


def test_nothing_loaded() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        error = await client.error(await client.call("echo", b"x"))
        assert error["type"] == "NotDeployedError"
        assert zygote.workers == {}

    play(scenario, load=None)


def test_calls_wait_for_the_first_load() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        gate = Gate(zygote)
        load = await client.load("v1")
        calls = [await client.call("version") for _ in range(10)]
        worker, frame = await gate.next()
        assert (await client.request("status"))["state"] == "loading"
        rows = (await client.request("calls"))["calls"]
        assert {r["state"] for r in rows} == {"queued"}
        worker.log(frame.channel, b"constructing")
        worker.loaded(frame)
        await client.value(load)
        assert b"constructing" in client.logs[load]
        assert [await client.value(c) for c in calls] == [b"v1"] * 10
        status = await client.request("status")
        assert (status["state"], status["code"]["version"]) == ("ready", "v1")

    play(scenario, load=None)


def test_a_first_load_that_fails() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        gate = Gate(zygote)
        load = await client.load("v1")
        waiting = await client.call("version")
        refuse(*await gate.next())
        assert (await client.error(load))["message"] == "no such module"
        error = await client.error(waiting)
        assert error["type"] == "StartupError"
        assert "no such module" in error["message"]
        status = await client.request("status")
        assert (status["state"], status["code"], status["reason"]) == ("failed", None, "no such module")
        assert (await client.error(await client.call("version")))["type"] == "StartupError"
        # Its process is gone; the next load gets another one.
        await until_async(lambda: not zygote.alive)
        load = await client.load("v2")
        worker, frame = await gate.next()
        worker.loaded(frame)
        await client.value(load)
        assert await client.run("version") == b"v2"

    play(scenario, load=None)


def test_unchanged_and_forced() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        load = await client.load("v1")
        await client.value(load)
        assert client.results[load].meta == {"unchanged": True}
        assert zygote.last.loads == 1
        load = await client.load("v1", force=True)
        await client.value(load)
        assert "unchanged" not in client.results[load].meta
        assert zygote.last.loads == 2

    play(scenario)


def test_function_is_swapped_in_the_same_worker_and_no_call_waits() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        gate = Gate(zygote)
        load = await client.load("v2")
        worker, frame = await gate.next()
        # While it loads, the old one answers, also those that begin now.
        assert await client.run("version") == b"v1"
        assert (await client.request("status"))["state"] == "ready"
        worker.loaded(frame)
        await client.value(load)
        assert await client.run("version") == b"v2"
        assert len(zygote.workers) == 1
        assert not named(client, "state-lost")

    play(scenario)


def test_function_that_fails_leaves_the_old_one() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        zygote.on_load = refuse
        assert (await client.error(await client.load("v2")))["message"] == "no such module"
        assert await client.run("version") == b"v1"
        # In a fresh worker it fails just the same.
        assert (await client.error(await client.load("v3", worker="w2")))["message"] == "no such module"
        assert await client.run("version") == b"v1"
        status = await client.request("status")
        assert (status["state"], status["code"]["version"]) == ("ready", "v1")
        await until_async(lambda: len(zygote.alive) == 1)

    play(scenario)


def test_function_in_a_fresh_worker_beside_the_old_one() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        old = zygote.last
        hanging = await client.call("hang")
        await until_async(lambda: len(old.calls) == 1)
        gate = Gate(zygote)
        load = await client.load("v2", worker="w2")
        new, frame = await gate.next()
        assert new is not old
        assert await client.run("version") == b"v1"
        new.loaded(frame)
        await client.value(load)
        assert await client.run("version") == b"v2"
        assert not old.dead
        # What began with the old code ends with it; then its worker goes.
        old.result(next(iter(old.calls)), b"v1 to the end")
        assert await client.value(hanging) == b"v1 to the end"
        await until_async(lambda: old.dead)
        assert not named(client, "worker-died")

    play(scenario)


def test_a_hundred_redeploys_under_load() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        await client.request("events", debug=True)
        running = True
        answers: list[tuple[int, str]] = []
        other = await Client(front).open()

        async def caller() -> None:
            while running:
                seq = await other.call("version")
                answers.append((seq, (await other.value(seq)).decode()))

        tasks = [asyncio.create_task(caller()) for _ in range(8)]
        for i in range(2, 101):
            await client.value(await client.load(f"v{i}", worker=f"w{i // 25}"))
            assert await client.run("version") == f"v{i}".encode()
        running = False
        await asyncio.gather(*tasks)
        versions = [int(v[1:]) for _, v in sorted(answers)]
        assert versions == sorted(versions), "a later call got older code"
        await until_async(lambda: len(zygote.alive) == 1)
        n, events = 0, []
        while True:
            answer = await client.request("events", after=n)
            events += answer["events"]
            if not answer["more"]:
                break
            n = events[-1]["n"]
        assert [e["n"] for e in events] == sorted(e["n"] for e in events)
        assert sum(e["event"] == "call-start" for e in events) >= len(answers)
        await other.close()

    play(scenario)


def test_loads_are_done_one_after_the_other() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        gate = Gate(zygote)
        loads = [await client.load(f"v{i}", worker=f"w{i % 2}") for i in range(2, 6)]
        for i, load in enumerate(loads):
            worker, frame = await gate.next()
            await asyncio.sleep(0.02)
            assert not gate.waiting
            assert frame.meta["version"] == f"v{i + 2}"
            worker.loaded(frame)
            await client.value(load)
        assert await client.run("version") == b"v5"

    play(scenario)


# -- classes -----------------------------------------------------------------------------------------------------------


def test_class_waits_for_calls_and_says_that_state_is_lost() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        worker = zygote.last
        hanging = await client.call("hang")
        await until_async(lambda: worker.calls)
        gate = Gate(zygote)
        load = await client.load("v2", kind="cls")
        waiting = await client.call("version")
        await asyncio.sleep(0.05)
        assert not gate.waiting, "the new instance was made while a call ran on the old one"
        assert waiting not in client.results
        worker.result(next(iter(worker.calls)), b"done")
        assert await client.value(hanging) == b"done"
        same, frame = await gate.next()
        assert same is worker
        assert waiting not in client.results
        same.loaded(frame)
        await client.value(load)
        assert await client.value(waiting) == b"v2"
        assert len(named(client, "state-lost")) == 1

    play(scenario, kind="cls")


def test_class_in_a_fresh_worker_comes_after_the_old_ones_end() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        old = zygote.last
        gate = Gate(zygote)
        load = await client.load("v2", worker="w2", kind="cls")
        waiting = await client.call("version")
        new, frame = await gate.next()
        assert old.dead
        assert new is not old
        new.loaded(frame)
        await client.value(load)
        assert await client.value(waiting) == b"v2"
        assert named(client, "state-lost")
        assert not named(client, "worker-died")

    play(scenario, kind="cls")


@pytest.mark.parametrize("worker", ["w1", "w2"])
def test_class_that_cannot_be_replaced_comes_back(worker: str) -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        gate = Gate(zygote)
        load = await client.load("v2", worker=worker, kind="cls")
        waiting = await client.call("version")
        refuse(*await gate.next(), "__init__ raised")
        assert (await client.error(load))["message"] == "__init__ raised"
        again, frame = await gate.next()
        assert frame.meta["version"] == "v1"
        again.loaded(frame)
        assert await client.value(waiting) == b"v1"
        await client.until(lambda: named(client, "state-lost"))
        status = await client.request("status")
        assert (status["state"], status["code"]["version"]) == ("ready", "v1")
        assert len(zygote.alive) == 1

    play(scenario, kind="cls")


def test_a_redeploy_interrupts_the_revival_of_old_code() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        gate = Gate(zygote)
        await zygote.last.die(9)
        slow, frame = await gate.next()
        assert frame.meta["version"] == "v1"
        waiting = await client.call("version")
        load = await client.load("v2", kind="cls")
        new, frame = await gate.next()
        assert slow.dead
        assert frame.meta["version"] == "v2"
        new.loaded(frame)
        await client.value(load)
        assert await client.value(waiting) == b"v2"

    play(scenario, kind="cls")


def test_cancelled_loads() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        worker = zygote.last
        hanging = await client.call("hang")
        await until_async(lambda: worker.calls)
        gate = Gate(zygote)
        # While it waits for calls to end: those that waited for it go to the old code.
        load = await client.load("v2", kind="cls")
        queued = await client.load("v3", kind="cls")
        waiting = await client.call("version")
        await client.send(FrameType.CANCEL, queued, {"reason": "user"})
        assert (await client.error(queued))["type"] == "CallCancelledError"
        await client.send(FrameType.CANCEL, load, {"reason": "user"})
        assert (await client.error(load))["type"] == "CallCancelledError"
        assert await client.value(waiting) == b"v1"
        worker.result(next(iter(worker.calls)), b"")
        await client.value(hanging)
        # While a fresh worker loads: it is ended, the old class begins anew.
        load = await client.load("v2", worker="w2", kind="cls")
        fresh, _ = await gate.next()
        await client.send(FrameType.CANCEL, load, {"reason": "user"})
        assert (await client.error(load))["type"] == "CallCancelledError"
        await until_async(lambda: fresh.dead)
        again, frame = await gate.next()
        assert frame.meta["version"] == "v1"
        again.loaded(frame)
        assert await client.run("version") == b"v1"

    play(scenario, kind="cls")


def test_a_load_that_is_cancelled_at_once_holds_no_calls() -> None:
    """LOAD, CALL and CANCEL in one message: the front has not even begun with the LOAD."""

    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        meta = {"version": "v2", "worker": "w1", "kind": "cls", "name": "thing"}
        load, call = client.seq + 1, client.seq + 2
        client.seq = call
        await client.ws.send(
            encode(FrameType.LOAD, load, meta, [b"bundle v2"])
            + encode(FrameType.CALL, call, {"f": "version"})
            + encode(FrameType.CANCEL, load, {"reason": "user"})
        )
        assert (await client.error(load))["type"] == "CallCancelledError"
        assert await client.value(call) == b"v1"
        assert await client.run("version") == b"v1"

    play(scenario, kind="cls")


# -- deaths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eof_first", [True, False])
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (9, {"cause": "signal", "signal": 9}),
        (11, {"cause": "signal", "signal": 11}),
        (3 << 8, {"cause": "exit", "exit_code": 3}),
    ],
)
def test_death_ends_the_calls_within_a_second(status: int, expected: dict[str, Any], eof_first: bool) -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        other = await Client(front).open()
        worker = zygote.last
        calls = [(c, await c.call("hang")) for c in (client, client, other)]
        await until_async(lambda: len(worker.calls) == 3)
        worker.log(next(iter(worker.calls)), b"last words")
        begin = time.monotonic()
        await worker.die(status, eof_first=eof_first)
        for owner, seq in calls:
            error = await owner.error(seq)
            assert error["type"] == "WorkerDiedError"
            assert {k: error.get(k) for k in expected} == expected
        promise("calls end after their worker's death", time.monotonic() - begin, 1.0)
        assert [log for c in (client, other) for log in c.logs.values() if b"last words" in log]
        assert await client.run("version") == b"v1"
        await other.until(lambda: len(other.events) == 2)
        assert [e["event"] for e in other.events] == ["worker-died", "worker-ready"]
        assert len(zygote.workers) == 2
        await other.close()

    play(scenario)


def test_what_was_sent_before_the_death_counts() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        worker = zygote.last
        seqs = [await client.call("hang") for _ in range(50)]
        await until_async(lambda: len(worker.calls) == 50)
        for channel in list(worker.calls):
            worker.log(channel, b"x" * 20_000)
            worker.result(channel, b"done")
        await worker.die(9, eof_first=False)
        assert [await client.value(seq) for seq in seqs] == [b"done"] * 50

    play(scenario)


def test_a_class_is_constructed_anew() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        await zygote.last.die(6)
        await client.until(lambda: named(client, "state-lost"))
        assert await client.run("version") == b"v1"

    play(scenario, kind="cls")


def test_death_while_loading() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        async def die(worker: Worker) -> None:
            await worker.die(3 << 8)

        tasks: list[asyncio.Task[None]] = []
        zygote.on_load = lambda worker, frame: tasks.append(asyncio.create_task(die(worker)))
        load = await client.load("v1")
        waiting = await client.call("version")
        error = await client.error(load)
        assert (error["type"], error["exit_code"]) == ("WorkerDiedError", 3)
        assert (await client.error(waiting))["type"] == "StartupError"
        assert (await client.request("status"))["state"] == "failed"
        assert len(tasks) == 1

    play(scenario, load=None)


def test_backoff_when_it_dies_again_and_again_while_it_loads() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        begins: list[float] = []
        tasks: list[asyncio.Task[None]] = []

        def die(worker: Worker, frame: Frame) -> None:
            begins.append(time.monotonic())
            tasks.append(asyncio.create_task(worker.die(9)))

        zygote.on_load = die
        await zygote.last.die(9)
        waiting = await client.call("version")
        assert (await client.error(waiting))["type"] == "WorkerDiedError"
        await until_async(lambda: len(begins) >= 6, 15)
        gaps = [b - a for a, b in itertools.pairwise(begins)]
        assert gaps[0] >= 0.09
        assert gaps[3] >= 0.45
        assert (await client.request("status"))["state"] == "restarting"
        # New code is not kept waiting by that: the next pause is one of 5 s.
        zygote.on_load = lambda worker, frame: worker.loaded(frame)
        begin = time.monotonic()
        await client.value(await client.load("v2"))
        assert time.monotonic() - begin < 2
        assert await client.run("version") == b"v2"

    play(scenario)


def test_worker_that_never_comes() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        async def stillborn(worker: Worker) -> bool:
            zygote.died(worker, 1 << 8)
            return False

        zygote.on_fork = stillborn
        error = await client.error(await client.load("v1"))
        assert (error["type"], error["exit_code"]) == ("WorkerDiedError", 1)
        zygote.on_fork = None
        await client.value(await client.load("v1"))

    play(scenario, load=None)


def test_garbage_from_a_worker_ends_it() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        worker = zygote.last
        seq = await client.call("hang")
        await until_async(lambda: worker.calls)
        worker.writer.write(b"\xff" * 100)
        error = await client.error(seq)
        assert error["type"] == "WorkerDiedError"
        assert "frame" in error["message"]
        assert await client.run("version") == b"v1"

    play(scenario)


def test_strangers_on_the_unix_socket() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        for hello in (
            {"role": "worker", "worker": zygote.last.number},
            {"role": "worker", "worker": 99},
            {"role": "zygote"},
            {"role": "king"},
            {},
        ):
            stranger = Worker(zygote, 0, {})
            await stranger.open(hello)
            await asyncio.wait_for(stranger.closed.wait(), 5)
            await stranger.close()
        assert await client.run("version") == b"v1"

    play(scenario)


def test_restart_request() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        old = zygote.last
        seq = await client.call("hang")
        await until_async(lambda: old.calls)
        assert await client.request("restart") == {"restarted": True}
        error = await client.error(seq)
        assert (error["type"], error["cause"]) == ("WorkerDiedError", "restart")
        assert old.dead
        assert await client.run("version") == b"v1"

    play(scenario)


def test_a_restart_during_a_load_is_answered_by_the_new_worker() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        old, gate = zygote.last, Gate(zygote)
        load = await client.load("v2")
        await gate.next()
        restart = asyncio.create_task(client.request("restart"))
        await until_async(lambda: old.dead)
        worker, frame = await gate.next()
        assert worker is not old
        worker.loaded(frame)
        assert await restart == {"restarted": True}
        await client.value(load)
        assert await client.run("version") == b"v2"

    play(scenario)


def test_restart_without_code() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        assert (await client.request("restart"))["error"]["type"] == "NotDeployedError"

    play(scenario, load=None)


# -- cancelling and timeouts -------------------------------------------------------------------------------------------


def test_timeout_answers_at_once_and_cancels() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        worker = zygote.last
        begin = time.monotonic()
        seq = await client.call("hang", timeout=0.2)
        error = await client.error(seq)
        assert 0.15 < time.monotonic() - begin < 5
        assert error == {"type": "CallTimeoutError", "timeout": 0.2, "message": ""}
        await until_async(lambda: worker.named(FrameType.CANCEL))
        [cancel] = worker.named(FrameType.CANCEL)
        assert cancel.meta == {"reason": "timeout"}
        assert (await client.request("calls"))["calls"][0]["state"] == "cancelling"
        worker.fail(cancel.channel, {"type": "CallTimeoutError", "timeout": 0.2})
        await until_async(lambda: True)
        assert await client.run("version") == b"v1"
        assert [r["state"] for r in (await client.request("calls"))["calls"]] == ["done", "failed"]

    play(scenario)


def test_timeout_counts_the_waiting() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        gate = Gate(zygote)
        load = await client.load("v1")
        worker, frame = await gate.next()
        seq = await client.call("version", timeout=0.1)
        assert (await client.error(seq))["type"] == "CallTimeoutError"
        worker.loaded(frame)
        await client.value(load)
        assert not worker.named(FrameType.CALL)

    play(scenario, load=None)


def test_cancel_goes_to_the_worker_and_its_answer_back() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        worker = zygote.last
        seq = await client.call("hang")
        await until_async(lambda: worker.calls)
        await client.send(FrameType.CANCEL, seq, {"reason": "user"})
        await until_async(lambda: worker.named(FrameType.CANCEL))
        assert (await client.request("calls"))["calls"][0]["state"] == "cancelling"
        worker.fail(worker.named(FrameType.CANCEL)[0].channel, {"type": "CallCancelledError"})
        assert (await client.error(seq))["type"] == "CallCancelledError"
        assert (await client.request("calls"))["calls"][0]["state"] == "cancelled"

    play(scenario)


def test_cancel_of_what_waits() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        gate = Gate(zygote)
        load = await client.load("v1")
        seq = await client.call("version")
        await client.send(FrameType.CANCEL, seq, {"reason": "user"})
        assert (await client.error(seq))["type"] == "CallCancelledError"
        worker, frame = await gate.next()
        worker.loaded(frame)
        await client.value(load)
        assert not worker.named(FrameType.CALL)

    play(scenario, load=None)


def test_a_class_does_not_wait_for_ever_for_a_cancelled_call(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        worker = zygote.last
        seq = await client.call("hang", timeout=0.05)
        await client.error(seq)
        assert len(worker.calls) == 1
        begin = time.monotonic()
        await client.value(await client.load("v2", kind="cls"))
        assert 2 < time.monotonic() - begin < 6
        assert await client.run("version") == b"v2"

    play(scenario, kind="cls")


async def hang(zygote: Zygote, client: Client, how: str) -> int:
    """A call that never ends, in the worker that there is; its time is up soon if that is to be."""
    worker = zygote.last
    seq = await client.call("hang", timeout=0.5 if how == "timed out" else 60.0)
    await until_async(lambda: worker.calls)
    return seq


async def give_up(client: Client, seq: int, how: str) -> None:
    if how == "cancelled":
        await client.send(FrameType.CANCEL, seq, {"reason": "user"})


@pytest.mark.parametrize("how", ["cancelled", "timed out"])
def test_a_call_that_is_given_up_while_a_class_waits_for_it(how: str) -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        seq = await hang(zygote, client, how)
        load = await client.load("v2", kind="cls")
        waiting = await client.call("version")
        await asyncio.sleep(0.1)
        assert waiting not in client.results
        await give_up(client, seq, how)
        await client.value(load)
        assert await client.value(waiting) == b"v2"

    play(scenario, kind="cls")


@pytest.mark.parametrize("how", ["cancelled", "timed out"])
def test_a_call_that_is_given_up_in_a_worker_that_was_replaced(how: str) -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        worker = zygote.last
        seq = await hang(zygote, client, how)
        await client.value(await client.load("v2", worker="new"))
        assert await client.run("version") == b"v2"
        await asyncio.sleep(0.1)
        assert not worker.dead
        await give_up(client, seq, how)
        await until_async(lambda: worker.dead, 10)

    play(scenario)


def test_service_log_and_late_lines() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        worker = zygote.last
        worker.log(0, "for everybody ä\n".encode())
        seq = await client.call("lines", b"2")
        await client.value(seq)
        channel = worker.named(FrameType.CALL)[-1].channel
        worker.log(channel, b"a thread's last line\n")
        await client.run("echo", b"")
        id = (await client.request("calls"))["calls"][1]["id"]
        client.seq += 1
        await client.send(FrameType.RESUME, client.seq, {"id": id, "log": 0, "log_only": True})
        await client.result(client.seq)
        text = b"".join(d for _, d in LogDecoder().feed(client.logs[client.seq]))
        assert text == b"line 0\nline 1\na thread's last line\n"
        assert (await client.request("service_log"))["text"] == "for everybody ä\n"
        end = (await client.request("service_log"))["end"]
        assert (await client.request("service_log", after=end)) == {"text": "", "end": end}
        # A death's reload logs there too.
        zygote.on_load = lambda w, f: (w.log(f.channel, b"loading again\n"), w.loaded(f))
        await worker.die(9)
        await client.until(lambda: named(client, "worker-ready"))
        assert "loading again" in (await client.request("service_log"))["text"]
        rows = (await client.request("calls", loads=True))["calls"]
        assert [row["f"] for row in rows].count("(loading)") == 1, "that of the deploy, not that of the death"
        assert len((await client.request("calls"))["calls"]) == len(rows) - 1

    play(scenario)


def test_results_of_a_worker_are_its_own() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        worker = zygote.last
        seq = await client.call("hang")
        await until_async(lambda: worker.calls)
        worker.send(FrameType.RESULT, 4_000_000, {}, [b"nobody's"])
        worker.send(FrameType.LOG, 4_000_000, {}, [b"nobody's"])
        worker.send(FrameType.ITEM, 4_000_000, {"i": 0}, [b"nobody's"])
        worker.result(next(iter(worker.calls)), b"mine")
        assert await client.value(seq) == b"mine"
        assert not client.results[seq].flags & F_ERROR

    play(scenario)
