"""Measures publishing with a confirm for each message: `Publisher`, and aio-pika used as its documentation suggests."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from statistics import median

import aio_pika

from benchmarks import show
from benchmarks.load import BATCH, properties_of, publishing, requests
from benchmarks.workers import Services
from task_activity_log.rabbitmq.outgoing import Outgoing

Publish = Callable[[Sequence[Outgoing]], Awaitable[object]]


async def compare(services: Services, *, messages: int, rounds: int) -> dict[str, dict[str, float]]:
    """The medians of messages a second and of the publishing process's CPU microseconds a message, by way to publish."""
    url = os.environ["AMQP_URL"]
    async with publishing(url) as publisher, await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange("task_activity_log")

        async def one(message: Outgoing) -> None:
            properties = properties_of(message)
            await exchange.publish(
                aio_pika.Message(
                    message.body,
                    content_type=properties.content_type,
                    delivery_mode=properties.delivery_mode,
                    message_id=properties.message_id,
                ),
                message.routing_key,
            )

        async def one_by_one(some: Sequence[Outgoing]) -> None:
            for message in some:
                await one(message)

        async def gathered(some: Sequence[Outgoing]) -> None:
            await asyncio.gather(*map(one, some))

        ways: dict[str, tuple[Publish, int]] = {
            f"Publisher, {BATCH:,} a batch": (publisher.publish, messages),
            "aio-pika, one awaited after the other": (one_by_one, messages // 10),
            "aio-pika, 1,000 gathered": (gathered, messages // 2),
        }
        found: dict[str, dict[str, list[float]]] = {way: {"messages_per_second": [], "cpu_us": []} for way in ways}
        for _ in range(rounds):
            for way, (publish, count) in ways.items():
                await services.empty(tables=False)
                coming = list(requests(count))
                with show.bar(way) as progress:
                    began, cpu = time.perf_counter(), time.process_time()
                    for start in range(0, count, BATCH):
                        await publish(coming[start : start + BATCH])
                        progress(start / count)
                    found[way]["cpu_us"].append((time.process_time() - cpu) / count * 1e6)
                    found[way]["messages_per_second"].append(count / (time.perf_counter() - began))
    await services.empty(tables=False)
    medians = {way: {name: median(values) for name, values in some.items()} for way, some in found.items()}
    first = next(iter(medians.values()))["messages_per_second"]
    show.table(
        "Publishing, with a confirm for each message",
        ("", "messages/s", "Publisher is", "CPU µs"),
        [
            (
                way,
                f"{some['messages_per_second']:,.0f}",
                f"{first / some['messages_per_second']:.1f} ×",
                f"{some['cpu_us']:,.0f}",
            )
            for way, some in medians.items()
        ],
    )
    return medians
