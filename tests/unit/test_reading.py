"""How a reader settles: with few commands under way, and done only when the queue has answered."""

import asyncio
from types import SimpleNamespace
from typing import cast

from aiormq.abc import AbstractChannel
from pamqp.commands import Basic

from task_activity_log.message import Properties
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.headers import encode
from task_activity_log.rabbitmq.queues import Found
from task_activity_log.rabbitmq.reading import Reader

KEPT_BACK_FROM = 33
"""RabbitMQ keeps the 33rd command back, and forgets it if the channel closes."""


class Channel:
    """A channel of RabbitMQ with a quorum queue that applies commands only when it is asked something."""

    def __init__(self) -> None:
        self.closing = asyncio.get_running_loop().create_future()
        self.on_consumer_cancel_callbacks: set[object] = set()
        self.under_way: list[int] = []
        self.most = 0
        self.removed: list[int] = []
        self.empty = True
        self.waiting = [7, 8]
        """What a passive declaration answers, one after the other: the message that `basic.get` gave comes back late."""

    async def basic_ack(self, tag: int, *, multiple: bool, wait: bool) -> None:
        assert not wait
        assert not multiple or tag == 1
        self.under_way.append(tag)
        self.most = max(self.most, len(self.under_way))

    async def basic_nack(self, tag: int, *, requeue: bool, wait: bool, multiple: bool = False) -> None:
        assert tag > 1
        assert requeue
        assert not wait
        assert not multiple
        self.under_way.append(0)

    async def basic_get(self, _: str) -> object:
        await asyncio.sleep(0)
        self.removed += filter(None, self.under_way[: KEPT_BACK_FROM - 1])
        del self.under_way[: KEPT_BACK_FROM - 1]
        return SimpleNamespace(
            delivery=Basic.GetEmpty() if self.empty else Basic.GetOk(delivery_tag=999, message_count=7)
        )

    async def queue_declare(self, _: str, *, passive: bool) -> object:
        assert passive
        return SimpleNamespace(message_count=self.waiting.pop(0))


async def borrowed(channel: Channel, count: int) -> tuple[Reader, list[RabbitDelivery]]:
    reader = Reader(cast("AbstractChannel", channel), Found("dead", count, count))
    for tag in range(1, count + 1):
        reader.deliver(tag, False, encode(Properties(), 0), b"")
    return reader, await reader.take(count)


async def test_a_removal_ends_when_the_queue_has_applied_every_acknowledgement() -> None:
    """However many there are, and also when the queue has messages that others may have."""
    for empty in (True, False):
        channel = Channel()
        channel.empty = empty
        reader, deliveries = await borrowed(channel, 400)
        assert await reader.remove(deliveries[::2]) == 200
        assert channel.removed == list(range(1, 400, 2))
        assert channel.most < KEPT_BACK_FROM
        assert sum(map(bool, channel.under_way)) == 0
        assert reader.in_hand == 200
        assert channel.waiting == ([7, 8] if empty else [])
        channel.closing.set_result(None)


async def test_what_is_returned_first_does_not_hold_up_a_removal() -> None:
    """When the returns are done, the queue has all of them."""
    channel = Channel()
    reader, deliveries = await borrowed(channel, 100)
    await reader.give_back(deliveries[1::2])
    assert channel.under_way == []
    assert await reader.remove(deliveries[2:3]) == 1
    assert channel.removed == [3]
    channel.closing.set_result(None)


async def test_what_was_acknowledged_a_moment_ago_is_applied_before_the_channel_closes() -> None:
    """The broker would forget what it keeps back: somebody else would be given what was taken."""
    for empty in (True, False):
        channel = Channel()
        channel.empty = empty
        reader, deliveries = await borrowed(channel, 60)
        for delivery in deliveries[1::2]:
            await reader.acknowledge([delivery.tag])
        assert channel.removed == []
        await reader._apply_acknowledgements()
        assert channel.removed == list(range(2, 61, 2))
        channel.closing.set_result(None)


async def test_a_few_acknowledgements_need_no_question() -> None:
    """The broker keeps none of them back."""
    channel = Channel()
    reader, deliveries = await borrowed(channel, 60)
    for delivery in deliveries[1:24]:
        await reader.acknowledge([delivery.tag])
    await reader._apply_acknowledgements()
    assert channel.removed == []
    channel.closing.set_result(None)
