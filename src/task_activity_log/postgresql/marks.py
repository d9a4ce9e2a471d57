"""Marks of trials (see `pipeline.trials`). They are in the table of request keys, and are trimmed with them."""

from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from task_activity_log.postgresql.session import Row
from task_activity_log.postgresql.statements import sql
from task_activity_log.problem import Unavailable

_MARKED, MARK, UNMARK = sql("marked"), sql("mark"), sql("unmark")


class Marks:
    """All three methods raise `Unavailable` if the database cannot be used, or a privilege is missing."""

    def __init__(self, ask: Callable[[str, Sequence[UUID]], Awaitable[list[Row]]]) -> None:
        """Execute statements by `ask`."""
        self._ask = ask

    async def marked(self, marks: Sequence[UUID]) -> set[UUID]:
        """Those of these marks that exist."""
        return {row["request_key"] for row in await self._ask(_MARKED, marks)}

    async def mark(self, marks: Sequence[UUID]) -> None:
        """Make these marks. It does no harm if they exist."""
        await self._ask(MARK, marks)

    async def unmark(self, marks: Sequence[UUID]) -> None:
        """Remove these marks, as far as they exist.

        A mark that stays would be taken for a trial that has crashed a worker, and in the end its message would be rejected.
        """
        await self._ask(UNMARK, marks)
        if marks and await self.marked(marks):  # a trigger or row security has prevented it, without an error
            raise Unavailable("keys cannot be deleted from task_activity_log_inbox")
