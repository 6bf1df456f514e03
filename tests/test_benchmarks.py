"""The benchmarks' own parts, with invented figures; what they measure is guarded in `tests.test_speed`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import limits, machine, memory, report, timing
from benchmarks.peers import PEERS, Kind, PeerError, environments, running
from benchmarks.picture import draw
from benchmarks.rows import Goal, Result, Row, measure
from tests.conftest import ROOT


def invented(**fields: Any) -> Row:
    given: dict[str, Any] = {
        "name": "W2",
        "what": "something",
        "unit": "ms",
        "limit": lambda _: 0.001,
        "ours": lambda _: 0.003,
        "goals": {"local": [Goal(4), Goal(1, against="Pyro5"), Goal(plus=0.002)]},
    }
    return Row(**{**given, **fields})


def summary(row: Row, **samples: list[float]) -> dict[str, Any]:
    result = Result(row, "local", samples={"limit": [0.001], "ours": [0.003, 0.002, 0.009], **samples})
    return result.summary()


def run_of(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"machine": machine.look(), "rounds": 3, "peers": {"Pyro5": "5"}, "rows": list(rows)}


def test_a_row_is_the_median_and_its_spread() -> None:
    row = summary(invented())
    assert (row["limit"], row["ours"], row["spread"]) == (1, 3, [2, 9])
    assert row["ours/limit"] == pytest.approx(3)


def test_goals_are_judged_where_they_can_be() -> None:
    without, beside = summary(invented()), summary(invented(), Pyro5=[0.004])
    assert [goal["reached"] for goal in without["goals"]] == [True, None, False]
    assert [goal["reached"] for goal in beside["goals"]] == [True, True, False]
    assert [goal["goal"] for goal in beside["goals"]] == ["≤ 4 × limit", "≤ Pyro5", "≤ 2 ms"]


def test_of_a_rate_more_is_better() -> None:
    row = invented(unit="calls/s", higher_is_better=True, goals={"local": [Goal(0.5), Goal(2, against="pyzmq")]})
    result = Result(row, "local", samples={"limit": [100], "ours": [60], "pyzmq": [40], "Ray": [10]}).summary()
    assert [goal["reached"] for goal in result["goals"]] == [True, False]
    assert (result["best peer"], result["ours/best peer"]) == ("pyzmq", 1.5)


def test_the_first_round_does_not_count() -> None:
    class Place:
        name = "local"

    ours = iter([9.0, 1.0, 2.0, 3.0])
    (result,) = measure([invented(ours=lambda _: next(ours))], [Place()], (), 3)  # type: ignore[list-item]
    assert result.samples["ours"] == [1, 2, 3]


def test_tables_and_picture(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- benchmarks: the last full run -->\nold\n<!-- benchmarks: its end -->\nafter\n")
    run = run_of(summary(invented(), Pyro5=[0.004]), summary(invented(name="W11 8 at once", goals={})))
    report.write_docs(page, run)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "≤ 4 × limit: **yes**" in text
    report.write_docs(page, run)
    assert page.read_text() == text
    for name in ("a.svg", "b.svg", "c.png"):
        draw(run, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_the_page_has_a_place_for_the_tables() -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    assert text.index("<!-- benchmarks: the last full run -->") < text.index("<!-- benchmarks: its end -->")


def test_the_command_reads_several_runs_and_says_when_a_goal_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "unset_what_changes_the_figures", lambda: None)
    one, other, tables = tmp_path / "1", tmp_path / "2", tmp_path / "3"
    one.write_text(json.dumps(run_of(summary(invented(name="W9", goals={})))))
    other.write_text(json.dumps(run_of(summary(invented()))))
    monkeypatch.setattr(sys, "argv", ["", "--read", str(one), str(other), "--markdown", str(tables)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 1
    assert tables.read_text().index("| W2 ") < tables.read_text().index("| W9 ")


def test_every_workload_is_described() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text()
    assert [name for name in command.WORKLOADS if f"| {name}" not in text] == []
    assert [kind.name for kind in PEERS if f"| {kind.name} |" not in text] == []


def test_the_standard_librarys_peer_answers() -> None:
    with running(PEERS[0]) as peer:
        assert 0 < peer.ask("first") < 60
        assert 0 < peer.ask("latency", 10) < 1
        assert peer.ask("in_flight", 100, 8) > 1
        assert 0 < peer.ask("line", 3) < 1
        assert 0 < peer.ask("lines", 1000) < 60
        with pytest.raises(PeerError, match="AttributeError"):
            peer.ask("nonsense")


def test_a_peer_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    with (
        pytest.raises(PeerError, match="No module named 'benchmarks.peers.with_nothing'"),
        running(Kind("X", "with_nothing")),
    ):
        pass


def test_a_peer_that_cannot_be_installed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    kind = Kind("X", "with_nothing", (f"{tmp_path}/no-such-folder",))

    class Place:
        name = "local"

    (result,) = measure([invented(question=("latency", 10))], [Place()], (kind,), 2)  # type: ignore[list-item]
    assert "pip can't install" in result.left_out["X"]
    assert set(result.samples) == {"limit", "ours"}


def test_lines_that_are_missing_are_an_error() -> None:
    lines = timing.Lines()
    lines.write("1\n2")
    with pytest.raises(RuntimeError, match="1 of 2 lines"):
        lines.wait(2, timeout=0)


def test_the_limits_measure_something() -> None:
    with limits.server() as server:
        assert 0 < server.latency(10) < 0.1
        assert server.in_flight(100, 8) > 10
        assert server.bulk(1 << 20) > 1 << 20
        assert 0 < server.redeploy(lambda n: lambda: n, 3) < 1
    assert 0 < limits.line_delay(3) < 0.1
    assert 0 < limits.lines(100, False) < 10
    assert 1 << 20 < limits.idle_memory(memory.proportional) < 64 << 20
