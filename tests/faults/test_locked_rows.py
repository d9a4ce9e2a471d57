"""A row that is locked, or that the database fails for, delays its own record alone, and each record keeps its order."""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import asyncpg
import pytest
import structlog
from aio_pika.abc import AbstractIncomingMessage
from structlog.testing import capture_logs

from tests import audit_trigger
from tests.asking import Connection
from tests.faults.conversation import SINGLE_ACTIVE, TOPOLOGY, Conversation, conversing, until
from tests.serving import serving

ANSWER_SECONDS = 20
"""What waits for a lock waits 30 seconds, the timeout of a statement; what does not is answered long before this."""
SMALL: dict[str, Any] = {"WORKER_BATCH_MAX": "20"}
ORDERED: dict[str, Any] = {"WORKER_SINGLE_ACTIVE_CONSUMER": "true"}
"""What is parked keeps its order when it is returned; see docs/guarantees.md for the other way to consume."""

PASSING = ("25006", "25P02", "26000", "40001", "40P01", "42P05", "53200", "53300", "55000", "57014", "57P01")
"""Read-only, transaction failed, no such statement, conflict, deadlock, out of memory, too many connections, not in the state for
it, cancelled, shutting down: it may work later."""
LASTING = ("0A000", "42703", "42883", "42P01", "58030", "58P01", "XX000", "XX001")
"""Not supported, no such column, no such function, no such table, statement exists, I/O error, no such file, internal error,
corrupt data."""

_FAIL = """
    CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.subject = 'fails with a lost connection' THEN
            PERFORM pg_terminate_backend(pg_backend_pid());
        ELSIF NEW.subject LIKE 'fails with %' THEN
            RAISE EXCEPTION 'no' USING ERRCODE = substr(NEW.subject, 12);
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON task_activity_log FOR EACH ROW EXECUTE FUNCTION fail();
"""
"""Raises the SQLSTATE that a subject names, or ends the session."""


_WAIT = """
    CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.subject LIKE 'slow%' THEN
            {first}
        END IF;
        WHILE NEW.subject LIKE 'slow%' AND NOT pg_try_advisory_xact_lock_shared(42) LOOP
            PERFORM pg_sleep(0.02);
        END LOOP;
        RETURN NEW;
    END $$;
    CREATE TRIGGER wait BEFORE INSERT OR UPDATE ON task_activity_log FOR EACH ROW EXECUTE FUNCTION wait();
"""
"""Makes rows slow that have such a subject, while `slow_rows` lasts. Nothing is locked, so lock_timeout does not end it."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """An event a batch, as a worker logs by default, and not one a message."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    yield
    structlog.reset_defaults()


@dataclass(frozen=True)
class Answer:
    """What a reply says."""

    message_id: str
    outcome: str
    code: str | None
    record: UUID | None
    subject: str | None


async def answers(talk: Conversation, count: int, seconds: float = ANSWER_SECONDS) -> list[Answer]:
    """The next replies."""
    found: list[Answer] = []
    try:
        async with asyncio.timeout(seconds):
            while len(found) < count:
                found.append(_answer(await talk.answers.get()))
    except TimeoutError:
        pytest.fail(f"{len(found)} of {count} were answered in {seconds} s")
    return found


def _answer(reply: AbstractIncomingMessage) -> Answer:
    body, code = json.loads(reply.body), reply.headers.get("x-error-code")
    return Answer(
        message_id=str(reply.correlation_id),
        outcome=str(reply.headers["x-outcome"]),
        code=None if code is None else str(code),
        record=UUID(body["id"]) if "id" in body else None,
        subject=body.get("subject"),
    )


async def send_others(talk: Conversation, count: int) -> set[str]:
    """Send requests of as many other records; their message_ids."""
    return {await talk.send() for _ in range(count)}


def request(record: UUID, subject: str) -> aio_pika.Message:
    """A request whose key `request_key` knows."""
    return aio_pika.Message(json.dumps({"id": str(record), "subject": subject}).encode(), message_id=str(uuid4()))


def request_key(message: aio_pika.Message) -> UUID:
    """What the inbox remembers of a message without x-version (contract, section 7)."""
    parts = (str(message.message_id).encode(), b"replace", b"", message.body)
    return UUID(bytes=hashlib.sha256(b"".join(len(p).to_bytes(8, "big") + p for p in parts)).digest()[:16])


