"""What travels of an `Image`: the plan of its steps, each with a digest, and the files that they bring.

The pod runs the plan (``pod_server.worker.steps``), from the first step on that it hasn't run. A step's digest is of
itself, of the files that it brings and of all steps before it, as with the layers of a Dockerfile.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
import weakref
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from . import sources
from .errors import ConfigError
from .image import Image, Step
from .values import readable_size

__all__ = ["FILES_LIMIT", "PackedSteps", "pack_steps"]

#: One step may bring that many bytes; above the second it is said to be large.
FILES_LIMIT = 1 << 30
_WARNING = 100 << 20
#: Steps that bring files; each of their digests is part of a small frame.
_MOST = 300
_EPOCH = (1980, 1, 1, 0, 0, 0)
#: User and password in an address of an index or a repository.
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


class Files:
    """What one step brings, as a zip.

    Parameters
    ----------
    members
        Path in the zip, and the file; None for an empty folder.
    shown
        The step, for messages.
    """

    def __init__(self, members: Mapping[str, str | None], shown: str) -> None:
        digest = hashlib.blake2b(digest_size=16)
        out = io.BytesIO()
        self.size = 0
        try:
            with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z:
                for inside, path in sorted(members.items()):
                    info = zipfile.ZipInfo(inside if path is not None else f"{inside}/", _EPOCH)
                    data = b"" if path is None else Path(path).read_bytes()
                    mode = 0o755 if path is None or os.access(path, os.X_OK) else 0o644
                    self.size += len(data)
                    digest.update(f"{info.filename}\0{mode}\0{len(data)}\0".encode("utf-8", "surrogateescape"))
                    digest.update(data)
                    info.compress_type = zipfile.ZIP_DEFLATED
                    info.external_attr = mode << 16
                    z.writestr(info, data)
        except OSError as e:
            raise ConfigError(f"{shown}: a file can't be read: {e}") from None
        self.data = out.getvalue()
        self.digest = digest.hexdigest()


@dataclass(frozen=True)
class PackedSteps:
    """The steps of an image, ready to travel.

    Parameters
    ----------
    plan
        For the pod, as JSON.
    files
        What the steps bring, by digest.
    warnings
        Lines for people.
    """

    plan: dict[str, Any]
    files: dict[str, Files] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Of all of it; another one for each deploy where a step runs at each."""
        return str(self.plan["digest"])

    @property
    def only_env(self) -> bool:
        """Whether all that they do is to set variables."""
        return all(step["kind"] == "env" for step in self.plan["steps"])

    def load(
        self, have: Collection[str], keep: Collection[str], cache: str | None, local: bool
    ) -> tuple[dict[str, Any], list[bytes]]:
        """What a LOAD says of it, and its last buffers.

        Parameters
        ----------
        have
            Digests of files that the pod has.
        keep
            Variables that the steps don't change.
        cache
            A folder for what services of this machine share.
        local
            The pod is one of this machine.
        """
        sent = {digest: files for digest, files in self.files.items() if digest not in have}
        plan = {**self.plan, "sent": list(sent), "keep": sorted(keep), "cache": cache, "local": local}
        if not local:
            plan["before"] = None  # the pod's own environment is the one that they are added to
        buffers = [json.dumps(plan).encode(), *(files.data for files in sent.values())]
        return {"n": len(buffers), "files": list(self.files)}, buffers


def pack_steps(image: Image | None) -> PackedSteps | None:
    """The steps of an image as they are now, with the files that they bring; None when there are none.

    Raises
    ------
    ConfigError
        When a file that a step brings isn't there, can't be read or is too large.

    Examples
    --------
    >>> pack_steps(Image("mine")) is None
    True
    >>> [step["shown"] for step in pack_steps(Image().run_bash("make")).plan["steps"]]
    ['run_bash("make")']
    """
    if image is None or not image.steps:
        return None
    steps: list[dict[str, Any]] = []
    files: dict[str, Files] = {}
    warnings: list[str] = []
    chain = hashlib.blake2b(json.dumps([1, image.install_cmd, sys.version_info[:2]]).encode(), digest_size=16)
    for step in image.steps:
        row: dict[str, Any] = {"kind": step.kind, "text": step.text, "shown": _shown(step)}
        if step.kind == "env":
            row["env"] = dict(step.env)
        elif step.kind in ("copy", "sync"):
            brought, more = _copied(step) if step.kind == "copy" else _synced(step)
            row.update(more, files=brought.digest)
            files[brought.digest] = brought
            if brought.size > _WARNING:
                warnings.append(f"{row['shown']} brings {readable_size(brought.size)}; a kt.Volume is better for much")
        chain.update(json.dumps(row, sort_keys=True).encode())
        row["digest"] = row["run"] = chain.hexdigest()
        if step.force:
            row["force"] = True
            row["run"] = f"{row['digest']}-{os.urandom(6).hex()}"
        steps.append(row)
    if len(files) > _MOST:
        raise ConfigError(f"{len(files)} steps of the image bring files, and {_MOST} may: copy folders, not files")
    whole = hashlib.blake2b(" ".join(row["run"] for row in steps).encode(), digest_size=16).hexdigest()
    names = {name for step in image.steps for name in step.env}
    before = {name: os.environ.get(name) for name in sorted(names)}
    plan = {"digest": whole, "steps": steps, "install_cmd": image.install_cmd, "before": before}
    return PackedSteps(plan, files, tuple(warnings))


