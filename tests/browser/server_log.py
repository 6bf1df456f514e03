"""What a Jupyter server and its kernels have written that shouldn't be there."""

from __future__ import annotations

import re

from tests.local import ROOT

__all__ = ["faults_in"]

#: The log says other things as well.
_BAD = re.compile(r"^\[[EC] |Traceback|Exception|IOPub|Error", re.M)
#: Where an entry begins; what a kernel writes itself belongs to the one before.
_ENTRY = re.compile(r"^(?=\[|Exception ignored in)", re.M)
_OURS = tuple(f"{ROOT / name}/" for name in ("kubetorch_jupyter", "pod_server"))


def faults_in(log: str) -> list[str]:
    """Its entries that say that something went wrong, but for tracebacks without a line of ours.

    Kernels that are ended or restarted, and sockets that are closed while they are being opened, give Jupyter some of
    its own, differently each time: of a message that comes while the kernel's loop is closed already, of a lock that
    isn't made yet, of a channel that is gone.
    """
    return [
        entry
        for entry in _ENTRY.split(log)
        if _BAD.search(entry) and ("Traceback" not in entry or any(path in entry for path in _OURS))
    ]
