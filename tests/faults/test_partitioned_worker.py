"""Workers that share partitions: what goes to the wrong one, and what was not sent by record."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import pytest
from aiormq.exceptions import ChannelAccessRefused

from sandbox.postgresql import PostgreSQL
from task_activity_log.partitions import hash_slot, partition_of
from task_activity_log.postgresql import migrations
from task_activity_log.problem import Misconfigured
from task_activity_log.rabbitmq import topology
from task_activity_log.rabbitmq.frames import publish_frames, write
from task_activity_log.rabbitmq.topology import REQUEST_KEY, Topology, check, declare
from tests import audit_trigger
from tests.asking import Connection
from tests.faults.conversation import Conversation, conversing, until
from tests.serving import serving

TOPOLOGY = Topology(partitions=4)
PARTITIONED: dict[str, Any] = {"WORKER_PARTITIONS": "4"}


@asynccontextmanager
async def talking(amqp_url: str) -> AsyncIterator[Conversation]:
    async with conversing(amqp_url, topology=TOPOLOGY) as talk:
        yield talk


def partition_queue(record_id: UUID) -> str:
    return TOPOLOGY.partition_queues[partition_of(hash_slot(record_id), TOPOLOGY.partitions)]


async def send_by_record(talk: Conversation, record_id: UUID, slot: str, **fields: Any) -> None:
    exchange = await talk.channel.get_exchange(TOPOLOGY.partitions_exchange, ensure=False)
    body = json.dumps({"id": str(record_id), **fields}).encode()
    await exchange.publish(aio_pika.Message(body, message_id=str(uuid4())), slot)


async def test_a_request_in_the_slot_of_another_record_is_misrouted(amqp_url: str, database_url: str) -> None:
    record_id = uuid4()
    right = hash_slot(record_id)
    wrong = f"{(int(right, 16) + 1) % 256:02x}"
    async with talking(amqp_url) as talk, serving(amqp_url, database_url, **PARTITIONED):
        await send_by_record(talk, record_id, wrong)
        reply = await talk.answers.get()
        assert reply.headers["x-error-code"] == "misrouted"
        problem = json.loads(reply.body)
        assert problem["status"] == 422
        assert f"routing key {right}:" in problem["detail"]
        assert [each.headers["x-error-code"] for each in await talk.kept()] == ["misrouted"]
        await send_by_record(talk, record_id, right)
        assert await talk.outcomes(1) == ["inserted"]


async def test_a_slot_is_that_of_the_canonical_id_however_the_body_spells_it(amqp_url: str, database_url: str) -> None:
    """Usual mistakes of those who send by record: they hash an id in upper case, in braces, or its 16 bytes."""
    async with talking(amqp_url) as talk, serving(amqp_url, database_url, **PARTITIONED):
        exchange = await talk.channel.get_exchange(TOPOLOGY.partitions_exchange, ensure=False)
        record_id, right = UUID(int=0xABCDEF), hash_slot(UUID(int=0xABCDEF))
        spellings = [str(record_id).upper(), f"{{{record_id}}}"]
        mistakes = [(spelled, sha256(spelled.encode())) for spelled in spellings] + [
            (str(record_id), sha256(record_id.bytes))
        ]
        for spelled, wrong in mistakes:
            assert wrong.hexdigest()[:2] != right
            body = json.dumps({"id": spelled}).encode()
            await exchange.publish(aio_pika.Message(body, message_id=str(uuid4())), wrong.hexdigest()[:2])
            reply = await talk.answers.get()
            assert reply.headers["x-error-code"] == "misrouted"
            assert f"routing key {right}:" in json.loads(reply.body)["detail"]
            await exchange.publish(aio_pika.Message(body, message_id=str(uuid4())), right)
            assert await talk.outcomes(1) in (["inserted"], ["updated"])
        assert len(await talk.kept()) == len(mistakes)


async def test_what_has_no_slot_or_no_record_is_not_lost(amqp_url: str, database_url: str) -> None:
    """The broker returns what is published with a routing key that is no slot. A body without an id is answered."""
    async with talking(amqp_url) as talk, serving(amqp_url, database_url, **PARTITIONED):
        exchange = await talk.channel.get_exchange(TOPOLOGY.partitions_exchange, ensure=False)
        for key in ("upsert", "0", "100", "AB", ""):
            with pytest.raises(aio_pika.exceptions.PublishError):
                await exchange.publish(aio_pika.Message(b"{}"), key, mandatory=True)
        await exchange.publish(aio_pika.Message(b'{"subject": "no id"}'), "ab", mandatory=True)
        assert (await talk.answers.get()).headers["x-error-code"] == "missing_id"
        assert [each.headers["x-error-code"] for each in await talk.kept()] == ["missing_id"]


async def test_an_invalid_field_is_reported_before_the_wrong_slot(amqp_url: str, database_url: str) -> None:
    async with talking(amqp_url) as talk, serving(amqp_url, database_url, **PARTITIONED):
        record_id = uuid4()
        wrong = f"{(int(hash_slot(record_id), 16) + 1) % 256:02x}"
        await send_by_record(talk, record_id, wrong, is_closed="no boolean")
        assert (await talk.answers.get()).headers["x-error-code"] == "invalid_boolean"


async def test_what_was_not_sent_by_record_is_forwarded_in_order(
    amqp_url: str, database_url: str, admin: Connection
) -> None:
    """Two workers, of which one forwards; 50 messages for each of 10 records."""
    await audit_trigger.install(admin)
    records = [uuid4() for _ in range(10)]
    async with talking(amqp_url) as talk:
        async with (
            serving(amqp_url, database_url, **PARTITIONED) as first,
            serving(amqp_url, database_url, **PARTITIONED) as second,
        ):
            for number in range(50):
                await asyncio.gather(*(talk.send(each, subject=str(number)) for each in records))
            outcomes = await talk.outcomes(500)
            assert outcomes == sorted(["inserted"] * 10 + ["updated"] * 490)
            await until(lambda: first.in_hand == second.in_hand == 0)
        writes = await audit_trigger.read(admin)
        assert audit_trigger.disorder(writes, dict.fromkeys(records, 50)) == []


async def test_what_is_invalid_is_answered_where_it_was_sent(amqp_url: str, database_url: str) -> None:
    async with talking(amqp_url) as talk, serving(amqp_url, database_url, **PARTITIONED):
        exchange = await talk.channel.get_exchange(TOPOLOGY.requests_exchange, ensure=False)
        await exchange.publish(aio_pika.Message(b'{"subject": "no id"}'), REQUEST_KEY)
        assert (await talk.answers.get()).headers["x-error-code"] == "missing_id"
        assert [each.headers["x-error-code"] for each in await talk.kept()] == ["missing_id"]


async def test_what_the_broker_would_act_on_again_is_not_forwarded(
    amqp_url: str, database_url: str, admin: Connection
) -> None:
    """A user_id, copies to other queues, an expiry and a priority; other headers and a traceparent stay."""
    async with talking(amqp_url) as talk, serving(amqp_url, database_url, **PARTITIONED) as worker:
        copies = await talk.channel.declare_queue(exclusive=True)
        exchange = await talk.channel.get_exchange(TOPOLOGY.requests_exchange, ensure=False)
        for name in (TOPOLOGY.requests_exchange, TOPOLOGY.partitions_exchange):
            await copies.bind(name, copies.name)
        message = aio_pika.Message(
            json.dumps({"id": str(uuid4()), "subject": "kept"}).encode(),
            headers={"CC": [copies.name], "x-version": 7},
            expiration=60,
            priority=9,
            correlation_id="asked",
        )
        await exchange.publish(message, REQUEST_KEY)
        reply = await talk.answers.get()
        assert (reply.headers["x-outcome"], reply.correlation_id) == ("inserted", "asked")
        assert await admin.fetchval("SELECT source_version FROM task_activity_log") == 7
        await until(lambda: worker.in_hand == 0)
        assert (await talk.channel.declare_queue(copies.name, passive=True)).declaration_result.message_count == 1


def filling(name: bytes, length: int, *more: bytes) -> bytes:
    """The payload of a content header of this length, of which one header has the most, for an empty body. No delivery mode."""
    others = b"".join(more)
    room = length - 14 - 4 - len(others) - 1 - len(name) - 5
    entry = bytes((len(name),)) + name + b"S" + room.to_bytes(4, "big") + b"x" * room
    return struct.pack(">HHQHI", 60, 0, 0, 1 << 13, length - 14 - 4) + others + entry


VERSION_7 = b"\x09x-versionl" + (7).to_bytes(8, "big")


@pytest.mark.parametrize(
    ("header", "through_another", "outcome"),
    [
        pytest.param(filling(b"large", 131_072, VERSION_7), False, "inserted", id="a header"),
        pytest.param(filling(b"traceparent", 131_072, VERSION_7), False, "inserted", id="a header that would stay"),
        pytest.param(filling(b"traceparent", 131_064, VERSION_7), True, "inserted", id="headers of the broker"),
        pytest.param(filling(b"MessageId", 131_072, VERSION_7), False, "rejected", id="a MessageId"),
    ],
)
async def test_headers_that_fill_a_frame_stop_nobody(
    amqp_url: str, database_url: str, admin: Connection, header: bytes, through_another: bool, outcome: str
) -> None:
    """The broker takes eight bytes more than a frame should have, and adds headers to what it dead-letters."""
    async with talking(amqp_url) as talk, serving(amqp_url, database_url, **PARTITIONED) as worker:
        first = await talk.channel.declare_queue(
            exclusive=True,
            arguments={
                "x-message-ttl": 0,
                "x-dead-letter-exchange": TOPOLOGY.requests_exchange,
                "x-dead-letter-routing-key": REQUEST_KEY,
            },
        )
        to = ("", first.name) if through_another else (TOPOLOGY.requests_exchange, REQUEST_KEY)
        body = json.dumps({"id": str(uuid4())}).encode()
        header = header[:4] + len(body).to_bytes(8, "big") + header[12:]
        async with await aio_pika.connect(amqp_url) as other:
            channel = await (await other.channel(publisher_confirms=False)).get_underlay_channel()
            await write(
                channel,
                publish_frames(channel.number, *to, mandatory=False, header=header, body=body, frame_max=131_072),
            )
            assert (await talk.answers.get()).headers["x-outcome"] == outcome
        expected = 7 if outcome == "inserted" else None
        assert await admin.fetchval("SELECT source_version FROM task_activity_log") == expected
        await talk.send(uuid4())
        assert await talk.outcomes(1) == ["inserted"]
        await until(lambda: worker.in_hand == 0)


async def test_a_stream_that_somebody_else_has_bound_stops_nobody(
    amqp_url: str, database_url: str, admin: Connection
) -> None:
    """RabbitMQ ends the connection that publishes a header of some types to a stream. A request is forwarded without it then."""
    async with talking(amqp_url) as talk, serving(amqp_url, database_url, **PARTITIONED) as worker:
        stream = await talk.channel.declare_queue("history", durable=True, arguments={"x-queue-type": "stream"})
        exchange = await talk.channel.get_exchange(TOPOLOGY.requests_exchange, ensure=False)
        records = [uuid4() for _ in range(20)]
        for each in records:
            await stream.bind(TOPOLOGY.partitions_exchange, hash_slot(each))
            headers: Any = {"price": Decimal("12.34"), "x-version": 7}
            message = aio_pika.Message(json.dumps({"id": str(each)}).encode(), message_id=str(uuid4()), headers=headers)
            await exchange.publish(message, REQUEST_KEY)
        answered = set[str]()
        async with asyncio.timeout(60):
            while len(answered) < len(records):  # some may be forwarded twice
                answered.add(json.loads((await talk.answers.get()).body)["id"])
        assert await admin.fetchval("SELECT count(*) FROM task_activity_log WHERE source_version = 7") == len(records)
        await until(lambda: worker.in_hand == 0)


async def test_a_partition_that_takes_no_messages_stops_no_other(amqp_url: str, database_url: str) -> None:
    """What cannot be forwarded waits by itself, and is forwarded later."""
    one = uuid4()
    other = next(each for each in iter(uuid4, None) if hash_slot(each) != hash_slot(one))
    async with talking(amqp_url) as talk, serving(amqp_url, database_url, **PARTITIONED) as worker:
        queue = await talk.channel.get_queue(partition_queue(one), ensure=False)
        await queue.unbind(TOPOLOGY.partitions_exchange, hash_slot(one))
        await talk.send(one, subject="waits")
        await until(lambda: (worker.status.hold_reason or "").startswith("partitions returned"))
        await send_by_record(talk, other, hash_slot(other), subject="does not")
        reply = await talk.answers.get()
        assert json.loads(reply.body)["id"] == str(other)
        await queue.bind(TOPOLOGY.partitions_exchange, hash_slot(one))
        reply = await talk.answers.get()
        assert json.loads(reply.body)["id"] == str(one)
        await until(lambda: worker.in_hand == 0)


@pytest.mark.parametrize("number", [0, 1, 2, 3])
async def test_a_partition_that_was_deleted_is_declared_again(amqp_url: str, database_url: str, number: int) -> None:
    """With its bindings, by a worker that may declare queues; also the last one, which shows how many partitions there are."""
    queue = TOPOLOGY.partition_queues[number]
    record_id = next(each for each in iter(uuid4, None) if partition_queue(each) == queue)
    async with talking(amqp_url) as talk, serving(amqp_url, database_url, **PARTITIONED):
        await (await talk.channel.get_queue(queue, ensure=False)).delete(if_unused=False, if_empty=False)
        await talk.send(record_id)
        assert await talk.outcomes(1) == ["inserted"]


@pytest.mark.parametrize("exchange", [TOPOLOGY.replies_exchange, TOPOLOGY.partitions_exchange])
async def test_an_exchange_that_was_deleted_is_declared_again(amqp_url: str, database_url: str, exchange: str) -> None:
    """As a queue is, with its bindings: nothing could be answered, or forwarded, until a worker was started again."""
    async with talking(amqp_url) as talk, serving(amqp_url, database_url, **PARTITIONED):
        await talk.channel.exchange_delete(exchange)
        await talk.send(uuid4())
        assert await talk.outcomes(1) == ["inserted"]


async def test_a_queue_that_would_not_keep_the_order_is_refused(amqp_url: str) -> None:
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, Topology())
        with pytest.raises(Misconfigured, match=r"upsert has no single active consumer"):
            await declare(connection, TOPOLOGY)


@pytest.mark.parametrize(("partitions", "word"), [(2, "more"), (8, "fewer")])
async def test_workers_with_different_numbers_of_partitions_are_refused(
    amqp_url: str, partitions: int, word: str
) -> None:
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, TOPOLOGY)
        await declare(connection, TOPOLOGY)
        with pytest.raises(Misconfigured, match=f"among {word} than {partitions} partitions"):
            await declare(connection, Topology(partitions=partitions))


@pytest.mark.parametrize("single_active_consumer", [False, True])
async def test_a_worker_without_partitions_is_refused_where_there_are_some(
    amqp_url: str, single_active_consumer: bool
) -> None:
    """It would store what the others forward, before what they have forwarded and not stored yet."""
    without = Topology(single_active_consumer=single_active_consumer)
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, without)
        await declare(connection, replace(without, single_active_consumer=True, requests_queue="other"))
        await declare(connection, replace(TOPOLOGY, requests_queue="other"))
        for look in (declare, check):
            with pytest.raises(Misconfigured, match=r"divided among partitions: queue other\.0 exists"):
                await look(connection, replace(without, requests_queue="other"))
            await look(connection, without)


async def test_a_worker_that_may_not_look_for_partitions_works(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From RabbitMQ 4.3.1 on that takes a permission on their queues, which a worker without partitions need not have."""

    async def refused(*_: object) -> bool:
        raise ChannelAccessRefused("403 ACCESS_REFUSED")

    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, Topology())
        monkeypatch.setattr(topology, "_exists", refused)
        await check(connection, Topology())


