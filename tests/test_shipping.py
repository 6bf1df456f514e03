"""What travels with a callable: packed here, loaded and called in another process."""

from __future__ import annotations

import functools
import io
import json
import math
import os
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kubetorch_jupyter import shipping, sources
from kubetorch_jupyter.errors import ConfigError, PayloadTooLargeError, SerializationError
from kubetorch_jupyter.shipping import Bundle, describe_interface, pack
from pod_server import serialization
from tests.podlet import ROOT, Cells, Podlet


@pytest.fixture
def cells() -> Iterator[Cells]:
    made = Cells()
    yield made
    made.clear()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the user's, on the path; what is imported from it is forgotten afterwards."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and file.startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Podlet]:
    folder = tmp_path / "pod"
    folder.mkdir()
    with Podlet(folder) as made:
        yield made


def names_in(bundle: Bundle) -> list[str]:
    data = bytes(bundle.buffers[2])
    return sorted(zipfile.ZipFile(io.BytesIO(data)).namelist()) if data else []


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__slash__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


# -- by value ----------------------------------------------------------------------------------------------------------


def test_helpers_constants_imports_and_classes_of_other_cells(cells: Cells, pod: Podlet) -> None:
    cells.run("import math\nimport os.path as p\nfrom collections import Counter")
    cells.run("LIMIT = 3\nTABLE = {'a': [1, 2]}")
    cells.run("class Base:\n    def twice(self):\n        return 2 * self.n\n")
    cells.run("class M(Base):\n    def __init__(self, n):\n        self.n = n\n")
    cells.run("def helper(x):\n    return x + LIMIT + TABLE['a'][1]\n")
    cells.run(
        "def f(x):\n"
        "    import json\n"
        "    return [helper(x), M(x).twice(), math.floor(2.5), p.basename('a/b'), Counter('aab')['a'], json.dumps(x)]\n"
    )
    pod.load(pack(cells["f"]))
    assert pod.call(1) == [6, 2, 2, "b", 2, "1"]
    # A redefined cell: the code as it stands now.
    cells.run("def helper(x):\n    return -x\n")
    pod.load(pack(cells["f"]))
    assert pod.call(1)[0] == -1


def test_functions_of_one_deploy_share_their_globals(cells: Cells, pod: Podlet) -> None:
    cells.run("n = 0\ndef bump():\n    global n\n    n += 1\ndef f():\n    bump()\n    return n\n")
    pod.load(pack(cells["f"]))
    assert [pod.call(), pod.call()] == [1, 2]


def test_every_kind_of_callable(cells: Cells, pod: Podlet) -> None:
    cells.run(
        "import functools\n"
        "def loud(f):\n"
        "    @functools.wraps(f)\n"
        "    def wrapper(*args, **kwargs):\n"
        "        return [f(*args, **kwargs), '!']\n"
        "    return wrapper\n"
        "@loud\n"
        "def decorated(x, y=1):\n"
        "    return x + y\n"
        "def make(n):\n"
        "    def inner(x):\n"
        "        return x * n\n"
        "    return inner\n"
        "closure = make(3)\n"
        "square = lambda x: x * x\n"
        "part = functools.partial(decorated, y=5)\n"
        "class Model:\n"
        "    def __init__(self, n):\n"
        "        self.n = n\n"
        "    def method(self, x):\n"
        "        return x - self.n\n"
        "    def __call__(self, x):\n"
        "        return x + self.n\n"
        "    @classmethod\n"
        "    def cm(cls, x):\n"
        "        return cls.__name__, x\n"
        "    @staticmethod\n"
        "    def sm(x):\n"
        "        return 'static', x\n"
        "model = Model(4)\n"
        "async def coro(x):\n"
        "    return x\n"
    )
    ns = cells.namespace
    cases: list[tuple[Any, str, Any]] = [
        (ns["decorated"], "decorated", [11, "!"]),
        (ns["closure"], "inner", 30),
        (ns["square"], "lambda", 100),
        (ns["part"], "decorated", [15, "!"]),
        (ns["model"].method, "method", 6),
        (ns["model"], "Model", 14),
        (ns["Model"].cm, "cm", ("Model", 10)),
        (ns["Model"].sm, "sm", ("static", 10)),
        (math.sqrt, "sqrt", math.sqrt(10)),
        (functools.partial(math.pow, 2), "pow", 1024.0),
    ]
    for target, name, result in cases:
        bundle = pack(target)
        assert (bundle.meta["kind"], bundle.meta["name"]) == ("fn", name)
        pod.load(bundle)
        assert pod.call(10) == result
    assert pack(ns["coro"]).meta["interface"][""]["async"] is True


