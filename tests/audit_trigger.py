"""An audit trigger: the database records every write of a row, so that a test can prove in which order they came."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from uuid import UUID

from tests.asking import Connection

_FUNCTION = """
    CREATE OR REPLACE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO audit (id, modified_dateutc, "row") VALUES (NEW.id, NEW.modified_dateutc, to_jsonb(NEW));
        IF {seconds} > 0 THEN PERFORM pg_sleep({seconds}); END IF;
        RETURN NULL;
    END $$;
"""
_INSTALL = f"""
    CREATE TABLE audit (
        number bigserial PRIMARY KEY, id uuid NOT NULL, modified_dateutc timestamptz NOT NULL, "row" jsonb NOT NULL
    );
    {_FUNCTION}
    CREATE TRIGGER audit AFTER INSERT OR UPDATE ON task_activity_log FOR EACH ROW EXECUTE FUNCTION audit();
    GRANT INSERT ON audit TO PUBLIC;
    GRANT USAGE ON audit_number_seq TO PUBLIC;
"""


@dataclass(frozen=True, slots=True)
class Write:
    """One write of one row. The row was locked when the write was numbered: the numbers of one row are in its order."""

    number: int
    record: UUID
    modified: datetime
    row: Mapping[str, object]
    """The whole row as it was written, as JSON has it."""

    @property
    def subject(self) -> str | None:
        """What tests tell writes apart by."""
        return None if self.row["subject"] is None else str(self.row["subject"])


async def install(database: Connection, *, seconds_per_write: float = 0.0) -> None:
    """Add the audit to a migrated database.

    Args:
        database: a connection of the owner of the tables.
        seconds_per_write: how long each write takes, so that a backlog lasts however fast the machine is.
    """
    await database.execute(_INSTALL.format(seconds=seconds_per_write))


async def end_delay(database: Connection) -> None:
    """From now on each write takes no longer than it needs."""
    await database.execute(_FUNCTION.format(seconds=0))


async def count(database: Connection) -> int:
    """How many writes there have been."""
    return int(await database.fetchval("SELECT count(*) FROM audit"))


async def read(database: Connection) -> list[Write]:
    """All writes in order."""
    rows = await database.fetch('SELECT number, id, modified_dateutc, "row" FROM audit ORDER BY number')
    return [Write(row["number"], row["id"], row["modified_dateutc"], json.loads(row["row"])) for row in rows]


def subjects(writes: Iterable[Write], record: UUID) -> list[str | None]:
    """The subjects that one record has had, in order."""
    return [write.subject for write in writes if write.record == record]


def disorder(writes: Iterable[Write], sent: Mapping[UUID, int], repeatable: Collection[UUID] = ()) -> list[str]:
    """What is wrong with the order of the writes, a line for each record; empty when nothing is.

    The messages of a record are numbered from 0 on in their `subject`. Each must have been written once and in order.
    A record in `repeatable` has messages without message_id: when an acknowledgement is lost, these come again and are
    applied again, in order: a step back is right if all that follows it is there once more.

    Args:
        writes: in order.
        sent: how many messages each record was sent.
        repeatable: the records whose messages have no message_id.
    """
    numbers: dict[UUID, list[int]] = {record: [] for record in sent}
    for write in writes:
        numbers[write.record].append(int(write.subject or -1))
    lines = []
    for record, found in numbers.items():
        problem = _wrong(found, sent[record], repeatable=record in repeatable)
        if problem is not None:
            lines.append(f"{record}: {problem}")
    return lines


def _wrong(found: Sequence[int], sent: int, *, repeatable: bool) -> str | None:
    """What is wrong with the numbers that were written into one row."""
    if not found:
        return "nothing was written"
    back = [(before, after) for before, after in pairwise(found) if after <= before]
    gaps = [(before, after) for before, after in pairwise([-1, *found]) if after > before + 1]
    complaints = []
    if back and not repeatable:
        complaints.append(f"went back {len(back)} times, first from {back[0][0]} to {back[0][1]}")
    if gaps:
        complaints.append(f"jumped {len(gaps)} times, first from {gaps[0][0]} to {gaps[0][1]}")
    if found[-1] != sent - 1:
        complaints.append(f"ends at {found[-1]} instead of {sent - 1}")
    return "; ".join(complaints) or None
