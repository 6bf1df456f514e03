"""What travels with a callable: `pack` makes the bundle that a pod loads.

Called by `callables` on the packing thread, before anything else happens in a deploy, so that code which can't be sent
fails at ``.to`` and names the variable that is in the way. Nothing here does network I/O.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
import os
import platform
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import cloudpickle

from pod_server import loggers, serialization
from pod_server._pickling import set_class_ids
from pod_server._unpicklable import describe

from . import by_source, sources
from .errors import ConfigError, PayloadTooLargeError, SerializationError, VersionMismatchError
from .fingerprint import Survey, class_id
from .interface import display_name
from .steps import PackedSteps, pack_steps

__all__ = ["CAPTURE_WARNING", "PYTHON", "Bundle", "describe_interface", "pack"]

Buffer = serialization.Buffer

#: A captured value of more bytes than this gets a warning that names the variable.
CAPTURE_WARNING = 16 * 1024**2
#: The minor version of this Python.
PYTHON = "{}.{}".format(*sys.version_info)
#: The interface is part of a frame's meta, which has 64 KiB in all.
_INTERFACE_BYTES = 24 * 1024
_DOC_CHARS = 2000

set_class_ids(class_id)


@dataclass(frozen=True)
class Bundle:
    """A callable, packed.

    Parameters
    ----------
    version
        Hash of the code and of everything that it captures; the same from kernel to kernel as long as nothing changed.
    worker
        Hash of what only a new worker process takes on: the local modules, and the Python that they run in.
    meta
        For the LOAD frame: ``kind``, ``name``, ``python``, ``cloudpickle``, ``interface``, ``logging``.
    buffers
        ``[header, sources, modules zip, pickle, *out-of-band buffers]``, as docs/protocol.md has them.
    warnings
        Lines for people: large captured values, files that stay at home.
    modules
        The local modules that travel: the number of files and bytes of each.
    packages
        Top-level names that the code imports and that the pod must have installed.
    python
        The minor version of the pods that it is for. For another than this one's, code is in it as its source.
    again
        Packs the same callable, as it is then, for pods of another minor version.
    steps
        The steps of the image, with the files that they bring; None: there are none.
    """

    version: str
    worker: str
    meta: dict[str, Any]
    buffers: list[Buffer]
    warnings: tuple[str, ...] = ()
    modules: dict[str, tuple[int, int]] = field(default_factory=dict)
    packages: frozenset[str] = frozenset()
    steps: PackedSteps | None = None
    python: str = PYTHON
    again: Callable[[str], Bundle] | None = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> int:
        """The code in bytes, without what steps bring."""
        return serialization.nbytes(self.buffers)


@dataclass(frozen=True)
class _Packed:
    """What `pack` and `preview` share."""

    name: str
    survey: Survey
    tree: sources.Tree
    pickled: list[Buffer]
    warnings: list[str]


def pack(
    target: Callable[..., Any],
    *,
    name: str | None = None,
    kind: str | None = None,
    init_args: Any = None,
    sync_dir: str | os.PathLike[str] | bool | None = None,
    compute: Any = None,
    python: str = PYTHON,
) -> Bundle:
    """Pack a callable with everything that it needs in the pod.

    Parameters
    ----------
    target
        A function, class, method, partial or object that can be called; from a cell, a script or a module.
    name
        What messages call it; its own name unless given.
    kind
        ``"fn"`` or ``"cls"``; ``"cls"`` for a class unless given.
    init_args
        What the class is constructed with, for ``"cls"``; anything that can be pickled.
    sync_dir
        None: the local modules that the callable uses, found by itself. False: none. A path: that folder, and the
        local modules that are used and aren't in it.
    compute
        The steps of its image travel with the code.
    python
        The minor version of the pod's Python. Where it isn't this one's, the callable goes by its source.

    Returns
    -------
    Bundle

    Raises
    ------
    SerializationError
        When something can't be pickled; names the variable and the path to it.
    VersionMismatchError
        When it has to go by its source, and something of it has none; names that too.
    PayloadTooLargeError
        When it is more than 4 GiB.
    ConfigError
        When ``target`` can't be called, ``sync_dir`` is no folder, or a file that a step brings isn't there.

    Examples
    --------
    >>> bundle = pack(lambda x: x + 1, name="inc")
    >>> bundle.meta["kind"], bundle.meta["interface"][""]["sig"]
    ('fn', [['x', 1, False]])
    """
    if not callable(target):
        raise ConfigError(f"only something that can be called can be deployed, not a {type(target).__name__}")
    kind = kind or ("cls" if isinstance(target, type) else "fn")
    steps = pack_steps(compute.image if compute is not None else None)
    packed = gather(target, name, init_args, sync_dir, python)
    try:
        zipped, modules_hash = sources.pack_zip(packed.tree)
    except OSError as e:
        raise ConfigError(f"a file of a local module can't be read: {e}") from e
    header = {
        "how": "pickle" if python == PYTHON else "source",
        "init": init_args is not None,
        "module_name": getattr(target, "__module__", None),
        "qualname": getattr(target, "__qualname__", None),
    }
    cells = sources.find_sources(packed.survey.files)
    buffers: list[Buffer] = [json.dumps(header).encode(), _dump_sources(cells), zipped, *packed.pickled]
    if (size := serialization.nbytes(buffers)) > serialization.MAX_BYTES:
        raise PayloadTooLargeError(f"{packed.name}: {serialization.TooLargeError(size)}")
    version = hashlib.blake2b(digest_size=16)
    for part in (kind, packed.name, f"{PYTHON} {python}", packed.survey.hexdigest(), modules_hash):
        version.update(f"{len(part)}:{part}".encode())
    worker = hashlib.blake2b(f"{modules_hash} {platform.python_version()}".encode(), digest_size=16)
    meta = {
        "kind": kind,
        "name": packed.name,
        "python": PYTHON,
        "cloudpickle": cloudpickle.__version__,
        "interface": describe_interface(target, kind),
    }
    if (root := loggers.describe(logging.root)) is not None:
        meta["logging"] = root
    return Bundle(
        version=version.hexdigest(),
        worker=worker.hexdigest(),
        meta=meta,
        buffers=buffers,
        warnings=(*packed.warnings, *(steps.warnings if steps is not None else ())),
        modules=dict(packed.tree.modules),
        packages=frozenset(packed.tree.imports),
        steps=steps,
        python=python,
        again=lambda python: replace(
            pack(target, name=name, kind=kind, init_args=init_args, sync_dir=sync_dir, compute=compute, python=python),
            steps=steps,
        ),
    )


def gather(
    target: Any,
    name: str | None = None,
    init_args: Any = None,
    sync_dir: str | os.PathLike[str] | bool | None = None,
    python: str = PYTHON,
) -> _Packed:
    """Pickle a callable, go through what it captures, and find the local modules that it uses."""
    name = name or display_name(target)
    pickled = _pickle(target, init_args, name, python)
    survey = Survey(name)
    survey.add(target)
    survey.add(init_args, "init_args")
    if sync_dir is True:
        raise ConfigError("sync_dir= is a folder, None (find local modules) or False (send none), not True")
    try:
        tree = sources.Tree() if sync_dir is False else sources.collect(survey.modules, sync_dir)
    except NotADirectoryError as e:
        raise ConfigError(f"{e}: give the path of a folder that exists") from None
    if sync_dir is False:
        tree.imports = {m.partition(".")[0] for m in survey.modules}
    warnings = [*_size_warnings(survey, init_args, serialization.nbytes(pickled)), *tree.warnings]
    for what in survey.unstable:
        warnings.append(f"{what} can't be compared with what was deployed before, so each deploy counts as a change")
    return _Packed(name, survey, tree, pickled, warnings)


_HINTS = {
    "lock": "make it where it is used, inside the function or in the class's __init__, or in a module of your own",
    "file": "open it inside the function; what is open here can't be used there",
    "socket": "connect inside the function; a connection can't move to another process",
    "generator": "make a list of it, or make it inside the function",
    "task": "start it inside the function; it belongs to this process's event loop",
    "thread": "start it inside the function or in the class's __init__",
}
_HINT_OF = {
    "_thread.lock": "lock",
    "_thread.RLock": "lock",
    "_io.TextIOWrapper": "file",
    "_io.BufferedReader": "file",
    "_io.BufferedWriter": "file",
    "_io.FileIO": "file",
    "socket.socket": "socket",
    "ssl.SSLSocket": "socket",
    "sqlite3.Connection": "socket",
    "generator": "generator",
    "async_generator": "generator",
    "coroutine": "task",
    "_asyncio.Task": "task",
    "_asyncio.Future": "task",
    "_thread._local": "thread",
}


def _pickle(target: Any, init_args: Any, name: str, python: str) -> list[Buffer]:
    """One pickle of both, so that what they share is one object in the pod too."""
    dumps: Callable[[Any], list[Buffer]] = serialization.dumps
    failure = serialization.failure
    if python != PYTHON:
        dumps, failure = by_source.dumps, by_source.failure
    try:
        return dumps((target, init_args))
    except serialization.TooLargeError as e:
        raise PayloadTooLargeError(f"{name} with what it captures can't be sent: {e}") from e
    except Exception as e:
        if isinstance(e, MemoryError) or (python == PYTHON and not isinstance(e, serialization.EncodeError)):
            raise
        cause = e.__cause__ if isinstance(e.__cause__, Exception) else e
        problem = failure(target)
        root, culprit = (name, target) if problem is not None else ("init_args", init_args)
        path, type_name, reason = describe(culprit, problem or cause, failure, root)
        no_source = problem or cause
        if isinstance(no_source, by_source.NoSource):
            raise _no_source(name, path, no_source, python) from None
        hint = _HINTS.get(_HINT_OF.get(type_name, ""), "make it inside the function, or leave it out of what is sent")
        raise SerializationError(
            f"{name} can't be sent to a pod: {path} is of type {type_name}: {reason}. To cure it, {hint}",
            type_name=type_name,
            path=path,
        ) from cause


def _no_source(name: str, path: str, reason: by_source.NoSource, python: str) -> VersionMismatchError:
    # Where a class is in the way, all that has to do with it is, and the path is of the first that was looked at.
    where = "" if path == name or ".__" in path else f" (at {path})"
    return VersionMismatchError(
        f"{name} can't be sent: Python differs, {PYTHON} here and {python} in the pod, so that functions and classes "
        f"go by their source, and {reason}{where}. Use an image with Python {PYTHON}, for example "
        f'Image(image_id="python:{PYTHON}-slim"), or define it with `def` or `class` in a cell of its own',
        what="python",
        client=PYTHON,
        pod=python,
    )


def _size_warnings(survey: Survey, init_args: Any, total: int) -> list[str]:
    if total <= CAPTURE_WARNING:
        return []  # then no part of it is larger
    found: dict[str, int] = {}
    for path, value in [*survey.captured.items(), ("init_args", init_args)]:
        if isinstance(value, (types.FunctionType, type)):
            continue  # what they capture is listed on its own
        size = pickled_size(value)
        if size > CAPTURE_WARNING:
            found[path] = size
    return [
        f"{path} has {size / 1024**2:.0f} MiB and travels with every deploy; give it as an argument, load it in the "
        "pod, or put it into a file there"
        for path, size in found.items()
    ]


def pickled_size(value: Any) -> int:
    """How many bytes a value takes on its way, 0 when it can't travel by itself."""
    try:
        return serialization.nbytes(serialization.dumps(value))
    except serialization.TooLargeError as e:
        return e.size
    except serialization.EncodeError:  # e.g. half of a pair that can only be pickled together
        return 0


