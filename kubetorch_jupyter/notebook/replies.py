"""A mend for ipykernel 7.0 to 7.3, in which a cell may never begin.

There replies go out by the shell channel's socket, while requests come in by a stream on the same socket. To send uses
up the wake-up of a request that comes at that moment, of which the stream isn't told: it lies there until something
else comes. From 7.4 on replies go by the stream, too (ipykernel's pull request 1529, issue 1554), and so they do here.
"""

from __future__ import annotations

from typing import Any

__all__ = ["install", "uninstall"]

#: Whose socket was replaced, and the socket.
_mended: list[tuple[Any, Any]] = []


def install(ipython: Any) -> None:
    """Let replies go by the stream; a second time, and where nothing is to be mended, this changes nothing."""
    kernel = getattr(ipython, "kernel", None)
    thread, stream = getattr(kernel, "shell_channel_thread", None), getattr(kernel, "shell_stream", None)
    if thread is None or stream is None:
        return  # not ipykernel 7
    # The thread hands it on to its manager, which is made when the first message comes.
    owners: tuple[Any, ...] = (thread, getattr(thread, "_manager", None))
    for owner in owners:
        if getattr(owner, "_shell_socket", None) is stream.socket:
            _mended.append((owner, stream.socket))
            owner._shell_socket = stream


def uninstall() -> None:
    """Take it back."""
    while _mended:
        owner, socket = _mended.pop()
        owner._shell_socket = socket
