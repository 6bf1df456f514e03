"""The local backend with real processes: pods come up, are found, and go, and nothing is left of them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import kubetorch_jupyter as kt
from kubetorch_jupyter.backends import get_backend, local
from kubetorch_jupyter.backends.base import ServiceSpec
from kubetorch_jupyter.backends.local import LocalBackend, local_backend
from kubetorch_jupyter.backends.zygotes import RootZygote, ZygoteEnded
from kubetorch_jupyter.transport.endpoint import Endpoint
from kubetorch_jupyter.transport.portal import get_portal
from pod_server import processes
from tests.kernel.harness import leftover_files
from tests.local import Client, Lines, alive, apply, delete, find, pids, record_of, runtime, wait_gone
from tests.promises import promise
from tests.waiting import until

__all__ = ["runtime"]  # a fixture

# -- up, found, down ---------------------------------------------------------------------------------------------------


def test_up_found_again_and_down(runtime: Path) -> None:
    endpoint = apply("t-one", memory_limit="1Gi")
    assert endpoint.url.startswith("http://127.0.0.1:")
    assert endpoint.gone is not None
    assert endpoint.gone(False) is None
    assert endpoint.token not in repr(endpoint)
    assert len(endpoint.token) == 64
    info = find("t-one")
    assert info is not None
    assert (info.name, info.backend, info.state, info.detached) == ("t-one", "local", "running", False)
    assert info.owner["user"] == "tester"
    assert info.resources["memory_limit"] == "1Gi"
    assert info.endpoint == endpoint
    assert [s.name for s in get_portal().run(local_backend().list())] == ["t-one"]
    assert apply("t-one") == endpoint, "a service that lives is not started again"
    record = record_of("t-one")
    assert record.path.stat().st_mode & 0o777 == 0o700
    assert (record.path / "token").stat().st_mode & 0o777 == 0o600
    named = pids(record)
    delete("t-one")
    assert not alive(named)
    assert leftover_files(runtime) == []
    assert endpoint.gone(False) is not None
    assert find("t-one") is None
    delete("t-one")  # that there is none is as good


@pytest.mark.timed
def test_how_long_it_takes(runtime: Path) -> None:
    begun = time.perf_counter()
    apply("t-0")
    first = time.perf_counter() - begun
    imports = "import time; t = time.perf_counter(); import uvicorn, uvloop, httptools; print(time.perf_counter() - t)"
    bare = time.perf_counter()
    subprocess.run([sys.executable, "-c", imports], check=True, stdout=subprocess.DEVNULL)
    print(f"importing what a front needs: {time.perf_counter() - bare:.3f} s")
    promise("first local pod", first, 0.6)
    times = []
    for n in range(1, 6):
        begun = time.perf_counter()
        apply(f"t-{n}")
        times.append(time.perf_counter() - begun)
    promise("next local pod, median of 5", sorted(times)[2], 0.04)


@pytest.mark.timed
def test_a_deploy_leaves_the_loop_free(runtime: Path) -> None:
    """No step of it holds up the portal, on which other calls wait."""

    async def lag() -> float:
        spec = ServiceSpec("t-lag", kt.Compute())
        task = asyncio.ensure_future(local_backend().apply(spec, Lines()))
        worst = 0.0
        while not task.done():
            begun = time.perf_counter()
            await asyncio.sleep(0.001)
            worst = max(worst, time.perf_counter() - begun)
        await task
        return worst

    lags = []
    for _ in range(3):  # a pause of this process alone is no lag of the deploy's
        lags.append(get_portal().run(lag()))
        local.shutdown()
    promise("lag of the portal while a first pod starts, best of 3", min(lags), 0.02, factor=5)


def test_many_at_once(runtime: Path) -> None:
    async def all_of_them() -> list[Endpoint]:
        specs = [ServiceSpec(f"t-{n}", kt.Compute()) for n in range(5)]
        revisions = await asyncio.gather(*(local_backend().apply(spec, Lines()) for spec in specs))
        return [endpoint for revision in revisions for endpoint in revision.endpoints]

    assert len({endpoint.url for endpoint in get_portal().run(all_of_them())}) == 5


def test_a_pod_is_replaced_only_for_what_cannot_change(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KT_LOCAL_GPUS", "1")
    first = apply("t-one", cpus=1, memory_limit="1Gi", concurrency=2)
    assert apply("t-one", cpus=2, memory_limit="2Gi", concurrency=1, env_vars={"A": "1"}) == first
    info = find("t-one")
    assert info is not None
    assert dict(info.resources) == {"cpus": 2, "memory_limit": "2Gi"}, "what it asks for now"
    lines = Lines()
    second = apply("t-one", lines, gpus=1)
    assert second.url != first.url
    assert any("gets a new pod: gpus 0 → 1" in text for text in lines.texts)
    assert record_of("t-one").service["devices"] == ["0"]
    lines = Lines()
    apply("t-one", lines, env_vars={"LD_BIND_NOW": "1"})
    assert any("LD_BIND_NOW changed" in text for text in lines.texts)
    front = record_of("t-one").front
    assert front is not None
    # The root zygote has the variable from its start, as the dynamic linker needs it.
    assert b"LD_BIND_NOW=1" in Path(f"/proc/{front[0]}/environ").read_bytes()


def test_gpus_are_shared_out(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KT_LOCAL_GPUS", "3")
    apply("t-a", gpus=1)
    with Client("apply('t-b', gpus=1); tell(registry.read('t-b').service['devices']); sys.stdin.readline()") as other:
        assert other.read() == ["1"]
        kept = apply("t-c")
        with pytest.raises(kt.ResourceNotAvailableError, match=r'1 of 3 are free .*"t-a", "t-b"'):
            apply("t-d", gpus=2)
        with pytest.raises(kt.ResourceNotAvailableError):
            apply("t-c", gpus=2)
        assert apply("t-c") == kept, "a service that can't get what is asked for stays as it was"
        delete("t-a")
        apply("t-d", gpus=2)
        assert record_of("t-d").service["devices"] == ["0", "2"]


def test_a_client_that_forks(runtime: Path) -> None:
    """The child has neither the parent's pods nor its zygote, whichever way it ends."""
    endpoint = apply("t-one")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = int(bool(local._backends))
            local.shutdown()
            local._at_exit()
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert endpoint.gone is not None
    assert endpoint.gone(False) is None
    apply("t-two")
    code = """
        apply("t-three"); pid = os.fork()
        if pid == 0: sys.exit(0)
        os.waitpid(pid, 0); tell(registry.read("t-three").state); apply("t-four"); tell(registry.read("t-four").state)
        sys.stdin.readline()
    """
    with Client(code) as other:
        assert [other.read(), other.read()] == ["running", "running"]


