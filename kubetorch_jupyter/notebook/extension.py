"""``%load_ext kubetorch_jupyter``: what a kernel, or plain IPython, gets, and how it is taken back.

``%%kt`` and ``%kt`` with their completion; ``kt`` in the namespace; ``import kubetorch`` means us unless the real one
is installed; ``asyncio.run`` works in cells; JupyterLab's side panel gets answers.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import kubetorch_jupyter as kt

from . import asyncio_run, errors, progress, replies, side_panel

__all__ = ["load_ipython_extension", "unload_ipython_extension"]

#: What was registered with which shell.
_loaded: dict[int, tuple[Any, Any]] = {}


def load_ipython_extension(ipython: Any) -> None:
    """Set everything up; a second time changes nothing."""
    ipython.push({"kt": kt}, interactive=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kt.install_as_kubetorch()
    for warning in caught:
        # As a line: a warning would show a source line of ours that says nothing to the user.
        print(warning.message)
    replies.install(ipython)
    asyncio_run.install()
    progress.install()
    errors.install(ipython)
    side_panel.install(ipython)
    # Now, where nothing waits: at the first use, in a cell that awaits, it would hold the kernel's loop for 0.1 s.
    import_module("kubetorch_jupyter.delivery")
    if id(ipython) not in _loaded:
        _loaded[id(ipython)] = _register(ipython)
        _say_what_lives()


def unload_ipython_extension(ipython: Any) -> None:
    """Take back everything that `load_ipython_extension` did; a ``kt`` that the user bound to something else stays."""
    side_panel.uninstall()
    errors.uninstall()
    progress.uninstall()
    asyncio_run.uninstall()
    replies.uninstall()
    kt.uninstall_as_kubetorch()
    ipython.drop_by_id({"kt": kt})
    if (registered := _loaded.pop(id(ipython), None)) is not None:
        _unregister(ipython, *registered)


def _register(ipython: Any) -> tuple[Any, Any]:
    from .completion import make_matcher
    from .magics import KT

    magics = KT(ipython)
    ipython.register_magics(magics)
    ipython.configurables.append(magics)  # for %config
    matcher = make_matcher(ipython, magics.commands.known_services)
    ipython.Completer.custom_matchers.append(matcher)
    return magics, matcher


def _unregister(ipython: Any, magics: Any, matcher: Any) -> None:
    for kind in ("line", "cell"):
        ipython.magics_manager.magics[kind].pop("kt", None)
    ipython.magics_manager.registry.pop(type(magics).__name__, None)
    if magics in ipython.configurables:
        ipython.configurables.remove(magics)
    if matcher in ipython.Completer.custom_matchers:
        ipython.Completer.custom_matchers.remove(matcher)


def _say_what_lives() -> None:
    """After a restart of the kernel: what of this notebook goes on, in one line."""
    from ..overview import left_running

    try:
        services = left_running()
    except kt.KubetorchError:
        return  # where services are isn't settled yet: the first deploy says what is wrong
    if not services:
        return
    names = {info.name for info in services}
    running = [row["id"] for row in kt.calls() if row["service"] in names and row["id"] and not row.get("ended")]
    text = f"kubetorch: of this notebook still live {', '.join(sorted(names))}"
    own = kt.Cells().name
    ways = [f"the next %%kt cell goes on in {own}"] if own in names else []
    if names != {own}:
        ways.append("kt.fn(name=...), kt.cls(name=...) or deploying again gives the handle")
    text += f" ({'; '.join(ways)})"
    if running:
        text += f"; running calls: {', '.join(running)} (%kt attach ID)"
    print(text)
