"""What the front knows of every call: its log, items and result, and who reads them.

A `Record` is made when a CALL or LOAD is accepted and goes when the client has acknowledged it (``docs/protocol.md``,
*Records*). A `Subscription` is one reader at one place in it; readers pull, so nothing is copied for a slow one.
`RecordStore` keeps the budgets. Nothing in here knows of sockets or processes.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..wire import F_ENTRY, F_ERROR, Frame, FrameType, call_id, encode
from .logs import Log

if TYPE_CHECKING:
    import asyncio

    from .session import Session
    from .worker import Worker

__all__ = ["Client", "Item", "Record", "RecordStore", "State", "Subscription", "on_channel"]

#: Log bytes in one LOG frame, and about what a reader is given before it is another one's turn.
CHUNK = 60 << 10
#: How many ended records stay readable, without their results.
RING = 200
#: Seconds for which a result waits for a client that isn't there, or that only wanted it kept.
KEEP = 3600.0
#: Results of more bytes than this together go to files.
RESULTS_IN_MEMORY = 64 << 20


class State:
    """What a call does; the words of the ``calls`` request."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


def on_channel(raw: bytes, channel: int) -> bytes:
    """A frame's bytes with another channel number."""
    return b"%b%b%b" % (raw[:8], channel.to_bytes(8, "little"), raw[16:])


class Client:
    """One client process: what it may not start again, and where it is connected now."""

    __slots__ = ("gone_since", "high_water", "id", "info", "session")

    def __init__(self, id: str) -> None:
        self.id = id
        self.high_water = 0
        self.session: Session | None = None
        #: When its connection ended, unix time; None while it is connected.
        self.gone_since: float | None = None
        #: ``user``, ``host``, ``pid``, ``notebook``: for people.
        self.info: dict[str, Any] = {}


class Item:
    """One item of a generator: its frame, where the log was when it came, its file if it travels beside the session."""

    __slots__ = ("file", "log_at", "raw")

    def __init__(self, raw: bytes, log_at: int, file: str | None) -> None:
        self.raw = raw
        self.log_at = log_at
        self.file = file


class Record:
    """One call or load.

    Parameters
    ----------
    number
        The call's number in this front, its channel towards the worker.
    client, seq
        Whose it is, and the client's own number for it.
    f
        The method's name; empty for the function itself.
    """

    __slots__ = (
        "acked",
        "cancelled",
        "client",
        "created",
        "credit",
        "deadline",
        "ended",
        "f",
        "frame",
        "input",
        "items",
        "items_base",
        "keep",
        "kind",
        "log",
        "meta",
        "number",
        "on_end",
        "released",
        "result",
        "result_file",
        "result_size",
        "seq",
        "spawn",
        "started",
        "state",
        "subs",
        "timer",
        "want_log",
        "window",
        "worker",
    )

    def __init__(self, number: int, client: Client, seq: int, f: str = "", kind: str = "call") -> None:
        self.number = number
        self.client = client
        self.seq = seq
        self.f = f
        self.kind = kind
        self.spawn = False
        #: Whether its own client wants to see the log.
        self.want_log = True
        self.state = State.QUEUED
        self.created = time.time()
        self.started: float | None = None
        self.ended: float | None = None
        #: The frame and its meta until they have gone to the worker, and the file of its payload.
        self.frame: Frame | None = None
        self.meta: dict[str, Any] = {}
        self.input: str | None = None
        self.worker: Worker | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.deadline: float | None = None
        #: Why it is to be cancelled, once somebody has asked.
        self.cancelled: str | None = None
        self.log: Log | None = None
        self.items: deque[Item] | None = None
        #: The index of the first item that is still there.
        self.items_base = 0
        #: How many items the worker may send in all, and how many of them unasked.
        self.credit = 0
        self.window = 0
        #: The RESULT frame, or the path of the file that holds it.
        self.result: bytes | str | None = None
        self.result_file: str | None = None
        self.result_size = 0
        self.acked = False
        #: A reader was not shown all of the log: it stays for `KEEP` seconds although the result has been read.
        self.keep = False
        #: The result is gone; the record is among the last that ended, or will be.
        self.released = False
        self.subs: list[Subscription] = []
        #: Told of the end instead of a session: for calls that are the front's own.
        self.on_end: Callable[[Record], None] | None = None

    def public_id(self, service: str) -> str:
        """``service/ulid``."""
        return call_id(service, self.client.id, self.seq)

    def notify(self) -> None:
        """Tell the readers that there is more."""
        for sub in self.subs:
            if not sub.queued and not sub.done:
                sub.queued = True
                sub.session.readable(sub)

    def result_bytes(self) -> bytes:
        """The RESULT frame's bytes; empty when they are gone."""
        if isinstance(self.result, str):
            with open(self.result, "rb") as f:
                return f.read()
        return self.result or b""


