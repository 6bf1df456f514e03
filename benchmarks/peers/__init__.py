"""What ours is compared with. Each peer is a small program in an environment of its own (`environments`).

It is asked by one line of JSON on its input, ``["latency", 1000]``, and answers with one: ``{"value": 0.0003}`` or
``{"error": "…"}``. The first line that it says is ``{"first": seconds, "version": "…"}``: the time from nothing but its
imports to the first result. The questions, all answered in seconds, or calls or bytes a second:

===========================  =========================================================================================
``first``                    from nothing but imports to the first result
``another``                  one more process that runs functions, with its first result
``latency n``                a call of a function that does nothing, the median of ``n``
``in_flight n width``        such calls a second, ``width`` of ``n`` at once
``sleeps n width``           ``n`` calls that sleep 1 ms, ``width`` at once
``bulk size``                bytes a second of an array there and back
``line n``                   from a ``print`` there until it is read here, the median of ``n``
``lines n``                  ``n`` printed lines
``flushed_lines n``          ``n`` printed lines, each flushed
``redeploy n``               changed code, until it has answered, the median of ``n``
===========================  =========================================================================================

This module is also imported in the peers' environments: nothing but the standard library is imported here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import environments

__all__ = ["PEERS", "Kind", "Peer", "PeerError", "running"]

_ROOT = Path(__file__).parents[2]
#: Seconds within which a peer answers.
_PATIENCE = 90.0
_NO_CODE = "it ships no code"
_NO_OUTPUT = "it forwards no output"
_SILENT = {"redeploy": _NO_CODE, "line": _NO_OUTPUT, "lines": _NO_OUTPUT, "flushed_lines": _NO_OUTPUT}


class PeerError(Exception):
    """A peer has no figure; the message says why in one line."""


@dataclass(frozen=True)
class Kind:
    """One peer: what it is called, the module that is it, and what it needs."""

    name: str
    module: str
    requirements: tuple[str, ...] = ()
    #: Questions that make no sense for it, and why.
    left_out: Mapping[str, str] = field(default_factory=dict)


PEERS = (
    Kind(
        "ProcessPoolExecutor",
        "with_pool",
        left_out={
            "bulk": "its payloads go through a pipe, in one piece",
            "sleeps": "40 at once are 40 processes",
            "redeploy": _NO_CODE,
        },
    ),
    Kind(
        "pyzmq",
        "with_pyzmq",
        ("pyzmq", "numpy"),
        _SILENT,
    ),
    Kind(
        "Pyro5",
        "with_pyro5",
        ("Pyro5",),
        {
            "bulk": "its serializers know no arrays",
            **_SILENT,
        },
    ),
    Kind(
        "httpx + uvicorn",
        "with_httpx",
        ("httpx", "uvicorn", "uvloop", "httptools", "numpy"),
        _SILENT,
    ),
    Kind(
        "ipyparallel",
        "with_ipyparallel",
        ("ipyparallel", "numpy"),
        {
            "another": "one cluster serves all",
            "sleeps": "an engine runs one call at a time",
            "flushed_lines": "it sends a message for each, which takes 20 s",
        },
    ),
    Kind(
        "distributed",
        "with_distributed",
        ("distributed", "numpy"),
        {"another": "one cluster serves all", "flushed_lines": "it knows no buffer: as 100,000 lines"},
    ),
    Kind("Ray", "with_ray", ("ray", "numpy")),
)


class Peer:
    """A peer that runs."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log
        hello = self._answer()
        self.first = float(hello["first"])
        self.version = str(hello["version"])

    def ask(self, question: str, *arguments: Any) -> float:
        """What it measures.

        Raises
        ------
        PeerError
            When it can't.
        """
        if question == "first":
            return self.first
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([question, *arguments]) + "\n")
            self._process.stdin.flush()
        except OSError as e:
            raise PeerError(f"it has ended: {e}") from e
        return float(self._answer()["value"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        alarm = threading.Timer(_PATIENCE, os.killpg, (self._process.pid, signal.SIGKILL))
        alarm.start()
        try:
            line = self._process.stdout.readline()
        finally:
            alarm.cancel()
        if not line:
            last = self._log.read_text(errors="replace").strip().splitlines()[-1:] or [f"nothing in {_PATIENCE:g} s"]
            raise PeerError(f"it ended without an answer: {last[0][:200]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer


@contextmanager
def running(kind: Kind) -> Iterator[Peer]:
    """A peer, from its start to its end.

    Raises
    ------
    PeerError
        When it can't be installed, or doesn't start.
    """
    try:
        python = environments.python(kind.module.removeprefix("with_"), kind.requirements)
    except environments.MissingEnvironment as e:
        raise PeerError(str(e)) from e
    environments.ROOT.mkdir(parents=True, exist_ok=True)
    log = environments.ROOT / f"{kind.module}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [python, "-m", "benchmarks.peers.serve", kind.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=_ROOT,
            # Its own processes import what they run from here, too.
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
            start_new_session=True,
        )
    try:
        yield Peer(process, log)
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """It ends by itself when its input does; what doesn't is killed, with all that it started."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.close()
        process.wait(15)
    except (OSError, subprocess.TimeoutExpired):
        pass  # it is killed below
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # nothing is left of its group
        process.wait()
        process.stdout.close()
