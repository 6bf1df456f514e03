"""What clients may ask of a pod besides calls: the operations of REQUEST frames."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..wire import F_ERROR, MAX_FRAME, FrameType, LogDecoder, LogKind, WireError, encode, parse_call_id
from .logs import Log
from .records import Record

if TYPE_CHECKING:
    from .pod import Pod
    from .session import Session

__all__ = ["Requests"]

#: What an answer's lists and texts may take of a frame.
_ROOM = MAX_FRAME - 4096

Answer = Callable[[dict[str, Any]], None]


class Requests:
    """Answers REQUEST frames.

    Parameters
    ----------
    pod
        What is asked about.
    """

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self._ops: dict[str, Callable[[dict[str, Any], Answer], None]] = {
            "adopt": self._adopt,
            "call_log": self._call_log,
            "calls": self._calls,
            "cancel": self._cancel,
            "drain": self._drain,
            "events": self._events,
            "restart": self._restart,
            "service_log": self._service_log,
            "status": self._status,
            "teardown": self._teardown,
            "touch": self._touch,
        }

    def handle(self, session: Session, channel: int, meta: dict[str, Any]) -> None:
        """Do what a REQUEST asks for; the RESPONSE goes to the session, now or later."""

        def answer(fields: dict[str, Any]) -> None:
            flags = F_ERROR if "error" in fields else 0
            try:
                frame = encode(FrameType.RESPONSE, channel, fields, (), flags)
            except WireError as e:
                error = {"type": "CallError", "message": f"the answer does not fit a frame: {e}"}
                frame = encode(FrameType.RESPONSE, channel, {"error": error}, (), F_ERROR)
            session.send(frame)

        op = meta.get("op")
        function = self._ops.get(op) if isinstance(op, str) else None
        if function is None:
            known = ", ".join(sorted(self._ops))
            answer(
                {"error": {"type": "UnsupportedError", "message": f"this pod has no request {op!r}; it knows {known}"}}
            )
            return
        function(meta, answer)

    # -- looking -------------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What the pod says of itself."""
        pod = self._pod
        supervisor = pod.supervisor
        worker = supervisor.current
        logs, results = pod.store.memory
        return {
            "state": supervisor.state,
            "service": pod.params.name,
            "incarnation": pod.params.incarnation,
            "pid": os.getpid(),
            "worker": worker.pid if worker is not None else None,
            "calls": pod.life.active,
            "code": supervisor.code.public() if supervisor.code is not None else None,
            "error": supervisor.error,
            "owners": pod.life.owners,
            "detach": pod.params.detach,
            "ttl": pod.life.ttl,
            "idle": pod.life.idle,
            "since": pod.since,
            "sessions": len(pod.sessions),
            "log_bytes": logs,
            "result_bytes": results,
            "missing": pod.kept.missing if supervisor.code is None else None,
        }

    def _status(self, meta: dict[str, Any], answer: Answer) -> None:
        status = self.status()
        error = status.pop("error")
        # "error" at the top would say that the request failed.
        status["reason"] = (error or {}).get("message")
        if meta.get("usage") is True:
            self._pod.usage.ask(lambda usage: answer({**status, **usage}))
        else:
            answer(status)

    def _calls(self, meta: dict[str, Any], answer: Answer) -> None:
        skip = meta.get("skip")
        rows: list[dict[str, Any]] = []
        size = 0
        more = False
        store, loads = self._pod.store, meta.get("loads") is True
        # What the front loads by itself, after a death, logs to the service's own log.
        records = [r for r in store if r.kind == "call" or (loads and r.log is not store.service_log)]
        # The running ones first, then the ended ones, each newest first.
        records.sort(key=lambda r: (r.ended is None, r.number), reverse=True)
        for record in records[skip if isinstance(skip, int) and skip > 0 else 0 :]:
            row = self._row(record)
            size += len(json.dumps(row)) + 1
            if size > _ROOM:
                more = True
                break
            rows.append(row)
        answer({"calls": rows, "more": more})

    def _row(self, record: Record) -> dict[str, Any]:
        state = record.state
        if record.ended is not None and record.worker is not None and record.number in record.worker.calls:
            state = "cancelling"  # its client has the answer, its thread has not noticed yet
        return {
            "id": record.public_id(self._pod.params.name),
            "f": "(loading)" if record.kind == "load" else record.f or self._pod.function_name,
            "state": state,
            "started": record.started or record.created,
            "ended": record.ended,
            "log": record.log.end if record.log is not None else 0,
            "by": {key: record.client.info.get(key) for key in ("user", "host", "pid", "notebook")},
        }

    def _events(self, meta: dict[str, Any], answer: Answer) -> None:
        if meta.get("debug") is True:
            self._pod.events.set_debug()
        rows: list[dict[str, Any]] = []
        size = 0
        more = False
        for event in self._pod.events.after(_after(meta)):
            size += len(json.dumps(event)) + 1
            if size > _ROOM:
                more = True
                break
            rows.append(event)
        answer({"events": rows, "more": more})

    def _service_log(self, meta: dict[str, Any], answer: Answer) -> None:
        """The end of what was written outside of any call, as text; of what came after an ``end`` of before."""
        log = self._pod.store.service_log
        answer({"text": _tail(log, _room(meta), _after(meta)), "end": log.end})

    def _call_log(self, meta: dict[str, Any], answer: Answer) -> None:
        """As `_service_log`, of a call; for who looks now and then."""
        record = self._find(meta, answer)
        if record is not None:
            log = record.log
            text, end = (_tail(log, _room(meta), _after(meta)), log.end) if log is not None else ("", 0)
            answer({"text": text, "end": end})

    def _find(self, meta: dict[str, Any], answer: Answer) -> Record | None:
        """The call whose public id is asked for; None when the request has been answered with why there is none."""
        try:
            service, client, seq = parse_call_id(str(meta.get("id")))
        except ValueError as e:
            answer({"error": {"type": "UnknownCallError", "message": str(e)}})
            return None
        key = client, seq if service == self._pod.params.name else 0
        record = self._pod.store.by_key.get(key)
        if record is None or record.kind != "call":
            answer({"error": self._pod.calls.missing(key)})
            return None
        return record

    # -- doing ---------------------------------------------------------------------------------------------------------

    def _adopt(self, meta: dict[str, Any], answer: Answer) -> None:
        if self._pod.params.containers:
            answer({"owners": []})  # nobody's process runs here; such a pod has a time to live
            return
        pid, start = meta.get("pid"), meta.get("start")
        valid = type(pid) is int and 0 < pid < 1 << 31 and (start is None or type(start) is int)
        if not valid or not self._pod.life.adopt(int(pid or 0), start):
            answer({"error": {"type": "CallError", "message": f"process {pid} does not run on the pod's machine"}})
        else:
            answer({"owners": self._pod.life.owners})

    def _cancel(self, meta: dict[str, Any], answer: Answer) -> None:
        record = self._find(meta, answer)
        if record is not None:
            ended = record.ended is not None
            self._pod.calls.cancel(record, "user")
            answer({"cancelled": not ended})

    def _restart(self, meta: dict[str, Any], answer: Answer) -> None:
        def done(error: dict[str, Any] | None) -> None:
            answer({"error": error} if error is not None else {"restarted": True})

        self._pod.supervisor.restart(done)

    def _teardown(self, meta: dict[str, Any], answer: Answer) -> None:
        answer({"stopping": True})
        self._pod.stop("a client has asked for its end")

    def _drain(self, meta: dict[str, Any], answer: Answer) -> None:
        self._pod.drain()
        answer({"calls": self._pod.life.active})

    def _touch(self, meta: dict[str, Any], answer: Answer) -> None:
        self._pod.life.touch()
        answer({"idle": 0})


def _after(meta: dict[str, Any]) -> int:
    """The offset or number that is known already (``after``)."""
    after = meta.get("after")
    return after if isinstance(after, int) else 0


def _room(meta: dict[str, Any]) -> int:
    """Bytes of a log that are asked for (``last``), as far as they fit a frame."""
    last = meta.get("last")
    return min(last, _ROOM) if type(last) is int and last > 0 else _ROOM


def _tail(log: Log, room: int, after: int = 0) -> str:
    """The last `room` bytes of a log, of those from an offset `after` on, as text that fits a frame."""
    texts: list[bytes] = []
    offset = max(log.last(room), after)  # not all of it: that may take seconds
    decoder = LogDecoder()
    while True:
        start, data, _ = log.read(offset, 1 << 20)
        if not data:
            break
        offset = start + len(data)
        try:
            entries = decoder.feed(data)
        except WireError:
            texts.append(b"\n[a part of the log can't be read]\n")
            break
        texts += [d for kind, d in entries if kind is not LogKind.DISPLAY]
        texts = [b"".join(texts)[-room:]]
    text = b"".join(texts).decode(errors="replace")
    while len(json.dumps(text)) > _ROOM:
        text = text[len(text) // 8 + 1 :]
    return text
