"""The order in which RabbitMQ hands out again what it was given back: what order per id rests on."""

import asyncio

import aio_pika
import pytest

from task_activity_log.rabbitmq.intake import Intake
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.rabbitmq.topology import Topology


@pytest.mark.parametrize("count", [1, 32, 33, 64, 1000])
async def test_what_is_given_back_comes_again_in_order(amqp_url: str, count: int) -> None:
    """However much it is: on RabbitMQ 3.10 more than 32 given back with one frame would come again shuffled."""
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
    running.cancel()
    await asyncio.wait({running})


async def test_after_suspects_messages_are_taken_one_at_a_time(amqp_url: str) -> None:
    """As many as went back. Otherwise each good one among them would let all others come in bulk, to be given back again.

    Each return counts as a delivery: the last suspects would pass for poison without ever having been tried.
    """
    topology = Topology()
    intake = Intake(LinkOptions(amqp_url), topology, prefetch=50)
    running = asyncio.create_task(intake.run())
    await intake.wait_consuming()
    async with await aio_pika.connect(amqp_url) as connection:
        exchange = await (await connection.channel()).get_exchange(topology.requests_exchange, ensure=False)
        for number in range(8):
            await exchange.publish(aio_pika.Message(str(number).encode()), "upsert")
        await intake.acknowledge(await intake.take(1))
        while intake.in_hand < 7:
            await asyncio.sleep(0)
        await intake.pause("suspect")
        assert await intake.requeue(one_by_one=True) == 7
        await intake.resume("suspect")
        for number in range(1, 8):
            (delivery,) = await intake.take(50)
            assert (delivery.body, intake.in_hand) == (str(number).encode(), 1)
            await intake.acknowledge([delivery])
        for number in range(3):
            await exchange.publish(aio_pika.Message(str(number).encode()), "upsert")
        async with asyncio.timeout(60):
            while intake.in_hand < 3:
                await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait({running})
