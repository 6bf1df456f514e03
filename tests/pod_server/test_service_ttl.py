"""Replicas end together: when nobody has called any of them for the time to live."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pod_server.__main__ import _parser
from tests.pod_server.containers import on_a_loop
from tests.pod_server.podtools import TOKEN, Client, Front, Zygote
from tests.ports import free_port
from tests.waiting import until


def free_ports(n: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < n:
        ports.add(free_port())
    return list(ports)


@contextlib.contextmanager
def replicas(n: int, ttl: float, *, living: int | None = None) -> Iterator[list[Front]]:
    """The fronts of a service of `n` replicas, of which the last ones may not be there."""
    ports = free_ports(n)
    peers = [f"127.0.0.1:{port}" for port in ports]
    living = n if living is None else living
    fronts = [Front(port=port, peers=peers, rank=i, ttl=ttl) for i, port in enumerate(ports[:living])]
    try:
        yield fronts
    finally:
        for front in fronts:
            front.close()


def ask(front: Front, method: str, path: str, token: str | None = TOKEN) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=10)
    connection.request(method, path, headers={"X-Kubetorch-Token": token} if token is not None else {})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


async def in_call(front: Front) -> tuple[Zygote, Client, int]:
    """A call that hangs in a replica."""
    zygote = Zygote(front.dir)
    await zygote.open({"role": "zygote", "pid": 1})
    client = await Client(front).open()
    await client.value(await client.load("v1"))
    return zygote, client, await client.call("hang")


def test_replicas_that_nobody_calls_end_together() -> None:
    begun = time.monotonic()
    with replicas(3, 1.0) as fronts:
        for front in fronts:
            assert front.ended(8)
            assert front.status == 0
    assert 1.0 <= time.monotonic() - begun < 7


@on_a_loop
async def test_a_call_in_one_keeps_all_of_them() -> None:
    with replicas(3, 2.0) as fronts:
        zygote, client, call = await in_call(fronts[2])
        await asyncio.sleep(4.2)  # the others have asked twice
        assert not any(front.ended() for front in fronts)
        assert json.loads(ask(fronts[2], "GET", "/idle")[1])["calls"] == 1
        # Not even when it is told: it has a call.
        assert ask(fronts[2], "POST", "/end")[0] == 409
        ended = time.monotonic()
        zygote.last.result(next(iter(zygote.last.calls)))
        await client.value(call)
        for front in fronts:
            assert await asyncio.to_thread(front.ended, 12)
        assert time.monotonic() - ended >= 2
        assert [front.status for front in fronts] == [0, 0, 0]
        await client.cut()
        await zygote.close()


@on_a_loop
async def test_a_session_is_no_call() -> None:
    with replicas(2, 3.0) as fronts:
        client = await Client(fronts[0]).open()
        for _ in range(4):
            await client.request("status")
            await asyncio.sleep(0.1)
        for front in fronts:
            assert await asyncio.to_thread(front.ended, 8)
        await client.cut()


def test_those_that_are_gone_hold_up_nobody() -> None:
    """One has never come, and one was killed: connections are refused."""
    begun = time.monotonic()
    with replicas(3, 0.5, living=2) as fronts:
        for front in fronts:
            assert front.ended(15)
            assert front.status == 0
        assert time.monotonic() - begun > 2  # it was tried more than once


def test_the_lowest_of_those_that_live_decides() -> None:
    """Rank 0 is a black hole: it takes connections and never answers."""
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen()
        port = free_port()
        peers = [f"127.0.0.1:{hole.getsockname()[1]}", f"127.0.0.1:{port}"]
        with Front(port=port, peers=peers, rank=1, ttl=0.3) as front:
            assert front.ended(25)
            assert front.status == 0


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n[1]", b"HTTP/1.1 403 No\r\n\r\n"]
)
def test_one_that_answers_nonsense_counts_as_gone(answer: bytes) -> None:
    import threading

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = other.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        port = free_port()
        peers = [f"127.0.0.1:{other.getsockname()[1]}", f"127.0.0.1:{port}"]
        with Front(port=port, peers=peers, rank=1, ttl=0.2) as front:
            assert front.ended(15)
        other.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_the_token_is_needed() -> None:
    with replicas(2, 60.0) as fronts:
        for path, method in (("/idle", "GET"), ("/end", "POST")):
            assert ask(fronts[0], method, path, None)[0] == 401
            assert ask(fronts[0], method, path, "x" * 43)[0] == 403
        assert ask(fronts[0], "POST", "/idle")[0] == 404
        assert ask(fronts[0], "GET", "/end")[0] == 404
        said = json.loads(ask(fronts[1], "GET", "/idle")[1])
        assert (said["calls"], said["ttl"], said["rank"]) == (0, 60.0, 1)
        # Nobody ends one whose time has not come, whoever tells it to.
        assert ask(fronts[0], "POST", "/end")[0] == 409
        until(lambda: ask(fronts[0], "GET", "/health")[0] == 200)
        assert not fronts[0].ended(0.3)


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "2")
    options = _parser().parse_args(["front", "--peers", "a-0.s:32300, a-1.s:32300"])
    assert (options.peers, options.rank) == (["a-0.s:32300", "a-1.s:32300"], 2)
    assert _parser().parse_args(["front", "--rank", "1"]).rank == 1
    for bad in ("a", "a:b", ":1", "a:1,b"):
        with pytest.raises(SystemExit):
            _parser().parse_args(["front", "--peers", bad])