async def test_each_database_has_a_range_of_the_slots(
    amqp_url: str, database_url: str, postgresql: PostgreSQL, admin: Connection
) -> None:
    """Two groups of workers with a database each. Publishers choose the group by the hash slot, in one line."""
    other_url = postgresql.create_database()
    await asyncio.to_thread(migrations.migrate, other_url)
    second = Topology(
        partitions=4,
        requests_queue="second.upsert",
        requests_exchange="second",
        partitions_exchange="second.by-record",
        workers_queue="second.workers",
    )
    names: dict[str, Any] = {
        "WORKER_REQUESTS_QUEUE": second.requests_queue,
        "WORKER_REQUESTS_EXCHANGE": second.requests_exchange,
        "WORKER_PARTITIONS_EXCHANGE": second.partitions_exchange,
        "WORKER_WORKERS_QUEUE": second.workers_queue,
    }
    records = [uuid4() for _ in range(40)]
    first = sum(hash_slot(each) < "80" for each in records)
    try:
        async with (
            talking(amqp_url) as talk,
            serving(amqp_url, database_url, **PARTITIONED),
            serving(amqp_url, other_url, **PARTITIONED, **names),
        ):
            for record_id in records:
                slot = hash_slot(record_id)
                group = TOPOLOGY if slot < "80" else second
                exchange = await talk.channel.get_exchange(group.partitions_exchange, ensure=False)
                await exchange.publish(aio_pika.Message(json.dumps({"id": str(record_id)}).encode()), slot)
            assert await talk.outcomes(40) == ["inserted"] * 40
        assert await admin.fetchval("SELECT count(*) FROM task_activity_log") == first
    finally:
        postgresql.drop_database(other_url)
