"""A publisher and subscriber for tests of faults. Its own connection is not affected by them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from task_activity_log.rabbitmq.topology import Topology, declare

TOPOLOGY = Topology()
SINGLE_ACTIVE = Topology(single_active_consumer=True)
"""For workers with `WORKER_SINGLE_ACTIVE_CONSUMER=true`: they refuse a queue that was declared without."""


class Conversation:
    """Sends upserts, and reads the replies and the dead letters."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.channel = channel
        self.answers: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()

    async def send(
        self,
        identifier: UUID | None = None,
        *,
        reply_to: str | None = None,
        message_id: str | None = None,
        **fields: Any,
    ) -> str:
        """Publish a record and return the message_id."""
        message_id = message_id or str(uuid4())
        body = json.dumps({"id": str(identifier or uuid4()), **fields}).encode()
        exchange = await self.channel.get_exchange(TOPOLOGY.requests_exchange, ensure=False)
        message = aio_pika.Message(body, message_id=message_id, reply_to=reply_to)
        await exchange.publish(message, "upsert", mandatory=True)
        return message_id

    async def outcomes(self, count: int, seconds: float = 60) -> list[str]:
        """The outcomes of the next `count` replies, sorted."""
        async with asyncio.timeout(seconds):
            return sorted([str((await self.answers.get()).headers["x-outcome"]) for _ in range(count)])

    async def kept(self) -> list[AbstractIncomingMessage]:
        """Take everything from the dead-letter queue."""
        queue = await self.channel.get_queue(TOPOLOGY.dead_letters_queue)
        found = []
        while (message := await queue.get(no_ack=True, fail=False)) is not None:
            found.append(message)
        return found


@asynccontextmanager
async def conversing(
    amqp_url: str, *, answers: bool = True, topology: Topology = TOPOLOGY
) -> AsyncIterator[Conversation]:
    """A conversation. Without `answers` it does not consume the replies."""
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, topology)
        conversation = Conversation(await connection.channel(on_return_raises=True))
        if answers:
            replies = await conversation.channel.get_queue(TOPOLOGY.replies_queue)
            await replies.consume(conversation.answers.put, no_ack=True)
        yield conversation


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until a condition is true that has no event to wait for."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
