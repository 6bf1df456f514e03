"""What a Jupyter server and its kernels have written that shouldn't be there."""

from __future__ import annotations

import re

__all__ = ["faults_in"]

#: The log says other things as well.
_BAD = re.compile(r"^\[[EC] |Traceback|Exception|IOPub|Error", re.M)
#: Where an entry begins; what a kernel writes itself belongs to the one before.
_ENTRY = re.compile(r"^(?=\[|Exception ignored in)", re.M)
#: Of ipykernel: nobody handles a message that comes while the kernel ends, of which Python warns, into a stream whose
#: loop or socket is closed already.
_ENDING_KERNEL = re.compile(
    r"^Exception ignored in: <coroutine object Kernel\.\w+ .*\nTraceback .*\n(?: .*\n)+\w[\w.]*: .*\n?", re.M
)


def faults_in(log: str) -> list[str]:
    """Its entries that say that something went wrong, but for what ipykernel says of a message at its end."""
    return [entry for entry in _ENTRY.split(_ENDING_KERNEL.sub("", log)) if _BAD.search(entry)]
