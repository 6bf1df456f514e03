"""Promises in seconds: a test asserts three times the figure and prints what it measured.

The machines that run the tests have two shared cores; the figure itself is for a quiet one, and is
watched by people who read the printed lines.
"""

from __future__ import annotations

__all__ = ["promise"]


def promise(what: str, measured: float, promised: float, *, unit: str = "s", factor: float = 3.0) -> None:
    """Print what was measured beside what is promised, and hold three times that."""
    print(f"PROMISE {what}: {measured:.3f} {unit} (promised {promised:g} {unit})")
    assert measured <= factor * promised, f"{what}: {measured:.3f} {unit}, promised {promised:g} {unit}"
