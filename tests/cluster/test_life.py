"""A service outlives its kernel, and another kernel takes it up again (core issue, case 10)."""

from tests.kernel.test_life import test_a_detached_service_survives_its_kernel
