"""Stop, with the remote side behind the API server (core issue, case 7)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cluster.conftest import OnTheCluster
from tests.conftest import NEWEST, _factory
from tests.kernel.harness import Kernel
from tests.kernel.test_stop import (
    FUNCTIONS,
    NAMES,
    Marks,
    newest,
    stopped,
    test_a_call_that_cannot_be_interrupted_is_listed_as_cancelling,
    test_a_call_that_holds_the_interpreter_lock,
    test_stop,
    test_stop_at_any_moment,
    test_stop_of_what_can_be_interrupted,
    test_stop_while_deploying,
    test_twice_in_a_row,
    test_waiting_for_a_spawned_call_does_not_cancel_it,
)

#: All in one pod, whose files are then those of all.
DEPLOY = "\n".join(
    (
        "class Remote:",
        *(f"    {name} = staticmethod({name})" for name in NAMES),
        "remote = kt.cls(Remote).to(kt.Compute())",
        *(f"remote_{name} = remote.{name}" for name in NAMES),
        "def service_of(name): return remote.service",
    )
)


@pytest.fixture(scope="module")
def all_kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Kernel]]:
    """One, with all the functions deployed, for all tests of this module."""
    with contextmanager(_factory)(NEWEST, tmp_path_factory.mktemp("stop")) as make:
        kernel = make()
        for code in ("%load_ext kubetorch_jupyter", FUNCTIONS, DEPLOY):
            kernel.run(code)
        yield {NEWEST: kernel}


@pytest.fixture
def marks(place: OnTheCluster, newest: Kernel) -> Marks:
    """Where the functions leave their marks."""
    return Marks(place, eval(newest.run("remote.service_name").result or ""))