def _dump_sources(cells: dict[str, str]) -> bytes:
    return json.dumps(cells).encode()


# -- the interface -----------------------------------------------------------------------------------------------------


def describe_interface(target: Any, kind: str) -> dict[str, dict[str, Any]]:
    """What can be called: ``{"": row}`` for a function, a row for each public method of a class.

    A row has ``gen`` and ``async``, ``sig`` (``[name, kind, has_default]`` for each parameter, without ``self``; None
    when it isn't known) and ``doc``.

    Examples
    --------
    >>> class Counter:
    ...     def add(self, n=1): "Adds."
    >>> describe_interface(Counter, "cls")
    {'add': {'gen': False, 'async': False, 'sig': [['n', 1, True]], 'doc': 'Adds.'}}
    """
    if kind != "cls":
        return _fit({"": _row(target, takes_self=False)})
    rows: dict[str, dict[str, Any]] = {}
    for name in dir(target):
        if name == "__call__":
            if not any(name in vars(c) for c in target.__mro__):  # a class can be called, its instances can't
                continue
        elif name.startswith("_"):
            continue
        static = inspect.getattr_static(target, name)
        if isinstance(static, (property, type, functools.cached_property)):
            continue
        value = getattr(target, name, None)
        if value is None or not callable(value):
            continue
        # Classmethods are bound already and staticmethods take no instance; everything else that binds takes it.
        takes_self = not isinstance(static, (staticmethod, classmethod)) and hasattr(static, "__get__")
        rows[name] = _row(value, takes_self=takes_self)
    return _fit(rows)


