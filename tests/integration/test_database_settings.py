"""What somebody has set or granted in the database, or done to the tables: it does no harm, or it is named."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

import asyncpg
import pytest

from task_activity_log.cli.check import database as check
from task_activity_log.client.finding import journal_answers
from task_activity_log.message import Delivery
from task_activity_log.pipeline.request import Request
from task_activity_log.postgresql import migrations
from task_activity_log.postgresql.connecting import Connector
from task_activity_log.postgresql.store import Store
from task_activity_log.postgresql.survey import Survey
from task_activity_log.problem import Refused, Unavailable
from task_activity_log.settings import load
from tests.asking import OPEN_SCHEMA, Connection, ask, grants, merge, outcomes, subjects
from tests.commands import command
from tests.faults.conversation import conversing

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
    "client_min_messages = error",
    "idle_session_timeout = 1000",
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
    """What `check` finds that is not fine, except `OPEN_SCHEMA`."""
    found = await check.findings(load({"AMQP_URL": "amqp://h/", "DATABASE_URL": url}))
    return [
        (one.verdict, f"{one.found}; {one.advice}")
        for one in found
        if one.verdict != "fine" and one.found != OPEN_SCHEMA
    ]


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


async def test_a_refused_row_does_not_end_the_session(database: Connection, role: str, role_url: str) -> None:
    """exit_on_error would make it look like a lost connection, and the row would wait instead of being rejected."""
    await database.execute(f"""
        ALTER ROLE {role} SET exit_on_error = on;
        ALTER TABLE task_activity_log ADD CONSTRAINT few CHECK (subject <> 'bad')
    """)
    store = Store(role_url)
    for wave in ([ask(subject="bad")], [ask(subject="bad"), ask()]):
        with pytest.raises(Refused, match="23514"):
            await store.apply(wave)
    assert await store.try_own_rows(None) == []
    assert outcomes(await store.apply([ask()])) == ["inserted"]
    await store.close()


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


VIEW = "ALTER TABLE task_activity_log RENAME TO base; CREATE VIEW task_activity_log AS SELECT base.* FROM base"
REFUSED = {
    "ALTER TABLE task_activity_log ADD CONSTRAINT never CHECK (false) NOT VALID": "refused (23514): constraint never",
    "ALTER TABLE task_activity_log ENABLE ROW LEVEL SECURITY": (
        'refused (42501): new row violates row-level security policy for table "task_activity_log"'
    ),
    "ALTER TABLE task_activity_log_inbox ENABLE ROW LEVEL SECURITY": (
        'refused (42501): new row violates row-level security policy for table "task_activity_log_inbox"'
    ),
    "ALTER TABLE task_activity_log ENABLE ROW LEVEL SECURITY; ALTER ROLE {role} SET row_security = off": (
        'permitted (42501): query would be affected by row-level security policy for table "task_activity_log"'
    ),
    "CREATE FUNCTION clear() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.processed_at := NULL; RETURN NEW; END';"
    " CREATE TRIGGER clear BEFORE INSERT ON task_activity_log_inbox FOR EACH ROW EXECUTE FUNCTION clear()": (
        "refused (23502): column processed_at of task_activity_log_inbox"
    ),
    "ALTER TABLE task_activity_log REPLICA IDENTITY NOTHING; CREATE PUBLICATION {role} FOR TABLE task_activity_log": (
        'fit state (55000): cannot update table "task_activity_log" because it does not have a replica identity'
    ),
    "ALTER TABLE task_activity_log ADD n serial; REVOKE ALL ON task_activity_log_n_seq FROM {role}": (
        "refused (42501): permission denied for sequence task_activity_log_n_seq"
    ),
    "ALTER TABLE task_activity_log ADD n int GENERATED ALWAYS AS IDENTITY (START 7 MAXVALUE 7)": (
        'refused (2200H): nextval: reached maximum value of sequence "task_activity_log_n_seq"'
    ),
    f"{VIEW} JOIN (SELECT 1) AS one ON true; GRANT ALL ON task_activity_log TO {{role}}": (
        'fit state (55000): cannot insert into view "task_activity_log"'
    ),
    f"{VIEW}; CREATE RULE r AS ON INSERT TO task_activity_log DO ALSO SELECT 1; GRANT ALL ON task_activity_log TO {{role}}": (
        "fit (0A000): DO ALSO rules are not supported for data-modifying statements in WITH"
    ),
    f"{VIEW}; CREATE TRIGGER t INSTEAD OF INSERT ON task_activity_log FOR EACH ROW"
    " EXECUTE FUNCTION task_activity_log_modified(); GRANT ALL ON task_activity_log TO {role}": (
        "fit (42P10): there is no unique or exclusion constraint matching the ON CONFLICT specification"
    ),
    f"{VIEW}; GRANT ALL ON task_activity_log TO {{role}}; ALTER VIEW task_activity_log OWNER TO {{role}};"
    " REVOKE ALL ON base FROM {role}": "not permitted (42501): permission denied for table base",
}
"""What is done to the tables, so that no row can be stored although they look right, and why."""


@pytest.mark.parametrize("change", REFUSED)
async def test_why_no_row_can_be_stored_is_named(database: Connection, role: str, role_url: str, change: str) -> None:
    """By `check`, with a row of the worker's own that is rolled back, and by the worker, in the same words."""
    assert [line for verdict, line in await said(role_url) if verdict == "broken"] == []
    await database.execute("INSERT INTO task_activity_log (id) VALUES (gen_random_uuid())")
    await database.execute(change.format(role=role))
    [line] = [line for verdict, line in await said(role_url) if verdict == "broken"]
    assert REFUSED[change] in line
    store = Store(role_url)
    try:
        [why, *_] = await store.try_own_rows(None)
        reason = why.reason
    except Unavailable as outage:
        reason = outage.reason
    await store.close()
    assert REFUSED[change] in reason
    assert reason in line


