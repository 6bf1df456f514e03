"""Which way ``asyncio.run`` and nested loops work in this kernel: ours, or a patch of the whole of asyncio.

Ours (`asyncio_run`) is enough for ``asyncio.run``. Code that calls ``loop.run_until_complete`` on the running loop
needs ``nest_asyncio``, or, on ipykernel 7 and later, ``nest_asyncio2``: there the first loses every message that comes
while a nested run is under way.
"""

from __future__ import annotations

import asyncio
import importlib
from importlib.metadata import PackageNotFoundError, version

from IPython.core.error import UsageError

from . import asyncio_run

__all__ = ["active", "describe", "problem", "use"]


def _ipykernel() -> int | None:
    try:
        return int(version("ipykernel").partition(".")[0])
    except PackageNotFoundError:
        return None


def active() -> str | None:
    """The package that has patched asyncio in this process, if one has; both leave a mark on the module."""
    if not hasattr(asyncio, "_nest_patched"):
        return None
    return "nest_asyncio2" if hasattr(asyncio, "_nest_asyncio2") else "nest_asyncio"


def problem() -> str | None:
    """What is wrong with the patch that is on, and what to do; None when nothing is."""
    kernel = _ipykernel()
    if active() == "nest_asyncio" and kernel is not None and kernel >= 7:
        return (
            f"nest_asyncio is on, and with ipykernel {kernel} it loses cells and widget messages that come during a "
            "nested run: restart the kernel, leave nest_asyncio.apply() out, and say %kt asyncio nest if it is needed"
        )
    return None


def describe() -> str:
    """One line on how it works now."""
    said = ["asyncio.run works in cells, by a loop in a helper thread"] if asyncio_run.installed() else []
    if name := active():
        said.append(f"{name} lets the running loop be entered again")
    return problem() or "; ".join(said) or "asyncio is as it was"


def use(mode: str) -> str:
    """Use our own ``asyncio.run`` (``"own"``), or let loops be nested too (``"nest"``); one line on what holds now.

    Raises
    ------
    UsageError
        When it can't be done.
    """
    if mode == "own":
        if name := active():
            raise UsageError(f"%kt asyncio own: {name} can't be taken back; restart the kernel")
        asyncio_run.install()
        return describe()
    if active() is None:
        kernel = _ipykernel()
        name = "nest_asyncio2" if kernel is None or kernel >= 7 else "nest_asyncio"
        try:
            module = importlib.import_module(name)
        except ImportError:
            raise UsageError(f"%kt asyncio nest: {name} isn't installed: %pip install {name}") from None
        ours = asyncio_run.installed()
        try:
            module.apply()
        except ValueError as e:  # a loop that it can't patch: uvloop's
            raise UsageError(f"%kt asyncio nest: {e}") from None
        if ours:
            asyncio_run.install()  # for asyncio.run ours stays the better one
    return describe()
