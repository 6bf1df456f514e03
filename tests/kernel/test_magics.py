"""``%%kt`` and ``%kt`` in real kernels."""

from __future__ import annotations

import re
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import KernelFactory
from tests.promises import promise

from .harness import Cell, Kernel

LOAD = "%load_ext kubetorch_jupyter"


def failed(kernel: Kernel, code: str) -> str:
    """The one line that a mistake is told in."""
    cell = kernel.begin(code, stop_on_error=False).wait()
    assert cell.reply is not None
    assert cell.reply["status"] == "error", cell
    assert cell.reply["ename"] == "UsageError", cell
    lines = cell.stderr.strip().splitlines()
    assert len(lines) == 1, cell
    assert lines[0].startswith("UsageError: ")
    return lines[0]


def traceback_of(kernel: Kernel, code: str) -> str:
    cell = kernel.begin(code, stop_on_error=False).wait()
    assert cell.error is not None, cell
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(cell.error["traceback"]))


def test_cells_run_on_a_pod(kernel: Kernel) -> None:
    kernel.run(LOAD)
    first = kernel.run("%%kt\nimport os\nprint('hello')\npid = os.getpid()\n6 * 7")
    assert first.stdout.endswith("hello\n")
    assert first.displays[-1]["text/plain"] == "42"
    kernel.run("import numpy as np\na = np.arange(4)")
    sent = kernel.run("%%kt -i a -o b,pid\nb = a * 2\nb;")
    assert sent.displays == []
    assert kernel.run("b.tolist(), pid != __import__('os').getpid()").result == "([0, 2, 4, 6], True)"
    # A task of one cell is awaited in the next, where its output is seen then.
    kernel.run(
        "%%kt\nimport asyncio\nawaited = asyncio.Event()\nasync def tick():\n    for i in range(3):\n"
        "        await (asyncio.sleep(0.05) if i < 2 else awaited.wait())\n"
        "        print('tick', i)\n    return 'ticked'\ntask = asyncio.create_task(tick())"
    )
    awaited = kernel.run("%%kt\nawaited.set()\nawait task")
    assert awaited.stdout.endswith("tick 2\n")
    assert awaited.displays[-1]["text/plain"] == "'ticked'"
    # asyncio.run as in the notebook; commands and magics.
    ran = kernel.run("%%kt\n%%time\nasyncio.run(asyncio.sleep(0.01))\n!echo {1 + 1} $pid\n%pwd")
    assert re.search(r"2 \d+\nCPU times: .*\nWall time: .*\n$", ran.stdout), ran
    assert ran.displays[-1]["text/plain"] == repr(str(kernel.cwd))
    shown = kernel.run("%%kt\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.title('t');")
    assert "image/png" in shown.displays[-1]


def test_errors_have_the_cells_lines_and_label(kernel: Kernel) -> None:
    kernel.run(LOAD)
    kernel.run("%%kt\ndef divide(a):\n    return a / 0  # the line\nclass Mine(Exception): pass")
    number = int(kernel.run("__import__('IPython').get_ipython().execution_count").result or 0)
    text = traceback_of(kernel, "%%kt\n%%time\n\n\n!true\ndivide(1)  # outer")
    label = re.search(r"Cell In\[(\d+)\], line 6\n", text)
    assert label is not None, text
    assert int(label[1]) in (number + 1, number)  # whether the count had been raised when it was read
    assert "----> 6 divide(1)  # outer" in text
    assert re.search(r"Cell In\[\d+\], line 3, in divide\(a?\)|Cell In\[\d+\], line 3, in divide", text)
    assert "----> 3     return a / 0  # the line" in text
    assert "run_cell_magic" not in text
    assert "kubetorch_jupyter" not in text
    text = traceback_of(kernel, "%%kt\ntry:\n    1 / 0\nexcept Exception as e:\n    raise Mine('no') from e")
    assert "The above exception was the direct cause" in text
    assert text.endswith("Mine: no")
    text = traceback_of(kernel, "%%kt\nx = (1,\ny = 2")
    assert "SyntaxError" in text
    assert "Cell In" in text
    assert "magics.py" not in text
    assert "'return' outside function" in traceback_of(kernel, "%%kt\nreturn 1")
    kernel.run("local = 1\nimport json")
    assert "add -i local to send it" in traceback_of(kernel, "%%kt\nlocal + 1")
    assert "import it in the %%kt cell" in traceback_of(kernel, "%%kt\njson.dumps(1)")
    assert "add -i" not in traceback_of(kernel, "%%kt\nnowhere + 1")
    assert "SystemExit" in traceback_of(kernel, "%%kt\nexit()")
    assert kernel.run("%%kt\nprint('goes on')").stdout == "goes on\n"


