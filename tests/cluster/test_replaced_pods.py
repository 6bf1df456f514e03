"""A pod in the place of a lost one has its code by itself, with nobody there who has it."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import kubetorch_jupyter as kt
from tests.cluster.conftest import User
from tests.cluster.images import Images
from tests.cluster.test_image_steps import image, index
from tests.podlet import Cells
from tests.wheels import Index

CELLS = """
class Model:
    def __init__(self, n): self.n = n
    def add(self):
        self.n += STEP
        return self.n

def size():
    return len(blob)

def look():
    import os, ktone
    return ktone.VERSION, open(os.environ["KT_STEPS_DIR"] + "/said.txt").read()

STEP = 5
"""


def test_pods_that_replace_lost_ones(
    image: kt.Image, index: Index, images: Images, user: User, capfd: pytest.CaptureFixture[str]
) -> None:
    """All of them at once: the Job's controller waits 12 s before it makes another.

    By its source, where the Python differs; all steps of its image, before the code; what was too large to be kept is
    sent again by who has it, and missing for others, who are told.
    """
    cells = Cells()
    cells.run(CELLS)
    cells.namespace["blob"] = os.urandom(2_000_000)
    steps = image.pip_install("ktone<2").copy(__file__, "copied").run_bash("test -s copied && ktone-say > said.txt")

    async def deploy() -> list[Any]:
        return list(
            await asyncio.gather(
                kt.cls(cells["Model"], name="by-source").to_async(_compute(images["python313"]), init_args=[1]),
                kt.fn(cells["look"], name="steps").to_async(_compute(steps)),
                kt.fn(cells["size"], name="large").to_async(_compute(images["examples"])),
            )
        )

    handles = asyncio.run(deploy())
    try:
        model, look, size = handles
        shown = capfd.readouterr()
        said = f'the code of "{user.name}-large" is too large to be kept in the cluster'
        assert (shown.out + shown.err).count(said) == 1
        assert (model.add(), size()) == (6, 2_000_000)
        assert look() == ("1.0", "ktone 1.0\n")
        # As another kernel has it.
        without_code = kt.Fn.from_name("large")
        assert without_code() == 2_000_000
        downloads = len(index.downloads)

        services = [handle.service_name for handle in handles]
        lost = {name: _pod(user, name)["metadata"] for name in services}
        for meta in lost.values():
            user.api.delete("Pod", meta["name"])
        # Not by a call, which would deploy it again from here.
        user.api.wait("new pods", lambda: all(_is_back(user, name, lost[name]["uid"]) for name in services), 90)

        assert index.downloads[downloads:] == ["ktone-1.0-py3-none-any.whl"]
        assert look() == ("1.0", "ktone 1.0\n")
        assert model.add() == 6, "constructed anew"
        with pytest.raises(kt.NotDeployedError, match="too large to be kept in the cluster; this handle has none"):
            without_code()
        assert size() == 2_000_000, "sent again"
        assert without_code() == 2_000_000
    finally:
        cells.clear()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda handle: handle.teardown(), handles))


def _compute(given: str | kt.Image) -> kt.Compute:
    return kt.Compute(image=given, cpus="0.1")


def _pod(user: User, service: str) -> dict[str, Any]:
    return user.api.list("Pod", f"kubetorch.dev/service={service}")[-1]


def _is_back(user: User, service: str, lost: str) -> bool:
    """Whether another pod is ready; one without its code isn't, but its containers run."""
    found = [pod for pod in user.api.list("Pod", f"kubetorch.dev/service={service}") if pod["metadata"]["uid"] != lost]
    if service.endswith("large"):
        states = [each["state"] for pod in found for each in pod["status"].get("containerStatuses", ())]
        return len(states) == 2 and all("running" in state for state in states)
    conditions = {each["type"]: each["status"] for pod in found for each in pod["status"].get("conditions", ())}
    return conditions.get("Ready") == "True"
