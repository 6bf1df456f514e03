"""The messages in the documentation are those that people see."""

from __future__ import annotations

import re

import pytest

from kubetorch_jupyter.backends.kubernetes.diagnosis import death, expired
from tests.conftest import ROOT

from .recordings import RECORDED, diagnosed, recorded

PAGE = (ROOT / "docs" / "kubernetes-troubleshooting.md").read_text()
#: What no recording has: a cluster with taints, autoscalers or lost nodes, or a Job that somebody suspends.
NOT_RECORDED = {
    "untolerated taint",
    "a node is being added",
    "no node will be added",
    "which isn't ready",
    "isn't ready any more",
    "waits for a volume",
    "has been suspended for",
    "runs, and can't be reached",
}


def _messages(heading: str) -> list[str]:
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def _deploys() -> str:
    said = []
    for path in RECORDED.glob("*.json"):
        seen = diagnosed(path.stem)
        if seen.weight:
            said.append(f"{seen.detail}\n{seen.error or expired(seen, 5)}")
    return "\n".join(said)


def _ends() -> str:
    seen = [recorded(path.stem) for path in RECORDED.glob("died-*.json")]
    return "\n".join(str(death(pod, s["events"], now=s["at"]).error("train")) for s in seen for pod in s["pods"])


@pytest.mark.parametrize(
    ("heading", "said"),
    [("While a service is deployed", _deploys()), ("While a call runs", _ends())],
    ids=["deploy", "call"],
)
def test_the_messages_are_real(heading: str, said: str) -> None:
    listed = _messages(heading)
    assert len(listed) >= 9
    assert [message for message in listed if message not in said and message not in NOT_RECORDED] == []


def test_every_recorded_trouble_is_in_the_documentation() -> None:
    listed = _messages("While a service is deployed")
    for path in RECORDED.glob("*.json"):
        seen = diagnosed(path.stem)
        if seen.weight and not path.stem.startswith("died-"):
            words = f"{seen.detail}\n{seen.error or expired(seen, 5)}"
            assert any(message in words for message in listed), path.stem
