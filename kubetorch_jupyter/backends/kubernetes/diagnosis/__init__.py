"""Why a service isn't up, or why its pod ended: from the cluster's own objects to our errors. Pure: no I/O.

`diagnose` looks at a revision that comes up; `expired` makes an error of what time hasn't cured; `death` says why a pod
that served calls is gone. All take the API's JSON as it is.
"""

from __future__ import annotations

from .death import Death, death
from .deploy import diagnose
from .finding import Diagnosis, Facts, LogWanted, expired
from .objects import event_lines, event_time, time_of

__all__ = [
    "Death",
    "Diagnosis",
    "Facts",
    "LogWanted",
    "death",
    "diagnose",
    "event_lines",
    "event_time",
    "expired",
    "time_of",
]
