"""The panel's looks and orders, and commands for several services, without a kernel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

import kubetorch_jupyter as kt
from kubetorch_jupyter.notebook import commands
from kubetorch_jupyter.notebook.commands import Commands
from kubetorch_jupyter.notebook.panel import looking
from kubetorch_jupyter.notebook.panel.doing import Order
from kubetorch_jupyter.notebook.panel.looking import Looker

SERVICE = SimpleNamespace(
    name="train",
    backend="kubernetes",
    namespace="team",
    state="running",
    status={"state": "ready", "calls": 1},
    endpoint="somewhere",
    created=1.0,
    detached=True,
    resources={},
    owner={"user": "alice"},
    detail="",
)
RUNNING = {
    "id": "train/01JD0000000000000800000003",
    "f": "train",
    "state": "running",
    "started": 2.0,
    "ended": None,
    "log": 4,
    "by": {"user": "alice"},
}
UNREACHABLE = {"state": "unreachable", "error": "replica 1 doesn't answer", "id": None}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is answered to `kt.calls`, one after the other; the last one goes on."""
    given: list[Any] = []

    def calls(service: str) -> list[dict[str, Any]]:
        answer = given.pop(0) if len(given) > 1 else given[0]
        if isinstance(answer, Exception):
            raise answer
        return cast(list[dict[str, Any]], answer)

    monkeypatch.setattr(looking.kt, "services", lambda usage: [SERVICE])
    monkeypatch.setattr(looking.kt, "calls", calls)
    service = SimpleNamespace(tail=lambda id, last: f"log of {id}")
    monkeypatch.setattr(looking.kt.Module, "from_name", lambda name: SimpleNamespace(service=service))
    return given


def test_a_replica_that_does_not_answer_hides_no_call(answers: list[Any]) -> None:
    answers.append([RUNNING, UNREACHABLE])
    look = Looker().look("train", None)
    assert [call.id for call in look.calls] == [RUNNING["id"]]
    assert look.log == f"log of {RUNNING['id']}"
    assert look.problem == "replica 1 doesn't answer"


def test_what_was_seen_last_stands_while_a_question_is_not_answered(answers: list[Any]) -> None:
    answers += [[RUNNING], kt.ConnectionFailedError("the API server is away")]
    looker = Looker()
    first = looker.look("train", None)
    second = looker.look("train", None)
    assert (second.calls, second.log_of, second.log) == (first.calls, first.log_of, first.log)
    assert second.problem == "the API server is away"
    assert Looker().look("train", None).calls == ()


@pytest.mark.parametrize("text", ['{{"size": 3}}', "{[]: 1}", "3", "f(x)", "{'a': "])
def test_arguments_that_cannot_be_read(text: str) -> None:
    with pytest.raises(kt.ConfigError, match="a dict of keywords"):
        Order("Model", init_args=text).arguments()


def test_one_service_that_does_not_end_leaves_none_of_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[str] = []

    def tear_down(name: str, values: Any, namespace: str | None) -> None:
        if name == "gone":
            raise kt.ServiceNotFoundError('there is no service "gone"')
        if name == "stays":
            raise kt.DeployError("its pod doesn't go")
        ended.append(name)

    monkeypatch.setattr(commands, "tear_down", tear_down)
    names = ["first", "gone", "stays", "last"]
    monkeypatch.setattr(commands.kt, "services", lambda namespace=None: [SimpleNamespace(name=name) for name in names])
    shell = SimpleNamespace(user_ns={})
    with pytest.raises(kt.DeployError, match="doesn't go"):
        Commands(cast(Any, shell), lambda: None).down(["--all"])
    assert ended == ["first", "last"]
    said = capsys.readouterr().out
    assert 'kubetorch: "gone" had ended already\n' in said
    assert 'kubetorch: "stays" has not ended: its pod doesn\'t go\n' in said
