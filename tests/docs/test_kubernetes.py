"""What docs/kubernetes.md says that can be held against the code: the Role, the settings, the examples."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
import yaml

import kubetorch_jupyter as kt
from kubetorch_jupyter.backends.kubernetes.names import PORT
from kubetorch_jupyter.backends.kubernetes.rights import OTHERWISE, ROLE
from kubetorch_jupyter.config import settings
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "kubernetes.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def _manifests() -> dict[str, Any]:
    return {each["kind"]: each for each in map(yaml.safe_load, _blocks("yaml"))}


def test_the_role_is_what_is_asked_for() -> None:
    rules = _manifests()["Role"]["rules"]
    assert rules == [yaml.safe_load(right.rule)[0] for right in ROLE]
    assert f"`{OTHERWISE.rule[2:]}`" in TEXT


def test_the_binding_is_of_that_role() -> None:
    role, binding = _manifests()["Role"], _manifests()["RoleBinding"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["metadata"]["namespace"] == role["metadata"]["namespace"]


def test_the_network_policy_is_for_our_port() -> None:
    [rule] = _manifests()["NetworkPolicy"]["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == [PORT]


def test_settings_are_there() -> None:
    named = set(re.findall(r"kt\.config\.(\w+)", TEXT)) | {n.lower() for n in re.findall(r"\bKT_([A-Z_]+)", TEXT)}
    assert len(named) > 8
    assert named <= {*settings()}


def _calls() -> list[str]:
    """Every ``kt.Compute(...)``, ``kt.Volume(...)`` and ``kt.secret(...)`` of the page."""
    found = []
    inline = [code for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", TEXT) if code.startswith("kt.")]
    for code in [*_blocks("python"), *inline]:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("kt.Compute", "kt.Volume", "kt.secret"):
                found.append(ast.unparse(node))
    return [code for code in dict.fromkeys(found) if "..." not in code and "Ellipsis" not in code]


@pytest.mark.parametrize("code", _calls())
def test_examples_make_sense(code: str) -> None:
    eval(code, {"kt": kt, "datasets": kt.Volume("datasets", size="1Gi")})


def test_there_are_examples() -> None:
    assert len(_calls()) > 8


@pytest.mark.parametrize("command", re.findall(r"`%kt (\w+)", TEXT))
def test_commands_are_there(command: str) -> None:
    from kubetorch_jupyter.notebook.commands import COMMANDS

    assert command in COMMANDS
