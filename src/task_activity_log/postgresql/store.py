"""PostgreSQL: takes waves of requests, returns outcomes and stored records. The statements are in `sql/`."""

import time
from asyncio import gather
from collections.abc import Awaitable, Sequence
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from task_activity_log.pipeline.ports import OWN_ROWS_SECONDS, PATIENT, Patience
from task_activity_log.pipeline.request import Request, UpdateMode
from task_activity_log.postgresql import table, writing
from task_activity_log.postgresql.connecting import Connector
from task_activity_log.postgresql.connection import ServerConnection
from task_activity_log.postgresql.copies import passes_otherwise
from task_activity_log.postgresql.faults import OF_TABLES, Fault, fault, unanswered
from task_activity_log.postgresql.marks import Marks
from task_activity_log.postgresql.messages import NOT_PERMITTED
from task_activity_log.postgresql.reading import READ, TABLE, answer, confirmed, explained
from task_activity_log.postgresql.rehearsals import REHEARSE_SECONDS, Rehearsals
from task_activity_log.postgresql.session import Row, Session
from task_activity_log.postgresql.statements import elsewhere, sql
from task_activity_log.postgresql.trimming import Trimming
from task_activity_log.postgresql.watch import Watch
from task_activity_log.problem import Failed, NotMigrated, Refused, TimedOut, Unavailable
from task_activity_log.record import (
    FIELDS,
    STORED_FIELDS,
    UNKNOWN_INSTANT,
    Applied,
    Outcome,
    StoredTaskActivityLog,
    TaskActivityLog,
)

_ANY, CONFIRM = sql("any"), sql("confirm")
_MODIFIED, _HIDES_ROWS = sql("modified"), sql("hides_rows")
_LOCKED = sql("locked")
_SCHEMA_VERSION = sql("schema_version")
_CHECK = (
    sql("check")
    .replace("{elsewhere}", elsewhere("CASE WHEN journal IS NULL THEN 'task_activity_log_journal' END"))
    .replace("{written}", ", ".join(f"'{column}'" for column in FIELDS if column != "id"))
    .replace("{read}", ", ".join(f"'{column}'" for column in STORED_FIELDS))
)

_CONFIRM_SECONDS = 5.0
"""How long a commit of next to nothing may take before it is an outage: much less than a statement, so that it is seen soon."""

_IDS_AT_A_TIME = 5_000
_OUTCOMES = {str(outcome): outcome for outcome in Outcome}