def _row(value: Any, *, takes_self: bool) -> dict[str, Any]:
    plain = value
    while isinstance(plain, functools.partial):
        plain = plain.func
    nature = plain
    if not isinstance(nature, (types.FunctionType, types.MethodType, type)):
        call = getattr(type(nature), "__call__", None)  # noqa: B004 - the method itself is wanted
        nature = call if isinstance(call, types.FunctionType) else nature
    doc = inspect.getdoc(plain) if isinstance(getattr(plain, "__doc__", None), str) else None
    return {
        "gen": inspect.isgeneratorfunction(nature) or inspect.isasyncgenfunction(nature),
        "async": inspect.iscoroutinefunction(nature) or inspect.isasyncgenfunction(nature),
        "sig": _signature(value, takes_self),
        "doc": doc[:_DOC_CHARS] if doc else None,
    }


_P = inspect.Parameter
_VARIADIC = (_P.VAR_POSITIONAL, _P.VAR_KEYWORD)


def _parameters(value: Any, takes_self: bool, *, follow_wrapped: bool) -> list[inspect.Parameter]:
    found = list(inspect.signature(value, follow_wrapped=follow_wrapped).parameters.values())
    if takes_self and found and found[0].kind in (_P.POSITIONAL_ONLY, _P.POSITIONAL_OR_KEYWORD):
        return found[1:]
    return found


