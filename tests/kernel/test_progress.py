"""Progress in cells: one display a deploy or map, in its own cell, that ends in the right state."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.kernel.harness import Cell, Kernel, Message, run_notebook
from tests.markup import assert_says_the_same

SETUP = """
%load_ext kubetorch_jupyter
import asyncio, time

class Model:
    def __init__(self, seconds):
        print('weights are read')
        time.sleep(seconds)
        if seconds > 0.8:
            raise ValueError('no weights <here>')
    def f(self): return 1

def wait(x):
    time.sleep(0.05)
    return x

def model(seconds, name, **options):
    return kt.cls(Model, name=name).to(kt.Compute(), init_args=[seconds], **options)

def model_async(seconds, name):
    return kt.cls(Model, name=name).to_async(kt.Compute(), init_args=[seconds])
"""


def lines(cell: Cell) -> list[list[Message]]:
    """What came of each display of a cell, in the order in which they began."""
    found: dict[str, list[Message]] = {}
    for message in list(cell.messages):
        if message.type in ("display_data", "update_display_data"):
            found.setdefault(message.content["transient"]["display_id"], []).append(message)
        assert not message.type.startswith("comm_"), "progress needs no widgets"
    for messages in found.values():
        assert [m.type for m in messages] == ["display_data", *["update_display_data"] * (len(messages) - 1)]
        for message in messages:
            assert_says_the_same(message.content["data"])
        # The clock's: the last may come at any moment. Ten a second, and some slack for the way here.
        assert len(messages) - 2 <= 10 * (messages[-1].time - messages[0].time) + 1
    return list(found.values())


def text(message: Message) -> str:
    return str(message.content["data"]["text/plain"])


def last(cell: Cell) -> str:
    """The final state of a cell's only line."""
    (messages,) = lines(cell)
    return text(messages[-1])


def ready(name: str) -> str:
    return rf'kubetorch: "{name}" is ready on local pods in \d\.\d\d s \(sent .*\)'


def test_deploys_and_maps(kernel: Kernel) -> None:
    kernel.run(SETUP)

    slow = kernel.run("m = model(0.7, 'one')")
    (messages,) = lines(slow)
    states = [text(m) for m in messages]
    assert re.fullmatch(ready("one"), states[-1])
    assert any(re.fullmatch(r'kubetorch: "one" is loading, \S+ s', state) for state in states), states
    assert slow.stdout == "weights are read\n"

    assert last(kernel.run("m = model(0.7, 'one')")) == 'kubetorch: "one" is unchanged: the same instance goes on'

    failed = kernel.begin("model(0.9, 'one')").wait()
    assert failed.error is not None
    assert re.fullmatch(
        r'kubetorch: "one" failed after \S+ s while loading: ValueError: no weights <here>', last(failed)
    )
    # What has to stay is a line of its own.
    assert 'kubetorch: "one" goes on with the code that it had\n' in failed.stdout

    three = kernel.run("await asyncio.gather(*(model_async(s, f'of-{s * 10:.0f}') for s in (0.3, 0.5, 0.7)))")
    found = {text(messages[0]).split('"')[1]: messages for messages in lines(three)}
    assert sorted(found) == ["of-3", "of-5", "of-7"]
    for name, messages in found.items():
        assert re.fullmatch(ready(name), text(messages[-1]))
    assert len(found["of-7"]) > 2

    # It changes under the cell that began it, also while another cell runs.
    first, second = kernel.run_all(
        ["task = asyncio.create_task(model_async(0.6, 'later'))", "await task\nprint('second')"]
    )
    assert re.fullmatch(ready("later"), last(first.ok()))
    assert lines(second.ok()) == []

    stopped = kernel.begin("model(30, 'stop'), model(0.8, 'never')")
    stopped.wait_for(lambda: "loading" in "".join(map(str, stopped.displays)), 20, "load")
    kernel.interrupt()
    stopped.wait(10)
    assert stopped.error is not None
    assert re.fullmatch(r'kubetorch: "stop" was stopped after \S+ s while loading', last(stopped))

    for code in ("sum(handle.map(range(80)))", "sum([x async for x in handle.map(range(80))])"):
        cell = kernel.run(
            f"handle = kt.fn(wait).to(kt.Compute(concurrency=4), stream_logs=False)\nhandle.stream_logs = True\n{code}"
        )
        (messages,) = lines(cell)
        assert re.fullmatch(r"kubetorch: map of wait, 80 of 80 done, \d+ a second, \S+ s", text(messages[-1]))
        assert re.fullmatch(r"\[#+-+\] kubetorch: map of wait, \d+ of 80 done, .*", text(messages[0]))
        assert cell.result == "3160"

    quiet = kernel.run("model(0.1, 'quiet', stream_logs=False)\nsum(handle.options(stream_logs=False).map(range(44)))")
    assert quiet.stdout == ""
    assert lines(quiet) == []

    kernel.run(
        "import os, signal\nos.kill(m.service.status()['pid'], signal.SIGKILL)\n"
        # When the connection has told as well: a call that is on its way before is lost, and not made again.
        "while m.service.live is not None: time.sleep(0.01)"
    )
    again = kernel.run("m.f()")
    assert re.fullmatch(ready("one"), last(again))
    assert 'kubetorch: service "one" has ended' in again.stdout

    # Without the extension it is text again.
    plain = kernel.run("%unload_ext kubetorch_jupyter\nimport kubetorch_jupyter as kt\nm = model(0.1, 'plain')")
    assert lines(plain) == []
    assert re.search(ready("plain"), plain.stdout)
    assert not [m for m in kernel.orphans if "display" in m.type]


