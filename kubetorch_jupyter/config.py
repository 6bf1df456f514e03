"""Settings that hold for everything one user does: ``kt.config``.

A setting is what was set here, else the environment's ``KT_<KEY>``, else the line in ``~/.kt/config.yaml``, else a
default. Nothing is read when this module is imported; the file is read once, when a setting is first asked for that
neither of the others has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from .errors import ConfigError
from .markup import table
from .values import check_name, check_text, describe, parse_amount, parse_count, parse_duration

__all__ = ["Config", "config"]

T = TypeVar("T")


class Setting(Generic[T]):
    """One setting: its default, its check, and a line for people."""

    def __init__(self, default: T | Callable[[], T], parse: Callable[[Any, str], T], doc: str) -> None:
        self.default = default
        self.parse = parse
        self.__doc__ = doc
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Setting[T]: ...

    @overload
    def __get__(self, instance: Config, owner: type) -> T: ...

    def __get__(self, instance: Config | None, owner: type) -> T | Setting[T]:
        if instance is None:
            return self
        value, source = instance._find(self.name)
        if source == "default":
            default = self.default
            return default() if callable(default) else default
        return self.check(value, source)

    def __set__(self, instance: Config, value: T | None) -> None:
        instance.set(self.name, value)

    def check(self, value: object, source: str) -> T:
        """`value`, parsed; an error names where it stands."""
        what = f"config.{self.name}" if source == "set" else self.name
        try:
            return self.parse(value, what)
        except ConfigError as error:
            if source == "set":
                raise
            raise ConfigError(f"{error} (read from {source})") from None


def _optional_text(value: object, what: str) -> str | None:
    return check_text(value, what)


def _folder(value: object, what: str) -> str:
    return os.path.abspath(os.path.expanduser(check_text(value, what)))


def _cache() -> str:
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "kubetorch")


def _namespace(value: object, what: str) -> str | None:
    return check_name(value, what)


def _flag(value: object, what: str) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    raise ConfigError(f"{what}={describe(value)} is not accepted: use true or false")


def _backend(value: object, what: str) -> str:
    if value in ("auto", "local", "kubernetes"):
        return str(value)
    raise ConfigError(f'{what}={describe(value)} is not accepted: use "auto", "local" or "kubernetes"')


def _duration(value: object, what: str) -> float:
    if isinstance(value, str):
        # From the environment numbers come as strings.
        try:
            value = float(value)
        except ValueError:
            pass  # then it has a unit, or parse_duration says what is wrong with it
    return parse_duration(value, what)


def _ttl(value: object, what: str) -> str:
    if value == "never":
        return "never"
    parse_duration(value, what)
    return f"{value}s" if isinstance(value, (int, float)) else str(value).strip()


def _amount(value: object, what: str) -> int:
    return parse_amount(value, what)


def _gpus(value: object, what: str) -> int | None:
    return parse_count(value, what)


def _names(value: object, what: str) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if isinstance(items, (list, tuple)) and all(isinstance(item, str) for item in items):
        return tuple(item.strip() for item in items if item.strip())
    raise ConfigError(f"{what}={describe(value)} is not accepted: use a list of names, or names with commas between")


def _anything(value: object, what: str) -> Any:
    return value


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container whose user id has no entry in the passwd file.
        return f"user-{os.getuid()}" if hasattr(os, "getuid") else "user"


class Config:
    """The settings, as attributes.

    Parameters
    ----------
    path
        The file; by default ``~/.kt/config.yaml``.

    Examples
    --------
    >>> settings = Config("/nowhere/config.yaml")
    >>> settings.stream_logs
    True
    >>> settings.stream_logs = False
    >>> settings.stream_logs
    False
    >>> settings.stream_logs = None  # forget what was set here
    """

    username = Setting(_user, check_text, "Whose services these are; a prefix of their names on a shared cluster.")
    namespace = Setting[str | None](None, _namespace, "Kubernetes namespace of services whose Compute names none.")
    backend = Setting("auto", _backend, '"auto", "local" (this machine) or "kubernetes".')
    context = Setting[str | None](None, _optional_text, "Context of the kubeconfig.")
    kubeconfig_path = Setting[str | None](None, _optional_text, "The kubeconfig, if it isn't kubectl's.")
    image = Setting[str | None](None, _optional_text, "Container image of services whose Compute names none.")
    stream_logs = Setting(True, _flag, "Show what a call prints in the cell that called.")
    cell_log_limit = Setting(
        2_000_000, _amount, "Bytes of one call's output that a cell shows behind a Jupyter server; 0: all."
    )
    iopub_data_rate_limit = Setting(
        1_000_000, _amount, "The Jupyter server's setting of this name, bytes/s: output stays below it; 0: none."
    )
    iopub_msg_rate_limit = Setting(1_000, _amount, "The same for messages/s.")
    rate_limit_window = Setting(3.0, _duration, "The same: over how many seconds the server counts.")
    launch_timeout = Setting(900.0, _duration, "Seconds that a deploy may take.")
    reconnect_timeout = Setting(60.0, _duration, "Seconds without a pod before its open calls are given up.")
    inactivity_ttl = Setting("4h", _ttl, "How long a cluster or detached service lives without a call.")
    local_gpus = Setting[int | None](None, _gpus, "GPUs that this machine is said to have, if they can't be counted.")
    runtime_dir = Setting[str | None](None, _optional_text, "Folder for local services' sockets and records.")
    cache_dir = Setting(_cache, _folder, "Folder for what image steps install for services of this machine.")
    queue = Setting[str | None](None, _optional_text, "Kueue's LocalQueue for services whose Compute names none.")
    volumes = Setting[tuple[str, ...]]((), _names, "Volumes that every cluster service gets.")
    # Kubetorch's own, for its installation on a cluster; here there is none. Kept so that its files and scripts work.
    stream_metrics = Setting(False, _flag, "Kubetorch's; kept, not used.")
    log_verbosity = Setting("info", check_text, "Kubetorch's; kept, not used.")
    license_key = Setting[Any](None, _anything, "Kubetorch's; kept, not used.")
    install_namespace = Setting[Any](None, _anything, "Kubetorch's; kept, not used.")
    install_url = Setting[Any](None, _anything, "Kubetorch's; kept, not used.")
    api_url = Setting[Any](None, _anything, "Kubetorch's; kept, not used.")
    cluster_config = Setting[Any](None, _anything, "Kubetorch's; kept, not used.")

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.__dict__["_path"] = path
        self.__dict__["_set"] = {}
        self.__dict__["_file"] = None

    @property
    def path(self) -> Path:
        """The file of this user's settings; it need not exist."""
        given = self.__dict__["_path"]
        return Path(given) if given is not None else Path.home() / ".kt" / "config.yaml"

    def get(self, key: str) -> Any:
        """The setting called `key`."""
        self._setting(key)
        return getattr(self, key)

    def set(self, key: str, value: object) -> Any:
        """Set `key` for this process; None forgets what was set. Gives the value that holds now.

        Raises
        ------
        ConfigError
            For a key that there isn't, or a value that makes no sense; nothing has changed then.
        """
        setting = self._setting(key)
        if value is None:
            self.__dict__["_set"].pop(key, None)
        else:
            self.__dict__["_set"][key] = setting.check(value, "set")
        return getattr(self, key)

    def reload(self) -> None:
        """Read the file again when it is next needed."""
        self.__dict__["_file"] = None

    def source(self, key: str) -> str:
        """Where the value of `key` comes from: ``"set"``, ``"KT_<KEY>"``, the file's path, or ``"default"``."""
        self._setting(key)
        return self._find(key)[1]

    def write(self, values: Mapping[str, object] | None = None) -> Path:
        """Write what was set here, and `values`, to the file, for later processes too; what else stands there stays.

        Returns
        -------
        pathlib.Path
            The file.
        """
        import tempfile

        yaml = _yaml(self.path)
        changed = dict(self.__dict__["_set"])
        for key, value in (values or {}).items():
            changed[key] = None if value is None else self._setting(key).check(value, "set")
        self.reload()
        merged = {key: value for key, value in {**self._read_file(), **changed}.items() if value is not None}
        merged = {key: list(value) if isinstance(value, tuple) else value for key, value in merged.items()}
        path = self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: another kernel may be reading it.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".config-", suffix=".yaml")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                yaml.safe_dump(merged, file, allow_unicode=True)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        self.__dict__["_file"] = merged
        return path

    save = write

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return ((key, getattr(self, key)) for key in settings())

    def __setattr__(self, name: str, value: object) -> None:
        self.set(name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(f'there is no setting "{name}"; there are {", ".join(settings())}')

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *settings()})

    def __repr__(self) -> str:
        shown = [f"{key}={value!r}" for key, value in self._known().items() if key != "license_key"]
        return f"Config({', '.join(shown)})"

    def _repr_html_(self) -> str:
        return table(self._rows(), title="Config", codes=True)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        rows = self._rows()
        wide, wider = (max(len(row[i]) for row in rows) for i in (0, 1))
        lines = (f"  {key.ljust(wide)}  {value.ljust(wider)}  {doc}".rstrip() for key, value, doc in rows)
        printer.text("\n".join(("Config", *lines)))

    def _rows(self) -> list[tuple[str, str, str]]:
        """Key, value and what it is for, of the settings that have a meaning here."""
        docs = {key: setting.__doc__ or "" for key, setting in settings().items()}
        return [
            (key, repr(value), docs[key])
            for key, value in self._known().items()
            if not docs[key].startswith("Kubetorch's")
        ]

    def _known(self) -> dict[str, Any]:
        # A repr does no I/O: of the file it shows what has been read.
        file = self.__dict__["_file"]
        if file is None:
            self.__dict__["_file"] = {}
        try:
            shown: dict[str, Any] = {}
            for key in settings():
                try:
                    shown[key] = getattr(self, key)
                except ConfigError as error:
                    shown[key] = error
            return shown
        finally:
            self.__dict__["_file"] = file

    def _setting(self, key: str) -> Setting[Any]:
        setting = settings().get(key)
        if setting is None:
            raise ConfigError(f'there is no setting "{key}"; there are {", ".join(settings())}')
        return setting

    def _find(self, key: str) -> tuple[Any, str]:
        explicit = self.__dict__["_set"]
        if key in explicit:
            return explicit[key], "set"
        variable = f"KT_{key.upper()}"
        text = os.environ.get(variable)
        if text:
            return text, variable
        value = self._read_file().get(key)
        if value is not None and value != "None":  # Kubetorch writes the string
            return value, str(self.path)
        return None, "default"

    def _read_file(self) -> dict[str, Any]:
        found = self.__dict__["_file"]
        if found is not None:
            known: dict[str, Any] = found
            return known
        values: Any = {}
        path = self.path
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            text = ""
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the settings in {path} can't be read: {error}. Repair or remove the file.") from None
        if text.strip():
            yaml = _yaml(path)
            try:
                values = yaml.safe_load(text) or {}
            except yaml.YAMLError as error:
                raise ConfigError(f"the settings in {path} are not YAML: {error}. Repair or remove the file.") from None
            if not isinstance(values, dict):
                raise ConfigError(f'the settings in {path} must be lines of the form "key: value"')
        self.__dict__["_file"] = values
        return dict(values)


def _yaml(path: Path) -> Any:
    try:
        import yaml
    except ImportError:
        raise ConfigError(f"{path} is YAML, and PyYAML is missing here: pip install pyyaml") from None
    return yaml


def settings() -> dict[str, Setting[Any]]:
    """Every setting that there is, by name."""
    return {name: value for name, value in vars(Config).items() if isinstance(value, Setting)}


#: The settings of this process.
config = Config()
