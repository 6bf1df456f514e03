"""Exceptions and their tracebacks, from one process to another."""

from __future__ import annotations

import asyncio
import bdb
import concurrent.futures
import json
import linecache
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kubetorch_jupyter.errors import RemoteError, remote_error
from kubetorch_jupyter.shipping import pack
from pod_server import exceptions
from pod_server.exceptions import Cancelled, decode, encode
from tests.podlet import ROOT, Cells, FarError, Podlet, far_error


@pytest.fixture
def cells() -> Iterator[Cells]:
    made = Cells()
    yield made
    made.clear()


def raised(f: Callable[[], Any]) -> BaseException:
    try:
        f()
    except BaseException as e:
        return e
    raise AssertionError("nothing was raised")


def there_and_back(e: BaseException) -> BaseException:
    buffers = [bytes(b) for b in encode(e)]
    json.loads(buffers[0])
    return decode(buffers, far_error)


def shown(e: BaseException) -> str:
    return "".join(traceback.format_exception(e))


# -- as themselves -----------------------------------------------------------------------------------------------------


class Custom(Exception):
    def __init__(self, code: int, *, extra: Any = None) -> None:
        super().__init__(f"code {code} é")
        self.code = code
        self.extra = extra


class Slots(ValueError):
    __slots__ = ("a", "unset")

    def __init__(self, a: int) -> None:
        self.a = a


class File(OSError):
    def __init__(self, where: str) -> None:
        super().__init__(2, "no such thing", where)
        self.where = where


class New(Exception):
    def __new__(cls, a: int, b: int) -> New:
        return super().__new__(cls, a, b)

    def __init__(self, a: int, b: int) -> None:
        self.sum = a + b


class Own(Exception):
    def __init__(self, a: int) -> None:
        super().__init__("own")
        self.a = a

    def __reduce__(self) -> Any:
        return type(self), (self.a,)


class Broken(Own):
    def __reduce__(self) -> Any:
        raise RuntimeError("no")


class Keyed(KeyError):
    pass


EXCEPTIONS = [
    ValueError("é", 1),
    ValueError(),
    KeyError("é"),
    Keyed("k"),
    FileNotFoundError(2, "no", "file"),
    OSError(5, "io"),
    OSError("one argument"),
    PermissionError(13, "p", "a", None, "b"),
    SyntaxError("bad", ("f.py", 1, 2, "te xt", 1, 3)),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"),
    UnicodeEncodeError("ascii", "é", 0, 1, "why"),
    ImportError("no", name="n", path="p"),
    ModuleNotFoundError("no", name="n"),
    AttributeError("a", name="n", obj=3),
    NameError("n", name="x"),
    ZeroDivisionError("division by zero"),
    Custom(3, extra=[1, {"a": 2}]),
    Slots(4),
    File("there"),
    New(1, 2),
    Own(5),
    Broken(6),
    subprocess.CalledProcessError(3, ["ls"], b"out", b"err"),
    json.JSONDecodeError("msg", "doc", 2),
    BlockingIOError(11, "m", 3),
]


@pytest.mark.parametrize("e", EXCEPTIONS, ids=lambda e: type(e).__name__)
def test_exceptions_come_back_as_themselves(e: Exception) -> None:
    back = there_and_back(e)
    assert type(back) is type(e)
    assert str(back) == str(e)
    assert back.args == e.args
    assert vars(back) == vars(e)
    for name in (
        "errno",
        "filename",
        "filename2",
        "lineno",
        "text",
        "name",
        "path",
        "a",
        "reason",
        "object",
        "encoding",
    ):
        assert getattr(back, name, None) == getattr(e, name, None)


def test_notes() -> None:
    for e in (ValueError("x"), Own(1)):
        e.add_note("first")
        e.add_note("é")
        assert there_and_back(e).__notes__ == ["first", "é"]


def test_groups() -> None:
    group = ExceptionGroup("two", [raised(lambda: 1 / 0), ExceptionGroup("inner", [Custom(1)])])  # type: ignore[list-item]
    group.add_note("note")
    back = there_and_back(group)
    assert type(back) is ExceptionGroup
    assert back.message == "two"
    assert back.__notes__ == ["note"]
    assert type(back.exceptions[0]) is ZeroDivisionError
    assert "1 / 0" in shown(back.exceptions[0])
    inner = back.exceptions[1]
    assert isinstance(inner, ExceptionGroup)
    assert inner.exceptions[0].code == 1

    mixed = there_and_back(BaseExceptionGroup("mixed", [KeyboardInterrupt(), ValueError(1)]))
    assert isinstance(mixed, ExceptionGroup)
    assert isinstance(mixed.exceptions[0], FarError)