def test_a_class_with_init_args(cells: Cells, pod: Podlet) -> None:
    cells.run(
        "class Config:\n"
        "    k = 2\n"
        "class M:\n"
        "    def __init__(self, n, c=None):\n"
        "        self.n = n * (c.k if c else 1)\n"
    )
    cells.run("M.get = lambda self: self.n")
    bundle = pack(cells["M"], name="model", init_args={"n": 4, "c": cells["Config"]()})
    assert (bundle.meta["kind"], bundle.meta["name"]) == ("cls", "model")
    pod.load(bundle)
    assert pod.call_method("get") == 8
    pod.load(pack(cells["M"], init_args=(5,)))
    assert pod.call_method("get") == 5


def test_captured_arrays_travel_out_of_band(cells: Cells, pod: Podlet) -> None:
    cells.run("import numpy as np\nw = np.arange(1_000_000)\ndef f(i):\n    w[i] += 1\n    return w[i]\n")
    bundle = pack(cells["f"])
    assert len(bundle.buffers) == 5
    assert bundle.size - 8_000_000 < 10_000
    pod.load(bundle)
    assert pod.call(5) == 6
    assert cells["w"][5] == 5


def test_the_sources_of_cells_travel(cells: Cells, pod: Podlet) -> None:
    cells.run("import dataclasses\n@dataclasses.dataclass\nclass D:\n    x: int = 1\n")
    cells.run("def helper():\n    return D(2)\n")
    cells.run("def f():\n    '''é'''\n    return helper()\n")
    bundle = pack(cells["f"])
    texts = json.loads(bytes(bundle.buffers[1]))
    assert {cells["f"].__code__.co_filename, cells["helper"].__code__.co_filename} <= set(texts)
    assert "'''é'''" in texts[cells["f"].__code__.co_filename]
    assert all(name.startswith("/tmp/ipykernel_") for name in texts)
    pod.load(bundle)
    assert pod.eval("__import__('inspect').getsource(code.target)") == "def f():\n    '''é'''\n    return helper()\n"
    assert pod.call() == cells["D"](2)


def test_code_without_sources(pod: Podlet) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("def f(x):\n    return x + 1", namespace)
    bundle = pack(namespace["f"])
    pod.load(bundle)
    assert pod.call(1) == 2


# -- local modules -----------------------------------------------------------------------------------------------------


PACKAGE = {
    "pkg__slash____init__.py": "from .core import run\nfrom . import core\n",
    "pkg__slash__core.py": "import shared\nfrom .deep.leaf import LEAF\n\nclass Error(Exception):\n    pass\n\n"
    "def run(x):\n    if x < 0:\n        raise Error('negative')\n    return [x, LEAF, shared.VALUE]\n",
    "pkg__slash__deep__slash____init__.py": "",
    "pkg__slash__deep__slash__leaf.py": "import pathlib\n"
    "LEAF = (pathlib.Path(__file__).parent / 'leaf.txt').read_text()\n",
    "pkg__slash__deep__slash__leaf.txt": "leaf",
    "pkg__slash____pycache____slash__core.cpython-311.pyc": "no",
    "pkg__slash__.git__slash__config": "no",
    "pkg__slash__myenv__slash__pyvenv.cfg": "no",
    "pkg__slash__env__slash____init__.py": "",
    "shared.py": "import other\nVALUE = other.VALUE\n",
    "other.py": "VALUE = 1\n",
    "unused.py": "VALUE = 2\n",
}
SENT = [
    *("other.py", "pkg/__init__.py", "pkg/core.py", "pkg/deep/__init__.py", "pkg/deep/leaf.py", "pkg/deep/leaf.txt"),
    *("pkg/env/__init__.py", "shared.py"),
]


