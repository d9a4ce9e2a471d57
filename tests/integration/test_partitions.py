"""Partitions on a real broker: workers share them, and the order of each record survives every hand-over."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from uuid import uuid4

import aio_pika

from sandbox.proxy import Proxy
from task_activity_log.aio import end
from task_activity_log.partitions import hash_slot, partition_of
from task_activity_log.rabbitmq.intake import Intake
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.rabbitmq.topology import Topology, declare

TOPOLOGY = Topology(partitions=8)
RECORDS = [uuid4() for _ in range(64)]


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
    assert {partition_of(hash_slot(each), 8) for each in RECORDS} == set(range(8)), "a partition would stay empty"
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
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, TOPOLOGY)
        channel = await connection.channel(publisher_confirms=True)
        exchange = await channel.get_exchange(TOPOLOGY.partitions_exchange, ensure=False)
        for _ in range(40):
            await exchange.publish(aio_pika.Message(b"", delivery_mode=2), slot)
    intake = Intake(LinkOptions(amqp_url), TOPOLOGY, prefetch=40, batch_max=5)
    running = asyncio.create_task(intake.run())
    async with asyncio.timeout(60):
        while intake.in_hand < 40:
            await asyncio.sleep(0.01)
        assert intake.balancing is not None
        queue = intake.balancing._partitions[partition_of(slot, 8)]
        handed_over = asyncio.create_task(queue.hand_over(nullcontext, 40.0))
        while intake.in_hand:
            batch = await intake.take(5)
            assert batch
            await intake.acknowledge(batch)
        assert await handed_over == 0
    await end(running)
