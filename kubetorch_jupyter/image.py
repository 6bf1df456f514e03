"""What a pod's environment should be: a base image and the steps that run in the pod before the code loads.

A description only: nothing is run here. `kubetorch_jupyter.steps` packs the steps, ``pod_server.worker.steps`` runs
them; ``kubetorch_jupyter.images`` has ready-made ones.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec

from pod_server.variables import expand

from .errors import ConfigError
from .markup import code
from .values import EMPTY, FrozenMapping, check_env, describe

__all__ = ["Image", "Step"]

P = ParamSpec("P")


@dataclass(frozen=True)
class Step:
    """One step of an `Image`.

    Parameters
    ----------
    kind
        ``"pip"``, ``"env"``, ``"bash"``, ``"copy"`` or ``"sync"``.
    text
        The requirement, the command, the source path or the package.
    dest
        Where a copy goes; None for the source's own name.
    env
        The variables, for ``"env"``.
    contents
        Copy what is in the folder, not the folder.
    force
        Run it at each deploy, also if nothing before it changed.
    """

    kind: str
    text: str = ""
    dest: str | None = None
    env: FrozenMapping = EMPTY
    contents: bool = False
    force: bool = False

    def __str__(self) -> str:
        if self.kind == "env":
            return "ENV " + " ".join(f"{key}={shlex.quote(value)}" for key, value in self.env.items())
        if self.kind == "pip":
            return f"RUN pip install {self.text}"
        if self.kind == "bash":
            return f"RUN {self.text}"
        return f"COPY {self.text}" + (f" {self.dest}" if self.dest is not None else "")


class _Start(Generic[P]):
    """A method that also starts an image of its own: ``Image.from_docker(...)`` and ``Image(...).from_docker(...)``."""

    def __init__(self, function: Callable[Concatenate[Image, P], Image]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Image | None, owner: type[Image]) -> Callable[P, Image]:
        import functools

        bound = functools.partial(self.function, owner() if instance is None else instance)
        return functools.update_wrapper(bound, self.function)


@dataclass(frozen=True, repr=False)
class Image:
    """A base image and steps, as a value: every method gives a new one, so write ``image = image.pip_install(...)``.

    Parameters
    ----------
    name
        A name for people.
    image_id
        The container image, ``"registry/image:tag"``. By default ``kt.config.image``, else ``python:X.Y-slim`` of the
        client's Python.
    python_path
        Absolute path of the Python in the image that runs the code.
    install_cmd
        Instead of ``pip install`` of that Python, such as ``"uv pip install"``.
    steps
        Added by the methods.

    Examples
    --------
    >>> image = Image("mine").pip_install(["numpy>=2"]).set_env_vars({"OMP_NUM_THREADS": 1})
    >>> image.env()
    {'OMP_NUM_THREADS': '1'}
    >>> print(image)
    Image('mine': RUN pip install numpy>=2; ENV OMP_NUM_THREADS=1)
    """

    name: str | None = None
    image_id: str | None = None
    python_path: str | None = None
    install_cmd: str | None = None
    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        for key in ("name", "image_id", "python_path", "install_cmd"):
            value = getattr(self, key)
            if value is not None and not (isinstance(value, str) and value.strip()):
                raise ConfigError(f"Image: {key}={describe(value)} is not accepted: use a string that isn't empty")
        if self.image_id is not None and re.search(r"\s", self.image_id):
            raise ConfigError(f'Image: image_id={describe(self.image_id)} is not an image: use "registry/image:tag"')
        if self.python_path is not None and not self.python_path.startswith("/"):
            raise ConfigError(f"Image: python_path={describe(self.python_path)} must be absolute, as /usr/bin/python3")
        object.__setattr__(self, "steps", tuple(self.steps))

    def _with(self, *steps: Step) -> Image:
        return replace(self, steps=(*self.steps, *steps))

    @_Start
    def from_docker(self, image_id: str) -> Image:
        """Use the container image `image_id`; on the class or on an image that has none yet."""
        if self.image_id is not None and self.image_id != image_id:
            raise ConfigError(
                f"Image: it is already based on {self.image_id}; start anew with kt.Image.from_docker(...)"
            )
        return replace(self, image_id=image_id)

    @_Start
    def from_dockerfile(self, dockerfile_path: str, name: str | None = None) -> Image:
        """Take base and steps from a Dockerfile with FROM, RUN, ENV and COPY; the file is read now.

        Raises
        ------
        ConfigError
            If the file isn't there, or has an instruction that a step can't be made of.
        """
        path = Path(dockerfile_path).expanduser()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the Dockerfile {path} can't be read: {error}") from None
        image = replace(self, name=name or self.name)
        for number, line in _instructions(text):
            image = _instruct(image, line, f"{path}, line {number}", path.parent)
        return image

    def pip_install(self, reqs: str | Sequence[str], force: bool = False) -> Image:
        """Install packages.

        Parameters
        ----------
        reqs
            Requirements as pip takes them, options included: ``["numpy>=2", "--pre torch"]``.
        force
            At each deploy.
        """
        items = [reqs] if isinstance(reqs, str) else reqs
        if (
            not isinstance(items, (list, tuple))
            or not items
            or not all(isinstance(i, str) and i.strip() for i in items)
        ):
            raise ConfigError(
                f'pip_install({describe(reqs)}) is not accepted: use a list of requirements, as ["numpy>=2"]'
            )
        return self._with(*(Step("pip", item.strip(), force=force) for item in items))

    def set_env_vars(self, env_vars: Mapping[str, object]) -> Image:
        r"""Set environment variables; ``$NAME`` and ``${NAME}`` stand for earlier ones, ``\$`` for a dollar."""
        return self._with(Step("env", env=check_env(env_vars, "set_env_vars")))

    def sync_package(self, package: str, force: bool = False) -> Image:
        """Bring a package of this machine, by its path or the name of an editable install, and put it on the path."""
        return self._with(Step("sync", _path(package, "sync_package"), force=force))

    def run_bash(self, command: str, force: bool = False) -> Image:
        """Run a shell command; one that ends with ``&`` goes on in the background."""
        return self._with(Step("bash", _command(command), force=force))

    def copy(self, source: str, dest: str | None = None, contents: bool = False, force: bool = False) -> Image:
        """Bring a file or folder of this machine.

        Parameters
        ----------
        source
            Its path here.
        dest
            Its path in the pod, or with a ``/`` at its end the folder that it goes into; relative to the working
            directory, of a service on this machine to a folder of its own, which the environment variable
            ``KT_STEPS_DIR`` names. By default the source's own name.
        contents
            Bring what is in the folder, into `dest` or the working directory.
        force
            At each deploy, also if it hasn't changed.
        """
        target = _path(dest, "copy") if dest is not None else None
        return self._with(Step("copy", _path(source, "copy"), dest=target, contents=contents, force=force))

    @property
    def contents(self) -> str:
        """The image as a Dockerfile would say it."""
        lines = [f"FROM {self.image_id}"] if self.image_id else []
        if self.python_path:
            lines.append(f"ENV KT_PYTHON_PATH={self.python_path}")
        return "".join(f"{line}\n" for line in [*lines, *map(str, self.steps)])

    def env(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """The variables that the steps set, with references to earlier ones resolved.

        Parameters
        ----------
        base
            The environment they are added to; a name found nowhere stays as it is written.
        """
        known = dict(base or {})
        own: dict[str, str] = {}
        for step in self.steps:
            for key, value in step.env.items():
                own[key] = known[key] = expand(value, known)
        return own

    def local_problem(self) -> str | None:
        """Why this image can't be had for pods on this machine, or None if it can."""
        if self.python_path is not None:
            return "the image's python_path means nothing on this machine, where services run this Python: leave it out"
        for step in self.steps:
            if step.kind == "copy" and step.dest is not None and step.dest.startswith(("/", "~")):
                return (
                    f'the image step "{step}" would write to this machine\'s own {step.dest}, since services here '
                    "have no file system of their own: use a relative destination, which code finds below "
                    'os.environ["KT_STEPS_DIR"]'
                )
        return None

    def local_note(self) -> str | None:
        """What of this image a service on this machine goes without, as a line for people, or None."""
        if self.image_id is None:
            return None
        return f"the container image {self.image_id} is not used on this machine: the service runs this Python"

    def __repr__(self) -> str:
        name = [repr(self.name)] if self.name else []
        base = [f"FROM {self.image_id}"] if self.image_id else []
        steps = [
            "ENV " + " ".join(s.env) if s.kind == "env" and any(map(_secret_like, s.env)) else str(s)
            for s in self.steps
        ]
        return f"Image({': '.join(filter(None, [*name, '; '.join([*base, *steps])]))})"

    def _repr_html_(self) -> str:
        return code(repr(self))


