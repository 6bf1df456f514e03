"""``boot.py``: what a container's first process does before it is a part of the pod."""

from __future__ import annotations

import fcntl
import glob
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pod_server.containers import python, write_bundle


def run(boot: Path, *arguments: str, python: str = sys.executable, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, str(boot), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], **env},
        cwd="/",
    )


def old_pythons() -> list[str]:
    found = glob.glob(os.path.expanduser("~/.pyenv/versions/*/bin/python"))
    versions = {p: os.path.basename(os.path.dirname(os.path.dirname(p))) for p in found}
    return [p for p, v in versions.items() if v.startswith(("2.7", "3.6", "3.7", "3.8", "3.9"))]


@pytest.fixture
def boot(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("old", old_pythons() or [pytest.param("", marks=pytest.mark.skip("no old Python here"))])
def test_an_old_python_says_so_in_one_line(boot: Path, old: str) -> None:
    ended = run(boot, "front", python=old)
    assert ended.returncode == 126
    assert ended.stderr.count("\n") == 1
    assert "pods need 3.10 or later" in ended.stderr
    assert "python_path=" in ended.stderr


def test_a_part_that_there_is_not(boot: Path) -> None:
    assert run(boot, "--lib", "/nonexistent").returncode == 2
    ended = run(boot, "back")
    assert ended.returncode == 2
    assert "'back'" in ended.stderr


def test_a_directory_that_can_not_be_written_to(boot: Path, tmp_path: Path) -> None:
    (tmp_path / "lib").write_text("a file")
    ended = run(boot, "--lib", str(tmp_path / "lib"), "worker", "--dir", str(tmp_path / "run"))
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "can't be unpacked" in ended.stderr


def test_a_damaged_bundle(boot: Path, tmp_path: Path) -> None:
    archive = boot.parent / "bundle.tar.xz"
    archive.write_bytes(archive.read_bytes()[:-1000])
    ended = run(boot, "--lib", str(tmp_path / "lib"), "front", "--help")
    assert ended.returncode == 1
    assert "can't be unpacked" in ended.stderr
    assert [n for n in os.listdir(tmp_path / "lib") if not n.startswith(".") and not n.endswith(".part")] == []


def test_two_at_once_unpack_once(boot: Path, tmp_path: Path) -> None:
    lib = tmp_path / "lib"
    command = [sys.executable, str(boot), "--lib", str(lib), "front", "--help"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    for process in running:
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "--token-file" in out
    [name] = [n for n in os.listdir(lib) if not n.startswith(".")]
    assert sorted(os.listdir(lib / name)) == ["needed", "ours"]


def test_one_that_was_killed_while_it_unpacked_leaves_nothing_half(boot: Path, tmp_path: Path) -> None:
    assert run(boot, "--lib", str(tmp_path / "lib"), "front", "--help").returncode == 0
    [name] = [n for n in os.listdir(tmp_path / "lib") if not n.startswith(".")]
    # What a killed one leaves: a part of it under another name.
    os.rename(tmp_path / "lib" / name, tmp_path / "lib" / f"{name}.part")
    os.unlink(tmp_path / "lib" / f"{name}.part" / "ours" / "pod_server" / "wire.py")
    assert run(boot, "--lib", str(tmp_path / "lib"), "front", "--help").returncode == 0
    assert (tmp_path / "lib" / name / "ours" / "pod_server" / "wire.py").exists()
    assert not (tmp_path / "lib" / f"{name}.part").exists()


@pytest.mark.parametrize("part", ["front", "worker"])
def test_it_can_be_ended_before_it_is_a_part(boot: Path, tmp_path: Path, part: str) -> None:
    """A container's first process ignores SIGTERM unless it handles it; any other dies of it, with another status."""
    lib = tmp_path / "lib"
    lib.mkdir()
    with (lib / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # so that it waits before it unpacks
        process = subprocess.Popen([sys.executable, str(boot), "--lib", str(lib), part, "--dir", str(tmp_path)])
        deadline = time.monotonic() + 10
        while f":{lib.joinpath('.lock').stat().st_ino} " not in _waiting(process.pid):
            assert time.monotonic() < deadline, "it doesn't wait for the lock"
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 143


def _waiting(pid: int) -> str:
    """The locks for which a process waits."""
    lines = Path("/proc/locks").read_text().splitlines()
    return "\n".join(line for line in lines if "->" in line and f" {pid} " in line)


def test_whose_packages_count_where() -> None:
    def path(part: str) -> list[str]:
        from pod_server import boot

        here = os.path.dirname(boot.__file__)
        before = [here, "/theirs", "/usr/lib/python3", "/site-packages"]
        code = f"""
import sys, os
from pod_server import boot
os.environ["PYTHONPATH"] = "/theirs"
sys.path[:] = {before!r}
boot._set_path("/root", {part!r})
print("\\n".join([*sys.path, os.environ.get("PYTHONPATH", "none")]))
"""
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=here + "/..")
        return out.stdout.split()

    assert path("front") == ["/root/ours", "/root/needed", "/usr/lib/python3", "/site-packages", "none"]
    assert path("worker") == ["/root/ours", "/theirs", "/usr/lib/python3", "/site-packages", "/root/needed", "/theirs"]


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_every_python_can_be_a_front(boot: Path, tmp_path: Path, version: str) -> None:
    interpreter = python(version)
    if interpreter is None:
        pytest.skip(f"no Python {version} here")
    ended = run(boot, "--lib", str(tmp_path / "lib"), "front", "--help", python=interpreter)
    assert ended.returncode == 0, ended.stderr
    assert "--code-file" in ended.stdout