class Subscription:
    """A reader of one record, at one place.

    Parameters
    ----------
    session
        Where it reads.
    record
        What it reads.
    channel
        On which channel of the session.
    offset, item
        From where on.
    item_limit
        The index of the first item that may not be sent yet.
    want_log, log_only
        Without the log; or nothing but it.
    window
        How many items it takes unasked; None: as many as it may be sent now.
    """

    __slots__ = (
        "channel",
        "done",
        "item",
        "item_limit",
        "log_only",
        "offset",
        "queued",
        "record",
        "session",
        "start",
        "want_log",
        "window",
    )

    def __init__(
        self,
        session: Session,
        record: Record,
        channel: int,
        *,
        offset: int = 0,
        item: int = 0,
        item_limit: int = 0,
        want_log: bool = True,
        log_only: bool = False,
        window: int | None = None,
    ) -> None:
        self.session = session
        self.record = record
        self.channel = channel
        self.offset = offset
        self.item = item
        self.item_limit = item_limit
        #: How many items the reader took unasked: what lies further back than that has been asked for, so it has
        #: arrived.
        self.window = item_limit - item if window is None else window
        self.start = item
        self.want_log = want_log
        self.log_only = log_only
        #: Among those that the session is going to serve.
        self.queued = False
        #: The result has been sent.
        self.done = False

    @property
    def arrived(self) -> int:
        """The items before this index have come to the reader."""
        return max(self.start, self.item_limit - self.window)

    def pull(self, out: list[bytes]) -> int:
        """Append the frames that are next, about `CHUNK` bytes; how many bytes they are, 0 when there is nothing
        (more) now.
        """
        record = self.record
        size = 0
        while size < CHUNK and not self.done:
            frame = self._next(record)
            if frame is None:
                break
            out.append(frame)
            size += len(frame)
        return size

    def _next(self, record: Record) -> bytes | None:
        item = self._item(record)
        log = record.log
        if log is not None and self.want_log and self.offset < log.end:
            # The log as it was when the item came, then the item: the order in which the worker sent them.
            stop = log.end if item is None else item.log_at
            if self.offset < stop:
                return self._log_frame(log, stop)
        if item is not None:
            self.item += 1
            return on_channel(item.raw, self.channel)
        if record.result is None:
            if record.ended is not None and not self.done:
                self.done = True
                return self._farewell()
            return None
        if self.log_only:
            self.done = True
            return self._farewell()
        if record.items is not None and self.item < record.items_base + len(record.items):
            return None  # the client has no room for the items that come before the result
        self.done = True
        return on_channel(record.result_bytes(), self.channel)

    def _item(self, record: Record) -> Item | None:
        items = record.items
        # What has been dropped had come: before the break that this reader is back from, perhaps.
        self.item = max(self.item, record.items_base)
        if not items or self.log_only or self.item >= self.item_limit:
            return None
        at = self.item - record.items_base
        return items[at] if at < len(items) else None

    def _log_frame(self, log: Log, stop: int) -> bytes:
        want = self.offset
        try:
            start, data, entry = log.read(want, min(CHUNK, stop - want))
        except OSError:
            # The file is gone or unreadable: go on after it, as after a cut.
            log.drop()
            start, data, entry = log.end, b"", False
        meta: dict[str, Any] = {"o": start}
        if start > want:
            meta["gap"] = True
        self.offset = start + len(data)
        return encode(FrameType.LOG, self.channel, meta, (data,), F_ENTRY if entry else 0)

    def _farewell(self) -> bytes:
        """What ends the reading of a record whose result isn't there (any more), or wasn't asked for."""
        if self.log_only:
            return encode(FrameType.RESULT, self.channel, {"log_only": True, "state": self.record.state})
        error: dict[str, Any] = {
            "type": "RecordExpiredError",
            "message": "the call has ended and its result has been read or has expired; only its log is kept",
        }
        if self.record.state == State.CANCELLED:
            error = {"type": "CallCancelledError", "reason": self.record.cancelled or "user"}
        return encode(FrameType.RESULT, self.channel, {"error": error}, (), F_ERROR)


