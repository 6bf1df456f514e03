"""Through a real Jupyter Server with its own limits: it drops nothing of what calls print."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

from tests.conftest import ROOT
from tests.kernel.harness import leftover_files, wait_until_gone
from tests.kernel.test_pacing import LEFT_OUT, LIMIT, SOURCE, lines
from tests.promises import record


@contextmanager
def notebook(url: str, token: str) -> Iterator[Served]:
    """A kernel behind the server, with one connection as a browser's."""
    headers = {"Authorization": f"token {token}"}
    body = {"path": "served.ipynb", "name": "served", "type": "notebook", "kernel": {"name": "python3"}}
    session = uuid.uuid4().hex
    with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
        kernel = http.post("/api/sessions", json=body).raise_for_status().json()["kernel"]["id"]
        address = f"{url.replace('http', 'ws', 1)}/api/kernels/{kernel}/channels?session_id={session}"
        with connect(address, additional_headers=headers, max_size=None, compression=None) as socket:
            yield Served(socket, session)
        http.delete(f"/api/kernels/{kernel}").raise_for_status()


class Served:
    """Runs cells over a server's WebSocket."""

    def __init__(self, socket: ClientConnection, session: str) -> None:
        self.socket = socket
        self.session = session

    def run(self, code: str, timeout: float = 60) -> dict[str, str]:
        """The text of each stream, and of the value as ``result``."""
        id = uuid.uuid4().hex
        header = {
            "msg_id": id,
            "username": "",
            "session": self.session,
            "msg_type": "execute_request",
            "version": "5.3",
        }
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        self.socket.send(json.dumps(message))
        texts: dict[str, list[str]] = {"stdout": [], "stderr": [], "result": [], "error": []}
        deadline = time.monotonic() + timeout
        idle = replied = False
        while not (idle and replied):
            got: dict[str, Any] = json.loads(self.socket.recv(timeout=max(0.1, deadline - time.monotonic())))
            if got["parent_header"].get("msg_id") != id:
                continue
            kind, content = got["msg_type"], got["content"]
            if kind == "stream":
                texts[content["name"]].append(content["text"])
            elif kind == "execute_result":
                texts["result"].append(content["data"]["text/plain"])
            elif kind == "error":
                texts["error"].append(f"{content['ename']}: {content['evalue']}")
            idle = idle or (kind == "status" and content["execution_state"] == "idle")
            replied = replied or kind == "execute_reply"
        return {name: "".join(parts) for name, parts in texts.items()}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    if importlib.util.find_spec("jupyter_server") is None:
        reason = "no Jupyter Server here: run `make setup`"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    token = secrets.token_hex(16)
    runtime, services = tmp_path / "runtime", tmp_path / "kt"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JPY_", "JUPYTER_", "KT_", "PYTEST_"))}
    env |= {
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_TOKEN": token,
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "PYTHONPATH": str(ROOT),
        "KT_RUNTIME_DIR": str(services),
    }
    arguments = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", f"--ServerApp.root_dir={tmp_path}"]
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyter_server", *arguments], env=env, cwd=tmp_path, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 60
        while not (infos := list(runtime.glob("jpserver-*.json"))):
            assert server.poll() is None, (tmp_path / "server.log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()
            time.sleep(0.05)
        while not (text := infos[0].read_text()):
            time.sleep(0.01)
        with notebook(json.loads(text)["url"].rstrip("/"), token) as found:
            yield found
    finally:
        server.terminate()
        server.wait(20)
    left = wait_until_gone(services, 5)
    assert not left
    assert not leftover_files(services)


def test_the_server_drops_nothing(served: Served) -> None:
    served.run(SOURCE)
    assert served.run("remote = await deploy(lines, flood)")["error"] == ""
    began = time.monotonic()
    first = served.run("remote['lines'](15_000, 93)\n'value'")
    assert first["stdout"] == lines(15_000, 93)
    assert first["stderr"] == ""
    assert first["result"] == "'value'"
    second = served.run("remote['flood'](40, 2)\n'value'")
    record(f"1.5 MB of lines, then 40 MB in 2 s, through a server: {time.monotonic() - began:.1f} s")
    assert "IOPub" not in second["stderr"]
    assert 0.85 * LIMIT < len(second["stdout"]) <= LIMIT
    assert len(LEFT_OUT.findall(second["stderr"])) == 1
    assert second["result"] == "'value'"
    log = served.run("text = kt.logs(kt.calls('flood')[-1]['id'])\ntext == ('\\x1b[31m' + 'z' * 99_994 + '\\n') * 400")
    assert log["result"] == "True"
    # Without the pace it does drop: so this test would see it.
    served.run("kt.config.iopub_data_rate_limit = kt.config.cell_log_limit = 0")
    dropped = served.run("remote['flood'](20, 0.5)")
    assert "IOPub data rate exceeded" in dropped["stderr"]
    assert len(dropped["stdout"]) < 10_000_000
