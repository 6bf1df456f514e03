"""The matplotlib backend of pods: `show` displays the figures of the call that calls it, as PNG images.

Chosen by ``MPLBACKEND=module://pod_server.worker.mpl_backend``; imports matplotlib, so nobody else imports this.
"""

from __future__ import annotations

import builtins
import io
from collections import OrderedDict
from collections.abc import Iterator
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


class _Figures:
    """pyplot's figures by their number, each call's its own: pyplot draws on the one that was made last."""

    def __init__(self) -> None:
        self._of_no_call: OrderedDict[int, Any] = OrderedDict()

    def _mine(self) -> OrderedDict[int, Any]:
        log = current_log.get()
        if log is None:
            return self._of_no_call
        if log.figures is None:
            log.figures = OrderedDict()
        return log.figures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mine(), name)

    def __getitem__(self, num: int) -> Any:
        return self._mine()[num]

    def __setitem__(self, num: int, manager: Any) -> None:
        self._mine()[num] = manager

    def __delitem__(self, num: int) -> None:
        del self._mine()[num]

    def __contains__(self, num: object) -> bool:
        return num in self._mine()

    def __iter__(self) -> Iterator[int]:
        return iter(self._mine())

    def __len__(self) -> int:
        return len(self._mine())


_pyplot: Any = Gcf
_pyplot.figs = _Figures()


class FigureManager(FigureManagerBase):  # type: ignore[misc, unused-ignore]
    """A figure of pyplot's."""

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
    for manager in Gcf.get_all_fig_managers():
        manager.show()
        Gcf.destroy(manager)
