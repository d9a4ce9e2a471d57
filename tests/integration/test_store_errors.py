"""The store's errors: `Refused` if a row is at fault, `Unavailable` if the database is, and no others."""

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest

from sandbox.proxy import Proxy
from task_activity_log.pipeline.ports import Patience
from task_activity_log.postgresql import migrations
from task_activity_log.postgresql.connecting import Connector
from task_activity_log.postgresql.session import Session
from task_activity_log.postgresql.store import Store
from task_activity_log.problem import CLIENT, Failed, NotMigrated, Refused, TimedOut, Unavailable
from tests.asking import Connection, ask, grants, merge, outcomes, until_blocked


@asynccontextmanager
async def opened(database: str | Connector, **options: Any) -> AsyncIterator[Store]:
    store = Store(database, **options)
    try:
        yield store
    finally:
        await store.close()


def with_option(url: str, **options: str) -> str:
    """The DSN with these server settings."""
    return urlunsplit(
        urlsplit(url)._replace(query="&".join(f"{name}={quote(value)}" for name, value in options.items()))
    )


async def outage(store: Store, kind: type[Unavailable] = Unavailable) -> str:
    """Why a write is not possible: an outage of this type, and its label."""
    with pytest.raises(kind) as caught:
        await store.apply([ask()])
    assert type(caught.value) is kind
    assert caught.value.__context__ is None  # the driver's error quotes rows, so it must not be logged
    return caught.value.label


async def refusal(store: Store, **fields: Any) -> Refused:
    """Why a record is refused."""
    with pytest.raises(Refused) as caught:
        await store.apply([ask(**fields)])
    assert caught.value.__context__ is None
    return caught.value


async def raise_subject(database: Connection) -> None:
    """Let a trigger raise the SQLSTATE in a record's subject, as many times as its description says."""
    await database.execute("""
        CREATE SEQUENCE tries;
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF nextval('tries') <= NEW.description::integer THEN
                    RAISE EXCEPTION 'secret' USING ERRCODE = NEW.subject, DETAIL = 'secret';
                END IF;
                RETURN NEW;
            END $$;
        CREATE TRIGGER fail BEFORE INSERT ON task_activity_log FOR EACH ROW
            WHEN (length(NEW.subject) = 5) EXECUTE FUNCTION fail();
    """)


async def test_every_class_of_errors_is_recognized(store: Store, database: Connection) -> None:
    """A server raises errors of rows, errors that a row or the database may cause, and others. Their text is dropped."""
    await raise_subject(database)
    always = "1000000"
    for sqlstate in ("22000", "22P05", "23503", "23514", "44000", "54000", "P0001"):
        error = await refusal(store, subject=sqlstate, description=always)
        assert error.sqlstate == sqlstate
    lasting, passing = True, False
    for sqlstate, expected, kind in (
        ("01000", "database error (01000)", lasting),
        ("01004", "database error (01004)", lasting),
        ("02000", "database error (02000)", lasting),
        ("02001", "database error (02001)", lasting),
        ("08006", "connection lost (08006)", passing),
        ("0A000", "schema does not fit (0A000)", lasting),
        ("21000", "database error (21000)", lasting),
        ("25006", "read-only (25006)", passing),
        ("26000", "prepared statement lost (26000)", passing),
        ("38000", "database error (38000)", lasting),
        ("40001", "conflict (40001)", passing),
        ("42501", "not permitted (42501)", lasting),
        ("42703", "schema does not fit (42703)", lasting),
        ("42P01", "a table of others is missing (42P01)", lasting),
        ("42P05", "prepared statement lost (42P05)", passing),
        ("53100", "disk full (53100)", passing),
        ("53200", "out of resources (53200)", passing),
        ("55006", "not in a fit state (55006)", passing),
        ("55P03", "timeout", passing),
        ("57014", "timeout", passing),
        ("57P03", "shutting down or starting up (57P03)", passing),
        ("58030", "database error (58030)", lasting),
        ("F0000", "database error (F0000)", lasting),
        ("HV000", "database error (HV000)", lasting),
        ("P0002", "database error (P0002)", lasting),
        ("XX001", "database error (XX001)", lasting),
        ("ZZZZZ", "database error (ZZZZZ)", lasting),
    ):
        with pytest.raises(Failed) as caught:
            await store.apply([ask(subject=sqlstate, description=always)])
        assert (caught.value.label, caught.value.lasting) == (expected, kind)
        assert "secret" not in repr(caught.value)
    assert outcomes(await store.apply([ask()])) == ["inserted"]


