"""The schema: Alembic upgrades it, or prints the upgrade as SQL for a DBA. No alembic.ini is needed.

There are no downgrades, because a downgrade would drop records.

env        Alembic's environment
versions/  the revisions
"""

import asyncio
import io
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from task_activity_log.postgresql.connecting import Connector
from task_activity_log.problem import Unavailable

VERSION_TABLE = "task_activity_log_alembic_version"
"""Where Alembic records the revision. Another application in the same database may use Alembic's default name."""

_EXISTS = "42P07"
_HINTS = {
    "42501": "connect as the role that owns the tables, or, if there are none yet, as one that may create tables here (since"
    " PostgreSQL 15 only the database's owner may)",
    "25006": "connect to the primary; or default_transaction_read_only is set for the database or the role",
    "3F000": "the search_path, which may be set for the database or the role, names no schema that exists",
    "57014": "statement_timeout, which may be set for the database or the role, is too short",
    _EXISTS: f"the table {VERSION_TABLE}, which says how far the schema was migrated, is missing or has no row. If these"
    " migrations made the tables, restore it as `check` says; otherwise rename them or drop them",
}

_UNNAMED = {"prepared_statement_cache_size": 0, "prepared_statement_name_func": lambda: ""}
"""Prepared statements without names: behind pgbouncer the next transaction may use another server connection."""
_MISSING = """\
SELECT name FROM pg_catalog.unnest('{task_activity_log,task_activity_log_inbox}'::pg_catalog.text[]) AS needed (name)
WHERE pg_catalog.to_regclass(name) IS NULL"""
"""The tables without which no worker can store anything."""
_ONE_IN_THIS_PROCESS = threading.Lock()
"""Alembic keeps its state in a module, so one process can migrate only one database at a time."""


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
    found: list[str | None] = []

    async def upgrade() -> None:
        # A connection string means the same here as for the worker, because this opens the connection.
        opener = partial(connector.connect, command_timeout=command_timeout)
        engine = create_async_engine(
            "postgresql+asyncpg://", poolclass=NullPool, connect_args={"async_creator_fn": opener, **_UNNAMED}
        )
        try:
            async with engine.begin() as connection:
                await connection.run_sync(_upgrade, found)
        finally:
            await engine.dispose()

    try:
        with _ONE_IN_THIS_PROCESS:
            asyncio.run(upgrade())
    except _Unexpected as unexpected:
        failure = str(unexpected)
    except CommandError:
        failure = "the schema has a revision that this release does not know: it was migrated by a newer one"
    except TimeoutError:
        failure = "timeout: another migration, or a transaction with a lock on the tables, did not end"
    except OSError:
        failure = "connection lost"
    except DBAPIError as error:
        failure = _explain(error, next(iter(found), None))
    else:
        on_found(found[0])
        return head()
    raise Unavailable(failure)


def as_sql(since: str | None = None) -> str:
    """The SQL that `migrate` executes, for a DBA to run with `psql -f`.

    It is for a database without our schema, or with the revision `since`, which must be one of `known()`.
    """
    text = io.StringIO()
    command.upgrade(_config(output_buffer=text), f"{since}:head" if since else "head", sql=True)
    return text.getvalue()


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


def _upgrade(connection: Connection, found: list[str | None]) -> None:
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    if len(heads := context.get_current_heads()) > 1:
        raise _Unexpected(
            f"the table {VERSION_TABLE} has the revisions {', '.join(sorted(heads))}, and should have one row: delete those"
            " that are not the newest"
        )
    found.append(context.get_current_revision())
    command.upgrade(_config(attributes={"connection": connection}), "head")
    if missing := connection.exec_driver_sql(_MISSING).scalars().all():
        raise _Unexpected(
            f"the schema is at revision {found[0]}, but there is no table {' and no table '.join(missing)} in the search"
            " path: restore what was dropped from a backup, or create it as `task-activity-log migrate --sql` prints it"
        )


def _config(**options: Any) -> Config:
    config = Config(**options)
    config.set_main_option("script_location", "task_activity_log.postgresql:migrations")
    return config


def _explain(error: DBAPIError, revision: str | None) -> str:
    """PostgreSQL's message in one line. It cannot quote records, because migrations do not write any.

    `revision`: the one that was found; None if none was.
    """
    original = error.orig.__cause__ if error.orig else None
    sqlstate = getattr(original, "sqlstate", None)
    if original is None or sqlstate is None:
        return "connection lost"
    said = " ".join(str(original.args[0]).split())
    hint = _HINTS.get(sqlstate)
    if revision and sqlstate == _EXISTS:
        hint = (
            f"the table {VERSION_TABLE} has the revision {revision}, and what a later one makes exists already: correct the row,"
            " or rename what is not ours"
        )
    return f"{said} ({sqlstate})" + (f"; {hint}" if hint else "")
