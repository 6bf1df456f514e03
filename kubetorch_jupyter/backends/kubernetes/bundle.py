"""What travels to every pod: the pod server, the client core, and the pure-Python packages that both need.

One ConfigMap for each content, shared by the services of a namespace; ``pod_server/boot.py``, which is in it too,
unpacks it and says whose version of a package counts where. The packages are those of this process, without compiled
parts, so that any Python from 3.10 on, on any processor, can run them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import lzma
import tarfile
import threading
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...errors import DeployError

__all__ = ["LIMIT", "Bundle", "make_bundle", "the_bundle"]

#: What a ConfigMap can have, all keys together, with a little room for its metadata.
LIMIT = (1 << 20) - 4096

#: What only the front's server needs, and what has to be the client's version in every process (see `pod_server.boot`).
_NEEDED = ("click", "h11", "typing_extensions", "uvicorn", "websockets")
_OURS = ("cloudpickle",)
#: 570 KB in 0.24 s; the best one saves 70 KB and takes a second, which is what a whole pod takes to start.
_PRESET = 3
#: Of the client: what a handle in a pod has no use for. The magics and the panel need IPython, and what deploys to
#: Kubernetes needs its client library.
_LEFT_OUT = ("notebook/", "backends/kubernetes/", "__main__.py", "_labextension/")


class Bundle:
    """The content of the ConfigMap.

    Parameters
    ----------
    files
        What is in the archive, by path.
    boot
        ``boot.py``, which lies beside it.

    Attributes
    ----------
    hash
        16 hexadecimal digits for all of it, whatever release of xz packs it.
    """

    def __init__(self, files: dict[str, bytes], boot: bytes) -> None:
        self.files = files
        self.boot = boot
        digest = hashlib.sha256()
        for path, data in [*sorted(files.items()), ("boot.py", boot)]:
            digest.update(f"{len(path)}:{path}{len(data)}:".encode())
            digest.update(data)
        self.hash = digest.hexdigest()[:16]
        self._packing = threading.Lock()
        self._archive: bytes | None = None

    @property
    def archive(self) -> bytes:
        """``bundle.tar.xz``; packed when it is first asked for, a quarter of a second.

        Raises
        ------
        DeployError
            When it is larger than a ConfigMap can be.
        """
        with self._packing:
            if self._archive is None:
                archive = lzma.compress(_tar(self.files), preset=_PRESET)
                if len(archive) + len(self.boot) > LIMIT:
                    raise DeployError(
                        f"what every pod needs has {len(archive)} bytes when it is packed, and a ConfigMap can have "
                        f"{LIMIT}: another release of one of {', '.join(_NEEDED + _OURS)} may be smaller"
                    )
                self._archive = archive
            return self._archive

    @property
    def config_map_data(self) -> dict[str, Any]:
        """``data`` and ``binaryData`` of the ConfigMap, as the API takes them; packs as `archive` does."""
        return {
            "data": {"boot.py": self.boot.decode()},
            "binaryData": {"bundle.tar.xz": base64.b64encode(self.archive).decode()},
        }

    async def config_map(self) -> dict[str, Any]:
        """The same for who is on an event loop: it is packed in a thread, with the interpreter lock released."""
        return await asyncio.to_thread(lambda: self.config_map_data)

    def __repr__(self) -> str:
        return f"<Bundle {self.hash}: {len(self.files)} files>"


def make_bundle() -> Bundle:
    """Collect what travels: some 250 files, in less than 0.1 s.

    Raises
    ------
    DeployError
        When a package is missing here.
    """
    files: dict[str, bytes] = {}
    # Of what this module was installed with: in a pod, what travelled there is imported, and isn't all of it.
    package = Path(__file__).parents[2]
    for path, data in _sources(package.with_name("pod_server")).items():
        files[f"ours/pod_server/{path}"] = data
    for path, data in _sources(package).items():
        if not path.startswith(_LEFT_OUT):
            files[f"ours/kubetorch_jupyter/{path}"] = data
    for folder, names in (("ours", _OURS), ("needed", _NEEDED)):
        for name in names:
            files |= {f"{folder}/{path}": data for path, data in _distribution(name).items()}
    boot = files.pop("ours/pod_server/boot.py")
    return Bundle(files, boot)


def _tar(files: dict[str, bytes]) -> bytes:
    """The same bytes for the same files: in order, without times and owners."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, data in sorted(files.items()):
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _sources(package: Path) -> dict[str, bytes]:
    """The modules below a directory, by their paths in it."""
    return {p.relative_to(package).as_posix(): p.read_bytes() for p in package.rglob("*.py")}


def _distribution(name: str) -> dict[str, bytes]:
    """An installed package's modules, by the paths that they have where it is installed, and what names its version."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise DeployError(
            f"the package {name} travels to every pod and isn't installed here: install it (pip install {name})"
        ) from None
    listed = [f for f in distribution.files or () if f.suffix == ".py" and ".." not in f.parts]
    found = {f.as_posix(): Path(str(distribution.locate_file(f))).read_bytes() for f in listed}
    if not found:
        # Installed by something that keeps no list (a system's package), or in place: then what an import would find.
        found = _importable(name)
    # Enough for importlib.metadata, whose descriptions are as long as the code.
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {distribution.version}\n"
    found[f"{name}-{distribution.version}.dist-info/METADATA"] = about.encode()
    return found


def _importable(name: str) -> dict[str, bytes]:
    spec = find_spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise DeployError(f"the package {name} travels to every pod, and its source isn't to be found here")
    origin = Path(spec.origin)
    if spec.submodule_search_locations is None:
        return {origin.name: origin.read_bytes()}
    return {f"{name}/{path}": data for path, data in _sources(origin.parent).items()}


_made: Bundle | None = None
_making = threading.Lock()


def _once() -> Bundle:
    global _made
    with _making:
        if _made is None:
            _made = make_bundle()
        return _made


async def the_bundle() -> Bundle:
    """The bundle of this process; collected at the first call, in a thread, so that the loop goes on meanwhile."""
    return _made if _made is not None else await asyncio.to_thread(_once)
