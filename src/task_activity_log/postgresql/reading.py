"""Reading records: the statement, what a row of it means, and why records cannot be read."""

from collections.abc import Awaitable
from contextlib import suppress

from task_activity_log.postgresql import table, writing
from task_activity_log.postgresql.faults import Fault, fault
from task_activity_log.postgresql.messages import OF_MESSAGES
from task_activity_log.postgresql.session import Row, Session
from task_activity_log.postgresql.statements import elsewhere, sql
from task_activity_log.problem import Failed, Refused, TimedOut, Unavailable
from task_activity_log.record import Applied, Outcome, StoredTaskActivityLog, TaskActivityLog, TooLong, Unread

_MISSING = "CASE WHEN found.records IS NULL THEN 'task_activity_log' WHEN found.inbox IS NULL THEN 'task_activity_log_inbox' END"
TABLE = (
    sql("table").replace("{elsewhere}", elsewhere(_MISSING)).replace("FIELDS", ",".join((*OF_MESSAGES, "request_key")))
)
READ = (
    sql("read")
    .replace(
        "{too_long}",
        "length OPERATOR(pg_catalog.>) $3::pg_catalog.int8 OR "
        + writing.TOO_LONG.format(most_bytes="$2::pg_catalog.int8"),
    )
    .replace("{length}", writing.LENGTH)
    .replace("{uuids}", writing.TEXT_UUIDS)
)
_TOO_LONG = "too long"
"""What read.sql says of a record that is too long for any reply."""


async def explained(failed: Failed, session: Session) -> Unavailable:
    """Why records cannot be read, for a person: what is wrong with the table by name, if the schema does not fit."""
    if fault(failed.sqlstate) is not Fault.SCHEMA:
        return failed
    misfit = None
    with suppress(Unavailable, Refused):
        [row] = await session.ask(TABLE)
        misfit = next(table.misfits(row), None)
    return Unavailable(misfit or failed.label, f"{failed.detail}; task-activity-log check says what to do")


def answer(outcome: Outcome, row: Row, asked: TaskActivityLog | None = None) -> Applied:
    """The outcome, with the record in a row."""
    if row["outcome"] == Outcome.REJECTED:
        return Applied(Outcome.REJECTED, None)
    if row["outcome"] == _TOO_LONG:
        return TooLong(outcome, None)
    if row["modified_dateutc"] is None:  # the column is NOT NULL: read.sql has left out the values
        return Unread(outcome, None)
    return Applied(outcome, StoredTaskActivityLog.from_row(row, asked))


async def confirmed(confirming: Awaitable[object]) -> None:
    """Wait for sql/confirm.sql.

    Raises:
        Unavailable: it takes too long, and a standby may lack what was committed.
    """
    try:
        await confirming
    except TimedOut as timeout:
        outage = Unavailable("commit not confirmed", timeout.detail)
    else:
        return
    raise outage