def test_a_package_travels_whole_with_what_it_imports(project: Path, pod: Podlet) -> None:
    write(project, **PACKAGE)
    import pkg  # type: ignore[import-not-found]

    bundle = pack(pkg.run)
    assert names_in(bundle) == SENT
    assert bundle.modules["pkg"][0] == 6
    assert set(bundle.modules) == {"pkg", "shared", "other"}
    pod.load(bundle)
    assert pod.call(3) == [3, "leaf", 1]
    with pytest.raises(pkg.core.Error, match="negative") as caught:
        pod.call(-1)
    import traceback

    text = "".join(traceback.format_exception(caught.value))
    assert f"File \"{project / 'pkg' / 'core.py'}\", line 9, in run\n    raise Error('negative')" in text
    # A changed file: another hash, and the pod runs the file as it is now.
    write(project, **{"other.py": "VALUE = 5  # changed\n"})
    changed = pack(pkg.run)
    assert changed.worker != bundle.worker
    assert changed.version != bundle.version
    assert pack(pkg.run).worker == changed.worker


def test_modules_that_cells_use(project: Path, cells: Cells, pod: Podlet) -> None:
    write(project, **PACKAGE, **{"lazy.py": "def f():\n    return 'lazy'\n"})
    cells.run("import shared\nfrom pkg.core import run, Error\nimport pkg.deep.leaf\n")
    cells.run(
        "def a(x):\n"
        "    return run(x)\n"
        "def b():\n"
        "    import lazy\n"
        "    return lazy.f()\n"
        "def c():\n"
        "    return shared.VALUE\n"
    )
    cells.run("def d(e: Error = None):\n    return isinstance(e, Error)\ndef e():\n    return pkg.deep.leaf.LEAF\n")
    assert names_in(pack(cells["a"])) == SENT
    assert names_in(pack(cells["b"])) == ["lazy.py"]
    assert names_in(pack(cells["c"])) == ["other.py", "shared.py"]
    assert names_in(pack(cells["d"])) == SENT
    for name, result in (("a", [1, "leaf", 1]), ("b", "lazy"), ("c", 1), ("e", "leaf")):
        pod.load(pack(cells[name]))
        assert pod.call(*([1] if name == "a" else [])) == result


def test_functions_of_local_modules_that_have_no_name_there(project: Path, pod: Podlet) -> None:
    write(
        project,
        **{"local.py": "K = 2\ndef helper(x):\n    return x * K\ndef make(n):\n    return lambda x: helper(x) + n\n"},
    )
    import local  # type: ignore[import-not-found]

    bundle = pack(local.make(1))
    assert names_in(bundle) == ["local.py"]
    pod.load(bundle)
    assert pod.call(5) == 11


def test_instances_of_local_classes(project: Path, cells: Cells, pod: Podlet) -> None:
    write(project, **{"shapes.py": "class Box:\n    def __init__(self, n):\n        self.n = n\n"})
    cells.run(
        "from shapes import Box\n"
        "box = Box(3)\n"
        "def f():\n"
        "    return box.n\n"
        "class M:\n"
        "    def __init__(self, b):\n"
        "        self.b = b\n"
    )
    assert names_in(pack(cells["f"])) == ["shapes.py"]
    assert names_in(pack(cells["M"], init_args=[cells["box"]])) == ["shapes.py"]
    pod.load(pack(cells["f"]))
    assert pod.call() == 3


def test_sync_dir(project: Path, cells: Cells, pod: Podlet, tmp_path: Path) -> None:
    write(project, **PACKAGE)
    cells.run("import shared\ndef f():\n    return shared.VALUE\n")
    assert names_in(pack(cells["f"], sync_dir=False)) == []
    with pytest.raises(ModuleNotFoundError, match="shared"):
        pod.load(pack(cells["f"], sync_dir=False))
    whole = names_in(pack(cells["f"], sync_dir=str(project)))
    assert whole == sorted([*SENT, "unused.py"])
    # A folder that is a package goes under its name; what is used beside it goes too.
    assert names_in(pack(cells["f"], sync_dir=project / "pkg")) == SENT
    pod.load(pack(cells["f"], sync_dir=project))
    assert pod.call() == 1
    with pytest.raises(ConfigError, match="not a folder"):
        pack(cells["f"], sync_dir=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="sync_dir"):
        pack(cells["f"], sync_dir=True)


