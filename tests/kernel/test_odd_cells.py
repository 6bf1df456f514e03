"""``%%kt`` with what people, editors and front ends put into cells, and with pods that end in the middle."""

from __future__ import annotations

import re
import signal

import psutil

from tests.conftest import KernelFactory

from .harness import Kernel
from .test_magics import failed, traceback_of

LOAD = "%load_ext kubetorch_jupyter"

DATA = """%%kt deploy
import abc, dataclasses, enum, typing
@dataclasses.dataclass
class Point:
    x: int
class Colour(enum.Enum):
    RED = 1
class Oops(Exception): pass
class Pair(typing.NamedTuple):
    a: int
class Options(typing.TypedDict):
    a: int
class Does(typing.Protocol):
    def do(self) -> int: ...
class Base(abc.ABC):
    @abc.abstractmethod
    def do(self): ...
class Marker: pass
class Meta(type): pass
class Model(Base):
    def do(self): return 'done'
class Caller:
    def __call__(self): return 'called'
def f(n):
    if n == 0:
        raise Oops('zero')
    return Point(n), Colour.RED, Pair(n)
"""


def shown(kernel: Kernel, body: str) -> str:
    return str(kernel.run(f"%%kt\n{body}").displays[-1]["text/plain"])


def test_odd_bodies(make_newest_kernel: KernelFactory) -> None:
    kernel = make_newest_kernel()
    kernel.run(LOAD)
    kernel.run("%%kt\n1")
    # Windows' line ends.
    timed = kernel.run("%%kt\r\n%%time\r\nx = 1\r\nif x:\r\n\tprint('tab')\r\nx")
    assert re.match(r"tab\nCPU times: .*\nWall time: ", timed.stdout), timed
    text = traceback_of(kernel, "%%kt\r\nx = 2\r\n1 / 0  # here\r\n")
    assert re.search(r"Cell In\[\d+\], line 3\n", text), text
    assert "----> 3 1 / 0  # here" in text
    kernel.run("%%kt -o größe\ngröße = '数'")
    assert kernel.run("größe").result == "'数'"
    assert shown(kernel, "\n".join(f"v{i} = {i}" for i in range(2000)) + "\nv1999") == "1999"
    assert shown(kernel, "print = asyncio = display = get_ipython = None\n42") == "42"
    assert shown(kernel, "del print, asyncio, display, get_ipython\nx = !echo a b\nx") == "['a b']"
    assert shown(kernel, "async def numbers():\n    yield 1\n    yield 2\n[i async for i in numbers()]") == "[1, 2]"
    assert kernel.run("%%kt\nasync for i in numbers(): print(i)").stdout == "1\n2\n"
    assert shown(kernel, "s = '''\n%%kt\n!ls\n'''\ns") == repr("\n%%kt\n!ls\n")
    assert shown(kernel, "y = 1 + \\\n    2\ny") == "3"
    assert "'yield' outside function" in traceback_of(kernel, "%%kt\nx = yield")
    assert "unexpected EOF" in traceback_of(kernel, "%%kt\ny = 1 + \\")
    assert "'__file__' is not defined" in traceback_of(kernel, "%%kt\n__file__")
    assert "%%time must be the first line" in traceback_of(kernel, "%%kt\n# a comment\n%%time\n1")
    assert "%kt is the notebook's" in traceback_of(kernel, "%%kt\n%kt services")
    assert "CalledProcessError" in traceback_of(kernel, "%%kt\n%%bash\nexit 3")
    # A SyntaxError of what the cell parses: its lines are there as well.
    assert "exec('x = (')" in traceback_of(kernel, "%%kt\ny = 1\nexec('x = (')")
    text = traceback_of(kernel, "%%kt\nraise BaseException('bare')")
    assert text.endswith("BaseException: bare")
    assert "skipping hidden" not in text
    # IPython leaves groups to the standard library, which shows all frames that there are.
    group = kernel.begin(
        "%%kt\nimport asyncio\nasync def boom(): raise ValueError('boom')\n"
        "async with asyncio.TaskGroup() as group: group.create_task(boom())",
        stop_on_error=False,
    ).wait()
    said = group.stderr + "".join((group.error or {})["traceback"])
    assert "ValueError: boom" in said
    assert "kubetorch_jupyter" not in said
    assert "pod_server" not in said
    assert kernel.run("%%kt\nprint('goes on')").stdout == "goes on\n"


