"""Promises in seconds: a test asserts three times the figure and prints what it measured.

The machines that run the tests have two shared cores; the figure itself is for a quiet one, and is
watched by people who read the printed lines.
"""

from __future__ import annotations

__all__ = ["measured", "promise", "record"]

#: What was measured in this run, for the summary at its end.
measured: list[str] = []


def record(line: str) -> None:
    """Print a measurement, now and in the summary."""
    print(line)
    measured.append(line)


def promise(what: str, value: float, promised: float, *, unit: str = "s", factor: float = 3.0) -> None:
    """Print what was measured beside what is promised, and hold three times that."""
    record(f"{what}: {value:.3f} {unit} (promised {promised:g} {unit})")
    assert value <= factor * promised, f"{what}: {value:.3f} {unit}, promised {promised:g} {unit}"
