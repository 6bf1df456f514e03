"""The services of this machine's user as files: who has which name, which processes, which GPUs.

The runtime directory has one directory for each service::

    service.json     what was asked for and by whom: written before the directory can be seen; replaced as a whole
                     when a redeploy to the same pod asks for something else
    token            the right to use it
    processes.json   front and zygote: pid and start time; written by the root zygote
    front.json       where the front listens; written by it when it accepts
    front.sock, front.log, spill/, bulk

A name is taken and given back under one lock of the whole runtime directory (``flock`` of the directory itself, held
for milliseconds), and a service's directory appears complete, by a rename. Whether a service lives is never read
from a file: its processes are looked at. All functions here block for a short time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pod_server import processes

from ..config import config
from ..errors import DeployError, StartupError

__all__ = [
    "Record",
    "amend",
    "bulk_dir",
    "bulk_prefix",
    "claim",
    "discard_empty",
    "read",
    "read_all",
    "remove",
    "runtime_dir",
]

#: The longest path that a Unix socket can have (108 bytes with the zero, unix(7); 104 on macOS).
_SOCKET_PATH = 103
#: Room that a runtime directory in memory must have for logs that spill and payloads on their way, in bytes.
_ROOM = 4 << 30
#: The same for payloads in shared memory, free at the moment.
_SHM_ROOM = 1 << 30
#: After so many seconds nobody is still removing what was put aside.
_ABANDONED = 60.0


@dataclass(frozen=True)
class Record:
    """What the files say of one service.

    ``path`` is the directory under its name, ``dir`` the real one (the same unless that path is too long for a socket).
    """

    name: str
    path: Path
    dir: Path
    service: Mapping[str, Any]
    front: tuple[int, int] | None
    zygote: tuple[int, int] | None
    said: Mapping[str, Any]

    @property
    def incarnation(self) -> str:
        """The name of this pod's life."""
        return str(self.service.get("incarnation", ""))

    @property
    def deployer(self) -> tuple[int, int]:
        """``(pid, start)`` of the process that deploys it or did."""
        pid, start = self.service["deployer"]
        return int(pid), int(start)

    @property
    def also(self) -> list[str]:
        """Directories elsewhere that belong to it."""
        return [str(path) for path in self.service.get("also", [])]

    @property
    def living(self) -> list[tuple[int, int]]:
        """Those of its two processes that live."""
        return [p for p in (self.front, self.zygote) if p is not None and processes.is_alive(*p)]

    @property
    def state(self) -> str:
        """``"running"``, ``"starting"``, ``"ending"``, ``"dead"``; ``"foreign"``: another machine's, we can't tell."""
        here, there = processes.machine(), self.service["machine"]
        if there["host"] != here["host"] or (there["boot"] == here["boot"] and there["pids"] != here["pids"]):
            return "foreign"
        if there["boot"] != here["boot"]:
            return "dead"
        front, zygote = (p is not None and processes.is_alive(*p) for p in (self.front, self.zygote))
        if front:
            return "running" if self.said.get("url") else "starting"
        if zygote:
            return "ending"
        return "starting" if self.front is None and processes.is_alive(*self.deployer) else "dead"

    @property
    def url(self) -> str:
        """Where its front listens."""
        return str(self.said.get("url", ""))

    def token(self) -> str:
        """The right to use it, from its file."""
        return (self.dir / "token").read_text(encoding="ascii").strip()


def runtime_dir(*, create: bool = True) -> Path:
    """The directory of this user's services.

    Raises
    ------
    StartupError
        When it can't be made or isn't this user's alone.
    """
    given = config.runtime_dir
    if given is not None:
        path = Path(given).expanduser().absolute()
    else:
        path = _session_dir() or Path(tempfile.gettempdir()) / f"kubetorch-{os.getuid()}"
    if create:
        try:
            path.mkdir(mode=0o700, parents=given is not None, exist_ok=True)
        except OSError as e:
            raise _unusable(path, e.strerror or str(e)) from e
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return path
    # A directory in /tmp that somebody else made before us would let them put their sockets in our place.
    if stat.S_ISLNK(found.st_mode) and given is None:
        raise _unusable(path, "it is a symbolic link")
    found = os.stat(path)
    if found.st_uid != os.getuid():
        raise _unusable(path, f"it belongs to user {found.st_uid}")
    if given is None and found.st_mode & 0o077:
        os.chmod(path, 0o700)
    return path


