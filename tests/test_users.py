"""What a user tries first, and what went wrong when somebody did."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import kubetorch_jupyter as kt
from tests.cells import Cells


@pytest.fixture
def cells() -> Cells:
    return Cells()


def test_exceptions_larger_than_a_frame_arrive_as_themselves(cells: Cells) -> None:
    cells.run(
        """
        class MyError(Exception):
            def __init__(self, text, data):
                super().__init__(text)
                self.data = data

        def fail(n):
            raise MyError("é" * n, b"x" * n)

        def recurse(n=0):
            try:
                return recurse(n + 1) + 1
            except RecursionError:
                if n % 7:
                    raise
                raise RuntimeError(n)
        """
    )
    with kt.fn(cells["fail"]).to(kt.Compute(), stream_logs=False) as fail:
        for n in (100, 66_000, 300_000):
            with pytest.raises(cells["MyError"]) as caught:
                fail(n)
            assert caught.value.data == b"x" * n
    with kt.fn(cells["recurse"]).to(kt.Compute(), stream_logs=False) as recurse, pytest.raises(RuntimeError):
        recurse()


def test_a_cell_that_wraps_under_the_same_name_can_run_twice(cells: Cells) -> None:
    cells.run("def f(x): return x + 1\nclass C:\n    def get(self): return 5")
    f = kt.fn(cells["f"]).to(kt.Compute(), stream_logs=False)
    again = kt.fn(f).to(kt.Compute(), stream_logs=False)
    assert (f.service_name, again(1)) == ("f", 2)
    assert again.service_name == "f"
    c = kt.cls(cells["C"], name="mine").to(kt.Compute(), stream_logs=False)
    again = kt.cls(c).to(kt.Compute(), stream_logs=False)
    assert (again.service_name, again.get()) == ("mine", 5)
    with pytest.raises(kt.ConfigError, match="is a handle already"):
        kt.fn(c)
    with pytest.raises(kt.ConfigError, match="is a handle already"):
        kt.cls(f)
    f.teardown()
    c.service.teardown()


def test_a_class_like_a_users(cells: Cells, capsys: pytest.CaptureFixture[str]) -> None:
    cells.run(
        """
        class Model:
            def __init__(self, n: int = 0): self.n = n
            def service(self): return "mine"
            def teardown(self): return "mine"
            def add(self, by: int = 1, *, twice: bool = False) -> int:
                "Adds."
                self.n += by * (2 if twice else 1)
                return self.n
            @staticmethod
            def half(x: float) -> float: return x / 2
            @classmethod
            def title(cls, end: str = "!") -> str: return cls.__name__ + end
            async def __call__(self, x): return self.n + x

        class Plain:
            def get(self): return 1
        """
    )
    with pytest.raises(kt.NotDeployedError):
        kt.cls(cells["Model"])()
    with pytest.raises(kt.ConfigError, match=r"init_args=\[value\]"):
        kt.cls(cells["Model"]).to(kt.Compute(), init_args=7)
    handle = kt.cls(cells["Model"]).to(kt.Compute(), init_args=[7])
    try:
        assert "Model.service can't be called on the handle" in capsys.readouterr().out
        assert handle.service.name == "model"
        assert handle.teardown() == "mine"
        assert str(inspect.signature(handle.add)).startswith("(by: 'int' = 1, *, twice: 'bool' = False)")
        assert str(inspect.signature(handle.half)).startswith("(x: 'float')")
        assert str(inspect.signature(handle.title)).startswith("(end: 'str' = '!')")
        assert handle.add(2) == 9
        assert handle(1) == 10
        assert asyncio.run(handle(1, async_=True)) == 10
        assert str(inspect.signature(kt.cls(name="model").add)) == "(by=Ellipsis, *, twice=Ellipsis)"
    finally:
        handle.service.teardown()
    with kt.cls(cells["Plain"]).to(kt.Compute(), stream_logs=False) as plain:
        with pytest.raises(TypeError, match=r"Plain has no __call__.*\(get\)"):
            plain(1)
        with pytest.raises(TypeError):
            inspect.signature(plain.get).bind(1)


@pytest.fixture
def _own_logging() -> Iterator[None]:
    root, named = logging.root, logging.getLogger("users.own")
    before = [(x, x.level, list(x.handlers), x.propagate) for x in (root, named)]
    yield
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate


@pytest.mark.usefixtures("_own_logging")
def test_the_notebooks_logging_goes_along(cells: Cells, capsys: pytest.CaptureFixture[str]) -> None:
    def to_stream(logger: logging.Logger, stream: Any, level: int, form: str, style: Any = "%") -> None:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter(form, style=style))
        logger.addHandler(handler)
        logger.setLevel(level)

    source = """
        import logging
        log = logging.getLogger("users.own.model")
        def f():
            logging.debug("debug"); logging.info("info"); logging.getLogger("other").info("other")
            log.debug("mine")
            logging.basicConfig(level="DEBUG")
            logging.debug("debug")
            return log
        """
    cells.run(source)
    to_stream(logging.root, sys.stderr, logging.INFO, "%(levelname)s|%(message)s")
    to_stream(logging.getLogger("users.own"), sys.stdout, logging.DEBUG, "{name}: {message}", "{")
    logging.getLogger("users.own").propagate = False
    with kt.fn(cells["f"]).to(kt.Compute()) as f:
        capsys.readouterr()
        assert f() is cells["log"]
        shown = capsys.readouterr()
        assert shown.err == "INFO|info\nINFO|other\n"
        assert shown.out == "users.own.model: mine\n"
        # With the next code, another one; each line once.
        to_stream(logging.root, sys.stderr, logging.DEBUG, "%(message)s")
        del logging.root.handlers[-2]
        cells.run(source.replace("return log", "return log.name"))
        kt.fn(cells["f"]).to(kt.Compute())
        capsys.readouterr()
        assert f() == "users.own.model"
        assert capsys.readouterr().err == "debug\ninfo\nother\ndebug\n"


def test_every_keyword_is_the_functions(cells: Cells) -> None:
    cells.run(
        """
        def f(**kwargs): return kwargs
        class C:
            def __call__(this, **kwargs): return kwargs
            def g(this, **kwargs): return kwargs
        """
    )
    given = {"self": 1, "service": 2, "method": 3, "args": 4, "name": 5, "timeout": 6}
    with kt.fn(cells["f"]).to(kt.Compute(), stream_logs=False) as f:
        assert (f.__name__, f.__qualname__) == ("f", "f")
        assert f(**given) == f.spawn(**given).result() == asyncio.run(f.aio(**given)) == given
    with kt.cls(cells["C"]).to(kt.Compute(), stream_logs=False) as c:
        assert c(**given) == c.g(**given) == c.g.spawn(**given).result() == asyncio.run(c.g.aio(**given)) == given


def test_what_generator_functions_cannot_do_is_said_at_once(cells: Cells) -> None:
    cells.run("def numbers(n): yield from range(n)")
    with kt.fn(cells["numbers"]).to(kt.Compute(), stream_logs=False) as numbers:
        with pytest.raises(kt.ConfigError, match=r"numbers is a generator function, which \.spawn\(\) can't run"):
            numbers.spawn(3)
        with pytest.raises(kt.ConfigError, match=r"\.map\(\)"):
            numbers.map([1, 2])


def test_a_notebook_that_logs_everything_shows_no_frames_and_no_token(
    cells: Cells, caplog: pytest.LogCaptureFixture
) -> None:
    cells.run("def f(): return 1")
    with caplog.at_level(logging.DEBUG), kt.fn(cells["f"]).to(kt.Compute(), stream_logs=False) as f:
        assert f() == 1
    assert "Token" not in caplog.text
    assert "BINARY" not in caplog.text


def test_pickle_in_the_pod_finds_what_the_notebook_defined(cells: Cells) -> None:
    cells.run(
        """
        import pickle, multiprocessing as mp, functools

        class Point:
            def __init__(self, x): self.x = x
            def __eq__(self, other): return type(other) is Point and self.x == other.x

        def square(x): return Point(x * x)

        def timed(function):
            @functools.wraps(function)
            def wrapper(*args): return function(*args)
            return wrapper

        @timed
        def work(n):
            with mp.get_context("fork").Pool(2) as pool:
                return pool.map(square, range(n)), pickle.loads(pickle.dumps(square(3)))

        class Model:
            def __init__(self): self.kept = pickle.dumps(Point(5))
            def get(self): return pickle.loads(self.kept)
            def whole(self): return len(pickle.dumps(self)) > 0
        """
    )
    point = cells["Point"]
    with kt.fn(cells["work"]).to(kt.Compute(), stream_logs=False) as work:
        assert work.options(timeout=20)(3) == ([point(0), point(1), point(4)], point(9))
        cells.run("def square(x): return Point(-x)")
        again = kt.fn(cells["work"]).to(kt.Compute(), stream_logs=False)
        assert again.options(timeout=20)(2) == ([point(0), point(-1)], point(-3))
    with kt.cls(cells["Model"]).to(kt.Compute(), stream_logs=False) as model:
        assert model.get() == point(5)
        assert model.whole()


def test_a_deploy_that_changes_only_a_limit_sets_it(cells: Cells, capsys: pytest.CaptureFixture[str]) -> None:
    cells.run(
        """
        import time
        running = []
        def busiest():
            running.append(1)
            time.sleep(0.2)
            return len(running), running.pop()
        """
    )
    busiest = kt.fn(cells["busiest"]).to(kt.Compute(), stream_logs=False)
    try:
        assert max(c.result()[0] for c in [busiest.spawn() for _ in range(4)]) > 1
        busiest = kt.fn(cells["busiest"]).to(kt.Compute(concurrency=1), stream_logs=False)
        assert max(c.result()[0] for c in [busiest.spawn() for _ in range(4)]) == 1
        capsys.readouterr()
        kt.fn(cells["busiest"]).to(kt.Compute(concurrency=1), stream_logs=True)
        assert "unchanged" in capsys.readouterr().out
        assert repr(busiest.service).startswith("<kubetorch service busiest: local, http://127.0.0.1:")
    finally:
        busiest.teardown()
    with kt.fn(cells["busiest"], name="ends").to(kt.Compute(inactivity_ttl="90m")):
        assert "it ends after 1.5 h without a call" in capsys.readouterr().out


def test_a_redeploy_says_once_that_state_is_lost(cells: Cells, capsys: pytest.CaptureFixture[str]) -> None:
    cells.run("class Model:\n    def __init__(self, n): self.n = n\n    def get(self): return self.n")
    kt.cls(cells["Model"]).to(kt.Compute(), init_args=[1])
    with kt.cls(cells["Model"]).to(kt.Compute(), init_args=[2]) as model:
        assert model.get() == 2
        waiting = model.get.spawn()
        assert waiting.result() == 2
    out, err = capsys.readouterr()
    assert (out + err).count("constructed anew") == 1


def test_a_call_that_its_teardown_ends_says_so(cells: Cells) -> None:
    cells.run("def sleep():\n    import time\n    time.sleep(30)")
    handle = kt.fn(cells["sleep"]).to(kt.Compute(), stream_logs=False)
    call = handle.spawn()
    assert call.id
    handle.teardown()
    with pytest.raises(kt.CallCancelledError, match="was torn down here"):
        call.result(timeout=10)


def test_what_has_no_effect_here_is_said(cells: Cells, capsys: pytest.CaptureFixture[str]) -> None:
    cells.run("def plain(): return 1")
    with kt.fn(cells["plain"]).to(kt.Compute(cpus="1", replicas=2, queue_name="q"), stream_logs=True):
        out = capsys.readouterr().out
    assert "kubetorch: replicas, queue_name of the Compute mean something on Kubernetes only" in out


def test_a_frozen_service_takes_no_other_code(cells: Cells) -> None:
    cells.run("def steady(): return 1")
    frozen = kt.Compute(freeze=True)
    with kt.fn(cells["steady"]).to(frozen, stream_logs=False) as steady:
        kt.fn(cells["steady"]).to(frozen, stream_logs=False)  # the same code is no other
        cells.run("def steady(): return 2")
        with pytest.raises(kt.ConfigError, match=r'"steady" lives.*freeze=True'):
            kt.fn(cells["steady"]).to(frozen, stream_logs=False)
        assert steady() == 1
        assert kt.fn(cells["steady"]).to(kt.Compute(), stream_logs=False)() == 2


def test_a_service_takes_the_serializations_that_it_allows(cells: Cells) -> None:
    cells.run("def double(x): return 2 * x")
    compute = kt.Compute(allowed_serialization=["json"])
    with kt.fn(cells["double"]).to(compute, stream_logs=False) as double:
        assert double.options(serialization="json")(3) == 6
        with pytest.raises(kt.SerializationError, match=r'takes json and no pickle.*serialization="json"'):
            double(3)
        double.to(kt.Compute(), stream_logs=False)
        assert double(3) == 6
