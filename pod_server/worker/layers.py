"""Layers: what each image step installs, in a virtual environment of its own over those of the steps before it.

A layer sees the packages of the layers below it, of the environment that this interpreter runs in, and of the system,
and writes to none of them. So steps can be undone by not using their layer, a worker that runs never sees a package
change under it, and a step that several services have in common is run once. A layer is whole when its mark is there;
who builds one that several services may share holds its lock, and so does, shared, every worker that uses one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import site
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Layer", "Layers", "base_sites"]

_MARK = "kubetorch-layer.json"
_BELOW = "kubetorch_below.pth"
#: Seconds after its last use when a layer that several services may share is removed.
_UNUSED = 30 * 24 * 3600.0
#: Seconds between two tries to be the one who builds a layer.
_PAUSE = 0.01
#: Changes when layers are built in another way.
_FORMAT = 1


def base_sites() -> list[str]:
    """Where the packages of this interpreter's own virtual environment are; none when it runs in none."""
    if sys.prefix == sys.base_prefix:
        return []
    return [path for path in site.getsitepackages([sys.prefix]) if os.path.isdir(path)]


def _nothing() -> None:
    pass


def _scheme() -> str:
    return "venv" if "venv" in sysconfig.get_scheme_names() else "posix_prefix"


@dataclass(frozen=True)
class Layer:
    """A virtual environment that is, or is to be, at `path`."""

    path: str

    @property
    def site(self) -> str:
        """Its site-packages."""
        return sysconfig.get_path("purelib", _scheme(), {"base": self.path, "platbase": self.path})

    @property
    def bin(self) -> str:
        """The folder of its programs."""
        return os.path.join(self.path, "bin")

    @property
    def python(self) -> str:
        """Its interpreter."""
        return os.path.join(self.bin, "python")

    @property
    def empty(self) -> bool:
        """Whether its step has installed nothing; then there is nothing else of it either."""
        return not os.path.exists(self.python)

    @property
    def complete(self) -> bool:
        """Whether its step has been run to the end."""
        return os.path.exists(os.path.join(self.path, _MARK))

    def make(self, below: Sequence[Layer]) -> None:
        """Build it anew, with nothing in it, over those `below` (the lowest first)."""
        import venv

        shutil.rmtree(self.path, ignore_errors=True)
        venv.EnvBuilder(system_site_packages=True, symlinks=True, with_pip=False).create(self.path)
        paths = [*(layer.site for layer in reversed(below)), *base_sites()]
        # In the layer's own interpreter only: a worker that has the layer on its path has the others too.
        with open(os.path.join(self.site, _BELOW), "w", encoding="utf-8") as f:
            f.write(f"import sys, site; sys.prefix == {self.path!r} and list(map(site.addsitedir, {paths!r}))\n")
        for name in ("pip", "pip3"):
            script = os.path.join(self.bin, name)
            with open(script, "w", encoding="utf-8") as f:
                f.write(f"#!/bin/sh\nexec '{self.python}' -m pip \"$@\"\n")
            os.chmod(script, 0o755)

    def finish(self, step: str) -> None:
        """Mark it as complete, and keep nothing but the mark where nothing was installed."""
        programs = {"pip", "pip3"} | {n for n in os.listdir(self.bin) if n.lower().startswith(("activate", "python"))}
        installed = [name for name in os.listdir(self.site) if name not in (_BELOW, "__pycache__")]
        if not installed and set(os.listdir(self.bin)) <= programs:
            shutil.rmtree(self.path)
            os.makedirs(self.path)
        temporary = os.path.join(self.path, f"{_MARK}.{os.getpid()}")
        with open(temporary, "w", encoding="utf-8") as f:
            json.dump({"step": step, "python": sys.version}, f)
        os.replace(temporary, os.path.join(self.path, _MARK))

    def discard(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)