def test_pods_that_end_in_the_middle(make_newest_kernel: KernelFactory) -> None:
    kernel = make_newest_kernel()
    kernel.run(LOAD)
    name = f"cells-{kernel.pid}"
    waits = "import time\nprint('begun')\ntime.sleep(30)"

    def process(kind: str) -> psutil.Process:
        family = psutil.Process(kernel.pid).children(recursive=True)
        return next(p for p in family if p.name().startswith(kind))

    def after(kept: bool = False) -> str:
        """What the next cell has to say; it runs, with the variables or without."""
        cell = kernel.run("%%kt\nprint('kept' in globals())\nkept = 1")
        assert cell.stdout.endswith(f"{kept}\n"), cell
        assert kernel.run("%%kt\nprint(kept)").stdout == "1\n"
        return cell.stdout + cell.stderr

    after()
    for kind, error, told in [
        ("kt-worker", "ended by SIGKILL", "since its worker ended"),
        ("kt-front", "its front process", "its front process .*ended.* deploying it again, without what it held"),
        ("kt-zygote", "ended|died", "ended"),
    ]:
        cell = kernel.begin(f"%%kt\n{waits}", stop_on_error=False).wait_text("begun")
        front = process("kt-front")
        process(kind).send_signal(signal.SIGKILL)
        cell.wait(10)
        if kind == "kt-zygote":
            # The front tells of the worker's end, and then ends itself; a call that meets that is lost with it.
            psutil.wait_procs([front], timeout=10)
            kernel.run("import time\nwhile any(s.name.startswith('cells-') for s in kt.services()): time.sleep(0.01)")
            kernel.run("time.sleep(0.2)  # the connection's end has been seen")
        assert re.search(error, (cell.error or {})["evalue"]), cell
        assert re.search(told, after())
    # The one that all are forked from is needed by nothing that runs, and is made again.
    process("kt-root").send_signal(signal.SIGKILL)
    after(kept=True)
    assert kernel.run("%%kt -n another\nprint('new')").stdout == "new\n"
    assert "exit code 3" in traceback_of(kernel, "%%kt\nimport os\nos._exit(3)")
    assert "since its worker ended" in after()
    text = traceback_of(
        kernel, "%%kt -n small --memory-limit 200Mi\nkept = bytearray(b'x') * 400_000_000\nimport time\ntime.sleep(30)"
    )
    assert "more than its memory_limit of 200Mi" in text
    assert kernel.run("%%kt -n small\nprint('kept' in globals())").stdout == "False\n"
    # By the magics, while a cell runs.
    for command, error, told in [
        (f"%kt restart {name}", "restarted on request", "Namespace was constructed anew, by a restart"),
        (f"%kt down {name}", "was torn down", ""),
    ]:
        kernel.begin(f"%%kt --bg job\n{waits}").wait().wait_text("begun")
        kernel.run(command)
        assert error in traceback_of(kernel, "job.result()")
        assert told in after()


def test_deploy_leaves_data_what_it_is(make_newest_kernel: KernelFactory) -> None:
    kernel = make_newest_kernel()
    kernel.run(LOAD)
    told = kernel.run(DATA).stdout
    data = ["Point", "Colour", "Oops", "Pair", "Options", "Does", "Base", "Marker", "Meta"]
    assert f"kubetorch: {', '.join(data)} stay what they are: data" in told
    assert f"--only {','.join(data)} deploys" in told
    assert kernel.run("Model.do(), Caller(), f(1) == (Point(1), Colour.RED, Pair(1))").result == (
        "('done', 'called', True)"
    )
    assert kernel.run("try: f(0)\nexcept Oops as e: print('caught', e)").stdout == "caught zero\n"
    assert "Oops stays what it is" in failed(kernel, "%%kt deploy\nclass Oops(Exception): pass")
    kernel.run("%%kt deploy --only Oops\nclass Oops(Exception):\n    def told(self): return 'deployed'")
    assert kernel.run("Oops.told()").result == "'deployed'"
    needs = "class Needs:\n    def __init__(self, a, b=1): self.a = a\n    def get(self): return self.a\n"
    assert "Needs: missing a required argument: 'a'; say it with --init \"{'a': ...}\"" in failed(
        kernel, f"%%kt deploy\n{needs}"
    )
    assert "--only g leaves it what it is" in failed(kernel, f"%%kt deploy\n{needs}def g(): return Needs(2).get()")
    kernel.run(f"%%kt deploy --only g\n{needs}def g(): return Needs(2).get()")
    assert kernel.run("g(), Needs(3).get()").result == "(2, 3)"
    kernel.run(f"%%kt deploy --init \"{{'a': 4}}\"\n{needs}")
    assert kernel.run("Needs.get()").result == "4"
    assert 'Train and train would both be the service "train"' in failed(
        kernel, "%%kt deploy\nclass Train:\n    def go(self): return 1\ndef train(): return 2"
    )
    kernel.run("%%kt deploy\ndef Step(): return 1")
    assert '"step" was the service of Step until now, and is that of step' in (
        kernel.run("%%kt deploy\ndef step(): return 2").stdout
    )
    assert "over is no function and no class any more" in failed(kernel, "%%kt deploy\ndef over(): pass\ndel over")
    assert "no service name can be made of '数'" in failed(kernel, "%%kt deploy\ndef 数(): pass")
    # One class of the cell inherits from the other; what decorators and generators make.
    kernel.run(
        "%%kt deploy\nimport functools\nclass One:\n    def hi(self): return 'hi'\nclass Two(One):\n"
        "    def ho(self): return self.hi() + 'ho'\nasync def co(n): return n\ndef gen(n): yield from range(n)\n"
        "async def agen(n):\n    for i in range(n): yield i\n"
        "def _more(fn): return functools.wraps(fn)(lambda *args: fn(*args) + 1)\n@_more\ndef dec(n): return n\n"
        "@functools.lru_cache\ndef cached(n): return n * 2"
    )
    assert kernel.run("One.hi(), Two.ho(), co(3), list(gen(2)), list(agen(2)), dec(3), cached(3)").result == (
        "('hi', 'hiho', 3, [0, 1], [0, 1], 4, 6)"
    )
    # A cell that fails deploys nothing; run again, it does.
    assert "ZeroDivisionError" in traceback_of(kernel, "%%kt deploy\ndef again(): return 1\n1 / 0")
    kernel.run("%%kt deploy\ndef again(): return 2")
    assert kernel.run("again()").result == "2"


