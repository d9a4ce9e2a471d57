"""What the client publishes together, and what waits for an earlier upsert of its record to be confirmed."""

import asyncio
import json
from collections.abc import Sequence
from typing import cast
from uuid import UUID, uuid4

import pytest

from task_activity_log.client import Answer, TaskActivityLog, Upsert
from task_activity_log.client.asks import Asks
from task_activity_log.client.order import Order, waves
from task_activity_log.client.routing import Routing
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import Publisher


def upsert(record: int, number: int) -> Upsert:
    return Upsert.of(TaskActivityLog(id=UUID(int=record), subject=str(number)), message_id=f"{record}.{number}")


def names(wave: object) -> list[str]:
    assert isinstance(wave, list)
    return [each.message_id for each in wave]


A1, A2, A3, B1, B2, C1 = (upsert(*each) for each in ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1)))


def test_a_wave_has_a_record_once() -> None:
    """Those of one record stay in order."""
    assert [names(wave) for wave in waves([A1, B1, A2, A3, C1, B2])] == [["1.1", "2.1", "3.1"], ["1.2", "2.2"], ["1.3"]]


def test_what_has_no_valid_record_waits_for_nothing() -> None:
    """A worker rejects it, whenever it comes."""
    bad = [Upsert(b"{}", message_id=str(number)) for number in range(3)]
    assert [names(wave) for wave in waves(bad)] == [["0", "1", "2"]]


def test_later_upserts_wait_behind_one_that_was_refused() -> None:
    """Also those that come while it waits; other records go on. When it is due, it is first."""
    order = Order()
    first, second = order.waves([A1, B1, A2])
    assert order.admit(first) == [A1, B1]
    records = order.refused([A1])
    assert order.admit(second) == []
    [third] = order.waves([A3, B2])
    assert order.admit(third) == [B2]
    order.due(records)
    assert [names(wave) for wave in order.waves([C1])] == [["1.1", "3.1"], ["1.2"], ["1.3"]]
    assert order.admit([A1, C1]) == [A1, C1]
    order.due(records)
    assert order.waves([]) == []


class FullQueue:
    """A publisher to a queue that refuses the first message of each publish until it has refused five, and takes the rest."""

    connected, last_reason, blocked = True, "", None

    def __init__(self) -> None:
        self.refusals = 5
        self.taken: list[str | None] = []

    async def wait_connected(self) -> None:
        pass

    async def publish(self, messages: Sequence[Outgoing]) -> list[Fate]:
        fates = [Fate.CONFIRMED] * len(messages)
        if self.refusals:
            self.refusals -= 1
            fates[0] = Fate.NACKED
        names = [message.properties.message_id for message in messages]
        self.taken += [name for name, fate in zip(names, fates, strict=True) if fate is Fate.CONFIRMED]
        return fates


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> FullQueue:
    monkeypatch.setattr("task_activity_log.client.asks._AGAIN_SECONDS", 0)
    return FullQueue()


@pytest.fixture
def asks(queue: FullQueue) -> Asks:
    routing = Routing(partitioned=False, exchange="x", partitions_exchange=None)
    asks = Asks("amqp://h/", routing=routing, app_id="", on_outage=lambda _: None)
    asks._publisher = cast("Publisher", queue)
    asks._over = None
    return asks


async def test_a_full_queue_does_not_reorder_the_upserts_of_a_record(queue: FullQueue, asks: Asks) -> None:
    """It refuses some of what is published together, and takes what follows: what is sent again would come behind that."""
    asks._listening.set()
    sending = asyncio.create_task(asks._send_all())
    upserts = [upsert(number % 3 + 1, number) for number in range(30)]
    for number, one in enumerate(upserts):
        asks.ask(one, lambda _: None)
        if number % 10 == 9:  # the others come while the first ones are published
            await asyncio.sleep(0)
    while len(queue.taken) < 30:
        await asyncio.sleep(0)
    sending.cancel()
    for record in range(3):
        assert [name for name in queue.taken if (name or "").startswith(f"{record + 1}.")] == [
            one.message_id for one in upserts[record::3]
        ]


async def test_nor_when_the_queue_of_the_answers_is_lost_meanwhile(
    queue: FullQueue, asks: Asks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is unanswered is sent again from the first one on: the rest of what was being sent must not come before it."""
    upserts = [A1, B1, A2, B2, A3]
    publish, queue.refusals = queue.publish, 1

    async def lost_at_the_second(messages: Sequence[Outgoing]) -> list[Fate]:
        if queue.taken == ["2.1"]:  # as `_listen` does on a new connection
            asks._order = Order()
            for one in upserts:
                asks._outbox.put(one)
        return await publish(messages)

    monkeypatch.setattr(queue, "publish", lost_at_the_second)
    asks._listening.set()
    for one in upserts:
        asks.ask(one, lambda _: None)
    sending = asyncio.create_task(asks._send_all())
    while queue.taken[-1:] != ["1.3"] or "1.1" not in queue.taken:
        await asyncio.sleep(0)
    sending.cancel()
    assert [name for name in queue.taken if (name or "").startswith("1.")] == ["1.1", "1.2", "1.3"]


async def test_nor_when_no_answers_are_asked_for(queue: FullQueue, asks: Asks) -> None:
    """`send_many` and `publish --no-wait`."""
    upserts = [upsert(number % 3 + 1, number) for number in range(30)]
    refused: list[Answer] = []
    await asks.send(upserts, lambda _: None, refused.append)
    assert refused == []
    for record in range(3):
        assert [name for name in queue.taken if (name or "").startswith(f"{record + 1}.")] == [
            one.message_id for one in upserts[record::3]
        ]


@pytest.mark.parametrize("other", ['"ID": "{}"', '"id": "{{{}}}"', '"id": "{}", "note": "{{"'])
def test_one_record_is_recognized_in_whatever_form_its_id_is(other: str) -> None:
    """Its upserts are in different waves."""
    record = uuid4()
    usual = Upsert(json.dumps({"id": str(record)}).encode())
    unusual = Upsert(("{" + other.format(str(record).upper()) + "}").encode())
    assert waves([usual, unusual]) == [[usual], [unusual]]


def test_upserts_without_a_usable_id_are_in_one_wave() -> None:
    """They are rejected, each by itself."""
    upserts = [Upsert(body) for body in (b'{"id": "%s"}' % str(UUID(int=0)).encode(), b'{"id": 1}', b"[]", b"\xff") * 2]
    assert waves(upserts) == [upserts]
