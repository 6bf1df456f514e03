"""The bundle: what travels to every pod, and whether that is enough for every Python that a pod may have."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import time
from importlib import metadata
from pathlib import Path

import pytest

from kubetorch_jupyter.backends.kubernetes import bundle as bundles
from kubetorch_jupyter.backends.kubernetes.bundle import LIMIT, make_bundle, the_bundle
from kubetorch_jupyter.errors import DeployError
from kubetorch_jupyter.shipping import pack
from pod_server.wire import F_ERROR, FrameType
from tests import promises
from tests.cells import Cells
from tests.pod_server.containers import Containers, User, on_a_loop, python
from tests.pod_server.containers import the_bundle as shared

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def unpack(directory: Path) -> Path:
    with tarfile.open(fileobj=io.BytesIO(shared().archive), mode="r:xz") as archive:
        archive.extractall(directory, filter="data")
    return directory


def interpreter(version: str) -> str:
    found = python(version)
    if found is None:
        pytest.skip(f"no Python {version} here")
    return found


def alone(interpreter: str, root: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code with the bundle on the path, and nothing of what is installed."""
    head = f"import sys; sys.path[:0] = [{str(root / 'ours')!r}, {str(root / 'needed')!r}]\n"
    return subprocess.run([interpreter, "-S", "-I", "-c", head + code], capture_output=True, text=True, check=False)


def test_it_fits_a_config_map_with_room_to_spare() -> None:
    begun = time.perf_counter()
    made = make_bundle()
    collected = time.perf_counter() - begun
    data = made.config_map_data
    packed = time.perf_counter() - begun - collected
    size = f"{len(made.archive) / 1000:.0f} KB of {LIMIT / 1000:.0f}"
    promises.measured.append(f"bundle: {size}; collected in {collected:.2f} s, packed in {packed:.2f} s")
    assert len(made.archive) < 650_000
    assert base64.b64decode(data["binaryData"]["bundle.tar.xz"]) == made.archive
    assert data["data"]["boot.py"] == Path(sys.modules["pod_server"].__file__ or "").with_name("boot.py").read_text()
    assert data.keys() == {"data", "binaryData"}


def test_the_same_content_has_the_same_bytes_and_name() -> None:
    one, two = make_bundle(), make_bundle()
    assert one.archive == two.archive
    assert one.hash == two.hash == shared().hash
    assert len(one.hash) == 16
    two.files["ours/pod_server/wire.py"] += b"#"
    assert bundles.Bundle(two.files, two.boot).hash != one.hash
    assert bundles.Bundle(one.files, one.boot + b"#").hash != one.hash
    assert str(one) == f"<Bundle {one.hash}: {len(one.files)} files>"


def test_nobody_owns_the_files_and_they_have_no_time() -> None:
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(shared().archive)), mode="r:") as archive:
        members = archive.getmembers()
    assert [m.name for m in members] == sorted(shared().files)
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}


def test_what_is_in_it_and_what_is_not() -> None:
    names = set(shared().files)
    assert {"ours/pod_server/wire.py", "ours/kubetorch_jupyter/callables.py", "needed/h11/__init__.py"} <= names
    assert "needed/typing_extensions.py" in names
    assert not [n for n in names if not n.endswith((".py", "/METADATA"))]
    for absent in (
        "/notebook/",
        "/backends/kubernetes/",
        "kubetorch_jupyter/__main__.py",
        "pod_server/boot.py",
        "tests",
    ):
        assert not [n for n in names if absent in n], absent


