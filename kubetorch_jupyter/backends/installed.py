"""The whole package in a pod's image, beside the part of it that travels to every pod and comes first on the path.

What asks a cluster doesn't travel, since its client library doesn't. An image that has both can give the rest: but only
of the same code, as parts of two versions don't go together.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from ..errors import ConfigError

__all__ = ["is_whole", "need_kubernetes"]

_PACKAGE = __name__.partition(".")[0]
_BACKENDS = __name__.rpartition(".")[0]
_WANTED = f"{_BACKENDS}.kubernetes"


def is_whole() -> bool:
    """Whether this is the whole package, with what it needs for a cluster: not the part that travels to pods."""
    return find_spec("kubernetes") is not None and (_here() / "backends" / "kubernetes").is_dir()


def need_kubernetes() -> None:
    """See that the Kubernetes backend can be imported; from now on, where only the image has it.

    Raises
    ------
    ConfigError
        When it can't: in a pod of a service whose image doesn't have this package, or has another version of it.
    """
    client = find_spec("kubernetes") is not None
    if client and find_spec(_WANTED) is not None:
        return
    differences = {folder: _difference(folder) for folder in _installed()}
    same = next((folder for folder, difference in differences.items() if difference is None), None)
    if client and same is not None:
        _join(same)
        return
    what = "what asks the cluster (deploys, kt.services, kt.Volume) needs kubetorch-jupyter in this pod's image"
    for folder, difference in differences.items():
        if difference is not None:
            raise ConfigError(
                f"{what}, of the version that has deployed this service: {folder} differs from that in "
                f"{difference}. Install the same version in both"
            )
    raise ConfigError(f"{what}: what travels to every pod is enough for calls only")


def _here() -> Path:
    return Path(__file__).resolve().parents[1]


def _installed() -> list[Path]:
    """Whole packages on the path other than this one."""
    found = [Path(place) / _PACKAGE for place in sys.path if place]
    whole = [folder for folder in found if (folder / "backends" / "kubernetes" / "__init__.py").is_file()]
    return [folder for folder in whole if folder.resolve() != _here()]


def _difference(folder: Path) -> str | None:
    """The first of our modules that isn't the same there."""
    for module in sorted(_here().rglob("*.py")):
        name = module.relative_to(_here())
        other = folder / name
        if not other.is_file() or other.read_bytes() != module.read_bytes():
            return name.as_posix()
    return None


def _join(whole: Path) -> None:
    """Let what is missing here be found in a whole package of the same code."""
    import_module(_PACKAGE).__path__.append(str(whole))
    import_module(_BACKENDS).__path__.append(str(whole / "backends"))