@pytest.mark.parametrize(("sqlstate", "passes"), [("40001", 3), ("40P01", 3), ("42883", 1), ("26000", 1), ("42P05", 1)])
async def test_errors_that_may_pass_are_retried(store: Store, database: Connection, sqlstate: str, passes: int) -> None:
    """A conflict is retried three times, an outdated schema once. One more failure is raised."""
    await raise_subject(database)
    request = ask(subject=sqlstate, description=str(passes))
    assert outcomes(await store.apply([request])) == ["inserted"]
    await database.execute("ALTER SEQUENCE tries RESTART")
    with pytest.raises(Unavailable, match=sqlstate):
        await store.apply([ask(subject=sqlstate, description=str(passes + 1))])


async def test_a_refusal_costs_no_connection(store: Store, database: Connection) -> None:
    """Halving a wave causes many refused statements in succession; they use the same connection."""
    await database.execute("ALTER TABLE task_activity_log ADD CONSTRAINT short CHECK (length(subject) < 5)")
    await store.open()
    connection = store._writer._connection
    for _ in range(3):
        assert (await refusal(store, subject="too long")).sqlstate == "23514"
    assert store._writer._connection is connection


@pytest.mark.parametrize("sqlstate", ["0A000", "42P01"])
async def test_an_error_as_of_an_old_schema_costs_one_connection(
    store: Store, database: Connection, sqlstate: str
) -> None:
    """The first time a new connection shows that no old plan was to blame. While a wave is halved it is the row's error."""
    await raise_subject(database)
    await store.open()
    connections = [store._writer._connection]
    for _ in range(4):
        with pytest.raises(Failed, match=sqlstate):
            await store.apply([ask(), ask(subject=sqlstate, description="1000000")])
        assert outcomes(await store.apply([ask()])) == ["inserted"]
        connections.append(store._writer._connection)
    assert connections[0] is not connections[1]
    assert all(one is connections[1] for one in connections[1:])


async def test_values_that_cannot_be_stored(store: Store, database: Connection) -> None:
    """The server refuses U+0000, the driver a lone surrogate, and an index a value that is too long for a page."""
    assert (await refusal(store, subject="\0")).sqlstate == "22021"
    assert (await refusal(store, subject="\ud800")).sqlstate == "22000"
    await database.execute("CREATE INDEX ON task_activity_log (description)")
    assert (await refusal(store, description=secrets.token_hex(5000))).sqlstate == "54000"
    assert outcomes(await store.apply([ask()])) == ["inserted"]


async def test_a_database_that_is_not_migrated(empty_database_url: str) -> None:
    """This outage has its own type, and ends as soon as the database is migrated."""
    async with opened(empty_database_url) as store:
        assert await outage(store, NotMigrated) == "not migrated yet (42P01)"
        with pytest.raises(NotMigrated):
            await store.probe()
        with pytest.raises(NotMigrated):
            await store.trim(timedelta(0), 1)
        assert await store.schema_version() is None
        await asyncio.to_thread(migrations.migrate, empty_database_url)
        await store.probe()
        assert await store.schema_version() == migrations.head()
        assert outcomes(await store.apply([ask()])) == ["inserted"]


async def test_a_schema_that_changes_under_prepared_statements(store: Store, database: Connection) -> None:
    """A table is altered, moved or created again, and a pooler drops statements: the next wave passes."""
    await store.apply([ask()])
    for change in (
        "ALTER TABLE task_activity_log ALTER COLUMN subject TYPE varchar(100)",
        "ALTER TABLE task_activity_log ADD COLUMN inserted text, ADD COLUMN readable text",
        (
            "ALTER TABLE task_activity_log RENAME TO old; CREATE TABLE task_activity_log (LIKE old INCLUDING ALL);"
            "CREATE TRIGGER modified BEFORE INSERT ON task_activity_log FOR EACH ROW"
            " EXECUTE FUNCTION task_activity_log_modified()"
        ),
    ):
        await database.execute(change)
        assert outcomes(await store.apply([ask()])) == ["inserted"]
    connection = store._writer._connection
    assert connection is not None
    await connection.execute("DEALLOCATE ALL")
    assert outcomes(await store.apply([ask()])) == ["inserted"]


