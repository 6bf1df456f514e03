"""The way of a call: accepted from a session, sent to a worker, its log, items and result put into its record.

This is the hot path: no tasks, no copies but those that a socket needs, meta parsed only where it decides something.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from ..wire import F_BULK, F_ENTRY, F_ERROR, Frame, FrameType, WireError, encode, parse_call_id
from .bulk import MAX_BYTES, Upload, parse_lens
from .faults import Violation, failure
from .records import Client, Record, State, Subscription, on_channel
from .worker import check_load

if TYPE_CHECKING:
    from .pod import Pod
    from .session import Session
    from .worker import Worker

__all__ = ["WINDOW", "Calls", "count_of", "number_of"]

_log = logging.getLogger(__name__)

#: Bytes of calls that wait for a worker; more are refused.
_HELD_LIMIT = 256 << 20
#: Timeouts of more seconds are none; timers don't count that far.
_FOR_EVER = 1e8
#: Seconds after which a client that hasn't come back no longer keeps others from finishing with a record.
_ABSENT = 120.0
#: Items of a generator that may be asked for before they have come; a worker counts them one by one.
WINDOW = 1 << 20
#: Characters of a method's name.
_NAME = 1000


def number_of(meta: dict[str, Any], key: str, default: float | None = None) -> Any:
    """A number of a frame's meta that is not negative; `Violation` for anything else."""
    value = meta.get(key, default)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value < 1e18:
        raise Violation(f"{key} is not a number that makes sense")
    return value


def count_of(meta: dict[str, Any], key: str, most: int = 1 << 53) -> int:
    """A count in a frame's meta, 0 when it isn't there; `Violation` for anything else."""
    value = meta.get(key)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= most:
        raise Violation(f"{key} is not a number that makes sense")
    return value


