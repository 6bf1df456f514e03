from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubetorch_jupyter.config import Config, config, settings
from kubetorch_jupyter.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / ".kt" / "config.yaml"


@pytest.fixture
def write(file: Path) -> Any:
    def write(text: str) -> Config:
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return Config(file)

    return write


def test_explicit_then_environment_then_file_then_default(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    c = write("namespace: from-file\n")
    assert (c.namespace, c.source("namespace")) == ("from-file", str(c.path))
    monkeypatch.setenv("KT_NAMESPACE", "from-env")
    assert (c.namespace, c.source("namespace")) == ("from-env", "KT_NAMESPACE")
    c.namespace = "set-here"
    assert (c.namespace, c.source("namespace")) == ("set-here", "set")
    c.namespace = None
    assert c.namespace == "from-env"
    monkeypatch.delenv("KT_NAMESPACE")
    assert c.namespace == "from-file"
    assert (c.backend, c.source("backend")) == ("auto", "default")


def test_defaults(file: Path) -> None:
    c = Config(file)
    assert c.username
    assert c.namespace is None
    assert c.stream_logs is True
    assert c.reconnect_timeout == 60
    assert c.launch_timeout == 900
    assert c.inactivity_ttl == "4h"
    assert dict(c).keys() == settings().keys()


def test_the_file_is_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Config().path == tmp_path / ".kt" / "config.yaml"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("stream_logs", "false", False),
        ("stream_logs", "True", True),
        ("stream_logs", "0", False),
        ("reconnect_timeout", "5", 5.0),
        ("reconnect_timeout", "2m", 120.0),
        ("local_gpus", "0", 0),
        ("volumes", "a, b", ("a", "b")),
        ("cell_log_limit", "4Mi", 4 * 2**20),
        ("cell_log_limit", "0", 0),
        ("iopub_data_rate_limit", "2M", 2_000_000),
        ("rate_limit_window", "3", 3.0),
    ],
)
def test_the_environments_strings_are_parsed(
    file: Path, monkeypatch: pytest.MonkeyPatch, key: str, text: str, value: Any
) -> None:
    monkeypatch.setenv(f"KT_{key.upper()}", text)
    assert Config(file).get(key) == value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backend", "docker"),
        ("stream_logs", "maybe"),
        ("namespace", "Not A Name"),
        ("reconnect_timeout", -1),
        ("inactivity_ttl", "soon"),
        ("username", ""),
        ("local_gpus", -1),
        ("cell_log_limit", -1),
        ("iopub_msg_rate_limit", "fast"),
        ("volumes", 3),
        ("no_such_key", 1),
    ],
)
def test_nonsense_is_refused_and_changes_nothing(file: Path, key: str, value: Any) -> None:
    c = Config(file)
    with pytest.raises(ConfigError, match=key):
        c.set(key, value)
    with pytest.raises(ConfigError, match=key):
        setattr(c, key, value)
    assert c.__dict__["_set"] == {}


def test_nonsense_elsewhere_is_named_with_its_place(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    c = write("backend: docker\n")
    with pytest.raises(ConfigError, match=r"backend='docker'.*config\.yaml"):
        _ = c.backend
    monkeypatch.setenv("KT_STREAM_LOGS", "maybe")
    with pytest.raises(ConfigError, match="KT_STREAM_LOGS"):
        _ = c.stream_logs


@pytest.mark.parametrize("text", ["a: [", "- just\n- a list\n", "just words"])
def test_a_broken_file_is_named(write: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        _ = write(text).namespace


def test_a_file_that_is_a_folder(file: Path) -> None:
    file.mkdir(parents=True)
    with pytest.raises(ConfigError, match="can't be read"):
        _ = Config(file).namespace


def test_a_file_of_kubetorch(write: Any) -> None:
    c = write("username: Ann\nlicense_key: abc\ninstall_url: http://x\nsomething_newer: 3\nnamespace: None\n")
    assert c.username == "Ann"
    assert c.license_key == "abc"
    assert c.namespace is None
    assert "abc" not in repr(c)


def test_write_keeps_what_else_is_there(write: Any, file: Path) -> None:
    c = write("username: ann\nsomething_newer: 3\nnamespace: old\n")
    c.stream_logs = False
    assert c.write({"inactivity_ttl": "30m", "namespace": None}) == file
    again = Config(file)
    assert (again.username, again.stream_logs, again.inactivity_ttl, again.namespace) == ("ann", False, "30m", None)
    assert "something_newer: 3" in file.read_text()
    assert [p.name for p in file.parent.iterdir()] == ["config.yaml"]
    with pytest.raises(ConfigError):
        c.write({"backend": "docker"})


def test_write_makes_the_folder(file: Path) -> None:
    c = Config(file)
    c.volumes = ["a", "b"]  # type: ignore[assignment]
    c.save()
    assert Config(file).volumes == ("a", "b")


def test_reload(write: Any, file: Path) -> None:
    c = write("username: ann\n")
    assert c.username == "ann"
    file.write_text("username: bob\n")
    assert c.username == "ann"
    c.reload()
    assert c.username == "bob"


def test_reprs_do_no_io(file: Path) -> None:
    file.mkdir(parents=True)  # reading it would raise
    c = Config(file)
    assert "backend='auto'" in repr(c)
    assert "<table" in c._repr_html_()
    assert c.__dict__["_file"] is None


def test_unknown_attributes() -> None:
    with pytest.raises(AttributeError, match="no setting"):
        _ = config.nothing
    assert not hasattr(config, "_repr_png_")
    assert "namespace" in dir(config)


def test_every_setting_says_what_it_is() -> None:
    for name, setting in settings().items():
        assert setting.__doc__, name
        assert setting.__doc__.endswith(".")
