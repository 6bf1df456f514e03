"""One CALL, LOAD or RESUME under way: what it takes to say it, and to say it again after a break.

An exchange knows how far it has got (log offset, items, credit), so that a session can take it up on a new connection
with nothing lost or doubled. What becomes of its log, items and result is its subclasses' and its sink's matter. All of
it runs on the portal.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from pod_server import wire
from pod_server.wire import FrameType, LogKind

from ..errors import from_wire
from .portal import get_portal

if TYPE_CHECKING:
    from .session import Session

__all__ = ["Exchange", "LoadExchange", "RemoteFailure", "Sink"]


class Sink(Protocol):
    """Where an exchange's log goes; `kubetorch_jupyter.streams.Output` is one. Must not block."""

    @property
    def capped(self) -> bool:
        """Whether it has left something out that people may want to read later."""
        ...

    def identify(self, call_id: Callable[[], str]) -> None:
        """Take what gives the call's public id, now that it has one; again when it is made anew."""
        ...

    def feed(self, kind: LogKind, data: bytes) -> None:
        """Take a piece of the log."""
        ...

    def finish(self, then: Callable[[], None]) -> None:
        """Nothing more comes; call ``then``, from any thread, when everything has been written."""
        ...


class RemoteFailure(Exception):
    """A RESULT whose error is the user's own exception, not decoded yet: that isn't done on the portal.

    ``kubetorch_jupyter.calls.decode_error(e.meta, e.buffers)`` gives the exception.
    """

    def __init__(self, meta: Mapping[str, Any], buffers: Sequence[wire.Buffer]) -> None:
        super().__init__("the user's code raised an exception")
        self.meta = meta
        self.buffers = buffers


