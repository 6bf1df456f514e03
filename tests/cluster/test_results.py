"""What comes back from a call through the API server, and what can't (core issue, case 14)."""

from tests.test_results import (
    service,
    test_a_256_mib_array_is_writable,
    test_a_call_that_does_not_block_takes_a_snapshot,
    test_a_long_text,
    test_a_result_that_cannot_be_pickled,
    test_a_result_that_cannot_be_unpickled_here,
    test_an_argument_that_cannot_be_pickled,
    test_large_items_of_a_generator,
    test_more_than_4_gib_is_refused,
    test_nested_arrays,
    test_none_and_nothing,
    test_other_serializations,
    test_sizes_around_the_inline_limit,
    test_small_arrays_are_writable,
)
