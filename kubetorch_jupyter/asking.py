"""What the pods of one service say of themselves, put together; a replica that doesn't answer is said to be so."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TypeVar

__all__ = ["call_rows", "event_rows", "heading", "one", "status_of", "text_of"]

T = TypeVar("T")

#: By rank: what each says, or why it says nothing.
Answers = Sequence[tuple[int, T | Exception]]


def one(answers: Answers[T]) -> T:
    """What the first says that says anything; there is one, or asking would have raised."""
    return next(answer for _, answer in answers if not isinstance(answer, Exception))


def call_rows(answers: Answers[list[dict[str, Any]]], many: bool) -> list[dict[str, Any]]:
    """Calls of all; of several replicas each with its ``replica``."""
    if not many:
        return one(answers)
    rows: list[dict[str, Any]] = []
    for rank, answer in answers:
        if isinstance(answer, Exception):
            answer = [{"id": "", "f": "", "state": "unreachable", "error": str(answer), "started": None}]
        rows += [{**row, "replica": rank} for row in answer]
    return rows


def event_rows(answers: Answers[list[dict[str, Any]]], many: bool) -> list[dict[str, Any]]:
    """Events of all, as they came; of several replicas each with its ``replica``."""
    if not many:
        return one(answers)
    rows: list[dict[str, Any]] = []
    for rank, answer in answers:
        if isinstance(answer, Exception):
            answer = [{"n": 0, "time": time.time(), "event": "unreachable", "text": str(answer)}]
        rows += [{**row, "replica": rank} for row in answer]
    return sorted(rows, key=lambda row: float(row["time"]))


def status_of(answers: Answers[dict[str, Any]], many: bool) -> dict[str, Any]:
    """The first one's; of several replicas with all of them as ``replicas``."""
    first = one(answers)
    if not many:
        return first
    rows = [
        {"state": "unreachable", "reason": str(answer), "replica": rank}
        if isinstance(answer, Exception)
        else {**answer, "replica": rank}
        for rank, answer in answers
    ]
    return {**first, "replicas": rows}


def heading(name: str, rank: int) -> str:
    """The line above what one of several replicas has written."""
    return f"==> {name}, replica {rank} <==\n"


def text_of(name: str, answers: Answers[str], many: bool) -> str:
    """Texts of all, each of several replicas under its own heading."""
    if not many:
        return one(answers)
    texts: list[str] = []
    for rank, answer in answers:
        if isinstance(answer, Exception):
            answer = f"[kubetorch: it can't be read: {answer}]\n"
        if answer:
            texts.append(heading(name, rank) + answer + ("" if answer.endswith("\n") else "\n"))
    return "".join(texts)
