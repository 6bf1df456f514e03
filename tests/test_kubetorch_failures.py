"""Kubetorch 0.5.1's failures, one test each, named after the rows of the compatibility table (issue case 3).

What a row needs a kernel for (a log line's way to its cell, Stop) is in ``tests/kernel``; here is the part without one.
"""

from __future__ import annotations

import asyncio
import io
import os
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

import kubetorch_jupyter as kt
from tests.cells import Cells
from tests.promises import promise


def test_helper_import_or_constant_of_another_cell() -> None:
    cells = Cells()
    cells.run("import math\nOFFSET = 10\n")
    cells.run("def helper(x):\n    return math.floor(x) + OFFSET\n")
    cells.run(
        """
        from functools import partial, wraps

        class Notebook:
            k = 3
            def times(self, x): return helper(x) * self.k

        def logged(f):
            @wraps(f)
            def inner(*args): return f(*args)
            return inner

        @logged
        def main(x): return Notebook().times(x)

        def make(k):
            def closure(x): return helper(x) + k
            return closure

        square = lambda x: helper(x) ** 2
        """
    )
    for name, target, expected in [
        ("main", cells["main"], 33),
        ("closure", cells["make"](5), 16),
        ("square", cells["square"], 121),
        ("partial", cells["partial"](cells["make"](1), 1.5), 12),
        ("bound", cells["Notebook"]().times, 33),
    ]:
        with kt.fn(target, name=name).to(kt.Compute(), stream_logs=False) as remote:
            assert (remote() if name == "partial" else remote(1.5)) == expected, name
    with kt.cls(cells["Notebook"]).to(kt.Compute(), stream_logs=False) as remote_class:
        assert remote_class.times(1.5) == 33


def test_users_own_exception_class() -> None:
    cells = Cells()
    cells.run(
        """
        class MyError(Exception):
            def __init__(self, message, *, code):
                super().__init__(message)
                self.code = code

        def fail():
            raise MyError("un problème: é", code=7)
        """
    )
    with kt.fn(cells["fail"]).to(kt.Compute(), stream_logs=False) as remote:
        with pytest.raises(cells["MyError"]) as caught:
            remote()
        assert caught.value.code == 7
        assert str(caught.value) == "un problème: é"
        import traceback

        text = "".join(traceback.format_exception(caught.value))
        assert 'raise MyError("un problème: é", code=7)' in text
        assert "pod_server" not in text


def test_code_that_cannot_be_imported() -> None:
    cells = Cells()
    cells.run(
        """
        class Fine:
            def __init__(self, ok):
                if not ok:
                    raise RuntimeError("no weights here")
            def get(self): return 1

        class Poison:
            def __reduce__(self): return (__import__, ("a_module_that_is_not_there",))
        poison = Poison()
        def uses_it(): return poison
        """
    )
    with pytest.raises(kt.StartupError, match="no weights here") as caught:
        kt.cls(cells["Fine"], name="fine").to(kt.Compute(), init_args={"ok": False}, stream_logs=False)
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(kt.KubetorchError, match="a_module_that_is_not_there"):
        kt.fn(cells["uses_it"], name="uses-it").to(kt.Compute(), stream_logs=False)
    assert [s for s in kt.services() if s.name in ("fine", "uses-it")] == []


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as e:
        return e.code


def test_ready_says_200_also_with_a_dead_worker() -> None:
    cells = Cells()
    cells.run(
        """
        import os, time
        class Slow:
            def __init__(self): time.sleep(1.0)
            def pid(self): return os.getpid()
        """
    )
    with kt.cls(cells["Slow"]).to(kt.Compute(), stream_logs=False) as slow:
        assert _status(f"{slow.endpoint}/ready") == 200
        os.kill(slow.pid(), 9)
        deadline = time.monotonic() + 5
        while _status(f"{slow.endpoint}/ready") == 200:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert _status(f"{slow.endpoint}/health") == 200
        slow.pid()
        assert _status(f"{slow.endpoint}/ready") == 200


@pytest.mark.timed
def test_worker_dies_in_a_call() -> None:
    cells = Cells()
    cells.run("import os\ndef leave(code):\n    if code: os._exit(code)\n    return 'alive'\n")
    with kt.fn(cells["leave"]).to(kt.Compute(), stream_logs=False) as leave:
        start = time.monotonic()
        with pytest.raises(kt.WorkerDiedError) as caught:
            leave(3)
        promise("a dead worker is said", time.monotonic() - start, 1.0)
        assert (caught.value.cause, caught.value.exit_code) == ("exit", 3)
        assert leave(0) == "alive"


def test_redeploy_while_a_call_runs() -> None:
    cells = Cells()
    cells.run("import time\ndef f(s):\n    time.sleep(s)\n    return 'old'\n")
    with kt.fn(cells["f"]).to(kt.Compute(), stream_logs=False) as f:
        call = f.spawn(1.0)
        cells.run("def f(s):\n    time.sleep(s)\n    return 'new'\n")
        again = kt.fn(cells["f"]).to(kt.Compute(), stream_logs=False)
        assert again(0) == "new"
        assert call.result(timeout=10) == "old"


def test_11th_concurrent_def_call() -> None:
    cells = Cells()
    cells.run("import threading\nbarrier = None\ndef meet(n):\n    global barrier\n    return n\n")
    cells.run(
        """
        class Meeting:
            def __init__(self, n): self.barrier = threading.Barrier(n)
            def meet(self): return self.barrier.wait(20)
        """
    )
    with kt.cls(cells["Meeting"]).to(kt.Compute(), init_args=[64], stream_logs=False) as meeting:

        async def run() -> list[int]:
            return await asyncio.gather(*(meeting.meet(async_=True) for _ in range(64)))

        assert sorted(asyncio.run(run())) == list(range(64))