class Store:
    """The tables task_activity_log and task_activity_log_inbox of one database."""

    def __init__(
        self,
        database: str | Connector,
        *,
        command_timeout: float = 30.0,
        statement_cache_size: int = 100,
        read_bytes: int = 8 * 2**20,
        record_bytes: int = 16 * 2**20,
    ) -> None:
        """Prepare a store without connecting.

        Args:
            database: how to connect, or a connection string as in `libpq`.
            command_timeout: seconds allowed for a statement.
            statement_cache_size: number of prepared statements kept. Use 0 behind pgbouncer in transaction mode; each
                statement then takes one more round trip.
            read_bytes: how much text is read at a time. The records of a wave that are beyond it are left unread.
            record_bytes: how much text a single record may have. A longer one is never read.
        """
        connector = Connector(database) if isinstance(database, str) else database

        def connection() -> Awaitable[ServerConnection]:
            return connector.connect(command_timeout=command_timeout, statement_cache_size=statement_cache_size)

        self._command_timeout = command_timeout
        self._read_bytes, self._record_bytes = read_bytes, record_bytes
        confirm_seconds = min(_CONFIRM_SECONDS, command_timeout)
        self.watch = Watch(lambda statement: self._maintain(self._maintenance, statement))
        session = partial(Session, connection, CONFIRM, confirm_seconds, lambda: self.watch.ours)
        self._writer, self._maintenance = session(), session()
        marks = Marks(partial(self._maintain, self._writer))
        self.marked, self.mark, self.unmark = marks.marked, marks.mark, marks.unmark
        trimming = Trimming(partial(self._maintain, self._maintenance))
        self.trim, self.trim_journal, self.inbox_age = trimming.trim, trimming.trim_journal, trimming.inbox_age
        rehearsals = Rehearsals(self._writer, self._maintenance, self._statement)
        self.keeps_versions, self.try_mark = rehearsals.keeps_versions, rehearsals.try_mark
        self.try_journal, self.try_trim = rehearsals.try_journal, rehearsals.try_trim
        # What kind of table it is, for the statements. `look` sets it; None: not known yet.
        self._kinds: dict[str, bool] | None = None

    @property
    def connected(self) -> bool:
        """Whether the connection for writing is open."""
        return self._writer.connected

    async def open(self) -> None:
        """Connect.

        Raises:
            Unavailable: the database does not accept the connection.
        """
        await self._writer.open()

    async def survives(self) -> bool:
        """Whether the connection for writing is open and answers. It is not opened again."""
        return await self._writer.survives()

    async def close(self) -> None:
        """Disconnect. Cancels a running statement; takes at most five seconds if the server does not answer.

        The next call connects again.
        """
        await gather(self._writer.close(), self._maintenance.close())

    async def apply(self, wave: Sequence[Request[Any]], patience: Patience = PATIENT) -> list[Applied]:
        """Store a wave in one transaction, and return the outcome of each request, in the wave's order.

        A wave contains each id once and has one update mode (see `waves`). It then contains each request key once as
        well, because the key depends on the body, which has the id. If this returns, the wave is committed. If it
        raises, the wave is not committed, or it is not known because the connection was lost; the wave can be sent
        again.

        Each outcome has the record as it is in the database, or is `Unread` or `TooLong`. The record is None if the row of a
        duplicate or stale request was deleted since, or (outcome `rejected`) if other programs have stored values in the row
        that Python cannot represent.

        Raises:
            Refused: the database refuses a value in the wave. Nothing of the wave is stored.
            Failed: the database or a row is the cause; `TimedOut` if it took too long. A smaller wave may pass.
            Unavailable: the database cannot be used.
        """
        if not wave:
            return []
        rows = await self._write(wave, patience)
        written = {row["id"].int: row for row in rows}  # a number is compared faster than a UUID
        applied, unwritten = list[Applied](), list[int]()
        for index, request in enumerate(wave):
            row = written.get(request.record.id.int)
            outcome = Outcome.DUPLICATE if row is None else _OUTCOMES[row["outcome"]]
            if row is None or outcome is Outcome.STALE:
                unwritten.append(index)
                applied.append(Applied(outcome, None))
            else:
                applied.append(answer(outcome, row, request.record))
        if unwritten:
            current = await self._current([wave[index].record.id for index in unwritten], confirm=not written)
            for index in unwritten:
                if (row := current.get(wave[index].record.id)) is not None:
                    applied[index] = answer(applied[index].outcome, row)
        return applied

    async def _write(self, wave: Sequence[Request[Any]], patience: Patience) -> list[Row]:
        mode, seconds = wave[0].mode, patience.seconds
        if self.watch.doubtful:
            await self.probe()
        if self._kinds is None:
            await self.look()
        arguments = writing.arguments(wave, mode, patience.lock_seconds)
        end_after = None if seconds is None or seconds >= self._command_timeout else seconds

        def write() -> Awaitable[list[Row]]:
            return self._writer.ask(self._statement(mode), *arguments, end_after=end_after, restore=self.watch.has_code)

        try:
            if seconds is not None and not self._writer.connected:
                # Preparing the statement takes longer than a row, and it must not look as if the row did.
                await self._maintain(self._writer, self._statement(mode), *writing.nothing(mode))
            return await write()
        except Failed as failed:
            if fault(failed.sqlstate) is Fault.SCHEMA:
                self._kinds = None  # the table may have become a view, or a partitioned one
            raise
        except Refused as refused:
            if len(wave) > 1 or refused.sqlstate not in OF_TABLES or not await self.watch.has_changed():
                raise
            return await write()

    async def _current(self, ids: Sequence[UUID], *, confirm: bool) -> dict[UUID, Row]:
        """The records as they are now.

        With `confirm` nothing was written just now: everything was written before, perhaps by a statement whose commit was
        not confirmed. Otherwise the commit of what was written has waited for the earlier one as well.
        """
        found = await self._writer.ask(READ, ids, self._read_bytes, self._record_bytes, restore=self.watch.has_code)
        rows = {row["id"]: row for row in found}
        if confirm:
            await self._confirm()
        return rows

    async def read(self, request: Request[Any], outcome: Outcome) -> Applied:
        """The outcome of a request that was stored, with its record as it is now.

        Raises:
            Unavailable: the database cannot be used, or a privilege is missing.
        """
        rows = await self._maintain(self._writer, READ, [request.record.id], self._read_bytes, self._record_bytes)
        return answer(outcome, rows[0]) if rows else Applied(outcome, None)

    async def probe(self) -> None:
        """Prove that writing is possible: look at the table, store a wave without requests, and confirm a commit.

        It is the statement that stores a wave, so it needs the same schema and the same privileges although it touches no
        row. If it passes, and the same statement with a row fails, the row may be the cause.

        Raises:
            Unavailable: it is not possible; a privilege is missing, by name; the table does not fit whatever a row contains, by
                name; or a commit is not confirmed.
        """
        try:
            await self._probe()
        except Failed as failed:
            # A trigger may have changed the session: its role, or that it can only read. The next one is as it should be.
            self._writer.renew()
            if failed.sqlstate != NOT_PERMITTED:
                raise
            outage = failed
        else:
            return
        lacking = [f"lacks {privilege}" for privilege in await self._missing_privileges()]
        raise Unavailable(outage.label, ", ".join([*lacking, outage.detail]))

    async def _missing_privileges(self) -> list[str]:
        """The privileges that the role needs and does not have, such as `INSERT on task_activity_log`, if they are known."""
        try:
            row = await self.describe()
        except Unavailable:
            return []
        return [*(row["missing"] or ()), *([f"EXECUTE on {row['not_executable']}"] if row["not_executable"] else ())]

    async def _probe(self) -> None:
        if any(table.misfits(await self.look())):
            self._writer.renew()  # a trigger may have changed the session: its search path
            for misfit in table.misfits(await self.look()):
                raise Unavailable(misfit, self._writer.where)
        self.watch.doubtful = False
        await self._maintain(self._writer, self._statement(UpdateMode.REPLACE), *writing.nothing(UpdateMode.REPLACE))
        await self._confirm()

    async def _confirm(self) -> None:
        """Prove that everything that was committed before is safe (see sql/confirm.sql).

        Raises:
            Unavailable: it is not confirmed in time.
        """
        await confirmed(self._maintain(self._writer, CONFIRM, seconds=min(_CONFIRM_SECONDS, self._command_timeout)))

    async def try_own_rows(self, like: TaskActivityLog | None) -> list[Failed]:
        """Write rows of our own, each in a transaction that is rolled back, and return why all of them are refused.

        One has the values of `like`, or those of any stored record; one has no values, and one has all. Empty: one of them
        passes, or would if the first were no copy. Where the id refers to another table, an id of our own proves nothing: the
        stored record itself is then written again.

        Raises:
            Unavailable: the database cannot be used, its disk is full, or the probe says why no row can be stored.
        """
        await self.probe()
        found: list[Failed] = []
        stored = like or await self._any()
        for record in filter(None, (stored, writing.BARE, writing.FULL)):
            if (failure := await self._rehearse(record)) is None:
                return []
            found.append(failure)
        if stored is None:
            return found
        if found[0].rule.name in self.watch.ours.of_ids:
            again = await self._rehearse(stored, again=True)
            return found if isinstance(again, TimedOut) else [] if again is None else [again]
        return [] if await passes_otherwise(self._try, stored, found[0].rule) else found

    async def time_own_rows(self, count: int) -> float:
        """How many seconds it takes to write rows of the worker's own, which have all values. They are rolled back.

        It is given up after two seconds. Whether they are refused does not matter here.

        Raises:
            Unavailable: the database cannot be used.
        """
        started = time.monotonic()
        write = self._statement(UpdateMode.REPLACE), writing.own_rows(count)
        await self._writer.rehearse(write, seconds=OWN_ROWS_SECONDS)
        return time.monotonic() - started

    async def _any(self) -> TaskActivityLog | None:
        """Any stored record; None if there is none, or it cannot be read."""
        try:
            ids = [row["id"] for row in await self._writer.ask(_ANY)]
            return next(
                (answer(Outcome.UPDATED, row).record for row in (await self._current(ids, confirm=False)).values()),
                None,
            )
        except Refused:
            return None

    async def _try(self, record: TaskActivityLog, *, again: bool = False) -> Refused | Unavailable | None:
        """Insert and update a row with these values, or with `again` the record itself, and roll back.

        What is raised; None if it passes.
        """
        statement = self._statement(UpdateMode.REPLACE)
        writes = [(statement, arguments) for arguments in writing.own_row(record, again=again)]
        return await self._writer.rehearse(*writes, seconds=REHEARSE_SECONDS)

    async def _rehearse(self, record: TaskActivityLog, *, again: bool = False) -> Failed | None:
        """As `_try`, in words for people."""
        failure = await self._try(record, again=again)
        if failure is None or isinstance(failure, TimedOut):
            return failure
        if isinstance(failure, Refused | Failed) and fault(failure.rule.sqlstate) is not Fault.DATABASE:
            label, more = table.everybodys(failure.rule, await self.look())
            where = failure.detail if isinstance(failure, Failed) else self._writer.where
            detail = where if not more or where.startswith(more) else f"{more}, {where}"
            of_values = isinstance(failure, Refused)
            return Failed(label, failure.sqlstate, detail, name=failure.rule.name, lasting=True, of_values=of_values)
        raise failure

    async def locked(self, ids: Sequence[UUID]) -> set[UUID]:
        """Those of these records whose rows are locked by another transaction now (see sql/locked.sql).

        Raises:
            Unavailable: the database cannot be used, or a privilege is missing.
        """
        return {row["id"] for row in await self._maintain(self._writer, _LOCKED, ids)}

    async def schema_version(self) -> str | None:
        """The revision of the schema (see `migrations.head`); None if the database was not migrated yet.

        The table of the revision should have one row. If it has more, their revisions are separated by commas.

        Raises:
            Unavailable: the database cannot be used, or a privilege is missing.
        """
        try:
            rows = await self._maintain(self._maintenance, _SCHEMA_VERSION)
        except NotMigrated:
            return None
        return ", ".join(sorted(str(row["version_num"] or "") for row in rows))

    async def describe(self) -> Row:
        """The database as `check` needs to know it: version, role and privileges (see sql/check.sql).

        Raises:
            Unavailable: the database cannot be used, or a privilege is missing.
        """
        [row] = await self._maintain(self._maintenance, _CHECK)
        return row

    async def current(self, ids: Sequence[UUID]) -> dict[UUID, StoredTaskActivityLog]:
        """These records as they are now, which needs only SELECT on the table.

        Records that do not exist, that cannot be read or whose texts are too long together are left out.

        Raises:
            Unavailable: the database cannot be used, or a privilege is missing.
        """
        rows = await self._look_up(READ, ids, self._read_bytes, self._record_bytes)
        return {row["id"]: record for row in rows if (record := answer(Outcome.UPDATED, row).record) is not None}

    async def modified(self, ids: Sequence[UUID]) -> dict[UUID, datetime]:
        """When each of these records was last modified, `UNKNOWN_INSTANT` if that is not known. Those without a row are left out.

        It is not known if the instant of the row cannot be read, or if row security may hide a row from this role.

        Raises:
            Unavailable: the database cannot be used, or a privilege is missing.
        """
        found: dict[UUID, datetime] = {}
        for start in range(0, max(1, len(ids)), _IDS_AT_A_TIME):
            rows = await self._look_up(_MODIFIED, ids[start : start + _IDS_AT_A_TIME])
            found |= {row["id"]: row["modified_dateutc"] or UNKNOWN_INSTANT for row in rows}
        if len(found) < len(ids) and (await self._look_up(_HIDES_ROWS))[0]["hides"]:
            return dict.fromkeys(ids, UNKNOWN_INSTANT) | found
        return found

    async def look(self) -> Row:
        """The table of records as it is found (see sql/table.sql).

        Raises:
            Unavailable: the database cannot be used.
        """
        [row] = await self._maintain(self._writer, TABLE)
        self._kinds = {"has_xmax": table.has_xmax(row), "has_uuids": table.has_uuids(row)}
        self.watch.found(row)
        return row

    async def _look_up(self, statement: str, *arguments: object) -> list[Row]:
        """Read records for somebody who looks, rather than for a message."""
        try:
            return await self._maintain(self._maintenance, statement, *arguments)
        except Failed as failed:
            outage = await explained(failed, self._maintenance)
        raise outage

    def _statement(self, mode: UpdateMode) -> str:
        return writing.statement(mode, self._read_bytes, has_code=self.watch.has_code, **(self._kinds or {}))

    async def _maintain(
        self, session: Session, statement: str, *arguments: object, seconds: float | None = None
    ) -> list[Row]:
        """Execute a statement that belongs to no message. If it is refused, no message can be at fault.

        Triggers fire for these as well: for keys in the inbox, and for a statement without rows.
        """
        try:
            return await session.ask(statement, *arguments, seconds=seconds, restore=self.watch.has_code)
        except Refused as refused:
            outage = unanswered(refused, session.where)
        raise outage