def test_what_is_displayed_says_the_same_without_html_and_widgets(newest_kernel: Kernel) -> None:
    """A terminal client drops the HTML, and refuses comms; so none may be opened."""
    newest_kernel.run(SETUP)
    shown = newest_kernel.run(
        "from IPython.display import display\n"
        "model = model(0.1, 'one')\n"
        "handle = await kt.fn(wait).to_async(kt.Compute(cpus=0.5, concurrency=4))\n"
        "call = handle.spawn(1)\n"
        "call.result()\n"
        "for each in (model, model.f, model.service, handle, call, handle.compute, kt.Image('<i>'), kt.services(),\n"
        "             kt.calls(), kt.preview(wait), kt.config, kt.Secret('db', values={'password': 'hunter2'}),\n"
        "             kt.Volume('data')):\n"
        "    display(each)\n"
        "handle"
    )
    types = [m.type for m in shown.messages]
    assert not [t for t in types if t.startswith("comm_")]
    assert types.count("display_data") == 2 + 13
    assert types.count("execute_result") == 1
    for bundle in shown.displays:
        assert_says_the_same(bundle)
        assert "text/html" in bundle
    assert "hunter2" not in str(shown.displays)


def test_a_headless_run_keeps_the_last_state(make_newest_kernel: Callable[..., Kernel]) -> None:
    kernel = make_newest_kernel(start=False)
    python = make_newest_kernel.python  # type: ignore[attr-defined]
    code = (
        "m = model(0.6, 'one')\nhandle = await kt.fn(wait).to_async(kt.Compute(concurrency=4))\n"
        "sum(handle.map(range(80)))"
    )
    notebook = run_notebook([SETUP, code], python, kernel)
    outputs: list[Any] = [o for o in notebook.cells[1].outputs if o.output_type == "display_data"]
    found = [output["data"]["text/plain"] for output in outputs]
    expected = [ready("one"), ready("wait"), r"kubetorch: map of wait, 80 of 80 done, \d+ a second, \S+ s"]
    assert len(found) == len(expected), found
    for each, pattern in zip(found, expected, strict=True):
        assert re.fullmatch(pattern, each)
    for output in outputs:
        assert_says_the_same(output["data"])
