"""Calls: from a handle's arguments to the value or exception that its pod answers, and the `Call` that users hold."""

from __future__ import annotations

from .failures import decode_error, load_error, startup_error
from .generators import AsyncItems, Items, iterate, iterate_async
from .handle import Call, attach_call, recent_calls, spawn
from .invocation import invoke, invoke_async
from .log import LogPieces, find_row, follow_log, read_log
from .mapping import Mapping, map_calls
from .target import CallOptions, Target

__all__ = [
    "AsyncItems",
    "Call",
    "CallOptions",
    "Items",
    "LogPieces",
    "Mapping",
    "Target",
    "attach_call",
    "decode_error",
    "find_row",
    "follow_log",
    "invoke",
    "invoke_async",
    "iterate",
    "iterate_async",
    "load_error",
    "map_calls",
    "read_log",
    "recent_calls",
    "spawn",
    "startup_error",
]
