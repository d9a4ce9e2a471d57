"""Settings that somebody has made for the server, the database or the role: they do no harm, or they are named."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

import asyncpg
import pytest

from task_activity_log.cli.check import database as check
from task_activity_log.message import Delivery
from task_activity_log.pipeline.request import Request
from task_activity_log.postgresql import migrations
from task_activity_log.postgresql.store import Store
from task_activity_log.problem import Unavailable
from task_activity_log.settings import load
from tests.asking import Connection, ask, grants, merge, outcomes, subjects

TEXT = "grüße ☃ 😀 \\' \\\\ $1"
INSTANT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
HARMLESS = (
    "default_transaction_isolation = serializable",
    "default_transaction_isolation = 'repeatable read'",
    "default_transaction_deferrable = on",
    "lock_timeout = 1",
    "idle_in_transaction_session_timeout = 1000",
    "datestyle = 'SQL, DMY'",
    "intervalstyle = sql_standard",
    "timezone = 'Asia/Kolkata'",
    "bytea_output = escape",
    "standard_conforming_strings = off",
    "client_encoding = LATIN1",
    "jit_above_cost = 0",
    "row_security = off",
    "array_nulls = off",
    "transform_null_equals = on",
    "quote_all_identifiers = on",
    "enable_hashagg = off",
    "enable_indexscan = off",
    "plan_cache_mode = force_generic_plan",
)


@pytest.fixture
async def role(database: Connection) -> AsyncIterator[str]:
    """A role with the privileges of a worker, and no others."""
    name = f"role_{secrets.token_hex(4)}"
    await database.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'; {grants(name)}")
    yield name
    await database.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.fixture
def role_url(database_url: str, role: str) -> str:
    return re.sub(r"//[^@]*@", f"//{role}:secret@", database_url)


async def said(url: str) -> list[tuple[str, str]]:
    """What `check` finds that is not fine."""
    found = await check.findings(load({"AMQP_URL": "amqp://h/", "DATABASE_URL": url}))
    return [(one.verdict, f"{one.found}; {one.advice}") for one in found if one.verdict != "fine"]


async def test_settings_that_change_nothing(database: Connection, role: str, role_url: str) -> None:
    """With each of them a record is stored as it was sent, a repeat is a duplicate, and `check` finds nothing."""
    for setting in HARMLESS:
        await database.execute(f"ALTER ROLE {role} RESET ALL; ALTER ROLE {role} SET {setting}")
        store = Store(role_url)
        request = ask(version=3, subject=TEXT, due_date=INSTANT, task_id=uuid4())
        await store.probe()
        [stored] = await store.apply([request])
        assert stored.record is not None, setting
        assert (stored.record.subject, stored.record.due_date) == (TEXT, INSTANT), setting
        assert outcomes(await store.apply([request, ask()])) == ["duplicate", "inserted"], setting
        assert subjects(await store.apply([merge(request.record.id, description="d")])) == [TEXT], setting
        assert outcomes(await store.apply([ask(request.record.id, version=2)])) == ["stale"], setting
        await store.close()
        assert await said(role_url) == [], setting


@pytest.mark.parametrize(
    ("setting", "outage", "advice"),
    [
        ("default_transaction_read_only = on", "read-only (25006)", "change default_transaction_read_only"),
        ("search_path = ''", "it is not in the search path", "docs/runbook.md"),
        ("statement_timeout = 1", "timeout", "change statement_timeout"),
    ],
)
async def test_settings_with_which_nothing_works_are_named(
    database: Connection, role: str, role_url: str, setting: str, outage: str, advice: str
) -> None:
    """By the probe, with which a worker begins, and by `check`."""
    slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1); RETURN NULL; END'"
    await database.execute(f"{slow}; CREATE TRIGGER slow AFTER INSERT ON task_activity_log EXECUTE FUNCTION slow()")
    await database.execute(f"ALTER ROLE {role} SET {setting}")
    store = Store(role_url)
    with pytest.raises(Unavailable) as caught:
        await store.probe()
    await store.close()
    assert outage in caught.value.reason
    assert [line for verdict, line in await said(role_url) if advice in line and verdict in ("broken", "warning")]


async def test_settings_that_cost_something_are_warnings(database: Connection, role: str, role_url: str) -> None:
    for setting, warning in (
        ("synchronous_commit = off", "a crash of the server can lose messages that were answered"),
        ("statement_timeout = 4000", "statement_timeout is 4000 ms: a batch that takes longer is divided"),
    ):
        await database.execute(f"ALTER ROLE {role} RESET ALL; ALTER ROLE {role} SET {setting}")
        [(verdict, line)] = await said(role_url)
        assert (verdict, warning in line) == ("warning", True)


async def test_workers_with_serializable_transactions_lose_nothing(
    database: Connection, role: str, role_url: str
) -> None:
    """Two of them write the same records: conflicts are tried again."""
    await database.execute(f"ALTER ROLE {role} SET default_transaction_isolation = serializable")
    stores = [Store(role_url) for _ in range(2)]
    ids = [uuid4() for _ in range(10)]
    waves = [[ask(one, version=version) for one in ids] for version in range(1, 21)]

    async def write(store: Store, some: list[list[Request[Delivery]]]) -> None:
        for wave in some:
            while True:
                try:
                    await store.apply(wave)
                except Unavailable as failed:  # the worker tries it again, too
                    assert failed.label.startswith("conflict")
                else:
                    break

    await asyncio.gather(write(stores[0], waves[::2]), write(stores[1], waves[1::2]))
    await asyncio.gather(*(store.close() for store in stores))
    versions = await database.fetch("SELECT DISTINCT source_version FROM task_activity_log")
    assert [row["source_version"] for row in versions] == [20]
    assert await database.fetchval("SELECT count(*) FROM task_activity_log_inbox") == 200


async def test_a_trigger_that_removes_the_version_is_a_warning(database: Connection, role_url: str) -> None:
    """`check` writes a row of its own and rolls back, if there are triggers of others."""
    await database.execute("""
        CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
        CREATE TRIGGER theirs BEFORE INSERT OR UPDATE ON task_activity_log FOR EACH ROW EXECUTE FUNCTION theirs()
    """)
    assert await said(role_url) == []
    body = "BEGIN NEW.source_version := NULL; RETURN NEW; END"
    await database.execute(f"CREATE OR REPLACE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS '{body}'")
    [(verdict, line)] = await said(role_url)
    assert (verdict, line.startswith("a trigger changes source_version")) == ("warning", True)
    assert await database.fetchval("SELECT count(*) FROM task_activity_log") == 0


async def test_migrate_names_settings_with_which_it_cannot_work(empty_database_url: str, database: Connection) -> None:
    """They may be set for the database."""
    name = empty_database_url.rpartition("/")[2].partition("?")[0]
    other = await asyncpg.connect(empty_database_url)
    for setting, named in (
        ("default_transaction_read_only = on", "default_transaction_read_only is set"),
        ("search_path = ''", "the search_path"),
        ("statement_timeout = 1", "statement_timeout"),
    ):
        await database.execute(f'ALTER DATABASE "{name}" RESET ALL; ALTER DATABASE "{name}" SET {setting}')
        if named == "statement_timeout":  # so that a statement takes longer than that on any machine
            await other.execute("SELECT pg_advisory_lock($1)", int.from_bytes(b"tal-migr"))
        with pytest.raises(Unavailable) as caught:
            await asyncio.to_thread(migrations.migrate, empty_database_url)
        assert named in caught.value.reason
    await other.close()
