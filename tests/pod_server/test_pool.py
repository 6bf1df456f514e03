"""The threads for ``def`` calls (`pod_server.worker.pool`), with stand-ins for calls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from pod_server.worker.calls import Call
from pod_server.worker.pool import Pool, PoolThread


def _call(function: Callable[[], object]) -> Call:
    return cast(Call, function)


def _run(call: Call, thread: PoolThread) -> None:
    cast(Any, call)()


def test_each_call_begins_although_those_before_it_block() -> None:
    pool, meeting = Pool(8, _run), threading.Barrier(9)
    for _ in range(8):
        pool.submit(_call(lambda: meeting.wait(10)))
    meeting.wait(10)


def test_no_more_run_at_once_than_the_limit_says() -> None:
    pool, lock, done = Pool(3, _run), threading.Lock(), threading.Semaphore(0)
    running = most = 0

    def count() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.001)
        with lock:
            running -= 1
        done.release()

    for _ in range(60):
        pool.submit(_call(count))
    assert all(done.acquire(timeout=10) for _ in range(60))
    assert most <= 3


def test_a_higher_limit_starts_what_waits() -> None:
    pool, meeting = Pool(1, _run), threading.Barrier(5)
    for _ in range(4):
        pool.submit(_call(lambda: meeting.wait(10)))
    pool.resize(4)
    meeting.wait(10)


def test_extra_calls_take_no_place() -> None:
    pool, meeting = Pool(1, _run), threading.Barrier(4)
    for extra in (False, True, True):
        pool.submit(_call(lambda: meeting.wait(10)), extra=extra)
    meeting.wait(10)


def test_the_threads_that_there_are_run_everything_when_the_system_gives_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, started, go, done = Pool(4, _run), threading.Event(), threading.Event(), threading.Semaphore(0)

    def first() -> None:
        started.set()
        go.wait(10)
        done.release()

    pool.submit(_call(first))
    assert started.wait(10)

    def refuse(self: PoolThread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(PoolThread, "start", refuse)
    for _ in range(5):
        pool.submit(_call(done.release))
    go.set()
    assert all(done.acquire(timeout=10) for _ in range(6))


def test_without_any_thread_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: PoolThread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(PoolThread, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        Pool(4, _run).submit(_call(lambda: None))
