"""How often containers have ended, and how: recorded on a real cluster, and what the kubelet says in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubetorch_jupyter.backends.kubernetes import lives
from kubetorch_jupyter.backends.kubernetes import space as module
from kubetorch_jupyter.backends.kubernetes.space import Space
from kubetorch_jupyter.transport.portal import get_portal

from .apiserver import ApiServer, kubeconfig, opened
from .recordings import recorded

RUNNING = {"running": {"startedAt": "2026-11-27T10:00:00Z"}}
ENDED = {"terminated": {"exitCode": 137, "reason": "Error", "finishedAt": "2026-11-27T10:00:00Z"}}
WAITING = {"waiting": {"reason": "ContainerCreating"}}
HELD = {"waiting": {"reason": "CrashLoopBackOff"}}


def pod(state: dict[str, Any], last: dict[str, Any] | None = None, restarts: int = 0) -> dict[str, Any]:
    status = {"name": "worker", "restartCount": restarts, "state": state, "lastState": last or {}}
    return {"metadata": {"name": "p"}, "spec": {}, "status": {"containerStatuses": [status]}}


@pytest.mark.parametrize(
    ("seen", "ends", "down", "held"),
    [
        ({"metadata": {}, "status": {}}, 0, False, False),
        (pod(WAITING), 0, False, False),
        (pod(RUNNING), 0, False, False),
        (pod(ENDED), 1, True, False),
        (pod(RUNNING, ENDED, 1), 1, False, False),
        (pod(ENDED, ENDED, 1), 2, True, True),
        (pod(HELD, ENDED, 1), 2, True, True),
        (pod(HELD, ENDED, 0), 1, True, True),
        (pod(RUNNING, ENDED, 2), 2, False, False),
    ],
)
def test_ends(seen: dict[str, Any], ends: int, down: bool, held: bool) -> None:
    assert lives.ends(seen, "worker") == ends
    assert lives.is_down(seen, "worker") is down
    assert lives.is_held_back(seen, "worker") is held
    # The other container's life goes on as it was.
    assert lives.front_life(seen) == 0


def test_recorded_ends() -> None:
    [oom] = recorded("died-oom")["pods"]
    assert lives.ends(oom, "worker") >= 1
    told = lives.worker_end(oom)
    assert (told["cause"], told["limit"]) == ("oom", 128 << 20)
    assert "128Mi" in told["message"]
    [killed] = recorded("died-killed")["pods"]
    assert lives.front_life(killed) >= 1


def test_how_a_worker_s_container_ended() -> None:
    assert lives.worker_end(pod(RUNNING)) == {}
    told = lives.worker_end(pod(RUNNING, ENDED, 1))
    assert (told["cause"], told["signal"]) == ("signal", 9)
    left = {"terminated": {"exitCode": 3, "reason": "Error"}}
    assert lives.worker_end(pod(HELD, left))["exit_code"] == 3


def test_a_result_that_comes_late_is_told_of_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls die with one worker; the connection breaks between their results."""
    monkeypatch.setattr(module, "_EXPLAINED", 0.3)
    with ApiServer() as server, opened(kubeconfig(tmp_path / "config", server.url)) as cluster:
        space = Space(cluster, "team")

        def told() -> Any:
            return get_portal().run(space.explain("p", "train"), 10)

        ended = pod(RUNNING, ENDED, 1)
        ended["metadata"]["labels"] = {"kubetorch.dev/service": "train"}
        server.put("pods", ended)
        first = told()
        assert first["signal"] == 9
        assert told() == first
        monkeypatch.setattr(module, "_TOLD", 0.0)
        assert told() == {}
        get_portal().run(space.cache.close(), 10)