def _unusable(path: Path, why: str) -> StartupError:
    return StartupError(
        f"local services need the folder {path}, and it can't be used: {why}. "
        "Name another with KT_RUNTIME_DIR (or config.runtime_dir).",
        reason="RuntimeDir",
    )


def _session_dir() -> Path | None:
    """``$XDG_RUNTIME_DIR/kubetorch`` if it is there and can hold what pods write."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if not base or not os.access(base, os.W_OK):
        return None
    # By its size, not by what is free just now: every process of this user must come to the same answer.
    room = os.statvfs(base)
    return Path(base) / "kubetorch" if room.f_blocks * room.f_frsize >= _ROOM else None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        # Not there yet, or no longer; or cut short by a full disk.
        return {}
    return found if isinstance(found, dict) else {}


def read(name: str, runtime: Path | None = None) -> Record | None:
    """The record of that name, whether it lives or not; None when there is none."""
    path = (runtime or runtime_dir(create=False)) / name
    real = Path(os.path.realpath(path)) if path.is_symlink() else path
    service = _json(real / "service.json")
    if "machine" not in service:
        return None
    named = _json(real / "processes.json")
    front, zygote = (tuple(named[key]) if key in named else None for key in ("front", "zygote"))
    return Record(name, path, real, service, front, zygote, _json(real / "front.json"))


def read_all(runtime: Path | None = None) -> list[Record]:
    """All records, the dead ones too, by name."""
    runtime = runtime or runtime_dir(create=False)
    try:
        names = sorted(entry.name for entry in os.scandir(runtime) if not entry.name.startswith("."))
    except FileNotFoundError:
        return []
    return [record for name in names if (record := read(name, runtime)) is not None]


@contextmanager
def _locked(runtime: Path) -> Iterator[None]:
    fd = os.open(runtime, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            if not os.path.samestat(os.fstat(fd), os.stat(runtime)):
                raise FileNotFoundError(errno.ENOENT, "it was removed and made again", str(runtime))
            yield
        finally:
            # Said rather than left to close(): a process forked meanwhile has the descriptor too, and with it the lock.
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def claim(name: str, describe: Callable[[Mapping[str, str]], dict[str, Any]]) -> tuple[Record, bool]:
    """Take a name, or say who has it.

    Parameters
    ----------
    name
        The service's name.
    describe
        Called under the lock with the devices that are held (device to service); gives what goes into ``service.json``.

    Returns
    -------
    (Record, bool)
        The record, and whether it was made now.

    Raises
    ------
    StartupError
        When the directory can't be written.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return _claim(runtime_dir(), name, describe)
        except OSError as e:
            # A pod that ended removed the runtime directory, empty as it was, under our hands.
            if e.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST) or attempt == _ATTEMPTS - 1:
                discard_empty(runtime_dir(create=False))
                todo = "make room there" if e.errno in _FULL else "check its rights"
                raise StartupError(
                    f'service "{name}" can\'t be written to {runtime_dir(create=False)}: {e.strerror or e}; '
                    f"{todo}, or name another folder with KT_RUNTIME_DIR",
                    service=name,
                    reason="RuntimeDir",
                ) from e
    raise AssertionError("unreachable")


_ATTEMPTS = 10
_FULL = {errno.ENOSPC, errno.EDQUOT}


def discard_empty(runtime: Path) -> None:
    """Remove the runtime directory if nothing is in it, as a pod's end does."""
    with contextlib.suppress(OSError):  # something is in it, or it isn't ours to remove
        os.rmdir(runtime)


def _claim(runtime: Path, name: str, describe: Callable[[Mapping[str, str]], dict[str, Any]]) -> tuple[Record, bool]:
    live = read(name, runtime)
    if live is not None and live.state == "running":
        # The most frequent case, a redeploy, changes nothing here: no lock, and no look at all the other services.
        return live, False
    aside: list[Path] = []
    try:
        with _locked(runtime):
            held: dict[str, str] = {}
            found: Record | None = None
            for record in read_all(runtime):
                if record.state == "dead":
                    aside += _put_aside(record)
                elif record.name == name:
                    found = record
                else:
                    held.update(dict.fromkeys(record.service.get("devices", []), record.name))
            aside += _abandoned(runtime)
            if found is not None:
                return found, False
            if os.path.lexists(runtime / name):
                _rename_aside(runtime / name, aside)  # no record in it: not a service's, or cut short by a full disk
            _make(runtime, name, describe(held))
    finally:
        for path in aside:
            shutil.rmtree(path, ignore_errors=True)
    made = read(name, runtime)
    if made is None:
        raise StartupError(f'service "{name}" was removed from {runtime} while it was deployed', service=name)
    return made, True


