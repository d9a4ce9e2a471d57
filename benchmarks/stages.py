"""Measures the worker's CPU time stage by stage, without broker and database: `make bench-stages`.

Each stage processes a batch of 500 messages of the load by itself. The result is the fastest of many rounds, because
on a shared machine the slower ones measure other processes. The time of the kernel and of the drivers (sockets,
asyncpg) is not included.
"""

from __future__ import annotations

import asyncio
import struct
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

from benchmarks.load import requests
from task_activity_log.aio import Slices, Waiting
from task_activity_log.pipeline import reply
from task_activity_log.pipeline.ports import Settlement
from task_activity_log.pipeline.request import Rules, UpdateMode, decode
from task_activity_log.pipeline.suspects import batch_length, by_attempts
from task_activity_log.pipeline.waves import waves
from task_activity_log.postgresql import writing
from task_activity_log.rabbitmq import headers
from task_activity_log.rabbitmq.confirms import ConfirmChannel
from task_activity_log.rabbitmq.consumer import Consumer, RabbitDelivery
from task_activity_log.rabbitmq.frames import FrameReader, Inbound
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.rabbitmq.outgoing import Outgoing
from task_activity_log.rabbitmq.publisher import Publisher
from task_activity_log.rabbitmq.replies import Replies
from task_activity_log.rabbitmq.topology import Topology
from task_activity_log.record import Applied, Outcome, StoredTaskActivityLog
from task_activity_log.telemetry.metrics import Metrics

SIZE = 500  # messages in the batch
ROUNDS = 40
_FRAME = struct.Struct(">BHI")
_METHOD = b"\0\x3c\0\x3c\4tag1"


def deliveries(messages: list[Outgoing]) -> bytes:
    """The bytes that RabbitMQ sends to deliver `messages`."""
    pieces: list[bytes] = []
    for tag, message in enumerate(messages, start=1):
        method = _METHOD + tag.to_bytes(8, "big") + b"\0" + b"\x11task_activity_log\6upsert"
        header = headers.encode(message.properties, len(message.body))
        for kind, payload in ((1, method), (2, header), (3, message.body)):
            pieces += (_FRAME.pack(kind, 1, len(payload)), payload, b"\xce")
    return b"".join(pieces)


def best(stage: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """The microseconds a message that a stage takes: the fastest of all rounds. `before` is not measured."""
    fastest = float("inf")
    for _ in range(ROUNDS):
        before()
        started = time.perf_counter()
        stage()
        fastest = min(fastest, time.perf_counter() - started)
    return fastest / SIZE * 1e6


async def main() -> None:
    """Measure all stages and print a line for each."""
    took: dict[str, float] = {}
    loop = asyncio.get_running_loop()
    data = deliveries(list(requests(SIZE)))
    driver = cast("Any", SimpleNamespace(on_consumer_cancel_callbacks=set(), number=1))
    waiting: Waiting[RabbitDelivery] = Waiting()
    consumer = Consumer(driver, "queue", waiting)
    Slices.SECONDS = 3_600.0  # there is no connection that would go on after a slice
    frame_reader = FrameReader(asyncio.StreamReader(loop=loop), loop)
    frame_reader.channels[1] = Inbound(deliver=consumer.deliver)
    parts = [data[start : start + 65536] for start in range(0, len(data), 65536)]

    took["take in: bytes → deliveries"] = best(lambda: [*map(frame_reader.data_received, parts)], waiting.clear)
    batch = waiting.take_waiting(SIZE)
    rules = Rules()
    took["suspects"] = best(lambda: batch_length(batch, SIZE, by_attempts))
    took["decode"] = best(lambda: [decode(delivery, rules) for delivery in batch])
    decoded = [decode(delivery, rules) for delivery in batch]
    took["waves"] = best(lambda: waves(decoded))
    took["store: columns"] = best(lambda: writing.arguments(decoded, UpdateMode.REPLACE, 1.0))
    rows: list[dict[str, Any]] = [
        {**dict(request.record), "modified_dateutc": datetime.now(UTC), "outcome": "inserted"} for request in decoded
    ]
    took["store: row → record"] = best(
        lambda: [Applied(Outcome.INSERTED, StoredTaskActivityLog.from_row(row)) for row in rows]
    )
    applied = [Applied(Outcome.INSERTED, StoredTaskActivityLog.from_row(row)) for row in rows]
    took["reply"] = best(
        lambda: [
            Settlement(request.delivery, reply.stored(request, each, "emit"))
            for request, each in zip(decoded, applied, strict=True)
        ]
    )
    answers = [
        Settlement(request.delivery, reply.stored(request, each, "emit"))
        for request, each in zip(decoded, applied, strict=True)
    ]

    written: list[bytes] = []

    class Queue:
        async def put(self, frame: Any) -> None:
            written.append(frame.payload)
            frame.drain_future.set_result(None)

    connection = SimpleNamespace(write_queue=Queue())
    underlay = cast(
        "Any",
        SimpleNamespace(
            number=1, connection=connection, create_future=loop.create_future, closing=loop.create_future()
        ),
    )
    channel = ConfirmChannel(underlay, 131_072)
    publisher = Publisher(LinkOptions(""))
    publisher._channel = channel  # noqa: SLF001 - as if it were connected
    replies = Replies[RabbitDelivery](publisher, publisher, LinkOptions(""), Topology())

    async def publish() -> None:
        publishing = asyncio.ensure_future(replies.publish(answers))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        channel.confirm(channel._sequence, True, True)  # noqa: SLF001 - as the broker would
        await publishing

    fastest = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        await publish()
        fastest = min(fastest, time.perf_counter() - started)
    took["publish: replies → bytes, confirms"] = fastest / SIZE * 1e6
    metrics = Metrics()
    took["metrics"] = best(lambda: metrics.answered(answers))
    for name, microseconds in took.items():
        print(f"{name:36} {microseconds:6.2f} µs")
    print(f"{'sum':36} {sum(took.values()):6.2f} µs a message")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
