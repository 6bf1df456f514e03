"""`display` and figures in the worker."""

from __future__ import annotations

import base64
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from .fake_front import FakeFront

THIS = sys.modules[__name__]


@pytest.fixture(scope="module")
def front() -> Iterator[FakeFront]:
    import cloudpickle

    cloudpickle.register_pickle_by_value(THIS)
    try:
        with FakeFront() as front:
            yield front
    finally:
        cloudpickle.unregister_pickle_by_value(THIS)


def shown(front: FakeFront, function: Any) -> list[dict[str, Any]]:
    front.deploy(function)
    record = front.start()
    record.wait()
    displays: list[dict[str, Any]] = record.displays()
    return displays


def test_builtin_display(front: FakeFront) -> None:
    class Rich:
        def __repr__(self) -> str:
            return "rich"

        def _repr_html_(self) -> str:
            return "<b>rich</b>"

        def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
            return b"\x89PNG", {"width": 3}

        def _repr_latex_(self) -> None:
            return None

        def _repr_svg_(self) -> str:
            raise ValueError("no svg today")

    def show() -> None:
        print("before")
        display(Rich(), 3, metadata={"x": 1})  # type: ignore[name-defined]  # noqa: F821
        print("after")

    front.deploy(show)
    record = front.start()
    record.wait()
    assert "no svg today" in record.text()
    first, second = record.displays()
    assert first["data"] == {
        "text/plain": "rich",
        "text/html": "<b>rich</b>",
        "image/png": base64.b64encode(b"\x89PNG").decode(),
    }
    assert first["metadata"] == {"image/png": {"width": 3}, "x": 1}
    assert first["update"] is False
    assert second["data"] == {"text/plain": "3"}
    kinds = [k.name for k, _ in record.log if k.name != "STDERR"]
    assert kinds == ["STDOUT", "DISPLAY", "DISPLAY", "STDOUT"]


def test_mimebundle_and_filters(front: FakeFront) -> None:
    class Bundle:
        def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
            return {"text/html": "<i>", "application/json": {"a": [1]}}, {"text/html": {"isolated": True}}

    def show() -> None:
        display(Bundle())  # type: ignore[name-defined]  # noqa: F821
        display(Bundle(), include=["text/html"])  # type: ignore[name-defined]  # noqa: F821
        display({"text/plain": "raw"}, raw=True)  # type: ignore[name-defined]  # noqa: F821

    first, second, third = shown(front, show)
    assert first["data"]["application/json"] == {"a": [1]}
    assert first["metadata"] == {"text/html": {"isolated": True}}
    assert second["data"] == {"text/html": "<i>"}
    assert third["data"] == {"text/plain": "raw"}


def test_updates(front: FakeFront) -> None:
    def show() -> str:
        handle = display("one", display_id=True)  # type: ignore[name-defined]  # noqa: F821
        handle.update("two")
        display("three", display_id=handle.display_id, update=True)  # type: ignore[name-defined]  # noqa: F821
        display("four", display_id="mine")  # type: ignore[name-defined]  # noqa: F821
        return repr(handle)

    displays = shown(front, show)
    place = displays[0]["transient"]["display_id"]
    assert [d["update"] for d in displays] == [False, True, True, False]
    assert [d["transient"]["display_id"] for d in displays] == [place, place, place, "mine"]
    assert [d["data"]["text/plain"] for d in displays] == ["'one'", "'two'", "'three'", "'four'"]


def test_ipython(front: FakeFront) -> None:
    def show() -> None:
        from IPython.display import HTML, Markdown, display, update_display

        display(HTML("<b>"), display_id="x")
        update_display(Markdown("*m*"), display_id="x")

    first, second = shown(front, show)
    assert first["data"]["text/html"] == "<b>"
    assert second["data"]["text/markdown"] == "*m*"
    assert second["update"] is True


