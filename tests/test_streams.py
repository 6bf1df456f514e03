"""streams: exact bytes, prefixes, partial lines, displays, and terminals that are slow or gone."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import io
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kubetorch_jupyter.calls import invoke, invoke_async
from kubetorch_jupyter.streams import Output, open_output, set_output_factory, writer
from kubetorch_jupyter.transport.portal import get_portal
from pod_server.wire import LogKind
from tests.scripted import SHOWN, ScriptedCall, ScriptedPod, ScriptedTarget
from tests.waiting import until

PREFIX = re.compile(rb"(?:\x1b\[\d+m)?train\xc2\xb7(\d+)(?:\x1b\[0m)? ")


def _finish(*outputs: Output) -> None:
    for output in outputs:
        done = threading.Event()
        output.finish(done.set)
        assert done.wait(5)


def _flushed(output: Output) -> None:
    done = threading.Event()
    output.after(done.set)
    assert done.wait(5)


def _feed(output: Output, data: bytes, kind: LogKind = LogKind.STDOUT) -> None:
    output.feed(kind, data)
    _flushed(output)


def test_one_call_alone_is_exact_to_the_byte(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    pieces = [
        b"a line\n",
        b"part",
        b"ial\r",
        b"\x1b[31mred\x1b[0m",
        "é😀".encode()[:3],
        "é😀".encode()[3:],
        b"\xff\n",
        b"end",
    ]
    output = open_output("train")
    for piece in pieces:
        output.feed(LogKind.STDOUT, piece)
    output.feed(LogKind.STDERR, b"err")
    _finish(output)
    out, err = capsysbinary.readouterr()
    assert out == b"".join(pieces)
    assert err == b"err"


def test_text_streams_get_characters_whole_and_invalid_bytes_replaced() -> None:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        output = open_output("train")
        data = "é😀x".encode()
        for i in range(len(data)):
            _feed(output, data[i : i + 1])
        output.feed(LogKind.STDOUT, b"\xff\n\xf0\x9f")
        _finish(output)
    assert text.getvalue() == "é😀x\ufffd\n\ufffd"


def test_sequential_calls_have_no_prefix_and_go_on_in_the_line(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    for piece in (b"one ", b"two\n"):
        output = open_output("train")
        output.feed(LogKind.STDOUT, piece)
        _finish(output)
    assert capsysbinary.readouterr().out == b"one two\n"


def test_prefixes_come_with_the_second_call_and_partial_lines_are_not_joined(
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    first = open_output("train")
    _feed(first, b"alone\npart")
    second = open_output("train")
    _feed(second, b"hello\nwor")
    _feed(first, b"ial\n")
    _feed(second, b"ld\n\n")
    _finish(second)
    _feed(first, b"still named\n")
    _finish(first)
    third = open_output("train")
    _feed(third, b"alone again\n")
    _finish(third)
    n = first._number
    expected = (
        f"alone\npart\ntrain·{n + 1} hello\ntrain·{n + 1} wor\ntrain·{n} ial\ntrain·{n + 1} ld\ntrain·{n + 1} \n"
        f"train·{n} still named\nalone again\n"
    )
    assert capsysbinary.readouterr().out.decode() == expected


def test_carriage_returns_keep_their_prefix(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    first, second = open_output("train"), open_output("train")
    for piece in (b"\r10%", b"\r20%", b"\r", b"30%\r\n", b"done\r\n"):
        _feed(first, piece)
    _finish(first, second)
    p = b"train\xc2\xb7%d " % first._number
    out = capsysbinary.readouterr().out
    assert out == b"\r" + p + b"10%\r" + p + b"20%\r" + p + b"30%\r\n" + p + b"done\r\n"
    assert PREFIX.sub(b"", out) == b"\r10%\r20%\r30%\r\ndone\r\n"


def test_colours_on_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.delenv("NO_COLOR", raising=False)
    with contextlib.redirect_stdout(terminal):
        first, second = open_output("train"), open_output("train")
        _feed(first, b"x\n")
        monkeypatch.setenv("NO_COLOR", "1")
        _feed(first, b"y\n")
        _finish(first, second)
    coloured, plain = terminal.getvalue().splitlines()
    assert re.fullmatch("\x1b\\[\\d+mtrain·\\d+\x1b\\[0m x", coloured)
    assert re.fullmatch("train·\\d+ y", plain)


def test_a_notice_stands_on_a_line_of_its_own(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    output = open_output("train")
    _feed(output, b"half", LogKind.STDERR)
    _feed(output, b"notice\n", LogKind.NOTICE)
    _finish(output)
    assert capsysbinary.readouterr().err == b"half\nnotice\n"


def test_a_display_is_text_where_there_is_no_notebook(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    output = open_output("train")
    _feed(output, b"before\n")
    _feed(output, json.dumps({"data": {"text/plain": "<Figure>", "image/png": "…"}}).encode(), LogKind.DISPLAY)
    _finish(output)
    assert capsysbinary.readouterr().out == b"before\n<Figure>\n"


def test_each_call_writes_in_the_context_it_was_made_in() -> None:
    where: contextvars.ContextVar[str] = contextvars.ContextVar("where", default="nowhere")
    seen: list[tuple[str, str]] = []

    class Cells(io.StringIO):
        def write(self, text: str) -> int:
            seen.append((where.get(), text))
            return len(text)

    with contextlib.redirect_stdout(Cells()):
        outputs = []
        for cell in ("A", "B"):
            where.set(cell)
            outputs.append(open_output("train"))
        where.set("C")
        for output in outputs:
            output.prefixed = False
        _feed(outputs[0], b"a\n")
        _feed(outputs[1], b"b\n")
        _finish(*outputs)
    assert seen == [("A", "a\n"), ("B", "b\n")]


def test_a_broken_stdout_costs_no_value(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError("gone")

    with contextlib.redirect_stdout(Broken()):
        output = open_output("train")
        _feed(output, b"x\n")
        _feed(output, b"y\n")
        _finish(output)
    assert caplog.text.count("can't be written") == 1


def test_a_stdout_that_cannot_be_flushed_costs_nothing() -> None:
    class Odd(io.StringIO):
        def flush(self) -> None:
            raise RuntimeError("not now")

    text = Odd()
    with contextlib.redirect_stdout(text):
        for _ in range(2):
            output = open_output("train")
            _feed(output, b"x\n")
            _finish(output)
    assert text.getvalue() == "x\nx\n"


@pytest.fixture(scope="module")
def pod() -> Iterator[ScriptedPod]:
    with ScriptedPod() as pod:
        yield pod


def test_many_calls_at_once_lose_no_byte(pod: ScriptedPod, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    def text(n: int) -> list[bytes]:
        endings = [b"\n", b"\r\n", b"\n\n", b" \x1b[1m\xf0\x9f\x98\x80\x1b[0m\n"]
        return [b"%d:%d%b" % (n, i, endings[i % 4]) for i in range(300)]

    async def talk(call: ScriptedCall) -> None:
        for i, piece in enumerate(text(call.args[0])):
            call.log(piece)
            if i % 50 == 0:
                await asyncio.sleep(0)
        call.result(None)

    pod.handlers["talk"] = talk
    target = ScriptedTarget(pod, "train")

    async def main() -> None:
        await asyncio.gather(*(invoke_async(target, "talk", (n,), {}, SHOWN) for n in range(8)))

    asyncio.run(main())
    out = capsysbinary.readouterr().out
    parts: dict[bytes, bytes] = {}
    for line in out.splitlines(keepends=True):
        match = re.match(rb"talk\xc2\xb7(\d+) ", line)
        key = match.group(1) if match else b""
        parts[key] = parts.get(key, b"") + line[match.end() if match else 0 :]
    first = parts.pop(b"", b"")  # what came before the second call began
    if first:
        key = next(k for k, v in parts.items() if v.startswith(b"0:"))
        parts[key] = first + parts[key]
    assert sorted(parts.values()) == sorted(b"".join(text(n)) for n in range(8))


def test_a_call_returns_after_its_last_byte_and_a_slow_terminal_holds_up_nobody_else(pod: ScriptedPod) -> None:
    writing, go_on = threading.Event(), threading.Event()

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            writing.set()
            go_on.wait(10)
            return super().write(text)

    async def talk(call: ScriptedCall) -> None:
        call.log(b"slowly\n")
        call.result(1)

    async def echo(call: ScriptedCall) -> None:
        call.result(2)

    pod.handlers["slow"] = talk
    pod.handlers["quiet"] = echo
    target = ScriptedTarget(pod)
    assert invoke(target, "quiet", (), {}, SHOWN) == 2
    text = Slow()
    with contextlib.redirect_stdout(text):
        thread = threading.Thread(target=invoke, args=(target, "slow", (), {}, SHOWN))
        thread.start()
        assert writing.wait(10)
        assert invoke(target, "quiet", (), {}, SHOWN) == 2
        assert text.getvalue() == ""
        assert thread.is_alive()
        go_on.set()
        thread.join()
        assert text.getvalue().endswith("slowly\n")


def test_a_terminal_that_takes_nothing_does_not_fill_the_memory(
    pod: ScriptedPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_HOLD", 1 << 20)
    monkeypatch.setattr(writer, "_RESUME", 1 << 18)
    gate = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            gate.wait()
            return super().write(text)

    async def flood(call: ScriptedCall) -> None:
        for _ in range(200):
            call.log(b"x" * 49_000 + b"\n")
        call.result(1)

    pod.handlers["flood"] = flood
    target = ScriptedTarget(pod)
    text = Stuck()
    with contextlib.redirect_stdout(text):
        thread = threading.Thread(target=invoke, args=(target, "flood", (), {}, SHOWN))
        thread.start()
        deadline = time.monotonic() + 5
        while not writer._writer._paused:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)
        assert writer._writer._put - writer._writer._done < 3 << 20
        gate.set()
        thread.join(10)
    assert len(text.getvalue()) == 200 * 49_001


def test_reading_that_was_held_again_meanwhile_stays_held(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []
    monkeypatch.setattr(writer, "_HOLD", 1 << 20)
    monkeypatch.setattr(writer, "_RESUME", 1 << 18)
    monkeypatch.setattr(writer, "hold_reading", held.append)
    gate = threading.Event()
    gate.set()

    class Gated(io.StringIO):
        def write(self, text: str) -> int:
            assert gate.wait(10)
            return super().write(text)

    async def scenario(mine: Any, output: Output) -> None:
        piece = b"x" * (2 << 20) + b"\n"
        mine.put(output, LogKind.STDOUT, piece)
        until(lambda: not mine._paused)  # it is written; that it is, is told to this loop, which is busy here
        gate.clear()
        mine.put(output, LogKind.STDOUT, piece)

    with contextlib.redirect_stdout(Gated()):
        mine = writer._Writer()
        get_portal().run(scenario(mine, open_output("x")), 20)
        get_portal().run(asyncio.sleep(0.05), 5)
        assert held == [True, True]
        gate.set()
        until(lambda: len(held) == 3)
        assert held == [True, True, False]
        mine.close()


def test_another_kind_of_output_can_be_had() -> None:
    made: list[str] = []

    class Mine(Output):
        __slots__ = ()

        def __init__(self, label: str) -> None:
            made.append(label)
            super().__init__(label)

    set_output_factory(Mine)
    try:
        _finish(open_output("a"))
    finally:
        set_output_factory(None)
    assert made == ["a"]
    assert type(open_output("b")) is Output


def _python(code: str, **kwargs: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, timeout=20, **kwargs)


def test_what_is_in_line_at_the_end_of_the_process_is_written() -> None:
    result = _python(
        """
        from kubetorch_jupyter.streams import open_output
        from pod_server.wire import LogKind
        output = open_output("train")
        for i in range(1000):
            output.feed(LogKind.STDOUT, b"%d\\n" % i)
        """
    )
    assert result.stdout == b"".join(b"%d\n" % i for i in range(1000))
    assert result.stderr == b""


def test_a_reader_that_has_gone_is_no_reason_to_hang() -> None:
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "from kubetorch_jupyter.streams import open_output\n"
            "from pod_server.wire import LogKind\nimport threading\n"
            "output = open_output('train')\noutput.feed(LogKind.STDOUT, b'x' * 100000)\n"
            "done = threading.Event()\noutput.finish(done.set)\nassert done.wait(5)\n",
        ],
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=20,
        check=False,
    )
    os.close(write)
    assert b"Traceback" not in result.stderr


def test_in_a_forked_child_output_works_again() -> None:
    result = _python(
        """
        import os, threading
        from kubetorch_jupyter.streams import open_output
        from pod_server.wire import LogKind

        def say(text):
            output = open_output("train")
            output.feed(LogKind.STDOUT, text)
            done = threading.Event()
            output.finish(done.set)
            assert done.wait(5)

        say(b"parent\\n")
        child = os.fork()
        if not child:
            say(b"child\\n")
            os._exit(0)
        os.waitpid(child, 0)
        say(b"parent again\\n")
        """
    )
    assert (result.stdout, result.stderr) == (b"parent\nchild\nparent again\n", b"")
