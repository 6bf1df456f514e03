"""How fast it is, measured beside a limit and a peer in the same run; ``python -m benchmarks`` or ``make bench``."""
