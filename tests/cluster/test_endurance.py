"""10,000 calls leave nothing behind in client, front and worker (core issue, case 15)."""

from __future__ import annotations

import pytest

from tests.test_endurance import test_descriptors_threads_and_memory_stay


@pytest.fixture
def counts() -> tuple[int, int]:
    """After how many calls it is looked at, twice."""
    return 5_000, 15_000
