"""Replies on an exchange to which subscribers bind queues of their own, one of which may be silent."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from task_activity_log.pipeline.reply import Reply
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.exchange import RepliesExchange
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import Publisher
from task_activity_log.rabbitmq.topology import Topology
from task_activity_log.record import Outcome
from tests import virtual_time

TOPOLOGY = Topology()
SILENT, NORMAL = 0.25, 2.0


class Broker:
    """Confirms what is published, unless a queue on the exchange is silent or nothing is confirmed for a while."""

    last_reason = ""
    has_room_for_late = True

    def __init__(self) -> None:
        self.is_silent = False
        self.is_full = False
        self.stands_still_until = 0.0
        self.patience: list[float | None] = []
        self.on_exchange: list[str] = []
        self.on_queue: list[str] = []

    async def publish(
        self, messages: Sequence[Outgoing], patience_seconds: float | None = None, _: object = None
    ) -> list[Fate]:
        self.patience.append(patience_seconds)
        to_exchange = bool(messages and messages[0].exchange)
        (self.on_exchange if to_exchange else self.on_queue).extend(bytes(each.body).decode() for each in messages)
        if self.is_full:
            return [Fate.NACKED] * len(messages)
        wait = self.stands_still_until - asyncio.get_running_loop().time()
        if to_exchange and patience_seconds is not None and (self.is_silent or wait > patience_seconds):
            await asyncio.sleep(patience_seconds)
            return [Fate.UNCONFIRMED] * len(messages)
        await asyncio.sleep(max(wait, 0))
        return [Fate.CONFIRMED] * len(messages)

    def renew(self) -> None:
        """It has no connections."""


def replies(count: int) -> list[Reply]:
    return [Reply(Outcome.INSERTED, str(n).encode(), "application/json", None, "", "", {}, None) for n in range(count)]


def in_time(work: Callable[[Broker, Callable[[int], Any]], Any]) -> Broker:
    """Have `work` publish some times, each time the given number of replies; all of them have to be confirmed."""
    broker = Broker()
    exchange = RepliesExchange(cast("Publisher", broker), TOPOLOGY, lambda *_: None)

    async def publish(count: int) -> None:
        broker.on_exchange.clear()
        broker.on_queue.clear()
        confirmed = list[int]()
        await exchange.publish(replies(count), confirmed.append)
        assert sorted(confirmed) == list(range(count))

    virtual_time.run(work(broker, publish))
    return broker


def names(*numbers: int) -> list[str]:
    return [str(number) for number in range(*numbers)]


def test_a_batch_goes_to_the_exchange_alone() -> None:
    async def work(_: Broker, publish: Any) -> None:
        await publish(500)

    broker = in_time(work)
    assert (broker.on_exchange, broker.on_queue, broker.patience) == (names(500), [], [NORMAL])


def test_while_a_queue_is_silent_a_few_go_to_the_exchange() -> None:
    async def work(broker: Broker, publish: Any) -> None:
        broker.is_silent = True
        await publish(500)
        assert (broker.on_exchange, broker.on_queue) == (names(500), names(500))
        await publish(500)

    broker = in_time(work)
    assert (broker.on_exchange, broker.on_queue) == (names(32), names(500))
    assert [one for one in broker.patience if one is not None] == [NORMAL, SILENT]


@pytest.mark.parametrize("count", [20, 500])
def test_once_the_first_few_are_confirmed_all_go_to_the_exchange_again(count: int) -> None:
    """A subscriber would miss replies for half a minute after each short failure of the broker."""

    async def work(broker: Broker, publish: Any) -> None:
        broker.is_silent = True
        await publish(500)
        broker.is_silent = False
        await publish(count)
        assert (broker.on_exchange, broker.on_queue) == (names(count), [])
        await publish(500)

    broker = in_time(work)
    assert (broker.on_exchange, broker.on_queue, broker.patience[-1]) == (names(500), [], NORMAL)


def test_a_broker_that_stands_still_takes_no_reply_from_a_subscriber() -> None:
    """As while a node is away: the replies queue confirms nothing either, so no subscriber is to blame."""

    async def work(broker: Broker, publish: Any) -> None:
        broker.is_silent = True
        await publish(500)
        broker.is_silent = False
        broker.stands_still_until = asyncio.get_running_loop().time() + 8
        await publish(500)

    broker = in_time(work)
    assert (broker.on_exchange, broker.on_queue) == (names(500), names(32))


def test_while_too_many_channels_are_held_nothing_goes_to_the_exchange() -> None:
    async def work(broker: Broker, publish: Any) -> None:
        broker.has_room_for_late = False
        await publish(500)

    broker = in_time(work)
    assert (broker.on_exchange, broker.on_queue) == ([], names(500))


def test_while_the_replies_queue_is_full_other_queues_get_each_reply_once() -> None:
    """The worker publishes again and again what was refused, for hours perhaps."""
    broker, confirmed = Broker(), list[int]()
    exchange = RepliesExchange(cast("Publisher", broker), TOPOLOGY, lambda *_: None)

    async def work() -> None:
        broker.is_full = True
        waiting = replies(3)
        for _ in range(3):
            with pytest.raises(Unavailable, match="replies refused"):
                await exchange.publish(waiting, confirmed.append)
        assert (broker.on_exchange, broker.on_queue, confirmed) == (names(3), names(3) * 3, [])
        broker.is_full = False
        await exchange.publish([*waiting, *replies(4)], confirmed.append)

    virtual_time.run(work())
    assert broker.on_exchange == names(3) + names(4)
    assert broker.on_queue == names(3) * 4
    assert sorted(confirmed) == list(range(7))