def _secret_like(name: str) -> bool:
    return re.search(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL", name, re.IGNORECASE) is not None


def _command(value: object) -> str:
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise ConfigError(f"run_bash({describe(value)}) is not accepted: use a shell command")


def _path(value: Any, method: str) -> str:
    text = str(value) if isinstance(value, (str, Path)) else ""
    if not text.strip() or "\0" in text:
        raise ConfigError(f"{method}({describe(value)}) is not accepted: use a path")
    return text


def _instructions(text: str) -> list[tuple[int, str]]:
    """The Dockerfile's instructions, each in one line, with the number of the line it begins in."""
    found: list[tuple[int, str]] = []
    open_line: tuple[int, str] | None = None
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        start, before = open_line or (number, "")
        if line.endswith("\\"):
            open_line = start, before + line[:-1].strip() + " "
        else:
            found.append((start, before + line))
            open_line = None
    if open_line is not None:
        found.append((open_line[0], open_line[1].strip()))
    return found


def _instruct(image: Image, line: str, where: str, folder: Path) -> Image:
    word, _, rest = line.partition(" ")
    word, rest = word.upper(), rest.strip()
    if word not in ("FROM", "RUN", "ENV", "COPY") or not rest or rest.startswith(("--", "[")):
        raise ConfigError(
            f"{where}: {describe(line)} can't become a step: plain FROM, RUN, ENV and COPY can. "
            "Build the image and use kt.Image.from_docker(...)"
        )
    if word == "FROM":
        if image.image_id is not None:
            raise ConfigError(f"{where}: a second FROM; build the image and use kt.Image.from_docker(...)")
        return replace(image, image_id=rest.split()[0])
    if word == "RUN":
        return image.run_bash(rest)
    try:
        parts = shlex.split(rest)
    except ValueError as error:
        raise ConfigError(f"{where}: {describe(line)}: {error}") from None
    if word == "ENV":
        if all("=" in part for part in parts):
            variables = dict(part.split("=", 1) for part in parts)
        else:
            key, _, value = rest.partition(" ")
            variables = {key: value.strip()}
        python = variables.pop("KT_PYTHON_PATH", None)
        image = replace(image, python_path=python) if python else image
        return image.set_env_vars(variables) if variables else image
    if len(parts) != 2:
        raise ConfigError(f"{where}: {describe(line)}: use COPY SOURCE DESTINATION, one source a line")
    source = folder / Path(parts[0]).expanduser()
    return image.copy(str(source), parts[1], contents=source.is_dir())
