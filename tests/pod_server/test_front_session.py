"""Sessions: numbering, resuming, order, slow readers, and bytes that no client sends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from pod_server.front.records import RING
from pod_server.wire import (
    F_BULK,
    PROTOCOL,
    FrameType,
    LogDecoder,
    LogKind,
    call_id,
    encode,
    new_client_id,
    parse_call_id,
)

from .podtools import Client, Front, Zygote, played, until_async

Scenario = Callable[[Front, Zygote, Client], Coroutine[Any, Any, None]]


def play(scenario: Scenario, *, load: str | None = "v1", kind: str = "fn", **params: Any) -> None:
    async def run(front: Front) -> None:
        async with played(front, load=load, kind=kind) as (zygote, client):
            await asyncio.wait_for(scenario(front, zygote, client), 60)

    with Front(**params) as front:
        asyncio.run(run(front))


def text(log: bytes | bytearray) -> bytes:
    return b"".join(data for kind, data in LogDecoder().feed(log) if kind is LogKind.STDOUT)


LINES = {n: b"".join(b"line %d\n" % i for i in range(n)) for n in (1000, 5000)}


def test_welcome_call_log_result() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        welcome = client.welcome
        assert (welcome["protocol"], welcome["service"], welcome["high_water"]) == (PROTOCOL, "svc", 0)
        assert (welcome["code"], welcome["state"], welcome["pid"]) == (None, "starting", front.pid)
        assert welcome["incarnation"] == front.info["incarnation"]
        assert zygote.last.fork["env"] == {"A": "b"}
        assert await client.run("echo", b"one", b"", b"three") == b"onethree"
        seq = await client.call("lines", b"1000")
        assert await client.value(seq) == b"1000"
        assert text(client.logs[seq]) == LINES[1000]
        again = await Client(front).open()
        assert again.welcome["code"]["version"] == "v1"
        assert again.welcome["state"] == "ready"
        await again.close()

    play(scenario)


def test_a_number_starts_at_most_once() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        seq = await client.call("hang")
        for _ in range(5):
            await client.send(FrameType.CALL, seq, {"f": "hang"})
            await client.send(FrameType.CALL, 1, {"f": "hang"})
        # Frames of a connection are taken in order: what is answered comes after them.
        assert await client.run("echo", b"x") == b"x"
        assert len(zygote.last.named(FrameType.CALL)) == 2
        await client.cut()
        again = await Client(front, client.id).open()
        assert again.welcome["high_water"] == client.seq
        await again.send(FrameType.CALL, seq, {"f": "hang"})
        await again.request("status")
        assert len(zygote.last.named(FrameType.CALL)) == 2
        zygote.last.result(zygote.last.named(FrameType.CALL)[0].channel, b"late")
        await again.send(FrameType.RESUME, seq, {"log": 0})
        assert await again.value(seq) == b"late"
        await again.close()

    play(scenario)


def test_resume_at_every_kind_of_offset() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        seq = await client.call("lines", b"5000")
        await client.result(seq)
        whole = bytes(client.logs[seq])
        rng = random.Random(1)
        for offset in [0, 1, len(whole) - 1, len(whole), *(rng.randrange(len(whole)) for _ in range(20))]:
            again = await Client(front, client.id).open()
            await again.send(FrameType.RESUME, seq, {"log": offset})
            assert bytes((await again.result(seq)).buffers[0]) == b"5000"
            assert bytes(again.logs.get(seq, b"")) == whole[offset:]
            await again.cut()

    play(scenario)


def test_cuts_in_the_middle_of_a_log_lose_and_double_nothing() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        n = 40
        seq = await client.call("hang")
        [frame] = await until_async(lambda: zygote.last.named(FrameType.CALL))
        got = bytearray()
        for i in range(n):
            zygote.last.log(frame.channel, b"entry %d " % i * 2000)
            await asyncio.sleep(random.Random(i).choice([0, 0, 0.003]))
            got += client.logs.pop(seq, b"")
            if i % 3 == 0:
                await client.cut()
                got += client.logs.pop(seq, b"")
                client = await Client(front, client.id).open()
                await client.send(FrameType.RESUME, seq, {"log": len(got)})
        zygote.last.result(frame.channel, b"end")
        await client.result(seq)
        got += client.logs.pop(seq, b"")
        assert text(got) == b"".join(b"entry %d " % i * 2000 for i in range(n))
        await client.close()

    play(scenario)


def test_a_session_replaces_that_of_the_same_client() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        seq = await client.call("hang")
        await until_async(lambda: zygote.last.named(FrameType.CALL))
        # A connection that nobody reads is what a black hole looks like.
        hole = await Client(front, new_client_id()).open(read=False)
        for i in range(1, 20):
            await hole.send(FrameType.CALL, i, {"f": "lines"}, [b"5000"])
        second = await Client(front, hole.id).open()
        assert second.welcome["high_water"] == 19
        await second.send(FrameType.RESUME, 19, {"log": 0})
        assert await second.value(19) == b"5000"
        third = await Client(front, client.id).open()
        await client.until(lambda: client.code is not None)
        zygote.last.result(zygote.last.named(FrameType.CALL)[0].channel, b"ok")
        await third.send(FrameType.RESUME, seq, {"log": 0})
        assert await third.value(seq) == b"ok"
        await second.close()
        await third.close()

    play(scenario)


def test_acknowledged_and_unknown_calls() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        seq = await client.call("lines", b"1000")
        await client.value(seq)
        await client.request("status")
        del client.results[seq], client.logs[seq]
        await client.send(FrameType.RESUME, seq, {"log": 0})
        error = await client.error(seq)
        assert error["type"] == "RecordExpiredError"
        # The log is still there, before the error.
        assert text(client.logs[seq]) == LINES[1000]
        await client.send(FrameType.RESUME, 500, {})
        assert (await client.error(500))["type"] == "UnknownCallError"
        await client.send(FrameType.RESUME, 501, {"id": f"svc/{new_client_id()}"})
        assert (await client.error(501))["type"] == "UnknownCallError"
        await client.send(FrameType.RESUME, 502, {"id": "nonsense"})
        assert (await client.error(502))["type"] == "UnknownCallError"

    play(scenario)


def test_an_acknowledgement_that_keeps_the_log() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        seq = await client.call("lines", b"1000")
        await client.result(seq)
        await client.send(FrameType.ACK, seq, {"keep": True})
        for _ in range(RING + 1):
            await client.value(await client.call("echo", b"x"))
        rows = (await client.request("calls"))["calls"]
        assert len(rows) == RING + 1
        id = call_id("svc", client.id, seq)
        del client.logs[seq]
        reader = client.seq = client.seq + 1
        await client.send(FrameType.RESUME, reader, {"id": id, "log": 0, "log_only": True})
        assert (await client.result(reader)).meta["state"] == "done"
        assert text(client.logs[reader]) == LINES[1000]

    play(scenario)


def test_attach_from_another_client() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        seq = await client.call("hang", mode="spawn")
        [frame] = await until_async(lambda: zygote.last.named(FrameType.CALL))
        zygote.last.log(frame.channel, b"before")
        rows = (await client.request("calls"))["calls"]
        assert [(r["f"], r["state"], r["by"]["user"]) for r in rows] == [("hang", "running", "me")]
        id = rows[0]["id"]
        assert parse_call_id(id) == ("svc", client.id, seq)
        await client.cut()

        other = await Client(front).open(user="you")
        await other.send(FrameType.RESUME, 1, {"id": id, "log": 0})
        await other.send(FrameType.RESUME, 2, {"id": id, "log": 0, "log_only": True})
        zygote.last.log(frame.channel, b" after")
        zygote.last.result(frame.channel, b"value")
        assert bytes((await other.result(1)).buffers[0]) == b"value"
        assert (await other.result(2)).meta["log_only"] is True
        for channel in (1, 2):
            assert text(other.logs[channel]) == b"before after"
        assert other.welcome["high_water"] == 0
        other.seq = 2
        assert await other.run("echo", b"my own calls go on") == b"my own calls go on"
        await other.close()

        # The owner was away for a moment only: the result is still its.
        back = await Client(front, client.id).open()
        await back.send(FrameType.RESUME, seq, {"log": 0})
        assert await back.value(seq) == b"value"
        await back.close()

    play(scenario)


def test_log_false_sends_none_but_keeps_it() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        seq = await client.call("lines", b"1000", log=False)
        await client.value(seq)
        assert seq not in client.logs
        id = (await client.request("calls"))["calls"][0]["id"]
        client.seq += 1
        await client.send(FrameType.RESUME, client.seq, {"id": id, "log": 0, "log_only": True})
        await client.result(client.seq)
        assert client.seq in client.logs

    play(scenario)


def test_items_credit_and_order() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        seq = await client.call("hang", gen=3)
        worker = zygote.last
        [frame] = await until_async(lambda: worker.named(FrameType.CALL))
        for i in range(3):
            worker.log(frame.channel, b"log %d" % i)
            worker.send(FrameType.ITEM, frame.channel, {"i": i}, [b"item %d" % i])
        await client.until(lambda: len(client.items.get(seq, [])) == 3)
        kinds = [f.type.name for f in client.order if f.channel == seq]
        assert kinds == ["LOG", "ITEM"] * 3
        await client.send(FrameType.CREDIT, seq, {"n": 2})
        await until_async(lambda: worker.named(FrameType.CREDIT))
        assert worker.named(FrameType.CREDIT)[0].meta == {"n": 2}

        # Cut with two items taken and one lost on the way: it comes again, and credit is given for the rest only.
        await client.cut()
        again = await Client(front, client.id).open()
        await again.send(FrameType.RESUME, seq, {"log": 0, "item": 2, "credit": 3})
        await again.until(lambda: len(again.items.get(seq, [])) == 1)
        assert [f.meta["i"] for f in again.items[seq]] == [2]
        assert len(worker.named(FrameType.CREDIT)) == 1
        await again.send(FrameType.CREDIT, seq, {"n": 1})
        await until_async(lambda: len(worker.named(FrameType.CREDIT)) == 2)
        for i in range(3, 6):
            worker.send(FrameType.ITEM, frame.channel, {"i": i}, [b"item %d" % i])
        worker.result(frame.channel, meta={"n": 6})
        assert (await again.result(seq)).meta["n"] == 6
        assert [f.meta["i"] for f in again.items[seq]] == [2, 3, 4, 5]
        await again.close()

    play(scenario)


def test_slow_client_costs_no_memory_and_no_other_client_time() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        slow = await Client(front).open(read=False)
        seq = 1
        before = front.memory()
        await slow.send(FrameType.CALL, seq, {"f": "flood"}, [b"48"])
        worst = 0.0
        flooding = True
        while flooding:
            begin = time.monotonic()
            await client.run("echo", b"x")
            worst = max(worst, time.monotonic() - begin)
            rows = (await client.request("calls"))["calls"]
            flooding = any(r["f"] == "flood" and r["state"] == "running" for r in rows)
            await asyncio.sleep(0.02)
        grown = front.memory() - before
        print(f"grown by {grown >> 20} MiB while 48 MiB waited; the neighbour waited {worst * 1000:.0f} ms at most")
        assert grown < 24 << 20
        # Now it reads: nothing is missing.
        slow.task = asyncio.create_task(slow._read())
        await slow.value(seq, 40)
        data = text(slow.logs[seq])
        assert len(data) == 48 * 20 * 52_428
        assert [int(data[i : i + 8]) for i in range(0, len(data), 52_428)] == list(range(48 * 20))
        await slow.close()

    play(scenario)


def test_budget_of_a_call_cuts_at_entries_and_says_so() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        slow = await Client(front).open(read=False)
        await slow.send(FrameType.CALL, 1, {"f": "flood"}, [b"24"])
        await until_async(lambda: any(f.meta.get("f") == "flood" for f in zygote.last.named(FrameType.CALL)))
        while True:
            rows = (await client.request("calls"))["calls"]
            if not any(r["state"] == "running" for r in rows):
                break
            await asyncio.sleep(0.02)
        status = await client.request("status")
        assert status["log_bytes"] <= (8 << 20) + (1 << 20)
        await slow.cut()
        again = await Client(front, slow.id).open()
        await again.send(FrameType.RESUME, 1, {"log": 0})
        await again.value(1, 20)
        assert again.gaps[1] > 0
        # It can be read from where it was cut, to its end.
        data = text(again.logs[1])
        assert data[-52_428:][:8] == b"%08d" % (24 * 20 - 1)
        assert len(data) % 52_428 == 0
        await again.close()

    play(scenario, log_budget_call=8 << 20)


def test_budget_of_the_service_drops_what_ended_first() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        for _ in range(5):
            await client.value(await client.call("flood", b"4", log=False), 20)
        rows = (await client.request("calls"))["calls"]
        logs = []
        for row in rows:
            client.seq += 1
            await client.send(FrameType.RESUME, client.seq, {"id": row["id"], "log": 0, "log_only": True})
            await client.result(client.seq, 20)
            logs.append(len(client.logs.get(client.seq, b"")))
        assert logs[0] == 4 * 20 * 52_433, "the newest is whole"
        assert logs[-1] == 0, "the oldest is gone"
        assert (await client.request("status"))["log_bytes"] <= 9 << 20

    play(scenario, log_budget=9 << 20)


def test_only_the_last_200_stay() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        for _ in range(250):
            await client.run("echo", b"x")
        rows: list[dict[str, Any]] = []
        while True:
            answer = await client.request("calls", skip=len(rows))
            rows += answer["calls"]
            if not answer["more"]:
                break
        assert 195 <= len(rows) <= 200
        assert all(r["state"] == "done" for r in rows)

    play(scenario)


def test_memory_is_flat() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        async def some(n: int) -> None:
            for _ in range(n // 50):
                seqs = [await client.call("echo", b"x" * 100) for _ in range(50)]
                for seq in seqs:
                    await client.value(seq)
                    del client.results[seq]
                client.order.clear()
                zygote.last.frames.clear()

        await some(2000)
        before = front.memory()
        await some(6000)
        assert (front.memory() - before) / 6000 < 100

    play(scenario)


# -- what no client sends ----------------------------------------------------------------------------------------------


async def refused(front: Front, *frames: bytes, hello: bool = True, text: str | None = None) -> dict[str, Any]:
    bad = await Client(front).open(hello=hello)
    for frame in frames:
        await bad.ws.send(frame)
    if text is not None:
        await bad.ws.send(text)
    await bad.until(lambda: bad.code is not None, 5)
    assert bad.code == 1002
    assert bad.goodbye is not None
    assert bad.goodbye["reason"]
    return bad.goodbye


def call(seq: int, **meta: Any) -> bytes:
    return encode(FrameType.CALL, seq, {"f": "echo", **meta})


def test_violations_end_their_own_session_only() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        hello = {"protocol": PROTOCOL, "client": new_client_id()}
        bad_meta = encode(FrameType.CALL, 1, {"a": 1}).replace(b'{"a":1}', b"[1,2,3]")
        await refused(front, b"garbage" * 10)
        await refused(front, text="text")
        await refused(front, call(1), hello=False)
        await refused(front, encode(FrameType.HELLO, 0, hello))
        await refused(front, encode(FrameType.HELLO, 0, {**hello, "client": "nobody"}), hello=False)
        await refused(front, encode(FrameType.HELLO, 0, {"client": 5, "protocol": PROTOCOL}), hello=False)
        await refused(front, call(0))
        await refused(front, call(1 << 50))
        await refused(front, bad_meta)
        await refused(front, call(1, timeout="soon"))
        await refused(front, call(1, timeout=-1))
        await refused(front, call(1, gen=float("nan")))
        await refused(front, call(1, f=7))
        await refused(front, encode(FrameType.CALL, 1, {"f": "echo", "lens": "x"}, (), F_BULK))
        await refused(front, encode(FrameType.CALL, 1, {"f": "echo", "lens": [-1]}, (), F_BULK))
        await refused(front, encode(FrameType.CALL, 1, {"f": "echo", "lens": [1]}, [b"x"], F_BULK))
        await refused(front, encode(FrameType.LOAD, 1, {"version": "v"}))
        await refused(front, encode(FrameType.LOAD, 1, {"version": "v", "worker": "w", "kind": "x"}))
        for kind in (FrameType.LOG, FrameType.RESULT, FrameType.ITEM, FrameType.FORK, FrameType.DIED, FrameType.KILL):
            await refused(front, encode(kind, 1, {}))
        for kind in (FrameType.WELCOME, FrameType.EVENT, FrameType.RESPONSE, FrameType.FORKED):
            await refused(front, encode(kind, 0, {}))
        wrong = await refused(front, encode(FrameType.HELLO, 0, {**hello, "protocol": 99}), hello=False)
        assert wrong["error"] == "VersionMismatchError"
        assert client.goodbye is None
        assert await client.run("echo", b"still here") == b"still here"

    play(scenario)


def test_what_is_odd_but_no_violation() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        assert await client.run("echo", b"x", timeout=1e17, gen=10**5) == b"x"
        assert await client.run("echo", b"x", mode="\ud800", more={"a": [1]}) == b"x"
        for kind in (FrameType.ACK, FrameType.CANCEL, FrameType.CREDIT):
            await client.send(kind, 77, {"n": 1} if kind is FrameType.CREDIT else {})
        await client.send(FrameType.PING, 0, {"t": 5})
        answer = await client.request("no such thing")
        assert answer["error"]["type"] == "UnsupportedError"
        await client.ws.send(b"")
        assert await client.run("echo", b"x") == b"x"

    play(scenario)


def test_frames_in_pieces_and_many_in_one_message() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        frames = b"".join(encode(FrameType.CALL, client.seq + i, {"f": "echo"}, [b"%d" % i]) for i in range(1, 101))
        for i in range(0, len(frames), 333):
            await client.ws.send(frames[i : i + 333])
        first = client.seq
        for i in range(1, 101):
            assert await client.value(first + i) == b"%d" % i

    play(scenario)


def mutate(rng: random.Random, session: list[bytes]) -> list[bytes]:
    """A recorded session with something wrong in it."""
    out = list(session)
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(out))
        how = rng.randrange(7)
        if how == 0:
            out[i] = out[i][: rng.randrange(len(out[i]) + 1)]
        elif how == 1:
            out[i] += rng.randbytes(rng.choice([1, 10, 1000, 70_000]))
        elif how == 2:
            data = bytearray(out[i])
            for _ in range(rng.randint(1, 4)):
                if data:
                    data[rng.randrange(len(data))] = rng.randrange(256)
            out[i] = bytes(data)
        elif how == 3:
            rng.shuffle(out)
        elif how == 4:
            out.insert(i, out[rng.randrange(len(out))])
        elif how == 5:
            del out[i]
        else:
            out[i] = rng.randbytes(rng.randrange(100))
        if not out:
            break
    return out


def test_fuzzed_sessions_while_a_neighbour_works() -> None:
    count = int(os.environ.get("KT_FUZZ_SESSIONS", "250"))

    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        rng = random.Random(7)

        def recorded() -> list[bytes]:
            return [
                encode(
                    FrameType.HELLO,
                    0,
                    {"protocol": PROTOCOL, "client": new_client_id(), "pid": 1, "host": "h", "user": "u"},
                ),
                encode(FrameType.CALL, 1, {"f": "echo", "timeout": 3}, [b"abc", b"d" * 100]),
                encode(FrameType.PING, 0, {"t": 1}),
                encode(FrameType.CALL, 2, {"f": "lines", "gen": 4}, [b"10"]),
                encode(FrameType.CREDIT, 2, {"n": 3}),
                encode(FrameType.CANCEL, 2, {"reason": "user"}),
                encode(FrameType.RESUME, 2, {"log": 3, "item": 1, "credit": 2}),
                encode(FrameType.REQUEST, 1, {"op": "calls"}),
                encode(FrameType.REQUEST, 2, {"op": "events", "after": 1}),
                encode(FrameType.CALL, 3, {"f": "echo", "lens": [5, 6]}, (), F_BULK),
                encode(FrameType.RESUME, 4, {"id": f"svc/{client.id[:-1]}1", "log": 0}),
                encode(FrameType.ACK, 1),
                encode(FrameType.ACK, 2),
            ]

        running = True

        async def neighbour() -> float:
            worst = 0.0
            while running:
                begin = time.monotonic()
                assert await client.run("echo", b"me") == b"me"
                worst = max(worst, time.monotonic() - begin)
                await asyncio.sleep(0.001)
            return worst

        async def attack() -> None:
            bad = await Client(front).open(hello=False)
            with contextlib.suppress(ConnectionClosed):
                for frame in mutate(rng, recorded()):
                    await bad.ws.send(frame)
                await asyncio.wait_for(bad.ws.close(), 5)
            assert bad.task is not None
            await asyncio.wait_for(bad.task, 5)
            # The last: it has closed, and more was sent to it before that was known here.
            assert bad.code in (1000, 1002, 1005, 1006), bad.code

        task = asyncio.create_task(neighbour())
        before = front.memory()
        for _ in range(0, count, 10):
            await asyncio.gather(*(attack() for _ in range(10)))
        running = False
        worst = await task
        print(f"{count} sessions; the neighbour waited {worst * 1000:.0f} ms at most")
        assert client.goodbye is None
        assert len(zygote.workers) == 1
        assert front.memory() - before < 32 << 20
        assert "Traceback" not in front.log(), front.log()

    # Calls of fuzzed names go to the worker as they are; this one answers them all.
    play(scenario)


@pytest.mark.parametrize("reason", ["teardown", "signal"])
def test_the_end_is_told(reason: str) -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        seq = await client.call("hang")
        await until_async(lambda: zygote.last.named(FrameType.CALL))
        if reason == "teardown":
            assert (await client.request("teardown"))["stopping"] is True
        else:
            front.signal(15)
        await client.until(lambda: client.code is not None)
        assert client.results[seq].meta["error"]["type"] == "PodTerminatedError"
        assert client.goodbye is not None
        assert client.goodbye["error"] == "PodTerminatedError"
        assert [e["event"] for e in client.events][-1] == "stopping"
        await until_async(front.ended)  # it waits for the workers, which are played here
        assert front.status == 0

    play(scenario)
