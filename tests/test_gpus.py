"""Which GPUs there are, by the environment, and who gets which."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kubetorch_jupyter.backends import gpus
from kubetorch_jupyter.errors import ConfigError, ResourceNotAvailableError


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("KT_LOCAL_GPUS", raising=False)


@pytest.mark.parametrize(
    ("visible", "declared", "expected"),
    [
        ("2,5", None, ["2", "5"]),
        ("", None, []),
        ("-1", None, []),
        ("0,-1,1", None, ["0"]),
        (" 1 , GPU-8c2, MIG-x ", None, ["1", "GPU-8c2", "MIG-x"]),
        (None, "2", ["0", "1"]),
        (None, "0", []),
        ("4,6,7", "2", ["4", "6"]),
        ("", "1", ["0"]),
    ],
)
def test_the_environment_says_which(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, declared: str | None, expected: list[str]
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if declared is not None:
        monkeypatch.setenv("KT_LOCAL_GPUS", declared)
    assert gpus.devices() == expected


def test_a_number_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KT_LOCAL_GPUS", "many")
    with pytest.raises(ConfigError, match="KT_LOCAL_GPUS"):
        gpus.devices()


@pytest.mark.parametrize(("code", "expected"), [("echo 0; echo 1", ["0", "1"]), ("exit 9", None)])
def test_the_driver_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, expected: list[str] | None
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    files = [str(n) for n in range(sum(name[6:].isdecimal() for name in os.listdir("/dev") if name[:6] == "nvidia"))]
    assert gpus.devices() == (files if expected is None else expected)


def test_free_ones_are_chosen() -> None:
    assert gpus.choose("a", 2, ["0", "1", "2"], {"1": "b"}) == ["0", "2"]


@pytest.mark.parametrize(
    ("count", "available", "held", "says"),
    [
        (1, [], {}, ['service "a" asks for 1 GPU:', "has none", "KT_LOCAL_GPUS=N"]),
        (3, ["0", "1"], {}, ["asks for 3 GPUs: 2 of 2 are free", "Ask for fewer"]),
        (2, ["0", "1"], {"0": "b"}, ["1 of 2 are free", '"b"', "Tear one of those services down"]),
    ],
)
def test_too_few_are_a_clear_error(count: int, available: list[str], held: dict[str, str], says: list[str]) -> None:
    with pytest.raises(ResourceNotAvailableError) as caught:
        gpus.choose("a", count, available, held)
    for text in says:
        assert text in str(caught.value)
