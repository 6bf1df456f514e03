"""What descriptions are made of: Kubernetes quantities, durations, names, frozen mappings.

Used by ``config``, ``compute``, ``image``, ``secret`` and ``volume``. Each function takes what a user wrote and gives
one form of it, or raises `ConfigError` that says which parameter it was, and what is accepted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .errors import ConfigError

__all__ = [
    "EMPTY",
    "FrozenMapping",
    "check_env",
    "check_flag",
    "check_label",
    "check_list",
    "check_name",
    "check_names",
    "check_text",
    "describe",
    "format_bytes",
    "freeze",
    "parse_amount",
    "parse_bytes",
    "parse_count",
    "parse_cpus",
    "parse_duration",
    "readable_size",
]

# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/; "K" is Kubetorch's own addition.
_SUFFIXES = {
    "n": 1e-9,
    "u": 1e-6,
    "m": 1e-3,
    "": 1,
    "k": 10**3,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
    "E": 10**18,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "Pi": 2**50,
    "Ei": 2**60,
}
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:([numkKMGTPE]|[KMGTPE]i)|[eE]([+-]?\d{1,2}))?")
_MEBIBYTE = 2**20


class FrozenMapping(Mapping[str, Any]):
    """A mapping that can't change, so that what holds it can be compared, hashed and pickled.

    Examples
    --------
    >>> hash(FrozenMapping({"a": 1})) == hash(FrozenMapping({"a": 1}))
    True
    """

    __slots__ = ("_data",)

    def __init__(self, data: Mapping[str, Any] | None = None) -> None:
        self._data: dict[str, Any] = {key: freeze(value) for key, value in (data or {}).items()}

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __hash__(self) -> int:
        return hash(frozenset(self._data.items()))

    def __repr__(self) -> str:
        return repr(self._data)

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenMapping, (self.thaw(),)

    def thaw(self) -> dict[str, Any]:
        """A plain dictionary of plain values, as JSON and YAML want them."""
        return {key: _thaw(value) for key, value in self._data.items()}


#: The mapping with nothing in it.
EMPTY = FrozenMapping()


def freeze(value: Any) -> Any:
    """`value` with every mapping and list in it made unchangeable."""
    if isinstance(value, FrozenMapping):
        return value
    if isinstance(value, Mapping):
        return FrozenMapping(value)
    if isinstance(value, (list, tuple)):
        return tuple(freeze(item) for item in value)
    if isinstance(value, (set, frozenset)):
        return frozenset(freeze(item) for item in value)
    return value


def _thaw(value: Any) -> Any:
    if isinstance(value, FrozenMapping):
        return value.thaw()
    if isinstance(value, (tuple, frozenset)):
        return [_thaw(item) for item in value]
    return value


def describe(value: object) -> str:
    """`value` as a message shows it: its repr, not too long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _number(value: object) -> float | None:
    """The number that a quantity stands for; exact for whole numbers. None if it is no quantity."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return value if math.isfinite(value) and value >= 0 else None
    if not isinstance(value, str):
        return None
    match = _QUANTITY.fullmatch(value.strip())
    if match is None:
        return None
    digits, suffix, exponent = match.groups()
    scale = 10.0 ** int(exponent) if exponent else _SUFFIXES[suffix or ""]
    number: float = (int(digits) if digits.isdigit() else float(digits)) * scale
    return number if math.isfinite(number) else None


def parse_cpus(value: object, what: str = "cpus") -> float:
    """CPU cores.

    Parameters
    ----------
    value
        ``2``, ``0.5``, ``"0.5"`` or ``"500m"``.
    what
        The parameter's name, for the error.

    Returns
    -------
    float
        Cores, a multiple of 1/1000.

    Raises
    ------
    ConfigError
        For anything else.

    Examples
    --------
    >>> parse_cpus("500m"), parse_cpus(2)
    (0.5, 2.0)
    """
    number = _number(value)
    if number is None or not 0.001 <= number <= 1e6:
        raise ConfigError(
            f"{what}={describe(value)} is not a number of CPU cores: use a number or a Kubernetes quantity, "
            'such as 2, 0.5 or "500m" (thousandths of a core)'
        )
    return math.ceil(round(number * 1000, 6)) / 1000


def parse_bytes(value: object, what: str = "memory") -> int:
    """A size in bytes.

    Parameters
    ----------
    value
        ``"512Mi"``, ``"2Gi"``, ``"1.5G"``, or a number of bytes.
    what
        The parameter's name, for the error.

    Returns
    -------
    int
        Bytes.

    Raises
    ------
    ConfigError
        For anything else, and for less than 1 MiB, which nobody means.

    Examples
    --------
    >>> parse_bytes("2Gi")
    2147483648
    """
    number = _number(value)
    if number is None or number > 2**62:
        raise ConfigError(
            f"{what}={describe(value)} is not a size: use a Kubernetes quantity such as "
            '"512Mi", "2Gi" (powers of 1024), "500M", "2G" (powers of 1000), or a number of bytes'
        )
    size = math.ceil(number)
    if size < _MEBIBYTE:
        plain = str(value).strip()
        hint = f'did you mean "{plain}Gi"?' if plain.isdigit() and size > 0 else 'give at least "1Mi"'
        raise ConfigError(f"{what}={describe(value)} is only {size} bytes: {hint}")
    return size


def parse_amount(value: object, what: str) -> int:
    """How much of something, 0 for without a limit: a number, or a quantity such as ``"2M"``.

    Raises
    ------
    ConfigError
        For anything else.

    Examples
    --------
    >>> parse_amount("2M", "cell_log_limit"), parse_amount(0, "cell_log_limit")
    (2000000, 0)
    """
    number = _number(value)
    if number is None or number > 2**62:
        raise ConfigError(
            f'{what}={describe(value)} is not accepted: use a number, a quantity such as "2M" or "4Mi", '
            "or 0 for no limit"
        )
    return math.ceil(number)


def format_bytes(size: int) -> str:
    """`size` as the shortest exact Kubernetes quantity.

    Examples
    --------
    >>> format_bytes(1610612736), format_bytes(500_000_000), format_bytes(1048577)
    ('1536Mi', '500M', '1048577')
    """
    for base, units in ((1024, ("Ei", "Pi", "Ti", "Gi", "Mi")), (1000, ("E", "P", "T", "G", "M", "k"))):
        for place, unit in enumerate(units):
            power = 6 - place
            if size and size % base**power == 0:
                return f"{size // base**power}{unit}"
    return str(size)


def parse_count(value: object, what: str, *, least: int = 0, most: int = 10**6) -> int:
    """A whole number, as an ``int`` or a string of digits.

    Raises
    ------
    ConfigError
        For anything else, or one that is not from `least` to `most`.

    Examples
    --------
    >>> parse_count("1", "gpus")
    1
    """
    number: int | None = None
    if isinstance(value, str):
        number = int(value) if re.fullmatch(r"\d{1,9}", value.strip()) else None
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1:
        number = int(value)
    if number is None or not least <= number <= most:
        raise ConfigError(
            f'{what}={describe(value)} is not accepted: use a whole number from {least}, such as 1 or "1"'
        )
    return number


_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


def parse_duration(value: object, what: str = "timeout") -> float:
    """A duration in seconds.

    Parameters
    ----------
    value
        ``"30m"``, ``"4h"``, ``"1h30m"``, ``"1d"``, ``"90s"``, or a number of seconds.
    what
        The parameter's name, for the error.

    Raises
    ------
    ConfigError
        For anything else, and for nothing at all: a duration is more than 0.

    Examples
    --------
    >>> parse_duration("1h30m"), parse_duration(90)
    (5400.0, 90.0)
    """
    seconds = -1.0
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str):
        match = _DURATION.fullmatch(value.strip().lower())
        if match is not None:
            scales = (86400, 3600, 60, 1)
            seconds = sum(float(part) * scale for part, scale in zip(match.groups(), scales, strict=True) if part)
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(
            f'{what}={describe(value)} is not a duration: use "30m", "4h", "1h30m" or a number of seconds above 0'
        )
    return seconds


def check_flag(value: object, what: str) -> bool:
    """True or False; anything else is a `ConfigError`."""
    if isinstance(value, bool):
        return value
    raise ConfigError(f"{what}={describe(value)} is not accepted: use True or False")


def check_text(value: object, what: str) -> str:
    """A string that says something, without space around it; anything else is a `ConfigError`."""
    if isinstance(value, str) and value.strip() and "\0" not in value:
        return value.strip()
    raise ConfigError(f"{what}={describe(value)} is not accepted: use a string that isn't empty")


def check_list(value: object, what: str, kind: str) -> list[Any]:
    """The items of a list or another iterable of `kind`, no string; anything else is a `ConfigError`."""
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
        return list(value)
    raise ConfigError(f"{what}={describe(value)} is not accepted: use a list of {kind}")


_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")


def check_name(value: object, what: str, *, dots: bool = False) -> str:
    """A name that Kubernetes takes: an RFC 1123 label, or a subdomain where `dots` are allowed.

    Raises
    ------
    ConfigError
        For anything else.
    """
    if isinstance(value, str) and 0 < len(value) <= (253 if dots else 63):
        parts = value.split(".") if dots else [value]
        if all(_NAME.fullmatch(part) for part in parts):
            return value
    more = ' and "."' if dots else ""
    raise ConfigError(
        f'{what}={describe(value)} is not a name that Kubernetes takes: use lower-case letters, digits, "-"{more}, '
        f"with a letter or digit at both ends, {253 if dots else 63} characters at most"
    )


def check_label(key: object, value: object, what: str) -> tuple[str, str]:
    """A label's key and value as Kubernetes takes them.

    Raises
    ------
    ConfigError
        For anything else.
    """
    prefix, slash, name = str(key).rpartition("/")
    if (
        not isinstance(key, str)
        or (slash and not (prefix and all(_NAME.fullmatch(part) for part in prefix.split("."))))
        or not name
        or len(name) > 63
        or not _LABEL_VALUE.fullmatch(name)
    ):
        raise ConfigError(f'{what}: {describe(key)} is not a label\'s key: use "name" or "domain/name"')
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
    if value is None or isinstance(value, (Mapping, list, tuple)) or len(text) > 63 or not _LABEL_VALUE.fullmatch(text):
        raise ConfigError(
            f'{what}: {describe(value)} is not a value for "{key}": use letters, digits, "-", "_", ".", '
            "63 characters at most"
        )
    return key, text


def check_names(value: object, what: str) -> Mapping[str, Any]:
    """A mapping whose keys are strings.

    Raises
    ------
    ConfigError
        For anything else.
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) and key for key in value):
        raise ConfigError(f"{what}={describe(value)} is not accepted: use a dictionary with names as keys")
    return value


def check_env(value: object, what: str) -> FrozenMapping:
    """Environment variables; numbers become strings, as Kubetorch has it.

    Raises
    ------
    ConfigError
        For a name that no environment can hold, or a value that is no string or number. The value is not part of the
        message: it may be a secret.
    """
    env = {}
    for key, item in check_names(value, what).items():
        if "=" in key or "\0" in key:
            raise ConfigError(f'{what}: {describe(key)} can\'t be the name of a variable: leave out "=" and zero bytes')
        if isinstance(item, bool) or not isinstance(item, (str, int, float)) or "\0" in str(item):
            raise ConfigError(f'{what}["{key}"] is of type {type(item).__name__}: use a string or a number')
        env[key] = str(item)
    return FrozenMapping(env)


def readable_size(n: int) -> str:
    """A size as people read it.

    Examples
    --------
    >>> readable_size(512), readable_size(20_000), readable_size(64 * 1024**2)
    ('512 B', '19.5 KiB', '64.0 MiB')
    """
    if n < 1024:
        return f"{n} B"
    size = float(n)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024 or unit == "GiB":
            break
    return f"{size:.1f} {unit}"