def _make(runtime: Path, name: str, service: dict[str, Any]) -> None:
    """Make the directory with its first files; it appears whole."""
    path = runtime / name
    too_long = len(os.fsencode(path / "front.sock")) > _SOCKET_PATH
    parent = Path(tempfile.gettempdir()) if too_long else runtime
    pid, start = processes.this_process()
    prefix = f"kt-{os.getuid()}-" if too_long else f".new-{pid}-{start}-"
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        _write(temporary / "token", secrets.token_hex(32))
        _write(temporary / "service.json", json.dumps({**service, "name": name, "created": time.time()}))
        if too_long:
            os.symlink(temporary, path)
        else:
            os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def amend(record: Record, said: Mapping[str, Any]) -> None:
    """Put into ``service.json`` what is different since a redeploy; nothing when that pod has ended meanwhile."""
    runtime = record.path.parent
    with contextlib.suppress(FileNotFoundError), _locked(runtime):
        now = read(record.name, runtime)
        if now is None or now.incarnation != record.incarnation:
            return
        pid, start = processes.this_process()
        beside = Path(tempfile.mkdtemp(prefix=f".new-{pid}-{start}-", dir=now.dir.parent))
        try:
            _write(beside / "service.json", json.dumps({**now.service, **said}))
            os.replace(beside / "service.json", now.dir / "service.json")
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w", encoding="utf-8") as f:
        f.write(text)


def _rename_aside(path: Path, aside: list[Path]) -> None:
    target = path.with_name(f".gone-{secrets.token_hex(6)}")
    try:
        os.rename(path, target)
    except FileNotFoundError:
        return  # its own processes were quicker
    if target.is_symlink():
        target.unlink()
    else:
        aside.append(target)


def _put_aside(record: Record) -> list[Path]:
    """Give a dead service's name free; what is to be removed afterwards."""
    aside: list[Path] = []
    _rename_aside(record.path, aside)
    if record.dir != record.path:
        aside.append(record.dir)
    return [*aside, *map(Path, record.also)]


def _abandoned(runtime: Path) -> list[Path]:
    """What processes left that were killed while they made or removed a service."""
    out: list[Path] = []
    for entry in os.scandir(runtime):
        if entry.name.startswith(".gone-"):
            # Its ctime is when it was put aside; a younger one is being removed by somebody else.
            if time.time() - entry.stat(follow_symlinks=False).st_ctime > _ABANDONED:
                out.append(Path(entry.path))
        elif entry.name.startswith(".new-"):
            pid, start = (int(part) for part in entry.name.split("-")[1:3])
            if not processes.is_alive(pid, start):
                out.append(Path(entry.path))
        elif entry.is_symlink() and not os.path.exists(entry.path):
            os.unlink(entry.path)
    return out


def remove(record: Record) -> None:
    """Remove a service's files, if they are still this one's; its processes must have ended.

    Raises
    ------
    DeployError
        When something can't be removed.
    """
    runtime = record.path.parent
    aside = [Path(path) for path in record.also]
    try:
        with _locked(runtime):
            now = read(record.name, runtime)
            if now is not None and now.incarnation == record.incarnation:
                aside += _put_aside(now)
            elif record.path.is_symlink() and not record.path.exists():
                record.path.unlink()
    except FileNotFoundError:
        pass  # the pod was the last one here, and took the runtime directory with it
    problems: list[str] = []
    for path in aside:
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            continue  # the pod removed it itself
        except OSError as e:
            problems.append(f"{path}: {e.strerror or e}")
    discard_empty(runtime)
    if problems:
        raise DeployError(
            f'service "{record.name}" has ended, but not all of its files could be removed: {"; ".join(problems)}',
            service=record.name,
        )


def bulk_prefix(runtime: Path) -> str:
    """What the names of that runtime directory's services begin with in shared memory."""
    return f"kt-{os.getuid()}-{hashlib.blake2b(os.fsencode(runtime), digest_size=4).hexdigest()}-"


def bulk_dir(name: str, incarnation: str) -> str | None:
    """A directory in shared memory for a pod's large payloads; None where that has no room (a container's 64 MiB)."""
    try:
        room = os.statvfs("/dev/shm")
    except OSError:
        return None
    if room.f_bavail * room.f_frsize < _SHM_ROOM or not os.access("/dev/shm", os.W_OK):
        return None
    return f"/dev/shm/{bulk_prefix(runtime_dir())}{name}-{incarnation}"