def test_namespace_packages(project: Path, cells: Cells, pod: Podlet) -> None:
    write(project, **{"space__slash__a__slash__mod.py": "V = 7\n"})
    cells.run("from space.a import mod\ndef f():\n    return mod.V\n")
    assert names_in(pack(cells["f"])) == ["space/a/mod.py"]
    pod.load(pack(cells["f"]))
    assert pod.call() == 7


def test_large_data_stays_at_home_and_is_named(project: Path, cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "DATA_LIMIT", 1000)
    write(project, **PACKAGE, **{"pkg__slash__big.bin": "x" * 2000})
    cells.run("import pkg\ndef f():\n    return pkg.run(1)\n")
    bundle = pack(cells["f"])
    assert names_in(bundle) == SENT
    assert any("big.bin" in w for w in bundle.warnings)
    monkeypatch.setattr(sources, "TREE_WARNING", 100)
    assert any(w.startswith("pkg has") for w in pack(cells["f"]).warnings)


def test_installed_and_our_own_modules_are_not_sent(cells: Cells) -> None:
    cells.run(
        "import numpy as np, cloudpickle, kubetorch_jupyter, pod_server.wire, json\n"
        "def f():\n"
        "    return np, cloudpickle, kubetorch_jupyter, pod_server, json\n"
    )
    bundle = pack(cells["f"])
    assert names_in(bundle) == []
    assert {"numpy", "cloudpickle"} <= bundle.packages


def test_the_zip_is_the_same_for_the_same_files(project: Path, tmp_path: Path) -> None:
    write(project, **PACKAGE)
    first = sources.pack_zip(sources.collect(["pkg"]))
    for path in project.rglob("*"):
        os.utime(path, (1, 1))
    assert sources.pack_zip(sources.collect(["pkg"])) == first


# -- the fingerprint ---------------------------------------------------------------------------------------------------

STABLE = """
import sys, random
sys.path.insert(0, sys.argv[1])
from tests.podlet import Cells
from kubetorch_jupyter.shipping import pack
cells = Cells(pid=int(sys.argv[2]))
for i in range(int(sys.argv[2])):
    cells.run(f"unrelated_{i} = {i}")
cells.run('''
import dataclasses, enum, functools, logging, re, collections, typing, abc, threading
import numpy as np, pandas as pd
import local
''')
cells.run('''
NAMES = {"a", "b", "c", "dd", ("x", 1)}
FROZEN = frozenset(NAMES)
ARRAY = np.arange(20).reshape(4, 5).T
OBJECTS = np.array([None, "x", 1.5], dtype=object)
FRAME = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}, index=["r", "s"])
RECORDS = np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])
class Colour(enum.Enum):
    RED = 1
    BLUE = "b"
class Flags(enum.Flag):
    A = 1
    B = 2
@dataclasses.dataclass(frozen=True)
class Config:
    x: int = 1
    names: set = dataclasses.field(default_factory=set)
class Pair(typing.NamedTuple):
    a: int
    b: str = "b"
T = typing.TypeVar("T")
class Abstract(abc.ABC, typing.Generic[T]):
    @abc.abstractmethod
    def go(self): ...
class Model(Abstract[int]):
    __slots__ = ("w",)
    registry = collections.defaultdict(list)
    def __init__(self): self.w = ARRAY
    def go(self): return {k for k in ("p", "q", "r")} | {"s", "t"}
    @property
    def p(self): return 1
    @functools.cached_property
    def cp(self): return 1
    @classmethod
    def cm(cls): return cls
    @staticmethod
    def sm(): return Model
Model.registry["a"].append(Model)
@functools.lru_cache
def cached(n): return n in {"x", "yy", "zzz"}
log = logging.getLogger("mine")
pattern = re.compile("a+")
bound = Model().go
shared = [1, 2]
cyclic = [shared, shared]
cyclic.append(cyclic)
rows = [{"k": str(i), "s": {str(i), "x", "y"}} for i in range(1000)]
mixed = [*range(100), np.float32(1), Config()]
''')
cells.run('''
def deco(f):
    @functools.wraps(f)
    def wrapper(*args, **kwargs): return f(*args, **kwargs)
    return wrapper
@deco
def train(x: int, *, flag=Colour.RED) -> "Config":
    return (NAMES, FROZEN, ARRAY, OBJECTS, FRAME, RECORDS, Flags, Config(), Pair(1), Model, cached, log, pattern, bound,
            cyclic, rows, mixed,
            local.f, functools.partial(local.f, 1), T, np.sin, np.add, len, [].append, str.upper, [i for i in (1, 2)])
''')
bundle = pack(cells["train"], init_args={"c": cells["Config"](names={"u", "v", "w"}), "m": cells["Model"]()})
print(bundle.version, bundle.worker, bundle.warnings)
"""


