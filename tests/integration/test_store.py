"""The store on a real PostgreSQL: what it does beyond the tests in `test_store_contract`."""

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any
from uuid import UUID, uuid4

import pytest

from task_activity_log.message import Delivery
from task_activity_log.pipeline.request import Request, UpdateMode
from task_activity_log.postgresql.store import Store
from task_activity_log.record import FIELDS, Applied, Outcome, TooLong, Unread
from tests.asking import Connection, ask, merge, outcomes, subjects

FULL: dict[str, Any] = {
    "task_id": UUID("ec77bdfe-882b-4254-84a2-979f5c2b20a9"),
    "task_activity_id": UUID("881ec938-4044-4cfa-82f5-b684d9383c0d"),
    "user_id": UUID("e11ce129-09c6-48a2-aa5f-d2473d0e2298"),
    "contact_id": UUID(int=0),
    "subject": "sample string 6",
    "description": "ключ \u0001 \U0001f600 ' \" \\ {} \r\n",
    "due_date": datetime(2026, 1, 11, 20, 58, 34, 720383, tzinfo=UTC),
    "is_closed": False,
    "date_closed": datetime(1980, 1, 1, tzinfo=UTC),
    "reference_back_office": "",
}


async def test_a_record_is_stored_and_returned_as_sent(store: Store) -> None:
    """Every field is the same, including nulls and any characters; the database sets the instant."""
    full, bare = ask(**FULL), ask()
    applied = await store.apply([full, bare])
    assert outcomes(applied) == ["inserted", "inserted"]
    for request, (_, record) in zip([full, bare], applied, strict=True):
        assert record is not None
        assert {name: getattr(record, name) for name in FIELDS} == {
            name: getattr(request.record, name) for name in FIELDS
        }
        assert abs(record.modified_dateutc - datetime.now(UTC)) < timedelta(minutes=1)


async def test_an_empty_wave_is_nothing(store: Store) -> None:
    """There is no statement and no result."""
    assert await store.apply([]) == []


@pytest.mark.parametrize("mode", UpdateMode)
async def test_inserts_and_updates_are_distinguished(store: Store, database: Connection, mode: UpdateMode) -> None:
    """This holds for rows that were locked, updated and rolled back, deleted, or changed by other triggers."""
    await database.execute("""
        CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN NEW.subject := NEW.subject || '!'; RETURN NEW; END $$;
        CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON task_activity_log FOR EACH ROW EXECUTE FUNCTION touch();
        CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN UPDATE task_activity_log SET task_id = gen_random_uuid() WHERE id = NEW.id; RETURN NULL; END $$;
        CREATE TRIGGER again AFTER INSERT ON task_activity_log FOR EACH ROW EXECUTE FUNCTION again();
    """)
    new, locked, rolled_back, deleted = (uuid4() for _ in range(4))
    await store.apply([ask(locked, mode=mode), ask(rolled_back, mode=mode), ask(deleted, mode=mode)])
    transaction = database.transaction()
    await transaction.start()
    await database.execute("UPDATE task_activity_log SET subject = 'x' WHERE id = $1", rolled_back)
    await transaction.rollback()
    await database.execute("DELETE FROM task_activity_log WHERE id = $1", deleted)
    async with database.transaction():
        # The lock of a foreign key in another table. It is compatible with an update that does not change the id.
        await database.execute("SELECT FROM task_activity_log WHERE id = $1 FOR KEY SHARE", locked)
        wave = [ask(identifier, mode=mode, subject="s") for identifier in (new, locked, rolled_back, deleted)]
        applied = await store.apply(wave)
    assert outcomes(applied) == ["inserted", "updated", "updated", "inserted"]
    assert {record.subject for _, record in applied if record}.isdisjoint({"s"})


async def test_a_request_without_a_key_is_not_in_the_inbox(store: Store, database: Connection) -> None:
    """The inbox has only requests that can be recognized."""
    await store.apply([ask(key=False), ask()])
    assert await database.fetchval("SELECT count(*) FROM task_activity_log_inbox") == 1


