"""What the workers delete: requests and answers that are older than WORKER_INBOX_KEEP_SECONDS."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

from task_activity_log.postgresql.session import Row
from task_activity_log.postgresql.statements import sql

TRIM, _INBOX_AGE = sql("trim"), sql("inbox_age")
_JOURNAL_USABLE, TRIM_JOURNAL = sql("journal_usable"), sql("trim_journal")


class Trimming:
    """Trims the inbox and the journal. All methods raise `Unavailable` if the database cannot be used."""

    def __init__(self, ask: Callable[..., Awaitable[list[Row]]]) -> None:
        """Execute statements by `ask`."""
        self._ask = ask

    async def trim(self, keep: timedelta, chunk: int) -> int:
        """Forget at most `chunk` requests that were stored longer than `keep` ago, and return their number.

        If it is less than `chunk`, there are no more of them, or another worker is forgetting them at this time.

        Raises:
            Unavailable: the database cannot be used, or a privilege is missing.
        """
        [row] = await self._ask(TRIM, keep, chunk)
        return int(row["count"])

    async def trim_journal(self, keep: timedelta, chunk: int) -> int:
        """Delete at most `chunk` rows of the journal that are older than `keep`, and return their number.

        It is 0 if there is no journal, or the role may not trim it.

        Raises:
            Unavailable: the database cannot be used.
        """
        [found] = await self._ask(_JOURNAL_USABLE)
        if not found["usable"]:
            return 0
        [row] = await self._ask(TRIM_JOURNAL, keep, chunk)
        return int(row["count"])

    async def inbox_age(self) -> float:
        """How many seconds ago the oldest request in the inbox was stored; 0 if there is none.

        Raises:
            Unavailable: the database cannot be used, or a privilege is missing.
        """
        [row] = await self._ask(_INBOX_AGE)
        return float(row["seconds"])
