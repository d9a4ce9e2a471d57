"""What somebody has changed about the tables while rows are stored."""

from collections.abc import Awaitable, Callable

from task_activity_log.postgresql import table
from task_activity_log.postgresql.faults import Ours, ours_of
from task_activity_log.postgresql.reading import TABLE
from task_activity_log.postgresql.session import Row


class Watch:
    """Looks at the tables again: PostgreSQL takes rows without an error after a column has got a type that changes values."""

    def __init__(self, ask: Callable[[str], Awaitable[list[Row]]]) -> None:
        """Execute statements by `ask`."""
        self._ask = ask
        self.doubtful = False
        """Whether the tables did not fit. Then a probe comes before the next row, and ends it if it passes."""
        self.has_code = False
        """Whether code of others is executed for a row: by triggers, behind a view, or in constraints. It may make texts
        longer, and change the session."""
        self.ours = Ours()
        """Which refusals are the fault of the tables, and not of a message."""

    async def look(self) -> None:
        """Look at the tables.

        Raises:
            Unavailable: the database cannot be used.
        """
        [row] = await self._ask(TABLE)
        self.doubtful = any(table.misfits(row))
        self.found(row)

    def found(self, row: Row) -> None:
        """The tables were looked at, perhaps by somebody else."""
        self.has_code, self.ours = row["has_code_of_others"], ours_of(row)

    async def has_changed(self) -> bool:
        """Look again, whether somebody has changed what may refuse rows. Raises as `look`."""
        before = self.ours
        await self.look()
        return self.ours != before
