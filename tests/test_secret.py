from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from kubetorch_jupyter.errors import ConfigError
from kubetorch_jupyter.secret import PROVIDERS, Secret, secret

NAMES = [
    "anthropic",
    "aws",
    "azure",
    "cohere",
    "gcp",
    "github",
    "huggingface",
    "kubeconfig",
    "lambda",
    "langchain",
    "openai",
    "pinecone",
    "ssh",
    "wandb",
]


def test_kubetorchs_providers() -> None:
    assert sorted(PROVIDERS) == sorted(Secret.builtin_providers()) == NAMES
    for name in NAMES:
        described = secret(provider=name)
        assert described.name == name
        assert described.folder or described.environment
        assert not described.folder or described.folder.startswith("~/")
        assert bool(described.folder) == bool(described.filenames)
    assert secret(provider="aws").filenames == ("config", "credentials")
    assert secret(provider="openai").environment == {"api_key": "OPENAI_API_KEY"}


def test_the_ways_to_describe_one() -> None:
    assert secret("db", values={"password": "x"}).values == {"password": "x"}
    assert secret("db", env_vars={"key": "DB_KEY"}).environment == {"key": "DB_KEY"}
    assert secret("db", env_vars=["DB_KEY"]).environment == {"DB_KEY": "DB_KEY"}
    assert secret("db", path="~/db").folder == "~/db"
    assert secret("my_Db").name == "my-db"
    assert secret(path="~/.aws").provider == "aws"
    assert secret(provider="aws", path="/elsewhere").folder == "/elsewhere"
    assert Secret.from_provider("aws", override=True).override
    assert Secret.from_env({"a": "A"}, name="x") == secret("x", env_vars={"a": "A"})
    assert Secret.from_name("x", namespace="ml").namespace == "ml"
    assert secret("x").environment == {}
    assert secret("x").folder is None
    assert Secret("x", path=Path("/a")).path == "/a"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"provider": "nobody"},
        {"name": "a b"},
        {"name": "x", "path": "~/a", "env_vars": {"a": "A"}},
        {"provider": "aws", "env_vars": {"a": "A"}},
        {"name": "x", "values": {"a": 3}},
        {"name": "x", "values": ["a"]},
        {"name": "x", "env_vars": {"a": 3}},
        {"name": "x", "env_vars": []},
        {"name": "x", "path": " "},
        {"name": "x", "namespace": "A"},
        {"path": "~/a"},
    ],
)
def test_nonsense_is_one_clear_error(keywords: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        secret(**keywords)
    assert "Secret" in str(caught.value)


def test_values_never_show() -> None:
    described = secret("db", values={"password": "hunter2"})
    assert "hunter2" not in repr(described) + str(described) + described._repr_html_()
    assert "password" in repr(described)
    with pytest.raises(ConfigError) as caught:
        secret("db", values={"password": "hunter2", "n": 3})
    assert "hunter2" not in str(caught.value)


def test_it_is_a_value() -> None:
    one = secret("db", values={"password": "x", "key": b"\0"})
    assert one == pickle.loads(pickle.dumps(one))
    assert hash(one) == hash(pickle.loads(pickle.dumps(one)))
    assert one != secret("db", values={"password": "y"})