async def publish(talk: Conversation, message: aio_pika.Message) -> None:
    exchange = await talk.channel.get_exchange(TOPOLOGY.requests_exchange, ensure=False)
    await exchange.publish(message, "upsert", mandatory=True)


@asynccontextmanager
async def transaction(database_url: str) -> AsyncIterator[Connection]:
    """A transaction of somebody else, rolled back at the end."""
    connection: Connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("BEGIN")
        yield connection
        await connection.execute("ROLLBACK")
    finally:
        await connection.close()


@asynccontextmanager
async def slow_rows(admin: Connection, first: str = "NULL;") -> AsyncIterator[None]:
    """Rows whose subject begins with `slow` take until the end of the block. `first` is executed at each attempt."""
    await admin.execute(_WAIT.replace("{first}", first))
    await admin.execute("SELECT pg_advisory_lock(42)")
    try:
        yield
    finally:
        await admin.execute("SELECT pg_advisory_unlock(42)")


async def lock_rows(admin: Connection, other: Connection, records: list[UUID]) -> None:
    """Have `other` lock the rows of these records, which are there."""
    await admin.execute("INSERT INTO task_activity_log (id, subject) SELECT unnest($1::uuid[]), 'before'", records)
    await other.execute("SELECT FROM task_activity_log WHERE id = ANY ($1) FOR UPDATE", records)


@pytest.mark.parametrize("what", ["row", "new row", "request key"])
async def test_requests_of_other_records_do_not_wait_for_a_lock(
    amqp_url: str, database_url: str, admin: Connection, what: str
) -> None:
    """Those of its batch and of later batches are answered while it is held; those of its record wait, in their order.

    Locked is the row; or a row that somebody inserts and has not committed; or the inbox's entry of the first request.
    """
    record = uuid4()
    requests = [request(record, str(number)) for number in range(5)]
    await audit_trigger.install(admin)
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url, **SMALL) as service:
        async with transaction(database_url) as other:
            if what == "row":
                await lock_rows(admin, other, [record])
            elif what == "new row":
                await other.execute("INSERT INTO task_activity_log (id) VALUES ($1)", record)
            else:
                key = request_key(requests[0])
                await other.execute("INSERT INTO task_activity_log_inbox (request_key) VALUES ($1)", key)
            others: set[str] = set()
            for one in requests:
                await publish(talk, one)
                others |= await send_others(talk, 40)
            assert {answer.message_id for answer in await answers(talk, 200)} == others
            await until(lambda: service.in_hand == len(requests))
            assert service.status.not_ready() == []
            assert "parked" in json.dumps(service.status.report())
        assert [answer.subject for answer in await answers(talk, 5)] == ["0", "1", "2", "3", "4"]
        await until(lambda: service.in_hand == 0)
        assert await talk.kept() == []
    written = audit_trigger.subjects(await audit_trigger.read(admin), record)
    assert [subject for subject in written if subject != "before"] == ["0", "1", "2", "3", "4"]


async def test_requests_of_other_records_do_not_wait_for_a_slow_row(
    amqp_url: str, database_url: str, admin: Connection
) -> None:
    """A trigger takes its time for one row. Others are answered meanwhile, also those whose row was locked before; those
    of its record wait, in their order, and each is applied once.
    """
    slow, locked = uuid4(), uuid4()
    requests = [request(slow, subject) for subject in ("slow", "1", "2", "slow again")]
    await audit_trigger.install(admin)
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url, **SMALL) as service:
        async with slow_rows(admin):
            async with transaction(database_url) as other:
                await lock_rows(admin, other, [locked])
                others: set[str] = set()
                for one in requests:
                    await publish(talk, one)
                    others |= await send_others(talk, 40)
                await talk.send(locked)
                assert {answer.message_id for answer in await answers(talk, 160)} == others
                await until(lambda: service.in_hand == len(requests) + 1)
                assert service.status.not_ready() == []
                assert "parked" in json.dumps(service.status.report())
            assert [answer.record for answer in await answers(talk, 1)] == [locked]
        assert [answer.subject for answer in await answers(talk, 4)] == ["slow", "1", "2", "slow again"]
        await until(lambda: service.in_hand == 0)
        assert await talk.kept() == []
    writes = await audit_trigger.read(admin)
    assert audit_trigger.subjects(writes, slow) == ["slow", "1", "2", "slow again"]
    assert len(writes) == len(others) + len(requests) + 2  # the locked row was there before


