"""The order of replies after the orderly end of a subscription: what it had comes again, before everything else."""

import asyncio
from collections.abc import Sequence
from typing import Any

import aio_pika
import pytest

from task_activity_log.client import subscribe
from task_activity_log.client.subscription import Subscription

QUEUE = "mine"
COUNT = 300
PREFETCH = 100
"""Fewer than wait: others are delivered in the place of what is acknowledged, also while the subscription ends."""


async def fill(amqp_url: str, **arguments: Any) -> None:
    """Declare the queue with these arguments, and put the replies into it."""
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        arguments |= {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}
        await channel.declare_queue(QUEUE, durable=True, arguments=arguments)
        messages = [aio_pika.Message(b"", message_id=str(number)) for number in range(COUNT)]
        await asyncio.gather(*(channel.default_exchange.publish(message, QUEUE) for message in messages))


def subscription(amqp_url: str, connected: asyncio.Event | None = None) -> Subscription[Any]:
    """All replies of the queue, also those that repeat."""
    began = (connected or asyncio.Event()).set
    return subscribe(amqp_url, queue=QUEUE, everything=True, prefetch=PREFETCH, on_connected=began)


async def read(replies: Subscription[Any], most: int = COUNT) -> list[int]:
    """The numbers of the replies, up to the last one of the queue or this many. The loop is left in its body."""
    got = list[int]()
    async for reply in replies:
        got.append(int(reply.message_id or ""))
        if len(got) == most or got[-1] == COUNT - 1:
            break
    return got


def check_order(runs: Sequence[Sequence[int]]) -> None:
    """Each reply comes, and none before the one in front of it. Only what was seen last may come again.

    How much comes again is not checked: a slow broker forgets acknowledgements when a channel closes.
    """
    following = 0
    for run in runs:
        assert run[0] <= following
        assert run == list(range(run[0], run[-1] + 1))
        following = max(following, run[-1] + 1)
    assert following == COUNT


@pytest.mark.parametrize("most", [10, 40])
async def test_a_subscriber_that_starts_again_is_given_the_replies_in_order(amqp_url: str, most: int) -> None:
    """Also if it has acknowledged more than the queue has applied when it ends."""
    await fill(amqp_url)
    runs = list[list[int]]()
    for each in (most, most, most, COUNT):
        async with subscription(amqp_url) as replies:
            runs.append(await read(replies, each))
    check_order(runs)


@pytest.mark.parametrize("most", [10, 40])
@pytest.mark.parametrize("fails", [False, True])
async def test_a_subscriber_that_stands_by_is_given_the_replies_in_order(
    amqp_url: str, most: int, *, fails: bool
) -> None:
    """On a queue with a single active consumer: it is given nothing before all that the first one had is in the queue again."""
    await fill(amqp_url, **{"x-single-active-consumer": True})
    runs, waits = list[list[int]](), asyncio.Event()

    async def stand_by() -> list[int]:
        async with subscription(amqp_url, waits) as replies:
            return await read(replies)

    try:
        async with subscription(amqp_url) as replies:
            runs.append(await read(replies, 1))
            standing_by = asyncio.create_task(stand_by())
            await waits.wait()
            runs[0] += await read(replies, most - 1)
            _ = 1 // (not fails)
    except ZeroDivisionError:
        assert fails
    async with asyncio.timeout(30):
        runs.append(await standing_by)
    check_order(runs)
