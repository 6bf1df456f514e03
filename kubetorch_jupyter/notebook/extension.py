"""``%load_ext kubetorch_jupyter``: what a kernel, or plain IPython, gets, and how it is taken back.

``kt`` in the namespace; ``import kubetorch`` means us unless the real one is installed; ``asyncio.run`` works in cells.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import kubetorch_jupyter as kt

from . import asyncio_run

__all__ = ["load_ipython_extension", "unload_ipython_extension"]


def load_ipython_extension(ipython: Any) -> None:
    """Set everything up; a second time changes nothing."""
    ipython.push({"kt": kt}, interactive=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kt.install_as_kubetorch()
    for warning in caught:
        # As a line: a warning would show a source line of ours that says nothing to the user.
        print(warning.message)
    asyncio_run.install()
    # Now, where nothing waits: at the first use, in a cell that awaits, it would hold the kernel's loop for 0.1 s.
    import_module("kubetorch_jupyter.callables")


def unload_ipython_extension(ipython: Any) -> None:
    """Take back everything that `load_ipython_extension` did; a ``kt`` that the user bound to something else stays."""
    asyncio_run.uninstall()
    kt.uninstall_as_kubetorch()
    ipython.drop_by_id({"kt": kt})