class Exchange(ABC):
    """One CALL, LOAD or RESUME, and what has come of it.

    Parameters
    ----------
    type
        CALL or LOAD; RESUME for another client's call (``meta["id"]``).
    meta
        Of the first frame.
    buffers
        The payload; kept until the pod has it for certain.
    sink
        For the log; None throws it away.
    """

    __slots__ = (
        "_frame",
        "_log",
        "_uploaded",
        "buffers",
        "bulk",
        "cancelled",
        "channel",
        "fetching",
        "granted",
        "items",
        "log_offset",
        "meta",
        "result",
        "result_wanted",
        "sent",
        "session",
        "sink",
        "type",
        "window",
        "work",
    )

    def __init__(
        self,
        type: FrameType,
        meta: dict[str, Any] | None = None,
        buffers: Sequence[wire.Buffer] = (),
        sink: Sink | None = None,
    ) -> None:
        self.type = type
        self.meta = meta
        self.buffers = buffers
        self.sink = sink
        self.channel = 0
        self.session: Session | None = None
        #: How many bytes of the log are here.
        self.log_offset = 0
        #: How many items are here, how many may come in all, and how many of them unasked.
        self.items = 0
        self.window = meta["gen"] if meta and "gen" in meta else 0
        self.granted = self.window
        self.cancelled: str | None = None
        #: What is being downloaded (items by number, None for the result), and the result that waits for it.
        self.fetching: set[int | None] = set()
        self.result: tuple[int, Mapping[str, Any], Sequence[wire.Buffer]] | None = None
        self.result_wanted = True
        #: Whether the payload goes beside the session.
        self.bulk = False
        #: Whether the pod may know of it.
        self.sent = False
        self.work: set[asyncio.Task[None]] | None = None
        self._frame: bytes | None = None
        self._uploaded = False
        self._log: wire.LogDecoder | None = None

    # -- what comes of it: for subclasses ----------------------------------------------------------------------------

    #: Whether the pod may forget the call as soon as its result is here.
    acknowledges = True

    @property
    def keeps_log(self) -> bool:
        """Whether the pod is to keep the log although the result is here: not all of it was shown."""
        return self.sink is not None and self.sink.capped

    def identify(self) -> None:
        """It has its number: tell the sink how to learn the public id, which takes longer than most calls need."""
        if self.sink is not None and self.session is not None:
            given = self.meta.get("id") if self.meta else None
            self.sink.identify(partial(self.session.call_id, self.channel) if given is None else partial(str, given))

    def on_sent(self) -> None:
        """It is on its way: from now on the pod may know of it."""
        self.sent = True

    def take_back(self) -> None:  # noqa: B027 - most exchanges are about what one pod has, and of no use on another
        """The pod hasn't read it, and never will; `on_error` follows."""

    def on_item(  # noqa: B027 - most exchanges are no generator's and have none to take
        self, index: int, meta: Mapping[str, Any], buffers: Sequence[wire.Buffer]
    ) -> None:
        """Take an item of a generator; large ones may come later than their followers."""

    @abstractmethod
    def on_result(self, flags: int, meta: Mapping[str, Any], buffers: Sequence[wire.Buffer]) -> None:
        """Take the result; the log is complete."""

    @abstractmethod
    def on_error(self, error: Exception) -> None:
        """There will be no result."""

    def on_notice(self, text: str) -> bool:
        """Take a line of ours about the service to where the output goes; False when there is no such place."""
        return False

    # -- for the session ---------------------------------------------------------------------------------------------

    def frame(self) -> bytes:
        """The frame that begins it; the same bytes whenever it has to be sent again."""
        if self.type is FrameType.RESUME:
            return self.resume_frame()
        if self._frame is None:
            size = sum(b.nbytes if isinstance(b, memoryview) else len(b) for b in self.buffers)
            if size <= wire.INLINE_LIMIT:
                try:
                    self._frame = wire.encode(self.type, self.channel, self.meta, self.buffers)
                except wire.WireError:
                    self.bulk = True  # the meta (a LOAD's environment, say) or the table took the room that was left
            else:
                self.bulk = True
            if self._frame is None:
                lens = [b.nbytes if isinstance(b, memoryview) else len(b) for b in self.buffers]
                meta = {**(self.meta or {}), "lens": lens}
                self._frame = wire.encode(self.type, self.channel, meta, flags=wire.F_BULK)
            else:
                self.buffers = ()
        return self._frame

    def payload(self) -> Sequence[wire.Buffer] | None:
        """What it would be begun with anew; None when the pod has been given it beside the session."""
        if self.bulk:
            return None if self._uploaded else self.buffers
        [frame] = wire.Decoder().feed(self.frame())
        return frame.buffers

    def resume_frame(self) -> bytes:
        """The frame that asks for the rest of it."""
        meta: dict[str, Any] = {"log": self.log_offset}
        if self.granted:
            # An item whose download is under way hasn't arrived: the pod is to keep its file.
            item = min((i for i in self.fetching if i is not None), default=self.items)
            # A whole window from there: the pod takes what lies a window behind the credit for arrived, and so do we
            # when we give more of it.
            self.granted = item + self.window
            meta["item"] = item
            meta["credit"] = self.window
        if self.type is FrameType.RESUME:
            meta = {**(self.meta or {}), **meta}
        return wire.encode(FrameType.RESUME, self.channel, meta)

    def take_log(self, meta: Mapping[str, Any], data: memoryview) -> None:
        """Give the sink what is new in a LOG frame."""
        offset = int(meta.get("o", self.log_offset))
        skip = self.log_offset - offset
        if skip >= len(data) and len(data):
            return  # had it before the connection broke
        if skip < 0:
            # Bytes before it were dropped for the budget; what follows starts with a new entry.
            self._log = None
            if self.sink is not None:
                self.sink.feed(LogKind.NOTICE, f"[{-skip} bytes of this call's log are no longer kept]\n".encode())
            skip = 0
        self.log_offset = offset + len(data)
        if self.sink is None:
            return
        if self._log is None:
            self._log = wire.LogDecoder()
        for kind, piece in self._log.feed(data[skip:]):
            self.sink.feed(kind, piece)

    def settled(self) -> None:
        """The pod has the whole payload, or it is no longer wanted."""
        self.buffers = ()
        self._uploaded = True

    @property
    def upload_wanted(self) -> bool:
        """Whether the payload goes beside the session, and isn't there yet."""
        return self.bulk and not self._uploaded and not self.work

    def end(self) -> None:
        """Let go of everything but the outcome."""
        for task in self.work or ():
            task.cancel()
        self.buffers = ()
        self._frame = None
        self._log = None

    def add_work(self, task: asyncio.Task[None]) -> None:
        """Own a transfer: it ends with the exchange."""
        if self.work is None:
            self.work = set()
        self.work.add(task)
        task.add_done_callback(self.work.discard)


class LoadExchange(Exchange):
    """A LOAD, awaited as a future of the portal's loop."""

    __slots__ = ("future",)

    def __init__(
        self, type: FrameType, meta: dict[str, Any] | None, buffers: Sequence[wire.Buffer], sink: Sink | None
    ) -> None:
        super().__init__(type, meta, buffers, sink)
        self.future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    def on_result(self, flags: int, meta: Mapping[str, Any], buffers: Sequence[wire.Buffer]) -> None:
        """Keep the meta, or what it says of an error."""
        if not flags & wire.F_ERROR:
            self._end(None, dict(meta))
            return
        error = meta.get("error") or {}
        service = self.session.endpoint.service if self.session is not None else None
        if error.get("type") == "user":
            self._end(RemoteFailure(meta, buffers), {})
        else:
            self._end(from_wire(error, service=service), {})

    def on_notice(self, text: str) -> bool:
        """Say it to who deploys; when that is done quietly, nobody wants to hear of it."""
        if self.sink is not None:
            self.sink.feed(LogKind.NOTICE, f"{text}\n".encode())
        return True

    def on_error(self, error: Exception) -> None:
        """Keep the error."""
        self._end(error, {})

    def _end(self, error: Exception | None, meta: dict[str, Any]) -> None:
        def settle() -> None:
            if self.future.done():
                return
            if error is not None:
                self.future.set_exception(error)
            else:
                self.future.set_result(meta)

        if self.sink is None:
            settle()
        else:
            self.sink.finish(lambda: get_portal().call(settle))
