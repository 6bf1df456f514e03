"""Packing on a thread of its own, and again where the pod turns out to have another Python."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from .backends.base import Progress
from .code import Code
from .shipping import PYTHON, Bundle
from .transport.session import Session

__all__ = ["fit", "pack"]

#: One thread packs: pickling is the user's code (``__getstate__``) and long for large values, so it belongs neither on
#: the portal nor on the kernel's loop; several at once would only fight for the interpreter lock.
_packer = ThreadPoolExecutor(1, thread_name_prefix="kubetorch-pack")


def _after_fork() -> None:
    global _packer
    _packer = ThreadPoolExecutor(1, thread_name_prefix="kubetorch-pack")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


async def pack(make: Callable[[], Bundle]) -> Bundle:
    """Run ``make`` on the packing thread, in this context."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_packer, context.run, make)


async def fit(code: Code, session: Session, progress: Progress | None = None) -> None:
    """Pack the code for the Python that the pod has, unless it is packed for that.

    Raises
    ------
    VersionMismatchError
        When the pod's is another minor version and something of the code has no source.
    """
    python, again = session.welcome.get("python"), code.bundle.again
    if python and again is not None and python != code.bundle.python:
        if python != PYTHON and progress is not None:
            name = code.bundle.meta["name"]
            progress.note(f"the pod has Python {python}, not {PYTHON}: {name} goes by its source")
        code.bundle = await pack(functools.partial(again, python))
