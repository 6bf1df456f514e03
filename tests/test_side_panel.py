"""The kernel's side of the side panel, in this process: what it answers, at once, whatever it is asked."""

from __future__ import annotations

import ast
import json
import re
import threading
import time
import types
from collections.abc import Iterator
from typing import Any

import pytest

import kubetorch_jupyter as kt
from kubetorch_jupyter.notebook import side_panel
from kubetorch_jupyter.notebook.side_panel import listening, watching
from kubetorch_jupyter.notebook.side_panel.listening import KEY, PREFIX, SUFFIX, argument
from tests.conftest import ROOT

SOURCES = ROOT / "labextension" / "src"
_FILE = ROOT / "labextension" / "test" / "literals.json"
#: This module is imported in pods too, where the file isn't.
LITERALS = json.loads(_FILE.read_text()) if _FILE.exists() else []


def speak(n: int) -> int:
    for i in range(n):
        print("line", i, flush=True)
        time.sleep(0.02)
    return n


class Counter:
    def __init__(self, start: int) -> None:
        self.value = start

    def add(self, number: int, times: int = 1) -> int:
        self.value += number * times
        return self.value


class Asker:
    """A side panel that asks this process."""

    def __init__(self, client: str = "one") -> None:
        self.client = client
        self.log: dict[str, Any] | None = None
        self.text = ""
        self.heard = {"life": "", "n": 0}

    def ask(self, do: str, **about: Any) -> dict[str, Any]:
        question = {"v": 1, "client": self.client, "do": do, **about}
        answer: dict[str, Any] = json.loads(str(side_panel.answer(json.dumps(question))))
        assert "error" not in answer, answer["error"]
        return answer

    def look(self, service: str | None = None, log: str | None = None) -> dict[str, Any]:
        since = {"log": 0, "at": 0}
        if self.log is not None:
            since = {"log": self.log["generation"], "at": self.log["begin"] + len(self.log["text"])}
        answer = self.ask("look", service=service, log=log, since=since, heard=self.heard)
        if answer.get("log"):
            if self.log is None or answer["log"]["generation"] != self.log["generation"]:
                self.text = ""
            self.log = answer["log"]
            self.text += answer["log"]["text"]
        if answer["outcomes"]:
            self.heard = {"life": answer["life"], "n": answer["outcomes"][-1]["n"]}
        return answer

    def until(self, condition: Any, service: str | None = None, log: str | None = None) -> dict[str, Any]:
        deadline = time.monotonic() + 20
        while not condition(answer := self.look(service, log)):
            assert time.monotonic() < deadline, answer
            time.sleep(0.05)
        return answer

    def outcome(self, id: str) -> dict[str, Any]:
        answer = self.until(lambda a: any(each["id"] == id for each in a["outcomes"]))
        return next(each for each in answer["outcomes"] if each["id"] == id)


@pytest.fixture
def namespace() -> Iterator[dict[str, Any]]:
    """The variables of a notebook that has loaded the extension."""
    variables: dict[str, Any] = {}
    side_panel.install(types.SimpleNamespace(user_ns=variables))
    yield variables
    side_panel.uninstall()


def find(answer: dict[str, Any], name: str) -> dict[str, Any]:
    row: dict[str, Any] = next(row for row in answer["services"] if row["name"] == name)
    return row


# -- what travels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", LITERALS, ids=lambda row: ascii(row["value"]))
def test_the_front_ends_literal_is_what_it_was_made_of(row: dict[str, str]) -> None:
    literal = row["literal"]
    assert literal.isascii()
    assert isinstance(ast.parse(literal, mode="eval").body, ast.Constant)
    content = {"code": "", "user_expressions": {KEY: PREFIX + literal + SUFFIX}}
    text = argument(content)
    assert text is not None
    assert json.loads(text) == {"text": row["value"]}
    # As IPython does it, where the kernel doesn't hand the question over.
    heard: list[str] = []
    module = types.ModuleType("stand-in")
    module.answer = heard.append  # type: ignore[attr-defined]
    modules = {"kubetorch_jupyter.notebook.side_panel": module}
    scope = {"__builtins__": {"__import__": lambda name: types.SimpleNamespace(modules=modules)}}
    eval(content["user_expressions"][KEY], scope)  # type: ignore[index]
    assert heard == [text]


def test_both_sides_have_the_same_expression_and_protocol() -> None:
    question, protocol = (SOURCES / "question.ts").read_text(), (SOURCES / "protocol.ts").read_text()
    (parts,) = re.findall(r"export const PREFIX =\n(.*?);", question, re.S)
    assert "".join(re.findall(r"'(.*)'", parts)) == PREFIX
    assert re.findall(r"export const SUFFIX = '(.*)'", question) == [SUFFIX]
    assert re.findall(r"export const KEY = '(.*)'", question) == [KEY]
    assert re.findall(r"export const PROTOCOL = (\d+)", protocol) == ["1"]


