"""``%kt doctor``: is everything right here, and what to do where it isn't."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import kubetorch_jupyter as kt

from ..config import settings
from ..markup import table
from . import loops

__all__ = ["Finding", "Report", "examine"]

_MARKS = {"ok": "✓", "note": "·", "problem": "✗"}
_PACKAGES = ("ipython", "ipykernel", "ipywidgets", "cloudpickle", "uvicorn", "websockets", "uvloop", "httptools")
_NEEDED = frozenset(("cloudpickle", "uvicorn", "websockets"))


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what, how it is (``"ok"``, ``"note"``, ``"problem"``), and what to say of it."""

    what: str
    state: str
    text: str


class Report(list[Finding]):
    """Findings that show themselves, in plain text and in HTML."""

    @property
    def problems(self) -> list[Finding]:
        """Those that something should be done about."""
        return [finding for finding in self if finding.state == "problem"]

    def __repr__(self) -> str:
        width = max((len(f.what) for f in self), default=0)
        return "\n".join(f"{_MARKS[f.state]} {f.what.ljust(width)}  {f.text}" for f in self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text("..." if cycle else repr(self))

    def _repr_html_(self) -> str:
        return table([(_MARKS[f.state], f.what, f.text) for f in self])


def examine(shell: Any) -> Report:
    """Look at versions, loops, settings, where services go, and whether one can be deployed and called.

    Parameters
    ----------
    shell
        The running IPython.
    """
    checks: list[tuple[str, Callable[[Any], Iterator[Finding]]]] = [
        ("versions", _versions),
        ("asyncio", _asyncio),
        ("settings", _settings),
        ("kubetorch", _kubetorch),
        ("backend", _backend),
        ("deploy", _deploy),
    ]
    report = Report()
    for what, check in checks:
        try:
            report.extend(check(shell))
        except Exception as e:  # a check that fails is what the report is for
            report.append(Finding(what, "problem", f"{type(e).__name__}: {e}"))
    return report


def _versions(shell: Any) -> Iterator[Finding]:
    yield Finding("kubetorch_jupyter", "ok", f"{kt.__version__}, Python {platform.python_version()} on {sys.platform}")
    found, missing = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    yield Finding("packages", "ok", ", ".join(found))
    needed = [name for name in missing if name in _NEEDED]
    if needed:
        yield Finding("packages", "problem", f"missing: {', '.join(needed)}; pip install {' '.join(needed)}")
    elif missing:
        yield Finding("packages", "note", f"not here, and not needed: {', '.join(missing)}")


def _asyncio(shell: Any) -> Iterator[Finding]:
    problem = loops.problem()
    yield Finding("asyncio", "problem" if problem else "ok", problem or loops.describe())


def _settings(shell: Any) -> Iterator[Finding]:
    wrong = []
    changed = []
    for key in settings():
        try:
            value, source = kt.config.get(key), kt.config.source(key)
        except kt.ConfigError as e:
            wrong.append(str(e))
            continue
        if source != "default" and key != "license_key":  # a secret, which a config's repr leaves out as well
            changed.append(f"{key}={value!r} ({source})")
    for text in wrong:
        yield Finding("settings", "problem", text)
    yield Finding("settings", "ok", ", ".join(changed) or "all as they are by default")


def _kubetorch(shell: Any) -> Iterator[Finding]:
    module = sys.modules.get("kubetorch")
    if module is not None and module is not sys.modules.get("kubetorch_jupyter"):
        where = getattr(module, "__file__", None) or "another place"
        yield Finding(
            "kubetorch",
            "note",
            f'"import kubetorch" means the one in {where}; for this one write "import kubetorch_jupyter as kt"',
        )


def _backend(shell: Any) -> Iterator[Finding]:
    services = kt.services()
    running = f"{len(services)} service{'' if len(services) == 1 else 's'} up"
    yield Finding("backend", "ok", f"services go to this machine ({running}), {os.cpu_count()} CPUs, {_gpus()}")
    config = os.environ.get("KUBECONFIG") or os.path.expanduser("~/.kube/config")
    if any(os.path.exists(path) for path in config.split(os.pathsep)):
        yield Finding("kubernetes", "note", "there is a kubeconfig; this version deploys to this machine only")


def _gpus() -> str:
    declared = kt.config.local_gpus
    if declared is not None:
        return f"{declared} GPUs declared"
    return "GPUs counted when a deploy asks for some"


def _deploy(shell: Any) -> Iterator[Finding]:
    began = time.perf_counter()
    with kt.fn(_probe, name=f"doctor-{os.getpid()}").to(kt.Compute(), stream_logs=False) as probe:
        ready = time.perf_counter()
        pod_python, pid = probe()
        done = time.perf_counter()
    if pid == os.getpid():
        yield Finding("deploy", "problem", "a function that was deployed ran in this process")
        return
    yield Finding(
        "deploy",
        "ok",
        f"a function was deployed in {ready - began:.2f} s and called in {1000 * (done - ready):.1f} ms "
        f"on Python {pod_python}",
    )


def _probe() -> tuple[str, int]:
    return platform.python_version(), os.getpid()
