"""For tests of the store: requests, outcomes, privileges, and what the database is doing."""

import asyncio
from collections.abc import Sequence
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg

from task_activity_log.message import Delivery
from task_activity_log.pipeline.request import Request, UpdateMode
from task_activity_log.postgresql.statements import GRANTS
from task_activity_log.record import Applied, TaskActivityLog
from tests.fakes import delivered

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
OLDER = "DROP TABLE task_activity_log_journal; UPDATE task_activity_log_alembic_version SET version_num = '0001'"
"""Makes the schema of a release without the journal."""


OPEN_SCHEMA = "everybody may create objects in the schema public, which is in the search path"
"""What `check` says of each database of PostgreSQL 14, where this is the default. It is tested in test_own_tables."""


def ask(
    identifier: UUID | None = None,
    *,
    key: bool = True,
    version: int | None = None,
    mode: UpdateMode = UpdateMode.REPLACE,
    **fields: Any,
) -> Request[Delivery]:
    """A request with its own key, or without one. The fields are not validated."""
    return Request(
        delivery=delivered(b""),
        record=TaskActivityLog.model_construct(id=identifier or uuid4(), **fields),
        media_type="application/json",
        mode=mode,
        version=version,
        key=uuid4() if key else None,
    )


def merge(identifier: UUID | None = None, **fields: Any) -> Request[Delivery]:
    """A request that merges."""
    return ask(identifier, mode=UpdateMode.MERGE, **fields)


def outcomes(applied: Sequence[Applied]) -> list[str]:
    """The outcomes alone."""
    return [str(one.outcome) for one in applied]


def subjects(applied: Sequence[Applied]) -> list[str | None]:
    """The subjects of the records."""
    return [one.record.subject if one.record else "no record" for one in applied]


def grants(role: str) -> str:
    """The statements of grants.sql for this role, as psql fills them in."""
    return GRANTS.read_text(encoding="utf-8").replace(':"role"', f'"{role}"')


async def until_blocked(database: Connection, sessions: int = 1, *, statement: str = "") -> None:
    """Wait until this number of sessions, with this text in their statement, waits for a lock.

    The database has no event for that.
    """
    query = """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock' AND strpos(query, $1) > 0
    """
    async with asyncio.timeout(60):
        while await database.fetchval(query, statement) != sessions:
            await asyncio.sleep(0.005)
            await database.execute("SELECT pg_stat_clear_snapshot()")  # within a transaction the statistics are cached
