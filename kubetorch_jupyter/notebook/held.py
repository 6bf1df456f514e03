"""The handles that a notebook's variables hold, and a teardown that they learn of. For ``%kt`` and the panel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import kubetorch_jupyter as kt

__all__ = ["held_services", "is_a", "tear_down"]


def is_a(value: Any, *kinds: type) -> bool:
    """`isinstance` that runs no code of the value's: a proxy's ``__class__`` may raise."""
    return issubclass(type(value), kinds)


def held_services(values: Iterable[Any]) -> list[tuple[str, Any]]:
    """The live services that handles and namespaces among the values are of: the name, and what has ``teardown``."""
    found: dict[int, tuple[str, Any]] = {}
    for value in values:
        if is_a(value, kt.Cells):
            if value.deployed:
                found[id(value)] = value.name, value
        elif is_a(value, kt.Fn, kt.Cls):
            try:
                service = value.service
            except kt.NotDeployedError:
                continue
            if not service.torn_down:
                found[id(service)] = service.name, service
    return list(found.values())


def tear_down(name: str, values: Iterable[Any], namespace: str | None = None) -> None:
    """End a service; by what holds it, which must know that it was meant, or would bring it back when called."""
    held = [each for held_name, each in held_services(values) if held_name == name and _is_in(each, namespace)]
    for each in held:
        each.teardown()
    if not held:
        kt.teardown(name, namespace)


def _is_in(held: Any, namespace: str | None) -> bool:
    """Whether what holds a service means that of this namespace."""
    return namespace is None or (getattr(held, "namespace", None) or kt.config.namespace) == namespace
