"""Messages in the queue of the requests that consumers have had before, and did not settle."""

import asyncio

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

from task_activity_log.rabbitmq.topology import Topology


async def make_suspicious(amqp_url: str, before: int, count: int, deliveries: int) -> None:
    """Have `before` messages delivered once, and the `count` behind them `deliveries` times. They keep their places.

    Whoever has the first ones must go before the others do: what is returned later comes again later.
    """
    async with await aio_pika.connect(amqp_url) as connection:
        first = await connection.channel()
        queue, tag = await take(first, before)
        await queue.cancel(tag)  # so that the next consumer becomes the active one
        for number in range(deliveries):
            others = await connection.channel()
            await take(others, count)
            if number == deliveries - 1:
                await first.close()
            await others.close()


async def take(channel: AbstractChannel, count: int) -> tuple[AbstractQueue, str]:
    """Consume until so many messages are in hand, and settle none; the queue and the consumer's tag."""
    taken = asyncio.Semaphore(0)

    async def on_message(_: AbstractIncomingMessage) -> None:
        taken.release()

    await channel.set_qos(prefetch_count=count)
    queue = await channel.get_queue(Topology().requests_queue, ensure=False)
    tag = await queue.consume(on_message)
    async with asyncio.timeout(30):
        for _ in range(count):
            await taken.acquire()
    return queue, tag
