"""What a pod's events have for the user: said in the cell of a call that waits, else in that of the next one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pod_server.wire import FrameType

from ..identity import of_another
from .exchange import Exchange

__all__ = ["Notices"]


class Notices:
    """The lines that one session has for its users.

    A class that was constructed anew, because its worker ended or by somebody's redeploy, has forgotten what it held;
    without a word, a counter that begins again or an untrained model would look like a fault of the user's own code.
    So would the results of a handle whose code another notebook has replaced.
    """

    def __init__(self, service: str) -> None:
        self._service = service
        self._untold: list[str] = []
        #: How often an instance was lost, as far as we have heard, and the version of the code.
        self._losses: int | None = None
        self._version: str | None = None

    def on_welcome(self, meta: Mapping[str, Any], exchanges: Iterable[Exchange]) -> None:
        """See whether something was lost while there was no connection."""
        before, self._losses = self._losses, meta.get("losses")
        if before is not None and before != self._losses:
            text = "the instance was constructed anew while the connection was broken; what the old one held is lost"
            self._tell(text, exchanges)
        self._runs(meta.get("code"), exchanges)

    def on_event(self, meta: Mapping[str, Any], exchanges: Collection[Exchange]) -> None:
        """Take an EVENT."""
        event = meta.get("event")
        if event == "loaded":
            self._runs(meta, exchanges)
        elif event == "state-lost":
            self._losses = meta.get("losses")
            if not any(exchange.type is FrameType.LOAD for exchange in exchanges):  # a deploy of ours says it itself
                self._tell(str(meta.get("text")), exchanges)

    def _runs(self, code: Mapping[str, Any] | None, exchanges: Iterable[Exchange]) -> None:
        """The service has that code now; who has a handle of it hears when it is somebody else's."""
        if code is None:
            return
        before, self._version = self._version, code.get("version")
        whose = of_another(code.get("by")) if before not in (None, self._version) else None
        if whose is not None:
            self._tell(f'"{self._service}" runs other code from now on, deployed by {whose}', exchanges)

    def _tell(self, text: str, exchanges: Iterable[Exchange]) -> None:
        line = f"kubetorch: {text}"
        if not any(exchange.on_notice(line) for exchange in exchanges):
            self._untold.append(line)

    def on_start(self, exchange: Exchange) -> None:
        """Say what is still to be said where this begins, if it has a place for it."""
        if self._untold and exchange.on_notice("\n".join(self._untold)):
            self._untold.clear()
