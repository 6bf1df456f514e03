"""Code in a process of its own, where whatever is left behind at its end shows."""

from __future__ import annotations

import subprocess
import sys

_PATIENT = """
import logging
logging.getLogger("asyncio").addFilter(lambda record: not record.msg.startswith("Executing "))
"""


def run_strictly(code: str) -> subprocess.CompletedProcess[str]:
    """Run it in the development mode, with every warning an error.

    What asyncio says there of callbacks that took longer than 0.1 s is left out: that is the machine's load.
    """
    python = [sys.executable, "-X", "dev", "-W", "error", "-c", _PATIENT + code]
    return subprocess.run(python, capture_output=True, text=True, timeout=60)
