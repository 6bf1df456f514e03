"""The worker dies in its container, in every way and place (core issue, case 8)."""

from __future__ import annotations

import time

import pytest

import kubetorch_jupyter as kt
from tests.cluster.conftest import User
from tests.faults.test_worker_death import (
    LIMIT,
    MODEL,
    WAYS,
    both,
    cells_with,
    check,
    raiser,
    test_awaited_death,
    test_death_in_a_call,
    test_death_in_init_again_and_again,
    test_fails_its_own_call_only,
    test_fails_its_own_stream_only,
    test_init_that_raises_after_a_death,
    test_no_threads_are_left,
    test_outside_of_any_call,
    test_retries,
    test_spawned_calls_and_streams_hear_it_too,
    test_the_others_in_flight_hear_it_too,
)
from tests.promises import promise

HEALTHY = "class Model:\n    def add(self): return 1\n"


@pytest.mark.parametrize("how", WAYS)
def test_death_in_init_at_the_first_deploy(how: str, user: User) -> None:
    cells = cells_with(MODEL)
    # There in every pod, and so is a folder for what is written beside it.
    init_args = {"flag": "/tmp/.", "how": how}
    compute = kt.Compute(memory_limit=LIMIT)
    start = time.monotonic()
    with pytest.raises(kt.StartupError) as caught:
        kt.cls(cells["Model"], name="dies-at-once").to(compute, init_args=init_args, stream_logs=False)
    if how != "memory":
        promise(f".to says death by {how} in __init__, from nothing", time.monotonic() - start, 5.0)
    assert isinstance(caught.value.__cause__, kt.WorkerDiedError)
    check(caught.value.__cause__, how)
    assert "dies-at-once" in str(caught.value)
    assert not [info for info in kt.services() if "dies-at-once" in info.name]
    # Once the cause is gone, the same name works.
    cells.run(HEALTHY)
    with kt.cls(cells["Model"], name="dies-at-once").to(compute, stream_logs=False) as model:
        assert model.add() == 1
