"""The processes that fork: warm, single-threaded, and without a line of the user's code in them.

* `root`: one for each client process (and interpreter, and environment that only a new process can take on). It has
  imported what a pod needs, so that a pod costs two forks. ``python -m pod_server.zygote``
* `pod`: one for each pod. It forks the workers, reports how they end and kills what they leave. ``python -m
pod_server zygote``
* `child`: what a forked process must give up of its parent.
"""

from __future__ import annotations

from .pod import pod_zygote
from .root import root_zygote

__all__ = ["pod_zygote", "root_zygote"]