async def test_a_wave_mixes_all_outcomes(store: Store) -> None:
    """Requests with different outcomes, with and without keys and versions, each get their own result."""
    repeat, gone_by, known = ask(subject="repeat"), ask(version=5, subject="five"), ask(key=False, subject="old")
    await store.apply([repeat, gone_by, known])
    wave = [
        ask(subject="new"),
        repeat,
        ask(gone_by.record.id, version=5, subject="stale"),
        ask(known.record.id, key=False, subject="newer"),
        ask(key=False, subject="new too"),
        gone_by_again := ask(uuid4(), version=-(2**63), subject="lowest"),
    ]
    applied = await store.apply(wave)
    assert outcomes(applied) == ["inserted", "duplicate", "stale", "updated", "inserted", "inserted"]
    assert subjects(applied) == ["new", "repeat", "five", "newer", "new too", "lowest"]
    assert outcomes(await store.apply([gone_by_again])) == ["duplicate"]


async def test_a_merge_of_nothing_is_an_update(store: Store) -> None:
    """If a message has only the id, the row keeps its values and its instant increases."""
    [(_, before)] = await store.apply([full := ask(**FULL)])
    [(outcome, after)] = await store.apply([merge(full.record.id)])
    assert outcome is Outcome.UPDATED
    assert before is not None
    assert after is not None
    assert after.model_dump(exclude={"modified_dateutc"}) == before.model_dump(exclude={"modified_dateutc"})
    assert after.modified_dateutc > before.modified_dateutc


