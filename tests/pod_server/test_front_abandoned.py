"""Calls of clients that never come back: those that can only wait are cancelled, the others run on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from pod_server.front.params import FrontParams
from pod_server.front.pod import Pod
from pod_server.front.records import Record, State
from pod_server.front.worker import Worker
from pod_server.wire import F_BULK, Decoder, FrameType, encode, new_client_id


def test_only_what_waits_for_its_client_is_cancelled(tmp_path: Path) -> None:
    async def run() -> None:
        pod = Pod(FrontParams(str(tmp_path / "svc"), "svc", "t" * 43, bulk_dir=str(tmp_path / "bulk")))
        client = pod.calls.client(new_client_id())
        worker = Worker(1, "fingerprint")

        def call(seq: int, flags: int = 0, **meta: object) -> Record:
            record = pod.store.add(client, seq)
            [record.frame] = Decoder().feed(encode(FrameType.CALL, seq, meta, (), flags))
            record.meta = record.frame.meta
            return record

        uploading = call(1, F_BULK, lens=[100_000])
        pod.calls.accept(uploading, None, 100_000)
        starved, reading, plain = call(2, gen=2), call(3, gen=2), call(4)
        starved.credit = reading.credit = 2
        for record in (starved, reading, plain):
            pod.life.began(record)
            pod.calls.send(worker, record)
        for record, items in ((starved, 2), (reading, 1)):
            for i in range(items):
                pod.store.add_item(record, encode(FrameType.ITEM, record.number, {"i": i}), None)

        # Its payload is here: a LOAD that is being done, or a call that waits for a worker.
        complete = call(5, F_BULK, lens=[100_000])
        pod.life.began(complete)

        client.gone_since = time.time()
        pod.calls.sweep(time.time() + 60)
        assert not any(r.cancelled for r in pod.store)
        pod.calls.sweep(time.time() + 130)
        assert uploading.state == State.CANCELLED
        assert uploading.ended is not None
        assert starved.state == State.CANCELLING
        assert [reading.state, plain.state] == [State.RUNNING] * 2
        assert complete.state == State.QUEUED
        assert pod.life.active == 4
        # It waits for nothing any more.
        assert await pod.bulk.put(client.id, 1, asyncio.Queue().get) == (409, "no call waits for this upload")
        pod.life.close()
        pod.remove()

    asyncio.run(run())
