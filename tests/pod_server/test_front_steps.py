"""Image steps as the front has them: run in a new worker while the old instance of a class goes on, and told."""

from __future__ import annotations

import asyncio

import pytest

from pod_server.wire import FrameType

from .podtools import Client, Front, Zygote, until_async
from .test_front_loads import Gate, named, play, refuse

IMAGE = {"n": 1, "files": ["abc"]}


def test_the_old_instance_goes_on_until_the_steps_have_been_run() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        old = zygote.last
        running = await client.call("hang")
        await until_async(lambda: old.calls)
        gate = Gate(zygote)
        load = await client.load("v2", worker="w2", kind="cls", image=IMAGE)
        new, frame = await gate.next()
        assert new is not old
        assert (frame.meta["prepare"], frame.meta["image"]) == (True, IMAGE)
        assert not old.dead
        new.log(frame.channel, b"installing")
        new.send(FrameType.EVENT, 0, {"event": "step", "text": "pip_install"})
        await client.until(lambda: named(client, "step"))
        waiting = await client.call("version")
        new.result(frame.channel, meta={"prepared": True})
        await asyncio.sleep(0.05)
        assert not gate.waiting, "it was constructed while a call ran on the old one"
        assert not old.dead
        old.result(next(iter(old.calls)), b"done")
        assert await client.value(running) == b"done"
        again, frame = await gate.next()
        assert again is new
        assert not frame.meta["prepare"]
        assert old.dead
        new.loaded(frame)
        await client.value(load)
        assert b"installing" in client.logs[load]
        assert await client.value(waiting) == b"v2"
        assert (await client.request("status"))["code"]["files"] == ["abc"]
        assert len(zygote.workers) == 2

    play(scenario, kind="cls")


def test_steps_that_fail_cost_no_state() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        gate = Gate(zygote)
        load = await client.load("v2", worker="w2", kind="cls", image=IMAGE)
        new, frame = await gate.next()
        waiting = await client.call("version")
        refuse(new, frame, "exit code 1")
        assert (await client.error(load))["message"] == "exit code 1"
        assert await client.value(waiting) == b"v1"
        await until_async(lambda: new.dead)
        assert len(zygote.alive) == 1
        assert not named(client, "state-lost")
        assert not named(client, "worker-died")
        status = await client.request("status")
        assert (status["state"], status["code"]["version"]) == ("ready", "v1")

    play(scenario, kind="cls")


@pytest.mark.parametrize("when", ["steps", "drain", "load"])
@pytest.mark.parametrize("how", ["cancelled", "died"])
def test_a_load_that_ends_on_the_way(when: str, how: str) -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        old = zygote.last
        gate = Gate(zygote)
        if when == "drain":
            hanging = await client.call("hang")
            await until_async(lambda: old.calls)
        load = await client.load("v2", worker="w2", kind="cls", image=IMAGE)
        new, frame = await gate.next()
        if when != "steps":
            new.result(frame.channel, meta={"prepared": True})
        if when == "load":
            await gate.next()
        elif when == "drain":
            await asyncio.sleep(0.05)
        if how == "cancelled":
            await client.send(FrameType.CANCEL, load, {"reason": "user"})
        else:
            await new.die(9)
            await client.until(lambda: named(client, "worker-died"))
        if when == "drain":
            old.result(next(iter(old.calls)), b"done")
            assert await client.value(hanging) == b"done"
        error = await client.error(load)
        assert error["type"] == ("CallCancelledError" if how == "cancelled" else "WorkerDiedError")
        await until_async(lambda: new.dead)
        if when == "load":
            # The old instance had made room.
            again, frame = await gate.next()
            assert frame.meta["version"] == "v1"
            again.loaded(frame)
        assert await client.run("version") == b"v1"
        assert bool(named(client, "state-lost")) == (when == "load")

    play(scenario, kind="cls")


def test_functions_need_no_preparation() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        gate = Gate(zygote)
        load = await client.load("v2", worker="w2", image=IMAGE)
        new, frame = await gate.next()
        assert not frame.meta["prepare"]
        assert await client.run("version") == b"v1"
        new.send(FrameType.EVENT, 0, {"event": "steps-done"})
        new.loaded(frame)
        await client.value(load)
        assert await client.run("version") == b"v2"
        assert len(named(client, "steps-done")) == 1

    play(scenario)


@pytest.mark.parametrize("image", [3, {}, {"n": 0}, {"n": 1, "files": "abc"}, {"n": 1, "files": [1]}])
def test_nonsense_ends_the_session(image: object) -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        await client.load("v2", image=image)
        await client.until(lambda: client.goodbye)

    play(scenario)
