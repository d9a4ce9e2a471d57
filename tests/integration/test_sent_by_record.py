"""The client and the commands, where workers share partitions: requests are sent to the partition of their record."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractQueue

from sandbox import RabbitMQ
from task_activity_log.client import (
    ClientError,
    TaskActivityLog,
    TaskActivityLogClient,
    Upsert,
    UpsertRejected,
)
from task_activity_log.client.dead_letters import borrow_dead_letters
from task_activity_log.client.replaying import replay
from task_activity_log.client.routing import Routing
from task_activity_log.partitions import hash_slot
from task_activity_log.rabbitmq.topology import REQUEST_KEY, Topology, declare
from task_activity_log.settings import load
from task_activity_log.wiring import sending_of
from tests.commands import command
from tests.serving import serving
from tests.users import user_who_may

TOPOLOGY = Topology(partitions=2)
BY_RECORD, PLAIN = TOPOLOGY.partitions_exchange, TOPOLOGY.requests_exchange
RECORDS = [UUID(int=number, version=4) for number in range(1, 5)]
BODIES = [json.dumps({"id": str(each)}).encode() for each in RECORDS]


class Copies:
    """Copies of what is published for `RECORDS`, by record and otherwise."""

    def __init__(self, channel: AbstractChannel, queue: AbstractQueue) -> None:
        self.channel = channel
        self._queue = queue

    async def ways(self) -> list[tuple[str, str]]:
        """The exchange and the routing key of each since the last time, in order."""
        found = []
        while (message := await self._queue.get(no_ack=True, fail=False)) is not None:
            found.append((message.exchange or "", message.routing_key or ""))
        return found


@asynccontextmanager
async def copying(amqp_url: str, topology: Topology = TOPOLOGY) -> AsyncIterator[Copies]:
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, topology)
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(PLAIN, REQUEST_KEY)
        if topology.partitions:
            for slot in {hash_slot(each) for each in RECORDS}:
                await queue.bind(BY_RECORD, slot)
        yield Copies(channel, queue)


def by_record(*records: UUID) -> list[tuple[str, str]]:
    return [(BY_RECORD, hash_slot(each)) for each in records]


def upserts() -> list[Upsert]:
    """One for each record, each in a form of its own."""
    json_, upper, braces, xml = map(str, RECORDS)
    return [
        Upsert.of(TaskActivityLog(id=UUID(json_))),
        Upsert(json.dumps({"ID": upper.upper()}).encode("utf-16"), "application/json; charset=utf-16"),
        Upsert(json.dumps({"id": f"{{{braces}}}"}).encode(), ""),
        Upsert(f"<task_activity_log><id>{xml}</id></task_activity_log>".encode(), "text/xml"),
    ]


@pytest.mark.parametrize("partitioned", [None, True])
async def test_the_client_sends_by_record_where_there_are_partitions(
    amqp_url: str, database_url: str, partitioned: bool | None
) -> None:
    """Whatever form the id has, and in each way of sending."""
    async with (
        copying(amqp_url) as copies,
        serving(amqp_url, database_url, WORKER_PARTITIONS="2"),
        TaskActivityLogClient(amqp_url, partitioned=partitioned) as client,
    ):
        assert [(await client.upsert(each)).outcome for each in upserts()] == ["inserted"] * 4
        assert await copies.ways() == by_record(*RECORDS)
        assert [answer.outcome async for answer in client.upsert_many(upserts())] == ["updated"] * 4
        assert await copies.ways() == by_record(*RECORDS)
        assert await client.send_many(upserts()) == 4
        assert await copies.ways() == by_record(*RECORDS)


async def test_the_client_can_be_told_not_to_send_by_record(amqp_url: str) -> None:
    async with copying(amqp_url) as copies, TaskActivityLogClient(amqp_url, partitioned=False) as client:
        assert await client.send_many(upserts()) == 4
        assert await copies.ways() == [(PLAIN, REQUEST_KEY)] * 4


async def test_what_has_no_readable_record_is_answered_all_the_same(amqp_url: str, database_url: str) -> None:
    async with copying(amqp_url) as copies, serving(amqp_url, database_url, WORKER_PARTITIONS="2"):
        async with TaskActivityLogClient(amqp_url, partitioned=True) as client:
            for body, code in ((b"{}", "missing_id"), (b'{"id": 7}', "invalid_uuid"), (b"\xff", "invalid_encoding")):
                with pytest.raises(UpsertRejected, match=code):
                    await client.upsert(Upsert(body))
            with pytest.raises(UpsertRejected, match="unsupported_media_type"):
                await client.upsert(Upsert(b"{}", "text/plain"))
        assert await copies.ways() == [(PLAIN, REQUEST_KEY)] * 4


async def test_without_partitions_only_who_demands_them_is_refused(amqp_url: str) -> None:
    async with copying(amqp_url, Topology()) as copies:
        async with TaskActivityLogClient(amqp_url) as client:
            assert await client.send_many(upserts()) == 4
        assert await copies.ways() == [(PLAIN, REQUEST_KEY)] * 4
        with pytest.raises(ClientError, match=f"'{BY_RECORD}', which is declared where WORKER_PARTITIONS is set"):
            async with TaskActivityLogClient(amqp_url, partitioned=True):
                pass


async def test_a_user_without_permission_for_partitions_goes_on_as_before(rabbitmq: RabbitMQ, amqp_url: str) -> None:
    """From two tasks at once. Nothing is sent twice or lost, and who demands partitions is refused."""
    async with copying(amqp_url) as copies:
        with user_who_may(rabbitmq, amqp_url, write=f"^{PLAIN}$") as url:
            async with TaskActivityLogClient(url) as client:
                assert await asyncio.gather(*(client.send_many(upserts() * 300) for _ in range(2))) == [1200, 1200]
            assert await copies.ways() == [(PLAIN, REQUEST_KEY)] * 2400
            with pytest.raises(ClientError, match=f"may not (use|write to) exchange '{BY_RECORD}': see Permissions"):
                async with TaskActivityLogClient(url, partitioned=True) as client:
                    await client.send_many(upserts())
        assert await copies.ways() == []


async def test_while_the_partitions_are_changed_nothing_is_sent_another_way(amqp_url: str) -> None:
    """`task-activity-log partitions --to` deletes the exchange, so that publishers are refused."""
    async with copying(amqp_url) as copies, TaskActivityLogClient(amqp_url) as client:
        assert await client.send_many(upserts()) == 4
        assert await copies.ways() == by_record(*RECORDS)
        await copies.channel.exchange_delete(BY_RECORD)
        with pytest.raises(
            ClientError, match=f"exchange '{BY_RECORD}' does not exist.* or the partitions were removed"
        ):
            await client.send_many(upserts())
        assert await copies.ways() == []


def test_another_exchange_has_other_partitions() -> None:
    """Its records are those of other workers, which may have another database."""
    assert Routing("task_activity_log").partitions_exchange == BY_RECORD
    assert Routing("mine").partitions_exchange == "mine.by-record"
    assert Routing("mine", partitions_exchange="other").partitions_exchange == "other"
    urls = {"AMQP_URL": "amqp://guest@broker/", "DATABASE_URL": "postgresql://database/app"}
    mine = load({**urls, "WORKER_REQUESTS_EXCHANGE": "mine"})
    assert list(sending_of(mine).values())[1:] == [None, None]
    partitioned = load({**urls, "WORKER_REQUESTS_EXCHANGE": "mine", "WORKER_PARTITIONS": "2"})
    assert list(sending_of(partitioned).values())[1:] == [True, BY_RECORD]
    assert sending_of(load({**urls, "WORKER_PARTITIONS_EXCHANGE": "other"}))["partitions_exchange"] == "other"


@pytest.mark.parametrize(
    ("options", "plainly"),
    [((), False), (("--partitioned",), False), (("--no-partitioned",), True)],
    ids=str,
)
async def test_publish_sends_by_record(amqp_url: str, options: tuple[str, ...], plainly: bool) -> None:
    async with copying(amqp_url) as copies:
        said = await command("publish", "-", "--no-wait", *options, stdin=b"\n".join(BODIES), AMQP_URL=amqp_url)
        assert said.code == 0, said
        assert await copies.ways() == ([(PLAIN, REQUEST_KEY)] * 4 if plainly else by_record(*RECORDS))


async def keep(copies: Copies, *bodies: bytes) -> None:
    """Publish dead letters."""
    for body in bodies:
        await copies.channel.default_exchange.publish(
            aio_pika.Message(body, message_id=str(uuid4())), TOPOLOGY.dead_letters_queue
        )


async def replay_all(url: str) -> int:
    async with borrow_dead_letters(url) as loan:
        return await replay(loan, [(letter, letter) async for letter in loan], url)


async def test_dead_letters_are_replayed_by_record(amqp_url: str) -> None:
    """In order; and one without a readable record where a worker answers it."""
    async with copying(amqp_url) as copies:
        await keep(copies, b"{}", *BODIES)
        assert await replay_all(amqp_url) == 5
        assert await copies.ways() == [(PLAIN, REQUEST_KEY), *by_record(*RECORDS)]


async def test_a_user_without_permission_for_partitions_replays_as_before(rabbitmq: RabbitMQ, amqp_url: str) -> None:
    async with copying(amqp_url) as copies:
        await keep(copies, *BODIES)
        with user_who_may(rabbitmq, amqp_url, write=f"^{PLAIN}$", read=".*") as url:
            assert await replay_all(url) == 4
        assert await copies.ways() == [(PLAIN, REQUEST_KEY)] * 4


@pytest.mark.parametrize("partitions", ["0", "2"], ids=["found out", "by the settings"])
async def test_the_command_replays_by_record(amqp_url: str, partitions: str) -> None:
    async with copying(amqp_url) as copies:
        await keep(copies, BODIES[0])
        said = await command("dead-letters", "replay", "--all", AMQP_URL=amqp_url, WORKER_PARTITIONS=partitions)
        assert said.code == 0, said
        assert await copies.ways() == by_record(RECORDS[0])


async def test_with_the_setting_nothing_is_replayed_while_the_exchange_is_missing(amqp_url: str) -> None:
    async with copying(amqp_url, Topology()) as copies:
        await keep(copies, BODIES[0])
        said = await command("dead-letters", "replay", "--all", AMQP_URL=amqp_url, WORKER_PARTITIONS="2")
        assert said.code == 1
        assert f"exchange '{BY_RECORD}', which is declared where WORKER_PARTITIONS is set, does not exist" in said.err
        assert await copies.ways() == []
        left = await copies.channel.declare_queue(TOPOLOGY.dead_letters_queue, passive=True)
        assert left.declaration_result.message_count == 1
