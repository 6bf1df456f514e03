"""Credentials that travel with a service: what they are and where they are found. A description; nothing is read here.

The values are looked up when a service is deployed, and never show in a repr or a message.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError
from .markup import code
from .values import EMPTY, FrozenMapping, check_name, describe

__all__ = ["PROVIDERS", "Provider", "Secret", "secret"]


@dataclass(frozen=True)
class Provider:
    """Where a service's tools keep their credentials, and look for them.

    Parameters
    ----------
    path
        The folder, as the tool itself has it; ``~`` is the home folder, here and in the pod. None: there is no file.
    filenames
        The files in it.
    env_vars
        Key of the secret → environment variable, used where there is no such file.
    file_env
        File → the variable that the pod gets its content in, instead of the file.
    """

    path: str | None = None
    filenames: tuple[str, ...] = ()
    env_vars: FrozenMapping = EMPTY
    file_env: FrozenMapping = EMPTY


def _key(variable: str) -> Provider:
    return Provider(env_vars=FrozenMapping({"api_key": variable}))


def _files(path: str, *names: str, **env_vars: str) -> Provider:
    return Provider(path, names, FrozenMapping(env_vars))


#: The providers known by name.
PROVIDERS: Mapping[str, Provider] = {
    "anthropic": _key("ANTHROPIC_API_KEY"),
    "aws": _files(
        "~/.aws", "config", "credentials", access_key="AWS_ACCESS_KEY_ID", secret_key="AWS_SECRET_ACCESS_KEY"
    ),
    "azure": _files("~/.azure", "clouds.config", subscription_id="AZURE_SUBSCRIPTION_ID"),
    "cohere": _key("COHERE_API_KEY"),
    "gcp": _files(
        "~/.config/gcloud", "application_default_credentials.json", client_id="CLIENT_ID", client_secret="CLIENT_SECRET"
    ),
    "github": _files("~/.config/gh", "hosts.yml"),
    "huggingface": Provider(
        "~/.cache/huggingface", ("token",), FrozenMapping({"token": "HF_TOKEN"}), FrozenMapping({"token": "HF_TOKEN"})
    ),
    "kubeconfig": _files("~/.kube", "config"),
    "lambda": _files("~/.lambda_cloud", "lambda_keys"),
    "langchain": _key("LANGCHAIN_API_KEY"),
    "openai": _key("OPENAI_API_KEY"),
    "pinecone": _key("PINECONE_API_KEY"),
    "ssh": _files("~/.ssh", "id_rsa"),
    "wandb": _key("WANDB_API_KEY"),
}


@dataclass(frozen=True, repr=False)
class Secret:
    """A secret: one of `values`, `path`, `env_vars` and `provider`, or its `name` alone if the cluster has it.

    Parameters
    ----------
    name
        By default the provider's.
    provider
        One of ``kt.Secret.builtin_providers()``.
    values
        The values themselves, by key.
    path
        A file, or a folder whose files are meant. With `provider`: where this machine has the provider's files.
    env_vars
        Key → environment variable that has the value; a list of variables is their own keys.
    override
        Replace a secret of that name that the cluster has already.
    namespace
        By default the service's.

    Examples
    --------
    >>> Secret(provider="openai").environment
    {'api_key': 'OPENAI_API_KEY'}
    >>> Secret("db", values={"password": "hunter2"})
    Secret('db', values=<password>)
    """

    name: str | None = None
    provider: str | None = None
    values: Mapping[str, Any] | None = None
    path: str | None = None
    env_vars: Mapping[str, str] | None = None
    override: bool = False
    namespace: str | None = None

    def __post_init__(self) -> None:
        if self.provider is not None and self.provider not in PROVIDERS:
            raise ConfigError(
                f"Secret: provider={describe(self.provider)} is not known: use one of {', '.join(PROVIDERS)}"
            )
        name = self.name if self.name is not None else self.provider
        if name is None:
            raise ConfigError('Secret: it needs a name or a provider, as kt.secret(provider="aws")')
        object.__setattr__(self, "name", check_name(_kubernetes(name), "Secret: name", dots=True))
        given = [key for key in ("values", "path", "env_vars") if getattr(self, key)]
        if len(given) > 1 or (self.provider is not None and given not in ([], ["path"])):
            both = " and ".join([*(["provider"] if self.provider is not None else []), *given])
            raise ConfigError(f'Secret "{self.name}": {both} contradict each other: give one of them')
        if self.values is not None:
            object.__setattr__(self, "values", _strings(self.values, f'Secret "{self.name}": values'))
        if self.env_vars is not None:
            object.__setattr__(self, "env_vars", _variables(self.env_vars, f'Secret "{self.name}": env_vars'))
        if self.path is not None:
            object.__setattr__(self, "path", _path(self.path, f'Secret "{self.name}": path'))
        if self.namespace is not None:
            check_name(self.namespace, f'Secret "{self.name}": namespace')

    @property
    def folder(self) -> str | None:
        """The folder or file here that it is read from, if any; ``~`` as it was written."""
        if self.path is not None:
            return self.path
        return PROVIDERS[self.provider].path if self.provider is not None else None

    @property
    def filenames(self) -> tuple[str, ...]:
        """The provider's files in `folder`."""
        return PROVIDERS[self.provider].filenames if self.provider is not None else ()

    @property
    def environment(self) -> Mapping[str, str]:
        """Key → environment variable here that has the value."""
        if self.env_vars is not None:
            return self.env_vars
        return PROVIDERS[self.provider].env_vars if self.provider is not None else EMPTY

    @classmethod
    def builtin_providers(cls, as_str: bool = True) -> list[str]:
        """The providers known by name."""
        return list(PROVIDERS)

    @classmethod
    def from_provider(
        cls, provider: str, name: str | None = None, path: str | None = None, override: bool = False
    ) -> Secret:
        """A provider's credentials, from its file or variables on this machine."""
        return cls(name, provider, path=path, override=override)

    @classmethod
    def from_path(cls, path: str, name: str | None = None, override: bool = False) -> Secret:
        """A file's content; a provider's own folder is taken for the provider's."""
        provider = next((key for key, item in PROVIDERS.items() if item.path == path.rstrip("/")), None)
        return cls(name, provider, path=path, override=override)

    @classmethod
    def from_env(
        cls, env_vars: Mapping[str, str] | Iterable[str], name: str | None = None, override: bool = False
    ) -> Secret:
        """Values of environment variables of this machine."""
        return cls(name, env_vars=_variables(env_vars, "Secret: env_vars"), override=override)

    @classmethod
    def from_name(cls, name: str, namespace: str | None = None) -> Secret:
        """A secret that the cluster has already."""
        return cls(name, namespace=namespace)

    def __repr__(self) -> str:
        shown = [repr(self.name)]
        if self.provider is not None and self.provider != self.name:
            shown.append(f"provider={self.provider!r}")
        if self.values is not None:
            shown.append(f"values=<{', '.join(self.values)}>")
        if self.path is not None:
            shown.append(f"path={self.path!r}")
        if self.env_vars is not None:
            shown.append(f"env_vars={self.env_vars!r}")
        return f"Secret({', '.join(shown)})"

    def _repr_html_(self) -> str:
        return code(repr(self))


