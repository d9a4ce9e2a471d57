"""Partitions on a real broker: workers share them, and the order of each record survives every hand-over."""

import asyncio
import struct
from collections import defaultdict
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, nullcontext
from urllib.parse import urlsplit
from uuid import UUID

import aio_pika
import pytest

from sandbox import RabbitMQ
from sandbox.proxy import Proxy
from task_activity_log.aio import end
from task_activity_log.partitions import hash_slot, partition_of
from task_activity_log.rabbitmq.balance import Balance, Moves
from task_activity_log.rabbitmq.frames import publish_frames, write
from task_activity_log.rabbitmq.intake import Intake
from task_activity_log.rabbitmq.link import LinkOptions, connect
from task_activity_log.rabbitmq.members import Members, join
from task_activity_log.rabbitmq.queue_intake import QueueIntake
from task_activity_log.rabbitmq.topology import Topology, declare
from tests.users import user_who_may

TOPOLOGY = Topology(partitions=8)
RECORDS = [UUID(int=number, version=4) for number in range(64)]
"""The same in each run: some partition of eight would have none of 64 random ones now and then."""


class Processed:
    """What the workers have processed, each message once, as the inbox has it."""

    def __init__(self) -> None:
        self.by_record: dict[bytes, list[int]] = defaultdict(list)
        self._seen: set[bytes] = set()
        self.repeated = 0

    def add(self, body: bytes) -> None:
        if body in self._seen:
            self.repeated += 1
            return
        self._seen.add(body)
        record, number = body.split()
        self.by_record[record].append(int(number))

    def __len__(self) -> int:
        return len(self._seen)


class Member:
    """One worker without a database: it takes, processes and acknowledges."""

    def __init__(self, amqp_url: str, processed: Processed) -> None:
        self.intake = Intake(LinkOptions(amqp_url), TOPOLOGY, prefetch=40, batch_max=50)
        self._processed = processed
        self._running = asyncio.create_task(self.intake.run())
        self._working = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while batch := await self.intake.take(50):
            for delivery in batch:
                assert self.intake.has(delivery)
                self._processed.add(delivery.body)
            await asyncio.sleep(0.005)  # the time that a batch takes in the database
            await self.intake.acknowledge(batch)

    async def stop(self) -> None:
        """As at SIGTERM: finish what is under way, return the rest, disconnect."""
        await self.intake.stop()
        await self._working
        await self.intake.requeue()
        await end(self._running)

    async def kill(self) -> None:
        """As at SIGKILL: nothing is acknowledged or returned any more."""
        await end(self._working, self._running)

    @property
    def active(self) -> int:
        assert self.intake.balancing is not None
        return len(self.intake.balancing.active)


@asynccontextmanager
async def publishing(amqp_url: str) -> AsyncIterator[dict[bytes, int]]:
    """Publish one message after the other for each record until the end; how many were confirmed for each."""
    sent: dict[bytes, int] = defaultdict(int)
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, TOPOLOGY)
        channel = await connection.channel(publisher_confirms=True)
        exchange = await channel.get_exchange(TOPOLOGY.partitions_exchange, ensure=False)
        stop = asyncio.Event()

        async def publish(record_id: bytes, slot: str) -> None:
            while not stop.is_set():
                body = b"%s %d" % (record_id, sent[record_id])
                await exchange.publish(aio_pika.Message(body, delivery_mode=2), slot)
                sent[record_id] += 1

        tasks = [asyncio.create_task(publish(str(each).encode(), hash_slot(each))) for each in RECORDS]
        try:
            yield sent
        finally:
            stop.set()
            await asyncio.gather(*tasks)


async def shares(members: list[Member], expected: list[int]) -> None:
    """Return once the workers are active on that many partitions each."""
    async with asyncio.timeout(60):
        while sorted(member.active for member in members) != expected:
            await asyncio.sleep(0.05)


async def settled(processed: Processed, sent: dict[bytes, int]) -> None:
    async with asyncio.timeout(60):
        while len(processed) < sum(sent.values()):
            await asyncio.sleep(0.05)


def in_order(processed: Processed, sent: dict[bytes, int]) -> None:
    """Nothing is lost, and nothing was processed for the first time behind a later message of its record."""
    for record, count in sent.items():
        assert processed.by_record[record] == list(range(count))


