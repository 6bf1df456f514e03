"""When Kubernetes says something, and when the notebook shows it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from urllib3.exceptions import HTTPError

from kubetorch_jupyter.progress import Status, View, set_view_factory
from tests.cluster.api import Api, ApiError

__all__ = ["Said", "Shown", "shown"]


class Shown:
    """What deploys of this process show, and when: the times are those of `time.monotonic`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.lines: list[tuple[float, str]] = []

    def add(self, text: str) -> None:
        with self._changed:
            self.lines.append((time.monotonic(), text))
            self._changed.notify_all()

    def first(self, *words: str) -> float | None:
        """When a line with all these words was first shown."""
        return next((at for at, text in list(self.lines) if all(word in text for word in words)), None)

    def wait(self, *words: str, timeout: float = 30.0) -> float:
        """Wait for it; gives when that was."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.first(*words) is not None, timeout):
                last = "\n".join(text for _, text in self.lines[-10:])
                raise AssertionError(f"{words} not shown within {timeout} s, but\n{last}")
        at = self.first(*words)
        assert at is not None
        return at


class _View:
    def __init__(self, shown: Shown) -> None:
        self._shown = shown

    def show(self, status: Status) -> None:
        self._shown.add(status.text)

    def note(self, text: str) -> None:
        self._shown.add(text)

    def pause(self) -> None:
        """Nothing is in the way."""

    def resume(self) -> None:
        """Nothing was taken away."""


@contextmanager
def shown() -> Iterator[Shown]:
    """Records instead of showing."""
    record = Shown()
    factory: Callable[[], View] = lambda: _View(record)  # noqa: E731
    set_view_factory(factory)
    try:
        yield record
    finally:
        set_view_factory(None)


class Said:
    """Looks several times a second at what a namespace's objects and events say, and notes when they first did.

    Parameters
    ----------
    api
        Of the namespace.
    words
        What is looked for: the beginning of an object's name → words that its JSON, or that of an event of it, has.
    """

    def __init__(self, api: Api, words: dict[str, str]) -> None:
        self._api = api
        self._words = dict(words)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="said", daemon=True)
        #: When each was said.
        self.at: dict[str, float] = {}

    def _watch(self) -> None:
        ended = False
        while not ended:
            # Once more at the end: what was said is still there when what it was said of has gone.
            ended = self._ended.wait(0.1)
            now = time.monotonic()
            try:
                named = self._look()
            except (ApiError, HTTPError):
                continue  # the API server is away: it says nothing
            for name, obj in named:
                text = json.dumps(obj, ensure_ascii=False).replace('\\"', '"')
                for begins, words in self._words.items():
                    if begins not in self.at and name.startswith(begins) and words in text:
                        self.at[begins] = now

    def _look(self) -> list[tuple[str, dict[str, Any]]]:
        events = self._api.request("GET", f"/api/v1/namespaces/{self._api.namespace}/events")["items"]
        named = [(event["involvedObject"]["name"], event) for event in events]
        return named + [(obj["metadata"]["name"], obj) for kind in ("Pod", "Job") for obj in self._api.list(kind)]

    def __enter__(self) -> Said:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(10)
