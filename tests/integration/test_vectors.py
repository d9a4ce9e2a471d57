"""The contract's vectors through a running worker: published, stored or dead-lettered, and answered."""

import asyncio
import json
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from lxml import etree

from task_activity_log import wire
from task_activity_log.rabbitmq.topology import Topology
from tests.serving import serving
from tests.vectors import Vector, load

TOPOLOGY = Topology()


async def test_every_vector_is_answered_as_the_contract_says(amqp_url: str, database_url: str) -> None:
    """An accepted one is answered with the stored record in its own format, another with its code, and is dead-lettered."""
    vectors = {vector.id: vector for vector in load()}
    async with serving(amqp_url, database_url), await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(TOPOLOGY.requests_exchange)
        for vector in vectors.values():
            message = aio_pika.Message(vector.body, content_type=vector.content_type, correlation_id=vector.id)
            await exchange.publish(message, "upsert")
        replies = await gather(await channel.get_queue(TOPOLOGY.replies_queue), len(vectors))
        rejected = [vector for vector in vectors.values() if vector.code is not None]
        kept = await gather(await channel.get_queue(TOPOLOGY.dead_letters_queue), len(rejected))
    assert replies.keys() == vectors.keys()
    assert {name for name, vector in vectors.items() if not is_right(replies[name], vector)} == set()
    assert {vector.id: (vector.code, vector.body) for vector in rejected} == {
        name: (message.headers["x-error-code"], message.body) for name, message in kept.items()
    }


async def gather(queue: AbstractQueue, count: int) -> dict[str, AbstractIncomingMessage]:
    """This number of messages from a queue, by correlation_id."""
    messages: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    await queue.consume(messages.put, no_ack=True)
    async with asyncio.timeout(30):
        return {str(message.correlation_id): message for message in [await messages.get() for _ in range(count)]}


def is_right(reply: AbstractIncomingMessage, vector: Vector) -> bool:
    """Whether a reply is the one that the vector expects."""
    in_xml = "xml" in (vector.content_type or "").lower()
    if vector.code is not None:
        return reply.headers["x-error-code"] == vector.code == code_in(reply)
    assert ("xml" in str(reply.content_type)) == in_xml
    # XML replies have milliseconds.
    fields = {name: cut(value) if in_xml else value for name, value in vector.fields.items()}
    record = wire.decode_stored(reply.body, reply.content_type)
    return Vector(vector.id, None, b"", None, fields).holds(record)


def cut(value: Any) -> Any:
    is_instant = isinstance(value, str) and len(value) == 27 and value.endswith("Z")
    return f"{value[:-4]}000Z" if is_instant else value


def code_in(reply: AbstractIncomingMessage) -> str | None:
    if reply.content_type == "application/problem+json":
        return str(json.loads(reply.body)["code"])
    return etree.fromstring(reply.body).findtext("{urn:ietf:rfc:7807}code")
