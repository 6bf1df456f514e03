"""What public objects look like: the same words as text and as HTML, escaped, with the theme's colours, and no I/O."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from IPython.lib.pretty import pretty

import kubetorch_jupyter as kt
from kubetorch_jupyter.overview import Table
from kubetorch_jupyter.preview import Preview
from kubetorch_jupyter.transport.portal import Portal, get_portal
from tests.markup import assert_says_the_same, words, words_of_html

EVIL = "<script>alert(1)</script>"


class Model:
    """A user's class."""

    def f(self, x: int) -> int:
        return x


def bundle(shown: Any) -> dict[str, str]:
    """What a front end gets."""
    return {"text/plain": pretty(shown), "text/html": shown._repr_html_()}


@pytest.fixture
def no_io(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a file or a connection, starts a process or asks the portal from here on, fails."""

    def refused(*args: object, **kwargs: object) -> Any:
        raise AssertionError(f"I/O in a repr: {args}")

    monkeypatch.setattr("builtins.open", refused)
    monkeypatch.setattr("io.open", refused)
    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.setattr(subprocess, "Popen", refused)
    for way in ("run", "submit", "call", "wrap"):
        monkeypatch.setattr(Portal, way, refused)


MAKERS: dict[str, Callable[[], Any]] = {
    "compute": lambda: kt.Compute(cpus=1, memory="2Gi", annotations={"x": EVIL}, env_vars={"TOKEN": "hunter2"}),
    "empty compute": kt.Compute,
    "image": lambda: kt.Image(EVIL).run_bash("pip install 'a<b'").set_env_vars({"HF_TOKEN": "hunter2"}),
    "empty image": kt.Image,
    "secret": lambda: kt.Secret("db", values={"password": "hunter2"}),
    "volume": lambda: kt.Volume("data", size="10Gi"),
    "config": lambda: kt.config,
    "function": lambda: kt.fn(lambda: None, name=EVIL),
    "class": lambda: kt.cls(Model),
    "preview": lambda: kt.preview(bundle),
    "preview with a warning": lambda: Preview("f", 1, (), (), (("numpy", "2.1"),), (EVIL,)),
    "table": lambda: Table([EVIL], {"NAME": str, "STATE": lambda row: "running & well"}, "none"),
    "empty table": lambda: Table([], {"NAME": str}, f"no {EVIL}"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_needs_no_pod(name: str, request: pytest.FixtureRequest) -> None:
    shown = MAKERS[name]()
    request.getfixturevalue("no_io")
    made = bundle(shown)
    assert_says_the_same(made)
    assert "<script" not in made["text/html"]
    assert "hunter2" not in made["text/html"] + made["text/plain"] + repr(shown) + str(shown)


@pytest.fixture(scope="module")
def model() -> Iterator[kt.Cls]:
    with kt.cls(Model, name="t-model").to(kt.Compute(), stream_logs=False) as handle:
        yield handle


def test_what_lives(model: kt.Cls, request: pytest.FixtureRequest) -> None:
    call = model.f.spawn(1)
    assert call.result() == 1
    services, calls = kt.services(), kt.calls()
    mapping = model.f.map([1, 2])
    get_portal()
    request.getfixturevalue("no_io")
    expected = {
        model: "kubetorch Cls t-model: service t-model on local pods",
        model.f: "kubetorch method of Cls t-model Model.f: service t-model on local pods",
        model.service: f"kubetorch service t-model: local, {model.service.endpoint.url}; has calls",
        call: f"Call {call.id} of f: done",
    }
    for shown, text in expected.items():
        assert_says_the_same(bundle(shown))
        assert text in pretty(shown)
    for table in (services, calls):
        assert_says_the_same(bundle(table))
        assert "t-model" in pretty(table)
    assert "map of f" in repr(mapping)


def test_what_was_torn_down_says_so() -> None:
    handle = kt.fn(abs, name="t-abs").to(kt.Compute(), stream_logs=False)
    handle.teardown()
    assert pretty(handle) == "<kubetorch Fn t-abs: torn down>"
    assert "torn down" in pretty(handle.service)
    assert_says_the_same(bundle(handle.service))


def test_a_users_class_keeps_its_names() -> None:
    """A class may have methods of any public name; the reprs use none of them."""

    class Loud:
        def name(self) -> str:
            raise AssertionError

        def compute(self) -> str:
            raise AssertionError

    with kt.cls(Loud, name="t-loud").to(kt.Compute(), stream_logs=False) as handle:
        assert_says_the_same(bundle(handle))
        assert_says_the_same(bundle(handle.name))


def test_the_comparison_sees_differences() -> None:
    assert words_of_html("<b>one</b> two") == words("one two")
    with pytest.raises(AssertionError):
        assert_says_the_same({"text/plain": "one", "text/html": "<b>one</b> two"})
    with pytest.raises(AssertionError):
        assert_says_the_same({"text/plain": "one", "text/html": '<b style="color: red">one</b>'})
    with pytest.raises(AssertionError):
        assert_says_the_same({"text/plain": "one", "text/html": '<div style="background: #fff">one</div>'})
    with pytest.raises(AssertionError):
        assert_says_the_same({"text/plain": "one", "text/html": "<script>one</script>"})
