"""What would travel with a callable, for people to look at before they deploy: `preview`.

The report is made when `preview` is called; showing it does no I/O.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

from pod_server import serialization
from pod_server._unpicklable import type_name

from . import sources
from .errors import ConfigError
from .markup import table
from .shipping import PYTHON, gather, pickled_size
from .values import readable_size

__all__ = ["Captured", "Preview", "SentModule", "preview"]


@dataclass(frozen=True)
class Captured:
    """A variable that goes by value.

    ``path`` says where it is captured (``train.<globals>.table``), ``type`` its type, ``size`` its bytes when it is
    pickled by itself (functions and classes: without what they capture, which is listed on its own).
    """

    path: str
    type: str
    size: int


@dataclass(frozen=True)
class SentModule:
    """A local module or package: its top-level name, and how many files and bytes travel."""

    name: str
    files: int
    size: int


@dataclass(frozen=True)
class Preview:
    """What would travel with a callable.

    Parameters
    ----------
    name
        The callable's.
    size
        All bytes that travel; modules are counted unpacked.
    captured
        Variables that go by value, the largest first.
    modules
        Local modules whose sources travel.
    packages
        Installed packages that the pod must have: distribution and version.
    warnings
        What `.to` would say.
    """

    name: str
    size: int
    captured: tuple[Captured, ...]
    modules: tuple[SentModule, ...]
    packages: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        lines = [f"{self.name}: {readable_size(self.size)} would travel"]
        for title, rows in self._tables():
            lines.append(f"  {title}")
            widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
            for row in rows:
                cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
                lines.append("    " + "  ".join(cells).rstrip())
        lines += [f"  warning: {w}" for w in self.warnings]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        out = [f"<div><b>{escape(self.name)}</b>: {readable_size(self.size)} would travel</div>"]
        out += [table(rows, title=title) for title, rows in self._tables()]
        out += [f"<div>warning: {escape(w)}</div>" for w in self.warnings]
        return "".join(out)

    def _tables(self) -> Iterable[tuple[str, list[tuple[str, ...]]]]:
        if self.captured:
            yield "goes by value", [(c.path, c.type, readable_size(c.size)) for c in self.captured]
        if self.modules:
            yield (
                "local modules, as sources",
                [(m.name, f"{m.files} file{'s' if m.files != 1 else ''}", readable_size(m.size)) for m in self.modules],
            )
        if self.packages:
            yield "must be installed in the pod", [tuple(p) for p in self.packages]


def preview(
    target: Callable[..., Any],
    *,
    init_args: Any = None,
    sync_dir: str | os.PathLike[str] | bool | None = None,
    python: str | None = None,
) -> Preview:
    """Show what would travel with a callable: captured variables, local modules, and the packages that the pod needs.

    Parameters
    ----------
    target
        What ``kt.fn`` or ``kt.cls`` would be given; a handle shows the callable that it was made from.
    init_args, sync_dir
        As for ``.to`` and ``kt.fn``.
    python
        The minor version of the pod's Python, ``"3.12"``, where it isn't this one's: then code goes by its source.

    Raises
    ------
    SerializationError
        When something can't be sent; the same error that ``.to`` raises.
    VersionMismatchError
        When it would have to go by its source, and something of it has none.
    ConfigError
        For a handle that has no code, from ``from_name``.

    Examples
    --------
    >>> scale = 3
    >>> def times(x):
    ...     return x * scale
    >>> [(c.path, c.type) for c in preview(times).captured]
    [('times.<globals>.scale', 'int')]
    """
    source = getattr(target, "_source", None) if type(target).__module__.startswith("kubetorch_jupyter.") else None
    if source is not None:
        if source.target is None:
            raise ConfigError(f'"{source.name}" was made from a name only; there is no code here that could travel')
        target = source.target
        sync_dir = source.sync_dir if sync_dir is None else sync_dir
    packed = gather(target, None, init_args, sync_dir, PYTHON if python is None else python)
    captured = [Captured(path, _kind(value), _size(value)) for path, value in packed.survey.captured.items()]
    if init_args is not None:
        captured.append(Captured("init_args", type_name(init_args), pickled_size(init_args)))
    captured.sort(key=lambda c: -c.size)
    modules = tuple(SentModule(name, files, size) for name, (files, size) in sorted(packed.tree.modules.items()))
    cells = sum(len(text.encode("utf-8", "replace")) for text in sources.find_sources(packed.survey.files).values())
    return Preview(
        name=packed.name,
        size=serialization.nbytes(packed.pickled) + cells + sum(m.size for m in modules),
        captured=tuple(captured),
        modules=modules,
        packages=tuple(_distributions(packed.tree.imports)),
        warnings=tuple(packed.warnings),
    )


def _kind(value: Any) -> str:
    if isinstance(value, types.FunctionType):
        return "function"
    if isinstance(value, type):
        return "class"
    return type_name(value)


def _size(value: Any) -> int:
    if isinstance(value, types.FunctionType):
        return len(value.__code__.co_code)
    if isinstance(value, type):
        return sum(len(f.__code__.co_code) for f in vars(value).values() if isinstance(f, types.FunctionType))
    return pickled_size(value)


#: What every pod has, because the pod server needs it or is it.
_ALWAYS = frozenset(("cloudpickle", "kubetorch_jupyter", "pod_server", "__main__"))


def _distributions(names: Iterable[str]) -> list[tuple[str, str]]:
    """Distribution and version for each top-level name that isn't the standard library's."""
    wanted = [n for n in names if n not in sys.stdlib_module_names and n not in _ALWAYS]
    if not wanted:
        return []
    import importlib.metadata as metadata  # reads every installed package's files; only wanted here

    providers = metadata.packages_distributions()
    found: dict[str, str] = {}
    for name in wanted:
        for distribution in providers.get(name, ()):
            found[distribution] = metadata.version(distribution)
        if name not in providers:
            found[name] = "?"
    return sorted(found.items(), key=lambda item: item[0].lower())