def test_mistakes_are_one_line_and_cost_nothing(make_newest_kernel: KernelFactory) -> None:
    kernel = make_newest_kernel()
    kernel.run(LOAD)
    kernel.run("%%kt\nkept = 1")
    kernel.run("import threading; lock = threading.Lock()")
    assert "-i undefined: there is no such variable" in failed(kernel, "%%kt -i undefined\n1")
    assert "-i lock: can't send lock, a _thread.lock" in failed(kernel, "%%kt -i lock\n1")
    assert "'2x' is none" in failed(kernel, "%%kt -i 2x\n1")
    assert "unrecognized arguments: --what" in failed(kernel, "%%kt --what\n1")
    assert "memory='lots' is not a size" in failed(kernel, "%%kt -n other --memory lots\n1")
    assert "No closing quotation" in failed(kernel, "%%kt -n 'x\n1")
    assert "did you mean deploy?" in failed(kernel, "%%kt deplyo\n1")
    assert "is for lines: %kt services" in failed(kernel, "%%kt services\n1")
    assert "--bg does not" in failed(kernel, "%%kt --bg job -o x\n1")
    assert "not '3'" in failed(kernel, "%%kt --bg 3\n1")
    assert "--bg doesn't wait" in failed(kernel, "%%kt --local --bg\n1")
    for seconds in ("0", "-1", "nan", "inf"):
        assert f"seconds above 0, not {seconds}" in failed(kernel, f"%%kt --timeout {seconds}\n1")
    # After it has run: the variables that there are come, and the namespace is what it was.
    assert "-o nope: there is no such variable on the pod; there are: kept, made" in failed(
        kernel, "%%kt -o made,nope\nmade = 5"
    )
    assert kernel.run("made").result == "5"
    assert "-o guard: the result: can't send value['guard']" in failed(
        kernel, "%%kt -o guard\nimport threading; guard = threading.Lock()"
    )
    assert "one payload can have 4 GiB" in failed(
        kernel, "%%kt -o big\nimport numpy; big = numpy.empty(5 * 2**30, 'u1')"
    )
    assert kernel.run("%%kt\nkept, big.nbytes").displays[-1]["text/plain"] == "(1, 5368709120)"
    # %%kt deploy
    assert "defines no function and no class" in failed(kernel, "%%kt deploy\nx = 1")
    assert "--only g: the cell defines f" in failed(kernel, "%%kt deploy --only g\ndef f(): pass")
    assert "--name is for one thing" in failed(kernel, "%%kt deploy --name n\ndef f(): pass\ndef g(): pass")
    assert "ZeroDivisionError" in failed(kernel, '%%kt deploy --init "1/0"\nclass C: pass')
    # %kt
    assert "did you mean services?" in failed(kernel, "%kt servces")
    assert "there is no service 'nothing'" in failed(kernel, "%kt down nothing")
    assert "there is no service 'nothing'" in failed(kernel, "%kt restart nothing")
    assert "say which services, or --all" in failed(kernel, "%kt down")
    assert "neither a call's id" in failed(kernel, "%kt cancel nothing")
    assert "there is no variable 'nothing'" in failed(kernel, "%kt preview nothing")
    assert 'there is no setting "nothing"' in failed(kernel, "%kt config nothing")
    assert "use true or false" in failed(kernel, "%kt config stream_logs perhaps")
    assert "invalid choice" in failed(kernel, "%kt asyncio sideways")
    assert "is for cells: %%kt run" in failed(kernel, "%kt run x")
    assert kernel.run("%%kt\nkept").displays[-1]["text/plain"] == "1"


