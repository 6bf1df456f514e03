"""The line of a map: how many of how many are done, with a bar where the number is known."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic

from .line import Line
from .status import State, Status, duration, ended_by, why

__all__ = ["MapProgress"]

#: What takes less, in seconds, has no line.
_DELAY = 0.5


class MapProgress:
    """What the cell that takes a map's results sees, if it takes long.

    Parameters
    ----------
    label
        What is called.
    total
        How many calls there will be; None where nobody knows.
    ready
        Gives how many calls are done that nobody has taken note of by `count` yet.
    begun
        Gives how many calls are begun and not taken note of. When all of them are ready, because the results aren't
        taken, the clock stands.
    ended
        Gives when the last call was done, by `time.monotonic`.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        ready: Callable[[], int],
        begun: Callable[[], int],
        ended: Callable[[], float],
    ) -> None:
        self._label = label
        self._total = total
        self._ready = ready
        self._begun = begun
        self._ended = ended
        self._began = self._now = monotonic()
        self._done = 0
        self._failed = 0
        self._line = Line(self._describe, _DELAY)
        self._line.view.pause()
        self._line.begin()

    def count(self, failed: bool) -> None:
        """One more is done."""
        self._done += 1
        if failed:
            self._failed += 1

    def pause(self) -> None:
        """The user's code runs, and may print; so it is at the beginning."""
        self._line.view.pause()

    def resume(self) -> None:
        """Nothing runs but the calls."""
        self._line.view.resume()

    # -- the end -----------------------------------------------------------------------------------------------------

    def finish(self, error: BaseException | None = None) -> Future[None]:
        """It is at its end, or this has ended it; any thread, waits for nothing.

        Returns
        -------
        Future
            For `wait_shown` and `await_shown`: the end of a cell may not come before it.
        """
        status = self._last(error)
        if monotonic() - self._began >= _DELAY:
            return self._line.finish(status)
        self._line.drop(status)
        shown: Future[None] = Future()
        shown.set_result(None)
        return shown

    # -- what it says ------------------------------------------------------------------------------------------------

    def _describe(self, now: float) -> Status:
        return Status(self._text(self._time()), share=self._share())

    def _last(self, error: BaseException | None) -> Status:
        text = self._text(self._time())
        if error is None:
            return Status(text, State.DONE, self._share())
        state = ended_by(error)
        return Status(f"{text}; {'stopped' if state is State.STOPPED else why(error)}", state, self._share())

    def _time(self) -> float:
        self._now = max(self._now, monotonic() if self._begun() > self._ready() else self._ended())
        return max(self._now - self._began, 1e-3)

    def _share(self) -> float | None:
        return min(1.0, self._known() / self._total) if self._total else None

    def _known(self) -> int:
        return self._done + self._ready()

    def _text(self, seconds: float) -> str:
        done = self._known()
        rate = done / seconds
        return "".join(
            (
                f"kubetorch: map of {self._label}, {done}",
                f" of {self._total}" if self._total is not None else "",
                " done",
                f", {self._failed} failed" if self._failed else "",
                f", {rate:.0f} a second" if rate >= 10 else f", {rate:.2g} a second" if done else "",
                f", {duration(seconds)}",
            )
        )
