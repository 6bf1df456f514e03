"""pacing and cap: how fast output may be written, and how much of it a cell shows."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubetorch_jupyter.streams.cap import Allowance, Cap
from kubetorch_jupyter.streams.pacing import STEP, Pace, get_pace
from pod_server.wire import LogKind


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def write_for(pace: Pace, clock: Clock, seconds: float, text: str) -> list[tuple[float, int]]:
    """Write as much as the pace allows; gives when, and how many bytes of messages."""
    written = []
    end = clock.now + seconds
    while clock.now < end:
        if delay := pace.delay():
            clock.now += max(delay, 1e-6)  # or rounding would keep it where it is
            continue
        pace.write(io.StringIO(), text, ("cell", len(written)))
        written.append((clock.now, len(text) + 800))
    return written


def most(written: list[tuple[float, int]], window: float) -> int:
    """What came at most within so many seconds."""
    return max(sum(size for at, size in written if start <= at <= start + window) for start, _ in written)


@pytest.mark.parametrize(("rate", "window"), [(1_000_000, 3.0), (200_000, 3.0), (5_000_000, 1.0)])
def test_no_window_has_more_than_two_thirds_of_the_limit(rate: int, window: float) -> None:
    clock = Clock()
    pace = Pace(rate, 1000, window, clock)
    written = write_for(pace, clock, 10, "x" * 10_000)
    clock.now += 5
    written += write_for(pace, clock, 10, "x" * 10_000)  # after a rest not more than at first
    assert most(written, window) <= 0.67 * rate * window + STEP
    assert most(written, window) >= 0.6 * rate * window, "and not much less"


def test_a_rate_of_zero_is_no_limit() -> None:
    pace = Pace(0, 0, 3.0, Clock())
    for _ in range(1000):
        assert pace.delay() == pace.delay(display=True) == 0
        pace.write(io.StringIO(), "x" * 10_000, ("cell", "stdout"))
        pace.displayed()


def test_displays_count_as_messages_and_a_little_may_go_ahead() -> None:
    clock = Clock()
    pace = Pace(1_000_000, 1000, 3.0, clock)
    shown = 0
    while not pace.delay(display=True):
        pace.displayed()
        shown += 1
    assert 450 <= shown <= 452
    assert pace.delay() == 0
    pace.write(io.StringIO(), "x" * 500_000, ("cell", "stdout"))
    assert pace.delay() > 0
    assert pace.delay(ahead=True) == 0
    pace.write(io.StringIO(), "x" * 200_000, ("cell", "stdout"))
    assert pace.delay(ahead=True) > 0


def test_what_is_going_to_be_sent_anyway_is_not_flushed() -> None:
    class Stream(io.StringIO):
        """As ipykernel's: a write plans to send, if that isn't planned already."""

        _flush_pending = False

        def write(self, text: str) -> int:
            self._flush_pending = True
            return super().write(text)

    clock = Clock()
    pace, stream = Pace(1_000_000, 1000, 3.0, clock), Stream()
    pace.write(stream, "x", "stdout")
    assert pace.flush_due(), "the first line is seen at once"
    stream._flush_pending = False
    pace.write(stream, "x", "stdout")
    assert not pace.flush_due(), "not so soon again"
    clock.now += 1
    pace.write(stream, "x", "stdout")
    assert not pace.flush_due(), "that is planned"
    stream._flush_pending = False
    pace.write(stream, "x", "stdout")
    assert pace.flush_due()


def test_without_a_kernel_nothing_is_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")
    assert get_pace() is None


def test_a_kernel_inside_a_kernel_is_headless() -> None:
    """As with papermill in a cell: the name is the outer kernel's."""
    code = (
        "import os, sys\n"
        "from kubetorch_jupyter.streams import pacing\n"
        "pacing.is_published = lambda file: True\n"
        "print(pacing.get_pace() is None)\n"
    )
    inner = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {code!r}], check=True)"
    for name, expected in (("a.ipynb", "True"), (None, "False")):
        # In the second case the outer process has no name: it is as a server.
        env = {**os.environ, **({"JPY_SESSION_NAME": name} if name else {})}
        program = inner if name else inner.replace("check=True", "check=True, env={**__import__('os').environ, **more}")
        program = f"more = {{'JPY_SESSION_NAME': 'a.ipynb'}}\n{program}"
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


# -- the cap -----------------------------------------------------------------------------------------------------------

SEQUENCE = re.compile(r"\x1b\[[0-9;]*m")


def run(cap: Cap, pieces: list[bytes], kind: LogKind = LogKind.STDOUT) -> tuple[bytes, list[int]]:
    shown, cuts = b"", []
    for piece in pieces:
        data, cut = cap.take(kind, piece)
        shown += data
        if cut is not None:
            cuts.append(len(shown))
            shown += cut.closing
    return shown, cuts


TEXT = st.lists(
    st.sampled_from(["plain", "é", "漢", "🎉", "\n", "\x1b[31m", "\x1b[38;5;208m", "\x1b[0m", " "]), max_size=200
)


@settings(deadline=None)
@given(TEXT, st.integers(0, 300), st.integers(1, 40))
def test_a_cut_breaks_no_character_and_no_sequence(words: list[str], limit: int, size: int) -> None:
    data = "".join(words).encode()
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    cap = Cap(limit, Allowance(10**6, 10**6))
    shown, cuts = run(cap, pieces)
    assert cap.shown + cap.hidden == len(data)
    if not cuts:
        assert shown == data
        return
    [cut] = cuts
    assert data.startswith(shown[:cut])
    assert cut <= limit + 20, "a sequence, and a character"
    rest = shown[cut:].decode()
    text = shown[:cut].decode()  # no half character
    assert "\x1b" not in SEQUENCE.sub("", text)
    assert not text or text.endswith("\n") or rest.endswith("\n")
    colours = SEQUENCE.findall(text + rest)
    assert not colours or colours[-1] == "\x1b[0m"


def test_what_went_wrong_is_seen_after_a_lot_was_printed() -> None:
    cap = Cap(8000, Allowance(10**6, 10**6))
    line = b"x" * 99 + b"\n"
    shown, _ = run(cap, [line] * 1000)
    assert 6900 <= len(shown) <= 7000
    errors, _ = run(cap, [b"it broke\n"], LogKind.STDERR)
    assert errors == b"it broke\n"
    errors, _ = run(cap, [line] * 1000, LogKind.STDERR)
    assert cap.shown <= 8000
    assert cap.shown + cap.hidden == 200_009


def test_calls_of_one_cell_share_its_allowance() -> None:
    allowance = Allowance(5000, 5000)
    line = b"x" * 99 + b"\n"
    caps = [Cap(1000, allowance) for _ in range(10)]
    for cap in caps:
        run(cap, [line] * 100)
    assert sum(cap.shown for cap in caps) <= 5000
    assert [cap.shown for cap in caps[:5]] == [800] * 5
    assert caps[9].hidden >= 9900
    _, cut = Cap(1000, allowance).take(LogKind.STDOUT, line * 100)
    assert cut is not None
    assert cut.cell
