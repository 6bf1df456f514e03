"""Image steps in the pod: commands, layers, what is done, and what failures say; without a front or with a fake one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kubetorch_jupyter.image import Image
from kubetorch_jupyter.steps import pack_steps
from pod_server import serialization
from pod_server.wire import FrameType, LogKind
from pod_server.worker.calls import CallError
from pod_server.worker.commands import Ended, run_command
from pod_server.worker.layers import Layer, Layers
from pod_server.worker.steps import Steps, requirement
from tests.waiting import until

from .fake_front import ROOT, Failed, FakeFront

# -- commands ----------------------------------------------------------------------------------------------------------


class Output:
    """Takes what a command writes."""

    def __init__(self) -> None:
        self.data = b""
        self.later = b""

    def run(self, text: str, **env: str) -> Ended:
        return run_command(
            ["/bin/sh", "-c", text],
            cwd="/",
            env={**os.environ, **env},
            write=lambda data: setattr(self, "data", self.data + data),
            afterwards=lambda data: setattr(self, "later", self.later + data),
        )


def test_output_and_code_of_a_command() -> None:
    out = Output()
    ended = out.run("echo a; echo b >&2; echo c; pwd; cat; exit $CODE", CODE="7")
    assert (ended.code, out.data) == (7, b"a\nb\nc\n/\n"), "errors are in their place, and there is no input"
    assert ended.tail == out.data
    assert out.run("kill -9 $$").code == -9


def test_long_output_is_handed_on_and_the_end_of_it_kept() -> None:
    out = Output()
    ended = out.run("seq 200000")
    assert out.data == b"".join(b"%d\n" % i for i in range(1, 200001))
    assert out.data.endswith(ended.tail)
    assert len(ended.tail) == 8192


@pytest.mark.parametrize(
    ("left", "last"), [("echo later", "true"), ("yes", ': >"$GO"; sleep 0.2')], ids=["quiet", "floods"]
)
def test_what_is_left_in_the_background_holds_up_nobody(left: str, last: str, tmp_path: Path) -> None:
    """Neither what is quiet until later, nor what fills the pipe before the command's end."""
    out = Output()
    go = tmp_path / "go"
    began = time.monotonic()
    wait = 'for _ in $(seq 500); do [ -e "$GO" ] && break; sleep 0.02; done'
    ended = out.run(f"({wait}; {left}) & echo $!; echo now; {last}", GO=str(go))
    took = time.monotonic() - began
    pid, now = out.data.split(b"\n")[:2]
    group = os.getpgid(int(pid))
    try:
        assert took < 5
        assert (ended.code, now) == (0, b"now")
        go.touch()
        until(lambda: out.later)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def test_a_command_that_closes_its_output_is_waited_for() -> None:
    began = time.monotonic()
    assert Output().run("exec >&- 2>&-; sleep 0.3; exit 2").code == 2
    assert time.monotonic() - began >= 0.3


def test_an_exception_while_it_runs_kills_all_of_it() -> None:
    class Stop(BaseException):
        pass

    pids: list[int] = []

    def write(data: bytes) -> None:
        pids.extend(map(int, data.split()))
        if len(pids) == 2:
            raise Stop

    with pytest.raises(Stop):
        run_command(
            ["/bin/sh", "-c", "echo $$; sh -c 'echo $$; sleep 600'; true"],
            cwd="/",
            env=dict(os.environ),
            write=write,
            afterwards=lambda data: None,
        )
    deadline = time.monotonic() + 2
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("numpy>=2", ["numpy>=2"]),
        ("numpy >=2, <3", ["numpy >=2, <3"]),
        ('a[b,c]; python_version < "4"', ['a[b,c]; python_version < "4"']),
        ("a @ https://example.org/a.whl", ["a @ https://example.org/a.whl"]),
        ("--pre torch", ["--pre", "torch"]),
        ("numpy>=2 --no-deps", ["numpy>=2", "--no-deps"]),
        ("-r 'my requirements.txt'", ["-r", "my requirements.txt"]),
        ("numpy pandas", ["numpy", "pandas"]),
        ("./folder", ["./folder"]),
    ],
)
def test_requirements_are_pips_arguments(text: str, arguments: list[str]) -> None:
    assert requirement(text) == arguments


