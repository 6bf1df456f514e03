"""What a ``kt.Secret`` stands for on this machine, and how a pod gets it."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kubetorch_jupyter.backends.kubernetes import names
from kubetorch_jupyter.backends.kubernetes.manifests import job, user_secrets
from kubetorch_jupyter.backends.kubernetes.secrets import LIMIT, SecretSource, read_secrets
from kubetorch_jupyter.errors import ConfigError, SecretNotFound
from kubetorch_jupyter.secret import PROVIDERS, Secret, secret

from .plans import plan


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for provider in PROVIDERS.values():
        for variable in provider.env_vars.values():
            monkeypatch.delenv(variable, raising=False)
    return folder


def _one(item: str | Secret) -> SecretSource:
    (found,) = read_secrets([item], "team-a")
    return found


@pytest.mark.parametrize("name", sorted(name for name in PROVIDERS if PROVIDERS[name].path))
def test_each_provider_from_its_files(name: str, home: Path) -> None:
    provider = PROVIDERS[name]
    folder = home / str(provider.path).removeprefix("~/")
    folder.mkdir(parents=True)
    for filename in provider.filenames:
        (folder / filename).write_text(f"content of {filename}\n")
    found = _one(name)
    assert set(found.data) == set(provider.filenames)
    if provider.file_env:
        assert found.env == {"HF_TOKEN": "token"}
        assert found.data == {"token": b"content of token"}
        assert found.files == {}
    else:
        assert set(found.files) == {f"{provider.path}/{filename}" for filename in provider.filenames}
        assert all(value.endswith(b"\n") for value in found.data.values())


@pytest.mark.parametrize("name", sorted(name for name in PROVIDERS if PROVIDERS[name].env_vars))
def test_each_provider_from_its_variables(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = list(PROVIDERS[name].env_vars.values())
    for variable in variables[1:]:
        monkeypatch.setenv(variable, "x")
    with pytest.raises(SecretNotFound, match=variables[0]) as caught:
        _one(name)
    assert not any(f" {variable} " in str(caught.value) for variable in variables[1:])
    monkeypatch.setenv(variables[0], "välue")
    found = _one(secret(provider=name, name="mine"))
    assert found.name == "mine"
    assert found.env == {variable: variable for variable in variables}
    assert found.data[variables[0]] == "välue".encode()


@pytest.mark.parametrize("name", sorted(name for name in PROVIDERS if not PROVIDERS[name].env_vars))
def test_a_provider_without_a_file_says_where_it_looked(name: str, home: Path) -> None:
    with pytest.raises(SecretNotFound) as caught:
        _one(name)
    path = home / str(PROVIDERS[name].path).removeprefix("~/") / PROVIDERS[name].filenames[0]
    assert str(path) in str(caught.value)
    assert "path=" in str(caught.value)


def test_files_win_over_variables_and_one_of_two_is_enough(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    (home / ".aws").mkdir()
    assert set(_one("aws").env) == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    (home / ".aws/credentials").write_text("[default]")
    found = _one("aws")
    assert (dict(found.env), dict(found.files)) == ({}, {"~/.aws/credentials": "credentials"})


def test_a_providers_files_elsewhere_are_where_its_tools_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    # Said where it is: nothing else is taken in its stead.
    with pytest.raises(SecretNotFound, match="elsewhere"):
        _one(secret(provider="aws", path=str(elsewhere)))
    (elsewhere / "config").write_text("c")
    assert dict(_one(secret(provider="aws", path=str(elsewhere))).files) == {"~/.aws/config": "config"}


def test_another_key_of_a_provider_keeps_its_place(home: Path) -> None:
    (home / ".ssh").mkdir()
    (home / ".ssh/id_ed25519").write_bytes(b"key")
    found = _one(secret(provider="ssh", path="~/.ssh/id_ed25519"))
    assert dict(found.files) == {"~/.ssh/id_ed25519": "id_ed25519"}


def test_given_values_are_variables() -> None:
    found = _one(secret("db", values={"PASSWORD": "hunter2", "USER_NAME": b"me"}))
    assert dict(found.data) == {"PASSWORD": b"hunter2", "USER_NAME": b"me"}
    assert dict(found.env) == {"PASSWORD": "PASSWORD", "USER_NAME": "USER_NAME"}


def test_variables_of_this_machine_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_KEY", "k")
    assert dict(_one(secret("db", env_vars={"key": "DB_KEY"})).env) == {"DB_KEY": "DB_KEY"}
    monkeypatch.delenv("DB_KEY")
    with pytest.raises(SecretNotFound, match="DB_KEY is not set here") as caught:
        _one(secret("db", env_vars=["DB_KEY"]))
    assert "%env DB_KEY=" in str(caught.value)


def test_a_file_or_the_files_of_a_folder(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    (folder / "below").mkdir(parents=True)
    (folder / "ca.pem").write_bytes(b"ca\0")
    (folder / "a key").write_bytes(b"1")
    (folder / "a-key").write_bytes(b"2")
    found = _one(secret("tls", path=str(folder)))
    assert {path: found.data[key] for path, key in found.files.items()} == {
        f"{folder}/ca.pem": b"ca\0",
        f"{folder}/a key": b"1",
        f"{folder}/a-key": b"2",
    }
    (home / "token").write_bytes(b"t")
    for path in ("~/token", str(home / "token"), str(home / "x/../token")):
        (home / "x").mkdir(exist_ok=True)
        assert list(_one(secret("t", path=path)).files) == ["~/token"]


def test_a_file_that_is_not_there_or_not_readable(home: Path, tmp_path: Path) -> None:
    with pytest.raises(SecretNotFound, match="there is no file .*/home/nothing"):
        _one(secret("t", path="~/nothing"))
    (home / "empty").mkdir()
    with pytest.raises(SecretNotFound, match="has no files in it"):
        _one(secret("t", path="~/empty"))
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(SecretNotFound, match="loop"):
        _one(secret("t", path=str(loop)))
    if os.getuid() != 0:
        (home / "closed").touch(mode=0)
        with pytest.raises(SecretNotFound, match="can't be read: Permission denied"):
            _one(secret("t", path="~/closed"))


def test_the_clusters_own_by_name() -> None:
    for item in ("team.database", Secret.from_name("team.database"), Secret.from_name("team.database", "team-a")):
        found = _one(item)
        assert found.existing
        assert found.data == {}
    worker = job(plan(secrets=[_one("database")]))["spec"]["template"]["spec"]["containers"][1]
    assert worker["envFrom"] == [{"secretRef": {"name": "database"}}]
    assert user_secrets(plan(secrets=[_one("database")])) == []
    with pytest.raises(ConfigError, match="of namespace team-b, and the service goes to team-a"):
        _one(Secret.from_name("database", "team-b"))


def test_too_large_is_said_before_the_cluster_is_asked(home: Path) -> None:
    (home / "big").write_bytes(bytes(LIMIT + 1))
    with pytest.raises(ConfigError, match=r"big has 1.0 MiB.*can hold 1.0 MiB"):
        _one(secret("t", path="~/big"))
    (home / "many").mkdir()
    for name in "ab":
        (home / "many" / name).write_bytes(bytes(LIMIT - 10))
    with pytest.raises(ConfigError, match="can hold"):
        _one(secret("t", path="~/many"))
    with pytest.raises(ConfigError, match="it has 1.0 MiB"):
        _one(secret("t", values={"A": "x" * LIMIT, "B": "y"}))
    (home / "big").write_bytes(bytes(LIMIT))
    assert len(_one(secret("t", path="~/big")).data["big"]) == LIMIT


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"a b": "hunter2"}, "can't be the name of a variable"),
        ({"1a": "hunter2"}, "can't be the name of a variable"),
        ({"A": b"hunter2\xff"}, "is binary"),
        ({"A": "hunter2\0"}, "is binary"),
    ],
)
def test_what_no_variable_can_hold(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        _one(secret("db", values=values))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("secrets", "words"),
    [
        ([secret("a", values={"K": "1"}), secret("a", values={"L": "1"})], 'two secrets called "a"'),
        ([secret("a", values={"K": "1"}), secret("b", values={"K": "1"})], "both to be the variable K"),
        (["database", Secret.from_name("database")], 'two secrets called "database"'),
    ],
)
def test_two_for_one_place(secrets: list[str | Secret], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_secrets(secrets, "team-a")


def test_values_never_show() -> None:
    found = _one(secret("db", values={"PASSWORD": "hunter2"}))
    made = plan(secrets=[found])
    assert "hunter2" not in repr(found) + str(found) + repr(made)
    assert "PASSWORD" in repr(found)
    assert base64.b64decode(user_secrets(made)[0]["data"]["PASSWORD"]) == b"hunter2"


def test_the_workers_command_links_files_into_its_home_and_goes_on(tmp_path: Path) -> None:
    """The command itself, run here with the pod's paths moved below a folder of the test's."""
    source = SecretSource(
        "aws", {"config": b"c", "odd": b"o"}, files={"~/.aws/config": "config", "~/.aws/$(odd) one": "odd"}
    )
    worker = job(plan(secrets=[source]))["spec"]["template"]["spec"]["containers"][1]
    root = tmp_path / "root"
    mounted = root / names.USER_SECRETS_PATH.lstrip("/") / "aws"
    mounted.mkdir(parents=True)
    for key, value in source.data.items():
        (mounted / key).write_bytes(value)
    boot = root / names.BUNDLE_PATH.lstrip("/") / "boot.py"
    boot.parent.mkdir(parents=True)
    boot.write_text("import sys; print(sys.argv[1:])")
    # What Kubernetes does to an argument, and where the pod's paths are here.
    arguments = [
        argument.replace("$$", "$").replace("/kubetorch/", f"{root}/kubetorch/") for argument in worker["args"]
    ]
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "python3").symlink_to(sys.executable)
    for _ in range(2):  # a container that is started again finds the links there
        done = subprocess.run(
            [*worker["command"], *arguments],
            env={"PATH": f"{bin_folder}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith("['worker', '--dir', ")
    home = root / names.HOME.lstrip("/")
    assert (home / ".aws/config").read_bytes() == b"c"
    assert (home / ".aws/$(odd) one").read_bytes() == b"o"
    (home / ".aws/cache").write_text("what the tool itself keeps there")


def test_the_command_says_that_there_is_no_python(tmp_path: Path) -> None:
    command = job(plan())["spec"]["template"]["spec"]["containers"][0]["command"]
    script = command[2]
    # Only its own paths could find one in spite of an empty PATH.
    for path in ("/usr/local/bin/python3", "/opt/conda/bin/python", "/opt/venv/bin/python"):
        script = script.replace(path, str(tmp_path / "nothing"))
    done = subprocess.run(["/bin/sh", "-c", script, "sh"], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 127
    assert done.stderr.startswith("kubetorch: there is no Python in this image")
    assert done.stderr.count("\n") == 1
