"""The journal: how each message was answered, and that nothing depends on it."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import aio_pika
import pytest
import structlog

from task_activity_log.pipeline import reply
from task_activity_log.pipeline.ports import Settlement
from task_activity_log.postgresql import journal as journal_module
from task_activity_log.postgresql.connecting import Connector
from task_activity_log.postgresql.journal import _ROWS_MAX, Journal
from task_activity_log.postgresql.store import Store
from task_activity_log.problem import Code, Problem
from tests.asking import Connection, until_blocked
from tests.commands import Said, command
from tests.fakes import delivered
from tests.faults.conversation import TOPOLOGY, Conversation, conversing, until
from tests.serving import serving
from tests.users import login

WRITE = "INSERT INTO task_activity_log_journal"


def answered(message_id: str | None = None, record: UUID | None = None, **properties: Any) -> Settlement[Any]:
    """A message that was rejected."""
    delivery = delivered(b"", message_id, **properties)
    return Settlement(delivery, reply.undecoded(delivery, Problem(Code.INVALID_DATE, "")), asked=record)


async def rows(database: Connection) -> list[dict[str, Any]]:
    """What the journal has, without numbers and times."""
    found = await database.fetch("SELECT * FROM task_activity_log_journal ORDER BY number")
    return [{name: value for name, value in row.items() if name not in ("number", "answered_at")} for row in found]


async def until_journaled(database: Connection, count: int) -> list[dict[str, Any]]:
    """Wait until the journal has this number of rows."""
    async with asyncio.timeout(60):
        while len(found := await rows(database)) < count:
            await asyncio.sleep(0.02)
    return found


async def send(talk: Conversation, body: object, **properties: Any) -> None:
    """Publish any message."""
    exchange = await talk.channel.get_exchange(TOPOLOGY.requests_exchange, ensure=False)
    await exchange.publish(aio_pika.Message(json.dumps(body).encode(), **properties), "upsert")


@asynccontextmanager
async def journaling(database_url: str, lost: list[int]) -> AsyncIterator[Journal]:
    """A journal that writes. `lost` gets the numbers of rows that are missing."""
    journal = Journal(Connector(database_url), on_dropped=lost.append)
    task = asyncio.create_task(journal.run())
    yield journal
    await journal.finish(task, 60.0)


async def test_what_was_answered_is_found_when_nothing_else_is_left(
    amqp_url: str, database_url: str, database: Connection
) -> None:
    """By message_id, correlation_id and record: stored, repeated, refused by the database, and not decoded."""
    stored, refused = uuid4(), uuid4()
    await database.execute("ALTER TABLE task_activity_log ADD CONSTRAINT few CHECK (subject <> 'secret')")
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url, WORKER_JOURNAL="true"):
        sent: dict[str, Any] = {"message_id": "m-1", "correlation_id": "c-1", "app_id": "crm"}
        for _ in range(2):
            await send(talk, {"id": str(stored)}, **sent)
            [answer] = await talk_answers(talk, 1)
        await send(talk, {"id": str(refused), "subject": "secret"}, message_id="m-2")
        await send(talk, {"id": "secret"}, message_id="m-3", app_id="crm")
        await send(talk, {"id": str(stored)}, correlation_id="c-4", message_id=str(stored))
        await talk_answers(talk, 3)
        await until_journaled(database, 5)
        await talk.kept()
    async with conversing(amqp_url, answers=False) as talk:
        replies = await talk.channel.get_exchange(TOPOLOGY.replies_exchange, ensure=False)
        await replies.publish(answer, "stored.inserted")  # as if nobody had taken it yet
    services: dict[str, Any] = {"AMQP_URL": amqp_url, "DATABASE_URL": database_url}

    async def found(name: str) -> list[str]:
        said = await command("find", name, **services)
        assert said.code == 0
        return [line.partition(": ")[2] for line in said.lines if line.startswith("answered ")]

    first = f"inserted, message m-1, correlation_id c-1, record {stored}, from crm, reply {answer.message_id}"
    assert await found("m-1") == [first, first.replace("inserted", "duplicate")] == await found("c-1")
    said = await command("find", "m-1", **services)  # the reply has the correlation_id alone: the journal knows its id
    assert [line.partition(":")[0] for line in said.lines if "waiting" in line] == [
        f"waiting reply {answer.message_id}"
    ]
    assert [line.split(",")[0] for line in await found(str(stored))] == ["inserted", "duplicate", "updated"]
    [line] = await found(str(refused))
    assert line.startswith(f"rejected (refused_by_database), message m-2, record {refused}, reply ")
    [line] = await found("m-3")
    assert line.startswith("rejected (invalid_uuid), message m-3, from crm, reply ")
    [line] = await found("c-4")
    assert line.startswith(f"updated, message {stored}, correlation_id c-4, record {stored}, reply ")
    nothing = await command("find", "m-4", **services)
    unanswered = "the journal has no answer: too old, or not kept (WORKER_JOURNAL)"
    invalid = "what was rejected as invalid has no record in the journal: look for its message_id"
    assert (nothing.code, unanswered in nothing.err, invalid in nothing.err) == (1, True, False)
    other = await command("find", str(uuid4()), **services)  # it can be the record of a request like m-3
    assert (other.code, unanswered in other.err, invalid in other.err) == (1, True, True)
    assert "secret" not in str(await database.fetch("SELECT * FROM task_activity_log_journal"))


async def talk_answers(talk: Conversation, count: int) -> list[aio_pika.abc.AbstractIncomingMessage]:
    async with asyncio.timeout(60):
        return [await talk.answers.get() for _ in range(count)]


async def test_a_journal_that_cannot_be_read_hides_nothing_else(
    amqp_url: str, database_url: str, database: Connection
) -> None:
    """Or one into which others have written: the row is shown, and why the journal says nothing."""
    record = uuid4()
    await database.execute("INSERT INTO task_activity_log (id, subject) VALUES ($1, 'kept')", record)
    await database.execute("ALTER TABLE task_activity_log_journal ALTER outcome DROP NOT NULL")
    await database.execute(
        "INSERT INTO task_activity_log_journal (answered_at, record_id, reply_id) VALUES (now(), $1, $1)", record
    )
    async with conversing(amqp_url):
        for change, words in (
            ("SELECT 1", "None, record"),
            ("ALTER TABLE task_activity_log_journal RENAME message_id TO m", "the journal cannot be read: schema does"),
        ):
            await database.execute(change)
            said = await command("find", str(record), AMQP_URL=amqp_url, DATABASE_URL=database_url)
            assert (said.code, said.lines[0].startswith(f"row {record}")) == (0, True)
            assert words in said.out + said.err


@pytest.mark.parametrize(
    ("granted", "code", "first", "said"),
    [
        ("", 0, "row ", "this role may not read the journal: it needs SELECT on task_activity_log_journal"),
        (
            "_journal",
            1,
            "answered ",
            "the row is not known: not permitted (42501): permission denied for table task_activity_log",
        ),
    ],
)
async def test_what_a_role_may_not_read_is_named_next_to_the_rest(
    amqp_url: str, database_url: str, database: Connection, granted: str, code: int, first: str, said: str
) -> None:
    """Otherwise it looks as if the record had never been answered, or as if the database could not be used."""
    record = uuid4()
    await database.execute("INSERT INTO task_activity_log (id, subject) VALUES ($1, 'kept')", record)
    await database.execute(
        "INSERT INTO task_activity_log_journal (answered_at, outcome, record_id, reply_id) VALUES (now(), 'inserted', $1, $1)",
        record,
    )
    name = f"role_{uuid4().hex}"
    await database.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{name}'")
    try:
        await database.execute(f"GRANT SELECT ON task_activity_log{granted} TO {name}")
        parts = urlsplit(database_url)
        url = parts._replace(netloc=f"{name}:{name}@{parts.hostname}:{parts.port}").geturl()
        async with conversing(amqp_url):
            found = await command("find", str(record), AMQP_URL=amqp_url, DATABASE_URL=url)
    finally:
        await database.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
    assert (found.code, found.lines[0].startswith(first)) == (code, True)
    assert said in found.err


async def test_without_the_setting_nothing_is_recorded(amqp_url: str, database_url: str, database: Connection) -> None:
    """And there is no connection for it. `find` says what it would need."""
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url):
        await talk.send()
        assert await talk.outcomes(1) == ["inserted"]
        sessions = await database.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'task-activity-log-worker'"
            " AND datname = current_database()"
        )
        assert sessions <= 2
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "journal"]
    assert await rows(database) == []


async def test_a_journal_that_does_not_exist_yet_delays_nobody(
    amqp_url: str, database_url: str, database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an update without `migrate`. It is logged once, and what was answered is written when there is one."""
    monkeypatch.setattr(journal_module, "_RETRY_SECONDS", 0.01)
    await database.execute("ALTER TABLE task_activity_log_journal RENAME TO away")
    with structlog.testing.capture_logs() as events:
        async with conversing(amqp_url) as talk, serving(amqp_url, database_url, WORKER_JOURNAL="true"):
            await talk.send()
            assert await talk.outcomes(1) == ["inserted"]
            await until(lambda: any(event["event"] == "journal_failing" for event in events))
            await talk.send()
            assert await talk.outcomes(1) == ["inserted"]
            await database.execute("ALTER TABLE away RENAME TO task_activity_log_journal")
            assert len(await until_journaled(database, 2)) == 2
    [failing] = [event for event in events if event["event"] == "journal_failing"]
    assert failing["reason"].startswith("not migrated yet (42P01)")
    assert [event["event"] for event in events].count("journal_recovered") == 1