async def test_a_read_only_database(store: Store, database: Connection, database_url: str) -> None:
    """A read-only database, as after a failover, is an outage, also for the probe. Each attempt uses a new connection,
    which may reach the new primary."""
    await store.apply([ask()])
    async with opened(with_option(database_url, default_transaction_read_only="on")) as standby:
        assert await outage(standby, Failed) == "read-only (25006)"
        with pytest.raises(Unavailable, match="read-only"):
            await standby.probe()
        assert standby._writer._connection is None
    assert await database.fetchval("SELECT count(*) FROM task_activity_log") == 1


@pytest.mark.parametrize("option", [{"statement_timeout": "150"}, {"lock_timeout": "150"}, {}])
async def test_a_locked_row_is_a_timeout(
    store: Store, database_url: str, database: Connection, option: dict[str, str]
) -> None:
    """Whether the server or the client gives up, the type says that a smaller wave may pass."""
    locked, free = ask(), ask()
    await store.apply([locked, free])
    async with database.transaction():
        await database.execute("SELECT FROM task_activity_log WHERE id = $1 FOR UPDATE", locked.record.id)
        async with opened(with_option(database_url, **option), command_timeout=10 if option else 0.15) as hurried:
            with pytest.raises(TimedOut) as caught:
                await hurried.apply([ask(free.record.id), ask(locked.record.id), ask()])
        assert caught.value.label == "timeout"


@pytest.mark.parametrize("patience", [Patience(lock_seconds=0.15), Patience(seconds=0.15)])
async def test_a_smaller_wave_passes_at_once_after_a_timeout(
    store: Store, database: Connection, patience: Patience
) -> None:
    """Whoever gave up, the next statement has all its time."""
    locked, free = ask(), ask()
    await store.apply([locked, free])
    async with database.transaction():
        await database.execute("SELECT FROM task_activity_log WHERE id = $1 FOR UPDATE", locked.record.id)
        with pytest.raises(TimedOut):
            await store.apply([ask(free.record.id), ask(locked.record.id), ask()], patience)
        assert outcomes(await store.apply([ask(free.record.id)])) == ["updated"]


async def test_a_cancelled_wave_is_cancelled_in_the_database(store: Store, database: Connection) -> None:
    """When the drain limit has passed, no statement is left that would write or hold locks later."""
    request = ask()
    await store.apply([request])
    async with database.transaction():
        await database.execute("SELECT FROM task_activity_log FOR UPDATE")
        applying = asyncio.create_task(store.apply([ask(request.record.id), neighbour := ask()]))
        await until_blocked(database, 1)
        applying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await applying
        await until_blocked(database, 0)
    assert outcomes(await store.apply([neighbour])) == ["inserted"]


async def test_a_connection_ended_by_the_server(store: Store, database: Connection) -> None:
    """During a statement it is an outage; between two statements it has no effect."""
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    request = ask()
    await store.apply([request])
    async with database.transaction():
        await database.execute("SELECT FROM task_activity_log FOR UPDATE")
        applying = asyncio.create_task(store.apply([ask(request.record.id)]))
        await until_blocked(database, 1)
        await database.execute(end)
        said = r"\(57P01\): terminating connection due to administrator command, database "
        with pytest.raises(Unavailable, match=said):
            await applying
    assert outcomes(await store.apply([request])) == ["duplicate"]
    connection = store._writer._connection
    assert connection is not None
    lost = asyncio.Event()
    connection.add_termination_listener(lambda _: lost.set())
    await database.execute(end)
    await lost.wait()
    assert outcomes(await store.apply([request])) == ["duplicate"]


async def test_a_network_that_is_cut(database_url: str) -> None:
    """A lost connection is an outage. If the wave was stored before the loss, its repeat is a duplicate."""
    async with Proxy.to(database_url) as proxy, opened(proxy.url) as store:
        request = ask()
        await store.open()
        proxy.hold()
        applying = asyncio.create_task(store.apply([request]))
        await asyncio.sleep(0)
        proxy.cut()
        with pytest.raises(Unavailable, match="connection lost"):
            await applying
        proxy.refuse()
        assert await outage(store) == "connection refused"
        proxy.accept()
        proxy.resume()
        assert outcomes(await store.apply([request])) in (["inserted"], ["duplicate"])


