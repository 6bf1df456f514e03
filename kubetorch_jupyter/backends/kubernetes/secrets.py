"""What a ``kt.Secret`` stands for: its values, read on this machine now, and how the worker's container gets them.

Values of variables become variables of the same names; files are where they are here, ``~`` being the home folder on
both sides. A file below the home folder is a link to the mounted Secret, so that its neighbours can be written; any
other is mounted at its path. Nothing here shows a value, in a repr or in an error.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import ConfigError, SecretNotFound
from ...secret import PROVIDERS, Secret
from ...values import readable_size

__all__ = ["LIMIT", "SecretSource", "read_secrets"]

#: What Kubernetes lets one Secret hold, all its values together.
LIMIT = 1 << 20

_VARIABLE = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
_NOT_IN_KEY = re.compile(r"[^-._a-zA-Z0-9]")


@dataclass(frozen=True, repr=False)
class SecretSource:
    """One secret of a service, read.

    Parameters
    ----------
    name
        The ``kt.Secret``'s.
    data
        Key → value; empty for one that the cluster has already.
    env
        Variable of the worker → key.
    files
        Path in the pod (``~/…`` or absolute) → key.
    existing
        The cluster has it, by that name; the worker gets all its keys as variables.
    """

    name: str
    data: Mapping[str, bytes] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    existing: bool = False

    def __repr__(self) -> str:
        if self.existing:
            return f"<SecretSource {self.name}: the cluster's>"
        return f"<SecretSource {self.name}: {', '.join([*self.env, *self.files])}>"


def read_secrets(secrets: Sequence[str | Secret], namespace: str) -> tuple[SecretSource, ...]:
    """Read what the secrets of a `Compute` stand for; reads files, so call it in a thread.

    Parameters
    ----------
    secrets
        As ``Compute.secrets`` has them; a string is a provider's name, else that of a secret in the cluster.
    namespace
        The service's.

    Raises
    ------
    SecretNotFound
        When a variable or file isn't there, or can't be read.
    ConfigError
        For one that can't be had in a pod: too large, of another namespace, two of one name or for one variable.
    """
    found: list[SecretSource] = []
    for item in secrets:
        given = item if isinstance(item, Secret) else Secret(item, item if item in PROVIDERS else None)
        if given.namespace is not None and given.namespace != namespace:
            raise ConfigError(
                f'Secret "{given.name}" is of namespace {given.namespace}, and the service goes to {namespace}: a pod '
                "can use secrets of its own namespace only. Deploy to that namespace, or give the values"
            )
        found.append(_read(given))
    _check_apart(found)
    return tuple(found)


def _read(secret: Secret) -> SecretSource:
    name = str(secret.name)
    if secret.values is not None:
        source = _from_values(name, secret.values)
    elif secret.folder is not None:
        source = _from_files(secret, secret.folder)
    elif secret.environment:
        source = _from_variables(secret)
    else:
        return SecretSource(name, existing=True)
    size = sum(map(len, source.data.values()))
    if size > LIMIT:
        raise _too_large(name, size)
    return source


def _too_large(name: str, size: int, what: str = "") -> ConfigError:
    return ConfigError(
        f'Secret "{name}": {what or "it"} has {readable_size(size)}, and a Secret of Kubernetes can hold '
        f"{readable_size(LIMIT)}: put large data on a kt.Volume"
    )


# Values and variables


def _from_values(name: str, values: Mapping[str, str | bytes]) -> SecretSource:
    return _variables(name, {key: value.encode() if isinstance(value, str) else value for key, value in values.items()})


def _from_variables(secret: Secret) -> SecretSource:
    missing = [variable for variable in secret.environment.values() if not os.environ.get(variable)]
    if missing:
        raise _no_variables(str(secret.name), missing)
    return _variables(str(secret.name), {name: os.fsencode(os.environ[name]) for name in secret.environment.values()})


def _no_variables(name: str, missing: Sequence[str]) -> SecretNotFound:
    many = len(missing) > 1
    return SecretNotFound(
        f'Secret "{name}": the environment variable{"s" if many else ""} {" and ".join(missing)} '
        f"{'are' if many else 'is'} not set here: set {'them' if many else 'it'} before the deploy (in a notebook: "
        f'%env {missing[0]}=...), or give the values with kt.secret("{name}", values={{...}})'
    )


def _variables(name: str, values: Mapping[str, bytes]) -> SecretSource:
    """Values that become variables of these names."""
    for variable, value in values.items():
        if not _VARIABLE.fullmatch(variable):
            raise ConfigError(
                f'Secret "{name}": {variable!r} can\'t be the name of a variable in a pod: use letters, digits and "_"'
            )
        if not _is_text(value):
            raise ConfigError(
                f'Secret "{name}": the value of "{variable}" is binary, which no variable can hold: '
                "keep it in a file and give its path="
            )
    return SecretSource(name, dict(values), {variable: variable for variable in values})


def _is_text(value: bytes) -> bool:
    try:
        return "\0" not in value.decode()
    except UnicodeDecodeError:
        return False


# Files


def _from_files(secret: Secret, folder: str) -> SecretSource:
    name = str(secret.name)
    provider = PROVIDERS[secret.provider] if secret.provider is not None else None
    here = Path(folder).expanduser()
    try:
        if provider is None or not provider.filenames or here.is_file():
            return _plain(name, here)
        present = [filename for filename in provider.filenames if (here / filename).is_file()]
        if present:
            contents = {filename: _content(name, here / filename) for filename in present}
            return _provided(name, contents, str(provider.path), provider.file_env)
    except OSError as error:
        # Looking at it failed, as for a folder that may not be entered.
        raise _unreadable(name, here, error) from None
    missing = [variable for variable in provider.env_vars.values() if not os.environ.get(variable)]
    if secret.path is None and provider.env_vars and not missing:
        return _from_variables(secret)
    files = " and no ".join(str(here / filename) for filename in provider.filenames)
    unset, set_them = "", ""
    if secret.path is None and missing:
        unset = f", and {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set"
        set_them = f", set {' and '.join(missing)}"
    raise SecretNotFound(
        f'Secret "{name}": there is no {files}{unset}: log in with {secret.provider}\'s own tool on this machine'
        f'{set_them}, or say where its files are with kt.secret(provider="{secret.provider}", path="...")'
    )


def _provided(name: str, contents: Mapping[str, bytes], path: str, file_env: Mapping[str, str]) -> SecretSource:
    """A provider's files, where its tools look for them in the pod; or the variable that stands for the file."""
    data: dict[str, bytes] = {}
    env: dict[str, str] = {}
    files: dict[str, str] = {}
    for filename, content in contents.items():
        data[filename] = content
        if filename in file_env:
            data[filename] = content.strip()
            env[file_env[filename]] = filename
        else:
            files[f"{path}/{filename}"] = filename
    return SecretSource(name, data, env, files)


