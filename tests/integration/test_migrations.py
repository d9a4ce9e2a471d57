"""The schema: created by `migrate` or by a DBA, by one process or several, and the privileges of the worker's role."""

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from task_activity_log.postgresql import migrations
from task_activity_log.postgresql.store import Store
from task_activity_log.problem import Failed, Unavailable
from tests.asking import OLDER, Connection, ask, grants, merge, outcomes, until_blocked
from tests.users import login


async def migrate(url: str) -> str:
    return await asyncio.to_thread(migrations.migrate, url)


async def migrate_in_a_process(url: str) -> int:
    """Run the command, as Kubernetes jobs do; return its exit status."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "task_activity_log.cli", "migrate", env={**os.environ, "DATABASE_URL": url}
    )
    return await process.wait()


async def failure(url: str) -> str:
    """The reason why a database cannot be migrated, in one line."""
    with pytest.raises(Unavailable) as caught:
        await migrate(url)
    assert "\n" not in caught.value.reason
    assert caught.value.__context__ is None
    return caught.value.reason


@pytest.fixture
async def empty(empty_database_url: str) -> AsyncIterator[Connection]:
    """A connection to the database that has no schema yet."""
    connection: Connection = await asyncpg.connect(empty_database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def role(database: Connection) -> AsyncIterator[str]:
    """A role that may log in and has no other privileges. Its password is its name."""
    name = f"tal_{secrets.token_hex(6)}"
    await database.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{name}'")
    yield name
    await database.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def as_role(url: str, role: str) -> str:
    """The same DSN for another role."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{role}:{role}@{host}"))


async def schema(connection: Connection) -> list[str]:
    """A description of everything in the database, with the content of the version table."""
    rows = await connection.fetch("""
        SELECT format('%s %s %s %s', c.relname, c.relkind, c.reloptions, obj_description(c.oid)) AS line
            FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace
        UNION ALL SELECT format('%s.%s %s %s %s %s', a.attrelid::regclass, a.attname, a.attnum,
                format_type(a.atttypid, a.atttypmod), a.attnotnull, col_description(a.attrelid, a.attnum))
            FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
            WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0
        UNION ALL SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef
        UNION ALL SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
        UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger
        UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT version_num FROM task_activity_log_alembic_version
        ORDER BY 1
    """)
    return [row["line"] for row in rows]


async def test_the_columns_are_those_of_the_contract(database: Connection) -> None:
    """The table has the contract's twelve fields (section 1) and one hidden column."""
    rows = await database.fetch("""
        SELECT column_name, udt_name, is_nullable FROM information_schema.columns
        WHERE table_name = 'task_activity_log' ORDER BY ordinal_position
    """)
    assert [f"{row['column_name']} {row['udt_name']} {row['is_nullable']}" for row in rows] == [
        "id uuid NO",
        "task_id uuid YES",
        "task_activity_id uuid YES",
        "user_id uuid YES",
        "contact_id uuid YES",
        "subject text YES",
        "description text YES",
        "due_date timestamptz YES",
        "is_closed bool YES",
        "date_closed timestamptz YES",
        "reference_back_office text YES",
        "modified_dateutc timestamptz NO",
        "source_version int8 YES",
    ]


async def test_migrating_again_changes_nothing(empty_database_url: str, empty: Connection) -> None:
    """The second migration has nothing to do and keeps the rows; both return the revision."""
    assert await migrate(empty_database_url) == migrations.head()
    await empty.execute("INSERT INTO task_activity_log (id) VALUES (gen_random_uuid())")
    before = await schema(empty)
    assert await migrate(empty_database_url) == migrations.head()
    assert await schema(empty) == before
    assert await empty.fetchval("SELECT count(*) FROM task_activity_log") == 1


async def test_several_processes_may_migrate_at_once(empty_database_url: str, empty: Connection) -> None:
    """They take turns, and those that waited find nothing left to do; none fails."""
    lock = int.from_bytes(b"tal-migr")
    async with empty.transaction():
        await empty.execute("SELECT pg_advisory_xact_lock($1)", lock)
        doing = [asyncio.create_task(migrate_in_a_process(empty_database_url)) for _ in range(4)]
        await until_blocked(empty, 4)
    assert await asyncio.gather(*doing) == [0] * 4
    assert await empty.fetchval("SELECT count(*) FROM task_activity_log_alembic_version") == 1


async def test_threads_of_one_process_take_turns(empty_database_url: str, empty: Connection) -> None:
    """Alembic keeps its state in a module, so two migrations at once would use each other's connection."""
    assert await asyncio.gather(*(migrate(empty_database_url) for _ in range(3))) == [migrations.head()] * 3
    assert await empty.fetchval("SELECT count(*) FROM task_activity_log_alembic_version") == 1