async def test_a_hundred_slow_rows_delay_their_own_records_alone(
    amqp_url: str, database_url: str, admin: Connection
) -> None:
    """Others of their batches are answered while all of them are slow, and each is tried a few times only until then."""
    await admin.execute("CREATE SEQUENCE tries")  # also counts what is rolled back
    records = [uuid4() for _ in range(100)]
    settings: dict[str, Any] = {"WORKER_BATCH_MAX": "100", "WORKER_DATABASE_COMMAND_TIMEOUT_SECONDS": "600"}
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url, **settings) as service:
        await send_others(talk, 20)
        await answers(talk, 20)
        async with slow_rows(admin, "PERFORM nextval('tries');"):
            others: set[str] = set()
            for record in records:
                await talk.send(record, subject="slow")
                others |= await send_others(talk, 3)
            assert {answer.message_id for answer in await answers(talk, 300, seconds=120)} == others
            assert await admin.fetchval("SELECT last_value FROM tries") < 7 * len(records)
            await until(lambda: service.in_hand == len(records))
        assert {answer.record for answer in await answers(talk, 100)} == set(records)
        await until(lambda: service.in_hand == 0)
        assert await talk.kept() == []


async def test_sixty_locked_rows_delay_their_own_records_alone(
    amqp_url: str, database_url: str, admin: Connection
) -> None:
    """Many rows that a batch job of somebody else holds, and other records in the same batches."""
    records = [uuid4() for _ in range(60)]
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url, WORKER_BATCH_MAX="100") as service:
        async with transaction(database_url) as other:
            await lock_rows(admin, other, records)
            others: set[str] = set()
            for record in records:
                await talk.send(record, subject="after")
                others |= await send_others(talk, 3)
            assert {answer.message_id for answer in await answers(talk, 180)} == others
            await until(lambda: service.in_hand == len(records))
        assert {answer.record for answer in await answers(talk, 60)} == set(records)
        await until(lambda: service.in_hand == 0)
        assert await talk.kept() == []


async def test_a_record_that_fills_half_of_the_prefetch_holds(
    amqp_url: str, database_url: str, admin: Connection
) -> None:
    """More of it is not taken: the worker says so, and goes on when the lock is gone, in order."""
    record, subjects = uuid4(), [str(number) for number in range(30)]
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url, WORKER_BATCH_MAX="5") as service:
        async with transaction(database_url) as other:
            await lock_rows(admin, other, [record])
            for subject in subjects:
                await talk.send(record, subject=subject)
            await until(lambda: any("parked" in reason for reason in service.status.not_ready()), ANSWER_SECONDS)
            assert service.status.not_alive() == []
        assert [answer.subject for answer in await answers(talk, 30)] == subjects
        await until(lambda: not service.status.not_ready())


async def test_what_is_parked_for_too_long_is_returned_in_order(
    amqp_url: str, database_url: str, admin: Connection
) -> None:
    """Another consumer sees it come back: nothing is lost or rejected, and it is applied when the lock is gone."""
    record, subjects = uuid4(), ["0", "1", "2"]
    async with conversing(amqp_url, topology=SINGLE_ACTIVE) as talk, transaction(database_url) as other:
        await lock_rows(admin, other, [record])
        async with serving(amqp_url, database_url, **SMALL, **ORDERED, WORKER_PARK_LIMIT_SECONDS="1") as service:
            for subject in subjects:
                await talk.send(record, subject=subject)
            others = await send_others(talk, 20)
            assert {answer.message_id for answer in await answers(talk, 20)} == others
            async with await aio_pika.connect(amqp_url) as connection:
                channel = await connection.channel()
                returned: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
                queue = await channel.get_queue(TOPOLOGY.requests_queue, ensure=False)
                await queue.consume(returned.put)
                async with asyncio.timeout(ANSWER_SECONDS):
                    messages = [await returned.get() for _ in subjects]
                assert [json.loads(message.body)["subject"] for message in messages] == subjects
                assert all(message.redelivered for message in messages)
                assert service.status.not_alive() == []
            # The worker gets them again, and parks them again.
            others = await send_others(talk, 20)
            assert {answer.message_id for answer in await answers(talk, 20)} == others
            await other.execute("ROLLBACK")
            assert [answer.subject for answer in await answers(talk, 3)] == subjects
            await until(lambda: service.in_hand == 0)
            assert await talk.kept() == []