@pytest.mark.timed
def test_stop_in_a_cell_on_a_pod(kernel: Kernel) -> None:
    kernel.run(LOAD)
    kernel.run("%%kt\nimport time, asyncio, threading")
    for body in ("while True: pass", "time.sleep(60)", "await asyncio.sleep(60)", "!sleep 60"):
        cell = kernel.begin(f"%%kt\nprint('begun')\n{body}", stop_on_error=False).wait_text("begun")
        began = time.monotonic()
        kernel.interrupt()
        cell.wait(10)
        assert cell.error is not None
        assert cell.error["ename"] == "KeyboardInterrupt"
        promise(f"Stop of %%kt in {body!r}", time.monotonic() - began, 0.5)
        assert kernel.run("%%kt\nprint('next')").stdout == "next\n"
    # In C that can't be interrupted: control comes back, and the cell after it says what it waits for.
    cell = kernel.begin("%%kt\nprint('begun')\nthreading.Event().wait(3)", stop_on_error=False).wait_text("begun")
    began = time.monotonic()
    kernel.interrupt()
    cell.wait(10)
    promise("Stop of %%kt in C", time.monotonic() - began, 0.5)
    waited = kernel.run("%%kt\nprint('next')")
    assert waited.stdout == "next\n"
    assert "waiting for another cell of this namespace" in waited.stderr


def test_options_of_cells(make_newest_kernel: KernelFactory) -> None:
    kernel = make_newest_kernel()
    kernel.run(LOAD)
    began = kernel.run("%%kt --bg job\nimport time; time.sleep(0.5); print('from the background')")
    assert began.duration < 5
    assert kernel.run("print(job.result(), job.status)").stdout.endswith("None done\n")
    began.wait_text("from the background")
    text = traceback_of(kernel, "%%kt --timeout 0.3\nimport time; time.sleep(30)")
    assert "CallTimeoutError" in text
    kernel.run("%%kt\nmine = 1")
    kernel.run("%%kt -n other\nmine = 2")
    assert kernel.run("%%kt\nmine").displays[-1]["text/plain"] == "1"
    assert kernel.run("%%kt -n other\nmine").displays[-1]["text/plain"] == "2"
    assert "NameError" in traceback_of(kernel, "%%kt --fresh -n other\nmine")
    kernel.run("%%kt -n other --bg stuck\nwhile True: pass")
    assert kernel.run("%%kt --fresh -n other\nprint('free')").stdout.endswith("free\n")
    assert "WorkerDiedError" in traceback_of(kernel, "stuck.result()")
    both = kernel.run("%%kt --local\nimport os\nprint(os.getpid())")
    pids = re.findall(r"^(\d+)$", both.stdout, re.M)
    assert len(set(pids)) == 2
    assert "s on the pod" in both.stdout
    # %config is for the first time; an option wins over it.
    kernel.run('%config KT.cpus = "2"')
    kernel.run("%%kt -n third\n1")
    assert "cpus=2" in kernel.run("%kt services").displays[-1]["text/plain"]
    kernel.run("%%kt -n fourth --cpus 3\n1")
    assert "cpus=3" in kernel.run("%kt services").displays[-1]["text/plain"]
    # A namespace ends like any service; its name begins anew.
    kernel.run("%kt down fourth")
    assert "NameError" in traceback_of(kernel, "%%kt -n fourth\nmine")
    # Nobody's service is taken for a namespace.
    kernel.run("def train(): return 1\ntrained = kt.fn(train).to(kt.Compute())")
    text = traceback_of(kernel, "%%kt -n train\n1")
    assert "is the service of train, and no namespace" in text
    assert kernel.run("trained()").result == "1"


