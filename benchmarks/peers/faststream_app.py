"""The second peer: a worker written as FastStream's documentation suggests.

Subscriber and publisher are decorators and the record is a pydantic model. A message is acknowledged after the handler
returns. XML has its own decoder, as the documentation shows for other formats. Everything else is as in `plain`.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any
from xml.etree import ElementTree

import asyncpg
from faststream import FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitExchange, RabbitMessage, RabbitQueue

from benchmarks.peers.plain import FIELDS, UPSERT, TaskActivityLog

broker = RabbitBroker(os.environ["AMQP_URL"], default_channel=Channel(prefetch_count=100), logger=None)
app = FastStream(broker, logger=None)
database: "asyncpg.Pool[asyncpg.Record]"


async def decode(message: RabbitMessage, original: Callable[[RabbitMessage], Awaitable[Any]]) -> Any:
    """The members of an XML body. FastStream decodes all other bodies."""
    if message.content_type != "application/xml":
        return await original(message)
    return {child.tag.rpartition("}")[2]: child.text for child in ElementTree.fromstring(message.body)}


@app.on_startup
async def connect() -> None:
    """Open the pool."""
    global database  # noqa: PLW0603 - as in the documentation
    database = await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=10, max_size=10)


@broker.subscriber(RabbitQueue("task_activity_log.upsert", declare=False), decoder=decode)
@broker.publisher(
    exchange=RabbitExchange("task_activity_log.replies", declare=False),
    routing_key="stored.updated",
    persist=True,
)
async def store(record: TaskActivityLog) -> TaskActivityLog:
    """Upsert the record, and reply with the stored one."""
    row = await database.fetchrow(UPSERT, *(getattr(record, name) for name in FIELDS))
    return TaskActivityLog.model_validate(dict(row or {}))


if __name__ == "__main__":
    asyncio.run(app.run())
