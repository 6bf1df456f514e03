"""Where a call's output goes: the cell that made the call, exact to the byte.

A call's log comes in on the portal, which must not wait for a terminal. So the portal only puts the pieces in line, and
one thread of this module writes them, each in the context of the call it belongs to: that is how a line finds its cell
(ipykernel keeps the cell in a context variable). A call's end stands in the same line, so whoever waits for the call
goes on when its last byte has been written.

Where a Jupyter server passes the output on, that thread keeps to a pace that the server lets through (`pacing`), and a
cell shows only so much of a call (`cap`); the pod keeps all of it.
"""

from .output import Output, open_output, set_output_factory
from .pacing import get_pace

__all__ = ["Output", "get_pace", "open_output", "set_output_factory"]
