"""What a deploy does where the cluster itself is in trouble."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from kubetorch_jupyter.backends.kubernetes import rollout
from kubetorch_jupyter.backends.kubernetes.rollout import Rollout
from kubetorch_jupyter.errors import KubernetesCredentialsError
from tests.kubernetes.plans import plan


class Space:
    """A namespace where the deletion of a Job is refused so many times."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.removed: list[str] = []

    async def delete_job(self, job: dict[str, Any], *, grace: int | None = None) -> None:
        self.refusals -= 1
        if self.refusals >= 0:
            raise KubernetesCredentialsError("may not delete jobs")
        self.removed.append("Job")

    async def delete_rest(self, service: str) -> None:
        self.removed.append("rest")


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def __call__(self, phase: Any, detail: str = "") -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize(("refusals", "removed"), [(0, True), (3, True), (10_000, False)])
def test_what_was_made_is_removed_with_persistence(
    refusals: int, removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And without an error of its own, which would hide why the deploy failed."""
    monkeypatch.setattr(rollout, "_LOOK", 0.01)
    monkeypatch.setattr(rollout, "_PERSISTENCE", 0.3)
    space, told = Space(refusals), Notes()
    made = Rollout(cast(Any, space), plan(), cast(Any, None), "token", told, job={"metadata": {"name": "train-1"}})
    asyncio.run(made.discard())
    assert space.removed == (["Job", "rest"] if removed else [])
    assert told.notes == ([] if removed else ['something of "alice-train" is left in the cluster: may not delete jobs'])
