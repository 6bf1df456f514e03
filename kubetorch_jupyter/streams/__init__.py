"""Where a call's output goes: the cell that made the call, exact to the byte.

A call's log comes in on the portal, which must not wait for a terminal. So the portal only puts the pieces in line, and
one thread of this module writes them, each in the context of the call it belongs to: that is how a line finds its cell
(ipykernel keeps the cell in a context variable). A call's end stands in the same line, so whoever waits for the call
goes on when its last byte has been written.

Where a Jupyter server passes the output on, that thread keeps to a pace that the server lets through (`pacing`), and a
cell shows only so much of a call (`cap`); the pod keeps all of it.
"""

from .output import Output, midline, open_output, parent_message, set_output_factory, show_bundle
from .pacing import get_pace
from .writer import before_writing

__all__ = [
    "Output",
    "before_writing",
    "get_pace",
    "midline",
    "open_output",
    "parent_message",
    "set_output_factory",
    "show_bundle",
]
