"""Who may do what: tokens come before anything is decoded, and user code finds none (issue case 12)."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import websockets.asyncio.client
import websockets.exceptions

import kubetorch_jupyter as kt
from pod_server import wire
from pod_server.wire import FrameType
from tests.cells import Cells


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


@pytest.fixture(scope="module")
def handles() -> Iterator[tuple[Any, Any]]:
    cells = Cells()
    cells.run(
        """
        import os
        def look():
            with open("/proc/self/environ", "rb") as f: environ = f.read()
            found = [environ, repr(dict(os.environ)).encode()]
            pid = os.getpid()
            while pid > 1:
                for what in ("cmdline", "environ"):
                    with open(f"/proc/{pid}/{what}", "rb") as f: found.append(f.read())
                with open(f"/proc/{pid}/stat", "rb") as f: pid = int(f.read().rpartition(b")")[2].split()[1])
            return b"".join(found)
        def other(): return "other"
        """
    )
    with (
        kt.fn(cells["look"], name="look").to(kt.Compute(), stream_logs=False) as look,
        kt.fn(cells["other"], name="other").to(kt.Compute(), stream_logs=False) as other,
    ):
        yield look, other


def _token(handle: Any) -> str:
    token: str = handle.service.endpoint.token
    return token


def _post(url: str, headers: list[tuple[bytes, bytes]], body: bytes, path: str = "/call/look") -> int:
    """A POST by hand: the libraries refuse to send some of these headers."""
    parts = urlsplit(url)
    head = [(b"Host", b"x"), (b"Content-Length", str(len(body)).encode()), (b"Connection", b"close"), *headers]
    request = b"POST " + path.encode() + b" HTTP/1.1\r\n" + b"".join(k + b": " + v + b"\r\n" for k, v in head) + b"\r\n"
    with socket.create_connection((parts.hostname, parts.port or 80), timeout=10) as s:
        try:
            s.sendall(request + body)
        except (BrokenPipeError, ConnectionResetError):
            return 0  # closed before all of it was sent: an answer too
        answer = b""
        try:
            while chunk := s.recv(65536):
                answer += chunk
        except ConnectionResetError:
            pass
    return int(answer.split(b" ", 2)[1]) if answer else 0


@pytest.mark.parametrize(
    ("headers", "statuses"),
    [
        ([], {401}),
        ([(b"X-Kubetorch-Token", b"")], {401, 403}),
        ([(b"X-Kubetorch-Token", b"wrong")], {403}),
        ([(b"X-Kubetorch-Token", "tökén".encode())], {400, 403}),
        ([(b"X-Kubetorch-Token", b"\xff\xfe\x00")], {400, 403}),
        ([(b"X-Kubetorch-Token", b"x" * (1 << 20))], {0, 400, 403, 431}),
        ([(b"Authorization", b"Bearer wrong")], {401}),
    ],
    ids=["none", "empty", "wrong", "non-ascii", "binary", "1 MiB", "authorization"],
)
def test_without_the_token(
    handles: tuple[Any, Any], headers: list[tuple[bytes, bytes]], statuses: set[int], tmp_path: Path
) -> None:
    look, _ = handles
    bomb = pickle.dumps(Bomb(tmp_path / "boom"))
    for path in ("/call/look", "/session", "/bulk/down/x"):
        assert _post(look.endpoint, headers, bomb, path) in statuses, path
    assert not (tmp_path / "boom").exists()
    assert look()


def test_another_services_token(handles: tuple[Any, Any]) -> None:
    look, other = handles
    header = [(b"X-Kubetorch-Token", _token(other).encode())]
    assert _post(look.endpoint, header, b'{"args": []}') == 403
    assert _post(other.endpoint, header, b'{"args": []}', "/call/other") == 200


@pytest.mark.parametrize("token", [None, "wrong"])
def test_a_session_without_the_token(handles: tuple[Any, Any], token: str | None, tmp_path: Path) -> None:
    """Neither the handshake nor a frame with a pickle in it gets anywhere."""
    look, _ = handles

    async def run() -> None:
        url = look.endpoint.replace("http", "ws") + "/session"
        headers = {"X-Kubetorch-Token": token} if token else {}
        bomb = wire.encode(FrameType.LOAD, 1, {"kind": "fn"}, [pickle.dumps(Bomb(tmp_path / "boom"))])

        async def try_it() -> None:
            async with websockets.asyncio.client.connect(url, additional_headers=headers, proxy=None) as ws:
                await ws.send(bomb)
                await ws.recv()

        with pytest.raises((websockets.exceptions.InvalidStatus, websockets.exceptions.ConnectionClosed)) as caught:
            await try_it()
        if isinstance(caught.value, websockets.exceptions.InvalidStatus):
            assert caught.value.response.status_code in (401, 403)

    asyncio.run(run())
    assert not (tmp_path / "boom").exists()


def test_the_front_never_unpickles(handles: tuple[Any, Any], tmp_path: Path) -> None:
    """Also with the token: what is not a call of a function that exists is refused by the worker, not by running it."""
    look, _ = handles
    header = [(b"X-Kubetorch-Token", _token(look).encode())]
    status = _post(look.endpoint, header, pickle.dumps(Bomb(tmp_path / "boom")))
    assert 400 <= status < 500
    assert not (tmp_path / "boom").exists()


def test_it_listens_on_loopback_only(handles: tuple[Any, Any]) -> None:
    look, _ = handles
    port = urlsplit(look.endpoint).port
    listening = [c for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN and c.laddr.port == port]
    assert [c.laddr.ip for c in listening] == ["127.0.0.1"]


def test_user_code_finds_no_token(handles: tuple[Any, Any]) -> None:
    look, _ = handles
    assert _token(look).encode() not in look()
    for process in psutil.process_iter(["cmdline"]):
        assert _token(look) not in " ".join(process.info["cmdline"] or [])


def test_the_token_is_long_and_shows_nowhere(handles: tuple[Any, Any]) -> None:
    look, other = handles
    token = _token(look)
    assert len(token) >= 43  # 256 bits in base64
    assert token != _token(other)
    service = look.service
    shown = [repr(look), repr(service), repr(service.endpoint), repr(kt.services()), service.curl(), str(vars(look))]
    assert not [text for text in shown if token in text]
    for path in Path(os.environ["KT_RUNTIME_DIR"]).rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o077 == 0, path
            assert path.name == "token" or token.encode() not in path.read_bytes(), path


def test_curl_works(handles: tuple[Any, Any]) -> None:
    """The line that ``curl()`` prints, by another client."""
    import subprocess

    _, other = handles
    line = other.service.curl().replace('{"args": [], "kwargs": {}}', '{"args": []}')
    done = subprocess.run(["sh", "-c", line + " -s"], capture_output=True, text=True, timeout=30)
    assert json.loads(done.stdout) == {"result": "other"}


def test_health_and_ready_say_nothing_else(handles: tuple[Any, Any]) -> None:
    look, _ = handles
    parts = urlsplit(look.endpoint)
    for path in ("/health", "/ready"):
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
        connection.request("GET", path)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"")
        connection.close()
