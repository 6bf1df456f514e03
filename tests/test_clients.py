"""More than one client on one service: processes, threads, and services that call services (issue case 17)."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import kubetorch_jupyter as kt
from tests.cells import Cells

COUNTER = """
class Counter:
    def __init__(self):
        self.n = 0
    def add(self, k):
        self.n += k
        return self.n
    def get(self):
        return self.n
"""


def test_two_processes_on_one_service(tmp_path: Path) -> None:
    cells = Cells()
    cells.run(COUNTER)
    script = tmp_path / "other.py"
    script.write_text(
        "import sys\n"
        "import kubetorch_jupyter as kt\n"
        "handle = kt.Cls.from_name(sys.argv[1])\n"
        "for _ in range(50):\n"
        "    handle.add(1)\n"
        "print([m for m in dir(handle) if m in ('add', 'get')])\n"
    )
    with kt.cls(cells["Counter"], name="shared-counter").to(kt.Compute(), stream_logs=False) as counter:
        others = [
            subprocess.Popen([sys.executable, str(script), "shared-counter"], stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        for _ in range(50):
            counter.add(1)
        for other in others:
            out, _ = other.communicate(timeout=60)
            assert other.returncode == 0
            assert out.strip() == "['add', 'get']"
        # The service outlives the clients that only used it.
        assert counter.get() == 150


def test_both_hear_when_one_replaces_the_others_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = Cells()
    cells.run("def answer():\n    return 1\n")
    script = tmp_path / "other.py"
    script.write_text(
        "import kubetorch_jupyter as kt\n"
        "def answer():\n    return 2\n"
        "kt.fn(answer, name='shared-answer').to(kt.Compute())\n"
    )
    with kt.fn(cells["answer"], name="shared-answer").to(kt.Compute()) as answer:
        assert answer() == 1
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
        assert '"shared-answer" replaces the code that was deployed by ' in done.stdout + done.stderr
        capsys.readouterr()
        assert answer() == 2
        out, err = capsys.readouterr()
        assert re.search(r'"shared-answer" runs other code from now on, deployed by \S+ from other\.py', out + err)
        assert answer() == 2
        assert "".join(capsys.readouterr()) == ""
        answer.to(kt.Compute())
        capsys.readouterr()
        assert answer() == 1
        assert "".join(capsys.readouterr()) == "", "its own deploy is no news to it"


def test_threads_of_one_client() -> None:
    cells = Cells()
    cells.run("def double(x):\n    print(x)\n    return 2 * x\n")
    with kt.fn(cells["double"]).to(kt.Compute(), stream_logs=False) as double:
        results: dict[int, list[int]] = {}

        def work(n: int) -> None:
            results[n] = [double(n * 1000 + i) for i in range(100)]

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert results == {n: [2 * (n * 1000 + i) for i in range(100)] for n in range(8)}


def test_a_service_calls_a_service() -> None:
    cells = Cells()
    cells.run(
        COUNTER
        + """
class Front:
    def __init__(self, counter):
        self.counter = counter
    def twice(self, k):
        self.counter.add(k)
        return self.counter.add(k)
    async def thrice(self, k):
        for _ in range(3):
            last = await self.counter.add(k, async_=True)
        return last

def through_argument(handle, k):
    return handle.add(k)
"""
    )
    with (
        kt.cls(cells["Counter"], name="inner").to(kt.Compute(), stream_logs=False) as counter,
        kt.cls(cells["Front"]).to(kt.Compute(), init_args={"counter": counter}, stream_logs=False) as front,
        kt.fn(cells["through_argument"]).to(kt.Compute(), stream_logs=False) as function,
    ):
        assert front.twice(2) == 4
        assert front.thrice(1) == 7
        assert function(counter, 3) == 10
        assert counter.get() == 10


def test_a_handle_of_one_loop_works_in_the_next() -> None:
    cells = Cells()
    cells.run("async def double(x): return 2 * x")
    with kt.fn(cells["double"]).to(kt.Compute(), stream_logs=False) as double:
        for i in range(3):

            async def run(i: int = i) -> list[int]:
                return await asyncio.gather(*(double(i + k, async_=True) for k in range(5)))

            assert asyncio.run(run()) == [2 * (i + k) for k in range(5)]
        double.async_ = True
        coroutine = double(1)
        assert asyncio.iscoroutine(coroutine)
        coroutine.close()
        assert double(4, async_=False) == 8
        with pytest.raises(kt.ConfigError):
            double.async_ = "yes"  # type: ignore[assignment]


def test_from_name_knows_signatures() -> None:
    cells = Cells()
    cells.run('def scale(x, by=2):\n    "Scale it."\n    return x * by\n')
    with kt.fn(cells["scale"], name="scale-it").to(kt.Compute(), stream_logs=False):
        again = kt.Fn.from_name("scale-it")
        assert again(3, by=3) == 9
        assert again.__doc__ == "Scale it."
        with pytest.raises(TypeError, match=r"scale\(\) missing 1 required positional argument: 'x'"):
            again()
    with pytest.raises(kt.ServiceNotFoundError, match="scale-it"):
        kt.Fn.from_name("scale-it")