# -- layers ------------------------------------------------------------------------------------------------------------


def _install(layer: Layer, name: str) -> None:
    Path(layer.site, f"{name}.py").write_text(f"WHERE = {layer.path!r}\n")


def _python(layer: Layer, code: str) -> str:
    done = subprocess.run([layer.python, "-c", code], capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return done.stdout.strip()


def test_layers_see_those_below_and_hide_them(tmp_path: Path) -> None:
    layers = Layers(str(tmp_path / "a b"), None)
    one, two = (layers.layer(digest, False) for digest in ("one", "two"))
    with layers.building(one, pytest.fail):
        one.make([])
        _install(one, "kt_a")
        _install(one, "kt_b")
        one.finish("one")
    with layers.building(two, pytest.fail):
        two.make([one])
        _install(two, "kt_a")
        two.finish("two")
    assert _python(two, "import kt_a, kt_b; print(kt_a.WHERE, kt_b.WHERE, sep='|')") == f"{two.path}|{one.path}"
    assert _python(one, "import kt_a; print(kt_a.WHERE)") == one.path
    assert _python(two, "import numpy; print(numpy.__name__)") == "numpy", "and what this environment has"
    assert layers.use(one)
    assert not one.empty


def test_a_layer_that_got_nothing_is_only_a_mark(tmp_path: Path) -> None:
    layer = Layers(str(tmp_path), None).layer("x", False)
    layer.make([])
    assert not layer.complete
    layer.finish("x")
    assert layer.complete
    assert layer.empty
    assert len(os.listdir(layer.path)) == 1


def test_a_shared_layer_is_built_by_one_and_kept_while_it_is_used(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    one, two = (Layers(str(tmp_path / name), str(shared)) for name in "ab")
    layer = one.layer("x", True)
    assert layer == two.layer("x", True)
    assert one.layer("x", False) != two.layer("x", False)
    waited: list[str] = []

    def second() -> None:
        with two.building(layer, lambda: waited.append("waited")):
            waited.append("complete" if layer.complete else "not complete")

    with one.building(layer, pytest.fail):
        thread = threading.Thread(target=second)
        thread.start()
        deadline = time.monotonic() + 5
        while not waited:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        layer.make([])
        _install(layer, "kt_a")
        layer.finish("x")
    thread.join()
    assert waited == ["waited", "complete"]

    assert one.use(layer)
    mark = Path(layer.path, "kubetorch-layer.json")
    old = time.time() - 40 * 24 * 3600
    os.utime(mark, (old, old))
    other = two.layer("y", True)
    with two.building(other, pytest.fail):
        assert layer.complete, "somebody uses it"
    for fd in one._used.values():
        os.close(fd)
    with two.building(other, pytest.fail):
        assert not os.path.exists(layer.path)
    assert not two.use(layer)


def test_who_waits_for_a_layer_goes_on_when_another_service_uses_it_first(tmp_path: Path) -> None:
    layers = Layers(str(tmp_path / "a"), str(tmp_path / "shared"))
    layer = layers.layer("x", True)
    os.makedirs(layer.path)
    waits, has = threading.Event(), threading.Event()

    def build() -> None:
        with layers.building(layer, waits.set):
            assert layer.complete
            has.set()

    with open(f"{layer.path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=build)
        thread.start()
        assert waits.wait(5)
        layer.make([])
        layer.finish("x")
        fcntl.flock(lock, fcntl.LOCK_SH)  # there is no moment between: who waits to build doesn't get his lock
        got = has.wait(5)
    thread.join()
    assert got


# -- plans, in a process of their own ----------------------------------------------------------------------------------

_RUN = """
import json, os, sys
from pod_server.worker.calls import CallError
from pod_server.worker.steps import Steps
given = json.loads(sys.argv[1])
said = {"log": "", "notices": [], "events": []}
class Report:
    def write(self, data): said["log"] += data.decode()
    afterwards = write
    def notice(self, text): said["notices"].append(text)
    def begin(self, step): said["events"].append(step)
    def end(self): said["events"].append("done")
files = [open(path, "rb").read() for path in given["files"]]
try:
    Steps(given["directory"], given["home"]).run([json.dumps(given["plan"]).encode(), *files], Report())
except CallError as e:
    said["error"] = e.fields
said.update(path=sys.path, executable=sys.executable, env=dict(os.environ))
print(json.dumps(said))
"""


class Pod:
    """Runs plans as the workers of one pod would, each in a process of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.home = path / "home"
        self.directory = path / "service"
        for folder in (self.home, self.directory):
            folder.mkdir()

    def run(self, image: Image, have: tuple[str, ...] = (), **env: str) -> dict[str, Any]:
        packed = pack_steps(image)
        assert packed is not None
        _, buffers = packed.load(have, (), None, False)
        files = []
        for number, data in enumerate(buffers[1:]):
            files.append(str(self.path / f"{number}.sent"))
            Path(files[-1]).write_bytes(data)
        given = {
            "plan": json.loads(buffers[0]),
            "files": files,
            "directory": str(self.directory),
            "home": str(self.home),
        }
        base = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHONUNB"))}
        done = subprocess.run(
            [sys.executable, "-c", _RUN, json.dumps(given)],
            cwd=self.home,
            env={**base, "PYTHONPATH": str(ROOT), **env},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        out: dict[str, Any] = json.loads(done.stdout)
        return out


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def test_in_a_cluster_the_home_directory_has_it(pod: Pod) -> None:
    said = pod.run(
        Image().run_bash("pwd; echo x > $(python -c 'import site; print(site.getsitepackages()[0])')/kt_m.py")
    )
    assert said["log"].strip() == str(pod.home), "it runs in the working directory"
    [layer] = [path for path in said["path"] if path.startswith(str(pod.home / "steps" / "layers"))]
    assert Path(layer, "kt_m.py").exists()
    after = said["path"][said["path"].index(layer) :]
    assert sysconfig.get_path("purelib") in after
    assert sysconfig.get_path("stdlib") not in after, "as with any Python, the standard library goes before packages"
    assert said["executable"].startswith(str(pod.home))
    assert said["env"]["PATH"].startswith(os.path.dirname(said["executable"]))
    assert said["env"]["KT_STEPS_DIR"] == str(pod.home)
    assert os.listdir(pod.directory) == []
    again = pod.run(
        Image().run_bash("pwd; echo x > $(python -c 'import site; print(site.getsitepackages()[0])')/kt_m.py")
    )
    assert (again["log"], again["events"]) == ("", []), "the next worker finds it done"
    assert (again["path"], again["executable"]) == (said["path"], said["executable"])


def test_a_working_directory_that_can_not_be_written_to(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(str(pod.directory), str(pod.home))
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, how: path != os.getcwd() and real(path, how))
    monkeypatch.setenv("KT_STEPS_DIR", "")
    steps._open({"sent": []}, [])
    assert steps._work == str(pod.home)
    assert os.environ["KT_STEPS_DIR"] == str(pod.home)


def test_variables_are_expanded_where_the_pod_is(pod: Pod) -> None:
    image = Image().set_env_vars({"KTX_B": "$KTX_POD/b", "PATH": "/own:$PATH"}).run_bash("echo $KTX_B; echo $PATH")
    said = pod.run(image, KTX_POD="in the pod")
    value, path = said["log"].splitlines()
    assert value == "in the pod/b"
    assert "/own:" in path
    assert "PYTHONUNBUFFERED" not in said["env"], "what only the steps need isn't left for the code"


def test_only_what_changed(pod: Pod) -> None:
    image = Image().run_bash("echo one").run_bash("echo two")
    assert pod.run(image)["log"] == "one\ntwo\n"
    assert pod.run(image.run_bash("echo three"))["log"] == "three\n"
    assert pod.run(Image().run_bash("echo one").run_bash("echo zwei").run_bash("echo three"))["log"] == "zwei\nthree\n"
    assert pod.run(image)["log"] == ""
    shutil.rmtree(pod.home / "steps")
    assert pod.run(image)["log"] == "one\ntwo\n", "a new pod runs all of them"


def test_what_failed_is_run_again_and_what_came_before_is_not(pod: Pod) -> None:
    image = (
        Image().run_bash("echo one").run_bash(f"echo two; test -e {pod.path}/there || exit 5").run_bash("echo three")
    )
    said = pod.run(image)
    error = said["error"]
    assert said["log"] == "one\ntwo\n"
    assert (error["type"], error["exit_code"], error["output"]) == ("StartupError", 5, "two")
    assert error["message"].startswith(f"the image step {error['step']} failed with exit code 5. ")
    assert said["events"][-1] == error["step"]
    (pod.path / "there").touch()
    assert pod.run(image)["log"] == "two\nthree\n"


def test_a_step_that_is_killed_and_a_program_that_there_is_not(pod: Pod) -> None:
    assert "was killed by SIGKILL. Perhaps its memory" in pod.run(Image().run_bash("kill -9 $$"))["error"]["message"]
    error = pod.run(Image().run_bash("kt-no-such-program"))["error"]
    assert error["exit_code"] == 127
    assert "no such program" in error["message"]
    error = pod.run(Image(install_cmd="kt-no-such-installer add").pip_install("x"))["error"]
    assert "there is no kt-no-such-installer" in error["message"]
    error = pod.run(Image().pip_install("'unclosed -x"))["error"]
    assert "No closing quotation" in error["message"]


def test_without_pip_the_error_says_what_is_missing(pod: Pod) -> None:
    shadow = pod.path / "shadow"
    shadow.mkdir()
    (shadow / "pip.py").write_text("raise ImportError('no pip')\n")
    (shadow / "ensurepip.py").write_text("import sys\nsys.exit('ensurepip is disabled')\n")
    error = pod.run(Image().pip_install("x"), PYTHONPATH=f"{ROOT}{os.pathsep}{shadow}")["error"]
    assert "there is no pip in the pod, and its Python brings none" in error["message"]
    assert "install_cmd" in error["message"]
    assert "ensurepip is disabled" in error["output"]


def test_files_that_the_pod_has_lost_are_asked_for(pod: Pod) -> None:
    packed = pack_steps(Image().copy(__file__))
    assert packed is not None
    have = tuple(packed.files)
    error = pod.run(Image().copy(__file__), have=have)["error"]
    assert (error["type"], error["reason"]) == ("StartupError", "files-missing")
    assert "error" not in pod.run(Image().copy(__file__))
    said = pod.run(Image().copy(__file__, "again.py"), have=have)
    assert "error" not in said
    assert (pod.home / "again.py").read_text() == Path(__file__).read_text()


def test_a_folder_in_the_way_of_a_copy(pod: Pod) -> None:
    (pod.home / "x").mkdir()
    (pod.home / "x" / "test_steps.py").mkdir()
    error = pod.run(Image().copy(__file__, "x"))["error"]
    assert error["message"].startswith(f'the image step copy({json.dumps(__file__)}, "x") failed: ')
    assert error["exit_code"] is None


def _as_somebody_else(monkeypatch: pytest.MonkeyPatch, local: bool) -> Callable[[str, str], str]:
    """What a step's error says to who isn't root."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    steps = Steps("/nowhere")
    steps._local = local

    def hint(text: str, output: str) -> str:
        return steps._hint({"kind": "bash", "text": text}, 100, output)

    return hint


def test_who_is_not_root_is_told_of_run_as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    hint = _as_somebody_else(monkeypatch, local=False)
    for text in ("apt-get update", "command -v git || (apt update && apt install -y git)", "apk add git", "dnf -y x"):
        assert "run_as_root=True" in hint(text, "E: failed")
    for output in ("mkdir: cannot create directory '/opt/x': Permission denied", "Read-only file system"):
        assert "run_as_root=True" in hint("mkdir /opt/x", output)
    assert "run_as_root" not in hint("make", "failed")
    assert "run_as_root" not in _as_somebody_else(monkeypatch, local=True)("apt-get update", "E: failed")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "run_as_root" not in hint("apt-get update", "E: failed")


def test_what_root_did_is_done_again_in_a_new_container(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image().run_bash("echo ran")
    assert pod.run(image)["log"] == "ran\n"
    if os.geteuid() == 0:
        known = json.loads((pod.home / "steps" / "done.json").read_text())
        assert known["life"], "the container's own file system is part of what root changes"
        known["life"] = "another container"
        (pod.home / "steps" / "done.json").write_text(json.dumps(known))
        assert pod.run(image)["log"] == "ran\n"
    assert pod.run(image)["log"] == ""


# -- a worker ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def front() -> Iterator[FakeFront]:
    with FakeFront() as front:
        yield front


def _load(front: FakeFront, image: Image, target: Any, **meta: Any) -> Any:
    packed = pack_steps(image)
    assert packed is not None
    said, more = packed.load((), (), None, True)
    head = json.dumps({"how": "pickle", "init": False}).encode()
    buffers = [head, b"{}", b"", *serialization.dumps((target, None)), *more]
    full = {"version": "v", "kind": "fn", "name": "f", "image": said, **meta}
    record, data = front.frame(FrameType.LOAD, full, buffers)
    front.send(data)
    return record


def test_a_load_runs_the_steps_and_is_told(front: FakeFront) -> None:
    image = Image().run_bash("echo one; echo two >&2")
    _load(front, image, len, prepare=True).wait()
    with pytest.raises(Failed, match="no code is loaded"):
        front.call([1, 2])
    record = _load(front, image, len)
    record.wait()
    assert record.log == [], "they have been run for the preparation"
    assert front.call([1, 2]) == 2
    record = _load(front, image.run_bash("echo three"), len)
    record.wait()
    assert record.text(LogKind.STDOUT) == "three\n"
    assert record.text(LogKind.NOTICE) == 'kubetorch: run_bash("echo three")\n'
    events = [(e["event"], e.get("text")) for e in front.events if e["event"] != "ready"]
    assert events == [
        ("step", 'run_bash("echo one; echo two >&2")'),
        ("steps-done", None),
        ("step", 'run_bash("echo three")'),
        ("steps-done", None),
    ]


def test_a_cancel_reaches_the_running_step(front: FakeFront) -> None:
    record = _load(front, Image().run_bash("echo $$; sh -c 'echo $$; sleep 600'; true"), len)
    record.until(lambda r: len(r.log) and r.text(LogKind.STDOUT).count("\n") == 2)
    pids = [int(line) for line in record.text(LogKind.STDOUT).split()]
    record.cancel()
    with pytest.raises(Failed) as info:
        record.wait(5)
    assert info.value.type == "CallCancelledError"
    deadline = time.monotonic() + 2
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    front.deploy(len)
    assert front.call([1, 2]) == 2, "the worker itself goes on"


def test_nowhere_to_run_and_no_layer_of_a_failure(pod: Pod) -> None:
    with pytest.raises(CallError, match="no place to run in"):
        Steps("/proc/nowhere").run(
            [json.dumps({"digest": "x", "steps": [], "sent": [], "local": True}).encode()],
            None,  # type: ignore[arg-type]
        )
    said = pod.run(Image().run_bash("touch $VIRTUAL_ENV/x; exit 1"))
    assert said["error"]["exit_code"] == 1
    assert os.listdir(pod.home / "steps" / "layers") == []
