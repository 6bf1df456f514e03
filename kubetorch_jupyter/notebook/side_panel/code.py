"""The Python that gets a service, or a call of one, in another notebook: for the panel's *Copy code*."""

from __future__ import annotations

import inspect
import keyword
import re
from typing import Any

import kubetorch_jupyter as kt
from pod_server.cells import Namespace

__all__ = ["call_code", "service_code"]

_IMPORT = "import kubetorch_jupyter as kt\n\n"


def service_code(name: str) -> str:
    """Code that makes the handle of a live service and shows how it is called.

    Raises
    ------
    ServiceNotFoundError
        When it is gone.
    """
    handle = kt.Module.from_name(name)
    variable = _variable(name)
    return f"{_IMPORT}{_make(handle, name, variable)}\n{_hint(handle, variable)}"


def call_code(name: str, id: str, function: str) -> str:
    """The same for one call: how it is made again, and how this one's log and result are had."""
    handle = kt.Module.from_name(name)
    variable = _variable(name)
    made = _make(handle, name, variable)
    return (
        f"{_IMPORT}{made}\n{_hint(handle, variable, function)}\n\n"
        f'call = kt.attach("{id}")  # the call itself: call.logs(), call.result(), call.cancel()\n'
    )


def _is_namespace(handle: Any) -> bool:
    """Whether ``%%kt`` cells run in it."""
    interface = handle.service.interface
    return interface is not None and interface.label == Namespace.__name__


def _make(handle: Any, name: str, variable: str) -> str:
    if _is_namespace(handle):
        return f'{variable} = kt.Cells("{name}")'
    return f'{variable} = kt.{"fn" if isinstance(handle, kt.Fn) else "cls"}(name="{name}")'


def _hint(handle: Any, variable: str, function: str = "") -> str:
    """The line that calls, with the parameters' names to fill in."""
    if _is_namespace(handle):
        return f"# or a cell: %%kt -n {handle.service.name}"
    if isinstance(handle, kt.Fn):
        return f"{variable}({_parameters(handle)})"
    method = function.rpartition(".")[2]
    if method.isidentifier() and not method.startswith("_"):
        return f"{variable}.{method}({_parameters(getattr(handle, method, None))})"
    return f"# {variable}.METHOD(...) calls one of its methods"


def _parameters(target: Any) -> str:
    """What a call needs, by name; the defaults are left to themselves."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return "..."
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return ", ".join(
        f"{p.name}=..." if p.kind in plain else "..."
        for p in parameters
        if p.default is inspect.Parameter.empty
        and p.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    )


def _variable(name: str) -> str:
    """A service's name as a variable's.

    Examples
    --------
    >>> _variable("train-model"), _variable("2-gpus"), _variable("class")
    ('train_model', '_2_gpus', 'class_')
    """
    text = re.sub(r"\W", "_", name)
    if not text.isidentifier():
        text = f"_{text}"
    return f"{text}_" if keyword.iskeyword(text) else text
