"""The schema: Alembic upgrades it, or prints the upgrade as SQL for a DBA. No alembic.ini is needed.

There are no downgrades, because a downgrade would drop records.

env        Alembic's environment
versions/  the revisions
"""

import asyncio
import io
import threading
from collections.abc import Callable
from typing import Any, cast

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from task_activity_log.postgresql.connecting import Connector
from task_activity_log.postgresql.connection import ServerConnection
from task_activity_log.postgresql.messages import closing
from task_activity_log.postgresql.statements import sql
from task_activity_log.problem import Unavailable

VERSION_TABLE = "task_activity_log_alembic_version"
"""Where Alembic records the revision. Another application in the same database may use Alembic's default name."""

_EXISTS = "42P07"
_CLOSE_SECONDS = 5.0
_HINTS = {
    "42501": "connect as the role that owns the tables, or, if there are none yet, as one that may create tables here (since"
    " PostgreSQL 15 only the database's owner may)",
    "25006": "connect to the primary; or default_transaction_read_only is set for the database or the role",
    "3F000": "the search_path, which may be set for the database or the role, names no schema that exists",
    "57014": "statement_timeout, which may be set for the database or the role, is too short",
    _EXISTS: f"the table {VERSION_TABLE}, which says how far the schema was migrated, is missing or has no row. If these"
    " migrations made the tables, restore it as `check` says; otherwise rename them, or drop them and the function"
    " task_activity_log_modified",
    "42723": "it is left of tables that were dropped: drop it too, or rename it (DROP FUNCTION task_activity_log_modified())",
}

ONE_AT_A_TIME = "SELECT pg_catalog.pg_advisory_xact_lock(8386102923505526642)"
"""A migration that has waited for it finds that nothing is left to do. It ends with the transaction, also behind a pooler."""
_REVISION_TABLE, _REVISIONS = sql("revision_table"), sql("schema_version")
_MISSING = """\
SELECT name FROM pg_catalog.unnest('{task_activity_log,task_activity_log_inbox}'::pg_catalog.text[]) AS needed (name)
WHERE pg_catalog.to_regclass(name) IS NULL"""
"""The tables without which no worker can store anything."""
_ONE_IN_THIS_PROCESS = threading.Lock()
"""Alembic keeps its state in a module."""


class _Unexpected(Exception):
    """The schema is not what its revision says, or has several; the text says what to do."""


def migrate(
    database: str | Connector,
    *,
    command_timeout: float = 600.0,
    on_found: Callable[[str | None], None] = lambda _: None,
) -> str:
    """Upgrade the schema and return its revision. It succeeds or fails as a whole, and is safe to repeat or run in parallel.

    It runs its own event loop, so it cannot be called from a running one.

    Args:
        database: how to connect, or a connection string as in `libpq`; with a role that may create tables.
        command_timeout: seconds allowed for a statement, including the time it waits for another migration.
        on_found: called with the revision that the schema has before; None if there is none.

    Raises:
        Unavailable: the schema was not upgraded. The reason is one line for people.
    """
    connector = Connector(database) if isinstance(database, str) else database
    found: list[str] = []

    async def upgrade() -> None:
        connection = await connector.connect(command_timeout=command_timeout, statement_cache_size=0)
        try:
            async with connection.transaction():
                await _upgrade(connection, found)
        finally:
            await connection.close(timeout=_CLOSE_SECONDS)

    try:
        asyncio.run(upgrade())
    except _Unexpected as unexpected:
        failure = str(unexpected)
    except TimeoutError:
        failure = "timeout: another migration, or a transaction with a lock on the tables, did not end"
    except (OSError, asyncpg.InterfaceError):
        failure = "connection lost"
    except asyncpg.PostgresError as error:
        failure = _explain(error, next(iter(found), None))
    else:
        on_found(next(iter(found), None))
        return head()
    raise Unavailable(failure)


def as_sql(since: str | None = None) -> str:
    """The SQL that `migrate` executes, for a DBA to run with `psql -f`.

    It is for a database without our schema, or with the revision `since`, which must be one of `known()`. All operators have
    their schema: otherwise whoever may create one in the search path could have it called as the owner of the tables.
    """
    text = io.StringIO()
    with _ONE_IN_THIS_PROCESS:
        command.upgrade(_config(output_buffer=text), f"{since}:head" if since else "head", sql=True)
    return text.getvalue().replace(".version_num = '", ".version_num OPERATOR(pg_catalog.=) '")


def head() -> str:
    """The newest revision in this release."""
    return cast("str", ScriptDirectory.from_config(_config()).get_current_head())


def restore(revision: str) -> str:
    """The SQL that restores the table of the revision, if it was lost."""
    create = f"CREATE TABLE {VERSION_TABLE} (version_num varchar(32) PRIMARY KEY)"
    return f"{create}; INSERT INTO {VERSION_TABLE} VALUES ('{revision}')"  # noqa: S608 - our own names


def known() -> set[str]:
    """All revisions in this release."""
    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


async def _upgrade(connection: ServerConnection, found: list[str]) -> None:
    """Find the revision, which is put into `found` if there is one, and execute what is missing, in one transaction.

    Alembic only writes the SQL. It would ask the catalog with operators that have no schema.
    """
    await connection.execute(ONE_AT_A_TIME)
    found += await _revisions(connection)
    if len(found) > 1:
        raise _Unexpected(
            f"the table {VERSION_TABLE} has the revisions {', '.join(sorted(found))}, and should have one row: delete those"
            " that are not the newest"
        )
    revision = next(iter(found), None)
    if revision is not None and revision not in known():
        raise _Unexpected("the schema has a revision that this release does not know: it was migrated by a newer one")
    if revision != head():
        await connection.execute(as_sql(revision).removeprefix("BEGIN;\n").removesuffix("COMMIT;\n\n"))
    if missing := [row["name"] for row in await connection.fetch(_MISSING)]:
        raise _Unexpected(
            f"the schema is at revision {revision}, but there is no table {' and no table '.join(missing)} in the search"
            " path: restore what was dropped from a backup, or create it as `task-activity-log migrate --sql` prints it"
        )


async def _revisions(connection: ServerConnection) -> list[str]:
    table = await connection.fetchrow(_REVISION_TABLE)
    if table is None:
        return []
    if not table["is_table"]:
        raise _Unexpected(f"{VERSION_TABLE} is not an ordinary table: rename it, or drop it")
    if not table["is_ours"]:
        raise _Unexpected(
            f"the table {VERSION_TABLE} belongs to the role {table['owner']}: connect as the role that owns the tables, or drop"
            " it if it is a stranger's, whose triggers would be executed with your privileges"
        )
    return [str(row["version_num"] or "") for row in await connection.fetch(_REVISIONS)]


def _config(**options: Any) -> Config:
    config = Config(**options)
    config.set_main_option("script_location", "task_activity_log.postgresql:migrations")
    return config


def _explain(error: asyncpg.PostgresError, revision: str | None) -> str:
    """PostgreSQL's message in one line. It cannot quote records, because migrations do not write any.

    `revision`: the one that was found; None if none was.
    """
    error = closing(error) or error
    if isinstance(error, asyncpg.ConnectionDoesNotExistError):  # the driver's own
        return "connection lost"
    said, sqlstate = " ".join(str(error.args[0]).split()), error.sqlstate or ""
    hint = _HINTS.get(sqlstate)
    if revision and sqlstate == _EXISTS:
        hint = (
            f"the table {VERSION_TABLE} has the revision {revision}, and what a later one makes exists already: correct the row,"
            " or rename what is not ours"
        )
    return f"{said} ({sqlstate})" + (f"; {hint}" if hint else "")