def test_deploy(make_newest_kernel: KernelFactory) -> None:
    kernel = make_newest_kernel()
    kernel.run(LOAD)
    cell = kernel.run(
        "%%kt deploy --cpus 1\nimport os\nRATE = 2\ndef helper(x): return x * RATE\ndef _private(x): return x\n"
        "def train(n):\n    print('training')\n    return helper(n), os.getpid()\n"
        "class Model:\n    def __init__(self, size=3): self.size = size\n    def predict(self, x): return x * self.size"
    )
    for name in ("helper", "train", "model"):
        assert f'"{name}" is ready on local pods in ' in str(cell.stdout) + str(cell.displays), cell
    assert kernel.run("type(train).__name__, type(Model).__name__, type(_private).__name__").result == (
        "('Fn', 'Cls', 'function')"
    )
    called = kernel.run("value, pid = train(4)\nvalue, pid != os.getpid(), Model.predict(2)")
    assert called.stdout == "training\n"
    assert called.result == "(8, True, 6)"
    # Edited and run again while a call runs: that one ends with its own code, the next has the new.
    kernel.run("%%kt deploy\ndef slow(x):\n    import time\n    print('begun'); time.sleep(0.8)\n    return 'old'")
    running = kernel.run("call = slow.spawn(1)")
    running.wait_text("begun")
    kernel.run("%%kt deploy\ndef slow(x):\n    return 'new'")
    assert kernel.run("slow(1), call.result()").result == "('new', 'old')"
    # One of two fails: the other is deployed, and the one that failed doesn't run here by mistake.
    text = traceback_of(
        kernel, "%%kt deploy\nimport threading\nguard = threading.Lock()\ndef bad(): return guard\ndef good(): return 1"
    )
    assert "bad.<globals>.guard" in text
    assert "serialization.py" not in text
    assert kernel.run("good()").result == "1"
    assert "has not been deployed" in traceback_of(kernel, "bad()")
    kernel.run(
        "%%kt deploy --init \"{'size': 10}\" --name big-model\n"
        "class Model:\n    def __init__(self, size): self.size = size\n    def get(self): return self.size"
    )
    assert kernel.run("Model.get(), Model.service.name").result == "(10, 'big-model')"
    kernel.run("%kt down --all")
    assert kernel.run("%kt services").displays[-1]["text/plain"] == "no services"
    assert "was torn down" in traceback_of(kernel, "train(1)")


