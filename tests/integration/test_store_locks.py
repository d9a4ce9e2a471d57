"""Locks of others: how long a wave waits for them, and which rows are locked. On a real PostgreSQL, and behind pgbouncer."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from task_activity_log.pipeline.ports import Patience
from task_activity_log.pipeline.request import UpdateMode
from task_activity_log.postgresql import writing
from task_activity_log.postgresql.store import Store
from task_activity_log.problem import TimedOut
from tests.asking import Connection, ask, merge, outcomes, until_blocked
from tests.chaos.pooler import Pooler

HURRIED = Patience(lock_seconds=0.05)
MODES = {UpdateMode.REPLACE: ask, UpdateMode.MERGE: merge}


@pytest.fixture(params=["direct", "through pgbouncer"])
def patient_url(request: pytest.FixtureRequest, database_url: str) -> Iterator[str]:
    """The database, directly and through pgbouncer in transaction mode."""
    if request.param == "direct":
        yield database_url
        return
    pooler = Pooler(database_url)
    yield pooler.url
    pooler.close()


@pytest.fixture
async def waiting_store(patient_url: str) -> AsyncIterator[Store]:
    """A store whose statements may take a minute: what ends sooner was ended by the lock timeout."""
    store = Store(patient_url, command_timeout=60, statement_cache_size=0)
    yield store
    await store.close()


@asynccontextmanager
async def locking(database: Connection, statement: str, *arguments: Any) -> AsyncIterator[None]:
    """Hold the locks of a statement, and roll it back."""
    transaction = database.transaction()
    await transaction.start()
    await database.execute(statement, *arguments)
    try:
        yield
    finally:
        await transaction.rollback()


LOCKS = {
    "row": "SELECT FROM task_activity_log WHERE id = $1 FOR UPDATE",
    "new row": "INSERT INTO task_activity_log (id) VALUES ($1)",
    "request key": "INSERT INTO task_activity_log_inbox (request_key) VALUES ($1)",
}


@pytest.mark.parametrize("mode", UpdateMode)
@pytest.mark.parametrize("what", LOCKS)
async def test_a_wave_does_not_wait_long_for_a_lock(
    waiting_store: Store, database: Connection, what: str, mode: UpdateMode
) -> None:
    """Whatever is locked, and although the statement itself may take a minute. Others pass at once."""
    request = MODES[mode](subject="late")
    if what == "row":
        await waiting_store.apply([ask(request.record.id)])
    async with locking(database, LOCKS[what], request.key if what == "request key" else request.record.id):
        async with asyncio.timeout(20):
            with pytest.raises(TimedOut):
                await waiting_store.apply([MODES[mode](), request, MODES[mode]()], HURRIED)
        assert outcomes(await waiting_store.apply([MODES[mode](), MODES[mode]()], HURRIED)) == ["inserted"] * 2
    assert outcomes(await waiting_store.apply([request])) == ["updated" if what == "row" else "inserted"]


async def test_a_wave_that_fails_because_of_a_lock_keeps_its_connection(store: Store, database: Connection) -> None:
    """The server ended the statement, so nothing is left of it, and to connect again would take time."""
    request = ask()
    await store.apply([request])
    connection = store._writer._connection
    async with locking(database, LOCKS["row"], request.record.id):
        with pytest.raises(TimedOut):
            await store.apply([ask(request.record.id)], HURRIED)
    assert outcomes(await store.apply([ask(request.record.id)])) == ["updated"]
    assert store._writer._connection is connection


_SLOW = """
    CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        WHILE NEW.subject = 'slow' AND NOT pg_try_advisory_xact_lock_shared(42) LOOP
            PERFORM pg_sleep(0.01);
        END LOOP;
        RETURN NEW;
    END $$;
    CREATE TRIGGER wait BEFORE INSERT OR UPDATE ON task_activity_log FOR EACH ROW EXECUTE FUNCTION wait();