def _shown(step: Step) -> str:
    """A step as the user wrote it, without the passwords of addresses."""

    def quoted(text: str) -> str:
        return json.dumps(_CREDENTIALS.sub("…@", text), ensure_ascii=False)

    if step.kind == "copy":
        dest = f", {quoted(step.dest)}" if step.dest is not None else ""
        return f"copy({quoted(step.text)}{dest}{', contents=True' if step.contents else ''})"
    names = {"pip": "pip_install", "bash": "run_bash", "sync": "sync_package", "env": "set_env_vars"}
    return f"{names[step.kind]}({quoted(step.text)})"


# -- files -------------------------------------------------------------------------------------------------------------

#: Zips that some handle still has, by what was looked at: so that a deploy of unchanged files packs nothing.
_known: weakref.WeakValueDictionary[Any, Files] = weakref.WeakValueDictionary()


def _pack(members: Mapping[str, str | None], shown: str) -> Files:
    seen: list[tuple[Any, ...]] = []
    total = 0
    for inside, path in sorted(members.items()):
        if path is None:
            seen.append((inside,))
            continue
        try:
            stat = os.stat(path)
        except OSError as e:
            raise ConfigError(f"{shown}: a file can't be read: {e}") from None
        total += stat.st_size
        seen.append((inside, path, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_mode, stat.st_ino))
    if total > FILES_LIMIT:
        raise ConfigError(
            f"{shown} would bring {readable_size(total)}, and a step may bring {readable_size(FILES_LIMIT)}: "
            "use a kt.Volume, or fetch it in the pod by run_bash(...)"
        )
    key = tuple(seen)
    found = _known.get(key)
    if found is None:
        found = _known[key] = Files(members, shown)
    return found


def _copied(step: Step) -> tuple[Files, dict[str, Any]]:
    source = os.path.abspath(os.path.expanduser(step.text))
    name = os.path.basename(source)
    if not os.path.exists(source):
        raise ConfigError(f"{_shown(step)}: there is no file or folder {source}")
    folder = os.path.isdir(source)
    if step.contents and not folder:
        raise ConfigError(f"{_shown(step)}: contents= is for folders, and {source} is a file")
    dest = step.dest
    into, called = ".", name
    if step.contents:
        into, called = dest or ".", ""
    elif dest is not None and (dest.endswith("/") or dest in (".", "..")):
        into = dest
    elif dest is not None:
        into, called = os.path.dirname(dest) or ".", os.path.basename(dest)
    members = dict(_walk(source, called)) if folder else {called: source}
    return _pack(members, _shown(step)), {"into": into, "name": name}


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, str | None]]:
    """Every file of a folder, and the folders that have none, by the path below ``prefix``."""
    seen: set[tuple[int, int]] = set()
    for here, dirs, names in os.walk(folder, followlinks=True):
        stat = os.stat(here)
        if (stat.st_dev, stat.st_ino) in seen:  # a link to a folder above
            dirs.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        dirs.sort()
        below = os.path.normpath(os.path.join(prefix, os.path.relpath(here, folder)))
        files = [name for name in sorted(names) if os.path.isfile(os.path.join(here, name))]
        for name in files:
            yield os.path.normpath(os.path.join(below, name)), os.path.join(here, name)
        if not files and not dirs and below != ".":
            yield below, None


def _synced(step: Step) -> tuple[Files, dict[str, Any]]:
    given = os.path.abspath(os.path.expanduser(step.text))
    if os.path.isdir(given):
        return _package(step, given)
    module = sources.find_module(step.text) if re.fullmatch(r"[\w.]+", step.text) else None
    if module is not None:
        members: dict[str, str | None] = {}
        for path in module.paths:
            if os.path.isdir(path):
                members.update((f"{module.name}/{inside}", file) for inside, file in sources.walk(path))
            else:
                members[os.path.basename(path)] = path
        return _pack(members, _shown(step)), {"path": ["."]}
    project = _editable(step.text)
    if project is None:
        raise ConfigError(
            f"{_shown(step)}: there is no folder {given}, and no package of that name that is installed as editable or "
            "is part of this project; packages of an index are for pip_install"
        )
    return _package(step, project)


def _package(step: Step, folder: str) -> tuple[Files, dict[str, Any]]:
    """A package's own folder, or that of a project that has packages, perhaps below ``src``."""
    name = os.path.basename(folder)
    members: dict[str, str | None] = {f"{name}/{inside}": file for inside, file in sources.walk(folder)}
    if not members:
        raise ConfigError(f"{_shown(step)}: there is nothing in {folder}")
    if os.path.exists(os.path.join(folder, "__init__.py")):
        path = ["."]
    else:
        path = [f"{name}/src", name] if os.path.isdir(os.path.join(folder, "src")) else [name]
    return _pack(members, _shown(step)), {"path": path}


def _editable(name: str) -> str | None:
    """The project's folder of an editable install."""
    try:
        told = json.loads(metadata.distribution(name).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return None
    url = urlparse(str(told.get("url", "")))
    if not told.get("dir_info", {}).get("editable") or url.scheme != "file":
        return None
    path = unquote(url.path)
    return path if os.path.isdir(path) else None