class Layers:
    """The layers in one or two folders.

    Parameters
    ----------
    private
        The folder of those that belong to this service.
    shared
        The folder of those that every service of this user may use; None: there are no such.
    """

    def __init__(self, private: str, shared: str | None) -> None:
        self._private = private
        self._shared = shared
        base = [_FORMAT, sys.version, sys.prefix, sys.base_prefix, base_sites()]
        self._base = json.dumps(base)
        #: Descriptors of the locks of those that are in use here, by path.
        self._used: dict[str, int] = {}

    def layer(self, digest: str, shared: bool) -> Layer:
        """The layer of a step.

        Parameters
        ----------
        digest
            Of the step and all before it.
        shared
            Whether another service with the same steps may have the same layer.
        """
        folder = self._shared if shared and self._shared is not None else self._private
        name = hashlib.blake2b(f"{digest} {self._base}".encode(), digest_size=12).hexdigest()
        return Layer(os.path.join(folder, name))

    @contextlib.contextmanager
    def building(self, layer: Layer, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold a layer's lock, so that nobody else builds it; `waiting` is called when somebody else is at it.

        It may be complete then, since that one has ended.

        Raises
        ------
        OSError
            When its folder can't be written to.
        """
        folder = os.path.dirname(layer.path)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if folder != self._shared:
            yield  # a service's steps are run one after the other
            return
        self._prune(folder)
        fd = self._lock_to_build(layer, waiting)
        try:
            yield
        finally:
            os.close(fd)

    def use(self, layer: Layer) -> bool:
        """Keep a complete layer from being removed while this process lives; False when it isn't there (any more)."""
        if os.path.dirname(layer.path) != self._shared or layer.path in self._used:
            return layer.complete
        try:
            fd = self._lock(layer, fcntl.LOCK_SH, _nothing)
        except FileNotFoundError:
            return False
        if not layer.complete:
            os.close(fd)
            return False
        self._used[layer.path] = fd
        with contextlib.suppress(OSError):  # it goes a little earlier, then
            os.utime(os.path.join(layer.path, _MARK))
        return True

    def _lock_to_build(self, layer: Layer, waiting: Callable[[], None]) -> int:
        """The lock for who builds a layer, or for who uses it if it is complete by then.

        One that waits for the first only may wait for as long as another service lives, whose worker has got the second
        in the moment between.
        """
        while True:
            try:
                return self._lock(layer, fcntl.LOCK_EX, None)
            except BlockingIOError:
                fd = self._lock(layer, fcntl.LOCK_SH, waiting)  # until nobody builds it
            if layer.complete:
                return fd
            os.close(fd)
            waiting = _nothing
            time.sleep(_PAUSE)  # two who look may be in each other's way

    @staticmethod
    def _lock(layer: Layer, how: int, waiting: Callable[[], None] | None) -> int:
        """The descriptor of the locked file beside a layer; closing it gives the lock back.

        With nobody to tell of the ``waiting``, there is none: a lock that another has raises `BlockingIOError`.
        """
        path = f"{layer.path}.lock"
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                try:
                    fcntl.flock(fd, how | fcntl.LOCK_NB)
                except BlockingIOError:
                    if waiting is None:
                        raise
                    waiting()
                    fcntl.flock(fd, how)
                # Whoever removes an old layer removes the file too, under the lock: then this one is nobody's.
                if os.path.exists(path) and os.path.samestat(os.fstat(fd), os.stat(path)):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _prune(self, folder: str) -> None:
        """Remove the shared layers that nobody has used for a long time."""
        if folder != self._shared:
            return
        for name in os.listdir(folder):
            layer = Layer(os.path.join(folder, name))
            try:
                if os.stat(os.path.join(layer.path, _MARK)).st_mtime > time.time() - _UNUSED:
                    continue
                fd = os.open(f"{layer.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError:
                continue  # a lock, a layer that is being built, or another one was quicker
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                layer.discard()
                os.unlink(f"{layer.path}.lock")
            except OSError:
                pass  # a worker uses it
            finally:
                os.close(fd)
