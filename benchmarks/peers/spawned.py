"""What the peers have in common whose server is a process of our making; the standard library only."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from benchmarks import timing

__all__ = ["Server", "first_result"]


class Server:
    """A process that runs a peer's module, and has said in a line where it is reached.

    Parameters
    ----------
    module
        The peer's.
    """

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen([sys.executable, "-m", module], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.said = self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


ServerT = TypeVar("ServerT", bound=Server)


def first_result(start: Callable[[], ServerT], call: Callable[[ServerT], Any]) -> float:
    """Seconds until another server has been started and called once."""
    servers: list[ServerT] = []

    def run() -> None:
        servers.append(start())
        call(servers[0])

    seconds = timing.once(run)
    servers[0].close()
    return seconds