async def test_workers_share_the_partitions_and_keep_the_order(amqp_url: str) -> None:
    assert {partition_of(hash_slot(each), 8) for each in RECORDS} == set(range(8))
    processed = Processed()
    async with Proxy.to(amqp_url) as proxy:
        async with publishing(amqp_url) as sent:
            members = [Member(amqp_url, processed)]
            await shares(members, [8])
            members += [Member(amqp_url, processed), Member(proxy.url, processed)]
            await shares(members, [2, 3, 3])
            proxy.cut()
            await shares(members, [2, 3, 3])
            await members.pop(0).stop()
            await shares(members, [4, 4])
            members += [Member(amqp_url, processed) for _ in range(3)]
            await shares(members, [1, 1, 2, 2, 2])
            await members.pop(0).kill()
            await shares(members, [2, 2, 2, 2])
        await settled(processed, sent)
        for member in members:
            await member.stop()
    in_order(processed, sent)


async def test_a_waiting_partition_costs_nothing_and_is_shared_when_messages_come(amqp_url: str) -> None:
    processed = Processed()
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, TOPOLOGY)
    members = [Member(amqp_url, processed)]
    await members[0].intake.wait_consuming()
    members.append(Member(amqp_url, processed))
    await members[1].intake.wait_consuming()
    async with publishing(amqp_url) as sent:
        await shares(members, [4, 4])
    await settled(processed, sent)
    for member in members:
        await member.stop()
    in_order(processed, sent)


async def test_a_hand_over_returns_nothing_that_can_be_finished(amqp_url: str) -> None:
    """What is returned counts as a failed delivery: a message that is handed over often would be taken for poison."""
    slot = hash_slot(RECORDS[0])
    async with _one_partition(amqp_url, slot, messages=40) as (intake, queue):
        await _in_hand(intake, 40)
        handed_over = asyncio.create_task(queue.hand_over(nullcontext, 40.0))
        while intake.in_hand:
            batch = await intake.take(5)
            assert batch
            await intake.acknowledge(batch)
        assert await handed_over == 0


async def test_what_is_handed_over_is_taken_before_what_waits_of_other_partitions(amqp_url: str) -> None:
    """A worker that is active on all partitions has more in hand than it can finish in the time of a hand-over."""
    slot, other = "00", "ff"
    async with _one_partition(amqp_url, other, messages=20) as (intake, _):
        await _in_hand(intake, 20)
        async with _one_partition(amqp_url, slot, messages=20, member=intake) as (_, queue):
            await _in_hand(intake, 40)
            handed_over = asyncio.create_task(queue.hand_over(nullcontext, 40.0))
            await asyncio.sleep(0)  # it begins
            for _ in range(4):
                batch = await intake.take(5)
                assert batch
                assert [delivery.slot for delivery in batch] == [slot] * 5
                await intake.acknowledge(batch)
            assert await handed_over == 0
            assert intake.waiting == 20


async def test_what_was_returned_several_times_is_finished_before_a_hand_over(amqp_url: str) -> None:
    """Otherwise hand-overs while the database is slow would make suspects of messages that do no harm."""
    slot = hash_slot(RECORDS[0])
    async with _one_partition(amqp_url, slot, messages=2) as (intake, queue):
        for _ in range(2):
            await _in_hand(intake, 2)
            assert await queue.hand_over(nullcontext, 0.1) == 2
        await _in_hand(intake, 2)
        taken = [*(await intake.take(1) or ()), *(await intake.take(1) or ())]
        assert [delivery.attempts for delivery in taken] == [2, 2]
        assert await queue.hand_over(nullcontext, 0.1) is None
        assert [intake.has(delivery) for delivery in taken] == [True, True]
        await intake.acknowledge(taken)
        assert await queue.hand_over(nullcontext, 0.1) == 0


async def test_a_place_in_the_line_is_not_left_once_a_message_has_arrived(amqp_url: str) -> None:
    """It may be under way to the database: what is returned then could be stored after later messages of its record."""
    async with _one_partition(amqp_url, hash_slot(RECORDS[0]), messages=1) as (intake, queue):
        await _in_hand(intake, 1)
        assert intake.balancing is not None
        await intake.balancing._rejoin(partition_of(hash_slot(RECORDS[0]), 8))
        assert (queue.in_hand, intake.waiting) == (1, 1)
        taken = await intake.take(1)
        assert taken is not None
        assert intake.has(taken[0])