EDGES = (
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
    datetime(999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
)


async def test_the_ends_of_the_calendar_are_instants_like_any_other(store: Store, database: Connection) -> None:
    """.NET's DateTime.MinValue and MaxValue are stored as they are and not as infinities, and are returned in UTC."""
    wave = [ask(due_date=edge, date_closed=edge) for edge in EDGES]
    applied = await store.apply(wave)
    assert [record.due_date for _, record in applied if record] == list(EDGES)
    assert all(record.due_date and record.due_date.tzinfo is UTC for _, record in applied if record)
    rows = await database.fetch("""
        SELECT due_date AT TIME ZONE 'UTC' AS due_date, isfinite(due_date) AND isfinite(date_closed) AS finite
        FROM task_activity_log ORDER BY 1
    """)
    assert [row["due_date"].replace(tzinfo=UTC) for row in rows] == list(EDGES)
    assert all(row["finite"] for row in rows)


LATE = ("infinity", "10000-01-01 00:00:00 UTC")
EARLY = ("-infinity", "0001-12-31 23:59:59.999999 UTC BC")


@pytest.mark.parametrize(
    ("column", "instant"),
    # The trigger corrects an early modified_dateutc at the first write.
    [*product(("due_date", "date_closed"), LATE + EARLY), *product(("modified_dateutc",), LATE)],
)
async def test_a_row_with_an_instant_that_python_cannot_represent(
    store: Store, database: Connection, column: str, instant: str
) -> None:
    """Its outcome is `rejected`, without a record, each time. The row is written, and the other rows are returned."""
    victim, neighbour = ask(subject="victim"), ask(subject="neighbour")
    await store.apply([victim, neighbour])
    await database.execute(f"""
        ALTER TABLE task_activity_log DISABLE TRIGGER USER;
        UPDATE task_activity_log SET {column} = '{instant}' WHERE subject = 'victim';
        ALTER TABLE task_activity_log ENABLE TRIGGER USER;
    """)  # noqa: S608 - the test's own names
    rejected = Applied(Outcome.REJECTED, None)
    change, plain = merge(victim.record.id, description="changed"), merge(neighbour.record.id, description="changed")
    applied = await store.apply([change, plain])
    assert applied[0] == rejected
    assert outcomes(applied) == ["rejected", "updated"]
    again = await store.apply([plain, change])
    assert again == [Applied(Outcome.DUPLICATE, applied[1].record), rejected]
    assert await database.fetchval("SELECT count(*) FROM task_activity_log WHERE description = 'changed'") == 2


async def test_the_instant_of_a_row_increases_with_each_write(store: Store, database: Connection) -> None:
    """It increases by at least a microsecond, even if the clock steps back. A value set by a writer is ignored."""
    request = ask(key=False)
    instants = []
    for _ in range(20):
        [(_, record)] = await store.apply([request])
        instants.append(record.modified_dateutc if record else None)
    instants.append(
        await database.fetchval("UPDATE task_activity_log SET modified_dateutc = 'epoch' RETURNING modified_dateutc")
    )
    assert instants == sorted(set(instants))  # type: ignore[type-var]  # a None would fail, and should
    future = datetime(2999, 1, 1, tzinfo=UTC)
    await database.execute(
        "ALTER TABLE task_activity_log DISABLE TRIGGER USER; UPDATE task_activity_log SET modified_dateutc = '2999-01-01 Z';"
        "ALTER TABLE task_activity_log ENABLE TRIGGER USER"
    )
    [(_, record)] = await store.apply([request])
    assert record is not None
    assert record.modified_dateutc == future + timedelta(microseconds=1)


async def test_a_wave_is_one_statement(store: Store) -> None:
    """In the common case it is one statement without a transaction around it, and so one round trip once prepared."""
    await store.apply([ask() for _ in range(3)])
    connection = store._writer._connection
    assert connection is not None
    asked: list[str] = []
    connection.add_query_logger(lambda record: asked.append(record.query))
    await store.apply([ask() for _ in range(500)])
    await asyncio.sleep(0)  # the logger is called by the loop
    assert len(asked) == 1


async def test_big_waves_stay_linear(store: Store) -> None:
    """5,000 rows with repeats, merges and versions take seconds; a quadratic plan would take minutes."""
    wave: list[Request[Delivery]] = [merge(version=1, subject="s" * 100) for _ in range(5000)]
    assert set(outcomes(await store.apply(wave))) == {"inserted"}
    assert set(outcomes(await store.apply(wave))) == {"duplicate"}
    stale = [merge(request.record.id, version=1, subject="t") for request in wave]
    assert set(outcomes(await store.apply(stale))) == {"stale"}


class TestTrim:
    """The inbox is trimmed by age, in chunks, by one worker at a time."""

    async def test_only_older_requests_are_forgotten(self, store: Store, database: Connection) -> None:
        """A repeat of a younger one is still a duplicate; an older one is applied again."""
        old, young = ask(), ask()
        await store.apply([old, young])
        await database.execute(
            "UPDATE task_activity_log_inbox SET processed_at = now() - interval '25 hours' WHERE request_key = $1",
            old.key,
        )
        assert await store.trim(timedelta(days=1), 10) == 1
        assert outcomes(await store.apply([old, young])) == ["updated", "duplicate"]

    async def test_one_chunk_is_forgotten_at_a_time_oldest_first(self, store: Store, database: Connection) -> None:
        """There are never more than asked for, and fewer only at the end."""
        await database.execute("""
            INSERT INTO task_activity_log_inbox
            SELECT gen_random_uuid(), now() - n * interval '1 minute' FROM generate_series(1, 25) n
        """)
        age = timedelta(seconds=30)
        assert await store.trim(age, 10) == 10
        oldest = await database.fetchval("SELECT now() - min(processed_at) FROM task_activity_log_inbox")
        assert oldest < timedelta(minutes=15, seconds=30)
        assert [await store.trim(age, 10) for _ in range(3)] == [10, 5, 0]

    async def test_only_one_worker_trims_at_a_time(self, store: Store, database: Connection) -> None:
        """A worker that does not get the lock neither waits nor trims."""
        await database.execute("INSERT INTO task_activity_log_inbox VALUES (gen_random_uuid(), 'epoch')")
        lock = int.from_bytes(b"tal-trim")
        async with database.transaction():
            assert await database.fetchval("SELECT pg_try_advisory_xact_lock($1)", lock)
            assert await store.trim(timedelta(0), 10) == 0
        assert await store.trim(timedelta(0), 10) == 1

    async def test_the_age_of_the_inbox_shows_that_nobody_trims_it(self, store: Store, database: Connection) -> None:
        """Any session can hold the lock that the workers take turns with, and `trim` does not tell."""
        assert await store.inbox_age() == 0
        await store.apply([old := ask(), ask()])
        await database.execute(
            "UPDATE task_activity_log_inbox SET processed_at = now() - interval '25 hours' WHERE request_key = $1",
            old.key,
        )
        assert 25 * 3600 <= await store.inbox_age() < 26 * 3600
        await store.trim(timedelta(days=1), 10)
        assert await store.inbox_age() < 3600


async def test_the_probe_writes_nothing(store: Store, database: Connection) -> None:
    """It waits for no row, creates no row version, and remembers nothing."""
    await store.apply([ask()])
    query = "SELECT xmin, modified_dateutc, (SELECT count(*) FROM task_activity_log_inbox) FROM task_activity_log"
    before = await database.fetchrow(query)
    async with database.transaction():
        await database.execute("SELECT FROM task_activity_log FOR UPDATE")
        await store.probe()
    assert await database.fetchrow(query) == before


async def test_long_records_are_read_one_by_one(database_url: str, database: Connection) -> None:
    """A merge, and what is read again for duplicates, returns texts until they are too long together. All are written."""
    store = Store(database_url, read_bytes=2_500)
    long = [ask(subject="s" * 1_000, description="d" * 1_000) for _ in range(4)]
    for one in long:
        assert (await store.apply([one]))[0].record is not None
    merges = [merge(request.record.id, is_closed=True) for request in sorted(long, key=lambda one: one.record.id)]
    applied = await store.apply(merges)
    assert outcomes(applied) == ["updated"] * 4
    assert [isinstance(each, Unread) for each in applied] == [False, False, True, True]
    assert await database.fetchval("SELECT count(*) FROM task_activity_log WHERE is_closed") == 4
    for request, each in zip(merges[2:], applied[2:], strict=True):
        outcome, record = await store.read(request, each.outcome)
        assert outcome is Outcome.UPDATED
        assert record is not None
        assert (record.id, record.subject, record.is_closed) == (request.record.id, "s" * 1_000, True)
    again = await store.apply(merges)
    assert outcomes(again) == ["duplicate"] * 4
    assert [isinstance(each, Unread) for each in again] == [False, False, True, True]
    assert len(await store.modified([request.record.id for request in merges])) == 4
    await store.close()


TRIGGER = """
    CREATE FUNCTION lengthen() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.subject LIKE 'long%' THEN
            NEW.description := repeat('x', substr(NEW.subject, 6)::int);
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER lengthen BEFORE INSERT OR UPDATE ON task_activity_log FOR EACH ROW EXECUTE FUNCTION lengthen();
"""


BEHIND_A_VIEW = """
    ALTER TABLE task_activity_log RENAME TO base;
    CREATE VIEW task_activity_log AS SELECT * FROM base;
"""


@pytest.mark.parametrize("kind", ["SELECT 1", BEHIND_A_VIEW], ids=["table", "view"])
async def test_texts_that_a_trigger_has_made_long_are_not_returned(
    database_url: str, database: Connection, kind: str
) -> None:
    """Nor are they read, if they are longer than any reply may be. The others of the wave are returned, and all are written."""
    await database.execute(TRIGGER + kind)
    store = Store(database_url, read_bytes=10_000, record_bytes=20_000)
    wave = [ask(subject=subject) for subject in ("long 4000", "long 9000", "long 15000", "long 25000", "short")]
    applied = await store.apply(wave)
    assert outcomes(applied) == ["inserted"] * 5
    assert [type(each) for each in applied] == [Unread, Unread, Unread, Unread, Applied]
    assert [type(each) for each in await store.apply([ask(subject="long 9000")])] == [Applied]
    assert [type(each) for each in await store.apply([ask(subject="long 15000")])] == [Unread]
    assert [type(each) for each in await store.apply([merge(subject="long 15000")])] == [Unread]
    lengths = []
    for request, each in zip(wave, applied, strict=True):
        found = await store.read(request, each.outcome)
        assert found.outcome is Outcome.INSERTED
        lengths.append(None if found.record is None else len(found.record.description or ""))
        assert isinstance(found, TooLong) is (found.record is None)
    assert lengths == [4_000, 9_000, 15_000, None, 0]
    assert [type(each) for each in await store.apply([wave[3]])] == [TooLong]  # a duplicate
    assert [len(await store.current([request.record.id])) for request in wave] == [1, 1, 1, 0, 1]
    await store.close()


async def test_the_record_of_one_that_was_left_unread_may_be_gone(store: Store) -> None:
    """As that of a duplicate: it was deleted before it was read."""
    assert await store.read(ask(), Outcome.UPDATED) == Applied(Outcome.UPDATED, None)
