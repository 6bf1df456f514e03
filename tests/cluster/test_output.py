"""What pods print and show lands in the cell that called, through the API server too (core issue, case 6)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import NEWEST, _factory
from tests.kernel.harness import Kernel
from tests.kernel.speaker import SOURCE
from tests.kernel.test_output import (
    DEPLOY,
    test_a_call_belongs_to_the_cell_that_made_its_task,
    test_blocking_calls_beside_tasks_of_earlier_cells,
    test_displays_and_figures,
    test_eight_calls_from_four_cells,
    test_headless,
    test_what_a_thread_prints_after_its_call,
)


@pytest.fixture(scope="module", params=[NEWEST])
def speaking(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel with the functions deployed, for all tests of this module."""
    with contextmanager(_factory)(request.param, tmp_path_factory.mktemp("output")) as make:
        kernel = make()
        kernel.run(SOURCE)
        kernel.run(DEPLOY)
        yield kernel
