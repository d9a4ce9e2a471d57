"""A backlog of numbered messages for few records: what was applied in which order is seen in their `subject`."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel

from task_activity_log.client.connections import publishing
from task_activity_log.message import Properties
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import Publisher
from task_activity_log.rabbitmq.topology import Topology, declare
from tests import audit_trigger
from tests.asking import Connection

_TOGETHER = 500
"""Messages that are published before their confirms are waited for."""


class Backlog:
    """Records, and how many messages each has been sent."""

    def __init__(
        self, channel: AbstractChannel, publisher: Publisher, topology: Topology, *, records: int, repeatable: int
    ) -> None:
        self._channel = channel
        self._publisher = publisher
        self._topology = topology
        self._records = [uuid4() for _ in range(records)]
        self.sent = dict.fromkeys(self._records, 0)
        self.repeatable = frozenset(self._records[:repeatable])
        """Those whose messages have no message_id: they are applied again when they come again."""

    @property
    def total(self) -> int:
        """How many messages were sent."""
        return sum(self.sent.values())

    async def send(self, count: int) -> None:
        """Publish `count` messages, the records in turn; returns when the broker has confirmed all.

        The product's publisher does this much faster than workers take them, on whatever machine: `fill` comes to an end.
        """
        for start in range(0, count, _TOGETHER):
            batch = [self._message() for _ in range(min(_TOGETHER, count - start))]
            assert set(await self._publisher.publish(batch)) == {Fate.CONFIRMED}

    async def fill(self, waiting: int) -> None:
        """Publish as many as it takes for `waiting` messages to be in the queue and in nobody's hands.

        Do this before you look for the active worker: on a busy machine all earlier ones may have been written by then.
        """
        while (missing := waiting - await self.waiting()) > 0:
            await self.send(missing)

    def _message(self) -> Outgoing:
        record = self._records[self.total % len(self._records)]
        body = json.dumps({"id": str(record), "subject": str(self.sent[record])}).encode()
        self.sent[record] += 1
        message_id = None if record in self.repeatable else str(uuid4())
        properties = Properties(message_id=message_id, delivery_mode=2)
        return Outgoing(self._topology.requests_exchange, "upsert", properties, body)

    async def waiting(self) -> int:
        """How many messages are in the queue of the requests and in nobody's hands."""
        return await self._length(self._topology.requests_queue)

    async def answered(self) -> int:
        """How many replies there are."""
        return await self._length(self._topology.replies_queue)

    async def dead_letters(self) -> int:
        """How many messages were rejected, by the worker or by the broker."""
        return await self._length(self._topology.dead_letters_queue)

    async def _length(self, queue: str) -> int:
        found = await self._channel.declare_queue(queue, passive=True)
        return found.declaration_result.message_count or 0

    async def written(self, database: Connection, count: int) -> None:
        """Wait until there have been `count` writes, or all messages are written. The database has no event for that."""
        async with asyncio.timeout(60):
            while await audit_trigger.count(database) < min(count, self.total):
                await asyncio.sleep(0.01)

    async def settled(self, in_hand: Callable[[], Awaitable[int]]) -> None:
        """Wait until all is answered, and nothing is left in the queue or in the workers' hands.

        Args:
            in_hand: says how many deliveries the workers have not settled.
        """
        async with asyncio.timeout(90):
            while await self.answered() < self.total or await self.waiting() or await in_hand():
                await asyncio.sleep(0.05)

    async def disorder(self, database: Connection) -> list[str]:
        """What is wrong with the order of all writes so far."""
        return audit_trigger.disorder(await audit_trigger.read(database), self.sent, self.repeatable)


@asynccontextmanager
async def backlog(
    amqp_url: str, *, records: int = 20, repeatable: int = 0, single_active_consumer: bool = True
) -> AsyncIterator[Backlog]:
    """Declare the queues as a worker would, and send to them.

    Args:
        amqp_url: the broker.
        records: how many records the messages are for, in turn.
        repeatable: how many of these have messages without message_id.
        single_active_consumer: whether one worker at a time is to consume.
    """
    topology = Topology(single_active_consumer=single_active_consumer)
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, topology)
        channel = await connection.channel()
        async with publishing(amqp_url, "backlog") as publisher:
            yield Backlog(channel, publisher, topology, records=records, repeatable=repeatable)