class RecordStore:
    """All records of a pod, by number and by client, and their budgets.

    Parameters
    ----------
    directory
        For files of logs and results.
    budget, budget_call
        Bytes of logs for all and for one.
    remove_file
        Removes a bulk file by its name.
    """

    def __init__(self, directory: str, budget: int, budget_call: int, remove_file: Callable[[str], None]) -> None:
        self._dir = directory
        self._budget = budget
        self._budget_call = budget_call
        self._remove_file = remove_file
        self._numbers = 0
        self._log_bytes = 0
        self._result_bytes = 0
        self.by_number: dict[int, Record] = {}
        self.by_key: dict[tuple[str, int], Record] = {}
        self._ring: deque[Record] = deque()
        #: What was written outside of any call.
        self.service_log = Log(os.path.join(directory, "service"), budget_call)

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self.by_number.values()))

    def add(self, client: Client, seq: int, f: str = "", kind: str = "call") -> Record:
        """A new record."""
        self._numbers += 1
        record = Record(self._numbers, client, seq, f, kind)
        self.by_number[record.number] = record
        self.by_key[client.id, seq] = record
        return record

    def append_log(self, record: Record, data: bytes, entry: bool) -> None:
        """Add to a call's log, inside the budgets."""
        if record.log is None:
            record.log = Log(os.path.join(self._dir, str(record.number)), self._budget_call)
        grown = record.log.append(data, entry)
        if record.log is self.service_log:
            return
        self._log_bytes += grown
        if self._log_bytes > self._budget:
            self._shrink()

    def _shrink(self) -> None:
        """Get the logs below their budget: what ended first goes first, then the running ones' oldest bytes."""
        goal = self._budget - self._budget // 16
        by_end = sorted(
            (r for r in self.by_number.values() if r.log), key=lambda r: (r.ended or float("inf"), r.number)
        )
        for record in by_end:
            log = record.log
            if self._log_bytes <= goal or log is None:
                break
            before = log.size
            if record.ended is not None:
                log.drop()
            else:
                log.trim(max(before - (self._log_bytes - goal), before // 2))
            self._log_bytes += log.size - before

    def add_item(self, record: Record, raw: bytes, file: str | None) -> None:
        """Keep one item of a generator."""
        if record.items is None:
            record.items = deque()
        record.items.append(Item(raw, record.log.end if record.log is not None else 0, file))

    def drop_items(self, record: Record, below: int) -> None:
        """Forget the items before an index: their reader has them."""
        while record.items and record.items_base < below:
            item = record.items.popleft()
            record.items_base += 1
            if item.file is not None:
                self._remove_file(item.file)

    def end(self, record: Record, raw: bytes, state: str, file: str | None = None) -> None:
        """A record's result, and so its end."""
        record.state = state
        record.ended = time.time()
        record.frame = None
        record.result_file = file
        record.result_size = len(raw)
        self._result_bytes += len(raw)
        record.result = raw
        if self._result_bytes > RESULTS_IN_MEMORY:
            record.result = self._to_file(record, raw)
        record.notify()
        if record.acked and not record.subs:
            self.release(record)

    def _to_file(self, record: Record, raw: bytes) -> bytes | str:
        path = os.path.join(self._dir, f"{record.number}.result")
        try:
            with open(path, "wb") as f:
                f.write(raw)
        except OSError:
            _unlink(path)
            return raw  # no room on the disk either: memory it is
        return path

    def release(self, record: Record) -> None:
        """The result isn't needed any more: only the log stays, among the last `RING`, or for `KEEP` seconds before."""
        if record.released or record.ended is None:
            return
        record.released = True
        self._drop_result(record)
        if not record.keep:
            self._retire(record)

    def keep(self, record: Record) -> None:
        """Its log is to stay for `KEEP` seconds after its end, whatever else ends meanwhile."""
        record.keep = True
        if record in self._ring:
            self._ring.remove(record)

    def _retire(self, record: Record) -> None:
        """From now on it is one of the last `RING`."""
        self._ring.append(record)
        if len(self._ring) > RING:
            self.forget(self._ring.popleft())

    def _drop_result(self, record: Record) -> None:
        if record.result is not None:
            self._result_bytes -= record.result_size
            if isinstance(record.result, str):
                _unlink(record.result)
            record.result = None
        if record.result_file is not None:
            self._remove_file(record.result_file)
            record.result_file = None
        if record.items is not None:
            self.drop_items(record, record.items_base + len(record.items))

    def forget(self, record: Record) -> None:
        """Forget a record altogether."""
        self._drop_result(record)
        if record.log is not None and record.log is not self.service_log:
            self._log_bytes -= record.log.size
            record.log.drop()
        self.by_number.pop(record.number, None)
        self.by_key.pop((record.client.id, record.seq), None)

    def sweep(self, now: float) -> None:
        """Release what nobody has fetched for `KEEP` seconds."""
        for record in self:
            if record.ended is None or now - record.ended < KEEP:
                continue
            if record.keep:
                record.keep = False
                if record.released:
                    self._retire(record)
            if not record.released and (record.spawn or record.client.session is None):
                self.release(record)

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes of logs (files too) and of results that are kept."""
        return self._log_bytes, self._result_bytes

    @property
    def budget(self) -> int:
        """Bytes of logs that may be kept."""
        return self._budget


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # the directory went first: the pod is ending
