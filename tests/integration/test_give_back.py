"""The order in which RabbitMQ redelivers what was requeued: order per record depends on it."""

import asyncio

import aio_pika
import pytest

from task_activity_log.aio import end
from task_activity_log.rabbitmq.intake import Intake
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.rabbitmq.topology import Topology


@pytest.mark.parametrize("count", [1, 32, 33, 64, 1000])
async def test_what_is_requeued_comes_again_in_order(amqp_url: str, count: int) -> None:
    """However much it is. On RabbitMQ 3.10 more than 32 messages that one nack requeues would come again in another order."""
    topology = Topology()
    intake = Intake(LinkOptions(amqp_url), topology, prefetch=count)
    running = asyncio.create_task(intake.run())
    await intake.wait_consuming()
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(topology.requests_exchange, ensure=False)
        for number in range(-1, count):
            await exchange.publish(aio_pika.Message(str(number).encode()), "upsert")
        await intake.acknowledge(await intake.take(1))  # proves the consumer
        taken = 0
        while taken < count:
            taken += len(await intake.take(count))
        await intake.pause("test")
        assert await intake.requeue() == count
        queue = await channel.get_queue(topology.requests_queue, ensure=False)
        again: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
        await queue.consume(again.put, no_ack=True)
        assert [int((await again.get()).body) for _ in range(count)] == list(range(count))
    await end(running)
