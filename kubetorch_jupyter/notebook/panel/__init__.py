"""The panel of services: `panel` shows one in a notebook.

``looking`` (what there is) and ``doing`` (what can be done) use the public functions only and may take their time;
``views`` has the widgets; ``controller`` has the thread between them. ipywidgets is imported when a panel is made.
"""

from __future__ import annotations

from .controller import Panel, panel

__all__ = ["Panel", "panel"]