async def test_constraints_that_only_the_workers_own_rows_break(database: Connection, role_url: str) -> None:
    """NOT NULL refuses the one without values, and a foreign key the one with all: this says nothing about messages."""
    user = uuid4()
    await database.execute("""
        CREATE TABLE users (id uuid PRIMARY KEY);
        ALTER TABLE task_activity_log ALTER user_id SET NOT NULL, ADD FOREIGN KEY (user_id) REFERENCES users;
        ALTER TABLE task_activity_log ADD UNIQUE (user_id);
    """)
    await database.execute("INSERT INTO users VALUES ($1)", user)
    foreign_key = "23503, constraint task_activity_log_user_id_fkey"
    unknown = f"rows of the worker's own are refused (23502, {foreign_key})"
    assert [(verdict, line.partition(";")[0]) for verdict, line in await said(role_url)] == [("warning", unknown)]
    await database.execute("INSERT INTO task_activity_log (id, user_id) VALUES (gen_random_uuid(), $1)", user)
    copied = unknown.replace("23502", "23505, constraint task_activity_log_user_id_key, 23502")
    assert [(verdict, line.partition(";")[0]) for verdict, line in await said(role_url)] == [("warning", copied)]
    await database.execute("ALTER TABLE task_activity_log ADD CONSTRAINT never CHECK (user_id IS NULL) NOT VALID")
    [(verdict, line)] = await said(role_url)
    assert (verdict, line.partition(":")[0]) == ("broken", "every row is refused (23514)")


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ("RAISE EXCEPTION 'no'", "(P0001)"),
        ("RETURN NULL", "(skipped)"),
        ("RAISE check_violation USING CONSTRAINT = 'task_activity_log_pkey'", "(23514)"),
    ],
)
async def test_an_empty_table_whose_trigger_wants_certain_values(
    database: Connection, role_url: str, rule: str, named: str
) -> None:
    """No row of the worker's own has them, and no stored one can be tried: it is a warning until one is stored."""
    await database.execute(f"""
        CREATE FUNCTION wants() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
            IF coalesce(NEW.subject, '') NOT LIKE 'BO-%' THEN {rule}; END IF;
            RETURN NEW;
        END$$;
        CREATE TRIGGER a BEFORE INSERT OR UPDATE ON task_activity_log FOR EACH ROW EXECUTE FUNCTION wants()
    """)
    [(verdict, line)] = await said(role_url)
    assert (verdict, line.partition(";")[0]) == ("warning", f"rows of the worker's own are refused {named}")
    store = Store(role_url)
    await store.apply([ask(subject="BO-1")])
    await store.close()
    assert await said(role_url) == []


async def test_a_publication_that_refuses_updates_is_named(database: Connection, role_url: str) -> None:
    """The server's message is only that the table cannot be updated; its detail says why."""
    if database.get_server_version().major < 15:
        pytest.skip("publications have no column lists")
    await database.execute("CREATE PUBLICATION some_columns FOR TABLE task_activity_log (subject)")
    [line] = [line for verdict, line in await said(role_url) if verdict == "broken"]
    assert 'cannot update table "task_activity_log", Column list used by the publication does not cover' in line


