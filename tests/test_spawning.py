"""The first process of a client's local pods: started before the client imports what it deploys with, never in vain.

Each test is a client of its own, since only a process's first deploy does that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.local import ROOT, runtime

__all__ = ["runtime"]  # a fixture

_CLIENT = """
import json, os, sys, threading
import kubetorch_jupyter as kt
from importlib.abc import MetaPathFinder

def children():
    "The pids of this process's children, also of those that have ended and that nobody has waited for."
    from pod_server import processes
    return [p.pid for p in processes.table().values() if p.parent == os.getpid()]

class Watch(MetaPathFinder):
    "Looks at the children when what a deploy needs is about to be imported, and may interrupt that."
    seen = None
    interrupts = False
    def find_spec(self, name, path=None, target=None):
        if name == "kubetorch_jupyter.delivery":
            Watch.seen = children()
            if Watch.interrupts:
                Watch.interrupts = False
                raise KeyboardInterrupt
        return None

sys.meta_path.insert(0, Watch())

def root():
    "The pid of the root zygote that is used."
    from kubetorch_jupyter.backends.local import local_backend
    [task] = local_backend()._zygotes.values()
    return task.result()._process.pid

def f():
    return 1

answer = None
"""


def client(code: str, **env: str) -> Any:
    """What a process that runs it has in ``answer`` at the end."""
    text = f"{_CLIENT}{textwrap.dedent(code)}\nprint(json.dumps(answer))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_it_starts_before_anything_else_is_imported_and_is_the_one_that_is_used(runtime: Path) -> None:
    seen, used, left, result = client("""
        handle = kt.fn(f, name="t-first").to(kt.Compute(), stream_logs=False)
        answer = Watch.seen, root(), children(), handle()
        handle.teardown()
    """)
    assert seen == [used] == left
    assert result == 1


def test_it_starts_for_an_awaited_deploy_too(runtime: Path) -> None:
    seen, used = client("""
        import asyncio
        handle = asyncio.run(kt.fn(f, name="t-first").to_async(kt.Compute(), stream_logs=False))
        answer = Watch.seen, root()
        handle.teardown()
    """)
    assert seen == [used]


def test_nothing_starts_without_a_deploy() -> None:
    assert (
        client("""
        kt.Compute(cpus=1), kt.fn(f), kt.cls(Watch), kt.fn
        answer = children()
        kt.fn(f).to(kt.Compute(), dryrun=True)
        answer += Watch.seen
    """)
        == []
    )


@pytest.mark.parametrize(
    ("compute", "env"),
    [("kt.Compute()", {"KT_BACKEND": "kubernetes"}), ('kt.Compute(namespace="elsewhere")', {})],
    ids=["set", "asked-for"],
)
def test_nothing_starts_for_a_cluster(compute: str, env: dict[str, str], tmp_path: Path) -> None:
    code = f"""
        try:
            kt.fn(f).to({compute}, stream_logs=False)
        except kt.KubetorchError as e:
            answer = Watch.seen, children()
    """
    assert client(code, **env, KUBECONFIG=str(tmp_path / "none")) == [[], []]


@pytest.mark.parametrize("stopped", ["interrupt", "failure"])
def test_a_deploy_that_does_not_need_it_any_more_leaves_nothing(stopped: str, runtime: Path) -> None:
    """Stopped while it imports, or refused when it is packed; the next one comes up as if it were the first."""
    seen, left, again, used = client(f"""
        lock = threading.Lock()
        Watch.interrupts = {stopped == "interrupt"}
        try:
            kt.fn(f if Watch.interrupts else lambda: lock, name="t-first").to(kt.Compute(), stream_logs=False)
        except (KeyboardInterrupt, kt.SerializationError):
            answer = Watch.seen, children()
        handle = kt.fn(f, name="t-first").to(kt.Compute(), stream_logs=False)
        answer = *answer, Watch.seen, root()
        handle.teardown()
    """)
    assert len(seen) == 1
    assert left == []
    if stopped == "interrupt":
        assert again == [used] != seen


def test_a_live_service_that_is_used_needs_none(runtime: Path) -> None:
    assert (
        client("""
        import subprocess
        there = "import kubetorch_jupyter as kt; kt.fn(len).to(kt.Compute(detach=True), stream_logs=False)"
        subprocess.run([sys.executable, "-c", there], check=True)
        handle = kt.fn(len).to(kt.Compute(detach=True), stream_logs=False)
        answer = children()
        handle.teardown()
    """)
        == []
    )


def test_it_has_the_variables_that_only_a_new_process_can_take_on_and_no_others(runtime: Path) -> None:
    seen, used, environment = client("""
        compute = kt.Compute(env_vars={"MALLOC_ARENA_MAX": "2", "PASSWORD": "secret"})
        handle = kt.fn(f, name="t-first").to(compute, stream_logs=False)
        answer = Watch.seen, root(), open(f"/proc/{root()}/environ").read()
        handle.teardown()
    """)
    assert seen == [used]
    assert "MALLOC_ARENA_MAX=2" in environment.split("\0")
    assert "PASSWORD" not in environment


def test_a_forked_child_does_not_take_it(runtime: Path) -> None:
    ended, taken, ran = client("""
        from kubetorch_jupyter.backends.spawning import spawned_early, take
        with spawned_early(kt.Compute()):
            pid = os.fork()
            if not pid:
                os._exit(take(os.environ) is not None)
            ended = os.waitpid(pid, 0)[1]
            spawned = take(os.environ)
            answer = ended, spawned.process.pid in children(), spawned.process.poll() is None
        spawned.end()
    """)
    assert (ended, taken, ran) == (0, True, True)


def test_two_deploys_share_it(runtime: Path) -> None:
    """The first to end doesn't take it from the other."""
    alive, left = client("""
        from kubetorch_jupyter.backends.spawning import spawned_early
        with spawned_early(kt.Compute()):
            with spawned_early(kt.Compute()):
                pass
            answer = [children()]
        answer.append(children())
    """)
    assert len(alive) == 1
    assert left == []


def test_after_a_shutdown_the_next_deploy_is_as_the_first(runtime: Path) -> None:
    early = client("""
        from kubetorch_jupyter.backends import local
        from kubetorch_jupyter.backends.spawning import spawned_early
        answer = []
        kt.fn(f).to(kt.Compute(), stream_logs=False)
        for _ in range(2):
            before = children()
            with spawned_early(kt.Compute()):
                answer.append(len(children()) - len(before))
            local.shutdown()
    """)
    assert early == [0, 1]


def test_the_users_code_has_all_of_uvicorn(runtime: Path) -> None:
    """The front's lacks its command line."""
    assert client("""
        def look():
            import uvicorn
            return uvicorn.run.__module__, uvicorn.Server.__module__
        with kt.fn(look, name="t-first").to(kt.Compute(), stream_logs=False) as handle:
            answer = handle()
    """) == ["uvicorn.main", "uvicorn.server"]


def test_what_is_wrong_with_its_command_line_is_said() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pod_server.zygote", "--control", "3", "--owner", "me"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "--control FD --owner PID:START" in done.stderr
