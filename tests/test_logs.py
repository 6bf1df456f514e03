"""kt.logs: the text of calls and of services, so far and as it comes."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from importlib import import_module

import pytest

import kubetorch_jupyter as kt
from tests.cells import Cells


@pytest.fixture
def cells() -> Cells:
    return Cells()


SOURCE = """
import sys, time

def talk(n, seconds=0.0):
    for i in range(n):
        print(f"{i} é漢🎉")
        time.sleep(seconds)
    print("the end", end="", file=sys.stderr)
    return n

class Keeper:
    def __init__(self):
        print("loading")
        import threading
        self.go = threading.Event()
        threading.Thread(target=self.work, daemon=True).start()

    def work(self):
        self.go.wait()

    def speak(self, text):
        print(text)

    def fail(self):
        sys.stdout.buffer.write(b"\\xff\\n")
        raise ValueError("no")
"""


def talked(n: int) -> str:
    return "".join(f"{i} é漢🎉\n" for i in range(n)) + "the end"


def test_a_call_by_its_id_and_by_itself(cells: Cells) -> None:
    cells.run(SOURCE)
    with kt.fn(cells["talk"], name="talk-one").to(kt.Compute(), stream_logs=False) as talk:
        call = talk.spawn(100)
        assert call.result() == 100
        assert kt.logs(call) == kt.logs(call.id) == call.logs() == talked(100)
        assert "".join(kt.logs(call, follow=True)) == "".join(kt.logs(call.id, follow=True)) == talked(100)
        talk(3)  # a blocking call's too, although it has been acknowledged
        assert kt.logs(kt.calls("talk-one")[-1]["id"]) == talked(3)


def test_following_gives_pieces_as_they_come_and_ends_with_the_call(cells: Cells) -> None:
    cells.run(SOURCE)
    with kt.fn(cells["talk"], name="talk-two").to(kt.Compute(), stream_logs=False) as talk:
        call = talk.spawn(8, 0.3)
        came: list[tuple[float, str]] = []
        for piece in kt.logs(call.id, follow=True):
            came.append((time.monotonic(), piece))
        assert "".join(text for _, text in came) == talked(8)
        assert call.done() or call.result(5) == 8
        assert came[-1][0] - came[0][0] > 0.4, "not all at once"


def test_what_runs_gives_what_it_has_printed_so_far(cells: Cells) -> None:
    cells.run(SOURCE)
    with kt.fn(cells["talk"], name="talk-three").to(kt.Compute(), stream_logs=False) as talk:
        call = talk.spawn(2, 30)
        deadline = time.monotonic() + 10
        while kt.logs(call.id) != "0 é漢🎉\n":
            assert time.monotonic() < deadline
        pieces = kt.logs(call, follow=True)
        assert next(pieces) == "0 é漢🎉\n"
        timer = threading.Timer(0.2, pieces.close)
        timer.start()
        assert list(pieces) == []  # closed: ends, and the call runs on
        timer.join()
        assert call.status == "running"
        call.cancel()


def test_a_service_has_its_own_log_and_its_last_calls(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    cells.run(SOURCE)
    with kt.cls(cells["Keeper"]).to(kt.Compute(), stream_logs=False) as keeper:
        keeper.speak("one")
        with pytest.raises(ValueError, match="no"):
            keeper.fail()
        keeper.speak("two")
        text = kt.logs(keeper)
        assert kt.logs("keeper") == kt.logs(keeper.service) == text
        id = r"==> keeper/\w+ "
        parts = [r"\(loading\), done <==\nloading\n", r"speak, done <==\none\n", r"fail, failed <==\n\ufffd\n"]
        assert re.fullmatch("".join(id + part for part in [*parts, r"speak, done <==\ntwo\n"]), text)
        for found, words in zip(re.findall(r"keeper/\w+", text), ["loading", "one", "\ufffd", "two"], strict=True):
            assert kt.logs(found) == f"{words}\n"
        module = import_module("kubetorch_jupyter.logs")
        monkeypatch.setattr(module, "_CALLS", 1)
        assert re.fullmatch(id + r"speak, done <==\ntwo\n", kt.logs("keeper"))
        # Not more than so much of it, and it says so.
        monkeypatch.setattr(module, "_BYTES", 100_000)
        keeper.speak("x" * 99 + "\n" + ("y" * 99 + "\n") * 5000)
        text = kt.logs("keeper")
        assert 100_000 <= len(text) < 250_000
        assert "bytes before this are left out: kt.logs(" in text


def test_following_a_service_ends_with_it(cells: Cells) -> None:
    cells.run(SOURCE)
    keeper = kt.cls(cells["Keeper"]).to(kt.Compute(), stream_logs=False)
    keeper.speak("before")
    came: list[str] = []

    def follow(pieces: Iterator[str]) -> None:
        came.extend(pieces)

    thread = threading.Thread(target=follow, args=(kt.logs("keeper", follow=True),))
    thread.start()
    deadline = time.monotonic() + 10
    while "before" not in "".join(came):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    keeper.speak("after")
    while "after" not in "".join(came):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    keeper.teardown()
    thread.join(10)
    assert not thread.is_alive()
    assert "".join(came).count("==> keeper/") == 3


def test_what_there_is_not(cells: Cells) -> None:
    cells.run(SOURCE)
    with pytest.raises(kt.ServiceNotFoundError, match="nonesuch"):
        kt.logs("nonesuch")
    with pytest.raises(kt.ServiceNotFoundError, match="nonesuch"):
        kt.logs("nonesuch/01JD0000000000000800000003")
    with pytest.raises(TypeError, match="not int"):
        kt.logs(3)  # type: ignore[call-overload]
    with pytest.raises(kt.NotDeployedError):
        kt.logs(kt.fn(cells["talk"]))
    with kt.fn(cells["talk"], name="talk-four").to(kt.Compute(), stream_logs=False):
        with pytest.raises(kt.UnknownCallError):
            kt.logs("talk-four/01JD0000000000000800000003")
        with pytest.raises(kt.UnknownCallError, match="ULID"):
            kt.logs("talk-four/nonsense")
        pieces = kt.logs("talk-four/01JD0000000000000800000003", follow=True)
        with pytest.raises(kt.UnknownCallError):
            next(pieces)
        with pytest.raises(StopIteration):
            next(pieces)


def test_a_cancelled_call_whose_result_was_read_says_so(cells: Cells) -> None:
    cells.run(SOURCE)
    with kt.fn(cells["talk"], name="talk-five").to(kt.Compute(), stream_logs=False) as talk:
        call = talk.spawn(2, 30)
        while not kt.logs(call):
            pass
        call.cancel()
        with pytest.raises(kt.CallCancelledError):
            call.result(10)
        deadline = time.monotonic() + 5
        while True:
            again = kt.attach(call.id)  # the pod hears a little later that the result has been read
            with pytest.raises(kt.CallCancelledError):
                again.result(10)
            assert again.status == "cancelled"
            if kt.logs(call.id) == "0 é漢🎉\n" and time.monotonic() > deadline - 4.5:
                break
