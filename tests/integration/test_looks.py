"""What a look at a queue leaves there: every message in its order, and where the broker allows it without a failed delivery."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel

from sandbox import RabbitMQ
from task_activity_log.client import PoisonQueue, subscribe
from task_activity_log.client.dead_letters import borrow_dead_letters, borrow_these
from task_activity_log.client.finding import waiting_replies
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.rabbitmq.queues import existing_queue
from task_activity_log.rabbitmq.reading import reading
from task_activity_log.rabbitmq.topology import Topology, declare
from task_activity_log.rabbitmq.version import number

QUEUE = Topology().replies_queue
COUNT = 80
"""More than the 32 that RabbitMQ handles at a time."""


@pytest.fixture
async def channel(amqp_url: str) -> AsyncIterator[AbstractChannel]:
    """A channel of a broker where this many replies wait."""
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, Topology())
        channel = await connection.channel()
        for message_id in range(COUNT):
            message = aio_pika.Message(b"", message_id=str(message_id))
            await channel.default_exchange.publish(message, QUEUE)
        yield channel


@pytest.fixture(autouse=True)
def _in_order(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The driver reports nothing, such as a channel that the broker has ended because of a second settlement."""
    with caplog.at_level("INFO"):
        yield
    assert caplog.records == []


@pytest.fixture
def counts_looks(rabbitmq: RabbitMQ) -> bool:
    """Whether the broker counts each return as a delivery."""
    return number(rabbitmq.version) < (4, 3)


async def tries(channel: AbstractChannel) -> list[tuple[int, int]]:
    """Every reply in the order of the queue, with how many deliveries have failed. They are removed."""
    found = list[tuple[int, int]]()
    queue = await channel.get_queue(QUEUE)
    async with queue.iterator() as messages:
        async for message in messages:
            count: Any = message.headers.get("x-delivery-count", 0)
            found.append((int(message.message_id or ""), count))
            await message.ack()
            if len(found) == COUNT:
                break
    return found


@asynccontextmanager
async def failing(amqp_url: str, message_id: int, poison: PoisonQueue | None = None) -> AsyncIterator[list[str | None]]:
    """A subscriber whose body fails at this reply; it has ended."""
    got = list[str | None]()
    with suppress(ZeroDivisionError):
        async with subscribe(amqp_url, on_poison=poison) as replies:
            async for reply in replies:
                got.append(reply.message_id)
                _ = 1 // (int(reply.message_id or "") - message_id)
    yield got


async def test_looks_change_neither_the_order_nor_the_number_of_failed_deliveries(
    amqp_url: str, channel: AbstractChannel, counts_looks: bool
) -> None:
    """Also if it is interrupted. Before RabbitMQ 4.3 each return counts."""
    assert len((await waiting_replies(amqp_url, QUEUE, lambda _: True)).replies) == COUNT
    one = await waiting_replies(amqp_url, QUEUE, lambda reply: reply.message_id == "7", most=COUNT)
    assert ([reply.message_id for reply in one.replies], one.newer) == (["7"], 0)
    too_many = await waiting_replies(amqp_url, QUEUE, lambda _: True, most=COUNT - 1)
    assert (too_many.replies, too_many.newer) == ([], COUNT)
    with suppress(ZeroDivisionError):
        async with borrow_dead_letters(amqp_url, QUEUE) as loan:
            async for _ in loan:
                _ = 1 // 0
    assert await tries(channel) == [(each, 3 if counts_looks else 0) for each in range(COUNT)]


async def test_what_is_given_back_early_is_not_counted_either(
    amqp_url: str, channel: AbstractChannel, counts_looks: bool
) -> None:
    """All but what a replay is to send, and that too, as far as it was not sent. The order may be another one."""
    async with borrow_dead_letters(amqp_url, QUEUE) as loan:
        keys = [letter.key async for letter in loan]
    async with borrow_these(amqp_url, QUEUE, keys[10:20]) as (loan, letters):
        assert await loan.remove(letters[:3]) == 3
    for _ in range(3):
        await channel.default_exchange.publish(aio_pika.Message(b"", message_id="10"), QUEUE)
    found = dict(await tries(channel))
    assert set(found) == {*range(COUNT)} - {11, 12}
    assert {count for each, count in found.items() if each != 10} <= ({2, 3} if counts_looks else {0})


@pytest.mark.parametrize("prefetch", [10, 50, COUNT])
@pytest.mark.parametrize("taken", [1, 10])
async def test_a_look_at_a_part_returns_it_in_order(
    amqp_url: str, channel: AbstractChannel, counts_looks: bool, prefetch: int, taken: int
) -> None:
    """In front of the others, although some were still on their way when the look ended."""
    async with reading(LinkOptions(amqp_url), "test", existing_queue(QUEUE, prefetch), look=True) as reader:
        for _ in range(taken):
            await reader.take(1)
    found = await tries(channel)
    assert [each for each, _ in found] == list(range(COUNT))
    assert {count for _, count in found[prefetch:]} <= {0}
    assert {count for _, count in found[:taken]} == {int(counts_looks)}
    assert {count for _, count in found[:prefetch]} <= {0, int(counts_looks)}


@pytest.mark.parametrize("fails", [False, True])
async def test_the_end_of_a_subscription_counts_what_was_delivered(
    amqp_url: str, channel: AbstractChannel, *, fails: bool
) -> None:
    """Also of the replies that it had not come to, because only closing the channel keeps the order."""
    if fails:
        async with failing(amqp_url, 30) as got:
            assert got == [str(each) for each in range(31)]
    else:
        async with subscribe(amqp_url) as replies:
            async for reply in replies:
                if reply.message_id == "30":
                    break
    for _ in range(30):
        await channel.default_exchange.publish(aio_pika.Message(b"", message_id="99"), QUEUE)
    assert await tries(channel) == [*((each, 1) for each in range(30, COUNT)), *[(99, 0)] * 30]


async def test_looks_do_not_bring_a_reply_nearer_to_the_poison_queue(
    amqp_url: str, channel: AbstractChannel, counts_looks: bool
) -> None:
    """It is moved after as many failures as were asked for. Before RabbitMQ 4.3 each look is treated as one."""
    poison = PoisonQueue("poison", tries=3)
    moved = await channel.declare_queue("poison", durable=True, arguments={"x-queue-type": "quorum"})
    failures = 0
    while (message := await moved.get(fail=False)) is None:
        # It may come behind the others, which were returned as well.
        async with failing(amqp_url, 0, poison) as got:
            failures += got[-1] == "0"
        await waiting_replies(amqp_url, QUEUE, lambda _: True)
    assert (message.message_id, failures) == ("0", 2 if counts_looks else 3)
