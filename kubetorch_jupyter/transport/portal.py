"""The portal: one daemon thread whose event loop owns every connection of this process."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["Portal", "get_portal"]

T = TypeVar("T")


class Portal:
    loop: asyncio.AbstractEventLoop

    def submit(self, coro: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]: ...
    def run(self, coro: Coroutine[Any, Any, T], timeout: float | None = None) -> T: ...
    async def wrap(self, coro: Coroutine[Any, Any, T]) -> T: ...
    def call(self, fn: Callable[..., object], *args: Any) -> None: ...


def get_portal() -> Portal:
    raise NotImplementedError