async def test_a_network_that_is_silent(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-open connection causes a timeout, a new one a connect timeout, and neither prevents the store from closing.

    The request to cancel the statement uses the same network and is not answered either.
    """
    monkeypatch.setattr(Session, "_CLOSE_SECONDS", 0.2)
    async with (
        Proxy.to(database_url) as proxy,
        asyncio.timeout(60),
        opened(Connector(proxy.url, connect_timeout=3.0), command_timeout=2.0) as store,
    ):
        await store.apply([ask()])
        proxy.hold()
        assert await outage(store, TimedOut) == "timeout"
        assert await outage(store) == "connect timeout"
        applying = asyncio.create_task(store.apply([ask()]))
        await asyncio.sleep(0)
        applying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await applying


async def test_a_connection_that_was_idle_for_long_is_replaced(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall may have dropped it, so the next statement uses a new one instead of running into a timeout."""
    await store.apply([ask()])
    old = store._writer._connection
    monkeypatch.setattr(Session, "_IDLE_SECONDS", 0.0)
    await store.apply([ask()])
    assert store._writer._connection is not old


_NAMES = """
import asyncio, sys
from task_activity_log.postgresql.store import Store
async def main():
    store = Store(sys.argv[1])
    await store.probe()
    print(*[row["name"] for row in await store._writer._connection.fetch("SELECT name FROM pg_prepared_statements")])
    await store.close()
asyncio.run(main())
"""


async def test_two_processes_never_have_a_prepared_statement_of_the_same_name(database_url: str) -> None:
    """Behind a pooler that assigns connections per transaction, one would execute what the other has prepared."""
    names = list[str]()
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _NAMES, database_url, stdout=asyncio.subprocess.PIPE
        )
        written, _ = await process.communicate()
        names += written.decode().split()
    assert len(names) > 2
    assert len(set(names)) == len(names)


async def test_nothing_remains_after_a_transaction(database_url: str, database: Connection) -> None:
    """Without a statement cache there are no prepared statements and no locks, as pgbouncer in transaction mode needs."""
    async with opened(database_url, statement_cache_size=0) as store:
        request = ask(version=1)
        await store.apply([request])
        await store.apply([merge(request.record.id)])
        await store.apply([request])
        await store.probe()
        await store.trim(timedelta(0), 1)
        for session in (store._writer, store._maintenance):
            assert session._connection is not None
            assert (
                await session._connection.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''") == 0
            )
    # Others use the same server.
    locks = """
        SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
        WHERE locktype = 'advisory' AND datname = current_database()
    """
    assert await database.fetchval(locks) == 0


async def test_a_result_that_the_driver_cannot_read(store: Store) -> None:
    """The row is at fault, the program does not fail, and the connection can still be used."""
    await store.look()  # before the driver reads booleans in another way
    connection = store._writer._connection
    assert connection is not None
    await connection.set_type_codec("bool", schema="pg_catalog", encoder=str, decoder=int, format="text")
    error = await refusal(store, is_closed=True)
    assert error.sqlstate == CLIENT
    assert outcomes(await store.apply([ask()])) == ["inserted"]
    assert store._writer._connection is connection


async def change_the_session(database: Connection, setting: str, value: str) -> None:
    """Let a trigger change a setting of the session if the subject is `change`."""
    await database.execute(f"""
        CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM set_config('{setting}', '{value}', false);
                RETURN NEW;
            END $$;
        CREATE TRIGGER change BEFORE INSERT ON task_activity_log FOR EACH ROW
            WHEN (NEW.subject = 'change') EXECUTE FUNCTION change();
    """)


async def test_a_session_that_a_new_trigger_has_changed_is_replaced(store: Store, database: Connection) -> None:
    """A row may pass and leave another role behind. Then nothing more passes on that connection, and the probe says so."""
    await store.apply([ask()])
    await change_the_session(database, "role", "pg_monitor")
    assert outcomes(await store.apply([ask(subject="change")])) == ["inserted"]
    with pytest.raises(Unavailable, match="not permitted"):
        await store.apply([ask()])
    with pytest.raises(Unavailable, match="not permitted"):
        await store.probe()
    assert outcomes(await store.apply([ask()])) == ["inserted"]