def test_the_fingerprint_is_the_same_from_kernel_to_kernel(tmp_path: Path) -> None:
    folders = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "local.py").write_text("def f(x):\n    return x\n")
        folders.append(str(folder))

    def fingerprint(folder: str, n: int) -> str:
        env = {**os.environ, "PYTHONHASHSEED": str(n), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", STABLE, folder, str(n)], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    found = {fingerprint(folders[n % 2], n) for n in (1, 2, 3)}
    assert len(found) == 1, found
    assert found.pop().endswith("()\n")


BEFORE = """
import functools
import numpy as np
CONSTANT = 1
DATA = {"a": [1, {2, 3}]}
ARRAY = np.zeros(4, "f4")
class Base:
    def base(self): return 1
class M(Base):
    attribute = 1
    def method(self): return 1
m = M()
m.state = 1
def deep(): return CONSTANT
def helper(x=1, *, y=2): return deep()
def make(n):
    def inner(): return n
    return inner
closure = make(1)
part = functools.partial(helper, 1)
lam = lambda: 1
@functools.lru_cache(maxsize=1)
def cached(): return 1
def main():
    return helper(), DATA, ARRAY, m, closure, part, lam, cached, BIG, MIXED
BIG = [{"a": 1} for _ in range(1000)]
MIXED = [*range(1000), [np.float32(0)]]
"""


@pytest.mark.parametrize(
    "change",
    [
        "CONSTANT = 2",
        'DATA["a"][1].add(4)',
        'DATA["b"] = 1',
        'ARRAY = ARRAY.astype("i4")',
        "ARRAY[3] = 1",
        "ARRAY = ARRAY.reshape(2, 2)",
        "M.attribute = 2",
        "M.new = 2",
        "Base.base = lambda self: 2",
        "m.state = 2",
        "def deep(): return CONSTANT + 1",
        "def deep(): return -CONSTANT",
        "def helper(x=2, *, y=2): return deep()",
        "def helper(x=1, *, y=3): return deep()",
        "def helper(z=1, *, y=2): return deep()",
        "closure = make(2)",
        "part = functools.partial(helper, 2)",
        "lam = lambda: 2",
        "lam = lambda: 1.0",
        "lam = lambda: True",
        "@functools.lru_cache(maxsize=2)\ndef cached(): return 1",
        "class M(Base):\n    attribute = 1\n    def method(self): return 2\nm.__class__ = M",
        "helper.tag = 1",
        "m.state = np.array([1.0])",
        "BIG[500]['a'] = 2",
        "BIG[500]['a'] = 1.0",
        "MIXED[-1][0] = np.int32(0)",
    ],
)
def test_the_fingerprint_changes_with_what_matters(cells: Cells, change: str) -> None:
    cells.run(BEFORE)
    before = pack(cells["main"]).version
    cells.run("unrelated = 1\n# a comment\n")
    assert pack(cells["main"]).version == before
    cells.run(BEFORE)
    assert pack(cells["main"]).version == before
    cells.run("\n\n\n# moved down\n" + BEFORE)
    assert pack(cells["main"]).version == before
    cells.run(change)
    assert pack(cells["main"]).version != before


def test_large_plain_data_is_hashed_quickly(cells: Cells) -> None:
    import time

    cells.run("rows = [{'id': i, 'name': str(i)} for i in range(300_000)]\ndef f():\n    return rows\n")
    start = time.perf_counter()
    pack(cells["f"])
    took = time.perf_counter() - start
    print(f"packing 300,000 dictionaries: {took * 1000:.0f} ms")
    assert took < 3


def test_the_fingerprint_changes_with_init_args_name_and_kind(cells: Cells) -> None:
    cells.run("class M:\n    def __init__(self, n=1): ...\n")
    M = cells["M"]
    found = {
        pack(M, **options).version
        for options in ({}, {"init_args": {"n": 1}}, {"init_args": {"n": 2}}, {"name": "x"}, {"kind": "fn"})
    }
    assert len(found) == 5


def test_running_does_not_change_the_fingerprint(cells: Cells) -> None:
    cells.run(
        "import numpy as np\n"
        "def f(n):\n"
        "    return [np.add(i, 1) for i in range(n)]\n"
        "class M:\n"
        "    def go(self):\n"
        "        return f(3)\n"
    )
    before = pack(cells["M"]).version
    instance = cells["M"]()
    for _ in range(200):
        instance.go()
    serialization.loads(serialization.dumps(instance))
    assert pack(cells["M"]).version == before


def test_the_notebooks_own_stdout_is_the_pods_there(cells: Cells, pod: Podlet, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream(io.StringIO):
        """As ipykernel's: no file, and nothing that can be pickled."""

        def __reduce_ex__(self, protocol: Any) -> Any:
            raise TypeError("cannot pickle it")

    monkeypatch.setattr(sys, "stderr", Stream())
    cells.run(
        "import sys\n"
        "class Logger:\n"
        "    def __init__(self, file): self.file = file\n"
        "logger = Logger(sys.stderr)\n"
        "def f(): return logger.file is sys.stderr, logger\n"
    )
    bundle = pack(cells["f"])
    assert bundle.warnings == ()
    assert bundle.version == pack(cells["f"]).version
    pod.load(bundle)
    there, logger = pod.call()
    assert there
    assert logger.file is sys.stderr


def test_a_pydantic_model_defined_again_is_unchanged(cells: Cells) -> None:
    pytest.importorskip("pydantic")
    source = textwrap.dedent(
        """
        import pydantic
        class Part(pydantic.BaseModel):
            n: int = pydantic.Field(gt=1)
        class Whole(pydantic.BaseModel):
            x: str
            y: str = ""
            parts: list[Part] = []
            @pydantic.field_validator("x")
            @classmethod
            def short(cls, value): return value[:5]
            @pydantic.computed_field
            @property
            def long(self) -> int: return len(self.parts)
        def f(x): return Whole(x=x)
        """
    )
    found = []
    for change in (("", ""), ("", ""), ("gt=1", "gt=2"), ('validator("x")', 'validator("y")'), ("[:5]", "[:6]")):
        cells.run(source.replace(*change))
        found.append(pack(cells["f"]).version)
    assert found[0] == found[1]
    assert len(set(found)) == 4


def test_what_can_not_be_compared_is_said(cells: Cells) -> None:
    cells.run("chain = []\nfor _ in range(450):\n    chain = [chain]\ndef f():\n    return chain\n")
    first, second = pack(cells["f"]), pack(cells["f"])
    assert first.version != second.version
    assert "f.<globals>.chain" in first.warnings[0]


def test_a_large_array_is_hashed_quickly(cells: Cells) -> None:
    import time

    cells.run("import numpy as np\nw = np.zeros(8 * 1024**2)\ndef f():\n    return w\n")
    start = time.perf_counter()
    bundle = pack(cells["f"])
    took = time.perf_counter() - start
    print(f"packing a closure over 64 MiB: {took * 1000:.0f} ms")
    assert took < 2
    assert bundle.size > 64 * 1024**2


# -- what people are told ----------------------------------------------------------------------------------------------


def test_large_captured_values_are_named(cells: Cells) -> None:
    cells.run(
        "import numpy as np\n"
        "w = np.zeros(3 * 1024**2)\n"
        "small = np.zeros(10)\n"
        "def helper():\n"
        "    return w\n"
        "def f():\n"
        "    return helper(), w, small\n"
    )
    (warning,) = pack(cells["f"]).warnings
    assert warning.startswith("f.<globals>.")
    assert ".w has 24 MiB" in warning
    cells.run("class M:\n    def __init__(self, w): ...\n")
    (warning,) = pack(cells["M"], init_args=[cells["w"]]).warnings
    assert warning.startswith("init_args has 24 MiB")


@pytest.mark.parametrize(
    ("source", "path", "type_name", "hint"),
    [
        ("lock = threading.Lock()\ndef f(): return lock", "f.<globals>.lock", "_thread.lock", "__init__"),
        ("d = {'k': [threading.RLock()]}\ndef f(): return d", "f.<globals>.d['k'][0]", "_thread.RLock", "__init__"),
        (
            "h = open(os.devnull, 'rb')\ndef g(): return h\ndef f(): return g()",
            "f.<globals>.g.<globals>.h",
            "_io.BufferedReader",
            "open it inside",
        ),
        (
            "class A: pass\na = A()\na.b = A()\na.b.s = socket.socket()\ndef f(): return a",
            "f.<globals>.a.b.s",
            "socket.socket",
            "connect inside",
        ),
        (
            "it = (i for i in ())\ndef mk(q):\n    def f(): return q\n    return f\nf = mk(it)",
            "f.<closure>.q",
            "generator",
            "list",
        ),
        ("lock = threading.Lock()\ndef f(x=lock): return x", "f.__defaults__[0]", "_thread.lock", "__init__"),
        ("lock = threading.Lock()\nclass f:\n    shared = lock", "f.shared", "_thread.lock", "__init__"),
        (
            "lock = threading.Lock()\n"
            "class A:\n    def __init__(self): self.lock = lock\n    def f(self): return 1\nf = A().f",
            "f.__self__.lock",
            "_thread.lock",
            "__init__",
        ),
        ("lock = threading.Lock()\nf = functools.partial(lambda x: x, lock)", "lambda", "_thread.lock", "__init__"),
        (
            "lock = threading.Lock()\n"
            "def deco(f):\n    @functools.wraps(f)\n    def w(): return f()\n    return w\n"
            "@deco\ndef f(): return lock",
            "f.<globals>.lock",
            "_thread.lock",
            "__init__",
        ),
    ],
)
def test_what_can_not_be_sent_is_named(cells: Cells, source: str, path: str, type_name: str, hint: str) -> None:
    cells.run(f"import threading, os, socket, functools\n{source}\n")
    try:
        with pytest.raises(SerializationError) as caught:
            pack(cells["f"])
    finally:
        for value in [*cells.namespace.values(), getattr(getattr(cells.namespace.get("a"), "b", None), "s", None)]:
            if hasattr(value, "close") and hasattr(value, "fileno"):
                value.close()
    assert caught.value.type_name == type_name
    assert caught.value.path is not None
    assert caught.value.path.startswith(path)
    for word in (path, type_name, hint):
        assert word in str(caught.value)


def test_init_args_that_can_not_be_sent(cells: Cells) -> None:
    cells.run("import threading\nclass M:\n    def __init__(self, **k): ...\nargs = {'a': [threading.Lock()]}\n")
    with pytest.raises(SerializationError, match=r"init_args\['a'\]\[0\]"):
        pack(cells["M"], init_args=cells["args"])


def test_too_large(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    cells.run("w = b'x' * 100_000\ndef f():\n    return w\n")
    monkeypatch.setattr(serialization, "MAX_BYTES", 50_000)
    with pytest.raises(PayloadTooLargeError):
        pack(cells["f"])


def test_only_callables() -> None:
    with pytest.raises(ConfigError, match="int"):
        pack(3)  # type: ignore[arg-type]


def test_code_that_fails_to_import_fails_at_load(project: Path, cells: Cells, pod: Podlet) -> None:
    write(
        project,
        **{
            "fragile.py": f"import os\nif os.getpid() != {os.getpid()}:\n    raise ValueError('only here')\n",
        },
    )
    cells.run("import fragile\ndef f():\n    return fragile\n")
    with pytest.raises(ValueError, match="only here") as caught:
        pod.load(pack(cells["f"]))
    import traceback

    text = "".join(traceback.format_exception(caught.value)).rpartition("raise exceptions.decode")[2]
    assert "raise ValueError('only here')" in text
    assert "cloudpickle" not in text
    assert "importlib" not in text


# -- the interface -----------------------------------------------------------------------------------------------------


def sig(target: Callable[..., Any]) -> Any:
    return describe_interface(target, "fn")[""]["sig"]


def test_signatures() -> None:
    def f(a: int, /, b: int = 1, *args: int, c: int, d: int = 2, **kw: int) -> None: ...

    assert sig(f) == [
        ["a", 0, False],
        ["b", 1, True],
        ["args", 2, False],
        ["c", 3, False],
        ["d", 3, True],
        ["kw", 4, False],
    ]
    assert sig(functools.partial(f, 1, c=3)) == [
        ["b", 1, True],
        ["args", 2, False],
        ["c", 3, True],
        ["d", 3, True],
        ["kw", 4, False],
    ]

    @functools.wraps(f)
    def anything(*args: Any, **kwargs: Any) -> Any: ...

    names = [row[0] for row in sig(anything)]
    assert names == ["a", "b", "_args" if "args" in names[:2] else "args", "c", "d", "kwargs"]
    assert all(has_default for _, kind, has_default in sig(anything) if kind in (0, 1, 3))

    @functools.wraps(f)
    def own(x: int) -> Any: ...

    assert sig(own) == [["x", 1, False]]
    assert sig(min) is None
    assert sig(Callback()) == [["x", 1, False]]


class Callback:
    def __call__(self, x: int) -> None: ...


class Service:
    """Doc of the class."""

    nested = type("Nested", (), {})
    data = 3

    def __init__(self, n: int) -> None: ...

    def plain(self, x: int, y: int = 1) -> None:
        """Doc of plain."""

    async def coro(self) -> None: ...

    def gen(self) -> Iterator[int]:
        yield 1

    async def agen(self) -> Any:
        yield 1

    @staticmethod
    def static(x: int) -> None: ...

    @classmethod
    def klass(cls, x: int) -> None: ...

    @property
    def prop(self) -> int:
        raise AssertionError("a property is not to be read")

    @functools.cached_property
    def cached_prop(self) -> int:
        raise AssertionError("a property is not to be read")

    @functools.lru_cache  # noqa: B019
    def cached(self, x: int) -> int:
        return x

    def _private(self) -> None: ...


def test_the_interface_of_a_class() -> None:
    rows = describe_interface(Service, "cls")
    assert sorted(rows) == ["agen", "cached", "coro", "gen", "klass", "plain", "static"]
    assert rows["plain"] == {
        "gen": False,
        "async": False,
        "sig": [["x", 1, False], ["y", 1, True]],
        "doc": "Doc of plain.",
    }
    assert {k: (r["gen"], r["async"]) for k, r in rows.items() if k in ("coro", "gen", "agen")} == {
        "coro": (False, True),
        "gen": (True, False),
        "agen": (True, True),
    }
    for name in ("static", "klass", "cached"):
        assert rows[name]["sig"] == [["x", 1, False]], name


def test_the_interface_fits_a_frame() -> None:
    def method(self: Any, x: int) -> None: ...

    method.__doc__ = "x" * 10_000
    big = type("Big", (), {f"m{i}": method for i in range(300)})
    rows = describe_interface(big, "cls")
    assert len(rows) == 300
    assert len(json.dumps(rows)) < 40_000


def test_the_header_and_the_versions() -> None:
    bundle = pack(Callback())
    assert json.loads(bytes(bundle.buffers[0]))["how"] == "pickle"
    assert bundle.meta["python"] == "{}.{}".format(*sys.version_info)
    json.dumps(bundle.meta)
    assert np is not None
    assert shipping.CAPTURE_WARNING == 16 * 1024**2