def test_commands(make_newest_kernel: KernelFactory) -> None:
    kernel = make_newest_kernel()
    kernel.run(LOAD)
    kernel.run(
        "%%kt deploy\ndef train(n):\n    import time\n    for i in range(n):\n"
        "        print('epoch', i)\n        time.sleep(0.05)\n    return n"
    )
    kernel.run("train(2)")
    assert re.search(r"^train +local +running", kernel.run("%kt services").displays[-1]["text/plain"], re.M)
    calls = kernel.run("%kt calls train").displays[-1]["text/plain"]
    assert re.search(r"^train/\w{26} +train +done", calls, re.M)
    kernel.run("call = train.spawn(1000)").wait_text("epoch 1")
    id = kernel.run("print(call.id)").stdout.strip()
    attached = kernel.run(f"%kt attach {id} again")
    attached.wait_text("epoch 1")
    assert kernel.run("again.id == call.id").result == "True"
    assert "cancelling" in kernel.run(f"%kt cancel {id}").stdout
    assert "CallCancelledError" in traceback_of(kernel, "call.result()")
    assert "had ended" in kernel.run("%kt cancel call").stdout
    kernel.run("call = train.spawn(1000)").wait_text("epoch 1")
    assert "cancelling" in kernel.run("%kt cancel --all").stdout
    assert "fresh process" in kernel.run("%kt restart train").stdout
    assert "would travel" in kernel.run("%kt preview train").displays[-1]["text/plain"]
    kernel.run("%%kt\nx = 5")
    kernel.run("%kt fetch x")
    assert kernel.run("x").result == "5"
    kernel.run("kt.config.license_key = 'sesame'")
    report = kernel.run("%kt doctor").displays[-1]
    assert "sesame" not in report["text/plain"]
    assert "✗" not in report["text/plain"], report["text/plain"]
    assert "a function was deployed in" in report["text/html"]
    assert re.search(r"stream_logs +True", kernel.run("%kt config").displays[-1]["text/plain"])
    assert kernel.run("%kt config stream_logs false").stdout == "stream_logs = False\n"
    assert "usage: %kt down" in kernel.run("%kt down --help").stdout
    assert "%%kt --fresh" in kernel.run("%kt help").stdout
    assert "Run cells on pods" in str(kernel.run("%kt?").reply)


def test_what_lives_is_said_after_a_restart(make_newest_kernel: KernelFactory, tmp_path: Path) -> None:
    kernel = make_newest_kernel(env={"JPY_SESSION_NAME": str(tmp_path / "My study.ipynb")})
    kernel.run(LOAD)
    kernel.run("%%kt --detach\nx = 5")
    kernel.run("%%kt -n gone\nx = 5")
    kernel.run(
        "def work():\n    import time\n    print('working'); time.sleep(60)\n"
        "w = kt.fn(work).to(kt.Compute(detach=True))"
    )
    kernel.run("call = w.spawn()").wait_text("working")
    id = kernel.run("print(call.id)").stdout.strip()
    kernel.restart()
    loaded = kernel.run(LOAD)
    assert loaded.stdout.count("\n") == 1
    assert re.search(r"of this notebook still live cells-my-study-\w{6}, work ", loaded.stdout), loaded
    assert re.search(r"the next %%kt cell goes on in cells-my-study-\w{6}; kt.fn\(name", loaded.stdout), loaded
    assert f"running calls: {id}" in loaded.stdout
    again = kernel.run("%%kt\nx")
    assert again.displays[-1]["text/plain"] == "5"
    assert "is live, and its variables are there" in again.stdout
    kernel.restart()
    kernel.run(LOAD)
    assert "NameError" in traceback_of(kernel, "%%kt --fresh\nx")
    kernel.begin(f"%kt attach {id}").wait_text("working")
    kernel.run("%kt cancel --all")
    kernel.run("%kt down --all")


