"""Makes the database record each write of a row and refuse some, and reads the records back for the account."""

from __future__ import annotations

import json
from collections.abc import Mapping
from uuid import UUID

import asyncpg

from tests import audit_trigger
from tests.audit_trigger import Write
from tests.chaos.messages import REFUSED

_REFUSES = f"ALTER TABLE task_activity_log ADD CONSTRAINT chaos_refuses CHECK (subject NOT LIKE '{REFUSED}%')"
_REFERS = "CREATE TABLE chaos_refers (id uuid REFERENCES task_activity_log (id))"
_SLOW = """
    CREATE TABLE chaos_slow (id uuid PRIMARY KEY, seconds float8 NOT NULL, until timestamptz NOT NULL);
    CREATE FUNCTION chaos_slow() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_sleep(seconds) FROM chaos_slow WHERE id = NEW.id AND until > clock_timestamp();
        RETURN NEW;
    END $$;
    CREATE TRIGGER a_chaos_slow BEFORE INSERT OR UPDATE ON task_activity_log FOR EACH ROW EXECUTE FUNCTION chaos_slow();
"""
"""A trigger that takes its time for some rows, for a while. Its name is the first, so that modified_dateutc is set after it."""


async def install(dsn: str) -> None:
    """Add to a migrated database what the faults and the account need.

    That is the audit trigger, a constraint that refuses some subjects, a table that refers to it, and a trigger that makes
    some rows slow.
    """
    connection = await asyncpg.connect(dsn)
    try:
        await audit_trigger.install(connection)
        await connection.execute(_REFUSES)
        await connection.execute(_REFERS)
        await connection.execute(_SLOW)
    finally:
        await connection.close()


async def read(dsn: str) -> tuple[list[Write], dict[UUID, Mapping[str, object]]]:
    """All writes in the order applied, and the current rows by id."""
    connection = await asyncpg.connect(dsn)
    try:
        writes = await audit_trigger.read(connection)
        rows = {
            row["id"]: json.loads(row["row"])
            for row in await connection.fetch('SELECT id, to_jsonb(t) AS "row" FROM task_activity_log t')
        }
    finally:
        await connection.close()
    return writes, rows
