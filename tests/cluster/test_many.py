"""Many services, replicas and kernels at once (case 7)."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

import kubetorch_jupyter as kt
from tests.cells import Cells
from tests.cluster.conftest import OURS, User
from tests.conftest import KernelFactory
from tests.kernel.harness import Kernel
from tests.kernel.test_deploy import CONTROL, LAG, _percentile
from tests.promises import promise, record

pytestmark = pytest.mark.alone
SERVICES = 20
REPLICAS = 10


@pytest.mark.timeout(600)  # twenty interpreters start at once, on whatever cores there are
def test_twenty_services_in_one_gather(kernel: Kernel, user: User) -> None:
    kernel.run("%load_ext kubetorch_jupyter\nimport kubetorch as kt, json" + LAG)
    kernel.run("def add(x): return x + 1\ncompute = kt.Compute(launch_timeout=240)\nfns = []")
    try:
        control = subprocess.Popen([sys.executable, "-c", CONTROL, "20"], stdout=subprocess.PIPE, text=True)
        cell = kernel.run(
            "done = False\n"
            "ticks = asyncio.ensure_future(lag(lambda: done))\n"
            "await asyncio.sleep(0.05)\n"
            "began = time.monotonic()\n"
            f"names = [f'many-{{n}}' for n in range({SERVICES})]\n"
            "fns = await asyncio.gather(*(kt.fn(add, name=name).to_async(compute) for name in names))\n"
            "took, done = time.monotonic() - began, True\n"
            "results = await asyncio.gather(*(f(n, async_=True) for n, f in enumerate(fns)))\n"
            "print('\\n' + json.dumps([took, results, sorted(s.name for s in kt.services()), await ticks]))",
            timeout=280,
        )
        took, results, names, late = json.loads(cell.stdout.splitlines()[-1])
        # Other kernels' are listed too.
        assert {f"{user.name}-many-{n}" for n in range(SERVICES)} <= set(names)
        assert results == [n + 1 for n in range(SERVICES)]
        jobs = [job["metadata"]["labels"]["kubetorch.dev/service"] for job in user.api.list("Job", OURS)]
        assert len(set(jobs)) == len(jobs) >= SERVICES
    finally:
        bare: list[float] = json.loads(control.communicate(timeout=60)[0])
        kernel.run("await asyncio.gather(*(asyncio.to_thread(f.teardown) for f in fns))", timeout=120)
    ours, theirs = _percentile(late, 0.99), _percentile(bare, 0.99)
    record(
        f"loop lag while {SERVICES} services deploy ({took:.1f} s), p99: {ours * 1e3:.1f} ms, bare loop at the same "
        f"time {theirs * 1e3:.1f} ms (promised: within 20 ms of it)"
    )
    assert ours <= theirs + 3 * 0.020


def test_ten_replicas(user: User) -> None:
    cells = Cells()
    cells.run(
        "import os, time\ndef rank(pause):\n    time.sleep(pause)\n    return os.environ['JOB_COMPLETION_INDEX']\n"
    )
    start = time.monotonic()
    with kt.fn(cells["rank"], name="wide").to(kt.Compute(replicas=REPLICAS), stream_logs=False) as handle:
        record(f"{REPLICAS} replicas are ready after {time.monotonic() - start:.1f} s")
        pods = user.api.list("Pod", f"{OURS},kubetorch.dev/service={handle.service_name}")
        assert sorted(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] for pod in pods) == sorted(
            map(str, range(REPLICAS))
        )
        start = time.monotonic()
        found = list(handle.map([0.3] * 4 * REPLICAS, concurrency=4 * REPLICAS))
        assert set(found) == set(map(str, range(REPLICAS)))
        promise("40 calls of 0.3 s on 10 replicas", time.monotonic() - start, 1.5)


@pytest.fixture
def folks(user: User, other_user: User) -> dict[str, dict[str, str]]:
    """Who has a kernel, and its variables: two in one namespace, and one in another, all of the same mind."""
    return {
        "ann": {"KT_USERNAME": f"{user.name}-ann"},
        "bob": {"KT_USERNAME": f"{user.name}-bob"},
        "eve": {**other_user.environment, "KT_USERNAME": f"{user.name}-ann"},
    }


def test_three_kernels_of_two_users_at_once(
    make_kernel: KernelFactory, folks: dict[str, dict[str, str]], user: User, other_user: User
) -> None:
    kernels = {name: make_kernel(env=env) for name, env in folks.items()}
    for name, kernel in kernels.items():
        kernel.run("%load_ext kubetorch_jupyter\nimport kubetorch as kt\nfrom functools import partial")
        kernel.run(f"def train(): return 'trained by {name}'")
    try:
        deploys = [kernel.begin("train = kt.fn(train).to(kt.Compute())") for kernel in kernels.values()]
        for cell in deploys:
            cell.wait(120).ok()
        for name, kernel in kernels.items():
            assert kernel.run("print(train(stream_logs=False))").stdout.splitlines()[-1] == f"trained by {name}"
        listed = {
            name: kernel.run("print(sorted(s.name for s in kt.services()))").stdout for name, kernel in kernels.items()
        }
        ann, bob = f"{user.name}-ann-train", f"{user.name}-bob-train"
        assert ann in listed["ann"]
        assert bob in listed["ann"]
        assert ann in listed["eve"]
        assert bob not in listed["eve"]
        for whose in (user, other_user):
            jobs = whose.api.list("Job", f"{OURS},kubetorch.dev/service={ann}")
            assert len(jobs) == 1
        # One ends hers: the others' go on.
        kernels["ann"].run("train.teardown()")
        for name in ("bob", "eve"):
            assert kernels[name].run("print(train(stream_logs=False))").stdout.splitlines()[-1] == f"trained by {name}"
    finally:
        for kernel in kernels.values():
            kernel.run("getattr(train, 'teardown', lambda: None)()")