class Calls:
    """All calls of a pod.

    Parameters
    ----------
    pod
        What it belongs to.
    """

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self._loop = asyncio.get_running_loop()
        self.clients: dict[str, Client] = {}
        self.held_bytes = 0

    def client(self, id: str) -> Client:
        """The client of that id, known or new."""
        found = self.clients.get(id)
        if found is None:
            found = self.clients[id] = Client(id)
        return found

    # -- from sessions -------------------------------------------------------------------------------------------------

    def start(self, session: Session, frame: Frame) -> None:
        """A CALL or LOAD; one that was seen before is ignored (the client resumes it)."""
        client, seq = session.client, frame.channel
        if seq <= client.high_water:
            return
        meta = frame.meta
        load = frame.type is FrameType.LOAD
        name, ser = meta.get("f"), meta.get("ser")
        name = "" if name is None else name
        if not isinstance(name, str) or len(name) > _NAME or not name.isprintable():
            raise Violation("the name of a method is no name")
        if ser is not None and ser not in ("pickle", "json", "none"):
            raise Violation("ser is none of pickle, json and none")
        if load:
            check_load(meta)
        lens = parse_lens(meta) if frame.flags & F_BULK else None
        if lens is not None and frame.buffers:
            raise Violation("a frame has buffers although its payload travels beside it")
        gen = count_of(meta, "gen", WINDOW)
        timeout = number_of(meta, "timeout")
        if timeout is not None and timeout > _FOR_EVER:
            timeout = None
        client.high_water = seq
        record = self._pod.store.add(client, seq, name, "load" if load else "call")
        record.frame, record.meta = frame, meta
        record.spawn = meta.get("mode") == "spawn"
        record.credit = record.window = gen
        record.want_log = meta.get("log") is not False
        session.subscribe(Subscription(session, record, seq, item_limit=gen, want_log=record.want_log))
        self.accept(record, timeout, lens)

    def accept(self, record: Record, timeout: float | None, lens: int | None) -> None:
        """Take on a new record: wait for its payload, then send it to the worker."""
        self._pod.life.began(record)
        if timeout is not None and record.kind == "call":
            record.timer = self._loop.call_later(timeout, self._timed_out, record, timeout)
        if lens is None:
            self.submit(record)
        elif lens > MAX_BYTES:
            text = f"the payload has {lens} bytes; {MAX_BYTES} are the most that one can have: send it in parts"
            self.fail(record, {"type": "PayloadTooLargeError", "message": text})
        else:
            self._pod.bulk.expect(
                record.client.id,
                record.seq,
                Upload(lens, lambda name: self._uploaded(record, name), lambda error: self.fail(record, error)),
            )

    def _uploaded(self, record: Record, name: str) -> None:
        if record.ended is not None:
            self._pod.bulk.remove(name)
            return
        record.input = name
        self.submit(record)

    def submit(self, record: Record) -> None:
        """Send a complete call to the worker, or keep it until there is one."""
        supervisor = self._pod.supervisor
        if record.kind == "load":
            supervisor.load(record)
            return
        if (error := self._unwanted(record)) is not None:
            self.fail(record, error)
            return
        worker = supervisor.current
        if worker is not None and not supervisor.holding:
            self.send(worker, record)
            return
        error = supervisor.refusal()
        size = len(record.frame.raw) if record.frame is not None else 0
        if error is None and self.held_bytes + size > _HELD_LIMIT:
            error = {
                "type": "ServiceHealthError",
                "message": f'service "{self._pod.params.name}" is {supervisor.state} and too much waits for it; '
                "call again when it is ready",
            }
        if error is not None:
            self.fail(record, error)
        else:
            self.held_bytes += size
            supervisor.hold(record)

    def _unwanted(self, record: Record) -> dict[str, Any] | None:
        """Why a call's serialization isn't taken, an ``error`` object; None when it is."""
        code, ser = self._pod.supervisor.code, record.meta.get("ser") or "pickle"
        allowed = code.meta.get("allowed") if code is not None else None
        if not allowed or ser in allowed:
            return None
        text = (
            f'service "{self._pod.params.name}" takes {" or ".join(allowed)} and no {ser}, as its Compute says '
            f'(allowed_serialization): use .options(serialization="{allowed[0]}")'
        )
        return {"type": "SerializationError", "message": text}

    def send(self, worker: Worker, record: Record) -> None:
        """Hand a call to a worker."""
        frame = record.frame
        if frame is None:
            return
        if record.input is None:
            raw = on_channel(frame.raw, record.number)
        else:
            try:
                raw = encode(FrameType.CALL, record.number, {**record.meta, "file": record.input}, (), frame.flags)
            except WireError as e:  # no room in the frame for the file's name
                self.fail(record, {"type": "PayloadTooLargeError", "message": f"the call has too many parts: {e}"})
                return
        record.frame = None
        record.worker = worker
        record.state = State.RUNNING
        record.started = time.time()
        worker.calls[record.number] = record
        worker.served = True
        worker.send(raw)
        record.meta = {}
        if self._pod.events.debug:
            self._pod.events.add("call-start", call=record.public_id(self._pod.params.name), worker=worker.number)

    def cancel(self, record: Record, reason: str) -> None:
        """Somebody asks for the end of a call."""
        if record.ended is not None:
            return
        record.cancelled = reason
        if record.kind == "load":
            self._pod.supervisor.cancel_load(record)
        elif record.worker is None:
            self._pod.bulk.give_up(record.client.id, record.seq)
            self.fail(record, {"type": "CallCancelledError", "reason": reason}, State.CANCELLED)
        else:
            record.state = State.CANCELLING
            record.worker.send(encode(FrameType.CANCEL, record.number, {"reason": reason}))
            self._less(record.worker)

    def credit(self, session: Session, channel: int, n: int) -> None:
        """The reader takes `n` more items."""
        sub = session.subs.get(channel)
        if sub is not None:
            if sub.item_limit + n - sub.item > WINDOW:
                raise Violation(f"more than {WINDOW} items are asked for at once")
            sub.item_limit += n
            self._credited(sub)

    def _credited(self, sub: Subscription) -> None:
        record = sub.record
        if sub.item_limit > record.credit:
            more = sub.item_limit - record.credit
            record.credit = sub.item_limit
            if record.worker is not None and record.ended is None:
                record.worker.send(encode(FrameType.CREDIT, record.number, {"n": more}))
        if record.items:
            self._pod.store.drop_items(record, min(s.arrived for s in record.subs))
        record.notify()

    def resume(self, session: Session, frame: Frame) -> None:
        """A reader that comes back, or comes to somebody else's call; starts nothing."""
        meta = frame.meta
        client, channel = session.client, frame.channel
        offset, item, credit = count_of(meta, "log"), count_of(meta, "item"), count_of(meta, "credit", WINDOW)
        store = self._pod.store
        if meta.get("id") is None:
            key = client.id, channel
        else:
            client.high_water = max(client.high_water, channel)
            try:
                service, id, seq = parse_call_id(str(meta["id"]))
            except ValueError as e:
                session.send(on_channel(failure({"type": "UnknownCallError", "message": str(e)}), channel))
                return
            key = id, seq if service == self._pod.params.name else 0
        record = store.by_key.get(key)
        if record is None:
            session.send(on_channel(failure(self.missing(key)), channel))
            return
        session.unsubscribe(channel)
        # Nobody has had more than there was: what it says beyond that would pass for read, and asked for.
        item = min(item, record.items_base + len(record.items or ()))
        sub = Subscription(
            session,
            record,
            channel,
            offset=offset,
            item=item,
            item_limit=item + credit,
            want_log=record.want_log or meta.get("id") is not None,
            log_only=meta.get("log_only") is True,
            # It comes back with less credit than it had at first, because items have come that it hasn't used yet.
            window=max(record.window, credit) if record.client is client else None,
        )
        session.subscribe(sub)
        self._credited(sub)

    def missing(self, key: tuple[str, int]) -> dict[str, Any]:
        """Why there is no record of that client and number, an ``error`` object."""
        client = self.clients.get(key[0])
        if client is not None and 0 < key[1] <= client.high_water:
            return {
                "type": "RecordExpiredError",
                "message": "the call's record has been read, or has expired; "
                "records are kept until they are read, at most 1 h after the call's end",
            }
        return {"type": "UnknownCallError", "message": f'service "{self._pod.params.name}" has not had this call'}

    def acknowledge(self, session: Session, channel: int, keep: bool = False) -> None:
        """A reader has everything; `keep` says that not all of the log was shown to people, who may ask for it yet."""
        sub = session.unsubscribe(channel)
        record = sub.record if sub is not None else self._pod.store.by_key.get((session.client.id, channel))
        if record is None:
            return
        if keep:
            self._pod.store.keep(record)
        own = record.client is session.client and record.seq == channel
        # Who has read the log only has not read the result.
        log_only = sub is not None and sub.log_only
        absent = (
            not log_only and record.client.session is None and time.time() - (record.client.gone_since or 0.0) > _ABSENT
        )
        if own or absent:
            record.acked = True
        self.left(record)

    def sweep(self, now: float) -> None:
        """Cancel what only waits for a client that went long ago: for its upload, or for it to read more items.

        Such a call would hold a thread of the worker, and keep the pod from counting as idle, for ever.
        """
        for record in self._pod.store:
            gone = record.client.gone_since
            if record.ended is not None or record.cancelled or record.subs or gone is None or now - gone < _ABSENT:
                continue
            uploading = self._pod.bulk.expects(record.client.id, record.seq)
            starved = record.credit > 0 and record.items_base + len(record.items or ()) >= record.credit
            if uploading or starved:
                self.cancel(record, "abandoned")

    def left(self, record: Record) -> None:
        """A reader of a record has gone."""
        if record.acked and not record.subs:
            self._pod.store.release(record)

    # -- from workers --------------------------------------------------------------------------------------------------

    def from_worker(self, worker: Worker, frames: list[Frame]) -> None:
        """What a worker sent.

        Raises
        ------
        WireError
            At a frame that no worker sends; its connection is given up then.
        """
        store = self._pod.store
        for frame in frames:
            kind = frame.type
            if kind is FrameType.RESULT:
                record = worker.calls.pop(frame.channel, None)
                if record is not None:
                    self.result(record, frame)
                    self._less(worker)
                else:
                    self._pod.supervisor.loaded(worker, frame)
            elif kind is FrameType.LOG:
                self._log(worker, frame)
            elif kind is FrameType.ITEM:
                record = store.by_number.get(frame.channel)
                if record is not None and record.worker is worker:
                    self._item(record, frame)
            elif kind is FrameType.EVENT:
                self._pod.supervisor.fleet.worker_event(worker, frame.meta)
            elif kind is FrameType.PING:
                worker.send(encode(FrameType.PONG, 0, frame.meta))
            elif kind is not FrameType.PONG:
                raise WireError(f"a worker sent {kind.name}")

    def _log(self, worker: Worker, frame: Frame) -> None:
        if not frame.buffers:
            return
        data, entry = bytes(frame.buffers[0]), bool(frame.flags & F_ENTRY)
        store = self._pod.store
        if frame.channel == 0:
            store.service_log.append(data, entry)
            return
        record = store.by_number.get(frame.channel)
        if record is not None and record.worker is worker:
            store.append_log(record, data, entry)
            record.notify()

    def _item(self, record: Record, frame: Frame) -> None:
        raw, file = self._payload(frame)
        if record.ended is not None or raw is None:
            if file is not None:
                self._pod.bulk.remove(file)
            return
        self._pod.store.add_item(record, raw, file)
        record.notify()

    def result(self, record: Record, frame: Frame) -> None:
        """A call's or a load's RESULT, as its worker sent it."""
        raw, file = self._payload(frame)
        if record.ended is not None:
            # It has timed out: nobody waits for it, but now it is over in the worker too.
            if file is not None:
                self._pod.bulk.remove(file)
            return
        if raw is None:
            text = "the worker named a result file that isn't there, or isn't the service's"
            self.fail(record, {"type": "SerializationError", "message": text})
            return
        state = State.DONE
        if frame.flags & F_ERROR:
            error = frame.meta.get("error")
            cancelled = isinstance(error, dict) and error.get("type") == "CallCancelledError"
            state = State.CANCELLED if cancelled else State.FAILED
        self.end(record, raw, state, file)

    def _payload(self, frame: Frame) -> tuple[bytes | None, str | None]:
        """A frame as clients may have it, and the file with its payload; no bytes when the file isn't acceptable."""
        if not frame.flags & F_BULK:
            return frame.raw, None
        name = frame.meta.get("file")
        file = self._pod.bulk.offer(name)
        if file is None:
            _log.warning("a worker offered the file %r", name)
            return None, None
        return frame.raw, file

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _timed_out(self, record: Record, timeout: float) -> None:
        record.timer = None
        if record.ended is not None:
            return
        if record.worker is not None:
            record.worker.send(encode(FrameType.CANCEL, record.number, {"reason": "timeout"}))
        else:
            self._pod.bulk.give_up(record.client.id, record.seq)
        record.cancelled = "timeout"
        self.fail(record, {"type": "CallTimeoutError", "timeout": timeout})
        if record.worker is not None:
            self._less(record.worker)

    def _less(self, worker: Worker) -> None:
        """A call of a worker has ended, or is waited for only for a while: who waits for that looks again."""
        worker.less()
        if worker.retired:
            self._pod.supervisor.settle(worker)

    def fail(self, record: Record, error: dict[str, Any], state: str = State.FAILED) -> None:
        """End a call with an error of ours."""
        if record.ended is None:
            self.end(record, failure(error), state)

    def end(self, record: Record, raw: bytes, state: str, file: str | None = None) -> None:
        """End a call with its RESULT frame."""
        if record.timer is not None:
            record.timer.cancel()
            record.timer = None
        if record.input is not None:
            if record.kind == "call":
                self._pod.bulk.remove(record.input)
            record.input = None
        self._pod.store.end(record, raw, state, file)
        self._pod.life.ended(record)
        if record.on_end is not None:
            record.on_end(record)

    def worker_lost(self, worker: Worker, error: dict[str, Any]) -> None:
        """End the calls of a worker that has died."""
        records = list(worker.calls.values())
        worker.calls.clear()
        for record in records:
            if record.cancelled == "user":
                self.fail(record, {"type": "CallCancelledError", "reason": "user"}, State.CANCELLED)
            else:
                self.fail(record, error)
        worker.less()
