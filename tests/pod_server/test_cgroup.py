"""What control groups say of memory, in the places where they are: inside a container and outside, both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from pod_server.zygote.cgroup import MemoryGroup


def group(root: Path, own: str, files: dict[str, str]) -> MemoryGroup:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    (root / "own").write_text(own)
    return MemoryGroup(str(root), str(root / "own"))


V1 = "9:name=systemd:/\n4:cpu,memory:/kubepods/pod1/c1\n0::/\n"
V2 = "0::/kubepods.slice/c1\n"
EVENTS = "low 0\nhigh 2\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"


@pytest.mark.parametrize(
    ("own", "files", "kills", "limit"),
    [
        # Version 1: all groups are there, or the container's own directory is mounted at the root.
        (
            V1,
            {
                "memory/memory.oom_control": "oom_kill 99\n",
                "memory/kubepods/pod1/c1/memory.oom_control": CONTROL,
                "memory/kubepods/pod1/c1/memory.limit_in_bytes": "1048576\n",
            },
            5,
            1 << 20,
        ),
        (V1, {"memory/memory.oom_control": CONTROL, "memory/memory.limit_in_bytes": "9223372036854771712\n"}, 5, None),
        # Version 2, with a namespace of groups (the path is /) and without.
        ("0::/\n", {"memory.events": EVENTS, "memory.max": "268435456\n"}, 2, 256 << 20),
        (V2, {"kubepods.slice/c1/memory.events": EVENTS, "kubepods.slice/c1/memory.max": "max\n"}, 2, None),
        (V2, {"memory.events": EVENTS, "memory.max": "1000\n"}, 2, 1000),
        # An old kernel doesn't count, and some systems have none of it.
        (V1, {"memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"}, 0, None),
        (V2, {}, 0, None),
        ("nonsense\n", {"memory.events": EVENTS}, 0, None),
    ],
)
def test_limit_and_kills(tmp_path: Path, own: str, files: dict[str, str], kills: int, limit: int | None) -> None:
    found = group(tmp_path, own, files)
    assert (found.kills(), found.limit()) == (kills, limit)


def test_the_count_is_read_anew(tmp_path: Path) -> None:
    found = group(tmp_path, V2, {"memory.events": "oom_kill 0\n"})
    assert found.kills() == 0
    (tmp_path / "memory.events").write_text("oom_kill 1\n")
    assert found.kills() == 1
