"""Waiting for a pod's processes without looking again and again, and killing those that don't end."""

from __future__ import annotations

import asyncio
import os
import time

from pod_server import processes

from . import registry
from .registry import Record

__all__ = ["kill_tree", "until_ended", "until_settled"]


class _Readable:
    """Waits until one of some descriptors is readable, on the running loop."""

    def __init__(self, fds: list[int]) -> None:
        self._fds = fds
        self._event = asyncio.Event()

    async def wait(self, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        for fd in self._fds:
            loop.add_reader(fd, self._event.set)
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            return
        finally:
            for fd in self._fds:
                loop.remove_reader(fd)


async def until_ended(record: Record, timeout: float) -> bool:
    """Whether both processes of a pod have ended, after waiting so many seconds for it."""
    deadline = time.monotonic() + timeout
    while living := record.living:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        try:
            fd = processes.open_pidfd(*living[0])
        except ProcessLookupError:
            continue
        if fd is None:
            await asyncio.sleep(min(left, 0.05))  # a kernel before 5.3: there is nothing to wait on
            continue
        try:
            await _Readable([fd]).wait(left)
        finally:
            os.close(fd)
    return True


async def until_settled(record: Record) -> None:
    """Wait until a service that another process deploys runs, or has failed, or that process has ended."""
    try:
        watch = processes.DirectoryWatch(record.dir)
    except FileNotFoundError:
        return
    fds = [] if watch.fd is None else [watch.fd]
    try:
        deployer = processes.open_pidfd(*record.deployer)
    except ProcessLookupError:
        deployer = None
    if deployer is not None:
        fds.append(deployer)
    try:
        while True:
            now = registry.read(record.name)
            if now is None or now.incarnation != record.incarnation or now.state != "starting":
                return
            if not processes.is_alive(*record.deployer) and now.front is None:
                return
            await _Readable(fds).wait(5.0 if watch.fd is not None else 0.05)
            watch.drain()
            if deployer in fds and not processes.is_alive(*record.deployer):
                fds.remove(deployer)
    finally:
        # In a thread: closing an inotify descriptor takes the kernel 20 ms.
        await asyncio.to_thread(watch.close)
        if deployer is not None:
            os.close(deployer)


def kill_tree(record: Record, timeout: float) -> None:
    """Kill a pod whose processes don't answer, with all that its zygote holds; blocks."""

    def find() -> list[processes.Process]:
        known = processes.table()
        roots = [known[pid] for pid, start in record.living if pid in known and known[pid].start == start]
        return [p for root in roots for p in [*processes.tree(root.pid, known), root]]

    processes.kill_all(find, time.sleep, timeout)
