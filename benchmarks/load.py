"""The load: requests like the sample record. Every tenth is XML, and every second is an update."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from hashlib import md5
from itertools import cycle, islice
from random import randint
from uuid import UUID, uuid4

from benchmarks.show import Progress
from task_activity_log.message import Properties
from task_activity_log.partitions import hash_slot
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.headers import decode, encode
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import Publisher
from task_activity_log.rabbitmq.topology import Topology

TOPOLOGY = Topology()
PARTITIONED = Topology(
    requests_queue="task_activity_log.partitioned", requests_exchange="task_activity_log.partitioned", partitions=8
)
"""Eight partitions next to the usual requests queue, which has no single active consumer."""
BATCH = 1000
"""How many messages are published at a time."""
UPDATES_AFTER = 1000
"""How many new records come between a record and its update."""
XML_EVERY = 10

_MOMENT = "2026-01-11T20:58:34.7203833+00:00"
_XML = (
    '<task_activity_log xmlns:i="http://www.w3.org/2001/XMLSchema-instance"'
    ' xmlns="http://schemas.datacontract.org/2004/07/Sample">{}\n</task_activity_log>'
)


def body(identifier: UUID, *, xml: bool) -> bytes:
    """The body of a request, with the fields and the indentation of the sample record."""
    members: dict[str, object] = {
        "id": str(identifier),
        "task_id": str(uuid4()),
        "task_activity_id": str(uuid4()),
        "user_id": str(uuid4()),
        "contact_id": str(uuid4()),
        "subject": "sample string 6",
        "description": "sample string 7",
        "due_date": _MOMENT,
        "is_closed": True,
        "date_closed": _MOMENT,
        "reference_back_office": "sample string 11",
        "modified_dateutc": _MOMENT,
    }
    if not xml:
        return json.dumps(members, indent=2).encode()
    members["is_closed"] = "true"
    return _XML.format("".join(f"\n  <{name}>{value}</{name}>" for name, value in sorted(members.items()))).encode()


def row_id(number: int) -> UUID:
    """The id of a row that `growth` inserts into the table: the value of PostgreSQL's md5(number::text)::uuid."""
    return UUID(md5(str(number).encode(), usedforsecurity=False).hexdigest())


def requests(count: int, *, rows: int = 0, by_record: bool = False) -> Iterator[Outgoing]:
    """`count` persistent requests. Updates are of records sent before or, with `rows`, of that many existing rows."""
    earlier = deque(uuid4() for _ in range(UPDATES_AFTER))  # not sent before, so the first updates insert, too
    for number in range(count):
        if number % 2:
            identifier = row_id(randint(1, rows)) if rows else earlier.popleft()  # noqa: S311 - not cryptography
        else:
            identifier = uuid4()
            earlier.append(identifier)
        yield request(identifier, xml=number % XML_EVERY == XML_EVERY - 1, by_record=by_record)


def request(identifier: UUID, *, xml: bool = False, by_record: bool = False) -> Outgoing:
    """One persistent request, for the requests queue or, with `by_record`, for the partition of its record."""
    return Outgoing(
        PARTITIONED.partitions_exchange if by_record else TOPOLOGY.requests_exchange,
        hash_slot(identifier) if by_record else "upsert",
        Properties(
            content_type="application/xml" if xml else "application/json",
            delivery_mode=2,
            message_id=str(uuid4()),
            correlation_id=str(uuid4()),
            timestamp=int(time.time()),
        ),
        body(identifier, xml=xml),
    )


def properties_of(message: Outgoing) -> Properties:
    """The properties of a message, as whoever receives it reads them."""
    return decode(encode(message.properties, len(message.body)))


@asynccontextmanager
async def publishing(url: str) -> AsyncIterator[Publisher]:
    """A connected publisher."""
    publisher = Publisher(LinkOptions(url), purpose="benchmark")
    running = asyncio.create_task(publisher.run())
    await publisher.wait_connected()
    try:
        yield publisher
    finally:
        running.cancel()
        await asyncio.wait({running})


async def fill(url: str, count: int, progress: Progress, *, rows: int = 0, by_record: bool = False) -> None:
    """Publish `count` requests to the queue, or to the partitions."""
    coming = requests(count, rows=rows, by_record=by_record)
    async with publishing(url) as publisher:
        for done in range(0, count, BATCH):
            await publisher.publish(list(islice(coming, BATCH)))
            progress(done / count)


async def keep_publishing(url: str, rate: int) -> None:
    """Publish this many requests a second to the partitions, for ever. What was not taken is published again."""
    records = cycle([uuid4() for _ in range(1000)])
    async with publishing(url) as publisher:
        while True:
            batch = [request(next(records), by_record=True) for _ in range(rate // 10)]
            while batch:
                await asyncio.sleep(0.1)
                with suppress(Unavailable):
                    fates = await publisher.publish(batch)
                    batch = [one for one, fate in zip(batch, fates, strict=True) if fate is not Fate.CONFIRMED]