async def test_a_journal_that_refuses_every_row_is_not_said_to_be_written_again(
    amqp_url: str, database_url: str, database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one with a column or a constraint of others. A single row that is refused says nothing."""
    monkeypatch.setattr(journal_module, "_RETRY_SECONDS", 0.01)
    await database.execute("ALTER TABLE task_activity_log_journal RENAME TO away")
    with structlog.testing.capture_logs() as events:

        def failing() -> list[str]:
            return [event["reason"].partition(":")[0] for event in events if event["event"] == "journal_failing"]

        async with (
            conversing(amqp_url) as talk,
            serving(amqp_url, database_url, WORKER_JOURNAL="true") as service,
        ):
            await talk.send()
            await until(lambda: failing() == ["not migrated yet (42P01)"])
            await database.execute("""
                ALTER TABLE away RENAME TO task_activity_log_journal;
                ALTER TABLE task_activity_log_journal ADD CONSTRAINT never CHECK (outcome <> 'inserted') NOT VALID
            """)
            lost = service.metrics.counters["task_activity_log_journal_rows_lost_total"]
            await until(lambda: lost._value.get() == 1)
            for _ in range(9):
                await talk.send()
            await until(lambda: failing() == ["not migrated yet (42P01)", "every row is refused (23514)"])
            assert not [event for event in events if event["event"] == "journal_recovered"]
            await database.execute("ALTER TABLE task_activity_log_journal DROP CONSTRAINT never")
            await talk.send()
            await until_journaled(database, 1)
    assert [event["event"] for event in events].count("journal_recovered") == 1


async def test_a_journal_whose_rows_a_trigger_skips_is_reported(database_url: str, database: Connection) -> None:
    """They are counted as lost."""
    await database.execute("""
        CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NULL; END$$;
        CREATE TRIGGER skip BEFORE INSERT ON task_activity_log_journal FOR EACH ROW EXECUTE FUNCTION skip()
    """)
    lost: list[int] = []
    with structlog.testing.capture_logs() as events:
        async with journaling(database_url, lost) as journal:
            journal.add([answered(str(number)) for number in range(12)])
            await until(lambda: sum(lost) == 12)
            await database.execute("DROP TRIGGER skip ON task_activity_log_journal")
            journal.add([answered("kept")])
            await until_journaled(database, 1)
    said = [(event["event"], event.get("reason", "").partition(":")[0]) for event in events]
    assert said == [("journal_failing", "a trigger skips every row"), ("journal_recovered", "")]


async def test_a_journal_that_is_locked_delays_nobody(
    amqp_url: str, database_url: str, database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages are answered while a statement of the journal waits for the lock, here for an hour; and the worker stops."""
    monkeypatch.setattr(journal_module, "_WRITE", journal_module._WRITE.replace("'1s'", "'1h'"))
    monkeypatch.setattr(journal_module, "_STATEMENT_SECONDS", 3600.0)
    async with conversing(amqp_url) as talk, database.transaction():
        await database.execute("LOCK TABLE task_activity_log_journal")
        settings: dict[str, Any] = {"WORKER_JOURNAL": "true", "WORKER_DRAIN_LIMIT_SECONDS": "5"}
        settings["WORKER_DATABASE_COMMAND_TIMEOUT_SECONDS"] = "3600"
        async with serving(amqp_url, database_url, **settings) as service:
            for _ in range(3):
                await talk.send()
                assert await talk.outcomes(1) == ["inserted"]
                await until_blocked(database, statement=WRITE)  # that which trims the journal may wait as well
            lost = service.metrics.counters["task_activity_log_journal_rows_lost_total"]
        assert lost._value.get() == 3


async def test_what_was_answered_last_is_written_at_the_end(
    amqp_url: str, database_url: str, database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once. A worker that stops waits for the statement that is under way, which waits for a lock until then."""
    monkeypatch.setattr(journal_module, "_WRITE", journal_module._WRITE.replace("'1s'", "'1h'"))
    monkeypatch.setattr(journal_module, "_STATEMENT_SECONDS", 3600.0)
    lock, finish = database.transaction(), Journal.finish

    async def release_and_finish(journal: Journal, running: asyncio.Task[None], seconds: float) -> None:
        release = asyncio.create_task(lock.rollback())
        await finish(journal, running, seconds)
        await release

    monkeypatch.setattr(Journal, "finish", release_and_finish)
    settings: dict[str, Any] = {"WORKER_JOURNAL": "true", "WORKER_DRAIN_LIMIT_SECONDS": "600"}
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url, **settings):
        await lock.start()
        await database.execute("LOCK TABLE task_activity_log_journal")
        await talk.send()
        assert await talk.outcomes(1) == ["inserted"]
        await until_blocked(database, statement=WRITE)
    assert len(await rows(database)) == 1


async def test_rows_that_the_database_refuses_are_found_and_dropped(database_url: str, database: Connection) -> None:
    """All others are written, in their order."""
    await database.execute("ALTER TABLE task_activity_log_journal ADD CHECK (message_id NOT LIKE 'bad%')")
    lost: list[int] = []
    names = ["bad1", *(f"m{number}" for number in range(50)), "bad2", "last"]
    async with journaling(database_url, lost) as journal:
        journal.add([answered(name) for name in names])
        found = await until_journaled(database, 51)
    assert [row["message_id"] for row in found] == [name for name in names if not name.startswith("bad")]
    assert lost == [1, 1]


async def test_rows_that_no_partition_takes_do_not_keep_others_from_being_written(
    database_url: str, database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their partition was never made. They wait while no other is written, and are then counted and dropped."""
    monkeypatch.setattr(journal_module, "_RETRY_SECONDS", 0.01)
    await database.execute("""
        ALTER TABLE task_activity_log_journal RENAME TO plain;
        CREATE TABLE task_activity_log_journal (LIKE plain INCLUDING DEFAULTS) PARTITION BY LIST (message_id);
        CREATE SEQUENCE numbers;
        ALTER TABLE task_activity_log_journal ALTER number SET DEFAULT nextval('numbers')
    """)
    lost: list[int] = []
    with structlog.testing.capture_logs() as events:
        async with journaling(database_url, lost) as journal:
            journal.add([answered(f"early {number}") for number in range(20)])
            await until(lambda: bool(events))
            await database.execute(
                "CREATE TABLE part PARTITION OF task_activity_log_journal FOR VALUES IN ('m0', 'm1', 'm2', 'm3', 'm4')"
            )
            for number in range(5):
                journal.add([answered("late"), answered(f"m{number}")])
            await until_journaled(database, 5)
            await until(lambda: sum(lost) == 25)
            journal.add([answered("m0")])
            await until_journaled(database, 6)
    assert [event["event"] for event in events][:2] == ["journal_failing", "journal_recovered"]


async def test_what_counts_for_new_connections_alone_is_seen(
    database_url: str, database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the settings of a role: the journal connects again before it tries again."""
    monkeypatch.setattr(journal_module, "_RETRY_SECONDS", 0.01)
    role = f"writer_{secrets.token_hex(4)}"
    await database.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'secret'; ALTER ROLE {role} SET search_path = 'elsewhere'"
    )
    await database.execute(f"GRANT INSERT, SELECT ON task_activity_log_journal TO {role}")
    try:
        journal = Journal(Connector(login(database_url, role, "secret")))
        running = asyncio.create_task(journal.run())
        with structlog.testing.capture_logs() as events:
            journal.add([answered("kept")])
            await until(lambda: bool(events))
            await database.execute(f"ALTER ROLE {role} RESET search_path")
            await until_journaled(database, 1)
        await journal.finish(running, 60.0)
    finally:
        await database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_what_could_not_be_written_in_the_end_is_counted_and_said(
    database_url: str, database: Connection
) -> None:
    """Otherwise `find` does not find it, and nobody knows why."""
    await database.execute("DROP TABLE task_activity_log_journal")
    lost: list[int] = []
    journal = Journal(Connector(database_url), on_dropped=lost.append)
    with structlog.testing.capture_logs() as events:
        journal.add([answered(str(number)) for number in range(3)])
        running = asyncio.create_task(journal.run())
        await until(lambda: bool(events))
        await journal.finish(running, 0.0)
    assert lost == [3]
    assert events[-1] == {
        "event": "journal_rows_lost", "rows": 3, "reason": "not migrated yet (42P01)", "log_level": "warning"
    }  # fmt: skip


async def test_the_rows_that_wait_are_bounded(database_url: str, database: Connection) -> None:
    """The oldest are dropped, and counted."""
    lost: list[int] = []
    journal = Journal(Connector(database_url), on_dropped=lost.append)
    journal.add([answered(str(number)) for number in range(_ROWS_MAX + 5)])
    assert lost == [5]
    await journal.finish(asyncio.create_task(journal.run()), 60.0)
    assert lost == [5]
    found = await database.fetchrow(
        "SELECT count(*), min(message_id::int), max(message_id::int) FROM task_activity_log_journal"
    )
    assert found is not None
    assert tuple(found) == (_ROWS_MAX, 5, _ROWS_MAX + 4)


async def test_what_nobody_could_find_is_not_recorded(database_url: str, database: Connection) -> None:
    """A message without any id. Texts that cannot be stored, or are longer than AMQP allows, are left out."""
    record, lost = uuid4(), list[int]()
    async with journaling(database_url, lost) as journal:
        journal.add(
            [
                answered(),
                answered("a\0b", correlation_id="x" * 256),
                answered("\ud800", record=record, app_id="\0", user_id="ignored"),
                answered("same", correlation_id="same", user_id="guest"),
                answered(headers={"MessageId": "m" * 255}),
            ]
        )
        found = await until_journaled(database, 3)
    known = [(row["message_id"], row["correlation_id"], row["record_id"], row["publisher"]) for row in found]
    assert known == [(None, None, record, None), ("same", None, None, "guest"), ("m" * 255, None, None, None)]
    assert not lost


async def test_the_journal_is_trimmed_with_the_inbox_also_when_it_is_not_kept_any_more(
    amqp_url: str, database_url: str, database: Connection, store: Store
) -> None:
    """Old rows are deleted in chunks, by one worker at a time; a missing journal is no error."""
    await database.execute("""
        INSERT INTO task_activity_log_journal (answered_at, reply_id, outcome)
        SELECT now() - interval '25 hours', gen_random_uuid(), 'inserted' FROM generate_series(1, 25)
        UNION ALL SELECT now() - interval '23 hours', gen_random_uuid(), 'young'
    """)
    day = timedelta(days=1)
    async with database.transaction():
        assert await database.fetchval("SELECT pg_try_advisory_xact_lock($1)", int.from_bytes(b"tal-trim") + 1)
        assert await store.trim_journal(day, 10) == 0
    assert [await store.trim_journal(day, 10) for _ in range(2)] == [10, 10]
    async with serving(amqp_url, database_url):
        async with asyncio.timeout(60):
            while [row["outcome"] for row in await rows(database)] != ["young"]:
                await asyncio.sleep(0.02)
    await database.execute("DROP TABLE task_activity_log_journal")
    assert await store.trim_journal(day, 10) == 0


class TestFind:
    """`find` says why the journal says nothing."""

    async def test_without_a_journal(self, amqp_url: str, database_url: str, database: Connection) -> None:
        """As with an older schema. The row is found all the same."""
        record = uuid4()
        await database.execute("DROP TABLE task_activity_log_journal")
        await database.execute("INSERT INTO task_activity_log (id) VALUES ($1)", record)
        async with conversing(amqp_url, answers=False):
            said = await look(amqp_url, database_url, "nobody")
            assert (said.code, "there is no journal: run task-activity-log migrate" in said.err) == (1, True)
            said = await look(amqp_url, database_url, str(record))
            assert (said.code, said.lines[0].startswith(f"row {record}: ")) == (0, True)

    async def test_the_newest_answers_of_a_record(self, amqp_url: str, database_url: str, database: Connection) -> None:
        """A record can have more answers than anybody wants to read."""
        record = uuid4()
        await database.execute(
            "INSERT INTO task_activity_log_journal (answered_at, record_id, reply_id, outcome, message_id)"
            " SELECT now(), $1, gen_random_uuid(), 'updated', n FROM generate_series(1, 60) n",
            record,
        )
        async with conversing(amqp_url, answers=False):
            said = await look(amqp_url, database_url, str(record))
        assert said.lines[0] == "the 50 newest answers follow; there may be more"
        assert ["message 11," in said.lines[1], "message 60," in said.lines[-1], len(said.lines)] == [True, True, 51]


async def look(amqp_url: str, database_url: str, name: str) -> Said:
    return await command("find", name, AMQP_URL=amqp_url, DATABASE_URL=database_url)