def test_run_all_of_asyncio_run_cells_with_a_message_between(kernel: Kernel) -> None:
    """Issue case 2: nothing is lost of what comes while a cell's asyncio.run is under way."""
    kernel.run(LOAD)
    kernel.run(
        "import asyncio, threading\nseen = []\nfrom comm import create_comm, get_comm_manager\n"
        "def opened(comm, message): comm.on_msg(lambda m: seen.append(m['content']['data']))\n"
        "get_comm_manager().register_target('kt-test', opened)\n"
        "async def main(i):\n    print('begin', i)\n    await asyncio.sleep(0.15)\n    return i * i"
    )
    kernel.open_comm("kt-test", "comm-1")
    cells = [kernel.begin(f"print(asyncio.run(main({i})))") for i in range(10)]
    for i in range(20):
        kernel.send_comm("comm-1", {"n": i})
        if i % 2 == 0:
            cells[i // 2].wait_text("begin")
    for i, cell in enumerate(cells):
        assert cell.wait(60).ok().stdout == f"begin {i}\n{i * i}\n"
    assert kernel.run("len(seen), [m['n'] for m in seen] == list(range(20))").result == "(20, True)"


def test_four_cells_at_once(make_newest_kernel: KernelFactory) -> None:
    """Issue case 4: tasks of four cells, Run All, a restart in the middle, one cell twice quickly."""
    kernel = make_newest_kernel()
    setup = [
        LOAD,
        "import asyncio\nasync def count(tag):\n    for i in range(40):\n"
        "        print(tag, i)\n        await asyncio.sleep(0.01)\n    return tag",
        "remote = kt.fn(count).to(kt.Compute(), stream_logs=True)",
    ]
    starts = [f"t{k} = asyncio.create_task(remote('{k}', async_=True))" for k in range(4)]
    end = "await asyncio.gather(t0, t1, t2, t3)"

    def check(cells: list[Cell]) -> None:
        for k, cell in enumerate(cells):
            cell.wait_text(f"{k} 39")
            plain = re.sub(r"\x1b\[[0-9;]*m", "", cell.stdout)
            lines = [line for line in plain.splitlines() if not line.startswith("<Task")]
            assert lines == [f"{k} {i}" for i in range(40)], cell

    for cell in kernel.run_all(setup):
        cell.ok()
    cells = kernel.run_all([*starts, end])
    assert cells[-1].ok().result == "['0', '1', '2', '3']"
    check(cells[:4])
    # A restart in the middle, and all of it again.
    for code in starts:
        kernel.run(code)
    kernel.restart()
    cells = kernel.run_all([*setup, *starts, end])
    assert cells[-1].ok().result == "['0', '1', '2', '3']"
    check(cells[3:7])
    # One cell twice, quickly.
    twice = [kernel.begin("%%kt\nimport time\nprint('once'); time.sleep(0.1)") for _ in range(2)]
    assert [c.wait().ok().stdout.count("once") for c in twice] == [1, 1]


@pytest.mark.timed
def test_threads_and_processes_of_loading(make_newest_kernel: KernelFactory) -> None:
    kernel = make_newest_kernel()
    kernel.run("import threading, time\nbefore = {t.name for t in threading.enumerate()}")
    loaded = kernel.run("began = time.perf_counter()\n%load_ext kubetorch_jupyter\nprint(time.perf_counter() - began)")
    promise("%load_ext", float(loaded.stdout), 0.15)
    assert kernel.run("{t.name for t in threading.enumerate()} - before").result == "set()"
    assert not psutil.Process(kernel.pid).children(recursive=True)


def test_completion(make_newest_kernel: KernelFactory) -> None:
    kernel = make_newest_kernel()
    kernel.run(LOAD)
    kernel.run("def train(): pass\ndata_set = 1\ntrained = kt.fn(train).to(kt.Compute())")
    assert {"services", "logs", "doctor"} <= set(kernel.complete("%kt "))
    assert kernel.complete("%kt serv") == ["services"]
    assert "train" in kernel.complete("%kt down tr")
    assert "--all" in kernel.complete("%kt down --")
    assert "data_set" in kernel.complete("%%kt -i data")
    assert "--timeout" in kernel.complete("%%kt --ti")
    assert kernel.complete("%%kt -i x,data_") == ["x,data_set"]
    assert "stream_logs" in kernel.complete("%kt config str")


def test_unload(kernel: Kernel) -> None:
    kernel.run(LOAD)
    kernel.run(LOAD)
    kernel.run("%reload_ext kubetorch_jupyter")
    kernel.run("%%kt\nx = 1")
    kernel.run("%unload_ext kubetorch_jupyter")
    for code in ("%kt services", "%%kt\n1"):
        cell = kernel.begin(code, stop_on_error=False).wait()
        assert "not found" in cell.stderr
    assert kernel.complete("%kt serv") == []
    assert kernel.run("'kt' in globals()").result == "False"
    kernel.run(LOAD)
    assert kernel.run("%%kt\nx").displays[-1]["text/plain"] == "1"
