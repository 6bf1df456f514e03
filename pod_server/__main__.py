"""``python -m pod_server``: a whole pod as one command, or one of its processes.

::

    python -m pod_server --name train --port 8080 --token-file token    # front and zygote together
    python -m pod_server front --dir /run/kt --name train --port 8080 --token-file /etc/kt/token
    python -m pod_server zygote --dir /run/kt                           # workers of that front

As two containers of a Kubernetes pod, by ``boot.py`` (see there), which share the directory::

    front --dir /kubetorch/run/pod --name train --host 0.0.0.0 --port 32300 --token-file /kubetorch/secret/token
          --code-file /kubetorch/secret/code --containers [--ttl 14400] [--peers job-0.train:32300,job-1.train:32300]
    worker --dir /kubetorch/run/pod [--site /kubetorch/home/site]

``--rank`` is left to the variable JOB_COMPLETION_INDEX, which Kubernetes sets. Exit codes: 0 after the time to live or
a teardown, in both containers, so that their Job is complete; 143 after SIGTERM, so that it is not.

The token comes from a file or an inherited descriptor: environment and command line are for everybody to read.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import tempfile
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .front.params import FrontParams

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pod_server", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=("pod", "front", "zygote", "worker"), default="pod")
    parser.add_argument("--dir", help="the service directory; a whole pod makes one of its own if it is left out")
    parser.add_argument("--name", help="the service's name")
    token = parser.add_mutually_exclusive_group()
    token.add_argument("--token-file", help="file with the token; a whole pod makes a token if it is left out")
    token.add_argument("--token-fd", type=int, help="descriptor to read the token from")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--owner", type=int, action="append", default=[], help="pid of a process to end with")
    parser.add_argument("--detach", action="store_true", help="outlive the owners")
    parser.add_argument("--ttl", type=float, help="end after so many seconds without a call")
    parser.add_argument("--memory-limit", type=int, help="bytes that the user's code may use")
    parser.add_argument("--concurrency", type=int, help="calls that run at once")
    parser.add_argument("--containers", action="store_true", help="front and zygote are two containers of a pod")
    parser.add_argument("--code-file", help="file with the code to begin with; it may be missing")
    parser.add_argument(
        "--peers", type=_addresses, default=[], help="HOST:PORT of all replicas, in order of their rank"
    )
    parser.add_argument("--rank", type=int, default=_rank(), help="which of them this is ($JOB_COMPLETION_INDEX)")
    parser.add_argument("--site", help="directory where packages are installed for the worker")
    return parser


def _addresses(text: str) -> list[str]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    for address in found:
        host, _, port = address.rpartition(":")
        if not host or not port.isascii() or not port.isdigit():
            raise argparse.ArgumentTypeError(f"{address!r} is not HOST:PORT")
    return found


def _rank() -> int:
    text = os.environ.get("JOB_COMPLETION_INDEX", "")
    return int(text) if text.isascii() and text.isdigit() else 0


def _token(options: argparse.Namespace) -> str | None:
    if options.token_fd is not None:
        with open(options.token_fd, encoding="ascii") as f:
            return f.read().strip()
    if options.token_file is not None:
        with open(options.token_file, encoding="ascii") as f:
            return f.read().strip()
    return None


def _params(options: argparse.Namespace, dir: str, token: str) -> FrontParams:
    from .front.params import FrontParams

    return FrontParams(
        dir=dir,
        name=options.name,
        token=token,
        host=options.host,
        port=options.port,
        owners=options.owner,
        detach=options.detach,
        ttl=options.ttl,
        memory_limit=options.memory_limit,
        concurrency=options.concurrency,
        containers=options.containers,
        code_file=options.code_file,
        peers=options.peers,
        rank=options.rank,
    )


def _whole_pod(params: FrontParams) -> int:
    """Front and zygote as children of this process, until the front ends; SIGTERM and SIGINT end it."""
    from . import processes
    from .zygote.child import INHERIT
    from .zygote.root import Pod, Root, preload_front

    processes.become_subreaper()
    root = Root(None)
    preload_front()
    fields = asdict(params)
    token = fields.pop("token")
    pod = Pod(params.dir, fields, {}, [], None, -1, log=INHERIT)
    root.spawn(pod, token)

    def stop(*_: object) -> None:
        if pod.front:
            os.kill(pod.front, signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    told = False
    while params.dir in root.pods:
        root.once()
        if pod.ready and not told:
            told = True
            print(f"{pod.url} token in {os.path.join(params.dir, 'token')}", flush=True)
    status = pod.front_status or 0
    if status:
        print(f"pod_server: {pod.last_words or processes.status_text(status)}", file=sys.stderr)
    return 0 if status == 0 else 1


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; blocks. Returns the exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.part != "pod" and options.dir is None:
        parser.error("--dir is needed")
    if options.part == "zygote":
        from .zygote import pod_zygote

        return pod_zygote(os.path.abspath(options.dir))
    if options.part == "worker":
        from .zygote.container import container_zygote

        return container_zygote(os.path.abspath(options.dir), options.site)
    if options.name is None:
        parser.error("--name is needed")
    try:
        token = _token(options)
    except (OSError, UnicodeDecodeError) as e:
        parser.error(f"the token can't be read: {e}")
    if options.part == "front":
        if token is None:
            parser.error("--token-file or --token-fd is needed")
        from .front import run_front

        return int(run_front(_params(options, os.path.abspath(options.dir), token)) or 0)
    # In a directory of our own, since the front removes the one that its own is in if that is left empty.
    dir = os.path.abspath(options.dir or os.path.join(tempfile.mkdtemp(prefix="kubetorch-pod-"), "pod"))
    os.makedirs(dir, mode=0o700, exist_ok=True)
    if token is None:
        token = secrets.token_hex(32)
    with open(os.open(os.path.join(dir, "token"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
        f.write(token)
    return _whole_pod(_params(options, dir, token))


if __name__ == "__main__":
    sys.exit(main())