def _signature(value: Any, takes_self: bool) -> list[list[Any]] | None:
    try:
        inner = outer = _parameters(value, takes_self, follow_wrapped=True)
        if isinstance(value, (types.FunctionType, types.MethodType)):  # lru_cache's, in C, have none of their own
            outer = _parameters(value, takes_self, follow_wrapped=False)
    except (TypeError, ValueError):  # builtins that have none
        return None
    stars = {p.kind: p.name for p in outer if p.kind in _VARIADIC}
    if len(stars) < len(_VARIADIC) or len(outer) > len(stars):
        return [[p.name, int(p.kind), p.default is not p.empty] for p in outer]
    # A decorator's wrapper takes anything. The names of what it wraps are worth knowing, but only the pod can say
    # which arguments are wrong: the wrapper may add some, or give some itself.
    named = [p for p in inner if p.kind not in _VARIADIC]
    taken = {p.name for p in named}
    for kind, name in stars.items():
        while name in taken:
            name = f"_{name}"
        stars[kind] = name
    positional = [[p.name, int(p.kind), True] for p in named if p.kind is not p.KEYWORD_ONLY]
    only = [[p.name, int(p.kind), True] for p in named if p.kind is p.KEYWORD_ONLY]
    any_args, any_kwargs = ([stars[kind], int(kind), False] for kind in _VARIADIC)
    return [*positional, any_args, *only, any_kwargs]


def _fit(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Leave out what has no room: first the docstrings, the longest first, then the signatures."""
    size = len(json.dumps(rows))
    for key in ("doc", "sig"):
        for row in sorted(rows.values(), key=lambda r: -len(json.dumps(r[key]))):
            if size <= _INTERFACE_BYTES:
                return rows
            size -= len(json.dumps(row[key])) - len("null")
            row[key] = None
    return rows
