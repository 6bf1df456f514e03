"""No cell is lost that comes while the kernel sends a reply."""

from __future__ import annotations

import time

from jupyter_client.session import Session

from .harness import Kernel

#: Sends each reply only when the client is gone, and the next request has come.
SLOW = """
import time
class Slow:
    def __init__(self, way):
        self.way = way
    def send_multipart(self, message):
        time.sleep(0.4)
        self.way.send_multipart(message)
manager = get_ipython().kernel.shell_channel_thread.manager
name = "_shell_stream" if hasattr(manager, "_shell_stream") else "_shell_socket"
setattr(manager, name, Slow(getattr(manager, name)))
"""


def _ask_and_leave(kernel: Kernel) -> None:
    """What Jupyter Server does when a notebook is opened: it asks, and doesn't wait for the answer."""
    given = kernel.manager.session
    socket = kernel.manager.connect_shell()
    Session(key=given.key, signature_scheme=given.signature_scheme).send(socket, "kernel_info_request")
    time.sleep(0.2)  # until the kernel has it, and no longer than the reply takes
    socket.close(linger=0)


def test_a_cell_that_comes_while_a_reply_goes_out(kernel: Kernel) -> None:
    kernel.run("%load_ext kubetorch_jupyter")
    version = kernel.run("import ipykernel; ipykernel.version_info[:2]").result
    if version != "(6, 31)":
        kernel.run(SLOW)
    for n in range(3):
        _ask_and_leave(kernel)
        assert kernel.run(f"{n} + 1", timeout=10).result == str(n + 1)
    if version == "(7, 3)":
        kernel.run("manager._shell_socket = manager._shell_socket.way\n%unload_ext kubetorch_jupyter")
        assert kernel.run("type(manager._shell_socket).__name__").result == "'Socket'"
