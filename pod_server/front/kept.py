"""The code that outlives a process: what a front that comes anew in its pod, or in a new pod, begins with.

There are two places for it: the file that the client has put into the service's Secret, and the front's own copy in the
service directory, which knows of every LOAD. The newer one counts.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

from ..codefile import CodeFile, CodeFileError, pack, unpack
from ..wire import INLINE_LIMIT
from .faults import Violation
from .worker import Code, check_load

if TYPE_CHECKING:
    from .pod import Pod

__all__ = ["Kept"]

_log = logging.getLogger(__name__)


class Kept:
    """Keeps the code of a pod, and finds it again.

    Parameters
    ----------
    pod
        What it belongs to.
    """

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self._dir = os.path.join(pod.params.dir, "kept")
        self._payload: str | None = None
        #: The size of code that had no room in the Secret, when this pod has begun without any.
        self.missing: int | None = None

    def save(self, code: Code) -> None:
        """Keep code that has been loaded; nothing happens in a pod whose front can't come again."""
        if not self._pod.params.containers:
            return
        meta = {"deployed_at": time.time(), **code.meta}
        before, self._payload = self._payload, None
        try:
            os.makedirs(self._dir, mode=0o700, exist_ok=True)
            if code.file is not None:
                # Another name for the file that the front has anyway: it may have gigabytes.
                self._payload = meta["kept"] = f"payload-{os.urandom(4).hex()}"
                os.link(os.path.realpath(self._pod.bulk.path(code.file)), os.path.join(self._dir, self._payload))
            _write(os.path.join(self._dir, "code"), pack(meta, code.buffers, None) or b"")
        except OSError as e:
            # It runs all the same, and the Secret may have it.
            _log.error("the code can't be kept for a restart of the front: %s", e)
        if before is not None:
            _unlink(os.path.join(self._dir, before))

    def begin(self) -> None:
        """Load what has been kept, if there is any, as if a worker with it had died."""
        found = [f for f in (self._own(), self._given()) if f is not None]
        if not found:
            return
        newest = max(found, key=lambda f: f.deployed_at)
        if newest.missing is not None:
            self.missing = newest.missing
            _log.warning("the code of this service had no room in its Secret, and this pod has no copy of it")
            return
        try:
            code = self._code(newest)
        except OSError as e:
            _log.error("the code that was kept can't be used: %s", e)
            return
        self._pod.supervisor.restore(code)

    def refusal(self) -> dict[str, Any]:
        """Why there is no code that could be called, an ``error`` object."""
        name = self._pod.params.name
        if self.missing is None:
            text = f'service "{name}" has no code yet; deploy it with .to(...)'
        else:
            text = (
                f'service "{name}" runs in a new pod, and its code ({self.missing / 1e6:.1f} MB) was too large to be '
                "kept beside it (0.9 MB have room): who has it must send it again, with .to(...). Code that loads its "
                "data in the pod, instead of bringing it along, comes back by itself"
            )
        return {"type": "NotDeployedError", "message": text}

    def _own(self) -> CodeFile | None:
        found = _read(os.path.join(self._dir, "code"))
        if found is not None:
            self._payload = found.meta.get("kept")
        return found

    def _given(self) -> CodeFile | None:
        path = self._pod.params.code_file
        return _read(path) if path is not None else None

    def _code(self, found: CodeFile) -> Code:
        meta, buffers = dict(found.meta), found.buffers
        kept = meta.pop("kept", None)
        if kept is not None:
            return Code(meta, [], self._pod.bulk.take(os.path.join(self._dir, os.path.basename(kept))))
        if sum(map(len, buffers)) + 4 * len(buffers) <= INLINE_LIMIT:
            return Code(meta, buffers, None)
        meta["lens"] = [len(b) for b in buffers]
        return Code(meta, [], self._pod.bulk.write(b"".join(buffers)))


def _read(path: str) -> CodeFile | None:
    """A code file that may be loaded; None, with a line in the log, when there is none."""
    try:
        with open(path, "rb") as f:
            found = unpack(f.read())
        check_load(found.meta)
    except FileNotFoundError:
        return None
    except (OSError, CodeFileError, Violation) as e:
        _log.error("%s can't be used: %s", path, getattr(e, "reason", e))
        return None
    return found


def _write(path: str, data: bytes) -> None:
    """Write a file that is there whole or as it was."""
    part = f"{path}.part"
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as f:
        f.write(data)
    os.replace(part, path)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # somebody has cleared the directory