def test_pandas(front: FakeFront) -> None:
    def show() -> None:
        import pandas as pd

        display(pd.DataFrame({"a": [1]}))  # type: ignore[name-defined]  # noqa: F821

    (only,) = shown(front, show)
    assert "<table" in only["data"]["text/html"]


def test_matplotlib(front: FakeFront) -> None:
    def show() -> int:
        import matplotlib.pyplot as plt

        fig, ax = plt.subplots()
        ax.plot([1, 2])
        plt.show()
        plt.figure()
        plt.show()
        display(fig)  # type: ignore[name-defined]  # noqa: F821
        plt.show()
        return len(plt.get_fignums())

    front.deploy(show)
    record = front.start()
    assert record.wait(30) == 0
    displays = record.displays()
    assert len(displays) == 3
    for d in displays:
        assert base64.b64decode(d["data"]["image/png"]).startswith(b"\x89PNG\r\n")
    assert record.text().count("Warning") == 0


def test_each_call_shows_its_own_figures(front: FakeFront) -> None:
    def show(n: int) -> int:
        import matplotlib.pyplot as plt

        for _ in range(n):
            plt.figure(figsize=(1, 1))
        plt.show()
        return len(plt.get_fignums())

    front.deploy(show, concurrency=1)
    for n in (1, 2):
        record = front.start(n)
        assert record.wait(30) == 0
        assert len(record.displays()) == n


def test_figures_that_nobody_has_shown_are_shown_at_the_end(front: FakeFront) -> None:
    """As at the end of a notebook's cell; and none is left for the next call."""

    def plot(wrong: bool = False) -> object:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(1, 1))
        axes.set_title("$\\nonsense{$" if wrong else "t")
        return figure

    async def plot_async() -> None:
        plot()

    for function in (plot, plot_async):
        front.deploy(function)
        record = front.start()
        record.wait(30)
        assert len(record.displays()) == 1
    front.deploy(plot)
    record = front.start(True)
    assert record.wait(30) is not None
    assert "Traceback" in record.text()


def test_figures_of_calls_that_run_at_once(front: FakeFront) -> None:
    """pyplot's "current figure" is the call's own, although its functions are the process's."""

    def show(who: str) -> list[str]:
        import matplotlib.pyplot as plt

        barrier = sys.__dict__.setdefault("both", threading.Barrier(2))
        plt.figure(figsize=(1, 1))
        barrier.wait(20)
        plt.title(who)
        barrier.wait(20)
        titles = [plt.figure(n).axes[0].get_title() for n in plt.get_fignums()]
        plt.show()
        return titles

    front.deploy(show, concurrency=2)
    first, second = front.start("first"), front.start("second")
    for record, who in ((first, "first"), (second, "second")):
        assert record.wait(30) == [who]
        assert len(record.displays()) == 1


def test_display_in_a_forked_child_is_text(front: FakeFront) -> None:
    def show() -> None:
        import os

        pid = os.fork()
        if not pid:
            display("child")  # type: ignore[name-defined]  # noqa: F821
            os._exit(0)
        os.waitpid(pid, 0)

    front.deploy(show)
    record = front.start()
    record.wait()
    assert record.text() == "'child'\n"


def test_notebook_progress_bars_are_text(front: FakeFront, tmp_path: Any) -> None:
    """tqdm is not among the requirements: a stand-in with its module names shows that the hook works."""
    package = tmp_path / "tqdm"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "std.py").write_text("class tqdm: pass\ndef trange(): pass\n")
    (package / "notebook.py").write_text(
        "from .std import tqdm as std_tqdm\nclass tqdm_notebook(std_tqdm): pass\ntqdm = tqdm_notebook\n"
        "def tnrange(): pass\ntrange = tnrange\n"
    )

    def show(path: str) -> str:
        sys.path.insert(0, path)
        try:
            import tqdm.notebook  # type: ignore[import-not-found, import-untyped, unused-ignore]

            return str(tqdm.notebook.tqdm.__module__)
        finally:
            sys.path.remove(path)

    front.deploy(show)
    assert front.call(str(tmp_path)) == "tqdm.std"
