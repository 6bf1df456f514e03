from __future__ import annotations

import pickle
from typing import Any

import pytest

from kubetorch_jupyter.errors import ConfigError
from kubetorch_jupyter.values import (
    EMPTY,
    FrozenMapping,
    check_env,
    check_label,
    check_name,
    format_bytes,
    freeze,
    parse_bytes,
    parse_count,
    parse_cpus,
    parse_duration,
)


@pytest.mark.parametrize(
    ("given", "cores"),
    [
        (2, 2),
        (0.5, 0.5),
        ("0.5", 0.5),
        ("500m", 0.5),
        ("1.0", 1),
        (".5", 0.5),
        ("1e-1", 0.1),
        ("2k", 2000),
        (" 1 ", 1),
        ("0.1", 0.1),
    ],
)
def test_cpus(given: Any, cores: float) -> None:
    assert parse_cpus(given) == cores


@pytest.mark.parametrize(
    "given", ["lots", "", "-1", -1, 0, "0", "1 core", True, None, [], float("nan"), float("inf"), "1e999", "0.0001"]
)
def test_cpus_that_make_no_sense(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"CPU cores.*500m") as caught:
        parse_cpus(given)
    assert isinstance(caught.value, ValueError)
    assert repr(given)[:20] in str(caught.value)


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ("512Mi", 512 * 2**20),
        ("2Gi", 2**31),
        ("1.5Gi", 3 * 2**29),
        ("500M", 500 * 10**6),
        ("1G", 10**9),
        ("1073741824", 2**30),
        (2**30, 2**30),
        ("1e9", 10**9),
        ("2E", 2 * 10**18),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_bytes(given: Any, size: int) -> None:
    assert parse_bytes(given) == size


@pytest.mark.parametrize("given", ["much", "2GB", "2gi", "-2Gi", True, None, "9Ei9", "16Ei", float("nan")])
def test_bytes_that_make_no_sense(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"is not a size.*2Gi"):
        parse_bytes(given)


def test_bytes_that_somebody_forgot_the_unit_of() -> None:
    with pytest.raises(ConfigError, match=r'only 4 bytes: did you mean "4Gi"'):
        parse_bytes("4")
    with pytest.raises(ConfigError, match=r"at least"):
        parse_bytes("100k")


@pytest.mark.parametrize("text", ["2Gi", "512Mi", "500M", "1G", "1536Mi", "1048577", "1Ei"])
def test_format_bytes_is_exact(text: str) -> None:
    assert format_bytes(parse_bytes(text)) == text


@pytest.mark.parametrize(("given", "count"), [(1, 1), ("1", 1), (2.0, 2), (0, 0), (" 3 ", 3)])
def test_count(given: Any, count: int) -> None:
    assert parse_count(given, "gpus") == count


@pytest.mark.parametrize("given", [-1, "-1", 0.5, "0.5", "one", True, None, float("inf"), float("nan"), 10**12, "²"])
def test_count_that_makes_no_sense(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"gpus=.*whole number"):
        parse_count(given, "gpus")


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("30m", 1800), ("4h", 14400), ("1h30m", 5400), ("1d", 86400), ("90s", 90), ("90", 90), (90, 90), ("0.5h", 1800)],
)
def test_duration(given: Any, seconds: float) -> None:
    assert parse_duration(given) == seconds


@pytest.mark.parametrize("given", ["", "soon", "0m", 0, -5, "-5m", "5x", True, None, float("nan"), float("inf"), "m5"])
def test_duration_that_makes_no_sense(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"is not a duration.*30m"):
        parse_duration(given, "inactivity_ttl")


def test_names_and_labels() -> None:
    assert check_name("my-ns", "namespace") == "my-ns"
    assert check_name("a.b-c.d", "name", dots=True) == "a.b-c.d"
    for bad in ("", "My", "a_b", "-a", "a-", "a.b", "x" * 64, None, 3):
        with pytest.raises(ConfigError, match=r"namespace=.*lower-case"):
            check_name(bad, "namespace")
    assert check_label("app.io/team", "ml", "labels") == ("app.io/team", "ml")
    assert check_label("gpu", True, "labels") == ("gpu", "true")
    assert check_label("n", 3, "labels") == ("n", "3")
    for key, value in [
        ("", "x"),
        ("a b", "x"),
        ("/x", "x"),
        ("a", "b c"),
        ("a", None),
        ("a", []),
        (3, "x"),
        ("a", "x" * 64),
    ]:
        with pytest.raises(ConfigError):
            check_label(key, value, "labels")


def test_env() -> None:
    assert check_env({"A": 1, "B": 0.5, "C": "x=y"}, "env_vars") == {"A": "1", "B": "0.5", "C": "x=y"}
    for bad in ({"A": None}, {"A=B": "x"}, {"": "x"}, {1: "x"}, "A=1", {"A": True}, {"A": "\0"}, {"A\0": "x"}):
        with pytest.raises(ConfigError, match=r"env_vars"):
            check_env(bad, "env_vars")


def test_a_secret_in_env_vars_is_not_in_the_message() -> None:
    with pytest.raises(ConfigError) as caught:
        check_env({"TOKEN": ["hunter2"]}, "env_vars")
    assert "hunter2" not in str(caught.value)


def test_frozen_mappings() -> None:
    data = {"a": {"b": [1, {"c": 2}]}, "s": {1, 2}}
    frozen = FrozenMapping(data)
    data["a"]["b"].append(3)  # type: ignore[index]
    assert frozen.thaw() == {"a": {"b": [1, {"c": 2}]}, "s": [1, 2]}
    assert frozen == FrozenMapping(frozen.thaw()) or frozen["a"] == FrozenMapping(frozen.thaw())["a"]
    assert hash(frozen["a"]) == hash(FrozenMapping({"b": [1, {"c": 2}]}))
    assert FrozenMapping({"a": 1}) == {"a": 1}
    assert pickle.loads(pickle.dumps(frozen["a"])) == frozen["a"]
    assert freeze(frozen) is frozen
    assert len(EMPTY) == 0
    with pytest.raises(TypeError):
        frozen["x"] = 1  # type: ignore[index]
