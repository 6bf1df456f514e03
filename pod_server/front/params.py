"""What a front is started with; imports nothing, so that the zygote can make it without paying for a server."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["FrontParams", "new_incarnation"]


def new_incarnation() -> str:
    """A random name for one life of a pod: 16 hexadecimal digits."""
    return os.urandom(8).hex()


@dataclass(frozen=True)
class FrontParams:
    """The parameters of one front process.

    Parameters
    ----------
    dir
        The service directory, absolute. The front makes ``front.sock``, ``front.json``, ``front.log``, ``spill/`` and
        ``bulk`` in it, and removes all of it at its end.
    name
        The service's name.
    token
        What every request must carry; ASCII. Never shown in a repr.
    host, port
        Where to listen; port 0 takes a free one (``front.json`` says which).
    owners
        Process ids. When the last of them has ended, so does the pod, unless ``detach``. Empty: nobody owns it.
    detach
        The pod outlives its owners.
    ttl
        End after that many seconds without a call; None: never. A LOAD may change it.
    memory_limit
        Bytes that the worker and its children may hold in memory; above it they are killed. None: no limit. A LOAD
        may change it.
    concurrency
        How many calls run at once (the worker's to enforce; said in ``status``).
    bulk_dir
        Directory for payloads on their way, made and removed by the front; None: a fresh one in ``/dev/shm`` if there
        is one, else in ``dir``. ``<dir>/bulk`` always leads there.
    incarnation
        The name of this life of the pod.
    devices
        Its GPUs, as ``CUDA_VISIBLE_DEVICES`` names them, so that their use can be said.
    log_budget, log_budget_call
        Bytes of logs that are kept for the whole service and for one call.
    ready_fd
        A descriptor that is closed when the front accepts sessions (``front.json`` is there then), for who waits at
        its other end.
    containers
        The zygote runs in another container: with processes of its own, which can't be looked at from here, and a life
        of its own: it may come again, and so may this front. Then the front keeps a copy of the code, leaves the
        directory when it ends, logs to stderr too, and takes SIGTERM for a failure (see `pod_server.front.main`).
    code_file
        A file with the service's code (`pod_server.codefile`), to begin with; it may be missing.
    peers, rank
        ``host:port`` of each replica's front, in order, and which of them this is: they end together.
    debug
        Record the start of every call among the events, for tests that compare orders.
    http, loop
        ``"auto"``, or one of ``"h11"``/``"httptools"`` and ``"asyncio"``/``"uvloop"``.

    Examples
    --------
    >>> FrontParams(dir="/tmp/x", name="train", token="secret").port
    0
    >>> "secret" in repr(FrontParams(dir="/tmp/x", name="train", token="secret"))
    False
    """

    dir: str
    name: str
    token: str = field(repr=False)
    host: str = "127.0.0.1"
    port: int = 0
    owners: Sequence[int] = ()
    detach: bool = False
    ttl: float | None = None
    memory_limit: int | None = None
    concurrency: int | None = None
    bulk_dir: str | None = None
    incarnation: str = field(default_factory=new_incarnation)
    devices: Sequence[str] = ()
    log_budget: int = 1 << 30
    log_budget_call: int = 64 << 20
    ready_fd: int | None = None
    containers: bool = False
    code_file: str | None = None
    peers: Sequence[str] = ()
    rank: int = 0
    debug: bool = False
    http: str = "auto"
    loop: str = "auto"
