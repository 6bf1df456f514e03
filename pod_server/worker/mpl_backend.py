"""The matplotlib backend of pods: `show` displays the figures of the call that calls it, as PNG images.

Chosen by ``MPLBACKEND=module://pod_server.worker.mpl_backend``; imports matplotlib, so nobody else imports this.
"""

from __future__ import annotations

import builtins
import io
from typing import Any

from matplotlib._pylab_helpers import Gcf  # type: ignore[import-not-found, unused-ignore]
from matplotlib.backend_bases import FigureManagerBase  # type: ignore[import-not-found, unused-ignore]
from matplotlib.backends.backend_agg import FigureCanvasAgg  # type: ignore[import-not-found, unused-ignore]

from .output import current_log

__all__ = ["FigureCanvas", "FigureManager", "png", "show"]


def png(figure: Any) -> bytes:
    """The image of a figure."""
    out = io.BytesIO()
    if type(figure.canvas).__name__ == "FigureCanvasBase":
        FigureCanvasAgg(figure)
    figure.savefig(out, format="png", bbox_inches="tight")
    return out.getvalue()


class FigureManager(FigureManagerBase):  # type: ignore[misc, unused-ignore]
    """Remembers which call made a figure: pyplot's list of figures is everybody's."""

    def __init__(self, canvas: Any, num: int) -> None:
        super().__init__(canvas, num)
        self.log = current_log.get()

    def show(self) -> None:
        """Display this figure."""
        builtins.display(self.canvas.figure)  # type: ignore[attr-defined]

    @classmethod
    def pyplot_show(cls, *, block: bool | None = None) -> None:
        """Display the figures of this call, and close them, as in a notebook."""
        show()


class FigureCanvas(FigureCanvasAgg):  # type: ignore[misc, unused-ignore]
    """The canvas of figures that this backend makes."""

    manager_class = FigureManager


def show(*_: Any, **__: Any) -> None:
    """Display the figures of this call, and close them, as in a notebook."""
    log = current_log.get()
    for manager in Gcf.get_all_fig_managers():
        if getattr(manager, "log", None) is log:
            manager.show()
            Gcf.destroy(manager)