"""


async def test_a_slow_wave_is_cancelled_and_keeps_its_connection(waiting_store: Store, database: Connection) -> None:
    """It is known that nothing of it was committed, and that nothing of it goes on."""
    store = waiting_store
    await database.execute(_SLOW)
    await store.open()
    connection = store._writer._connection
    wave = [ask(), ask(subject="slow"), ask()]
    async with locking(database, "SELECT pg_advisory_xact_lock(42), $1::uuid", wave[0].record.id):
        with pytest.raises(TimedOut) as caught:
            await store.apply(wave, Patience(seconds=0.2))
        assert not caught.value.locked
        # Not of other databases: workers of other tests use the same server.
        running = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name LIKE 'task%' AND state <> 'idle'"
        )
        assert await database.fetchval(running) == 0
        assert await database.fetchval("SELECT count(*) FROM task_activity_log") == 0
        assert outcomes(await store.apply(wave[:1], Patience(seconds=20))) == ["inserted"]
    assert outcomes(await store.apply(wave[1:], Patience(seconds=20))) == ["inserted"] * 2
    assert store._writer._connection is connection


async def test_a_statement_that_does_not_end_when_it_is_cancelled_is_left(store: Store, database: Connection) -> None:
    """Some code has no interrupts, or ignores them. Others go on over another connection."""
    await database.execute(
        _SLOW.replace(
            "PERFORM pg_sleep(0.01);", "BEGIN PERFORM pg_sleep(0.01); EXCEPTION WHEN query_canceled THEN END;"
        )
    )
    wave = [ask(UUID(int=1)), ask(UUID(int=2), subject="slow")]
    async with locking(database, "SELECT pg_advisory_xact_lock(42), $1::uuid", wave[0].record.id):
        with pytest.raises(TimedOut):
            await store.apply(wave, Patience(seconds=0.2))
        assert outcomes(await store.apply([ask()])) == ["inserted"]


async def test_a_lock_timeout_says_so(store: Store, database: Connection) -> None:
    """A locked row is no slow row."""
    request = ask()
    await store.apply([request])
    async with locking(database, LOCKS["row"], request.record.id):
        with pytest.raises(TimedOut) as caught:
            await store.apply([ask(request.record.id)], HURRIED)
    assert caught.value.locked


async def test_the_lock_timeout_ends_with_its_statement(store: Store, patient_url: str, database: Connection) -> None:
    """Whether it passes or fails, the session's own setting is back afterwards, for whoever uses the connection next."""
    request = ask()
    await store.apply([request])
    session: Connection = await asyncpg.connect(patient_url, statement_cache_size=0)
    statement = writing.statement(UpdateMode.REPLACE, 1)

    async def write() -> None:
        await session.execute("SELECT 1")  # so that pgbouncer has a server connection for this client
        await session.fetch(statement, *writing.arguments([ask(request.record.id)], UpdateMode.REPLACE, 0.05))

    try:
        before = await session.fetchval("SELECT current_setting('lock_timeout')")
        await write()
        assert await session.fetchval("SELECT current_setting('lock_timeout')") == before == "0"
        async with locking(database, LOCKS["row"], request.record.id):
            with pytest.raises(asyncpg.LockNotAvailableError):
                await write()
            assert await session.fetchval("SELECT current_setting('lock_timeout')") == "0"
            waiting = asyncio.create_task(
                session.execute("SELECT FROM task_activity_log WHERE id = $1 FOR UPDATE", request.record.id)
            )
            await until_blocked(database)
            done, _ = await asyncio.wait({waiting}, timeout=0.2)
            assert not done
        await waiting
    finally:
        await session.close()


async def test_the_lock_timeout_is_that_of_the_patience(store: Store, database: Connection) -> None:
    """In force while the statement runs: a trigger sees it."""
    await database.execute("""
        CREATE FUNCTION show() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN NEW.subject := current_setting('lock_timeout'); RETURN NEW; END $$;
        CREATE TRIGGER show BEFORE INSERT ON task_activity_log FOR EACH ROW EXECUTE FUNCTION show();
        CREATE TABLE seen (lock_timeout text);
        CREATE FUNCTION show_key() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO seen VALUES (current_setting('lock_timeout')); RETURN NEW; END $$;
        CREATE TRIGGER show BEFORE INSERT ON task_activity_log_inbox FOR EACH ROW EXECUTE FUNCTION show_key();
    """)
    for patience, expected in ((Patience(), "1s"), (Patience(0.25), "250ms"), (Patience(0.0001), "1ms")):
        for request in (ask(), ask(key=False), merge()):
            [(_, record)] = await store.apply([request], patience)
            assert record is not None
            assert record.subject == expected
        assert {row["lock_timeout"] for row in await database.fetch("DELETE FROM seen RETURNING *")} == {expected}


