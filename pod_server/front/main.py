"""The main of a front process: logging, the loop, the socket, and the order of its end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from typing import Any

from ..ending import has_ended
from . import server
from .app import App
from .params import FrontParams
from .pod import Pod

__all__ = ["preload", "run_front"]

_log = logging.getLogger(__name__)


def preload() -> None:
    """Import what a front needs that this module doesn't import by itself."""
    server.preload()
    try:
        import uvloop  # noqa: F401
    except ImportError:
        pass  # asyncio's own loop does as well, slower


def run_front(params: FrontParams) -> int:
    """Run a front until its pod ends; see `pod_server.front.run_front`."""
    os.makedirs(params.dir, mode=0o700, exist_ok=True)
    if params.containers and has_ended(params.dir):
        return 0  # started again after the service's end, by a system that hadn't noticed yet
    _log_to(os.path.join(params.dir, "front.log"), params.containers)
    try:
        sock = server.bind(params.host, params.port)
    except OSError as e:
        text = (
            f'service "{params.name}" can\'t listen on {params.host}:{params.port}: {e.strerror}; choose another port'
        )
        _log.error("%s", text)
        write_json(os.path.join(params.dir, "front.json"), {"pid": os.getpid(), "error": text})
        return 1
    loop = _new_loop(params.loop)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(_serve(params, sock))
    except Exception as e:
        _log.critical("the front failed", exc_info=True)
        try:
            write_json(
                os.path.join(params.dir, "front.json"), {"pid": os.getpid(), "error": f"{type(e).__name__}: {e}"}
            )
        except OSError:
            _log.error("and could not say so in front.json")
        return 1
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def _new_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind in ("auto", "uvloop"):
        try:
            import uvloop
        except ImportError:
            if kind == "uvloop":
                raise
        else:
            return uvloop.new_event_loop()
    return asyncio.new_event_loop()


async def _serve(params: FrontParams, sock: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    pod = Pod(params)
    http = server.Server(App(pod), sock, [(b"x-kubetorch-pod", params.incarnation.encode())], params.http)
    for number in (signal.SIGTERM, signal.SIGHUP):
        # A pod of a Job that is deleted or evicted is to be replaced, which one that ends with 0 isn't.
        status = 128 + number if params.containers else 0
        loop.add_signal_handler(number, pod.stop, f"signal {signal.Signals(number).name}", status)
    # A Ctrl-C in the terminal is meant for the client, which ends its pods if it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        await pod.open()
        await http.open()
        host, port = sock.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        said = {"pid": os.getpid(), "port": port, "incarnation": params.incarnation, "url": f"http://{shown}:{port}"}
        # Also that this front takes files: one of an older version would take a file's request for an empty payload.
        write_json(os.path.join(params.dir, "front.json"), {**said, "bulk": pod.bulk.dir})
        if params.ready_fd is not None:
            os.close(params.ready_fd)
        _log.info("listening on %s:%d", host, port)
        reason = await pod.stopped
        await pod.close(reason)
        await http.close(0.2)
    finally:
        pod.remove()
    return pod.status if params.containers else 0


def write_json(path: str, value: dict[str, Any]) -> None:
    """Write a file so that a reader sees all of it or nothing."""
    temporary = f"{path}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as f:
        json.dump(value, f)
    os.replace(temporary, path)


def _log_to(path: str, container: bool) -> None:
    """Send our log and uvicorn's warnings to a file, and nothing anywhere else; a container's go to its stderr."""
    handler: logging.Handler = logging.StreamHandler()
    if not container:
        handler = logging.FileHandler(path, delay=True, errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    for name in ("uvicorn.error", "uvicorn.access", "asyncio", "websockets"):
        logging.getLogger(name).setLevel(logging.WARNING)