def test_the_expression_imports_nothing_of_ours() -> None:
    expression = f'{PREFIX}"{{}}"{SUFFIX}'
    fresh = types.SimpleNamespace(modules={})
    found = types.SimpleNamespace(util=types.SimpleNamespace(find_spec=lambda name: None))
    imports = {"sys": fresh, "importlib.util": found}
    assert eval(expression, {"__builtins__": {"__import__": imports.__getitem__}}) is False


@pytest.mark.parametrize(
    "content",
    [
        None,
        {},
        {"code": "1", "user_expressions": {KEY: f'{PREFIX}"{{}}"{SUFFIX}'}},
        {"code": "", "user_expressions": {"other": f'{PREFIX}"{{}}"{SUFFIX}'}},
        {"code": "", "user_expressions": {KEY: f'{PREFIX}"{{}}"{SUFFIX}', "other": "1"}},
        {"code": "", "user_expressions": {KEY: f"{PREFIX}exit(){SUFFIX}"}},
        {"code": "", "user_expressions": {KEY: f'{PREFIX}"a"), exit("b"{SUFFIX}'}},
        {"code": "", "user_expressions": {KEY: f"{PREFIX}12{SUFFIX}"}},
        {"code": "", "user_expressions": {KEY: 12}},
        {"code": "", "user_expressions": {KEY: PREFIX + "(" * 1000 + SUFFIX}},
    ],
)
def test_other_requests_are_left_to_the_kernel(content: Any) -> None:
    assert argument(content) is None


@pytest.mark.parametrize(
    "text",
    ["", "no JSON", "[]", "null", "[" * 100_000, '{"v": 1}', '{"v": 1, "do": "look"}', '{"v": 1, "do": "look", '
     '"client": 3}', '{"v": 1, "do": ["x"], "client": "a"}', '{"v": 1, "do": "down", "client": "a"}',
     '{"v": 1, "do": "look", "client": "a", "service": {}}', '{"v": 1, "do": "stop", "client": "a", "service": "a"}',
     '{"v": 1, "do": "__class__", "client": "a"}', '{"v": NaN}', '{"v": 1, "do": "\\ud800"}'],
)  # fmt: skip
def test_garbage_is_answered_with_what_is_wrong(namespace: dict[str, Any], text: str) -> None:
    answer = json.loads(str(side_panel.answer(text)))
    assert answer["error"]
    assert answer["loaded"] is True


def test_another_version_of_the_protocol(namespace: dict[str, Any]) -> None:
    answer = json.loads(str(side_panel.answer('{"v": 2, "do": "look", "client": "a"}')))
    assert "install the same version" in answer["error"]
    assert kt.__version__ in answer["error"]


def test_without_the_extension() -> None:
    answer = json.loads(str(side_panel.answer('{"v": 1, "do": "look", "client": "a"}')))
    assert answer == {"v": 1, "version": kt.__version__, "loaded": False}


def test_an_answer_shown_by_ipython_is_its_text() -> None:
    from IPython.lib.pretty import pretty

    answer = side_panel.answer("")
    assert pretty(answer) == str(answer)


# -- looking -----------------------------------------------------------------------------------------------------------


def test_services_calls_and_a_log_that_grows(namespace: dict[str, Any]) -> None:
    asker = Asker()
    with kt.fn(speak, name="panel-speak").to(kt.Compute(cpus="1"), stream_logs=False) as remote:
        asker.until(lambda a: any(row["name"] == "panel-speak" for row in a.get("services", ())))
        row = find(asker.look(), "panel-speak")
        assert row["state"] == "ready"
        assert row["asksFor"] == "cpus=1"
        assert 0 <= row["age"] < 60
        answer = asker.until(lambda a: a.get("selected") is not None, "panel-speak")
        assert answer["calls"] == []

        call = remote.spawn(100)
        answer = asker.until(lambda a: a["calls"] and a["log"]["text"], "panel-speak")
        (shown,) = answer["calls"]
        assert shown["id"] == answer["log"]["of"] == call.id
        assert shown["active"]
        assert shown["state"] == "running"
        call.result()
        asker.until(lambda a: "line 99" in asker.text, "panel-speak")
        # Each line came once, in pieces.
        assert asker.text == "".join(f"line {i}\n" for i in range(100))
        assert asker.log is not None
        assert asker.log["begin"] > 0
        again = Asker("another")
        again.until(lambda a: again.text, "panel-speak")
        assert again.text == asker.text
        answer = asker.until(lambda a: a["log"]["of"] == "service", "panel-speak", "service")
        assert not answer["calls"][0]["active"]
    asker.until(lambda a: all(row["name"] != "panel-speak" for row in a["services"]))