def test_where_the_backend_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_backend(kt.Compute()) is get_backend(kt.Compute(gpus=1))
    monkeypatch.setenv("KUBECONFIG", "/nowhere/config")  # it lies there, and decides nothing
    assert isinstance(get_backend(kt.Compute()), LocalBackend)
    for named in ({"namespace": "ml"}, {"kubeconfig_path": "/nowhere/config"}):
        backend = get_backend(kt.Compute(**named))
        assert (backend.name, backend.here) == ("kubernetes", False)
        assert backend is get_backend(kt.Compute(**named)), "one for each cluster and namespace"
    monkeypatch.setenv("KT_BACKEND", "kubernetes")
    assert get_backend(kt.Compute()).name == "kubernetes"
    monkeypatch.setenv("KT_BACKEND", "local")
    assert isinstance(get_backend(kt.Compute(namespace="ml")), LocalBackend)


def test_a_kubeconfig_that_lies_there_is_named_once(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("apiVersion: v1\ncurrent-context: lab-cluster\nkind: Config\n")
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/missing:{tmp_path}/config")
    monkeypatch.setattr(local_backend(), "_told", False)
    lines = Lines()
    apply("t-one", lines)
    assert [t for t in lines.texts if "lab-cluster" in t and "KT_BACKEND=kubernetes" in t]
    lines = Lines()
    apply("t-two", lines)
    assert not [t for t in lines.texts if "lab-cluster" in t]


def test_the_token_is_nowhere_to_be_read(runtime: Path) -> None:
    endpoint = apply("t-one")
    for pid, _ in pids(record_of("t-one")):
        for name in ("environ", "cmdline"):
            assert endpoint.token.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert local_backend().token_hint("t-one") == f"$(cat '{runtime}/t-one/token')"
    assert endpoint.token not in (runtime / "t-one" / "front.log").read_text()


def test_events(runtime: Path) -> None:
    apply("t-one")
    delete("t-one")

    async def collect() -> list[str]:
        return [event.reason async for event in local_backend().watch("t-one")]

    assert get_portal().run(collect())[-3:] == ["Starting", "Started", "Deleted"]


def test_files_of_the_user_do_not_get_in_the_way(runtime: Path, tmp_path: Path) -> None:
    """A notebook beside a ``random.py`` or a ``uvicorn.py`` works."""
    for name in ("random", "json", "uvicorn", "asyncio", "cloudpickle", "pod_server"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('this is the user's file')\n")
    code = f"""
        os.chdir({str(tmp_path)!r}); sys.path.insert(0, ""); sys.path.insert(0, {str(tmp_path)!r})
        os.environ["PYTHONPATH"] = {str(tmp_path)!r}
        tell(apply("t-one").url)
    """
    with Client(code) as other:
        assert other.read().startswith("http")


def test_a_runtime_directory_with_a_long_path(
    runtime: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Unix socket's path has 107 bytes; the service is elsewhere then, and leaves nothing there either."""
    long = tmp_path_factory.mktemp("x" * 100)
    monkeypatch.setenv("KT_RUNTIME_DIR", str(long))
    apply("t-one")
    record = record_of("t-one")
    assert record.path.is_symlink()
    assert len(str(record.dir)) < 90
    assert find("t-one") is not None
    delete("t-one")
    assert not record.dir.exists()
    assert leftover_files(long) == []
    apply("t-two")
    record = record_of("t-two")
    assert record.front is not None
    os.kill(record.front[0], signal.SIGKILL)
    wait_gone(pids(record), record.path)
    assert not record.dir.exists()


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("KT_LOCAL_PORT", str(port))
        with pytest.raises(
            kt.StartupError, match=rf'service "t-one" .*:{port}: Address already in use; choose another'
        ):
            apply("t-one")
    assert leftover_files(runtime) == []
    assert apply("t-one").url.endswith(f":{port}")
    monkeypatch.setenv("KT_LOCAL_PORT", "http")
    with pytest.raises(kt.StartupError, match="KT_LOCAL_PORT='http'"):
        apply("t-two")


def test_a_runtime_directory_that_cannot_be_used(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "below", tmp_path / "file", Path("/proc/kt")):
        monkeypatch.setenv("KT_RUNTIME_DIR", str(path))
        with pytest.raises(kt.StartupError, match="KT_RUNTIME_DIR"):
            apply("t-one")


def test_a_full_disk(runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path)], capture_output=True)
    if made.returncode:
        pytest.skip("a small file system can't be mounted here")
    try:
        with contextlib.suppress(OSError), open(tmp_path / "filler", "wb", 0) as f:
            while True:
                f.write(b"x" * 4096)
        monkeypatch.setenv("KT_RUNTIME_DIR", str(tmp_path))
        with pytest.raises(kt.StartupError, match="No space left on device; make room there"):
            apply("t-one")
        assert leftover_files(tmp_path) == ["filler"]
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_another_machines_service(runtime: Path) -> None:
    path = runtime / "t-one"
    path.mkdir()
    said = {"machine": {**processes.machine(), "host": "elsewhere"}, "deployer": [1, 1]}
    (path / "service.json").write_text(json.dumps(said))
    with pytest.raises(kt.StartupError, match="another machine or container"):
        apply("t-one")
    with pytest.raises(kt.DeployError, match="another machine or container"):
        delete("t-one")
    assert path.exists()
    shutil.rmtree(path)


def test_a_machine_without_fork(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    with pytest.raises(kt.StartupError, match=r"local pods need Linux.*KT_BACKEND=kubernetes"):
        apply("t-one")


@pytest.mark.parametrize("after", [0.0, 0.002, 0.01, 0.05, 0.2])
def test_a_deploy_that_is_cancelled_leaves_nothing(runtime: Path, after: float) -> None:
    async def cancel() -> None:
        task = asyncio.ensure_future(local_backend().apply(ServiceSpec("t-one", kt.Compute()), Lines()))
        await asyncio.sleep(after)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
            await local_backend().delete("t-one")

    get_portal().run(cancel())
    deadline = time.monotonic() + 5
    while leftover_files(runtime):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert find("t-one") is None


def test_a_zygote_that_died_is_replaced(runtime: Path) -> None:
    apply("t-one")
    [task] = local_backend()._zygotes.values()
    os.kill(task.result()._process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while not task.result().closed:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first = find("t-one")
    assert first is not None, "its pods live on"
    apply("t-two")
    delete("t-one")


def test_a_zygote_that_dies_before_it_hears_of_a_deploy(runtime: Path) -> None:
    apply("t-one")
    [task] = local_backend()._zygotes.values()
    zygote = task.result()
    os.kill(zygote._process.pid, signal.SIGSTOP)
    deploying = concurrent.futures.ThreadPoolExecutor().submit(apply, "t-two")
    until(lambda: zygote._waiting)
    os.kill(zygote._process.pid, signal.SIGKILL)
    deploying.result(20)
    [task] = local_backend()._zygotes.values()
    assert task.result() is not zygote
    delete("t-one")
    delete("t-two")


def test_zygotes_that_die_again_and_again(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    async def request(self: object, op: str, *args: Any, **fields: Any) -> None:
        tries.append(op)
        raise ZygoteEnded("it has ended")

    monkeypatch.setattr(RootZygote, "request", request)
    with pytest.raises(kt.StartupError, match="it has ended") as caught:
        apply("t-one")
    assert type(caught.value) is kt.StartupError
    assert tries.count("spawn_pod") == 2
    assert leftover_files(runtime) == []


def test_a_launch_timeout(runtime: Path) -> None:
    with pytest.raises(kt.ServiceTimeoutError, match=r"0.001 s.*launch_timeout"):
        apply("t-one", launch_timeout=0.001)
    assert leftover_files(runtime) == []


def test_a_launch_timeout_of_the_settings(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KT_LAUNCH_TIMEOUT", "0.001")
    with pytest.raises(kt.ServiceTimeoutError, match=r"0.001 s.*launch_timeout"):
        apply("t-one")
    assert leftover_files(runtime) == []
