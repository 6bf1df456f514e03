"""Code from the client: checked, unpacked, unpickled, and, for a class, constructed."""

from __future__ import annotations

import functools
import gc
import hashlib
import importlib
import inspect
import io
import json
import linecache
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any

import cloudpickle

from .. import loggers, serialization
from ..by_source import Space
from .calls import CallError

__all__ = ["Code", "Loader"]

Buffer = bytes | bytearray | memoryview

#: Packages whose name is not that of their module.
_PACKAGES = {
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "fitz": "pymupdf",
    "google": "google-cloud",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


class Code:
    """A loaded function, or an instance of a loaded class.

    Parameters
    ----------
    kind
        ``"fn"`` or ``"cls"``.
    target
        The function or the instance.
    name
        For messages.
    """

    def __init__(self, kind: str, target: Any, name: str) -> None:
        self.kind = kind
        self.target = target
        self.name = name
        self._async: dict[str | None, bool] = {}

    def function(self, method: str | None) -> Any:
        """What a call of this method (None: of the function itself) calls.

        Raises
        ------
        AttributeError
            When there is no such method.
        """
        if self.kind == "cls" and method is not None:
            function = getattr(self.target, method)
            if not callable(function):
                raise AttributeError(
                    f"{self.name}.{method} is a {type(function).__name__} and can't be called; "
                    "add a method that returns it"
                )
            return function
        if (
            self.kind == "fn"
            and method is not None
            and method != self.name
            and method != getattr(self.target, "__name__", None)
        ):
            raise AttributeError(f"{self.name} is a function and has no method {method!r}")
        return self.target

    def is_async(self, method: str | None) -> bool:
        """Whether calls of this method run on the event loop."""
        try:
            return self._async[method]
        except KeyError:
            pass
        try:
            # From the class: a property is not to be computed only to look at it.
            if self.kind == "cls" and method is not None:
                function: Any = inspect.getattr_static(self.target, method)
                if isinstance(function, (staticmethod, classmethod)):
                    function = function.__func__
            else:
                function = self.target
        except AttributeError:
            return False  # the call will say so
        found = self._async[method] = is_coroutine_function(function)
        return found


def is_coroutine_function(function: Any) -> bool:
    """Whether a call of it gives something that the event loop has to run.

    Examples
    --------
    >>> is_coroutine_function(len)
    False
    """
    # An object may be callable by a coroutine function of its class.
    by_class = inspect.getattr_static(type(function), "__call__", None)
    return any(inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for f in (function, by_class))


class Loader:
    """Makes `Code` of the payload of LOAD frames.

    Parameters
    ----------
    directory
        Where modules are unpacked.
    """

    def __init__(self, directory: str) -> None:
        self._directory = os.path.join(directory, "code")
        self._path: str | None = None
        self._code: Code | None = None
        #: What of ``__main__`` the code that was loaded last has put there.
        self._named: dict[str, Any] = {}

    def drop(self) -> None:
        """Let go of the instance that was loaded last, and of what only it refers to."""
        self._code = None
        gc.collect()

    def load(self, meta: dict[str, Any], buffers: Sequence[Buffer]) -> Code:
        """Make the code that a LOAD frame brings.

        Raises
        ------
        CallError
            When versions don't fit or the payload is damaged.
        BaseException
            Whatever the user's code raises when it is imported or constructed.
        """
        if len(buffers) < 4:
            raise CallError("StartupError", f"the code came in {len(buffers)} parts and has at least 4")
        name = str(meta.get("name") or "the code")
        try:
            header = json.loads(bytes(buffers[0]))
            sources = json.loads(bytes(buffers[1]) or b"{}")
        except ValueError as e:
            raise CallError("StartupError", f"the header of the code can't be read: {e}") from e
        check_versions(meta, header.get("how") == "source")
        self._unpack(buffers[2])
        _remember_sources(sources)
        loggers.set_up(meta.get("logging"))
        try:
            _set_up(meta.get("setup") or ())
            by_source = header.get("how") == "source"
            space = Space() if by_source else None
            target, init_args = _unpickle(buffers[3:], space)
            self._name_in_main(target, space)
            serialization.set_foreign(by_source)
            if meta.get("kind") == "cls":
                target = _construct(target, init_args)
        except ModuleNotFoundError as e:
            raise _missing(e, name) from e
        self._code = Code(meta.get("kind") or "fn", target, name)
        return self._code

    def _name_in_main(self, target: Any, space: Space | None) -> None:
        """Let pickle find the notebook's functions and classes by their names, as it does in the notebook.

        ``pickle.dumps(model)``, ``torch.save`` and ``multiprocessing.Pool.map(function, ...)`` need that.
        """
        main = vars(sys.modules["__main__"])
        for name, value in self._named.items():
            if main.get(name) is value:  # not what the user's code has put there since
                del main[name]
        self._named = notebook_definitions(target, space.main() if space is not None else {})
        main.update(self._named)

    def _unpack(self, data: Buffer) -> None:
        """Put the user's modules on the path, before everything else."""
        if not len(data):
            return
        path = os.path.join(self._directory, hashlib.sha256(data).hexdigest()[:32])
        if not os.path.isdir(path):
            # Unpacked beside and renamed, so that a directory of that name is always whole.
            part = f"{path}.{os.getpid()}"
            try:
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    archive.extractall(part)
                os.rename(part, path)
            except (OSError, zipfile.BadZipFile) as e:
                shutil.rmtree(part, ignore_errors=True)
                if not os.path.isdir(path):
                    raise CallError(
                        "StartupError", f"the local modules can't be unpacked in {self._directory}: {e}"
                    ) from e
        if self._path is not None and self._path in sys.path:
            sys.path.remove(self._path)
        self._path = path
        sys.path.insert(0, path)
        importlib.invalidate_caches()


def check_versions(meta: dict[str, Any], by_source: bool = False) -> None:
    """Compare what must agree before anything is unpickled.

    Bytecode is good for its own minor version only: another one loads it without complaint and misbehaves.
    """
    client, pod = meta.get("python"), "{}.{}".format(*sys.version_info)
    if client and client != pod and not by_source:
        raise CallError(
            "VersionMismatchError",
            f"Python differs: {client} here, {pod} in the pod. Functions can't travel between minor versions; "
            f'use an image with Python {client}, for example Image(image_id="python:{client}-slim").',
            what="python",
            client=client,
            pod=pod,
        )
    client, pod = meta.get("cloudpickle"), cloudpickle.__version__
    if client and client.split(".")[0] != pod.split(".")[0]:
        raise CallError(
            "VersionMismatchError",
            f"cloudpickle differs: {client} here, {pod} in the pod, and they can't read each other's pickles. "
            f'Add Image().pip_install(["cloudpickle=={client}"]).',
            what="cloudpickle",
            client=client,
            pod=pod,
        )


def notebook_definitions(target: Any, namespace: Mapping[str, Any] = {}) -> dict[str, Any]:
    """The functions and classes of ``__main__`` that came with what was deployed, by their names.

    Examples
    --------
    >>> notebook_definitions(len)
    {}
    """
    while isinstance(target, functools.partial):
        target = target.func
    if isinstance(target, MethodType):
        target = target.__self__
    if not isinstance(target, (type, FunctionType)):
        target = type(target)
    classes = [c for c in inspect.getmro(target) if c.__module__ == "__main__"] if isinstance(target, type) else []
    found: dict[str, Any] = {**namespace, **{c.__qualname__: c for c in (*classes, target)}}
    # All that came by value has one namespace; each of its functions knows it.
    for member in (target, *(m for c in classes for m in vars(c).values())):
        function = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
        while isinstance(function, FunctionType):
            if function.__globals__.get("__name__") == "__main__":
                found.update(function.__globals__)
            function = getattr(function, "__wrapped__", None)
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, (type, FunctionType)) and value.__module__ == "__main__" and name == value.__qualname__
    }