async def test_a_dba_can_migrate_with_the_printed_sql(
    empty_database_url: str, empty: Connection, database: Connection
) -> None:
    """The printed SQL creates exactly the same schema, and `migrate` then has nothing to do."""
    await empty.execute(migrations.as_sql())
    expected = await schema(database)
    assert len(expected) > 30  # columns, indexes, constraints, trigger, function, revision
    assert await schema(empty) == expected
    assert await migrate(empty_database_url) == migrations.head()
    assert await schema(empty) == expected


async def test_the_printed_sql_run_twice_does_no_harm(empty: Connection) -> None:
    """The second run fails as a whole, also in psql, which continues after errors."""
    await empty.execute(migrations.as_sql())
    before = await schema(empty)
    with pytest.raises(asyncpg.DuplicateTableError):
        await empty.execute(migrations.as_sql())
    await empty.execute("ROLLBACK")
    assert await schema(empty) == before


@pytest.mark.parametrize("how", ["migrate", "sql"])
async def test_an_older_schema_is_upgraded_with_its_rows(database_url: str, database: Connection, how: str) -> None:
    """By the command, or by a DBA; afterwards it is the same as a new one. Until then the worker works with it."""
    expected = await schema(database)
    await database.execute(OLDER)
    store = Store(database_url)
    await store.probe()
    assert outcomes(await store.apply([ask()])) == ["inserted"]
    await store.close()
    if how == "migrate":
        assert await migrate(database_url) == migrations.head()
    else:
        await database.execute(migrations.as_sql("0001"))
    assert await schema(database) == expected
    assert await database.fetchval("SELECT count(*) FROM task_activity_log") == 1


async def test_a_table_that_others_have_created_is_not_touched(empty_database_url: str, empty: Connection) -> None:
    """`migrate` refuses and changes nothing; another application's version table of Alembic does not matter."""
    await empty.execute("""
        CREATE TABLE task_activity_log (id uuid PRIMARY KEY, subject varchar(10));
        CREATE TABLE alembic_version (version_num varchar(32) NOT NULL);
        INSERT INTO alembic_version VALUES ('theirs');
    """)
    reason = await failure(empty_database_url)
    assert reason.startswith(
        'relation "task_activity_log" already exists (42P07); the table task_activity_log_alembic_version'
    )
    assert reason.endswith("otherwise rename them, or drop them and the function task_activity_log_modified")
    tables = await empty.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
    assert [row["tablename"] for row in tables] == ["alembic_version", "task_activity_log"]
    await empty.execute("ALTER TABLE task_activity_log RENAME TO theirs")
    assert await migrate(empty_database_url) == migrations.head()
    assert await empty.fetchval("SELECT version_num FROM alembic_version") == "theirs"
    await empty.execute("UPDATE task_activity_log_alembic_version SET version_num = '0001'")
    assert "has the revision 0001, and what a later one makes exists already" in await failure(empty_database_url)


async def test_a_schema_of_a_newer_release_is_not_touched(database_url: str, database: Connection) -> None:
    """An older release refuses to migrate it."""
    await database.execute("UPDATE task_activity_log_alembic_version SET version_num = '9999'")
    assert "migrated by a newer one" in await failure(database_url)


async def test_several_revisions_are_named(database_url: str, database: Connection) -> None:
    """The table of the revision has one row, unless somebody has put another one there."""
    await database.execute("INSERT INTO task_activity_log_alembic_version VALUES ('0001')")
    assert "has the revisions 0001, 0002, and should have one row: delete those" in await failure(database_url)