def test_a_long_log_is_cut_and_says_so(namespace: dict[str, Any]) -> None:
    def shout(n: int) -> None:
        print("x" * 99 + "\n", end="", flush=True)
        print(("y" * 99 + "\n") * n, end="", flush=True)
        print("the end", flush=True)

    asker = Asker()
    with kt.fn(shout, name="panel-shout").to(kt.Compute(), stream_logs=False) as remote:
        remote(2_000)
        asker.until(lambda a: "the end" in asker.text, "panel-shout")
    assert "left out here; kt.logs(" in asker.text
    assert "x" not in asker.text.partition("\n")[2]
    assert len(asker.text) < 64 << 10


def test_a_look_that_takes_long_holds_nobody_up(namespace: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def services(*_: Any, **__: Any) -> list[Any]:
        release.wait(20)
        return []

    monkeypatch.setattr(kt, "services", services)
    before = set(threading.enumerate())
    asker = Asker()
    began = time.monotonic()
    for _ in range(5):
        answer = asker.look("anything")
        assert "services" not in answer
    spent = time.monotonic() - began
    threads = [thread for thread in set(threading.enumerate()) - before if "side-panel" in thread.name]
    release.set()
    assert spent < 3 * 5 * watching._FIRST
    assert len(threads) == 1
    answer = asker.until(lambda a: "services" in a)
    assert answer["services"] == []


def test_a_look_that_fails_is_told_the_second_time(namespace: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def services(*_: Any, **__: Any) -> list[Any]:
        looks.append(1)
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(kt, "services", services)
    asker = Asker()
    answer = asker.until(lambda a: a.get("problem"))
    assert answer["problem"] == "RuntimeError: a mistake of ours"
    assert len(looks) >= 2


def test_nobody_looks_when_nobody_asks(namespace: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_PATIENCE", 2.0)
    watcher = watching.Watcher("kubetorch-side-panel-test")
    watcher.ask(None, None)
    assert not watcher.idle
    thread = next(t for t in threading.enumerate() if t.name == "kubetorch-side-panel-test")
    thread.join(10)
    assert watcher.idle
    assert watcher.ask(None, None) is not None


def test_many_panels_are_not_all_kept(namespace: dict[str, Any]) -> None:
    for number in range(20):
        Asker(f"panel-{number}").look()
    from kubetorch_jupyter.notebook.side_panel import answering

    assert answering._desk is not None
    assert list(answering._desk._watchers) == [f"panel-{number}" for number in range(12, 20)]


# -- doing -------------------------------------------------------------------------------------------------------------


def test_stopping_restarting_and_tearing_down(namespace: dict[str, Any]) -> None:
    asker, other = Asker(), Asker("other")
    remote = namespace["remote"] = kt.fn(speak, name="panel-acts").to(kt.Compute(), stream_logs=False)
    asker.until(lambda a: any(row["name"] == "panel-acts" for row in a.get("services", ())))
    row = find(asker.look(), "panel-acts")

    call = remote.spawn(10_000)
    asker.until(lambda a: any(c["active"] for c in a["calls"]), "panel-acts")
    assert asker.ask("stop", id="a", service="panel-acts", call=call.id)["begun"]
    assert asker.outcome("a")["text"] == "the call is being cancelled"
    with pytest.raises(kt.CallCancelledError):
        call.result()

    pid = remote.service.status()["worker"]
    assert asker.ask("restart", id="b", service="panel-acts", created=row["created"])["begun"]
    assert asker.outcome("b")["text"] == '"panel-acts" was restarted'
    assert remote.service.status()["worker"] != pid

    # What was shown is another life of it.
    asker.ask("down", id="c", service="panel-acts", created=row["created"] - 1)
    assert "deployed anew meanwhile" in asker.outcome("c")["error"]
    asker.ask("down", id="d", service="panel-acts", created=row["created"])
    assert asker.outcome("d")["text"] == '"panel-acts" was torn down'
    # The notebook's own handle knows, so that the next call doesn't bring it back by surprise.
    with pytest.raises(kt.NotDeployedError):
        remote(1)
    asker.ask("down", id="e", service="panel-acts", created=row["created"])
    assert "no service" in asker.outcome("e")["error"]
    # Each panel hears of its own.
    assert other.look()["outcomes"] == []
    # Each is told once, unless the kernel is another one.
    assert asker.look()["outcomes"] == []
    asker.heard = {"life": "another", "n": 99}
    assert [each["id"] for each in asker.look()["outcomes"]] == ["a", "b", "c", "d", "e"]


def test_what_is_under_way_is_shown_and_not_begun_twice(
    namespace: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubetorch_jupyter.notebook.panel import doing

    release = threading.Event()

    def restart(name: str) -> str:
        assert release.wait(20)
        raise RuntimeError("the worker\ndied")

    monkeypatch.setattr(doing, "restart", restart)
    monkeypatch.setattr(kt, "services", lambda *_, **__: [types.SimpleNamespace(name="slow", created=1.0)])
    asker = Asker()
    asker.ask("restart", id="a", service="slow", created=1.0)
    assert asker.look()["busy"] == {"slow": "is being restarted"}
    again = {"v": 1, "client": "one", "do": "down", "id": "b", "service": "slow", "created": 1.0}
    assert "is being restarted already" in json.loads(str(side_panel.answer(json.dumps(again))))["error"]
    release.set()
    assert asker.outcome("a")["error"] == "RuntimeError: the worker died"
    assert asker.look()["busy"] == {}


def test_code_to_copy(namespace: dict[str, Any]) -> None:
    asker = Asker()
    with (
        kt.fn(speak, name="panel-code").to(kt.Compute(), stream_logs=False) as remote,
        kt.cls(Counter, name="panel-class").to(kt.Compute(), init_args={"start": 1}, stream_logs=False) as counter,
    ):
        call = remote.spawn(3)
        call.result()
        asker.ask("code", id="a", service="panel-code", call=call.id, function="panel-code")
        code = asker.outcome("a")["text"]
        assert 'panel_code = kt.fn(name="panel-code")\npanel_code(n=...)' in code
        scope: dict[str, Any] = {}
        exec(code.replace("n=...", "n=2"), scope)
        assert scope["call"].id == call.id
        assert scope["call"].logs() == "line 0\nline 1\nline 2\n"

        added = counter.add.spawn(2)
        added.result()
        asker.ask("code", id="b", service="panel-class", call=added.id, function="add")
        code = asker.outcome("b")["text"]
        assert "panel_class.add(number=...)" in code
        exec(code.replace("number=...", "number=4"), scope)
        assert counter.add(0) == 7
        assert scope["call"].id == added.id

        cells = kt.Cells("panel-cells").to(kt.Compute())
        asker.ask("code", id="n", service="panel-cells")
        code = asker.outcome("n")["text"]
        assert code.endswith("# or a cell: %%kt -n panel-cells")
        exec(code, scope)
        assert repr(scope["panel_cells"]).startswith("<kubetorch Cells panel-cells")
        cells.teardown()

        asker.ask("code", id="c", service="panel-code")
        assert asker.outcome("c")["text"].endswith("panel_code(n=...)")
    asker.ask("code", id="d", service="panel-code")
    assert "panel-code" in asker.outcome("d")["error"]


# -- the kernel --------------------------------------------------------------------------------------------------------


class FakeKernel:
    """What the listener needs of ipykernel's."""

    def __init__(self) -> None:
        self.parents: list[Any] = []
        self.statuses: list[str] = []
        self.shell_handlers = {"execute_request": lambda *args: "executed"}

    def set_parent(self, ident: Any, parent: Any, channel: str = "shell") -> None:
        self.parents.append(parent)

    def _publish_status(self, status: str, channel: str, parent: Any = None) -> None:
        self.statuses.append(status)


def test_what_is_installed_is_taken_back() -> None:
    kernel = FakeKernel()
    execute = kernel.shell_handlers["execute_request"]
    listener = listening.Listener(kernel, str)
    listener.install()
    listener.install()
    other = {"content": {"code": "1"}}
    assert kernel.shell_handlers["execute_request"](None, None, other) == "executed"
    kernel.set_parent(b"", other)
    kernel._publish_status("busy", "shell")
    assert kernel.parents == [other]
    assert kernel.statuses == ["busy"]
    listener.uninstall()
    listener.uninstall()
    assert kernel.shell_handlers == {"execute_request": execute}
    assert not {"set_parent", "_publish_status"} & set(vars(kernel))


def test_what_somebody_has_put_on_top_stays() -> None:
    kernel = FakeKernel()
    listener = listening.Listener(kernel, str)
    listener.install()
    ours = kernel.shell_handlers["execute_request"]
    kernel.shell_handlers["execute_request"] = lambda *args: ours(*args)
    listener.uninstall()
    assert kernel.shell_handlers["execute_request"](None, None, {"content": {}}) == "executed"


@pytest.mark.parametrize("kernel", [object(), types.SimpleNamespace(shell_handlers={})])
def test_a_kernel_of_another_make_is_left_alone(kernel: Any) -> None:
    before = dict(getattr(kernel, "__dict__", {}))
    listener = listening.Listener(kernel, str)
    listener.install()
    listener.uninstall()
    assert dict(getattr(kernel, "__dict__", {})) == before
