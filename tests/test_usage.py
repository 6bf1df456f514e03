"""What a service says of itself: what it uses, the end of a log, and a call cancelled by its id."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

import pytest

import kubetorch_jupyter as kt
from pod_server.resources import cpu_seconds, measure
from tests.waiting import until


@pytest.fixture(scope="module")
def worker() -> Iterator[kt.Cls]:
    class Work:
        def __init__(self) -> None:
            self.held = b""

        def hold(self, size: int) -> None:
            self.held = b"x" * size

        def burn(self, seconds: float) -> None:
            end = time.process_time() + seconds
            while time.process_time() < end:
                pass

        def write(self, lines: int) -> None:
            for i in range(lines):
                print(f"line {i} äöü")

        def nap(self) -> None:
            print("napping")
            time.sleep(60)

    with kt.cls(Work, name="work").to(kt.Compute(), stream_logs=False) as handle:
        yield handle


def test_memory_and_processor_time(worker: kt.Cls) -> None:
    before = worker.service.status()
    assert 1 << 20 < before["memory"] < 1 << 30
    assert before["gpus"] == []
    worker.hold(200 << 20)
    worker.burn(0.5)
    # A look is good for 0.4 s.
    after = until(lambda: (s := worker.service.status())["memory"] > before["memory"] + (190 << 20) and s)
    assert after["memory"] < before["memory"] + (260 << 20)
    assert 0.45 <= after["cpu"] - before["cpu"] < 5
    assert after["at"] > before["at"]
    worker.hold(0)


def test_services_with_what_they_use(worker: kt.Cls) -> None:
    plain = next(s for s in kt.services() if s.name == "work")
    assert plain.status is None
    call = worker.nap.spawn()
    table = kt.services(usage=True)
    info = next(s for s in table if s.name == "work")
    assert info.status is not None
    assert info.status["calls"] == 1
    assert info.status["memory"] > 1 << 20
    assert "CALLS" in repr(table).splitlines()[0]
    assert "MEMORY" in repr(table).splitlines()[0]
    call.cancel()


def test_the_end_of_a_log(worker: kt.Cls) -> None:
    call = worker.write.spawn(50_000)
    call.result()
    whole = call.logs()
    begin = time.monotonic()
    tail = worker.service.tail(call.id, 1000)
    assert time.monotonic() - begin < 1
    assert 900 < len(tail.encode()) <= 1000
    assert whole.endswith(tail.lstrip("\ufffd"))
    assert worker.service.tail(call.id, 1 << 30).endswith("line 49999 äöü\n")
    assert worker.service.tail() == worker.service.logs()
    with pytest.raises(kt.UnknownCallError):
        worker.service.tail("work/01JD0000000000000800000003")
    with pytest.raises(kt.UnknownCallError):
        worker.service.tail("nonsense")


def test_cancel_by_id(worker: kt.Cls) -> None:
    call = worker.nap.spawn()
    until(lambda: "napping" in worker.service.tail(call.id))
    assert worker.service.cancel(call.id) is True
    with pytest.raises(kt.CallCancelledError):
        call.result(timeout=5)
    until(lambda: next(r for r in worker.service.calls() if r["id"] == call.id)["state"] == "cancelled")
    assert worker.service.cancel(call.id) is False
    with pytest.raises(kt.UnknownCallError):
        worker.service.cancel("work/01JD0000000000000800000003")


def test_measuring_processes() -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(b"up\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"up\n"  # so that it has all the memory that it will have
        alone, both = measure([process.pid]), measure([process.pid, process.pid])
        assert both["memory"] == 2 * alone["memory"] > 0
    finally:
        process.communicate()
    assert measure([process.pid])["memory"] == 0
    assert cpu_seconds(process.pid) == 0
    assert cpu_seconds(os.getpid()) > 0.1
