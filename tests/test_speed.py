"""Nothing has become slow: ratios to limits of the same run (``benchmarks/README.md``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from benchmarks import guard, machine, places
from benchmarks.guard import ROWS, check
from benchmarks.rows import Goal, Row
from tests.promises import record


@pytest.fixture(scope="module")
def local() -> Iterator[places.Local]:
    """Pods of this machine, without settings of the tests' environment that would change the figures."""
    with pytest.MonkeyPatch.context() as patch:
        for name in machine.SETTINGS:
            patch.delenv(name, raising=False)
        with places.local() as place:
            yield place


@pytest.mark.timed
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_it_has_not_become_slow(row: Row, local: places.Local) -> None:
    found = check(row, local)
    record(str(found))
    assert found.within


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that fails does so at once."""
    monkeypatch.setattr(guard, "_SECONDS", 0.0)


_INVENTED = Row("W0", "nothing", "ms", lambda _: 0.001, lambda _: 0.0021, goals={"local": [Goal(1)]})


@pytest.mark.usefixtures("briefly")
def test_the_guard_fails_at_twice_the_goal(local: places.Local) -> None:
    assert not check(_INVENTED, local).within
    assert check(replace(_INVENTED, ours=lambda _: 0.0019), local).within


@pytest.mark.usefixtures("briefly")
def test_where_a_goal_is_not_reached_the_last_full_run_counts(
    local: places.Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_reached", lambda: {"W0": 2.0})
    assert check(replace(_INVENTED, ours=lambda _: 0.0039), local).within
    assert not check(replace(_INVENTED, ours=lambda _: 0.0041), local).within


@pytest.mark.usefixtures("briefly")
def test_the_guard_fails_below_half_of_a_rate(local: places.Local) -> None:
    rate = replace(_INVENTED, unit="calls/s", limit=lambda _: 100, higher_is_better=True, goals={"local": [Goal(0.5)]})
    assert not check(replace(rate, ours=lambda _: 24), local).within
    assert check(replace(rate, ours=lambda _: 26), local).within


def test_noise_in_some_rounds_is_no_failure(local: places.Local) -> None:
    measured = iter([0.009, 0.005, 0.008, 0.0019])
    found = check(replace(_INVENTED, ours=lambda _: next(measured)), local)
    assert found.within
    assert found.rounds == 4