def test_chains() -> None:
    def outer() -> None:
        try:
            int("x")
        except ValueError as e:
            raise Custom(1) from e

    def during() -> None:
        try:
            int("x")
        except ValueError:
            raise KeyError("k")  # noqa: B904

    def hidden() -> None:
        try:
            int("x")
        except ValueError:
            raise KeyError("k") from None

    text = shown(there_and_back(raised(outer)))
    assert "direct cause" in text
    assert 'int("x")' in text
    text = shown(there_and_back(raised(during)))
    assert "During handling" in text
    back = there_and_back(raised(hidden))
    assert "During handling" not in shown(back)
    assert isinstance(back.__context__, ValueError)


def test_a_chain_in_a_circle() -> None:
    a, b = ValueError("a"), ValueError("b")
    a.__context__, b.__context__ = b, a
    back = there_and_back(a)
    assert back.__context__ is not None
    assert back.__context__.__context__ is back


def test_a_long_chain_is_cut() -> None:
    e = first = ValueError(0)
    for i in range(1000):
        e.__cause__ = ValueError(i)
        e = e.__cause__  # type: ignore[assignment]
    assert there_and_back(first).__cause__ is not None


# -- what steers the program that raises it ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "e",
    [
        *(SystemExit(3), StopIteration(2), StopAsyncIteration(), KeyboardInterrupt(), GeneratorExit(), Cancelled("x")),
        bdb.BdbQuit(),
        *(asyncio.CancelledError(), concurrent.futures.CancelledError(), type("MyExit", (SystemExit,), {})()),
    ],
    ids=lambda e: type(e).__name__,
)
def test_control_never_arrives_as_itself(e: BaseException) -> None:
    back = there_and_back(e)
    assert isinstance(back, FarError)
    assert not isinstance(back, (type(e), StopIteration, SystemExit))
    real = decode(encode(e), lambda n, m, t, b: remote_error(n, m, t, b))
    assert isinstance(real, RemoteError)
    assert not isinstance(real, type(e))


def test_control_inside_a_chain() -> None:
    e = ValueError("v")
    e.__cause__ = KeyboardInterrupt()
    back = there_and_back(e)
    assert type(back) is ValueError
    assert isinstance(back.__cause__, FarError)


# -- never fails -------------------------------------------------------------------------------------------------------


