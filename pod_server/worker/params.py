"""What a worker is started with; imports nothing, so that the zygote can make it without paying for the worker."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["WorkerParams"]


@dataclass(frozen=True)
class WorkerParams:
    """The parameters of one worker process.

    Parameters
    ----------
    dir
        The service directory: ``front.sock`` is there, and unpacked modules go there.
    number
        Which worker of the service it is.
    env
        Environment. One that has ``PATH`` is a whole environment and replaces the process's own; any other is laid over
        it. None: left alone.
    cwd
        Working directory; None: left alone.
    sys_path
        The whole of ``sys.path``; None: left alone.
    threads
        How many ``def`` calls run at once, until a LOAD says otherwise.
    bulk_dir
        Directory of large payloads on their way; None: ``<dir>/bulk``.

    Examples
    --------
    >>> WorkerParams(dir="/tmp/x", number=1).bulk
    '/tmp/x/bulk'
    """

    dir: str
    number: int
    env: Mapping[str, str] | None = None
    cwd: str | None = None
    sys_path: Sequence[str] | None = None
    threads: int = 64
    bulk_dir: str | None = None

    @property
    def bulk(self) -> str:
        """The directory of large payloads."""
        return self.bulk_dir or os.path.join(self.dir, "bulk")
