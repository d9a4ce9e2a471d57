"""Makes the database record each write of a row, and reads the records back for the account."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from tests.chaos.messages import REFUSED

_INSTALL = """
    CREATE TABLE chaos_audit (
        n bigserial PRIMARY KEY, id uuid NOT NULL, modified_dateutc timestamptz NOT NULL, "row" jsonb NOT NULL
    );
    CREATE FUNCTION chaos_audit() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO chaos_audit (id, modified_dateutc, "row") VALUES (NEW.id, NEW.modified_dateutc, to_jsonb(NEW));
        RETURN NULL;
    END
    $$;
    CREATE TRIGGER chaos_audit AFTER INSERT OR UPDATE ON task_activity_log
        FOR EACH ROW EXECUTE FUNCTION chaos_audit();
    ALTER TABLE task_activity_log ADD CONSTRAINT chaos_refuses CHECK (subject NOT LIKE 'REFUSED%');
"""


@dataclass(frozen=True, slots=True)
class Write:
    """One write of one row. The row was locked while the write was numbered, so the numbers are in the order applied."""

    record: UUID
    modified: datetime
    row: Mapping[str, object]

    @property
    def subject(self) -> str | None:
        """The subject, which identifies the message that caused the write."""
        return None if self.row["subject"] is None else str(self.row["subject"])


async def install(dsn: str) -> None:
    """Add the audit trigger, and a constraint that refuses some subjects, to a migrated database."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(_INSTALL.replace("REFUSED", REFUSED))
    finally:
        await connection.close()


async def read(dsn: str) -> tuple[list[Write], dict[UUID, Mapping[str, object]]]:
    """All writes in the order applied, and the current rows by id."""
    connection = await asyncpg.connect(dsn)
    try:
        writes = [
            Write(row["id"], row["modified_dateutc"], json.loads(row["row"]))
            for row in await connection.fetch('SELECT id, modified_dateutc, "row" FROM chaos_audit ORDER BY n')
        ]
        rows = {
            row["id"]: json.loads(row["row"])
            for row in await connection.fetch('SELECT id, to_jsonb(t) AS "row" FROM task_activity_log t')
        }
    finally:
        await connection.close()
    return writes, rows
