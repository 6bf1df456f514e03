"""How a deploy or a map is going, as one line that changes: what it says, when it is shown again, and where.

A `Line` belongs to the cell that began it. It is described anew a few times a second on the portal, and shown by a
`View` in a thread of its own, because a terminal may make a writer wait. Which view it is depends on the place: the
ones for text are here, the notebook's is set by ``%load_ext`` (`set_view_factory`).
"""

from .deploying import DeployProgress, Phase
from .line import Line, await_shown, set_view_factory, wait_shown
from .mapping import MapProgress
from .status import State, Status, View
from .text import text_view

__all__ = [
    "DeployProgress",
    "Line",
    "MapProgress",
    "Phase",
    "State",
    "Status",
    "View",
    "await_shown",
    "set_view_factory",
    "text_view",
    "wait_shown",
]
