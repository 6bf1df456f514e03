"""``kt.services()`` and the commands on a cluster: what waits and for what, other namespaces, short names."""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import SimpleNamespace

import pytest
from IPython.core.error import UsageError

import kubetorch_jupyter as kt
from kubetorch_jupyter.notebook.commands import Commands
from tests.cluster.conftest import User


async def while_it_waits(user: User) -> str:
    """The table's text while a service waits for GPUs that no node has."""
    compute = kt.Compute(gpus="100")
    deploy = asyncio.create_task(kt.fn(len, name="waits").to_async(compute, stream_logs=False))
    try:
        deadline = time.monotonic() + 20
        while True:
            table = await asyncio.to_thread(kt.services)
            found = [info for info in table if info.name == f"{user.name}-waits"]
            if found and found[0].detail:
                assert found[0].state == "pending"
                return repr(table)
            assert time.monotonic() < deadline, table
            await asyncio.sleep(0.1)
    finally:
        deploy.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await deploy


def test_a_service_that_waits_says_for_what(user: User) -> None:
    text = asyncio.run(while_it_waits(user))
    assert "WAITS FOR" in text
    assert "nvidia.com/gpu" in text
    # A deploy that was cancelled has given control back at once, and clears up.
    user.wait_until_empty()


def test_commands_know_short_names_and_other_namespaces(
    user: User, other_user: User, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = Commands(SimpleNamespace(user_ns={}), lambda: None)
    theirs = kt.Compute(kubeconfig_path=str(other_user.kubeconfig), namespace=other_user.namespace)
    with kt.fn(len, name="mine").to(kt.Compute()), kt.fn(len, name="theirs").to(theirs):
        assert [info.name for info in commands.services([])] == [f"{user.name}-mine"]
        with pytest.raises(kt.KubernetesCredentialsError, match=other_user.namespace):
            commands.services(["--namespace", other_user.namespace])
        with pytest.raises(UsageError, match="no service 'theirs'"):
            commands.down(["theirs"])
        commands.logs(["mine", "--namespace", user.namespace])
        commands.down(["mine"])
        assert f'"{user.name}-mine" has ended' in capsys.readouterr().out
        assert kt.services() == []