@on_a_loop
async def test_the_loop_goes_on_while_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "_made", None)
    late: list[float] = []
    done = asyncio.Event()

    async def tick() -> None:
        while not done.is_set():
            at = time.perf_counter()
            await asyncio.sleep(0.005)
            late.append(time.perf_counter() - at)

    ticker = asyncio.create_task(tick())
    one, two = await asyncio.gather(the_bundle(), the_bundle())
    data = await one.config_map()
    done.set()
    await ticker
    assert one is two is await the_bundle()
    assert data["binaryData"]
    assert sorted(late)[len(late) // 2] < 0.05


def test_a_package_that_is_missing_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(DeployError, match="cloudpickle travels to every pod"):
        make_bundle()


def test_a_package_without_a_list_of_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a system's packages are: then it is what an import finds."""
    monkeypatch.setattr(metadata.PathDistribution, "files", None)
    assert make_bundle().hash == shared().hash


def test_one_that_is_too_large_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_bundle()
    made.files["needed/large.py"] = os.urandom(LIMIT)
    with pytest.raises(DeployError, match="a ConfigMap can have"):
        _ = made.archive


@pytest.mark.parametrize("version", PYTHONS)
def test_every_module_of_the_pod_server_loads_alone(version: str, tmp_path: Path) -> None:
    code = """
import pkgutil, importlib
from pod_server import boot
if sys.version_info < (3, 11):
    boot._complete_library()
import pod_server
names = [m.name for m in pkgutil.walk_packages(pod_server.__path__, "pod_server.")]
for name in names:
    if name != "pod_server.worker.mpl_backend" and not name.endswith("__main__"):
        importlib.import_module(name)
assert not [n for n in sys.modules if n.startswith("kubetorch_jupyter")]
import cloudpickle, click, h11, uvicorn
from importlib.metadata import version
print(len(names), version("cloudpickle"), version("uvicorn"))
"""
    root = unpack(tmp_path)
    # In a bundle, boot.py lies outside of the package.
    (root / "ours" / "pod_server" / "boot.py").write_bytes(shared().boot)
    ended = alone(interpreter(version), root, code)
    assert ended.returncode == 0, ended.stderr
    count, *versions = ended.stdout.split()
    assert int(count) > 50
    assert versions == [metadata.version("cloudpickle"), metadata.version("uvicorn")]


@pytest.mark.parametrize("version", PYTHONS)
def test_the_front_starts_without_the_servers_command_line(version: str, tmp_path: Path) -> None:
    code = """
from pod_server import boot, front
if sys.version_info < (3, 11):
    boot._complete_library()
front.preload()
assert "uvicorn.server" in sys.modules
print([n for n in ("click", "multiprocessing", "uvicorn.supervisors") if n in sys.modules])
"""
    root = unpack(tmp_path)
    (root / "ours" / "pod_server" / "boot.py").write_bytes(shared().boot)
    ended = alone(interpreter(version), root, code)
    assert (ended.returncode, ended.stdout.strip()) == (0, "[]"), ended.stderr


@pytest.mark.parametrize("version", PYTHONS[1:])
def test_the_client_core_loads_alone(version: str, tmp_path: Path) -> None:
    """Without httpx, PyYAML, IPython or the client library of Kubernetes, and so a service can call a service."""
    code = """
import pkgutil, importlib
import kubetorch_jupyter as kt
for module in pkgutil.walk_packages(kt.__path__, "kubetorch_jupyter."):
    importlib.import_module(module.name)
from kubetorch_jupyter.transport import bulk, session
kt.install_as_kubetorch()
import kubetorch
print(kt.Compute(cpus="0.5"), kt.fn(len).__class__.__name__, kubetorch.Compute is kt.Compute, kt.config.backend)
"""
    ended = alone(interpreter(version), unpack(tmp_path), code)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "Compute(cpus=0.5) Fn True auto\n"


def test_the_client_core_says_that_it_needs_a_newer_python(tmp_path: Path) -> None:
    ended = alone(interpreter("3.10"), unpack(tmp_path), "import kubetorch_jupyter")
    assert ended.returncode == 1
    assert "ImportError: kubetorch_jupyter needs Python 3.11 or later, and this is 3.10" in ended.stderr


@pytest.mark.parametrize("version", PYTHONS)
@on_a_loop
async def test_a_session_on_every_python(version: str) -> None:
    """From the unpacked bundle to a result, in an interpreter that has nothing else; to another one goes the source."""
    cells = Cells()
    cells.run("def total(n):\n    import sys\n    return [*sys.version_info[:2], sum(range(n))]\n")
    bundle = pack(cells["total"], python=version)
    # What %load_ext asks for: it means nothing on 3.10, and is no reason to fail there.
    meta = {**bundle.meta, "version": "1", "worker": "1", "setup": ["kubetorch_jupyter.compat:install_as_kubetorch"]}
    with Containers(python=interpreter(version)) as pod:
        pod.start()
        me = User(pod)  # type: ignore[arg-type]
        await me.open()
        assert me.welcome["python"] == version
        me.seq += 1
        await me.send(FrameType.LOAD, me.seq, meta, [bytes(b) for b in bundle.buffers])
        loaded = await me.result(me.seq, 30)
        assert not loaded.flags & F_ERROR, loaded.meta
        me.seq += 1
        await me.send(FrameType.CALL, me.seq, {"ser": "json"}, [b"[[10], {}]"])
        result = await me.result(me.seq, 30)
        assert json.loads(bytes(result.buffers[0])) == [*map(int, version.split(".")), 45]
        await me.request("teardown")
        await me.cut()
        assert await asyncio.to_thread(pod.ended) == (0, 0)
