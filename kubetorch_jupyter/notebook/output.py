"""Long texts in a cell: written by the cell itself, and no faster than the Jupyter server lets through."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

from ..streams import get_pace
from ..streams.pacing import STEP, is_published

__all__ = ["write_log"]


def write_log(pieces: Iterable[str]) -> int:
    """Write text to ``sys.stdout`` piece by piece as it comes, all of it; Stop ends it.

    What calls print meanwhile shares the pace with it. Outside of a Jupyter server there is none.

    Parameters
    ----------
    pieces
        Such as ``kt.logs(..., follow=True)`` gives; one string is ``[text]``.

    Returns
    -------
    int
        How many characters were written.
    """
    pace = get_pace()
    size = 0
    for piece in pieces:
        for at in range(0, len(piece), STEP):
            text = piece[at : at + STEP]
            while pace is not None and (delay := pace.delay()):
                time.sleep(delay)
            if pace is not None and is_published(sys.stdout):
                pace.write(sys.stdout, text, "write_log")
            else:
                sys.stdout.write(text)
            size += len(text)
        if pace is None or pace.flush_due():
            sys.stdout.flush()
    sys.stdout.flush()
    return size
