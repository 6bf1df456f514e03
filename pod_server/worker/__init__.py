"""The worker: the process that runs the user's code, and nothing else of the pod.

Who does what in it, a thread each:

* the main thread runs the user's asyncio event loop (``process``, ``coroutines``);
* the i/o thread reads frames and acts on them; it never runs user code and never waits for a write (``process``,
  ``dispatch``);
* the pool's threads run ``def`` functions (``pool``, ``threads``);
* a flusher sends gathered output, a pump reads the pipes of descriptors 1 and 2 and of child processes (``output``,
  ``pipes``);
* on demand: one thread interrupts cancelled calls (``interrupt``), one watches for a blocked event loop (``watchdog``).

Everybody writes to the front through one ``link``.
"""

from __future__ import annotations

from .params import WorkerParams
from .process import run_worker

__all__ = ["WorkerParams", "run_worker"]
