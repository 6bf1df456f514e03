"""What the panel does, by the public functions only: deploy, restart, tear down, cancel. All of it blocks."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import kubetorch_jupyter as kt

from .. import held
from ..held import is_a

__all__ = ["Order", "can_deploy", "cancel", "deploy", "one_line", "restart", "tear_down"]

#: Characters of an error that are shown.
_LINE = 400


def one_line(error: BaseException) -> str:
    """What went wrong, for one line of the panel."""
    text = " ".join(str(error).split())
    if not isinstance(error, kt.KubetorchError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= _LINE else text[: _LINE - 1] + "…"


@dataclass(frozen=True)
class Order:
    """A deploy as the form has it; empty fields are not asked for.

    Examples
    --------
    >>> def train(): ...
    >>> Order("train", cpus="1", gpus=2).line(train)
    'train = kt.fn(train).to(kt.Compute(cpus="1", gpus=2))'
    """

    name: str
    cpus: str = ""
    memory: str = ""
    gpus: int = 0
    concurrency: int = 64
    detach: bool = False
    init_args: str = ""

    def given(self) -> dict[str, Any]:
        """The arguments of `kt.Compute`."""
        values: dict[str, Any] = {
            "cpus": self.cpus.strip(),
            "memory": self.memory.strip(),
            "gpus": self.gpus,
            "concurrency": self.concurrency if self.concurrency != 64 else None,
            "detach": self.detach,
        }
        return {key: value for key, value in values.items() if value}

    def compute(self) -> kt.Compute:
        """The `kt.Compute`.

        Raises
        ------
        ConfigError
            For a value that makes no sense.
        """
        return kt.Compute(**self.given())

    def arguments(self) -> Any:
        """What a class is constructed with; None for nothing.

        Raises
        ------
        ConfigError
            When it can't be read.
        """
        text = self.init_args.strip()
        if not text:
            return None
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError):
            value = None
        if not isinstance(value, (dict, list, tuple)):
            raise kt.ConfigError(
                'the arguments are a dict of keywords, as {"size": 3}, or a list, of plain values; '
                "deploy it from a cell to give others"
            )
        return value

    def line(self, target: Any) -> str:
        """The code that does the same, as one would type it."""
        name = _service_name(target, self.name)
        maker = "cls" if _is_class(target) else "fn"
        compute = ", ".join(f"{key}={_literal(value)}" for key, value in self.given().items())
        named = f", name={_literal(name)}" if name is not None else ""
        arguments = f", init_args={self.init_args.strip()}" if self.init_args.strip() and maker == "cls" else ""
        return f"{self.name} = kt.{maker}({self.name}{named}).to(kt.Compute({compute}){arguments})"


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _is_class(target: Any) -> bool:
    return isinstance(target, (type, kt.Cls))


def _service_name(target: Any, name: str) -> str | None:
    """The service's name, where the callable's own would not be that of its variable."""
    if isinstance(target, (kt.Fn, kt.Cls)) or getattr(target, "__name__", name) == name:
        return None
    return name


def can_deploy(namespace: Mapping[str, Any]) -> list[str]:
    """The names of a notebook's own functions and classes, the newest first, and then of its handles."""
    found = [
        (is_a(value, kt.Fn, kt.Cls), name)
        for name, value in reversed(dict(namespace).items())  # a copy, since cells may run meanwhile
        if not name.startswith("_") and _is_deployable(value)
    ]
    return [name for _, name in sorted(found, key=lambda each: each[0])]


def _is_deployable(value: Any) -> bool:
    if is_a(value, kt.Fn):
        return hasattr(value, "__wrapped__")  # without its code it can't be sent again
    if is_a(value, kt.Cls):
        return True
    return is_a(value, FunctionType, type) and getattr(value, "__module__", None) == "__main__"


def deploy(order: Order, namespace: MutableMapping[str, Any]) -> str:
    """Deploy what the order says and bind its handle to the name; what happened, in a line.

    Raises
    ------
    KubetorchError
        As `Fn.to` does.
    """
    if order.name not in namespace:
        raise kt.ConfigError(f'there is no "{order.name}" in the notebook any more')
    target = namespace[order.name]
    compute = order.compute()
    name = _service_name(target, order.name)
    handle: Any
    if _is_class(target):
        handle = kt.cls(target, name=name).to(compute, init_args=order.arguments(), stream_logs=False)
    else:
        handle = kt.fn(target, name=name).to(compute, stream_logs=False)
    service = handle.service
    handle.stream_logs = kt.config.stream_logs  # of the deploy nothing was to be printed; its calls are another's
    if namespace.get(order.name) is not target:
        return f'"{service.name}" is ready; "{order.name}" was bound to something else meanwhile and stays so'
    namespace[order.name] = handle
    return f'"{service.name}" is ready, and {order.name} in the notebook is its handle'


def tear_down(name: str, namespace: Mapping[str, Any]) -> str:
    """End a service; what happened, in a line."""
    held.tear_down(name, list(namespace.values()))  # a copy, since cells may run meanwhile
    return f'"{name}" was torn down'


def restart(name: str) -> str:
    """Replace a service's worker; what happened, in a line."""
    kt.Module.from_name(name).service.restart()
    return f'"{name}" was restarted'


def cancel(name: str, call: str) -> str:
    """Cancel a call; what happened, in a line."""
    if kt.Module.from_name(name).service.cancel(call):
        return "the call is being cancelled"
    return "the call had ended already"