def _remember_sources(sources: dict[str, str]) -> None:
    """Let tracebacks and `inspect.getsource` find the text of cells, which are in no file here."""
    for name, text in sources.items():
        # Without a time of modification an entry is never checked against a file.
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)


def _set_up(hooks: Sequence[str]) -> None:
    """Call what the client wants called in each process of its code, ``module:function``: what it did to its own."""
    if sys.version_info < (3, 11):
        return  # they are the client package's, which needs a newer Python; who imports it here hears of that
    for hook in hooks:
        module, _, function = hook.partition(":")
        try:
            imported = importlib.import_module(module)
        except ImportError:  # a client that doesn't run on this Python; code that imports it will be told
            continue
        getattr(imported, function)()


def _unpickle(buffers: Sequence[Buffer], space: Space | None) -> tuple[Any, Any]:
    """The callable and ``init_args``; made in ``space`` if it came by its source."""
    try:
        target, init_args = serialization.load_code(buffers, space)
    except serialization.DecodeError as e:
        cause = e.__cause__
        if space is not None and isinstance(cause, SyntaxError):
            raise _new_syntax(cause) from cause
        if cause is not None and not isinstance(cause, (pickle.UnpicklingError, EOFError)):
            raise cause from None  # what the user's own module raised while it was imported, with its traceback
        raise CallError("StartupError", f"the code can't be unpickled in the pod: {e}") from e
    return target, init_args


def _new_syntax(e: SyntaxError) -> CallError:
    pod = "{}.{}".format(*sys.version_info)
    where = f"line {e.lineno} of {os.path.basename(e.filename or 'a cell')}"
    return CallError(
        "VersionMismatchError",
        f"Python {pod}, which the pod has, doesn't know the syntax of {where} ({e.msg}): {(e.text or '').strip()}. "
        "Write it as that version does, or use an image with the client's Python.",
        what="python",
        pod=pod,
    )


def _construct(target: Any, init_args: Any) -> Any:
    """An instance; a dict is keyword arguments, as Kubetorch has it."""
    if init_args is None:
        return target()
    if isinstance(init_args, dict):
        return target(**init_args)
    return target(*init_args)


def _missing(e: ModuleNotFoundError, name: str) -> ModuleNotFoundError:
    """The same error, with what to do about it."""
    module = e.name or ""
    top = module.partition(".")[0]
    package = _PACKAGES.get(top, top)
    error = ModuleNotFoundError(
        f"{e.msg}: {name} needs it and the pod doesn't have it. Add it with "
        f'Image().pip_install(["{package}"]), or install it in the environment that the pod runs in.',
        name=e.name,
        path=e.path,
    )
    return error
