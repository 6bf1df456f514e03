"""Many calls at once, through the API server (core issue, case 5)."""

from tests.test_concurrency import cells, test_64_def_calls_at_once, test_1000_async_def_calls_at_once
