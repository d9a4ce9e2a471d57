"""How a reader settles: with few commands under way, and done only when the queue has answered."""

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest
from aiormq.abc import AbstractChannel, ChannelFrame
from pamqp import frame
from pamqp.commands import Basic

from task_activity_log.message import Properties
from task_activity_log.rabbitmq import reading
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.headers import encode
from task_activity_log.rabbitmq.queues import Found, deletes_soon
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
        self.number = 1
        self.connection = SimpleNamespace(server_properties={"version": "3.10.8"}, write_queue=self)
        self.sent: list[str] = []
        """What settles deliveries or ends them, in the order in which it was sent."""
        self.waiting = [7, 8]
        """What a passive declaration answers, one after the other: the message that `basic.get` gave comes back late."""

    async def basic_ack(self, tag: int, *, multiple: bool, wait: bool) -> None:
        assert not wait
        assert not multiple or tag in (1, 2)
        self.sent.append(f"ack {tag} {multiple}")
        self.under_way.append(tag)
        self.most = max(self.most, len(self.under_way))

    async def basic_nack(self, tag: int, *, requeue: bool, wait: bool, multiple: bool = False) -> None:
        self.sent.append(f"nack {tag} {multiple}")
        assert not multiple or tag in (0, 10)
        assert tag != 1
        assert requeue
        assert not wait
        self.under_way.append(0)

    async def basic_qos(self, *, prefetch_count: int) -> None:
        assert prefetch_count
        self.sent.append("qos")
        asyncio.get_running_loop().call_later(0.001, self._apply)  # the answer is no proof that the queue has

    async def basic_consume(self, *_: object) -> object:
        return SimpleNamespace(consumer_tag="me")

    async def basic_cancel(self, tag: str) -> None:
        self.sent.append(f"cancel {tag}")

    async def put(self, written: ChannelFrame) -> None:
        """What is written with the close of the channel, which the broker answers."""
        rest = written.payload
        while rest:
            size, _, command = frame.unmarshal(rest)
            self.sent.append(f"ack {command.delivery_tag}" if isinstance(command, Basic.Ack) else "close")
            rest = rest[size:]
        self.closing.set_result(None)

    def _apply(self) -> None:
        self.removed += filter(None, self.under_way[: KEPT_BACK_FROM - 1])
        del self.under_way[: KEPT_BACK_FROM - 1]

    async def basic_get(self, _: str) -> object:
        self.sent.append("get")
        await asyncio.sleep(0)
        self._apply()
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


@pytest.mark.parametrize("version", ["3.10.8", "4.2.0", "4.3.0", "4.3.6", b"4.10.1", "5.0.0+1", "unknown", None])
async def test_the_end_of_a_look_is_not_counted_where_the_broker_can_tell(version: object) -> None:
    """One command for all that was sent, when nothing is on its way. Elsewhere closing the channel keeps the order better."""
    channel = Channel()
    channel.connection.server_properties["version"] = version
    reader, _ = await borrowed(channel, 10)
    await reader.register(10)
    channel.sent.clear()
    assert await reader.end(looked=True) == 10
    if str(version).startswith(("4.3", "5", "b'4.10")):
        assert channel.sent == ["cancel me", "qos", "nack 0 True", "close"]
    else:
        assert channel.sent == ["close"]


@pytest.mark.parametrize("version", ["3.10.8", "4.3.6"])
async def test_a_subscription_ends_with_one_write(version: str) -> None:
    """What else was acknowledged by then, and the close. What came between, or before, would change the order."""
    channel = Channel()
    channel.connection.server_properties["version"] = version
    reader, deliveries = await borrowed(channel, 10)
    await reader.register(10)
    await reader.acknowledge([deliveries[0].tag])
    channel.sent.clear()
    reader.keep([2])
    assert await reader.end() == 8
    assert channel.sent == ["ack 2", "close"]


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


async def test_what_was_acknowledged_a_moment_ago_can_be_applied_before_the_channel_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker would forget what it keeps back, and what was finished would come again. The consumer is not cancelled."""
    monkeypatch.setattr(reading, "_RECENT_SECONDS", 60.0)
    monkeypatch.setattr(reading, "_APPLY_SECONDS", 0.01)
    channel = Channel()
    reader, deliveries = await borrowed(channel, 60)
    await reader.register(60)
    for delivery in deliveries[3::2]:
        await reader.acknowledge([delivery.tag])
    assert channel.removed == []
    channel.sent.clear()
    await reader.end()
    assert channel.removed == list(range(4, 61, 2))
    assert channel.sent == ["qos", "close"]


@pytest.mark.parametrize(("count", "recent"), [(23, 60.0), (30, 0.0)])
async def test_a_few_acknowledgements_and_old_ones_need_no_question(
    count: int, recent: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker keeps none of them back."""
    channel = Channel()
    reader, deliveries = await borrowed(channel, 60)
    for delivery in deliveries[3 : 3 + count]:
        await reader.acknowledge([delivery.tag])
    channel.sent.clear()
    monkeypatch.setattr(reading, "_RECENT_SECONDS", recent)
    await reader.end()
    assert channel.sent == ["close"]


@pytest.mark.parametrize(
    ("version", "deletes", "keeps"),
    [
        ("3.10.8", (-1, 0, 5, 20, 999), (1_000, 1_000_000)),
        ("4.0.5", (0, 5, 20, 999), (-1, 1_000, 1_000_000)),
        ("4.3.6", (0, 5, 19), (-1, 20, 1_000_000)),
        ("", (-1, 20), (1_000,)),
    ],
)
def test_a_queue_whose_delivery_limit_is_soon_reached(
    version: str, deletes: tuple[int, ...], keeps: tuple[int, ...]
) -> None:
    """Before RabbitMQ 4.3 each look counts: 20 is the default of 4.0, and the twenty-first look would delete everything."""
    assert [deletes_soon(limit, version) for limit in deletes] == [True] * len(deletes)
    assert [deletes_soon(limit, version) for limit in keeps] == [False] * len(keeps)