@pytest.mark.parametrize(
    ("setting", "value"), [("role", "pg_monitor"), ("search_path", "other, public"), ("synchronous_commit", "off")]
)
async def test_what_a_known_trigger_changes_in_the_session_is_taken_back(
    store: Store, database: Connection, setting: str, value: str
) -> None:
    """Otherwise rows of others would be refused, be written into another schema, or be lost in a crash of the server."""
    await database.execute("""
        CREATE SCHEMA other;
        CREATE TABLE other.task_activity_log (LIKE public.task_activity_log INCLUDING ALL);
        CREATE TABLE other.task_activity_log_inbox (LIKE public.task_activity_log_inbox INCLUDING ALL);
    """)
    await change_the_session(database, setting, value)
    await store.apply([ask()])
    before = await setting_of(store, setting)
    assert outcomes(await store.apply([ask(subject="change"), ask()])) == ["inserted", "inserted"]
    assert await setting_of(store, setting) == before
    assert outcomes(await store.apply([ask()])) == ["inserted"]
    assert await database.fetchval("SELECT count(*) FROM task_activity_log") == 4


OTHER_SCHEMA = """
    CREATE SCHEMA other;
    CREATE TABLE other.task_activity_log (LIKE public.task_activity_log INCLUDING ALL);
    CREATE TABLE other.task_activity_log_inbox (LIKE public.task_activity_log_inbox INCLUDING ALL);
    CREATE TRIGGER task_activity_log_modified BEFORE INSERT OR UPDATE ON other.task_activity_log
        FOR EACH ROW EXECUTE FUNCTION task_activity_log_modified();
"""
"""Tables of the same names, which a worker with another search path would write to."""


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TRIGGER other AFTER INSERT ON task_activity_log_inbox FOR EACH ROW EXECUTE FUNCTION goes_elsewhere()",
        "CREATE TRIGGER other AFTER INSERT ON task_activity_log EXECUTE FUNCTION goes_elsewhere()",
        "ALTER TABLE task_activity_log RENAME TO base; CREATE VIEW task_activity_log AS SELECT * FROM base;"
        "CREATE TRIGGER other AFTER INSERT ON base FOR EACH ROW EXECUTE FUNCTION goes_elsewhere()",
    ],
    ids=["inbox", "statement without rows", "view"],
)
async def test_no_trigger_sends_the_rows_of_others_into_another_schema(
    store: Store, database: Connection, change: str
) -> None:
    """Also not one that fires for a key in the inbox, for the probe, or on the table behind a view."""
    await database.execute(f"""
        {OTHER_SCHEMA}
        CREATE FUNCTION goes_elsewhere() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM set_config('search_path', 'other, public', false); RETURN NULL;
        END $$;
        {change};
    """)
    await store.probe()
    for _ in range(3):
        await store.mark([uuid4()])
        assert outcomes(await store.apply([ask(), ask()])) == ["inserted", "inserted"]
    assert await database.fetchval("SELECT count(*) FROM public.task_activity_log") == 6
    assert await database.fetchval("SELECT count(*) FROM other.task_activity_log_inbox") == 0


async def test_what_a_trigger_changes_is_not_left_behind_an_answer_that_cannot_be_read(
    store: Store, database: Connection
) -> None:
    """The statement is committed, and the driver raises an error. The next one must not be executed with the changed path."""
    await database.execute(f"""
        {OTHER_SCHEMA}
        CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.subject = 'é' THEN
                PERFORM set_config('search_path', 'other, public', false), set_config('client_encoding', 'LATIN1', true);
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER change BEFORE INSERT ON task_activity_log FOR EACH ROW EXECUTE FUNCTION change();
    """)
    await store.probe()
    # A database without an encoding does not convert texts: then the answer can be read.
    converts = await database.fetchval("SHOW server_encoding") == "UTF8"
    with pytest.raises(Refused) if converts else nullcontext():
        await store.apply([ask(subject="é")])
    assert outcomes(await store.apply([ask()])) == ["inserted"]
    assert await database.fetchval("SELECT count(*) FROM other.task_activity_log") == 0


CODE = {
    "constraint": "ALTER TABLE task_activity_log ADD CHECK (change())",
    "default": "ALTER TABLE task_activity_log ADD changed bool DEFAULT change()",
    "index": "CREATE INDEX ON task_activity_log ((change()))",
}


@pytest.mark.parametrize("code", CODE)
async def test_what_other_code_changes_in_the_session_is_taken_back(
    store: Store, database: Connection, code: str
) -> None:
    """A trigger is not the only code that is executed for a row."""
    await database.execute(f"""
        CREATE FUNCTION change() RETURNS bool LANGUAGE plpgsql IMMUTABLE AS $$
            BEGIN PERFORM set_config('search_path', 'pg_catalog, public', false); RETURN true; END $$;
        {CODE[code]}
    """)
    assert outcomes(await store.apply([ask()])) == ["inserted"]
    assert await setting_of(store, "search_path") != "pg_catalog, public"