def _kubernetes(name: object) -> object:
    return name.replace("_", "-").lower() if isinstance(name, str) else name


def _path(value: object, what: str) -> str:
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else ""
    if isinstance(text, str) and text.strip():
        return text
    raise ConfigError(f"{what}={describe(value)} is not a path")


def _strings(values: object, what: str) -> FrozenMapping:
    if not isinstance(values, Mapping) or not values:
        raise ConfigError(f"{what} must be a dictionary from keys to strings")
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, (str, bytes)):
            raise ConfigError(f'{what}["{key}"] is of type {type(value).__name__}: use a string or bytes')
    return FrozenMapping(values)


def _variables(env_vars: object, what: str) -> FrozenMapping:
    if not isinstance(env_vars, (Mapping, str)) and isinstance(env_vars, Iterable):
        env_vars = {name: name for name in env_vars}
    if not isinstance(env_vars, Mapping) or not env_vars:
        raise ConfigError(f"{what} must be a dictionary from keys to names of variables, or a list of names")
    if not all(isinstance(part, str) and part and "=" not in part for pair in env_vars.items() for part in pair):
        raise ConfigError(f"{what}={describe(dict(env_vars))}: keys and names of variables are strings")
    return FrozenMapping(env_vars)


def secret(
    name: str | None = None,
    provider: str | None = None,
    path: str | None = None,
    env_vars: Mapping[str, str] | Iterable[str] | None = None,
    namespace: str | None = None,
    override: bool = False,
    values: Mapping[str, Any] | None = None,
) -> Secret:
    """Describe a secret; see `Secret` for the parameters.

    Examples
    --------
    >>> secret(provider="huggingface")
    Secret('huggingface')
    """
    if env_vars is not None and not isinstance(env_vars, Mapping):
        env_vars = _variables(env_vars, "Secret: env_vars")
    if path is not None and provider is None and name is None:
        return Secret.from_path(path, override=override)
    return Secret(name, provider, values, path, env_vars, override, namespace)