@pytest.mark.timed
def test_async_def_in_the_pod_has_a_free_loop() -> None:
    cells = Cells()
    cells.run(
        """
        import asyncio, time
        async def naps():
            start = time.perf_counter()
            for _ in range(200):
                await asyncio.sleep(0.0005)
            return time.perf_counter() - start
        """
    )
    here = asyncio.run(cells["naps"]())
    with kt.fn(cells["naps"]).to(kt.Compute(), stream_logs=False) as naps:
        there = naps()
    promise("200 sleeps of 0.5 ms in the pod, as a multiple of a free loop", there / here, 1.3, unit="x")


def test_output_of_print_threads_and_children(capfd: pytest.CaptureFixture[str]) -> None:
    cells = Cells()
    cells.run(
        r"""
        import subprocess, sys, threading
        def talk():
            print("a", "b", "c")
            print("progress 1\rprogress 2", end="")
            print()
            thread = threading.Thread(target=print, args=("from a thread",))
            thread.start(); thread.join()
            subprocess.run(["echo", "from a child"], check=True)
            print("to stderr", file=sys.stderr)
            print("no newline", end="")
        """
    )
    with kt.fn(cells["talk"]).to(kt.Compute(), stream_logs=False) as talk:
        capfd.readouterr()
        talk(stream_logs=True)
        out, err = capfd.readouterr()
    assert out == "a b c\nprogress 1\rprogress 2\nfrom a thread\nfrom a child\nno newline"
    assert err == "to stderr\n"


class _Arrivals(io.StringIO):
    """A standard output that notes when each write came."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[float, str]] = []

    def write(self, text: str) -> int:
        self.rows.append((time.time(), text))
        return super().write(text)


@pytest.mark.timed
@pytest.mark.parametrize("async_", [False, True], ids=["blocking", "awaited"])
def test_log_line_print_to_notebook(async_: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines arrive while the call runs, soon; all of a short call's are there when it returns."""
    cells = Cells()
    cells.run(
        """
        import asyncio, time
        async def talk(n):
            for i in range(n):
                await asyncio.sleep(0.01)
                print(i, time.time())
        """
    )
    with kt.fn(cells["talk"]).to(kt.Compute(), stream_logs=False) as talk:
        arrivals = _Arrivals()
        monkeypatch.setattr(sys, "stdout", arrivals)
        if async_:
            asyncio.run(talk(30, async_=True, stream_logs=True))
        else:
            talk(30, stream_logs=True)
        text = arrivals.getvalue()
        monkeypatch.undo()
    lines = text.splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(30)), "the call returned before its lines were there"
    late = sorted(
        came - float(line.split()[1]) for came, part in arrivals.rows for line in part.splitlines() if line.strip()
    )
    promise("from print in the pod to the output here, median", late[len(late) // 2], 0.02)


@pytest.mark.timed
def test_interrupt_reaches_the_pod_and_timeouts_exist() -> None:
    cells = Cells()
    cells.run("import time\ndef hold(s):\n    time.sleep(s)\n    return s\n")
    with kt.fn(cells["hold"]).to(kt.Compute(concurrency=1), stream_logs=False) as hold:
        start = time.monotonic()
        with pytest.raises(kt.CallTimeoutError):
            hold.options(timeout=0.3)(60)
        promise("a timeout of 0.3 s", time.monotonic() - start, 0.8)
        call = hold.spawn(60)
        assert call.cancel()
        with pytest.raises(kt.CallCancelledError):
            call.result(timeout=5)
        # The only thread is free again: nothing runs on.
        assert hold(0) == 0


def test_100_quick_calls_leave_no_threads() -> None:
    cells = Cells()
    cells.run("def nothing(): pass\n")
    with kt.fn(cells["nothing"]).to(kt.Compute(), stream_logs=False) as nothing:
        nothing()
        before = threading.active_count()
        for _ in range(100):
            nothing()
        assert threading.active_count() <= before


@pytest.mark.timed
def test_a_64_mib_array_there_and_back() -> None:
    cells = Cells()
    cells.run("def echo(x): return x\n")
    array = np.random.default_rng(0).integers(0, 255, 64 << 20, dtype=np.uint8)
    with kt.fn(cells["echo"]).to(kt.Compute(), stream_logs=False) as echo:
        echo(array[:1000])
        best = float("inf")
        for _ in range(3):
            start = time.monotonic()
            back = echo(array)
            best = min(best, time.monotonic() - start)
        assert (back == array).all()
    promise("64 MiB there and back", best, 0.5)


def test_names_a_b_and_ab_are_two_services() -> None:
    cells = Cells()
    cells.run("def a_b(): return 'a_b'\ndef ab(): return 'ab'\n")
    with (
        kt.fn(cells["a_b"]).to(kt.Compute(), stream_logs=False) as first,
        kt.fn(cells["ab"]).to(kt.Compute(), stream_logs=False) as second,
    ):
        assert (first.service_name, second.service_name) == ("a-b", "ab")
        assert (first(), second()) == ("a_b", "ab")


def test_access_needs_the_token() -> None:
    cells = Cells()
    cells.run("def nothing(): pass\n")
    with kt.fn(cells["nothing"]).to(kt.Compute(), stream_logs=False) as nothing:
        request = urllib.request.Request(f"{nothing.endpoint}/call/nothing", data=b'{"args": []}', method="POST")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=5)
        assert caught.value.code == 401
        caught.value.close()
