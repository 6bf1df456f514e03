"""Ready-made images: ``kt.images.python("3.12").pip_install(...)``."""

from __future__ import annotations

from .image import Image

__all__ = [
    "Debian",
    "Python310",
    "Python311",
    "Python312",
    "Ray",
    "Ubuntu",
    "debian",
    "python",
    "pytorch",
    "ray",
    "ubuntu",
]


def python(version: str) -> Image:
    """Python of that version on a slim Debian.

    Examples
    --------
    >>> python("3.12").image_id
    'python:3.12-slim'
    """
    return Image(f"python{version.replace('.', '')}", f"python:{version}-slim")


def ray(version: str = "latest") -> Image:
    """Ray's own image; `version` is its tag, such as ``"2.32.0-py311"``."""
    return Image("ray" if version == "latest" else f"ray{version}", f"rayproject/ray:{version}")


def pytorch(version: str = "23.12-py3") -> Image:
    """NVIDIA's image with PyTorch and CUDA; `version` is its tag."""
    return Image(f"pytorch{version.replace('.', '').replace('-', '')}", f"nvcr.io/nvidia/pytorch:{version}")


def debian() -> Image:
    """The default: a slim Debian with the client's version of Python, or what ``kt.config.image`` says."""
    return Image("debian")


def ubuntu() -> Image:
    """Ubuntu; Python is installed by a step."""
    return Image("ubuntu", "ubuntu:24.04").run_bash(
        "command -v python3 >/dev/null || "
        "(apt-get update -q && apt-get install -qy --no-install-recommends python3 python3-pip)"
    )


def Debian() -> Image:
    """`debian`, by Kubetorch's name."""
    return debian()


def Ubuntu() -> Image:
    """`ubuntu`, by Kubetorch's name."""
    return ubuntu()


def Ray() -> Image:
    """`ray` of the latest version, by Kubetorch's name."""
    return ray()


def Python310() -> Image:
    """Python 3.10."""
    return python("3.10")


def Python311() -> Image:
    """Python 3.11."""
    return python("3.11")


def Python312() -> Image:
    """Python 3.12."""
    return python("3.12")
