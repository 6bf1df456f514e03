"""Ports that are chosen before they are bound, or bound again later."""

from __future__ import annotations

import secrets
import socket
from contextlib import ExitStack

__all__ = ["free_port"]


def free_port(*hosts: str) -> int:
    """A port that is free at these addresses (127.0.0.1); below those that the system gives to whoever asks for any."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with ExitStack() as stack:
            try:
                for host in hosts or ("127.0.0.1",):
                    stack.enter_context(socket.socket()).bind((host, port))
            except OSError:
                continue
        return port
