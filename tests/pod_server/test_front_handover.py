"""Payloads that a client of the same machine hands over as files: taken, lent, refused, and removed when forgotten."""

from __future__ import annotations

import asyncio
import http.client
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pod_server.front import handover
from pod_server.front.handover import Handover
from pod_server.wire import F_BULK

from .podtools import TOKEN, Client, Front, Zygote, until_async
from .test_front_bulk import files, get, place, play, put, total

NAME = "client-" + "0123456789abcdef" * 2
OTHER = "client-" + "f" * 32
SIZE = 300_000


def ask(front: Front, method: str, path: str, name: str, token: str = TOKEN) -> tuple[int, bytes, str | None]:
    """A request that names a file."""
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=20)
    try:
        headers = {"X-Kubetorch-Token": token, "X-Kubetorch-File": name}
        if method == "PUT":
            headers["Content-Length"] = "0"
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read(), response.headers["X-Kubetorch-File"]
    finally:
        connection.close()


def content(front: Front, name: str) -> bytes:
    return Path(front.bulk, name).read_bytes()


async def hand_over(front: Front, client: Client, seq: int, name: str = NAME) -> int:
    return (await asyncio.to_thread(ask, front, "PUT", f"/bulk/up/{client.id}/{seq}", name))[0]


@pytest.mark.parametrize("first", ["frame", "file"])
def test_a_file_is_taken(first: str) -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        data = os.urandom(SIZE)
        place(front, NAME, data)
        seq = client.seq + 1
        if first == "frame":
            await client.call("sum", flags=F_BULK, lens=[100, SIZE - 100])
            assert await hand_over(front, client, seq) == 204
        else:
            upload = asyncio.create_task(hand_over(front, client, seq))
            await client.call("sum", flags=F_BULK, lens=[100, SIZE - 100])
            assert await upload == 204
        assert await client.value(seq) == total(data)
        # Again, as after an answer that was lost.
        assert await hand_over(front, client, seq) == 409
        await client.request("status")
        assert files(front) == []

    play(scenario)


@pytest.mark.parametrize(
    "name",
    ["", "f1", "..", f"../{NAME}", f"./{NAME}", f"/{NAME}", f".{NAME}", NAME[:-1], NAME + "0", NAME.upper(), "w1-ab-0"],
)
def test_names_that_are_none(name: str) -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        data = os.urandom(SIZE)
        for there in (os.path.join(front.dir, NAME), NAME, "f1", "w1-ab-0", f".{NAME}"):
            place(front, there, data)
        before = sorted(files(front))
        seq = await client.call("sum", flags=F_BULK, lens=[SIZE])
        assert await hand_over(front, client, seq, name) == 422
        assert sorted(files(front)) == before
        assert content(front, os.path.join(front.dir, NAME)) == data
        for inside in before:
            os.unlink(Path(front.bulk, inside))
        # The call has not suffered.
        assert await asyncio.to_thread(put, front, client.id, seq, data) == 204
        assert await client.value(seq) == total(data)

    play(scenario)


def _link(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def _second_name(path: Path, secret: Path) -> None:
    os.link(secret, path)


def _directory(path: Path, secret: Path) -> None:
    path.mkdir()


def _pipe(path: Path, secret: Path) -> None:
    os.mkfifo(path)


def _short(path: Path, secret: Path) -> None:
    path.write_bytes(bytes(SIZE - 1))


def _long(path: Path, secret: Path) -> None:
    path.write_bytes(bytes(SIZE + 1))


def _missing(path: Path, secret: Path) -> None:
    pass


@pytest.mark.parametrize("make", [_link, _second_name, _directory, _pipe, _short, _long, _missing])
def test_files_that_are_not_what_they_should_be(make: Callable[[Path, Path], None]) -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        place(front, "secret", bytes(SIZE))
        make(Path(front.bulk, NAME), Path(front.bulk, "secret"))
        before = sorted(files(front))
        seq = await client.call("sum", flags=F_BULK, lens=[SIZE])
        assert await hand_over(front, client, seq) == 422
        assert sorted(files(front)) == before
        assert content(front, "secret") == bytes(SIZE)
        assert await asyncio.to_thread(put, front, client.id, seq, bytes(SIZE)) == 204
        assert await client.value(seq) == b"0"

    play(scenario)


def test_a_file_of_nobody_and_one_without_the_token() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        place(front, NAME, bytes(SIZE))
        seq = await client.call("sum", flags=F_BULK, lens=[SIZE])
        path = f"/bulk/up/{client.id}/{seq}"
        assert (await asyncio.to_thread(ask, front, "PUT", path, NAME, "wrong"))[0] == 403
        assert (await asyncio.to_thread(ask, front, "PUT", "/bulk/up/somebody/5", NAME))[0] == 409
        assert files(front) == [NAME]
        assert await hand_over(front, client, seq) == 204
        assert await client.value(seq) == b"0"

    play(scenario)


def test_a_result_is_lent_and_stays() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        seq = await client.call("big", b"%d" % SIZE)
        name = (await client.result(seq)).meta["file"]
        _, whole, _ = await asyncio.to_thread(get, front, name)
        path = f"/bulk/down/{name}"
        assert (await asyncio.to_thread(ask, front, "GET", path, NAME, "wrong"))[0] == 403
        assert await asyncio.to_thread(ask, front, "GET", path, NAME) == (204, b"", NAME)
        assert content(front, NAME) == whole
        # Names that are taken, or none: the bytes come as they always have.
        for other in (NAME, name, "..", f"../{OTHER}", ""):
            assert await asyncio.to_thread(ask, front, "GET", path, other) == (200, whole, None)
        assert (await asyncio.to_thread(ask, front, "GET", "/bulk/down/token", OTHER))[0] == 404
        assert (await asyncio.to_thread(ask, front, "GET", f"/bulk/down/{NAME}", OTHER))[0] == 404
        assert sorted(files(front)) == sorted([NAME, name])
        await client.value(seq)
        await client.request("status")
        assert files(front) == [NAME]
        assert content(front, NAME) == whole

    play(scenario)


def test_what_nobody_takes_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "_ABANDONED", 0.3)

    async def main() -> None:
        result = tmp_path / "w1-result"
        result.write_bytes(b"abc")
        store = Handover(str(tmp_path))
        assert store.lend(str(result), NAME.encode())
        written = tmp_path / OTHER
        written.touch()

        def goes_on() -> bool:
            with written.open("ab") as f:
                f.write(b"x")
            return not (tmp_path / NAME).exists()

        await until_async(goes_on)
        assert OTHER in os.listdir(tmp_path)  # it is being written
        await until_async(lambda: OTHER not in os.listdir(tmp_path))
        assert os.listdir(tmp_path) == ["w1-result"]

    asyncio.run(main())


def test_the_end_of_the_pod_takes_all_of_it() -> None:
    async def scenario(front: Front, zygote: Zygote, client: Client) -> None:
        place(front, NAME, bytes(SIZE))

    play(scenario)  # which looks for files at its end
