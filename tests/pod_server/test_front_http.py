"""``POST /call/{name}``, the way in for ``curl``; and readiness."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pod_server.wire import Frame, FrameType

from .podtools import TOKEN, Client, Front, Worker, Zygote, played, until_async

Scenario = Callable[[Front, Zygote, Client], Coroutine[Any, Any, None]]
INTERFACE = {name: {"gen": False} for name in ("json", "bad", "hang", "big", "lines")}


def play(scenario: Scenario, *, load: bool = True, **params: Any) -> None:
    async def run(front: Front) -> None:
        async with played(front, load=None) as (zygote, client):
            if load:
                await client.value(await client.load("v1", kind="cls", interface=INTERFACE))
            await asyncio.wait_for(scenario(front, zygote, client), 60)

    with Front(**params) as front:
        asyncio.run(run(front))


def post(front: Front, name: str, body: bytes | dict[str, Any]) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{front.url}/call/{name}", data=data, headers={"X-Kubetorch-Token": TOKEN})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as e:
        with e:
            text = e.read()
        return e.code, json.loads(text) if text else None


def ready(front: Front) -> int:
    try:
        with urllib.request.urlopen(f"{front.url}/ready", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as e:
        e.close()
        return e.code


def test_a_long_body_is_the_workers_to_parse() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        body = b'{"args": ["%b"]}' % (b"x" * (2 << 20))
        got: list[bytes] = []
        with_file = Worker.do_sum

        def take(worker: Worker, frame: Frame) -> None:
            with open(os.path.join(front.dir, "bulk", frame.meta["file"]), "rb") as f:
                got.append(f.read())
            with_file(worker, frame)

        zygote.last.do_json = take.__get__(zygote.last)  # type: ignore[method-assign]
        status, answer = await asyncio.to_thread(post, front, "json", body)
        assert (status, answer) == (200, {"result": sum(body)})
        assert got == [body]

    play(scenario)


def test_call() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        status, answer = await asyncio.to_thread(post, front, "json", {"args": [1, "ä"], "kwargs": {"b": None}})
        assert (status, answer) == (200, {"result": {"got": [[1, "ä"], {"b": None}]}})
        frame = zygote.last.named(FrameType.CALL)[-1]
        assert frame.meta == {"ser": "json", "f": "json"}
        assert (await asyncio.to_thread(post, front, "json", b"")) == (200, {"result": {"got": [[], {}]}})
        rows = (await client.request("calls"))["calls"]
        assert [r["f"] for r in rows] == ["json", "json"]
        assert (await client.request("status"))["result_bytes"] == 0

    play(scenario)


def test_a_function_by_its_name() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        await client.value(await client.load("v1", name="train", interface={"": {"gen": False}}))
        zygote.last.do_version = zygote.last.do_json  # type: ignore[method-assign]
        assert (await asyncio.to_thread(post, front, "train", {"args": [1]}))[0] == 200
        assert "f" not in zygote.last.named(FrameType.CALL)[-1].meta
        status, answer = await asyncio.to_thread(post, front, "other", {})
        assert status == 404
        assert "train" in answer["error"]["message"]

    play(scenario, load=False)


def test_errors() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        status, answer = await asyncio.to_thread(post, front, "bad", {})
        assert status == 500
        assert answer == {"error": {"type": "KeyError", "message": "no", "traceback": "Traceback"}}
        status, answer = await asyncio.to_thread(post, front, "nothing", {})
        assert (status, answer["error"]["type"]) == (404, "AttributeError")
        for body in (b"{", b"[1]", b'"x"', b'{"args": 5}', b'{"kwargs": []}', b'{"arg": []}', b"[" * 100_000, b"\xff"):
            status, answer = await asyncio.to_thread(post, front, "json", body)
            assert (status, answer["error"]["type"]) == (400, "ValueError")
            assert '{"args"' in answer["error"]["message"]

    play(scenario)


def test_not_deployed_and_dying() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        status, answer = await asyncio.to_thread(post, front, "json", {})
        assert (status, answer["error"]["type"]) == (503, "NotDeployedError")
        await client.value(await client.load("v1", kind="cls", interface=INTERFACE))
        hanging = asyncio.create_task(asyncio.to_thread(post, front, "hang", {}))
        await until_async(lambda: zygote.last.calls)
        await zygote.last.die(9)
        status, answer = await hanging
        assert (status, answer["error"]["type"]) == (502, "WorkerDiedError")

    play(scenario, load=False)


def test_large_arguments_and_results() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        text = "x" * 1_000_000
        # In a file: the fake worker adds its bytes up.
        zygote.last.do_json = zygote.last.do_sum  # type: ignore[method-assign]
        status, answer = await asyncio.to_thread(post, front, "json", {"args": [text]})
        assert (status, answer["result"]) == (200, sum(json.dumps([[text], {}], separators=(",", ":")).encode()))
        status, answer = await asyncio.to_thread(post, front, "json", b" " * (65 << 20))
        assert (status, answer["error"]["type"]) == (413, "PayloadTooLargeError")

    play(scenario)


def test_who_goes_away_cancels() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=5)
        connection.request("POST", "/call/hang", body=b"{}", headers={"X-Kubetorch-Token": TOKEN})
        await until_async(lambda: zygote.last.calls)
        connection.close()
        await until_async(lambda: zygote.last.named(FrameType.CANCEL))
        assert zygote.last.named(FrameType.CANCEL)[0].meta == {"reason": "abandoned"}

    play(scenario)


@pytest.mark.parametrize("kind", ["fn", "cls"])
def test_ready(kind: str) -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        async def is_ready() -> int:
            return await asyncio.to_thread(ready, front)

        assert await is_ready() == 503
        await client.value(await client.load("v1", kind=kind))
        assert await is_ready() == 200
        waiting: list[Any] = []
        zygote.on_load = lambda worker, frame: waiting.append((worker, frame))
        await zygote.last.die(9)
        await until_async(lambda: waiting)
        assert await is_ready() == 503
        waiting[0][0].loaded(waiting[0][1])
        await client.until(lambda: any(e["event"] == "worker-ready" for e in client.events))
        assert await is_ready() == 200

    play(scenario, load=False)


def test_the_end_closes_who_is_just_coming_in() -> None:
    """A connection that is just being accepted ends with the front: else its loop waited, or complained."""
    script = """
import asyncio, socket, uvloop
from pod_server.front import server

async def end(turns):
    listening = server.bind("127.0.0.1", 0)
    running = server.Server(None, listening, [])
    await running.open()
    with socket.create_connection(listening.getsockname()):
        for _ in range(turns):
            await asyncio.sleep(0)
        await running.close(0.2)

for turns in range(6):
    loop = uvloop.new_event_loop()
    loop.run_until_complete(end(turns))
    loop.close()
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