async def test_a_worker_that_drains_hands_over_no_partition(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finishes what is in hand, and leaves all partitions at once when it ends."""
    counted = asyncio.Condition()
    counts, decisions = [0], [0]
    count, decide = Members.count, Balance.decide

    async def counting(members: Members) -> tuple[int, int]:
        async with counted:
            counts[0] += 1
            counted.notify_all()
        return await count(members)

    def deciding(balance: Balance, active: Collection[int], workers: int, short: int) -> Moves:
        decisions[0] += 1
        return decide(balance, active, workers, short)

    async def look_again() -> None:
        async with counted:
            until = counts[0] + 2
            await asyncio.wait_for(counted.wait_for(lambda: counts[0] >= until), 60)

    monkeypatch.setattr(Members, "count", counting)
    monkeypatch.setattr(Balance, "decide", deciding)
    async with _one_partition(amqp_url, hash_slot(RECORDS[0]), messages=1) as (intake, _):
        await look_again()
        assert decisions[0] > 0
        await intake.stop(60.0)
        decisions[0] = 0
        await look_again()
        assert decisions[0] == 0


@asynccontextmanager
async def _one_partition(
    amqp_url: str, slot: str, *, messages: int, member: Intake | None = None
) -> AsyncIterator[tuple[Intake, QueueIntake]]:
    """A worker without a database, a new one without `member`, and a partition that has `messages` messages."""
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, TOPOLOGY)
        channel = await connection.channel(publisher_confirms=True)
        exchange = await channel.get_exchange(TOPOLOGY.partitions_exchange, ensure=False)
        for _ in range(messages):
            await exchange.publish(aio_pika.Message(b"", delivery_mode=2), slot)
    intake = member or Intake(LinkOptions(amqp_url), TOPOLOGY, prefetch=40, batch_max=5)
    running = asyncio.create_task(intake.run() if member is None else asyncio.sleep(0))
    try:
        await intake.wait_consuming()
        assert intake.balancing is not None
        yield intake, intake.balancing._partitions[partition_of(slot, 8)]
    finally:
        await end(running)


async def _in_hand(intake: Intake, count: int) -> None:
    async with asyncio.timeout(60):
        while intake.in_hand < count:
            await asyncio.sleep(0.01)


NOT_UTF8 = struct.pack(">HHQHB", 60, 0, 0, 1 << 7, 1) + b"\xff"
"""The payload of a content header: a message_id of one byte."""


async def test_what_is_published_to_the_queues_of_the_workers_disconnects_none(amqp_url: str) -> None:
    """The driver drops a connection when it gets properties that it cannot read, so it must not get these messages."""
    queues = (TOPOLOGY.workers_queue, TOPOLOGY.short_workers_queue)
    async with connect(LinkOptions(amqp_url), "intake") as (connection, frame_reader):
        await declare(connection, TOPOLOGY)
        members = await join(connection, TOPOLOGY, lambda: frame_reader.read_seconds)
        await members.say_short(True)
        async with await aio_pika.connect(amqp_url) as other:
            channel = await (await other.channel(publisher_confirms=False)).get_underlay_channel()
            for queue in queues:
                frames = publish_frames(
                    channel.number, "", queue, mandatory=False, header=NOT_UTF8, body=b"", frame_max=131_072
                )
                await write(channel, frames)
                # The broker reads what is sent on a channel in order; then the queue has the message, or has delivered it.
                while (await channel.queue_declare(queue, passive=True)).message_count:
                    await asyncio.sleep(0.05)
        assert await members.count() == (1, 1)


async def test_isolated_queues_share_a_connection_where_no_more_are_permitted(
    amqp_url: str, rabbitmq: RabbitMQ
) -> None:
    """Otherwise those for which none is left would have no consumer until the worker is restarted."""
    with user_who_may(rabbitmq, amqp_url, configure=".*", write=".*", read=".*") as url:
        name = urlsplit(url).username
        rabbitmq.api("PUT", f"/user-limits/{name}/max-connections", {"value": 3})
        async with await aio_pika.connect(amqp_url) as connection:
            await declare(connection, TOPOLOGY)
        intake = Intake(LinkOptions(url), TOPOLOGY, prefetch=40, batch_max=50)
        intake._isolating = True  # as after two failed deliveries
        running = asyncio.create_task(intake.run())
        async with asyncio.timeout(60):
            await intake.wait_consuming()
        assert intake.consuming
        await end(running)
