"""Classes of cells that are run again: what a pod made of the class before still belongs to it."""

from __future__ import annotations

from .harness import Kernel

LOAD = "%load_ext kubetorch_jupyter\nimport dataclasses, enum, typing, kubetorch_jupyter as kt"

CLASSES = """
@dataclasses.dataclass
class Point:
    x: int
class Oops(Exception): pass
class Colour(enum.Enum):
    RED = 1
class Pair(typing.NamedTuple):
    a: int
class Child(Point):
    class Inner: pass
    def twin(self): return Child(self.x), super().__repr__()
"""

DEPLOY = """
def make(what):
    if what == 'oops':
        raise Oops('no')
    return Point(1), Colour.RED, Pair(1), Child(1), Child.Inner()
def take(*values):
    return [type(v) is t for v, t in zip(values, (Point, Child, Pair))]
compute = kt.Compute(detach=True, inactivity_ttl='10m')
make = kt.fn(make).to(compute)
take = kt.fn(take).to(compute)
"""

CHECK = """
values = make('values')
assert [type(v) for v in values] == [Point, Colour, Pair, Child, Child.Inner], [type(v) for v in values]
assert values[:3] == (Point(1), Colour.RED, Pair(1)) and values[1] is Colour.RED
try:
    make('oops')
except Oops as e:
    print('caught', e)
assert take(Point(1), Child(1), Pair(1)) == [True, True, True]
"""


def test_classes_of_a_cell_that_is_run_again(newest_kernel: Kernel) -> None:
    kernel = newest_kernel
    kernel.run(LOAD)
    try:
        kernel.run(CLASSES)
        kernel.run(DEPLOY)
        assert kernel.run(CHECK).stdout == "caught no\n"
        kernel.run("old = Point(1), Child(1), Pair(1)")
        # The classes alone, then all of it.
        kernel.run(CLASSES)
        assert kernel.run(CHECK).stdout == "caught no\n"
        again = kernel.run(DEPLOY)
        assert "unchanged" in again.displays[-1]["text/plain"]
        assert kernel.run(CHECK).stdout == "caught no\n"
        assert kernel.run("take(*old)").result == "[True, True, True]"
        # A class that says something else is another one, and the code of the pod keeps its own.
        kernel.run("before = Point\n@dataclasses.dataclass\nclass Point:\n    x: int\n    y: int = 0")
        assert kernel.run("type(make('values')[0]) is before, take(Point(1))").result == "(True, [False])"
        # Another kernel that defines the same ones and finds the services as they are.
        kernel.restart()
        kernel.run(LOAD)
        kernel.run(CLASSES)
        again = kernel.run(DEPLOY)
        assert "unchanged" in again.displays[-1]["text/plain"]
        assert kernel.run(CHECK).stdout == "caught no\n"
    finally:
        kernel.run("for name in ('make', 'take'): kt.Fn.from_name(name).service.teardown()")