async def test_a_role_that_may_not_connect_is_named(database: Connection, role_url: str) -> None:
    """Access is refused; it is no option of the connection string."""
    name = await database.fetchval("SELECT quote_ident(current_database())")
    await database.execute(f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")
    [(_, line)] = await said(role_url)
    assert line.startswith("access refused (42501): database ")
    assert "permission denied for database" in line


async def test_privileges_for_columns_are_enough(database: Connection, role: str, role_url: str) -> None:
    """Those that the statements name. If one is missing, `check` and the worker name the column."""
    written = (
        "task_id, task_activity_id, user_id, contact_id, subject, description, due_date, is_closed, date_closed,"
        " reference_back_office, source_version"
    )
    await database.execute(f"""
        REVOKE ALL ON task_activity_log, task_activity_log_inbox FROM {role};
        GRANT SELECT (id, {written}, modified_dateutc, xmax), INSERT (id, {written}), UPDATE ({written})
            ON task_activity_log TO {role};
        GRANT SELECT (request_key, processed_at), INSERT (request_key), DELETE ON task_activity_log_inbox TO {role};
        ALTER TABLE task_activity_log ADD secret text; -- which the role may not read
    """)
    store, request = Store(role_url), ask(version=3, subject="a")
    await store.probe()
    assert outcomes(await store.apply([request])) == ["inserted"]
    assert outcomes(await store.apply([request])) == ["duplicate"]
    assert outcomes(await store.apply([ask(request.record.id, version=2)])) == ["stale"]
    assert await store.locked([request.record.id]) == set()
    assert await said(role_url) == []
    await database.execute(f"REVOKE UPDATE (subject, is_closed) ON task_activity_log FROM {role}")
    with pytest.raises(Unavailable) as caught:
        await store.probe()
    await store.close()
    lacks = "lacks UPDATE (subject, is_closed) on task_activity_log"
    assert lacks in caught.value.reason
    assert [line.partition(";")[0] for verdict, line in await said(role_url) if verdict == "broken"] == [lacks]


async def test_tables_of_others_in_which_a_column_is_missing_or_that_others_inherit_from(
    database: Connection, role_url: str
) -> None:
    """What is missing is named once; that an id can be there twice is a warning."""
    await database.execute("CREATE TABLE child () INHERITS (task_activity_log)")
    assert [line.partition(";")[0] for _, line in await said(role_url)] == [
        "other tables inherit from task_activity_log"
    ]
    await database.execute("DROP TABLE child; ALTER TABLE task_activity_log DROP contact_id")
    assert [line.partition(";")[0] for _, line in await said(role_url)] == ["column contact_id is missing"]


async def test_row_security_that_hides_the_revision(database: Connection, role_url: str) -> None:
    """Somebody may enable it on each new table, by an event trigger. Then the row is there, and is not to be restored."""
    await database.execute("ALTER TABLE task_activity_log_alembic_version ENABLE ROW LEVEL SECURITY")
    hidden = "row security is enabled on task_activity_log_alembic_version, and hides its row from the workers"
    assert [line.partition(";")[0] for _, line in await said(role_url)] == [hidden]
    await database.execute("CREATE POLICY all_may ON task_activity_log_alembic_version USING (true)")
    assert await said(role_url) == []


async def test_an_inbox_whose_keys_would_never_be_deleted(database: Connection, role_url: str) -> None:
    await database.execute("""
        ALTER TABLE task_activity_log_inbox ALTER processed_at DROP DEFAULT, ALTER processed_at DROP NOT NULL
    """)
    assert [line.partition(";")[0] for _, line in await said(role_url)] == [
        "column processed_at of task_activity_log_inbox has no default"
    ]


async def test_a_journal_that_row_security_hides_is_named(
    amqp_url: str, database: Connection, role: str, role_url: str
) -> None:
    """Its answers may be neither too old nor missing. This is said with a row and without one."""
    record, nobody = uuid4(), uuid4()
    await database.execute("INSERT INTO task_activity_log (id, subject) VALUES ($1, 'kept')", record)
    await database.execute(
        "INSERT INTO task_activity_log_journal (answered_at, record_id, reply_id, outcome)"
        " VALUES (now(), $1, $1, 'inserted')",
        record,
    )
    await database.execute(f"GRANT SELECT ON task_activity_log, task_activity_log_journal TO {role}")
    hidden = "the journal has no answer that this role may see (row security)"
    async with conversing(amqp_url):
        for change, expected in (("SELECT 1", False), ("ENABLE ROW LEVEL SECURITY", True)):
            if expected:
                await database.execute(f"ALTER TABLE task_activity_log_journal {change}")
            for name, code in ((record, 0), (nobody, 1)):
                said = await command("find", str(name), AMQP_URL=amqp_url, DATABASE_URL=role_url)
                assert (said.code, hidden in said.err) == (code, expected), said.err
                assert ("too old, or not kept" in said.err) == (name == nobody and not expected)
    survey = Survey(Connector(role_url))
    try:
        assert await journal_answers(survey, str(record), record) == ([], hidden)
    finally:
        await survey.close()
