"""The schema: brought up to date, or printed as SQL for a DBA, by Alembic. Needs no alembic.ini.

Revisions are in `versions/`. They only ever go forward: what takes one back would drop records.
"""

from __future__ import annotations

import asyncio
import io
import threading
from importlib import resources
from typing import Any, cast

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from task_activity_log.postgresql.session import connect
from task_activity_log.problem import Unavailable
from task_activity_log.tls import Tls

VERSION_TABLE = "task_activity_log_alembic_version"
"""Where Alembic keeps the revision. Not its own default, which another application in the database may use."""

_HINTS = {
    "42501": "connect as a role that may create tables here (PostgreSQL 15 and later let only the database's owner)",
    "42P07": "these migrations did not make it: rename it or drop it first",
}


_ONE_IN_THIS_PROCESS = threading.Lock()
"""Alembic keeps what it works on in a module."""


def migrate(dsn: str, *, connect_timeout: float = 10.0, command_timeout: float = 600.0, tls: Tls | None = None) -> str:
    """Bring the schema up to date and return its revision. All or nothing; safe to run again, and by several at once.

    It runs an event loop of its own: call it where none runs.

    Args:
        dsn: the database, as a role that may create tables.
        connect_timeout: seconds that each host may take to let us in.
        command_timeout: seconds that a statement may take; waiting for another migration counts.
        tls: files for TLS, instead of what the DSN says.

    Raises:
        Unavailable: it could not be done; the reason is one line for people.
    """

    async def upgrade() -> None:
        engine = _engine(dsn, connect_timeout, command_timeout, tls)
        try:
            async with engine.begin() as connection:
                await connection.run_sync(_upgrade)
        finally:
            await engine.dispose()

    try:
        with _ONE_IN_THIS_PROCESS:
            asyncio.run(upgrade())
    except CommandError:
        failure = "the schema is at a revision that this release does not know: it was migrated by a newer one"
    except TimeoutError:
        failure = "timeout: another migration, or somebody who holds a lock on the tables, did not end"
    except OSError:
        failure = "connection lost"
    except DBAPIError as error:
        failure = _explain(error)
    else:
        return head()
    raise Unavailable(failure)


def as_sql() -> str:
    """What `migrate` does to a database without our schema, for a DBA to run with `psql -f`."""
    text = io.StringIO()
    command.upgrade(_config(output_buffer=text), "head", sql=True)
    return text.getvalue()


def grants(role: str) -> str:
    """What the role that runs workers needs, as SQL to be run by the role that migrated."""
    sql = resources.files("task_activity_log.postgresql").joinpath("sql", "grants.sql").read_text(encoding="utf-8")
    quoted = role.replace('"', '""')
    return sql.replace(':"role"', f'"{quoted}"')


def head() -> str:
    """The revision that this release brings a schema to."""
    return cast("str", ScriptDirectory.from_config(_config()).get_current_head())


def known() -> set[str]:
    """All revisions that this release knows."""
    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def _upgrade(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _config(output_buffer: io.StringIO | None = None) -> Config:
    config = Config(output_buffer=output_buffer)
    config.set_main_option("script_location", "task_activity_log.postgresql:migrations")
    return config


def _engine(dsn: str, connect_timeout: float, command_timeout: float, tls: Tls | None) -> AsyncEngine:
    """An engine whose connections come from `connect`, so that one DSN means one thing.

    Nothing is prepared under a name: behind pgbouncer in transaction mode the next transaction is another server's.
    """

    def creator() -> Any:
        return engine.dialect.loaded_dbapi.connect(
            async_creator_fn=lambda: connect(
                dsn, connect_timeout=connect_timeout, command_timeout=command_timeout, statement_cache_size=0, tls=tls
            ),
            prepared_statement_cache_size=0,
            prepared_statement_name_func=lambda: "",
        )

    engine = create_async_engine("postgresql+asyncpg://", creator=creator, poolclass=NullPool)
    return engine


def _explain(error: DBAPIError) -> str:
    """One line on what PostgreSQL said. It quotes no records: migrations define, they do not write."""
    original = error.orig.__cause__ if error.orig else None
    sqlstate = getattr(original, "sqlstate", None)
    if original is None or sqlstate is None:
        return "connection lost"
    said = " ".join(str(original.args[0]).split())
    return f"{said} ({sqlstate})" + (f"; {_HINTS[sqlstate]}" if sqlstate in _HINTS else "")