def _plain(name: str, here: Path) -> SecretSource:
    """A file or the files of a folder, at the same place in the pod."""
    if here.is_dir():
        paths = sorted(path for path in here.iterdir() if path.is_file())
        if not paths:
            raise SecretNotFound(f'Secret "{name}": the folder {here} has no files in it: give the path of a file')
    elif here.is_file():
        paths = [here]
    else:
        raise SecretNotFound(
            f'Secret "{name}": there is no file {here} on this machine: correct the path, or give the values with '
            f'kt.secret("{name}", values={{...}})'
        )
    data: dict[str, bytes] = {}
    files: dict[str, str] = {}
    left = LIMIT
    for path in paths:
        key = _key(path.name, data)
        data[key] = _content(name, path, left)
        left -= len(data[key])
        files[_there(path)] = key
    return SecretSource(name, data, {}, files)


def _there(path: Path) -> str:
    """The path in the pod: what is below the home folder here is below the home folder there."""
    absolute = posixpath.normpath(os.path.abspath(path))
    home = posixpath.normpath(str(Path.home()))
    if home != "/" and absolute.startswith(f"{home}/"):
        return f"~{absolute[len(home) :]}"
    return absolute


def _key(filename: str, taken: Iterable[str]) -> str:
    """A Secret's key for a file; names that a key can't have are changed, and stay different."""
    key = _NOT_IN_KEY.sub("-", filename)[:240]
    key = f"file{key}" if key in (".", "..") or key.startswith("..") else key
    number, plain = 1, key
    while key in taken:
        number += 1
        key = f"{plain}.{number}"
    return key


def _content(name: str, path: Path, most: int = LIMIT) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise _unreadable(name, path, error) from None
    if len(content) > most:
        raise _too_large(name, max(size, len(content)), f"with {path} it" if most < LIMIT else str(path))
    return content


def _unreadable(name: str, path: Path, error: OSError) -> SecretNotFound:
    return SecretNotFound(f'Secret "{name}": {path} can\'t be read: {error.strerror or error}')


def _check_apart(found: Sequence[SecretSource]) -> None:
    """No two secrets may want the same name, variable or file."""
    whose: dict[tuple[str, str], str] = {}
    for source in found:
        if ("name", source.name) in whose:
            raise ConfigError(f'Compute: secrets: there are two secrets called "{source.name}": give one another name=')
        whose["name", source.name] = source.name
        for place in [("variable", variable) for variable in source.env] + [("file", path) for path in source.files]:
            other = whose.setdefault(place, source.name)
            if other != source.name:
                raise ConfigError(
                    f'Compute: secrets: "{other}" and "{source.name}" are both to be the {place[0]} {place[1]} of the '
                    "pod: leave one out"
                )