def test_two_kernels_share_a_namespace(make_newest_kernel: KernelFactory) -> None:
    first = make_newest_kernel(env={"JPY_SESSION_NAME": "/nowhere/first.ipynb"})
    second = make_newest_kernel(env={"KT_RUNTIME_DIR": str(first.runtime_dir)})
    for kernel in (first, second):
        kernel.run(f"{LOAD}")
    first.run("%%kt -n ours\nx = 1")
    taken = second.run("%%kt -n ours\nx += 1\nx")
    assert re.search(r'^kubetorch: "ours", deployed by \w+ from first.ipynb, is live', taken.stdout), taken
    assert taken.displays[-1]["text/plain"] == "2"
    assert shown_in(first, "ours", "x") == "2"
    # The kernel that made it ends, while the other one has used it; then nobody is left.
    running = second.begin("%%kt -n ours\nimport asyncio\nprint('begun')\nawait asyncio.sleep(1)\nprint('whole')")
    running.wait_text("begun")
    first.stop()
    assert "whole\n" in running.wait(10).ok().stdout
    assert shown_in(second, "ours", "x") == "2"
    second.run("%%kt -n stays --detach\ny = 5")
    second.restart()
    second.run(LOAD)
    assert "NameError" in traceback_of(second, "%%kt -n ours\nx")
    assert shown_in(second, "stays", "y") == "5"
    second.run("%kt down stays")
    second.stop()
    first.assert_nothing_left()


def shown_in(kernel: Kernel, namespace: str, expression: str) -> str:
    return str(kernel.run(f"%%kt -n {namespace}\n{expression}").displays[-1]["text/plain"])


def test_logs_and_attach(make_newest_kernel: KernelFactory) -> None:
    kernel = make_newest_kernel(env={"JPY_SESSION_NAME": "/nowhere/logs.ipynb"})
    kernel.run(LOAD)
    kernel.run("%%kt --bg job\nimport time\nfor i in range(10_000):\n    print('line', i)\n    time.sleep(0.02)")
    id = kernel.run("print(job.id)").stdout.splitlines()[-1]
    service = id.partition("/")[0]
    # Stop ends what follows, and not the call.
    for command in ("%kt logs -f job", f"%kt logs --follow {id}", f"%kt logs -f {service}", f"%kt attach --wait {id}"):
        follows = kernel.begin(command, stop_on_error=False).wait_text("line 3\n")
        kernel.interrupt()
        follows.wait(10)
        assert follows.error is not None
        assert follows.error["ename"] == "KeyboardInterrupt"
        assert "line 0\nline 1\nline 2\n" in follows.stdout
    assert kernel.run("print(job.status)").stdout.endswith("running\n")
    kernel.run("%kt cancel job")
    assert "line 0\n" in kernel.run("%kt logs job").stdout
    # More than a cell shows: the log has every byte.
    kernel.run("%kt config cell_log_limit 100000")
    cell = kernel.run("%%kt\nfor i in range(5_000): print(f'{i:060d}')")
    assert len(cell.stdout) < 5_000 * 61
    flood = re.findall(rf"{service}/\w+", cell.stderr)[-1]
    assert kernel.run(f"%kt logs {flood}").stdout == "".join(f"{i:060d}\n" for i in range(5_000))
    for mistake in ("%kt logs nothing", "%kt logs -f nothing", "%kt attach nothing", f"%kt attach nothing/{id[-26:]}"):
        assert "nothing" in failed(kernel, mistake)
    kernel.run("import os\nos.environ['KT_GPUS'] = 'lots'\n%reload_ext kubetorch_jupyter")
    assert "KT_GPUS='lots' in the environment is no number" in failed(kernel, "%%kt -n more\n1")
    kernel.run("del os.environ['KT_GPUS']")
    # Followed to its end.
    kernel.run("%%kt --bg job\nimport time\nfor i in range(5):\n    print('line', i)\n    time.sleep(0.05)")
    assert kernel.run("%kt logs -f job").stdout.endswith("".join(f"line {i}\n" for i in range(5)))
    kernel.run(f"%kt down {service}")
    assert "was torn down" in failed(kernel, "%kt logs job")
