"""Nobody without the token gets anything but a status, and nothing that anybody sends breaks the front."""

from __future__ import annotations

import asyncio
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from .podtools import TOKEN, Client, Front, played


@pytest.fixture(scope="module", params=["httptools", "h11"])
def front(request: pytest.FixtureRequest) -> Iterator[Front]:
    with Front(http=request.param, loop="uvloop" if request.param == "httptools" else "asyncio") as front:
        yield front


def ask(front: Front, raw: bytes, timeout: float = 5.0) -> bytes:
    """Send bytes, give back what comes until the other side closes (or has answered and waits for more)."""
    with socket.create_connection(("127.0.0.1", front.port), timeout=timeout) as sock:
        answer = b""
        try:
            sock.sendall(raw)
            while data := sock.recv(65536):
                answer += data
                if b"\r\n\r\n" in answer:
                    break
        except (ConnectionError, BrokenPipeError):
            pass
        return answer


def status(
    front: Front, path: str, *, method: str = "GET", headers: dict[str, str] | None = None, body: bytes | None = None
) -> int:
    request = urllib.request.Request(front.url + path, method=method, headers=headers or {}, data=body)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert answer.headers["X-Kubetorch-Pod"] == front.info["incarnation"]
            return int(answer.status)
    except urllib.error.HTTPError as e:
        refusal = e
        refusal.close()
    assert refusal.headers["X-Kubetorch-Pod"] == front.info["incarnation"]
    return refusal.code


def test_health_and_ready_are_open_and_say_nothing(front: Front) -> None:
    with urllib.request.urlopen(front.url + "/health", timeout=5) as answer:
        assert answer.status == 200
        assert answer.read() == b""
    assert status(front, "/ready") == 503


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/session"),
        ("PUT", "/bulk/up/x/1"),
        ("GET", "/bulk/down/f1"),
        ("POST", "/call/f"),
        ("GET", "/nothing"),
        ("GET", "/"),
    ],
)
def test_token_first(front: Front, method: str, path: str) -> None:
    body = b"x" * 1000 if method != "GET" else None
    assert status(front, path, method=method, body=body) == 401
    assert status(front, path, method=method, body=body, headers={"X-Kubetorch-Token": ""}) == 401
    assert status(front, path, method=method, body=body, headers={"X-Kubetorch-Token": "x" * 43}) == 403
    assert status(front, path, method=method, body=body, headers={"X-Kubetorch-Token": TOKEN[:-1]}) == 403
    assert status(front, path, method=method, body=body, headers={"Authorization": f"Bearer {TOKEN}"}) == 401


def test_right_token_and_unknown_path(front: Front) -> None:
    right = {"X-Kubetorch-Token": TOKEN}
    assert status(front, "/nothing", headers=right) == 404
    assert status(front, "/bulk/down/..%2ffront.log", headers=right) == 404
    assert status(front, "/bulk/down/f1", headers=right) == 404
    assert status(front, "/bulk/up/x/y", method="PUT", body=b"", headers=right) == 404
    assert status(front, "/call/f", headers=right) == 405


@pytest.mark.parametrize("token", ["\u00e9" * 43, "t" * 42 + "\u00ff", "x" * 7000])
def test_strange_tokens(front: Front, token: str) -> None:
    raw = f"GET /bulk/down/x HTTP/1.1\r\nHost: x\r\nX-Kubetorch-Token: {token}\r\n\r\n".encode("latin-1")
    assert ask(front, raw).startswith(b"HTTP/1.1 403")
    raw = f"GET /bulk/down/x HTTP/1.1\r\nHost: x\r\nX-Kubetorch-Token: {token}\r\n\r\n".encode()
    assert ask(front, raw).startswith(b"HTTP/1.1 403")


def test_two_tokens_are_none(front: Front) -> None:
    raw = f"GET /x HTTP/1.1\r\nHost: x\r\nX-Kubetorch-Token: {TOKEN}\r\nX-Kubetorch-Token: {TOKEN}\r\n\r\n".encode()
    assert ask(front, raw).startswith(b"HTTP/1.1 403")


def test_head_of_a_mebibyte(front: Front) -> None:
    before = front.memory()
    for upgrade in (b"", b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"):
        raw = (
            b"GET /session HTTP/1.1\r\nHost: x\r\n" + upgrade + b"X-Kubetorch-Token: " + b"t" * (1 << 20) + b"\r\n\r\n"
        )
        answer = ask(front, raw)
        assert not answer or answer.split()[1] in (b"400", b"403", b"431"), answer[:200]
    assert status(front, "/health") == 200
    assert front.memory() - before < 8 << 20


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00" * 1000,
        b"GET\r\n\r\n",
        b"GET /session HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(200),
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /session HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"GET /s\xffx HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n"
        b"Sec-WebSocket-Version: 13\r\n\r\n",
        b"POST /call/f HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /call/f HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
    ],
)
def test_garbage_http(front: Front, raw: bytes) -> None:
    try:
        ask(front, raw, timeout=0.3)
    except TimeoutError:
        pass  # it waits for the rest of a request
    assert status(front, "/health") == 200


@pytest.mark.parametrize(("headers", "code"), [({}, 401), ({"X-Kubetorch-Token": "no"}, 403)])
def test_websocket_without_the_token(front: Front, headers: dict[str, str], code: int) -> None:
    async def run() -> None:
        with pytest.raises(InvalidStatus) as caught:
            await connect(f"ws://127.0.0.1:{front.port}/session", additional_headers=headers)
        assert caught.value.response.status_code == code
        assert caught.value.response.headers["X-Kubetorch-Pod"] == front.info["incarnation"]

    asyncio.run(run())


def test_websocket_elsewhere(front: Front) -> None:
    async def run() -> None:
        with pytest.raises(InvalidStatus) as caught:
            await connect(f"ws://127.0.0.1:{front.port}/other", additional_headers={"X-Kubetorch-Token": TOKEN})
        assert caught.value.response.status_code == 404

    asyncio.run(run())


def test_listens_on_loopback_only(front: Front) -> None:
    with open("/proc/net/tcp") as f:
        rows = [line.split() for line in f][1:]
    mine = [row[1] for row in rows if row[1].endswith(f":{front.port:04X}") and row[3] == "0A"]
    assert mine == [f"0100007F:{front.port:04X}"]


def test_token_is_nowhere_to_be_seen(front: Front) -> None:
    with open(f"/proc/{front.pid}/cmdline", "rb") as f:
        assert TOKEN.encode() not in f.read()
    with open(f"/proc/{front.pid}/environ", "rb") as f:
        assert TOKEN.encode() not in f.read()
    assert TOKEN not in front.log()
    assert oct(os.stat(os.path.join(front.dir, "front.sock")).st_mode & 0o777) == "0o600"


def test_port_taken() -> None:
    with Front() as first:
        second = Front(port=first.port)
        assert second.ended(5)
        assert second.status == 1
        assert f"127.0.0.1:{first.port}" in second.info["error"]
        assert "port" in second.info["error"].split(";")[-1]
        second.remove_directory()
        second.close()


@pytest.mark.parametrize(("http", "loop"), [("httptools", "uvloop"), ("h11", "asyncio")])
def test_both_stacks_work(http: str, loop: str) -> None:
    async def run(front: Front) -> None:
        async with played(front) as (_, client):
            assert await client.run("echo", b"hello") == b"hello"
            assert await client.run("lines", b"3") == b"3"
            other = await Client(front).open()
            assert other.welcome["code"]["version"] == "v1"
            await other.close()

    with Front(http=http, loop=loop) as front:
        asyncio.run(run(front))
