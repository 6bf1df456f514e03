"""``%kt doctor``: is everything right here, and what to do where it isn't."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import kubetorch_jupyter as kt

from ..backends.base import Finding
from ..config import settings
from ..markup import table
from ..overview import examine_backend
from . import loops

__all__ = ["Report", "examine"]

_MARKS = {"ok": "✓", "note": "·", "problem": "✗"}
_PACKAGES = ("ipython", "ipykernel", "ipywidgets", "cloudpickle", "uvicorn", "websockets", "uvloop", "httptools")
#: Seconds that its own pod may take to come up: nobody wants to wait longer for an answer.
_LAUNCH = 20
#: What is said of the place where services go.
_PLACE = frozenset(("backend", "cluster", "rights", "way to pods", "Kueue", "image"))
_NEEDED = frozenset(("cloudpickle", "uvicorn", "websockets"))


class Report(list[Finding]):
    """Findings that show themselves, in plain text and in HTML."""

    @property
    def problems(self) -> list[Finding]:
        """Those that something should be done about."""
        return [finding for finding in self if finding.state == "problem"]

    @property
    def place_is_wrong(self) -> bool:
        """Whether something is wrong with the place where services go: then they needn't be tried."""
        return any(finding.what in _PLACE for finding in self.problems)

    @property
    def on_a_cluster(self) -> bool:
        """Whether services go to one."""
        return any(finding.what == "cluster" and finding.state == "ok" for finding in self)

    def __repr__(self) -> str:
        width = max((len(f.what) for f in self), default=0)
        below = "\n" + " " * (width + 4)
        return "\n".join(f"{_MARKS[f.state]} {f.what.ljust(width)}  {below.join(f.text.splitlines())}" for f in self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text("..." if cycle else repr(self))

    def _repr_html_(self) -> str:
        return table([(_MARKS[f.state], f.what, f.text) for f in self])


def examine(shell: Any, deploy: bool = False) -> Report:
    """Look at versions, loops, settings, where services go, and whether one can be deployed and called.

    Parameters
    ----------
    shell
        The running IPython.
    deploy
        Try that on a cluster as well, where a pod may take its time; on this machine it is tried anyhow.
    """
    checks: list[tuple[str, Callable[[Any], Iterator[Finding]]]] = [
        ("versions", _versions),
        ("asyncio", _asyncio),
        ("settings", _settings),
        ("kubetorch", _kubetorch),
        ("backend", _backend),
        ("services", _services),
        ("deploy", _deploy),
    ]
    report = Report()
    for what, check in checks:
        if check is _services and report.place_is_wrong:
            report.append(Finding("deploy", "note", "not tried"))
            break
        if check is _deploy and report.on_a_cluster and not deploy:
            report.append(Finding("deploy", "note", "not tried: %kt doctor --deploy makes a pod, and calls it"))
            break
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
    yield from examine_backend()


def _services(shell: Any) -> Iterator[Finding]:
    services = kt.services()
    yield Finding("services", "ok", f"{len(services) or 'none'} up")


def _deploy(shell: Any) -> Iterator[Finding]:
    began = time.perf_counter()
    # Every pod has it, whatever its image: a function of ours may not be there, or be of another Python.
    function = kt.fn(platform.python_version, name=f"doctor-{os.getpid()}")
    with function.to(kt.Compute(launch_timeout=_LAUNCH), stream_logs=False) as probe:
        ready = time.perf_counter()
        pod_python = probe()
        done = time.perf_counter()
    yield Finding(
        "deploy",
        "ok",
        f"a function was deployed in {ready - began:.2f} s and called in {1000 * (done - ready):.1f} ms "
        f"on Python {pod_python}",
    )
