"""docs/magics.md has every command and option there is, and no other."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from kubetorch_jupyter.notebook.commands import COMMANDS, Commands
from kubetorch_jupyter.notebook.magics import KT
from pod_server.worker.shell import CELL_MAGICS, LINE_MAGICS
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "magics.md").read_text()
_OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*|-[a-z])(?![\w-])")


def _section(title: str) -> str:
    """From a heading to the next of its level."""
    [text] = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    return text


def _rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def _named(text: str) -> set[str]:
    """The options that stand in code in a text."""
    return {option for code in re.findall(r"`([^`]+)`", text) for option in _OPTION.findall(code)}


def _offered(help: str) -> set[str]:
    return set(_OPTION.findall(help)) - {"-h", "--help"}


@pytest.mark.parametrize(("title", "parser"), [("`%%kt`", KT._run_parser), ("`%%kt deploy`", KT._deploy_parser)])
def test_options_of_cells(title: str, parser: object) -> None:
    # The parsers need nothing of the magics' object.
    offered = _offered(parser(None).format_help())  # type: ignore[operator]
    assert {option for first, *_ in _rows(_section(title)) for option in _named(first)} == offered


def test_commands() -> None:
    assert [re.match(r"`%kt (\w+)", first)[1] for first, _ in _rows(_section("`%kt`"))] == [*COMMANDS, "help"]  # type: ignore[index]


@pytest.mark.parametrize("name", COMMANDS)
def test_options_of_a_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    COMMANDS[name](Commands(SimpleNamespace(user_ns={}), lambda: None), ["--help"])
    help = capsys.readouterr().out
    [row] = [" ".join(cells) for cells in _rows(_section("`%kt`")) if cells[0].startswith(f"`%kt {name}")]
    assert _named(row) == _offered(help)


def test_magics_of_a_pod() -> None:
    lines, cells = re.findall(r"\*\*(?:Line|Cell) magics\*\*.*?(?=\*\*Cell|\n)", TEXT)
    assert "`name?`" in lines  # which IPython makes a magic of
    assert set(re.findall(r"`%(\w+)`", lines)) == set(LINE_MAGICS) - {"pinfo", "pinfo2"}
    assert set(re.findall(r"`%%(\w+)`", cells)) - {"kt"} == set(CELL_MAGICS)
