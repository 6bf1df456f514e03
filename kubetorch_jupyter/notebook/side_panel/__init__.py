"""The kernel's side of JupyterLab's side panel: one function, `answer`, which takes one JSON text and gives another.

The panel finds it in ``sys.modules``, so that it imports nothing in a kernel that doesn't use this package: that this
module is there at all says that the extension was loaded once. ``answering`` reads the questions, ``watching`` has the
threads that look, and ``listening`` lets the panel ask without anything in the kernel noticing.
"""

from __future__ import annotations

from .answering import answer, install, uninstall

__all__ = ["answer", "install", "uninstall"]
