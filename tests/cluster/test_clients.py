"""More than one client, and services that call services, in an image without this project (core issue, case 17)."""

from tests.test_clients import (
    test_a_handle_of_one_loop_works_in_the_next,
    test_a_service_calls_a_service,
    test_from_name_knows_signatures,
    test_threads_of_one_client,
    test_two_processes_on_one_service,
)
