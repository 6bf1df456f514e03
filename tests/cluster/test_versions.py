"""Images with other Pythons than this one, and with none (issue case 11): code goes there by its source."""

from __future__ import annotations

import asyncio
import re
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import kubetorch_jupyter as kt
from kubetorch_jupyter.progress import DeployProgress
from tests.cluster.api import Api
from tests.cluster.conftest import OURS, User
from tests.cluster.images import MINOR, Images
from tests.conftest import KernelFactory
from tests.podlet import Cells
from tests.promises import promise

FAR = {"3.10": "python310", "3.13": "python313"}


def _compute(image: str) -> kt.Compute:
    return kt.Compute(image=image, cpus="0.1")


@dataclass(frozen=True)
class Far:
    """A service in a pod of another Python; every test gives it other code, which needs no new pod."""

    version: str
    name: str
    compute: kt.Compute

    def fn(self, function: Any) -> Any:
        return kt.fn(function, name=self.name).to(self.compute, stream_logs=False)

    def cls(self, cls: Any, *init_args: Any) -> Any:
        return kt.cls(cls, name=self.name).to(self.compute, init_args=list(init_args), stream_logs=False)


@pytest.fixture(scope="module")
def services(images: Images) -> Iterator[dict[str, Far]]:
    """One for each version; they come up together."""
    made = {
        version: Far(version, f"far-{version.replace('.', '')}", _compute(images[image]))
        for version, image in FAR.items()
    }

    async def both() -> list[Any]:
        remote = [(kt.fn(len, name=far.name), far.compute) for far in made.values()]
        return list(await asyncio.gather(*(fn.to_async(compute, stream_logs=False) for fn, compute in remote)))

    handles = asyncio.run(both())
    yield made
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda handle: handle.teardown(), handles))


@pytest.fixture
def cells() -> Iterator[Cells]:
    made = Cells()
    yield made
    made.clear()


@pytest.fixture(params=FAR)
def far(request: pytest.FixtureRequest, services: dict[str, Far]) -> Far:
    return services[request.param]


def test_a_function_with_all_that_it_needs(
    far: Far, cells: Cells, user: User, capfd: pytest.CaptureFixture[str]
) -> None:
    cells.run("import json, sys\nfrom collections import Counter\nRATE, TABLE = 0.5, {'a': [1, 2], 'when': None}")
    cells.run("import functools, datetime\nTABLE['when'] = datetime.date(2026, 11, 27)")
    cells.run(
        textwrap.dedent("""
        def twice(f):
            @functools.wraps(f)
            def wrapper(*args):
                return f(*args), f(*args)
            return wrapper

        @twice
        def helper(x):
            return x * RATE + TABLE["a"][1]

        class Point:
            def __init__(self, x): self.x = x
            def moved(self, by): return Point(self.x + by)
            def __eq__(self, other): return self.x == other.x

        class Wrong(Exception):
            def __init__(self, code): super().__init__(code); self.code = code

        def work(point, *, fail=False):
            print("working on", json.dumps(point.x))
            if fail:
                raise Wrong(point.x)
            version = "%d.%d" % sys.version_info[:2]
            return point.moved(1), helper(point.x), Counter("aab"), TABLE["when"], version
        """)
    )
    handle = kt.fn(cells["work"], name=far.name).to(far.compute)
    shown = capfd.readouterr()
    assert f"the pod has Python {far.version}, not {MINOR}: work goes by its source" in shown.out + shown.err
    moved, helped, counted, when, version = handle(cells["Point"](4))
    assert (type(moved), moved.x) == (cells["Point"], 5)
    assert (helped, counted["a"], when, version) == ((4.0, 4.0), 2, cells["TABLE"]["when"], far.version)
    assert "working on 4\n" in capfd.readouterr().out
    with pytest.raises(cells["Wrong"]) as caught:
        handle(cells["Point"](7), fail=True)
    assert (caught.value.code, type(caught.value)) == (7, cells["Wrong"])

    # A helper of another cell, changed: the pod stays, the code is new.
    pods = [pod["metadata"]["uid"] for pod in user.api.list("Pod", OURS)]
    cells.run("def helper(x):\n    return 'changed'")
    assert far.fn(cells["work"])(cells["Point"](4))[1] == "changed"
    assert [pod["metadata"]["uid"] for pod in user.api.list("Pod", OURS)] == pods


def test_a_class_keeps_its_state(far: Far, cells: Cells) -> None:
    cells.run(
        textwrap.dedent("""
        import asyncio
        STEP = 2

        class Base:
            count = 0
            def add(self, n=STEP):
                self.count += n
                return self.count

        class Counter(Base):
            def __init__(self, start): self.count = start
            async def later(self):
                await asyncio.sleep(0)
                return self.count
            def items(self):
                yield from range(self.count)
        """)
    )
    counter = far.cls(cells["Counter"], 10)
    assert [counter.add(), counter.add(5), counter.later()] == [12, 17, 17]
    assert sum(1 for _ in counter.items()) == 17
    assert far.cls(cells["Counter"], 10).add() == 19, "unchanged: the same instance"


def test_arrays(services: dict[str, Far], cells: Cells) -> None:
    """Where both sides have numpy; versions of it needn't be the same."""
    cells.run("import numpy as np\nscale = np.float32(3)\ndef times(a, kind):\n    return (a * scale).astype(kind)")
    times = services["3.13"].fn(cells["times"])
    small, large = np.arange(6).reshape(2, 3), np.ones((1 << 20, 2))
    result = times(small, "float32")
    assert (result.dtype, result.tolist()) == (np.float32, (small * 3).tolist())
    result = times(large, np.dtype("float64"))
    assert (result.shape, result.sum()) == (large.shape, 3 * large.size)
    result[0] = 5


