"""The records as they are, for commands that look for some of many. Needs only SELECT on the table of records."""

from collections.abc import AsyncIterator, Awaitable, Sequence
from datetime import datetime
from uuid import UUID

from task_activity_log.pipeline.waves import halve
from task_activity_log.postgresql.connecting import Connector
from task_activity_log.postgresql.connection import ServerConnection
from task_activity_log.postgresql.faults import unanswered
from task_activity_log.postgresql.reading import READ, answer, confirmed, explained
from task_activity_log.postgresql.session import Row, Session
from task_activity_log.postgresql.statements import sql
from task_activity_log.postgresql.store import CONFIRM
from task_activity_log.problem import Failed, Refused
from task_activity_log.record import Outcome, StoredTaskActivityLog

_CHANGED, _COUNT, _JOURNAL = sql("changed"), sql("count_changed"), sql("journal_found")
_MODIFIED, _HIDES_ROWS, _JOURNAL_HIDES_ROWS = sql("modified"), sql("hides_rows"), sql("journal_hides_rows")
_CONFIRMABLE = sql("confirmable")
_CONFIRM_SECONDS = 5.0
_PAGE = 500
FIRST = UUID(int=0)
"""The id that is before those of all records."""


class Survey:
    """Reads records over a connection of its own."""

    def __init__(
        self,
        connector: Connector,
        *,
        command_timeout: float = 30.0,
        read_bytes: int = 8 * 2**20,
        record_bytes: int = 16 * 2**20,
    ) -> None:
        """Do not connect yet.

        `read_bytes` is how much text is read at a time. A record with more than `record_bytes` is not read.
        """

        def connection() -> Awaitable[ServerConnection]:
            return connector.connect(command_timeout=command_timeout, statement_cache_size=0)

        self._session = Session(connection, CONFIRM, command_timeout)
        self._read_bytes, self._record_bytes, self._command_timeout = read_bytes, record_bytes, command_timeout

    async def open(self) -> None:
        """Connect; otherwise the first question does. Raises `Unavailable`: it is not possible."""
        await self._session.open()

    async def close(self) -> None:
        """Disconnect."""
        await self._session.close()

    async def count(self, since: datetime | None, after: UUID = FIRST) -> int:
        """How many records were modified at `since` or later (None: all), of those whose ids are behind `after`.

        Raises:
            Unavailable: the database cannot be used, or a privilege is missing.
        """
        [row] = await self._ask(_COUNT, since, after)
        return int(row["count"])

    async def changed(self, since: datetime | None, after: UUID = FIRST) -> AsyncIterator[list[UUID]]:
        """The ids of these records, in their order, page by page.

        Raises:
            Unavailable: the database cannot be used, or a privilege is missing.
        """
        while page := [row["id"] for row in await self._ask(_CHANGED, since, after, _PAGE)]:
            yield page
            after = page[-1]

    async def records(self, ids: Sequence[UUID]) -> list[StoredTaskActivityLog]:
        """These records as they are now, in this order. Those that do not exist or cannot be read are left out.

        Raises:
            Unavailable: the database cannot be used, or a privilege is missing.
        """
        found = await self._read(ids)
        for identifier in ids:
            if (
                identifier not in found
            ):  # its texts and those of the others were too long together, or it cannot be read
                found |= await self._read([identifier])
        return [found[identifier] for identifier in ids if identifier in found]

    async def confirm(self) -> None:
        """Return once what was read before is on a synchronous standby too, if there is one.

        A commit that was cancelled while it waited for the standby is shown to everybody. Nothing is asked of a server that only
        reads, or for a role that may not execute what is needed.

        Raises:
            Unavailable: it is not confirmed in time.
        """
        if not (await self._ask_plainly(_CONFIRMABLE))[0]["confirmable"]:
            return
        await confirmed(self._session.ask(CONFIRM, seconds=min(_CONFIRM_SECONDS, self._command_timeout)))

    async def exist(self, ids: Sequence[UUID]) -> set[UUID]:
        """Which of these records exist, also if they cannot be read.

        Raises:
            Unavailable: the database cannot be used, or a privilege is missing.
        """
        return {row["id"] for row in await self._ask(_MODIFIED, ids)}

    async def may_hide_rows(self) -> bool:
        """Whether there may be rows that this role does not see: row security, or a view that does not show every row.

        Raises:
            Unavailable: the database cannot be used, or a privilege is missing.
        """
        [row] = await self._ask(_HIDES_ROWS)
        return bool(row["hides"])

    async def answers(self, name: str, record: UUID | None, most: int) -> list[Row]:
        """What the journal says about a message_id, a correlation_id or a record: the newest answers, the oldest first.

        Raises:
            NotMigrated: there is no journal.
            Unavailable: the database cannot be used, or a privilege is missing.
        """
        return (await self._ask_plainly(_JOURNAL, name, record, most))[::-1]

    async def may_hide_answers(self) -> bool:
        """Whether there may be rows of the journal that this role does not see, because of row security.

        Raises:
            Unavailable: the database cannot be used.
        """
        [row] = await self._ask_plainly(_JOURNAL_HIDES_ROWS)
        return bool(row["hides"])

    async def _read(self, ids: Sequence[UUID]) -> dict[UUID, StoredTaskActivityLog]:
        try:
            rows = await self._session.ask(READ, ids, self._read_bytes, self._record_bytes)
        except (Refused, Failed):
            await self._ask(READ, [], self._read_bytes, self._record_bytes)  # if this fails too, it is no row's fault
            if len(ids) == 1:
                return {}
            return {key: record for part in halve(ids) for key, record in (await self._read(part)).items()}
        return {row["id"]: record for row in rows if (record := answer(Outcome.SNAPSHOT, row).record) is not None}

    async def _ask(self, statement: str, *arguments: object) -> list[Row]:
        """Ask about the table of records."""
        try:
            return await self._ask_plainly(statement, *arguments)
        except Failed as failed:
            outage = await explained(failed, self._session)
        raise outage

    async def _ask_plainly(self, statement: str, *arguments: object) -> list[Row]:
        try:
            return await self._session.ask(statement, *arguments)
        except Refused as refused:
            outage = unanswered(refused, self._session.where)
        raise outage
