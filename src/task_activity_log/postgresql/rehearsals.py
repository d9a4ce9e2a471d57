"""What `check` tries: statements of a worker, which are rolled back."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from task_activity_log.pipeline.request import UpdateMode
from task_activity_log.postgresql import writing
from task_activity_log.postgresql.faults import why
from task_activity_log.postgresql.marks import MARK, UNMARK
from task_activity_log.postgresql.session import Session
from task_activity_log.postgresql.statements import sql
from task_activity_log.postgresql.trimming import TRIM, TRIM_JOURNAL
from task_activity_log.problem import Refused
from task_activity_log.record import Outcome

_VERSION_KEPT, _MARKS_GONE = sql("version_kept"), sql("marks_gone")
_JOURNAL, _JOURNAL_KEPT = sql("journal"), sql("journal_kept")
_DIVISION_BY_ZERO = "22012"
REHEARSE_SECONDS = 5.0
_NOTHING_TO_TRIM = (timedelta(days=36_500), 1)


class Rehearsals:
    """Tries what a worker does besides storing records."""

    def __init__(self, writer: Session, maintenance: Session, statement: Callable[[UpdateMode], str]) -> None:
        """Execute statements in these sessions. `statement` is the one that writes a wave now."""
        self._writer, self._maintenance, self._statement = writer, maintenance, statement

    async def keeps_versions(self) -> bool:
        """Whether a row of our own has the version that it was written with. It is written and rolled back.

        If it has not, a trigger has changed it, and `x-version` protects nothing. True if the row cannot be written.

        Raises:
            Unavailable: it is not possible to connect.
        """
        statement, own = self._statement(UpdateMode.REPLACE), uuid4()
        writes = [(statement, writing.own_version(writing.BARE, own, version)) for version in (1, 2)]
        failure = await self._writer.rehearse(*writes, (_VERSION_KEPT, [own, 2]), seconds=REHEARSE_SECONDS)
        return not isinstance(failure, Refused) or failure.sqlstate != _DIVISION_BY_ZERO

    async def try_mark(self) -> str:
        """Why a mark of a trial (see `pipeline.trials`) cannot be made and removed; empty if it can. It is rolled back.

        Raises:
            Unavailable: it is not possible to connect.
        """
        marks = [uuid4()]
        statements = (MARK, [marks]), (UNMARK, [marks]), (_MARKS_GONE, [marks])
        failure = await self._maintenance.rehearse(*statements, seconds=REHEARSE_SECONDS)
        if isinstance(failure, Refused) and failure.sqlstate == _DIVISION_BY_ZERO:
            return "a trigger or a policy keeps them"
        return why(failure)

    async def try_journal(self) -> str:
        """Why the journal cannot be written and trimmed; empty if it can. A row of our own is written, and rolled back.

        Raises:
            Unavailable: it is not possible to connect.
        """
        row = datetime.now(UTC).isoformat(), uuid4(), (reply := uuid4()), str(Outcome.UPDATED), None, None, None, None
        statements = (_JOURNAL, [[value] for value in row]), (_JOURNAL_KEPT, [reply]), (TRIM_JOURNAL, _NOTHING_TO_TRIM)
        failure = await self._maintenance.rehearse(*statements, seconds=REHEARSE_SECONDS)
        if isinstance(failure, Refused) and failure.sqlstate == _DIVISION_BY_ZERO:
            return "refused: a trigger skips every row, or a policy hides it"
        return why(failure)

    async def try_trim(self) -> str:
        """Why old keys cannot be deleted from the inbox; empty if they can. None is deleted. Raises as `try_mark`."""
        return why(await self._maintenance.rehearse((TRIM, _NOTHING_TO_TRIM), seconds=REHEARSE_SECONDS))
