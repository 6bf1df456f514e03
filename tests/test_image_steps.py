"""The steps of an image on pods of this machine: run in order, seen by the code, run again only when they changed."""

from __future__ import annotations

import asyncio
import inspect
import os
import site
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import kubetorch_jupyter as kt
from kubetorch_jupyter.progress import DeployProgress
from kubetorch_jupyter.steps import FILES_LIMIT, pack_steps
from tests.cells import Cells
from tests.conftest import KernelFactory
from tests.wheels import Index, serve_index

Deploy = Callable[..., Any]


@pytest.fixture
def index() -> Iterator[Index]:
    with serve_index() as index:
        index.add("ktone", "1.0", program="ktone-say")
        index.add("ktone", "2.0", program="ktone-say")
        index.add("kttwo", "1.0", requires=("ktone",))
        yield index


@pytest.fixture
def image(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> kt.Image:
    monkeypatch.setenv("KT_CACHE_DIR", str(tmp_path / "cache"))
    return kt.Image().set_env_vars(index.env)


NOTE = ""


def _look() -> dict[str, Any]:
    import importlib
    import os
    import subprocess
    import sys

    found = {}
    for name in ("ktone", "kttwo", "ktlocal"):
        try:
            found[name] = getattr(importlib.import_module(name), "VERSION", "?")
        except ModuleNotFoundError:
            found[name] = None
    child = subprocess.run([sys.executable, "-c", "import ktone; ktone.main()"], capture_output=True, text=True)
    steps = os.environ.get("KT_STEPS_DIR")
    return {
        **found,
        "note": NOTE,
        "pid": os.getpid(),
        "cwd": os.getcwd(),
        "steps": steps,
        "files": sorted(os.listdir(steps)) if steps else None,
        "child": child.stdout.strip(),
        "env": dict(os.environ),
    }


def _function(text: str = "") -> Any:
    """`_look`, as if from a cell; with another text it is another function."""
    cells = Cells()
    cells.run(f"from typing import Any\nNOTE = {text!r}\n{inspect.getsource(_look)}")
    return cells["_look"]


@pytest.fixture
def deploy() -> Iterator[Deploy]:
    handles = []

    def make(image: kt.Image | None, name: str = "steps", text: str = "", **compute: Any) -> Any:
        handle = kt.fn(_function(text), name=name).to(kt.Compute(image=image, **compute))
        handles.append(handle)
        return handle

    yield make
    for name in {handle.service.name for handle in handles}:
        next(h for h in reversed(handles) if h.service.name == name).teardown()


def _counting(tmp_path: Path, name: str, more: str = "true", **options: Any) -> Callable[[kt.Image], kt.Image]:
    """A step that leaves a line in a file of ours each time that it runs."""
    return lambda image: image.run_bash(f"echo ran >> {tmp_path}/{name}; {more}", **options)


def _runs(tmp_path: Path, name: str) -> int:
    path = tmp_path / name
    return len(path.read_text().splitlines()) if path.exists() else 0


def _own_packages() -> set[str]:
    return set(os.listdir(sysconfig.get_path("purelib")))


# -- pip_install -------------------------------------------------------------------------------------------------------


def test_installed_for_the_service_and_nowhere_else(image: kt.Image, index: Index, deploy: Deploy, capfd: Any) -> None:
    before = _own_packages()
    handle = deploy(image.pip_install(["kttwo", "ktone==1.0"]))
    shown = capfd.readouterr()
    seen = handle()
    assert (seen["ktone"], seen["kttwo"]) == ("1.0", "1.0")
    assert seen["child"] == "ktone 1.0", "a Python that the code starts sees it too"
    assert "Successfully installed" in shown.out
    assert 'pip_install("kttwo")' in shown.out + shown.err
    assert _own_packages() == before
    assert not any(name.startswith("kt") and name in sys.modules for name in ("ktone", "kttwo"))
    # A program of the package is on the PATH, and the packages of this environment are seen as ever.
    assert any(Path(p, "ktone-say").exists() for p in seen["env"]["PATH"].split(os.pathsep))
    assert psutil.__name__ in {m.name for m in __import__("pkgutil").iter_modules(site.getsitepackages())}


def test_only_what_changed_runs_again(image: kt.Image, index: Index, deploy: Deploy, tmp_path: Path) -> None:
    first, second = _counting(tmp_path, "first"), _counting(tmp_path, "second")
    base = first(image.pip_install("ktone<2"))
    one = deploy(second(base))
    pid = one()["pid"]
    assert deploy(second(base))()["pid"] == pid, "unchanged: the same worker goes on"
    seen = deploy(second(base), text="changed")()
    assert (seen["note"], seen["pid"]) == ("changed", pid), "other code, the same worker"
    assert (_runs(tmp_path, "first"), _runs(tmp_path, "second"), len(index.downloads)) == (1, 1, 1)

    seen = deploy(first(image.pip_install("ktone<2")).pip_install("ktone>=2"))()
    assert seen["pid"] != pid, "changed steps: a fresh worker"
    assert seen["ktone"] == "2.0"
    assert (_runs(tmp_path, "first"), _runs(tmp_path, "second")) == (1, 1)

    seen = deploy(second(base))()
    assert seen["ktone"] == "1.0", "what another image installed isn't there"
    assert (_runs(tmp_path, "first"), _runs(tmp_path, "second")) == (1, 1), "they have been run in this pod"

    deploy(second(first(image.set_env_vars({"EARLIER": "1"}).pip_install("ktone<2"))))
    assert (_runs(tmp_path, "first"), _runs(tmp_path, "second")) == (2, 2), "all that comes after what changed"


def test_a_new_worker_has_the_same_environment(image: kt.Image, index: Index, deploy: Deploy, tmp_path: Path) -> None:
    handle = deploy(_counting(tmp_path, "first", "pip install -q ktone==1.0")(image.pip_install("kttwo")))
    before, downloads = handle(), len(index.downloads)
    assert before["ktone"] == "1.0"
    psutil.Process(before["pid"]).kill()
    deadline = time.monotonic() + 10
    while (status := handle.service.status())["worker"] in (None, before["pid"]) or status["state"] != "ready":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    after = handle()
    assert after["pid"] != before["pid"]
    assert {k: after[k] for k in ("ktone", "kttwo", "child")} == {k: before[k] for k in ("ktone", "kttwo", "child")}
    assert (_runs(tmp_path, "first"), len(index.downloads)) == (1, downloads)


def test_two_services_at_once_install_once(image: kt.Image, index: Index, deploy: Deploy, tmp_path: Path) -> None:
    image = image.pip_install(["kttwo", "ktone"])

    async def both() -> list[dict[str, Any]]:
        made = [kt.fn(_function(), name=f"twin-{k}") for k in range(2)]
        up = await asyncio.gather(*(m.to_async(kt.Compute(image=image), stream_logs=False) for m in made))
        try:
            return list(await asyncio.gather(*(h(async_=True) for h in up)))
        finally:
            for handle in up:
                handle.teardown()

    one, two = asyncio.run(both())
    assert one["pid"] != two["pid"]
    assert (one["ktone"], two["ktone"], one["kttwo"], two["kttwo"]) == ("2.0", "2.0", "1.0", "1.0")
    assert sorted(index.downloads) == ["ktone-2.0-py3-none-any.whl", "kttwo-1.0-py3-none-any.whl"]
    # And it is kept: a service of later has it without the index.
    index.wheels.clear()
    assert deploy(image, name="later")()["kttwo"] == "1.0"


def test_install_cmd_instead_of_pip(image: kt.Image, index: Index, deploy: Deploy, tmp_path: Path) -> None:
    program = tmp_path / "installer"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/given\nshift\nexec pip install -q "$@"\n')
    program.chmod(0o755)
    other = kt.Image(install_cmd=f"{program} add").set_env_vars(index.env).pip_install("ktone >=1, <2")
    assert deploy(other)()["ktone"] == "1.0"
    assert (tmp_path / "given").read_text() == "add ktone >=1, <2\n"
    with pytest.raises(kt.StartupError, match="there is no /nowhere/uv"):
        deploy(kt.Image(install_cmd="/nowhere/uv pip install").pip_install("ktone"))


# -- run_bash and variables --------------------------------------------------------------------------------------------


def test_output_comes_in_order_while_it_runs(image: kt.Image, deploy: Deploy, capfd: Any) -> None:
    text = "for i in 1 2 3; do echo out $i; echo err $i >&2; done; printf 'no newline é'"
    deploy(image.run_bash(text).run_bash("echo; echo second"))
    shown = capfd.readouterr().out
    lines = [f"{kind} {i}" for i in (1, 2, 3) for kind in ("out", "err")]
    assert "\n".join([*lines, "no newline é"]) in shown
    assert shown.index("no newline") < shown.index("second") < shown.index("is ready")


def test_a_step_sees_the_variables_before_it(image: kt.Image, deploy: Deploy, monkeypatch: Any, capfd: Any) -> None:
    monkeypatch.setenv("KTX_HERE", "from here")
    image = (
        image.run_bash('echo "1: $KTX_A $KTX_HERE"')
        .set_env_vars({"KTX_A": "a", "KTX_HERE": "$KTX_HERE, and more"})
        .run_bash('echo "2: $KTX_A $KTX_HERE"')
        .set_env_vars({"KTX_A": "$KTX_A$KTX_A"})
        .run_bash('echo "3: $KTX_A $KTX_OWN"')
        .set_env_vars({"KTX_OWN": "image"})
    )
    env = deploy(image, env_vars={"KTX_OWN": "compute"})()["env"]
    shown = capfd.readouterr().out
    for line in ("1:  from here\n", "2: a from here, and more\n", "3: aa compute\n"):
        assert line in shown
    assert (env["KTX_A"], env["KTX_HERE"], env["KTX_OWN"]) == ("aa", "from here, and more", "compute")


def test_bash_runs_in_a_folder_of_its_own(image: kt.Image, deploy: Deploy) -> None:
    here = sorted(os.listdir())
    seen = deploy(image.run_bash("echo made > made.txt && pip --version && command -v python > python.txt"))()
    assert seen["files"] == ["made.txt", "python.txt"]
    assert Path(seen["steps"]).is_relative_to(kt.config.cache_dir), "on a disk, and not in the runtime directory"
    assert seen["cwd"] == os.getcwd(), "the code runs where the notebook does"
    assert Path(seen["steps"], "python.txt").read_text().startswith(str(Path(seen["steps"]).parent))
    assert sorted(os.listdir()) == here
    kt.teardown("steps")
    assert not Path(seen["steps"]).exists(), "it goes with the service"


def test_force_runs_at_each_deploy(image: kt.Image, deploy: Deploy, tmp_path: Path) -> None:
    image = _counting(tmp_path, "after")(_counting(tmp_path, "forced", force=True)(image))
    pids = [deploy(image)()["pid"] for _ in range(3)]
    assert len(set(pids)) == 3
    assert (_runs(tmp_path, "forced"), _runs(tmp_path, "after")) == (3, 1)


def test_a_background_process_lives_with_the_worker(image: kt.Image, deploy: Deploy, tmp_path: Path) -> None:
    handle = deploy(image.run_bash(f"sh -c 'echo $$ >> {tmp_path}/pids; exec sleep 600' &"))

    def started(count: int) -> list[int]:
        deadline = time.monotonic() + 5
        while _runs(tmp_path, "pids") < count:  # nobody waits for what goes on in the background
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return [int(line) for line in (tmp_path / "pids").read_text().split()]

    [first] = started(1)
    assert psutil.pid_exists(first)
    handle.service.restart()
    assert not psutil.pid_exists(first)
    same, second = started(2)
    assert same == first
    assert psutil.pid_exists(second)


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_step_that_fails(image: kt.Image, deploy: Deploy, tmp_path: Path, capfd: Any) -> None:
    good = _counting(tmp_path, "good")
    old = deploy(image)
    pid = old()["pid"]
    bad = good(image).run_bash("for i in $(seq 100); do echo line $i; done; echo the reason >&2; exit 3")
    with pytest.raises(kt.StartupError) as info:
        deploy(bad)
    error = info.value
    assert (error.exit_code, error.service) == (3, "steps")
    assert error.step is not None
    assert error.step.startswith('run_bash("for i in')
    assert error.output is not None
    assert error.output.splitlines()[-2:] == ["line 100", "the reason"]
    assert len(error.output.splitlines()) <= 20
    assert "failed with exit code 3" in str(error).splitlines()[0]
    assert "    the reason" in str(error)
    shown = capfd.readouterr().out
    assert "line 1\n" in shown, "all of the output is shown, the error has the end of it"
    assert "goes on with the code that it had" in shown
    assert old()["pid"] == pid
    deploy(good(image))
    assert _runs(tmp_path, "good") == 1, "what went well before the failure isn't run again"


def test_a_package_that_there_is_not(image: kt.Image, deploy: Deploy) -> None:
    with pytest.raises(kt.StartupError, match=r'pip_install\("ktnowhere"\) failed with exit code 1') as info:
        deploy(image.pip_install("ktnowhere"))
    assert "No matching distribution found for ktnowhere" in str(info.value)
    assert "PIP_INDEX_URL" in str(info.value)
    assert [s for s in kt.services() if s.name == "steps"] == [], "a first deploy that fails leaves nothing"
    assert os.listdir(Path(kt.config.cache_dir, "services")) == []


def test_a_class_goes_on_while_steps_run_and_after_they_failed(image: kt.Image, tmp_path: Path) -> None:
    cells = Cells()
    cells.run(
        """
        class Counter:
            def __init__(self): self.n = 0
            def add(self): self.n += 1; return self.n
            def wait(self, path):
                import os, time
                while not os.path.exists(path): time.sleep(0.01)
                return self.add()
        """
    )
    with kt.cls(cells["Counter"], name="counter").to(kt.Compute(image=image), stream_logs=False) as handle:
        assert handle.add() == 1
        # A call that runs ends with the old instance although the steps are under way; here they end it.
        running = handle.wait.spawn(str(tmp_path / "go"))
        failing = image.run_bash(f"touch {tmp_path}/go; sleep 0.3; exit 1")
        with pytest.raises(kt.StartupError, match="exit code 1"):
            handle.to(kt.Compute(image=failing), stream_logs=False)
        assert running.result(timeout=10) == 2
        assert handle.add() == 3, "the instance has not been lost"
        handle.to(kt.Compute(image=image.run_bash("true")), stream_logs=False)
        assert handle.add() == 1, "with steps that go well it is constructed anew"


def test_a_cancelled_deploy_kills_the_step(image: kt.Image, deploy: Deploy, tmp_path: Path) -> None:
    old = deploy(image)
    pid = old()["pid"]
    script = f"sh -c 'echo $$ > {tmp_path}/deep; exec sleep 600' & echo $$ > {tmp_path}/shell; sleep 600"

    async def run() -> None:
        task = asyncio.create_task(
            kt.fn(_function(), name="steps").to_async(kt.Compute(image=image.run_bash(script)), stream_logs=False)
        )
        while not ((tmp_path / "deep").exists() and (tmp_path / "shell").exists()):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    pids = [int((tmp_path / name).read_text()) for name in ("deep", "shell")]
    deadline = time.monotonic() + 5
    while any(psutil.pid_exists(p) for p in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert old()["pid"] == pid


def test_the_phase_names_the_step(image: kt.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []
    original = DeployProgress.__call__

    def call(self: DeployProgress, phase: Any, detail: str = "") -> None:
        seen.append((str(phase), detail))
        original(self, phase, detail)

    monkeypatch.setattr(DeployProgress, "__call__", call)
    with kt.fn(_function(), name="phases").to(kt.Compute(image=image.run_bash("true")), stream_logs=False) as handle:
        at = seen.index(("getting its image", 'run_bash("true")'))
        assert ("loading", "") in seen[at:]
        assert [e["text"] for e in handle.service.events() if e["event"] == "step"] == ['run_bash("true")']


# -- files -------------------------------------------------------------------------------------------------------------


def test_copies(image: kt.Image, deploy: Deploy, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "sub" / "empty").mkdir(parents=True)
    (data / "a.txt").write_text("a")
    (data / "sub" / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (data / "sub" / "run.sh").chmod(0o755)
    (data / "link.txt").symlink_to(data / "a.txt")
    (data / "loop").symlink_to(data)
    file = str(data / "a.txt")
    image = (
        image.copy(str(data)).copy(str(data), "renamed").copy(str(data), "into/").copy(str(data), "in", contents=True)
    )
    image = image.copy(file).copy(file, "b.txt").copy(file, "deep/er/c.txt").copy(file, "into/").copy(file, "in")
    seen = deploy(image.run_bash("./data/sub/run.sh > ran.txt"))()
    work = Path(seen["steps"])
    for folder in ("data", "renamed", "into/data", "in"):
        assert (work / folder / "sub" / "run.sh").stat().st_mode & 0o777 == 0o755
        assert (work / folder / "sub" / "empty").is_dir()
        assert (work / folder / "link.txt").read_text() == "a"
    for path in ("a.txt", "b.txt", "deep/er/c.txt", "into/a.txt", "in/a.txt"):
        assert (work / path).read_text() == "a"
    assert (work / "ran.txt").read_text() == "ran\n"
    assert not (work / "in" / "data").exists()


def test_files_are_sent_when_they_changed(image: kt.Image, deploy: Deploy, tmp_path: Path, capfd: Any) -> None:
    big, small = tmp_path / "big.bin", tmp_path / "small.txt"
    big.write_bytes(os.urandom(3 << 20))
    small.write_text("one")
    image = image.copy(str(big)).copy(str(small)).run_bash("cat small.txt; echo")

    def sent() -> float:
        line = next(li for li in capfd.readouterr().out.splitlines() if "sent " in li)
        size, unit = line.partition("(sent ")[2].split(")")[0].split()
        return float(size) * {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}[unit]

    handle = deploy(image)
    assert sent() > 3e6
    small.write_text("two")
    seen = deploy(image)()
    assert sent() < 1e6
    assert Path(seen["steps"], "small.txt").read_text() == "two"
    assert Path(seen["steps"], "big.bin").read_bytes() == big.read_bytes()
    deploy(image.run_bash("echo more"))
    assert sent() < 1e6
    # A pod that has lost them is sent them again.
    for path in Path(seen["steps"]).parent.glob("files/*.zip"):
        path.unlink()
    deploy(kt.Image(steps=(image.run_bash("true").steps[-1], *image.steps)))
    assert sent() > 3e6
    assert handle()["files"] == ["big.bin", "small.txt"]


@pytest.mark.parametrize("form", ["package", "project", "src", "module"])
def test_sync_package(image: kt.Image, deploy: Deploy, tmp_path: Path, form: str, monkeypatch: Any) -> None:
    project = tmp_path / "project"
    package = project / ("src" if form == "src" else "") / "ktlocal"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("VERSION = 'here'\n")
    (project / ".git").mkdir()
    (project / ".git" / "config").write_text("secret")
    given = str(package if form == "package" else project)
    if form == "module":
        monkeypatch.syspath_prepend(str(project))
        given = "ktlocal"
    step = image.sync_package(given).run_bash("python -c 'import ktlocal; print(ktlocal.VERSION)' > version.txt")
    # The path of this process is a service's too; the synced one comes first.
    seen = deploy(step)()
    assert seen["ktlocal"] == "here"
    assert Path(seen["steps"], "version.txt").read_text() == "here\n"
    assert not list(Path(seen["steps"]).parent.glob("packages/**/.git"))
    (package / "__init__.py").write_text("VERSION = 'changed'\n")
    assert deploy(step)()["ktlocal"] == "changed"


def test_files_that_can_not_travel(tmp_path: Path, image: kt.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(kt.ConfigError, match=r"there is no file or folder .*/missing"):
        pack_steps(image.copy(str(tmp_path / "missing")))
    with pytest.raises(kt.ConfigError, match="no package of that name"):
        pack_steps(image.sync_package("kt_no_such_package"))
    with pytest.raises(kt.ConfigError, match="is a file"):
        pack_steps(image.copy(__file__, contents=True))
    with pytest.raises(kt.ConfigError, match="KT_STEPS_DIR"):
        kt.fn(_function(), name="steps").to(kt.Compute(image=image.copy(__file__, "/data/x")))
    sparse = tmp_path / "sparse"
    with open(sparse, "wb") as f:
        f.truncate(FILES_LIMIT + 1)
    with pytest.raises(kt.ConfigError, match=r"would bring 1(\.0)? GiB.*Volume"):
        pack_steps(image.copy(str(sparse)))


def test_passwords_in_addresses_are_not_shown() -> None:
    packed = pack_steps(kt.Image().pip_install("--index-url https://me:hunter2@index.example/simple thing"))
    assert packed is not None
    assert "hunter2" not in packed.plan["steps"][0]["shown"]
    assert "index.example" in packed.plan["steps"][0]["shown"]


# -- a notebook --------------------------------------------------------------------------------------------------------


def test_in_a_notebook(make_newest_kernel: KernelFactory, index: Index, tmp_path: Path) -> None:
    kernel = make_newest_kernel(env={"KT_CACHE_DIR": str(tmp_path / "cache"), **index.env})
    kernel.run("import kubetorch_jupyter as kt\ndef version():\n    import ktone\n    return ktone.VERSION")
    cell = kernel.run(
        "image = kt.Image().pip_install(['ktone==1.0']).run_bash('echo from bash')\n"
        "handle = kt.fn(version).to(kt.Compute(image=image))\nprint(handle())"
    )
    assert "Successfully installed ktone-1.0" in cell.stdout
    assert "from bash\n" in cell.stdout
    assert cell.stdout.endswith("1.0\n")
    cell = kernel.begin("handle.to(kt.Compute(image=image.run_bash('echo oh no; exit 4')))").wait(60)
    assert cell.error is not None
    assert "exit code 4" in str(cell.error)
    assert "oh no\n" in cell.stdout
    assert kernel.run("print(handle())").stdout == "1.0\n"


def test_stop_ends_the_step(make_newest_kernel: KernelFactory, tmp_path: Path) -> None:
    kernel = make_newest_kernel()
    kernel.run("import kubetorch_jupyter as kt")
    script = f"echo $$ > {tmp_path}/pid; echo go; sleep 600"
    cell = kernel.begin(f"kt.fn(len).to(kt.Compute(image=kt.Image().run_bash({script!r})))")
    cell.wait_text("go\n")
    began = time.monotonic()
    kernel.interrupt()
    cell.wait(10)
    assert cell.error is not None
    assert cell.error["ename"] == "KeyboardInterrupt"
    pid = int((tmp_path / "pid").read_text())
    while psutil.pid_exists(pid):
        assert time.monotonic() - began < 5
        time.sleep(0.01)
    assert kernel.run("print([service.name for service in kt.services()])").stdout == "[]\n"