@pytest.mark.parametrize("has_xmax", [True, False])
@pytest.mark.parametrize("mode", UpdateMode)
async def test_the_plan_keeps_the_order_of_the_rows(database: Connection, mode: UpdateMode, *, has_xmax: bool) -> None:
    """No join and no sort may change the order in which rows are locked, however large a wave is.

    What a merge returns is sorted when everything is written.
    """
    plan = await database.fetchval(
        f"EXPLAIN (FORMAT JSON, COSTS OFF) {writing.statement(mode, 1, has_xmax=has_xmax)}",
        *writing.arguments([MODES[mode](UUID(int=number)) for number in range(500)], mode, 1.0),
    )
    nodes = list(_nodes(json.loads(plan)[0]["Plan"]))
    writes = [node for node in nodes if node["Node Type"] == "ModifyTable"]
    assert len(writes) == 2
    for write in writes:
        assert {node["Node Type"] for node in _nodes(write)} <= {"CTE Scan", "Function Scan", "ModifyTable", "Result"}
    assert {node["Node Type"] for node in nodes} <= {
        "Append", "CTE Scan", "Function Scan", "ModifyTable", "Result", "Subquery Scan", "Sort", "WindowAgg",
    }  # fmt: skip


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if plan.get("Alias") in ("kept", "before", "known"):  # looks up rows in a subquery
        return
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


async def test_locked_rows_are_told_from_others(store: Store, other_store: Store, database: Connection) -> None:
    """A lock that prevents no update does not count, nor does a row that is not there or not committed."""
    ids = {name: uuid4() for name in ("free", "locked", "updated", "referenced", "new", "absent")}
    await store.apply([ask(ids[name]) for name in ("free", "locked", "updated", "referenced")])
    transaction = database.transaction()
    await transaction.start()
    await database.execute(LOCKS["row"], ids["locked"])
    await database.execute("UPDATE task_activity_log SET subject = 'x' WHERE id = $1", ids["updated"])
    await database.execute("SELECT FROM task_activity_log WHERE id = $1 FOR KEY SHARE", ids["referenced"])
    await database.execute(LOCKS["new row"], ids["new"])
    assert await store.locked(list(ids.values())) == {ids["locked"], ids["updated"]}
    assert await store.locked([]) == set()
    assert outcomes(await other_store.apply([ask(ids["free"]), ask(ids["referenced"])])) == ["updated"] * 2
    await transaction.rollback()
    assert await store.locked(list(ids.values())) == set()


async def test_a_store_that_was_closed_connects_again(store: Store) -> None:
    """The one for what is parked is closed whenever nothing is parked."""
    await store.apply([ask()])
    await store.close()
    assert not store.connected
    assert outcomes(await store.apply([ask()])) == ["inserted"]


async def test_a_schema_that_does_not_fit_fails_the_probe(store: Store, database: Connection) -> None:
    """So that no row is refused for it, also if nobody has thought of it: the probe is the statement that stores rows."""
    await store.probe()
    await database.execute("""
        ALTER TABLE task_activity_log DROP CONSTRAINT task_activity_log_pkey;
        ALTER TABLE task_activity_log RENAME TO base;
        CREATE VIEW task_activity_log AS SELECT * FROM base;
    """)
    with pytest.raises(Exception, match="schema does not fit"):
        await store.probe()


async def test_the_probe_writes_nothing(store: Store, database: Connection) -> None:
    """Neither a row nor a request key."""
    await store.probe()
    assert await database.fetchval("SELECT count(*) FROM task_activity_log") == 0
    assert await database.fetchval("SELECT count(*) FROM task_activity_log_inbox") == 0