async def test_what_was_set_when_the_connection_was_opened_stays(
    database: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a login trigger or a pooler: a search path, a role, or a setting of its own. Otherwise rows would be refused."""
    role = f"owner_{secrets.token_hex(4)}"
    await database.execute(f"""
        CREATE SCHEMA "it's \\ one"; CREATE ROLE {role}; GRANT USAGE ON SCHEMA "it's \\ one" TO {role};
        ALTER TABLE task_activity_log SET SCHEMA "it's \\ one"; ALTER TABLE task_activity_log_inbox SET SCHEMA "it's \\ one";
        GRANT ALL ON ALL TABLES IN SCHEMA "it's \\ one" TO {role};
        SET search_path = "it's \\ one", public;
    """)
    await change_the_session(database, "search_path", "public")
    connect = asyncpg.connect

    async def with_settings(*arguments: Any, **options: Any) -> Any:
        connection = await connect(*arguments, **options)
        await connection.execute(f"""SET search_path = "it's \\ one"; SET app.name = 'o''dd\\'; SET ROLE {role}""")
        return connection

    monkeypatch.setattr(asyncpg, "connect", with_settings)
    store = Store(database_url)
    try:
        assert await store.try_own_rows(None) == []
        for subject in ("change", "other", "change", "other"):
            assert outcomes(await store.apply([ask(subject=subject)])) == ["inserted"]
            assert await setting_of(store, "app.name") == "o'dd\\"
            assert await setting_of(store, "role") == role
    finally:
        await store.close()
        await database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_what_cannot_be_taken_back_is_not_used_again(database: Connection, database_url: str) -> None:
    """A function of a superuser has set what the role of the workers may not set."""
    role = f"worker_{secrets.token_hex(4)}"
    await database.execute(f"""
        CREATE ROLE {role} LOGIN PASSWORD 'secret'; {grants(role)};
        CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
            PERFORM set_config('session_replication_role', 'replica', false); RETURN NULL;
        END $$;
        CREATE TRIGGER change AFTER INSERT ON task_activity_log FOR EACH ROW EXECUTE FUNCTION change();
    """)
    parts = urlsplit(database_url)
    store = Store(urlunsplit(parts._replace(netloc=f"{role}:secret@{parts.hostname}:{parts.port}")))
    try:
        assert await store.try_own_rows(None) == []
        for _ in range(3):
            assert outcomes(await store.apply([ask()])) == ["inserted"]
    finally:
        await store.close()
        await database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def setting_of(store: Store, name: str) -> str:
    """A setting of the session that writes."""
    [row] = await store._writer.ask(f"SHOW {name}")
    return str(row[name])


async def test_a_trigger_that_somebody_adds_is_noticed(store: Store, database: Connection) -> None:
    """Without an error that makes the store look at the table again."""
    await store.apply([ask()])
    await change_the_session(database, "search_path", "pg_catalog, public")
    await store.watch.look()
    await store.apply([ask(subject="change")])
    assert await setting_of(store, "search_path") != "pg_catalog, public"


@pytest.mark.parametrize("encoding", ["LATIN2", "SQL_ASCII", "EUC_TW"])
async def test_a_session_whose_encoding_a_trigger_has_changed_is_replaced(
    store: Store, database: Connection, encoding: str
) -> None:
    """Otherwise rows of others would be refused for their characters. Python does not know all encodings of PostgreSQL."""
    await store.apply([ask()])
    await change_the_session(database, "client_encoding", encoding)
    changing = ask(subject="change")
    with suppress(Unavailable):
        await store.apply([changing])
    assert outcomes(await store.apply([ask(subject="é€😀")])) == ["inserted"]
    assert outcomes(await store.apply([changing])) == ["duplicate"]


async def test_whether_the_connection_survives(store: Store, database: Connection) -> None:
    """One that was ended by the server does not, and is not opened again. A crash of the server ends all connections."""
    assert not await store.survives()
    await store.probe()
    assert await store.survives()
    await database.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )
    assert not await store.survives()
    assert not store.connected
    assert outcomes(await store.apply([ask()])) == ["inserted"]
