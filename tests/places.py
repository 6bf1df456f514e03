"""What tests see of a service's processes, wherever its pods are: the same tests run on local pods and on a cluster."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.kernel.harness import Kernel, leftover_files, leftover_processes

__all__ = ["Here", "Place", "Usage"]


@dataclass(frozen=True)
class Usage:
    """What a process holds; ``memory`` in bytes, without what files are mapped."""

    descriptors: int
    threads: int
    memory: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        """A process of this machine."""
        return cls.told(len(os.listdir(f"/proc/{pid}/fd")), Path(f"/proc/{pid}/status").read_text())

    @classmethod
    def told(cls, descriptors: int, status: str) -> Usage:
        """By the ``status`` of a process in ``/proc``."""
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        # A kernel of a sandbox may not tell them apart.
        memory = fields.get("RssAnon") or fields["VmRSS"]
        return cls(descriptors, int(fields["Threads"]), int(memory.split()[0]) << 10)


class Place(Protocol):
    """Where pods are."""

    #: What a test that waits for the end of a pod may wait for it, in seconds.
    patience: float

    def usage(self, handle: Any) -> dict[str, Usage]:
        """What a service's ``front`` and ``worker`` hold."""
        ...

    def path(self, name: str) -> str:
        """Where a file of that name is for the code in a pod; it isn't there yet."""
        ...

    def read(self, service: str, path: str) -> str:
        """A file that the code of a service has written; empty when there is none."""
        ...

    def touch(self, service: str, path: str) -> None:
        """Make an empty file."""
        ...

    def unlink(self, service: str, path: str) -> None:
        """Remove a file."""
        ...

    def running(self, kernel: Kernel) -> list[str]:
        """What runs or lies about of a kernel's services."""
        ...


class Here:
    """Local pods, whose files are this machine's.

    Parameters
    ----------
    folder
        For files of the code in pods.
    """

    patience = 10.0

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def usage(self, handle: Any) -> dict[str, Usage]:
        status = handle.service.status()
        return {"front": Usage.of(int(status["pid"])), "worker": Usage.of(int(status["worker"]))}

    def path(self, name: str) -> str:
        return str(self._folder / name)

    def read(self, service: str, path: str) -> str:
        return Path(path).read_text() if Path(path).exists() else ""

    def touch(self, service: str, path: str) -> None:
        Path(path).touch()

    def unlink(self, service: str, path: str) -> None:
        Path(path).unlink()

    def running(self, kernel: Kernel) -> list[str]:
        processes = [f"process {p.pid}" for p in leftover_processes(kernel.runtime_dir)]
        # By service: the files of one that runs come and go.
        files = {f"files of {file.split('/')[0]}" for file in leftover_files(kernel.runtime_dir)}
        return sorted([*processes, *files])
