"""Code for pods of other Python versions: it goes by its source, and what can't is refused by name."""

from __future__ import annotations

import collections
import datetime
import decimal
import functools
import io
import linecache
import pickletools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kubetorch_jupyter as kt
from kubetorch_jupyter import deploying
from kubetorch_jupyter.shipping import PYTHON, Bundle, pack
from pod_server import serialization
from tests.foreign import OTHERS, FixedBackend, foreign_pod, interpreter
from tests.podlet import Cells, Podlet

OTHER = "3.12" if PYTHON != "3.12" else "3.13"


@pytest.fixture
def cells() -> Iterator[Cells]:
    made = Cells()
    yield made
    made.clear()


@pytest.fixture(scope="module", params=OTHERS)
def far(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    python = interpreter(request.param, whole=False)
    with Podlet(tmp_path_factory.mktemp("pod"), python) as podlet:
        made = Far(request.param, podlet)
        assert podlet.eval("'%d.%d' % sys.version_info[:2]") == request.param
        yield made


class Far:
    """A process of another Python that code is sent to."""

    def __init__(self, version: str, podlet: Podlet) -> None:
        self.version = version
        self.podlet = podlet

    def load(self, target: Any, **options: Any) -> Bundle:
        bundle = pack(target, python=self.version, **options)
        assert_no_bytecode(bundle)
        self.podlet.load(bundle)
        return bundle

    def run(self, target: Any, *args: Any) -> Any:
        self.load(target)
        return self.podlet.call(*args)


def assert_no_bytecode(bundle: Bundle) -> None:
    """Nothing in the pickle makes code or classes by value."""
    data = io.BytesIO(bytes(bundle.buffers[3]))
    words: set[Any] = set()
    while data.tell() < len(data.getvalue()):
        words |= {value for _, value, _ in pickletools.genops(data) if isinstance(value, str)}
    assert not words & {"CodeType", "_make_function", "_make_skeleton_class", "_make_skeleton_enum", "_make_code"}


# -- functions ---------------------------------------------------------------------------------------------------------


def test_helpers_constants_imports_and_classes_of_other_cells(cells: Cells, far: Far) -> None:
    cells.run("import math\nimport os.path as p\nfrom collections import Counter\nimport xml.dom, xml.dom.minidom")
    cells.run("LIMIT = 3\nTABLE = {'a': [1, 2]}\nVector = list[float]")
    cells.run("class Base:\n    def twice(self):\n        return 2 * self.n\n    def other(self): return M(7)\n")
    cells.run("class M(Base):\n    def __init__(self, n):\n        self.n = n\n")
    cells.run("def helper(x):\n    return x + LIMIT + TABLE['a'][1]\n")
    cells.run(
        "def f(x: int, y: Vector = ()) -> Vector:\n"
        "    import json\n"
        "    xml.dom.minidom.Document()\n"
        "    return [helper(x), M(x).other().twice(), math.floor(2.5), p.basename('a/b'), Counter('aab')['a'],"
        " json.dumps(x)]\n"
    )
    assert far.run(cells["f"], 1) == [6, 14, 2, "b", 2, "1"]
    # A redefined cell: the code as it stands now.
    cells.run("def helper(x):\n    return -x\n")
    assert far.run(cells["f"], 1)[0] == -1


def test_every_kind_of_callable(cells: Cells, far: Far) -> None:
    cells.run(
        "import functools, contextlib\n"
        "def loud(f):\n"
        "    @functools.wraps(f)\n"
        "    def wrapper(*args, **kwargs):\n"
        "        return [f(*args, **kwargs), '!']\n"
        "    return wrapper\n"
        "@loud\n"
        "def decorated(x, y=1):\n"
        "    return x + y\n"
        "def make(n):\n"
        "    def inner(x, k=n * 2):\n"
        "        return x * n + k\n"
        "    return inner\n"
        "closure = make(3)\n"
        "square = lambda x: x * x\n"
        "part = functools.partial(decorated, y=5)\n"
        "@functools.lru_cache\n"
        "def fib(n):\n"
        "    return n if n < 2 else fib(n - 1) + fib(n - 2)\n"
        "@contextlib.contextmanager\n"
        "def managed(x):\n"
        "    yield x\n"
        "def uses(x):\n"
        "    with managed(x) as y:\n"
        "        return y\n"
        "@functools.singledispatch\n"
        "def kind(x):\n"
        "    return 'other'\n"
        "@kind.register\n"
        "def _(x: int):\n"
        "    return 'int'\n"
        "if True:\n"
        "    def indented(x):\n"
        "        return '''a\n"
        "b'''\n"
    )
    cases = [
        ("decorated", [11, "!"]),
        ("closure", 36),
        ("square", 100),
        ("part", [15, "!"]),
        ("fib", 55),
        ("uses", 10),
        ("kind", "int"),
        ("indented", "a\nb"),
    ]
    for name, result in cases:
        assert far.run(cells[name], 10) == result, name


def test_a_variable_of_several_closures_stays_one(cells: Cells, far: Far) -> None:
    cells.run(
        "def counter():\n    n = 0\n    def up():\n        nonlocal n\n        n += 1\n    def now(): return n\n"
        "    return up, now\n"
        "up, now = counter()\ntotal = 0\n"
        "def f():\n    global total\n    up(); up()\n    total += now()\n    return total\n"
    )
    far.load(cells["f"])
    assert [far.podlet.call(), far.podlet.call()] == [2, 6]


def test_coroutines_and_generators(cells: Cells, far: Far) -> None:
    cells.run(
        "import asyncio\n"
        "async def sleeper(x):\n    await asyncio.sleep(0)\n    return x\n"
        "async def items(n):\n    for i in range(n):\n        yield await sleeper(i)\n"
        "def numbers(n):\n    got = yield n\n    yield got\n"
        "def f():\n"
        "    async def all():\n        return [i async for i in items(3)]\n"
        "    g = numbers(5)\n"
        "    return asyncio.run(all()), next(g), g.send('x')\n"
    )
    assert far.run(cells["f"]) == ([0, 1, 2], 5, "x")
    row = pack(cells["items"], python=far.version).meta["interface"][""]
    assert (row["gen"], row["async"], row["sig"]) == (True, True, [["n", 1, False]])


def test_what_is_captured_keeps_its_identity(cells: Cells, far: Far) -> None:
    cells.namespace["when"] = datetime.datetime(2024, 5, 1, tzinfo=datetime.timezone.utc)  # noqa: UP017 - Python 3.10
    cells.namespace["price"] = decimal.Decimal("1.5")
    cells.namespace["order"] = collections.OrderedDict(a=1)
    cells.namespace["one"] = cells.namespace["same"] = [1]
    cells.run("def f():\n    return when, price, order, one is same, one\n")
    assert far.run(cells["f"]) == (cells["when"], cells["price"], cells["order"], True, [1])


# -- classes -----------------------------------------------------------------------------------------------------------

MODEL = """
import functools
REGISTERED = {}
def register(cls):
    REGISTERED[cls.__name__] = cls
    cls.added = lambda self: "added"
    return cls
def loud(f):
    @functools.wraps(f)
    def wrapper(*args, **kwargs):
        return [f(*args, **kwargs), "!"]
    return wrapper
@register
class Model:
    "What it is."
    count = 0
    seen: list = []
    def __init__(self, n=4):
        self.n = n
        self.__hidden = n
    def method(self, x):
        return x - self.n + self.__hidden
    def __call__(self, x):
        return x + self.n
    @classmethod
    def cm(cls, x):
        return cls.__name__, x
    @staticmethod
    def sm(x):
        return "static", x
    @property
    def known(self):
        return REGISTERED[type(self).__name__] is type(self), self.added()
    @functools.cached_property
    def size(self):
        return len(REGISTERED)
    @loud
    def all(self, x):
        return self.known, self.size, Model.count, Model.seen, isinstance(self, Model), x
    class Inner:
        def name(self):
            return Model.Inner.__qualname__
    def inner(self, x):
        return self.Inner().name()
class Sub(Model):
    def method(self, x):
        return super().method(x) + 1000
Model.count = 7
Model.seen.append(1)
def later(self, x):
    return self.n * x
Model.later = later
model = Model()
"""


def test_a_class_with_all_that_it_may_have(cells: Cells, far: Far) -> None:
    cells.run(MODEL)
    model, cls = cells["model"], cells["Model"]
    cases: list[tuple[Any, Any]] = [
        (model, 14),
        (model.method, 10),
        (cls.cm, ("Model", 10)),
        (cls.sm, ("static", 10)),
        (model.all, [((True, "added"), 1, 7, [1], True, 10), "!"]),
        (model.inner, "Model.Inner"),
        (model.later, 40),
        (cells["Sub"]().method, 1010),
    ]
    for target, result in cases:
        assert far.run(target, 10) == result, target
    bundle = far.load(cells["Sub"], init_args={"n": 3})
    assert bundle.meta["kind"] == "cls"
    assert far.podlet.call_method("method", 1) == 1001
    assert far.podlet.call_method("later", 2) == 6


KINDS = """
import abc, dataclasses, enum, typing
from dataclasses import dataclass, field
from typing import ClassVar, Generic, NamedTuple, NewType, Protocol, TypedDict, TypeVar

@dataclass(order=True)
class Point:
    x: int = 1
    tags: list = field(default_factory=list)
    kind: ClassVar[str] = "p"
@dataclass(frozen=True)
class Frozen(Point.__base__):
    a: int
class Color(enum.Enum):
    RED = 1
    BLUE = "b"
class Flags(enum.IntFlag):
    A = enum.auto()
    B = enum.auto()
class Pair(NamedTuple):
    first: int
    second: int = 2
class Options(TypedDict, total=False):
    name: str
T = TypeVar("T")
class Box(Generic[T]):
    def __init__(self, value: T) -> None:
        self.value = value
class Shape(Protocol):
    def area(self) -> int: ...
class Abstract(abc.ABC):
    registry = []
    @abc.abstractmethod
    def f(self): ...
class Concrete(Abstract):
    def f(self):
        return super().f()
Abstract.registry.append(Concrete)
class Meta(type):
    def __new__(mcls, name, bases, namespace, **options):
        namespace["options"] = options
        return super().__new__(mcls, name, bases, namespace)
class WithMeta(metaclass=Meta, size=3):
    pass
class Slots:
    __slots__ = ("a",)
    def __init__(self):
        self.a = 5
UserId = NewType("UserId", int)
DEFAULT = Point(9)
HANDLERS = {"box": Box, Color.RED: Frozen}
"""


def test_kinds_of_classes(cells: Cells, far: Far) -> None:
    cells.run(KINDS)
    cells.run(
        "def f(p: Point, color: Color = Color.BLUE, at: Point = DEFAULT):\n"
        "    options: Options = {'name': 'n'}\n"
        "    return (dataclasses.replace(p, x=at.x), color is Color.BLUE, Flags.A | Flags.B, Pair(3), options,\n"
        "            Box[int](4).value, HANDLERS[Color.RED](1) == Frozen(1), Concrete().f(), Abstract.registry[0] is"
        " Concrete,\n"
        "            WithMeta.options, Slots().a, UserId(6), Point(1) < Point(2), Shape.__name__, Point.kind,\n"
        "            [f.name for f in dataclasses.fields(Point)])\n"
    )
    result = far.run(cells["f"], cells["Point"](2, ["t"]))
    assert result[0] == cells["Point"](9, ["t"])
    assert type(result[2]) is cells["Flags"]
    assert type(result[3]) is cells["Pair"]
    assert result[1:] == (
        *(True, cells["Flags"](3), (3, 2), {"name": "n"}, 4, True, None, True, {"size": 3}, 5, 6, True, "Shape", "p"),
        ["x", "tags"],
    )


def test_classes_made_by_a_call(cells: Cells, far: Far) -> None:
    cells.run(
        "import collections, enum\n"
        "Size = collections.namedtuple('Size', 'w h', defaults=[7])\n"
        "Way = enum.Enum('Way', 'LEFT RIGHT')\n"
        "def f(size, way):\n    return Size(size.w + 1), way is Way.LEFT, Way.RIGHT, isinstance(size, Size)\n"
    )
    size, left, right, same = far.run(cells["f"], cells["Size"](1, 2), cells["Way"].LEFT)
    assert (type(size), size, left, same) == (cells["Size"], (2, 7), True, True)
    assert right is cells["Way"].RIGHT


def test_classes_of_a_library_and_odd_places(cells: Cells, far: Far) -> None:
    cells.run(
        "import functools, typing, dataclasses\n"
        "@functools.total_ordering\n"
        "class Total:\n"
        "    def __init__(self, n): self.n = n\n"
        "    def __lt__(self, other): return self.n < other.n\n"
        "@dataclasses.dataclass(slots=True, kw_only=True)\n"
        "class Slim:\n    a: int\n    b: 'Slim | None' = None\n"
        "class _Private:\n"
        "    __secret = 4\n"
        "    def __hidden(self): return self.__secret\n"
        "    def get(self): return self.__hidden()\n"
        "def wrap(f):\n"
        "    def wrapper(self): return f(self) + 1\n"
        "    return wrapper\n"
        "class Sub(_Private):\n"
        "    @wrap\n    def get(self): return super().get() + 10\n"
        "class Callback:\n"
        "    key = staticmethod(lambda x: -x)\n"
        "    def __init__(self): self.go, self.data = self.run, [self]\n"
        "    def run(self, x): return self.key(x)\n"
        "callback = Callback()\n"
        "def outer():\n"
        "    class Local: pass\n"
        "    def rec(n: Local): return 1 if n == 0 else n * rec(n - 1)\n"
        "    return rec\n"
        "rec = outer()\n"
        "x = 1; square = lambda v: v * v + x; y = 2\n"
        "def f():\n"
        "    return (Total(1) >= Total(0), Slim(a=1, b=Slim(a=2)).b.a, Sub().get(), callback.go(3),\n"
        "            callback.data[0] is callback, rec(5), square(3))\n"
    )
    assert far.run(cells["f"]) == (True, 2, 15, -3, True, 120, 10)


def test_annotations_that_are_strings(cells: Cells, far: Far) -> None:
    cells.run(
        "from __future__ import annotations\n"
        "import dataclasses\nfrom typing import ClassVar\n"
        "@dataclasses.dataclass\n"
        "class Node:\n"
        "    n: int\n"
        "    kids: list[Node] = dataclasses.field(default_factory=list)\n"
        "    total: ClassVar[Unknown] = 3\n"
        "    def sum(self) -> NotThere:\n"
        "        return self.n + sum(k.sum() for k in self.kids)\n"
    )
    cells.run("def f(node):\n    return Node(1, [node]).sum(), [f.name for f in dataclasses.fields(Node)]\n")
    assert far.run(cells["f"], cells["Node"](2)) == (3, ["n", "kids"])


def test_subclasses_that_register_themselves(cells: Cells, far: Far) -> None:
    cells.run(
        "LOG = {}\n"
        "class Plugin:\n"
        "    known = {}\n"
        "    def __init_subclass__(cls, **options):\n"
        "        super().__init_subclass__(**options)\n"
        "        cls.known[cls.__name__] = cls\n"
        "        LOG[cls.__name__] = 1\n"
        "    @classmethod\n"
        "    def of(cls, name):\n"
        "        return cls.known[name]()\n"
        "class One(Plugin):\n"
        "    def run(self):\n"
        "        return sorted(Plugin.known), LOG\n"
        "def f():\n"
        "    return Plugin.of('One').run(), Plugin.known['One'] is One, isinstance(Plugin.of('One'), One)\n"
    )
    assert far.run(cells["f"]) == ((["One"], {"One": 1}), True, True)


def test_an_edited_class_without_methods_is_the_one_that_lives(cells: Cells, far: Far) -> None:
    for text in ("a: int = 1\n    b: int = 2", "a: int = 1", "a: int = 5", "a: str = 'x'\n    c: int = 3"):
        cells.run(f"import dataclasses\n@dataclasses.dataclass\nclass Conf:\n    {text}\n")
    cells.run("class Conf2(Conf): pass\ndef f():\n    return Conf(), dataclasses.asdict(Conf2())\n")
    conf, fields = far.run(cells["f"])
    assert type(conf) is cells["Conf"]
    assert fields == {"a": "x", "c": 3}


# -- what travels with calls -------------------------------------------------------------------------------------------


def test_exceptions_of_the_notebook_are_the_clients_own(cells: Cells, far: Far) -> None:
    cells.run(
        "class Coded(Exception):\n"
        "    def __init__(self, code):\n"
        "        super().__init__(f'code {code}')\n"
        "        self.code = code\n"
        "class Plain(ValueError):\n    pass\n"
        "def f(plain):\n"
        "    # here\n"
        "    raise Plain('p') if plain else Coded(3)\n"
    )
    far.load(cells["f"])
    with pytest.raises(cells["Coded"], match="code 3") as coded:
        far.podlet.call(False)
    assert coded.value.code == 3
    with pytest.raises(cells["Plain"], match="p"):
        far.podlet.call(True)
    last = coded.traceback[-1]
    assert str(last.path).endswith(Path(cells["f"].__code__.co_filename).name)
    assert last.lineno == 8  # counted from 0
    source = far.podlet.eval("__import__('inspect').getsource(code.target)")
    assert source == "def f(plain):\n    # here\n    raise Plain('p') if plain else Coded(3)\n"


def test_functions_in_arguments_and_results(cells: Cells, far: Far) -> None:
    cells.run(
        "def double(x):\n    return 2 * x\n"
        "def hidden(x):\n    return double(x) + 1\n"
        "class Item:\n    def __init__(self, n):\n        self.n = hidden(n)\n"
        "def f(g, x):\n    return (g or double)(x), double\n"
        "def lam():\n    return lambda: 0\n"
    )
    far.load(cells["f"])
    assert far.podlet.call(cells["double"], 4) == (8, cells["double"])
    with pytest.raises(serialization.EncodeError, match="args.0.*another Python.*the lambda of line"):
        far.podlet.call(lambda x: x, 4)
    # Others go by their source as well; what the pod has already stays what it is there.
    assert far.podlet.call(cells["hidden"], 4)[0] == 9
    item = far.podlet.call(lambda_named(cells), cells["Item"](1))[0]
    assert (type(item), item.n) == (cells["Item"], 3)
    # By value, from who doesn't know the pod's Python: refused before it is loaded.
    with pytest.raises(Exception, match=f"compiled by Python {PYTHON}, this is {far.version}"):
        far.podlet._ask("call", None, serialization.dumps(((lambda x: x, 4), {})))
    far.load(cells["lam"])
    with pytest.raises(Exception, match="another Python than"):
        far.podlet.call()


def lambda_named(cells: Cells) -> Any:
    cells.run("same = lambda x: x")
    return cells["same"]


# -- what can't go -----------------------------------------------------------------------------------------------------


def refused(target: Any, **options: Any) -> str:
    with pytest.raises(kt.VersionMismatchError) as caught:
        pack(target, python=OTHER, **options)
    error = caught.value
    assert (error.what, error.client, error.pod) == ("python", PYTHON, OTHER)
    text = str(error)
    assert f"{PYTHON} here and {OTHER} in the pod" in text
    assert f'Image(image_id="python:{PYTHON}-slim")' in text
    assert "`def` or `class` in a cell" in text
    return text


def test_lambdas_without_a_name(cells: Cells) -> None:
    cells.run("ops = {'a': lambda x: x}\ndef f(): return ops\ndef default(x, key=lambda v: v):\n    return key(x)\n")
    cells.run("import functools\nreduced = functools.partial(lambda x, y: x, 1)\nf1, f2 = (lambda: 1), (lambda: 2)")
    text = refused(cells["f"])
    assert "the lambda of line 1 in" in text
    assert "(at f.<globals>.ops['a'])" in text
    assert "name = lambda" in refused(cells["reduced"])
    assert "the lambda of line 3 in" in refused(cells["default"])
    assert "lambda can't be sent" in refused(cells["f1"])


def test_a_preview_for_another_python(cells: Cells) -> None:
    cells.run("n = 3\ndef f():\n    return n\ndef g():\n    return h()\nh = (lambda: 1,)[0]\n")
    assert [c.path for c in kt.preview(cells["f"], python=OTHER).captured] == ["f.<globals>.n"]
    assert kt.preview(cells["g"]).size
    with pytest.raises(kt.VersionMismatchError, match=f"{OTHER} in the pod.*the lambda of line 6"):
        kt.preview(cells["g"], python=OTHER)


def test_code_without_source(cells: Cells) -> None:
    exec("def made(x):\n    return x", cells.namespace)
    cells.run("def f():\n    return made(1)\n")
    text = refused(cells["f"])
    assert text.startswith("f can't be sent")
    assert "the function made has no source: it was defined by exec" in text
    cells.namespace["Made"] = type("Made", (), {"__module__": "__main__"})
    cells.run("def g():\n    return Made()\n")
    assert "the class Made has no source" in refused(cells["g"])
    cells.run(
        "def local():\n    class L:\n        def m(self): pass\n    return L\nL = local()\ndef h():\n    return L\n"
    )
    assert "the class local.<locals>.L is defined inside a function" in refused(cells["h"])
    cells.run("class Fine: pass")
    assert "(at init_args[0])" in refused(cells["Fine"], init_args=[cells["made"]])


def test_a_text_that_has_changed_since(cells: Cells) -> None:
    cells.run("def f():\n    return 1\n")
    file = cells["f"].__code__.co_filename
    text = "def f():\n    return 2\n"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    assert "the function f isn't what line 1 of" in refused(cells["f"])


def test_what_cannot_be_pickled_at_all(cells: Cells) -> None:
    cells.run("import threading\nlock = threading.Lock()\ndef f():\n    return lock\n")
    with pytest.raises(kt.SerializationError, match="f.<globals>.lock is of type _thread.lock"):
        pack(cells["f"], python=OTHER)


def test_bytecode_in_a_pickle_of_its_own(cells: Cells) -> None:
    import cloudpickle

    cells.namespace["data"] = cloudpickle.dumps(lambda x: x)
    cells.run("def f():\n    return data\n")
    assert "bytecode in a pickle of its own" in refused(cells["f"])


def test_a_class_that_needs_itself(cells: Cells) -> None:
    cells.run("class A:\n    pass\nclass B:\n    made = A()\nA.b = B\nA.c = B()\ndef f():\n    return A.b.made, A.c\n")
    pack(cells["f"], python=OTHER)
    cells.run("items = []\nclass C:\n    size = len(items)\nitems.append(C)\ndef g():\n    return C.size\n")
    pack(cells["g"], python=OTHER)


def test_syntax_that_the_pod_does_not_know(cells: Cells, far: Far) -> None:
    if far.version != "3.10":
        pytest.skip("later versions know all that this one does")
    cells.run("def f():\n    try:\n        pass\n    except* ValueError:\n        pass\n")
    with pytest.raises(Exception, match="Python 3.10, which the pod has, doesn't know the syntax of line 4"):
        far.load(cells["f"])


# -- deploys -----------------------------------------------------------------------------------------------------------


def test_the_version_is_the_same_from_kernel_to_kernel() -> None:
    def version(text: str, pid: int, python: str = OTHER) -> str:
        cells = Cells(pid)
        try:
            cells.run(text)
            return pack(cells["f"], python=python).version
        finally:
            cells.clear()

    text = "import enum\nclass E(enum.Enum):\n    A = 1\nN = {'a', 'b'}\ndef f(x=E.A):\n    return x, N\n"
    first = version(text, 1)
    assert version("# a comment\n" + text, 2) == first
    assert version(text.replace("'b'", "'c'"), 3) != first
    assert version(text, 1, PYTHON) != first


@pytest.fixture(params=OTHERS)
def deployed(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Services are in a whole pod of another Python."""
    with foreign_pod(request.param, tmp_path) as endpoint:
        backend = FixedBackend(endpoint)
        monkeypatch.setattr(deploying, "get_backend", lambda compute: backend)
        yield request.param


def test_deploy_call_and_redeploy(deployed: str, cells: Cells, capsys: pytest.CaptureFixture[str]) -> None:
    cells.run(MODEL)
    cells.run(
        "import sys\n"
        "class Conf:\n    def __init__(self, n):\n        self.n = n\n"
        "class Wrong(Exception): pass\n"
        "def f(conf, fail=False):\n"
        "    print('in the pod')\n"
        "    if fail:\n        raise Wrong(conf.n)\n"
        "    conf.n += 1\n"
        "    return conf, '%d.%d' % sys.version_info[:2]\n"
        "def items(n):\n    for i in range(n):\n        yield Conf(i)\n"
    )
    handle = kt.fn(cells["f"]).to(kt.Compute())
    shown = capsys.readouterr()
    assert f"the pod has Python {deployed}, not {PYTHON}: f goes by its source" in shown.out + shown.err
    conf, version = handle(cells["Conf"](1))
    assert (type(conf), conf.n, version) == (cells["Conf"], 2, deployed)
    with pytest.raises(cells["Wrong"], match="5"):
        handle(cells["Conf"](5), fail=True)
    with pytest.raises(kt.SerializationError, match=r"args\[0\].*another Python.*lambda"):
        handle(lambda: 0)
    capsys.readouterr()
    kt.fn(cells["f"]).to(kt.Compute())
    shown = capsys.readouterr()
    assert "is unchanged" in shown.out + shown.err
    with pytest.raises(kt.VersionMismatchError, match="lambda"):
        kt.fn(functools.partial(lambda x: x, 1), name="f").to(kt.Compute(), stream_logs=False)
    assert handle(cells["Conf"](1))[0].n == 2  # the code that was there goes on
    assert [c.n for c in kt.fn(cells["items"]).to(kt.Compute(), stream_logs=False)(3)] == [0, 1, 2]
    model = kt.cls(cells["Model"]).to(kt.Compute(), init_args=[3], stream_logs=False)
    assert model.method(10) == 10
    assert model.all(1) == [((True, "added"), 1, 7, [1], True, 1), "!"]
    assert sys.modules["__main__"].__dict__["Model"] is cells["Model"]


def test_a_namespace_for_cells(deployed: str) -> None:
    cells = kt.Cells("far-cells").to(kt.Compute(), stream_logs=False)
    cells.put({"x": [1, 2]})
    cells.run("import sys\ndef g(): return '%d.%d' % sys.version_info[:2]\ny = len(x), g()")
    assert cells.fetch("y") == {"y": (2, deployed)}
