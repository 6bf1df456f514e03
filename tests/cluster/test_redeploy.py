"""Redeploy over the open session, without a new pod (core issue, case 11)."""

from __future__ import annotations

import pytest

from tests.test_redeploy import (
    test_a_class_that_fails_leaves_the_old_class_constructed_anew,
    test_a_failed_redeploy_leaves_the_old_function,
    test_redeploys_under_64_calls_in_flight,
    test_unchanged_code_keeps_the_instance,
)


@pytest.fixture
def rounds() -> int:
    """How often it is deployed anew."""
    return 25
