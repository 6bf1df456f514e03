"""Who outlives whom: kernels killed, restarted and stopped with pods running (issue cases 10 and 18)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.conftest import KernelFactory
from tests.kernel.harness import Kernel, leftover_files, leftover_processes, wait_until_gone
from tests.promises import promise

LOAD = "%load_ext kubetorch_jupyter\nimport kubetorch as kt, asyncio, os, time"


def test_a_detached_service_survives_its_kernel(make_newest_kernel: KernelFactory) -> None:
    """Killed with -9 in a call; a new kernel has the running call, its whole log and its result."""
    first = make_newest_kernel()
    first.run(LOAD)
    first.run(
        "def train(n):\n"
        "    for i in range(n):\n"
        "        print('epoch', i)\n"
        "        time.sleep(0.1)\n"
        "    return {'epochs': n}\n"
        "remote = kt.fn(train).to(kt.Compute(detach=True, inactivity_ttl='10m'))"
    )
    spawned = first.run("call = remote.spawn(20)\nprint(call.id)").stdout.split()[0]
    blocked = first.begin("remote(15)")
    blocked.wait_text("epoch 3")
    first.kill()

    second = make_newest_kernel(env={"KT_RUNTIME_DIR": str(first.runtime_dir)})
    second.run(LOAD)
    listed = second.run("print(kt.services())\nprint(kt.calls())")
    assert "train" in listed.stdout
    assert spawned in listed.stdout
    attached = second.run(f"call = kt.attach({spawned!r})\nprint('result', call.result())")
    lines = [line for line in attached.stdout.splitlines() if line.startswith("epoch")]
    assert lines == [f"epoch {i}" for i in range(20)]
    assert "result {'epochs': 20}" in attached.stdout
    # The blocked call ran on as well, and its result is kept for whoever asks.
    other = second.run(
        "row = next(r for r in kt.calls() if r['id'] != call.id)\n"
        "again = kt.attach(row['id'])\n"
        "print('other', again.result())\n"
        "print(again.logs().count('epoch'))"
    )
    assert "other {'epochs': 15}" in other.stdout
    assert other.stdout.split()[-1] == "15"
    second.run("handle = kt.Fn.from_name('train')\nassert handle(1) == {'epochs': 1}\nhandle.service.teardown()")
    assert not wait_until_gone(first.runtime_dir, 3)[1:], "only the second kernel itself may name the directory"


@pytest.mark.timed
def test_a_kernel_killed_without_detach(make_newest_kernel: KernelFactory) -> None:
    """Every process is gone within 2 s, and nothing is left in the temporary folder."""
    kernel = make_newest_kernel()
    kernel.run(LOAD)
    kernel.run(
        "import subprocess, multiprocessing\n"
        "class Model:\n"
        "    def __init__(self):\n"
        "        self.child = subprocess.Popen(['sleep', '1000'])\n"
        "        self.away = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "    def work(self, n):\n"
        "        print('working')\n"
        "        time.sleep(n)\n"
        "def plain(): return os.getpid()\n"
        "model = kt.cls(Model).to(kt.Compute())\n"
        "plain_remote = kt.fn(plain).to(kt.Compute())"
    )
    kernel.begin("model.work(1000)").wait_text("working")
    assert len(leftover_processes(kernel.runtime_dir)) > 4
    start = time.monotonic()
    kernel.kill()
    left = wait_until_gone(kernel.runtime_dir, 10)
    promise("everything is gone after kill -9 of the kernel", time.monotonic() - start, 2.0)
    assert not left
    assert leftover_files(kernel.runtime_dir) == []


def test_stop_does_not_reach_the_pods(kernel: Kernel) -> None:
    """Stop signals the kernel's process group; pods and their children are in none of it."""
    kernel.run(LOAD)
    kernel.run(
        "import multiprocessing, signal\n"
        "def child(path):\n"
        "    signal.signal(signal.SIGINT, lambda *a: open(path, 'w').close())\n"
        "    time.sleep(1000)\n"
        "class Model:\n"
        "    def __init__(self): self.n = 0\n"
        "    def fork(self, path):\n"
        "        self.process = multiprocessing.get_context('fork').Process(target=child, args=(path,), daemon=True)\n"
        "        self.process.start()\n"
        "        return self.process.pid\n"
        "    def alive(self):\n"
        "        self.n += 1\n"
        "        return self.process.is_alive(), self.n\n"
        "model = kt.cls(Model).to(kt.Compute())"
    )
    path = kernel.cwd / "signalled"
    kernel.run(f"pid = model.fork({str(path)!r})")
    cell = kernel.begin("print('now')\ntime.sleep(30)")
    cell.wait_text("now", 10)
    kernel.rest()
    kernel.interrupt()
    cell.wait(10)
    assert cell.error is not None
    assert cell.error["ename"] == "KeyboardInterrupt"
    assert kernel.run("print(model.alive())").stdout.strip() == "(True, 1)"
    assert not path.exists()


def test_nothing_is_left_after_a_restart_but_what_was_detached(kernel: Kernel) -> None:
    kernel.run(LOAD)
    kernel.run(
        "import multiprocessing\n"
        "def nap(): time.sleep(1000)\n"
        "class Model:\n"
        "    def fork(self):\n"
        "        self.process = multiprocessing.get_context('fork').Process(target=nap)\n"
        "        self.process.start()\n"
        "    def pid(self): return os.getpid()\n"
        "model = kt.cls(Model).to(kt.Compute())\n"
        "model.fork()\n"
        "def stay(): return os.getpid()\n"
        "kept = kt.fn(stay).to(kt.Compute(detach=True))\n"
        "print(kept(), model.pid())"
    )
    kernel.restart()
    kernel.run(LOAD)
    deadline = time.monotonic() + 6
    while kernel.run("print([s.name for s in kt.services()])").stdout.strip() != "['stay']":
        assert time.monotonic() < deadline, "the service of the kernel that ended is still there"
    kernel.run("kept = kt.Fn.from_name('stay')\nkept()\nkept.service.teardown()")
    kernel.stop()
    kernel.assert_nothing_left()


@pytest.mark.timed
def test_run_all_twice_does_not_construct_again(newest_kernel: Kernel, tmp_path: Path) -> None:
    log = tmp_path / "constructed"
    cells = [
        LOAD,
        "class Model:\n"
        "    def __init__(self, path):\n"
        "        time.sleep(3)\n"
        "        with open(path, 'a') as f: f.write('constructed\\n')\n"
        "    def predict(self, x): return x + 1",
        f"model = kt.cls(Model).to(kt.Compute(), init_args={{'path': {str(log)!r}}})",
        "print(model.predict(1))",
    ]
    for cell in newest_kernel.run_all(cells):
        cell.ok()
    start = time.monotonic()
    again = newest_kernel.run_all(cells)
    for cell in again:
        cell.ok()
    promise("the second Run All", time.monotonic() - start, 0.5)
    assert again[2].displays[-1]["text/plain"] == 'kubetorch: "model" is unchanged: the same instance goes on'
    assert again[3].stdout.strip() == "2"
    assert log.read_text() == "constructed\n"