async def test_a_worker_that_drains_leaves_what_is_parked_to_the_next_one(
    amqp_url: str, database_url: str, admin: Connection
) -> None:
    """It ends inside the drain limit although the row stays locked, and the next worker applies all in order."""
    record, subjects = uuid4(), [str(number) for number in range(10)]
    await audit_trigger.install(admin)
    async with conversing(amqp_url, topology=SINGLE_ACTIVE) as talk:
        async with transaction(database_url) as other:
            await lock_rows(admin, other, [record])
            with capture_logs() as events:
                async with serving(amqp_url, database_url, **SMALL, **ORDERED):
                    for subject in subjects:
                        await talk.send(record, subject=subject)
                    others = await send_others(talk, 20)
                    assert {answer.message_id for answer in await answers(talk, 20)} == others
            ends = [event["event"] for event in events if event["event"] in ("drained", "drain_limit_reached")]
            assert ends == ["drained"]
        async with serving(amqp_url, database_url, **SMALL, **ORDERED):
            assert [answer.subject for answer in await answers(talk, 10)] == subjects
        assert await talk.kept() == []
    written = audit_trigger.subjects(await audit_trigger.read(admin), record)
    assert [subject for subject in written if subject != "before"] == subjects


async def test_a_row_that_fails_with_what_passes_waits_alone(
    amqp_url: str, database_url: str, admin: Connection
) -> None:
    """Each error is one row's, as the others pass: it is tried again until it works, and its record waits behind it."""
    await admin.execute(_FAIL)
    records = {state: uuid4() for state in PASSING}
    async with (
        conversing(amqp_url, topology=SINGLE_ACTIVE) as talk,
        serving(amqp_url, database_url, **SMALL, **ORDERED) as service,
    ):
        others = await send_others(talk, 20)
        for state, record in records.items():
            await talk.send(record, subject=f"fails with {state}")
            await talk.send(record, subject="later")
            others |= await send_others(talk, 20)
        assert {answer.message_id for answer in await answers(talk, len(others))} == others
        await until(lambda: service.in_hand == 2 * len(records))
        assert service.status.not_ready() == []
        await admin.execute("DROP TRIGGER fail ON task_activity_log")
        waited = await answers(talk, 2 * len(records))
        for state, record in records.items():
            subjects = [answer.subject for answer in waited if answer.record == record]
            assert subjects == [f"fails with {state}", "later"]
        assert await talk.kept() == []


@pytest.mark.parametrize("error", ["08006", "3D000", "53100", "a lost connection"])
async def test_an_error_of_an_outage_is_the_rows_if_others_pass(
    amqp_url: str, database_url: str, admin: Connection, error: str
) -> None:
    """A trigger that asks another server raises that server's errors. And the row may end the worker's own connection."""
    await admin.execute(_FAIL)
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url) as service:
        failing = await talk.send(subject=f"fails with {error}")
        others = await send_others(talk, 3)
        assert {answer.message_id for answer in await answers(talk, 3)} == others
        await until(lambda: service.in_hand == 1)
        assert service.status.not_ready() == []
        await admin.execute("DROP TRIGGER fail ON task_activity_log")
        assert [answer.message_id for answer in await answers(talk, 1)] == [failing]
        assert await talk.kept() == []


async def test_a_row_that_fails_with_what_stays_is_refused(amqp_url: str, database_url: str, admin: Connection) -> None:
    """A dead letter for each, and the others are stored: those of other records, and the later ones of its own."""
    await admin.execute(_FAIL)
    async with (
        conversing(amqp_url, topology=SINGLE_ACTIVE) as talk,
        serving(amqp_url, database_url, **SMALL, **ORDERED) as service,
    ):
        stored = await send_others(talk, 20)
        refused: dict[str, str] = {}
        for state in LASTING:
            record = uuid4()
            refused[await talk.send(record, subject=f"fails with {state}")] = state
            stored |= {await talk.send(record, subject="later")} | await send_others(talk, 20)
        found = await answers(talk, len(stored) + len(refused))
        codes = {refused[answer.message_id]: answer.code for answer in found if answer.outcome == "rejected"}
        assert codes == dict.fromkeys(LASTING, "refused_by_database")
        assert {answer.message_id for answer in found if answer.outcome == "inserted"} == stored
        await until(lambda: service.in_hand == 0)
        kept = await talk.kept()
        assert {str(message.message_id) for message in kept} == set(refused)
        assert {message.headers["x-error-code"] for message in kept} == {"refused_by_database"}