class HostileMeta(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__mro__", "__qualname__"):
            raise RuntimeError("no")
        return super().__getattribute__(name)


def hostile() -> list[BaseException]:
    class Str(Exception):
        def __str__(self) -> str:
            raise SystemExit(1)

    class NoStr(Exception):
        def __str__(self) -> str:
            return 3  # type: ignore[return-value]

    class Recursive(Exception):
        def __str__(self) -> str:
            return str(self)

    class Reduce(Exception):
        def __reduce__(self) -> Any:
            raise KeyboardInterrupt

    class Dict(Exception):
        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            raise ValueError("no attributes")

    class Meta(Exception, metaclass=HostileMeta):
        pass

    class Attributes(Exception):
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError(name)

    return [Str(), NoStr(), Recursive(), Reduce(), Dict(), Meta("m"), Attributes(), ValueError("x" * 5_000_000)]


@pytest.mark.parametrize("i", range(8))
def test_hostile_exceptions_still_arrive(i: int) -> None:
    def throw() -> None:
        raise hostile()[i]

    e = raised(throw)
    buffers = encode(e)
    assert len(buffers[0]) < 5_000_000
    assert isinstance(decode(buffers, far_error), Exception)
    assert type(e).__name__ in exceptions._safe_format(e)


def test_what_can_not_be_pickled_is_left_out_and_said() -> None:
    e = Custom(1, extra=threading.Lock())
    e.args = (threading.Lock(), "kept")
    back = there_and_back(e)
    assert type(back) is Custom
    assert back.code == 1
    assert not hasattr(back, "extra")
    assert back.args[1] == "kept"
    assert "lock" in back.args[0]
    assert "extra (_thread.lock)" in back.__notes__[0]


@pytest.mark.parametrize("buffers", [[], [b""], [b"{}"], [b'{"exceptions":[]}'], [b'{"exceptions":[{}],"text":""}']])
def test_damaged_buffers(buffers: list[bytes]) -> None:
    back = decode(buffers, far_error)
    assert isinstance(back, FarError)
    assert "can't be read" in str(back)


def test_a_fallback_that_refuses_the_base() -> None:
    def picky(name: str, message: str, text: str, base: type[BaseException]) -> BaseException:
        if base is not Exception:
            raise TypeError("no")
        return FarError(message)

    class Local(UnicodeDecodeError):
        def __reduce__(self) -> Any:
            return eval, ("1 / 0",)

    back = decode(encode(Local("utf-8", b"", 0, 1, "why")), picky)
    assert type(back) is FarError


# -- tracebacks --------------------------------------------------------------------------------------------------------


def test_the_cells_lines_are_shown(cells: Cells, tmp_path: Path) -> None:
    cells.run(
        "def helper(x):\n"
        "    a = 1\n"
        "    return (a +\n"
        "            int('é' + x))\n"
        "class MyError(Exception):\n"
        "    def __init__(self, code, *, why):\n"
        "        self.code, self.why = code, why\n"
    )
    cells.run(
        "def train(x):\n"
        "    try:\n"
        "        return helper(x)\n"
        "    except ValueError as e:\n"
        "        raise MyError(5, why='é') from e\n"
    )
    with Podlet(tmp_path) as pod:
        pod.load(pack(cells["train"]))
        with pytest.raises(cells["MyError"]) as caught:
            pod.call("x")
    e = caught.value
    assert (e.code, e.why) == (5, "é")
    text = shown(e)
    file = cells["train"].__code__.co_filename
    assert f"File \"{file}\", line 5, in train\n    raise MyError(5, why='é') from e\n" in text
    assert "int('é' + x))" in text
    assert "^^^^" in text
    assert "pod_server" not in text.rpartition("raise exceptions.decode")[2]
    assert "loading.py" not in text
    # Local frames come first, then the pod's.
    assert text.rindex("test_the_cells_lines_are_shown") < text.rindex(file)


def test_frames_are_what_they_were() -> None:
    def f(n: int) -> Any:
        return (n and f(n - 1)) or [1 / n for _ in (1,)]

    e = raised(lambda: f(3))
    text = shown(e)
    back = there_and_back(e)
    assert shown(back) == text
    assert exceptions.format(e) == text
    ours, theirs = traceback.extract_tb(back.__traceback__), traceback.extract_tb(e.__traceback__)
    assert [(s.filename, s.lineno, s.name, s.line) for s in ours] == [
        (s.filename, s.lineno, s.name, s.line) for s in theirs
    ]
    assert shown(there_and_back(back)) == text


def test_files_that_only_the_pod_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "podlib.py"
    source.write_text("# a comment\n\n\ndef f():\n    x = 1\n    return x / 0\n")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pod_server import exceptions\n"
        "import podlib\n"
        "try: podlib.f()\n"
        "except Exception as e: sys.stdout.buffer.write(b'\\0'.join(bytes(b) for b in exceptions.encode(e)[:1]))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, check=True, env={"PYTHONPATH": str(ROOT)}
    ).stdout

    def lines(data: bytes) -> str:
        return shown(decode([data], far_error))

    source.unlink()
    linecache.checkcache()
    assert f'File "{source}", line 6, in f\n    return x / 0\n' in lines(out)
    # Another file of that name here: its lines must not be shown for the pod's.
    source.write_text("\n" * 4 + "    other = 1\n    unrelated()\n")
    linecache.cache.pop(str(source), None)
    text = lines(out)
    assert f'File "pod:{source}", line 6, in f\n    return x / 0\n' in text
    assert "unrelated" not in text


def test_deep_recursion() -> None:
    def f() -> None:
        f()

    back = there_and_back(raised(f))
    assert isinstance(back, RecursionError)
    assert "more times" in shown(back)


def test_where_is_a_note() -> None:
    back = decode(encode(ValueError(1)), far_error, where='in the pod of service "train"')
    assert back.__notes__ == ['in the pod of service "train"']


def test_a_class_that_is_missing_here(tmp_path: Path, cells: Cells) -> None:
    cells.run(
        "def f():\n"
        "    import types, sys\n"
        "    sys.modules['gone'] = gone = types.ModuleType('gone')\n"
        "    exec('class Odd(KeyError):\\n    pass', vars(gone))\n"
        "    raise gone.Odd('é')\n"
    )
    with Podlet(tmp_path) as pod:
        pod.load(pack(cells["f"]))
        with pytest.raises(FarError) as caught:
            pod.call()
    name, message, text, base = caught.value.made_of  # type: ignore[attr-defined]
    assert (name, message, base) == ("gone.Odd", "'é'", KeyError)
    assert isinstance(caught.value, KeyError)
    assert "raise gone.Odd('é')" in text
    assert "raise gone.Odd" in shown(caught.value)


def test_ipython_shows_the_frames(cells: Cells) -> None:
    from IPython.core.ultratb import VerboseTB

    cells.run("def far(x):\n    y = x\n    return y / 0\n")
    back = there_and_back(raised(lambda: cells["far"](1)))

    def near() -> None:
        raise back

    e = raised(near)
    text = VerboseTB(theme_name="nocolor", include_vars=False).text(type(e), e, e.__traceback__)
    assert "raise back" in text
    assert "return y / 0" in text
    assert text.index("raise back") < text.index("return y / 0")


def test_format_is_plain_text() -> None:
    e = raised(lambda: {}["é"])
    assert exceptions.format(e).endswith("KeyError: 'é'\n")
    assert exceptions.format(e).startswith("Traceback (most recent call last):\n")