async def test_the_schema_is_where_the_search_path_says(empty_database_url: str, empty: Connection) -> None:
    """With a search_path in the role or the DSN, nothing is created in public."""
    await empty.execute("CREATE SCHEMA app")
    url = empty_database_url + ("&" if "?" in empty_database_url else "?") + "search_path=app"
    await migrate(url)
    assert await empty.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'app'") == 4
    assert await empty.fetchval("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == 0
    store = Store(url)
    assert outcomes(await store.apply([ask()])) == ["inserted"]
    await store.close()


async def test_the_search_path_changes_no_type_and_no_function(empty_database_url: str, empty: Connection) -> None:
    """Somebody else may own a schema of the search path, even one before pg_catalog."""
    await empty.execute("""
        CREATE SCHEMA app; CREATE SCHEMA evil;
        CREATE FUNCTION evil.now() RETURNS pg_catalog.timestamptz LANGUAGE sql AS 'SELECT pg_catalog.now()';
        CREATE DOMAIN evil.uuid AS pg_catalog.text; CREATE DOMAIN evil.timestamptz AS pg_catalog.text;
        CREATE DOMAIN evil.text AS pg_catalog.varchar
    """)
    await migrate(empty_database_url + ("&" if "?" in empty_database_url else "?") + "search_path=app,evil,pg_catalog")
    used = """
        SELECT count(*) FROM pg_depend
        WHERE (refclassid, refobjid) IN (
            SELECT 'pg_type'::regclass, oid FROM pg_type WHERE typnamespace = 'evil'::regnamespace
            UNION SELECT 'pg_proc'::regclass, oid FROM pg_proc WHERE pronamespace = 'evil'::regnamespace
        ) AND classid IN ('pg_class'::regclass, 'pg_attrdef'::regclass)
    """
    assert await empty.fetchval(used) == 0
    assert await empty.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'app'") == 4


class TestFailures:
    """A failed migration is reported in one line without secrets."""

    async def test_a_failed_connection_has_the_reason_of_the_store(self, database_url: str) -> None:
        """The reasons are the same as the store's."""
        parts = urlsplit(database_url)
        assert await failure("postgresql://u:secret@127.0.0.1:1/d") == "connection refused: database d at 127.0.0.1:1"
        unknown = await failure(urlunsplit(parts._replace(path="/no_such_database")))
        assert unknown.startswith("no such database (3D000): database no_such_database at ")

    async def test_a_role_without_create_is_told_what_to_do(
        self, database_url: str, database: Connection, role: str
    ) -> None:
        """The reason says whom to connect as."""
        await database.execute("DROP TABLE task_activity_log_alembic_version")
        await database.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")  # the default since PostgreSQL 15
        reason = await failure(as_role(database_url, role))
        assert reason.startswith(
            "permission denied for schema public (42501); connect as the role that owns the tables, or, if there are none yet,"
            " as one that may create tables here"
        )

    async def test_a_lock_that_is_held_too_long_is_a_timeout(self, database_url: str, database: Connection) -> None:
        """The reason says that another migration holds the lock."""
        await database.execute("SELECT pg_advisory_lock($1)", int.from_bytes(b"tal-migr"))
        with pytest.raises(Unavailable, match="timeout: another migration"):
            await asyncio.to_thread(migrations.migrate, database_url, command_timeout=3.0)


class TestGrants:
    """The worker's role needs the privileges that `grants` gives it, and gets no others."""

    async def test_the_role_can_do_the_workers_work(self, database_url: str, database: Connection, role: str) -> None:
        """It may write, merge, repeat, probe, trim and read the revision."""
        await database.execute(grants(role))
        store = Store(as_role(database_url, role))
        request = ask(version=1)
        wave = [request, ask(key=False)]
        assert outcomes(await store.apply(wave)) == ["inserted", "inserted"]
        assert outcomes(await store.apply(wave)) == ["duplicate", "updated"]
        assert outcomes(await store.apply([merge(request.record.id)])) == ["updated"]
        await store.probe()
        assert await store.trim(timedelta(0), 10) == 2
        await database.execute(
            "INSERT INTO task_activity_log_journal (answered_at, reply_id, outcome) VALUES (now(), gen_random_uuid(), '')"
        )
        assert await store.trim_journal(timedelta(0), 10) == 1
        assert await store.schema_version() == migrations.head()
        await store.close()

    @pytest.mark.parametrize(
        "statement",
        [
            "DELETE FROM task_activity_log",
            "TRUNCATE task_activity_log",
            "ALTER TABLE task_activity_log DISABLE TRIGGER USER",
            "DROP TABLE task_activity_log_inbox",
            "UPDATE task_activity_log_inbox SET processed_at = now()",
            "UPDATE task_activity_log_journal SET outcome = 'inserted'",
            "UPDATE task_activity_log_alembic_version SET version_num = ''",
        ],
    )
    async def test_the_role_can_do_nothing_else(
        self, database_url: str, database: Connection, role: str, statement: str
    ) -> None:
        """It may neither delete records nor change the schema."""
        await database.execute(grants(role))
        connection = await asyncpg.connect(as_role(database_url, role))
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
        await connection.close()

    async def test_missing_privileges_are_an_outage(self, database_url: str, database: Connection, role: str) -> None:
        """For the probe they are an outage; for a wave they are a failure, as one row could be at fault."""
        store = Store(as_role(database_url, role))
        with pytest.raises(Unavailable, match="not permitted"):
            await store.probe()
        with pytest.raises(Failed, match="42501") as caught:
            await store.apply([ask()])
        assert caught.value.lasting
        await database.execute(grants(role))
        assert outcomes(await store.apply([ask()])) == ["inserted"]
        await store.close()


async def test_nobody_has_code_executed_by_a_migration(empty_database_url: str, empty: Connection) -> None:
    """Everybody may create operators in the schema public, up to PostgreSQL 14. One that fits exactly comes before others."""
    await empty.execute("CREATE TABLE calls (name text)")
    for left, right in (
        ("name", "varchar"),
        ("varchar", "varchar"),
        ("varchar", "text"),
        ("oid", "varchar"),
        ("text", "varchar"),
    ):
        name = f"eq_{left}_{right}"
        await empty.execute(
            f"CREATE FUNCTION {name}({left}, {right}) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN"  # noqa: S608 - our names
            f" INSERT INTO public.calls VALUES ('{name}');"
            " RETURN $1::pg_catalog.text OPERATOR(pg_catalog.=) $2::pg_catalog.text; END$$"
        )
        for operator in ("=", "<>"):
            await empty.execute(f"CREATE OPERATOR {operator} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = {name})")
    await empty.execute(migrations.as_sql(None).partition("-- Running upgrade 0001")[0] + "COMMIT")
    assert await migrate(empty_database_url) == migrations.head()
    assert await migrate(empty_database_url) == migrations.head()
    await empty.execute("DROP TABLE task_activity_log_journal")
    await empty.execute("UPDATE task_activity_log_alembic_version SET version_num = '0001'")
    await empty.execute(migrations.as_sql("0001"))
    assert await empty.fetchval("SELECT version_num FROM task_activity_log_alembic_version") == migrations.head()
    assert await empty.fetchval("SELECT count(*) FROM calls") == 0


async def test_a_table_of_the_revision_that_is_a_strangers_is_not_written(
    empty_database_url: str, empty: Connection
) -> None:
    """What its triggers do would be done with the privileges of the role that migrates."""
    role = f"stranger_{secrets.token_hex(4)}"
    await empty.execute(f"""
        CREATE ROLE {role};
        CREATE TABLE task_activity_log_alembic_version (version_num varchar(32) PRIMARY KEY);
        ALTER TABLE task_activity_log_alembic_version OWNER TO {role}
    """)
    reason = await failure(empty_database_url)
    assert reason.startswith(f"the table task_activity_log_alembic_version belongs to the role {role}: connect as")
    await empty.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert await migrate(empty_database_url) == migrations.head()


async def test_what_is_left_of_dropped_tables_is_named(empty_database_url: str, empty: Connection) -> None:
    """Whoever drops the tables to begin again does not think of the function of their trigger."""
    await migrate(empty_database_url)
    tables = "task_activity_log, task_activity_log_inbox, task_activity_log_journal, task_activity_log_alembic_version"
    await empty.execute(f"DROP TABLE {tables}")
    reason = await failure(empty_database_url)
    assert reason.endswith("(DROP FUNCTION task_activity_log_modified())")
    await empty.execute("DROP FUNCTION task_activity_log_modified()")
    assert await migrate(empty_database_url) == migrations.head()


async def test_a_view_in_place_of_the_table_of_the_revision_is_named(
    empty_database_url: str, empty: Connection
) -> None:
    """Its owner may be the role that migrates, and nothing can be written to it."""
    await empty.execute("CREATE VIEW task_activity_log_alembic_version AS SELECT '0001' AS version_num")
    reason = await failure(empty_database_url)
    assert reason == "task_activity_log_alembic_version is not an ordinary table: rename it, or drop it"


async def test_an_indirect_member_of_the_owner_may_migrate(empty_database_url: str, empty: Connection) -> None:
    """As the owner itself: PostgreSQL lets it change the tables."""
    owner, team, person = (f"{name}_{secrets.token_hex(4)}" for name in ("owner", "team", "person"))
    await migrate(empty_database_url)
    await empty.execute(f"""
        CREATE ROLE {owner}; CREATE ROLE {team}; CREATE ROLE {person} LOGIN PASSWORD 'secret';
        GRANT {owner} TO {team}; GRANT {team} TO {person};
        ALTER TABLE task_activity_log_alembic_version OWNER TO {owner}
    """)
    try:
        assert await migrate(login(empty_database_url, person, "secret")) == migrations.head()
    finally:
        await empty.execute(f"DROP OWNED BY {owner}; DROP ROLE {owner}; DROP ROLE {team}; DROP ROLE {person}")