def test_what_has_no_source_is_refused_at_deploy(far: Far, cells: Cells) -> None:
    cells.run("ops = {'a': lambda x: x}\ndef uses(): return ops\n")
    exec("def made(): return 1", cells.namespace)
    cells.run("def fine(x=None):\n    return 'still here'\n")
    fine = far.fn(cells["fine"])
    both = f"{MINOR} here and {far.version} in the pod"
    with pytest.raises(
        kt.VersionMismatchError, match=r"the lambda of line 1 .*\(at uses\.<globals>\.ops\['a'\]\)"
    ) as e:
        far.fn(cells["uses"])
    assert both in str(e.value)
    assert (e.value.what, e.value.client, e.value.pod) == ("python", MINOR, far.version)
    with pytest.raises(kt.VersionMismatchError, match="the function made has no source") as e:
        far.fn(cells["made"])
    assert both in str(e.value)
    with pytest.raises(kt.SerializationError, match=r"args\[0\].*another Python"):
        fine(lambda: 0)
    assert fine() == kt.Fn.from_name(far.name)() == "still here", "what was there goes on"


def test_in_a_notebook(services: dict[str, Far], make_newest_kernel: KernelFactory) -> None:
    """Cells as people write them, and calls of both pods side by side."""
    kernel = make_newest_kernel()
    kernel.run("import kubetorch_jupyter as kt, asyncio\nfrom dataclasses import dataclass\nRATE = 2")
    kernel.run("@dataclass\nclass Conf:\n    n: int = 1")
    kernel.run("def helper(conf): return Conf(conf.n * RATE)")
    kernel.run(
        "def train(conf: Conf, fail=False):\n    import sys\n    print('training', *sys.version_info[:2])\n"
        "    if fail:\n        raise ValueError(conf)\n    return helper(conf)"
    )
    rows = {far.name: str(far.compute.image.image_id) for far in services.values() if far.compute.image}
    cell = kernel.run(
        "async def deploy(name, image):\n"
        "    return await kt.fn(train, name=name).to_async(kt.Compute(image=image, cpus='0.1'))\n"
        f"handles = await asyncio.gather(*(deploy(*row) for row in {rows!r}.items()))\n"
        "print(await asyncio.gather(*(h(Conf(3), async_=True) for h in handles)))"
    )
    assert cell.stdout.endswith("[Conf(n=6), Conf(n=6)]\n")
    for version in services:
        assert f"training {version.replace('.', ' ')}\n" in cell.stdout
    failed = kernel.begin("handles[0](Conf(5), fail=True)").wait(30).error
    assert failed is not None
    assert (failed["ename"], failed["evalue"]) == ("ValueError", "Conf(n=5)")
    assert "raise ValueError(conf)" in re.sub(r"\x1b\[[\d;]*m", "", "".join(failed["traceback"]))


class Watcher:
    """When Kubernetes says of a service's pod that a container of it has ended."""

    def __init__(self, user: User, service: str) -> None:
        self.seen: float | None = None
        self._api = Api(user.kubeconfig, user.namespace)
        self._selector = f"kubetorch.dev/service={service}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(0.05) and self.seen is None:
            for pod in self._api.list("Pod", self._selector):
                for container in pod["status"].get("containerStatuses", ()):
                    if container["state"].get("terminated") or container.get("lastState"):
                        self.seen = time.monotonic()

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()


def test_first_deploys_that_fail_leave_nothing(
    cells: Cells, images: Images, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No Python in the image or at its path, told at once; code that can't go, known only when the pod answers."""
    shown: list[float] = []
    show = DeployProgress.__call__

    def look(self: DeployProgress, phase: Any, detail: str = "") -> None:
        if "there is no Python in this image" in detail:
            shown.append(time.monotonic())
        show(self, phase, detail)

    monkeypatch.setattr(DeployProgress, "__call__", look)
    cells.run("ops = [lambda: 1]\ndef uses(): return ops\n")
    before = user.ours()

    async def refused() -> str:
        with pytest.raises(kt.VersionMismatchError, match="the lambda of line 1") as caught:
            await kt.fn(cells["uses"], name="refused").to_async(_compute(images["python313"]), stream_logs=False)
        return str(caught.value)

    async def bare() -> tuple[str, float]:
        with pytest.raises(kt.PodContainerError, match="there is no Python in this image") as caught:
            await kt.fn(len, name="no-python").to_async(_compute(images["bare"]), stream_logs=False)
        return str(caught.value), time.monotonic()

    async def elsewhere() -> None:
        image = kt.Image(image_id=images["examples"], python_path="/opt/none/python3")
        with pytest.raises(kt.PodContainerError, match=r"has no /opt/none/python3 .*where its Python is"):
            await kt.fn(len, name="no-path").to_async(kt.Compute(image=image, cpus="0.1"), stream_logs=False)

    async def all_of_them() -> Any:
        return await asyncio.gather(refused(), bare(), elsewhere())

    with Watcher(user, f"{user.name}-no-python") as watcher:
        text, (said, ended), _ = asyncio.run(all_of_them())
    assert f"{MINOR} here and 3.13 in the pod" in text
    assert images["bare"] in said
    assert "python_path=" in said
    assert watcher.seen is not None
    # It may be shown between two looks of the watcher.
    waited = max(shown[0] - watcher.seen, 0.0)
    promise("an image without Python, from Kubernetes' word until it is shown", waited, 2.0)
    promise("an image without Python, from Kubernetes' word until all of it is removed", ended - watcher.seen, 4.0)
    user.api.wait("nothing new", lambda: set(user.ours()) <= set(before), 10)
