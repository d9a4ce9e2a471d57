"""The rows of records as they are now, if a database is configured. Only SELECT is needed."""

from collections.abc import Collection, Mapping
from datetime import datetime
from uuid import UUID

from task_activity_log.postgresql.store import Store
from task_activity_log.problem import Unavailable
from task_activity_log.record import StoredTaskActivityLog

_AT_A_TIME = 5_000


class RowsUnknown(Exception):
    """The rows cannot be read now; the text says why."""


class Rows:
    """Reads rows. Without a store it knows none."""

    def __init__(self, store: Store | None) -> None:
        self._store = store

    @property
    def configured(self) -> bool:
        """Whether there is a database to ask."""
        return self._store is not None

    async def current(self, record: UUID) -> StoredTaskActivityLog | None:
        """The row of a record; None if there is none. Raises `RowsUnknown`."""
        if self._store is None:
            raise RowsUnknown("DATABASE_URL is not set")
        try:
            return (await self._store.current([record])).get(record)
        except Unavailable as error:
            raise RowsUnknown(error.reason) from None

    async def modified(self, records: Collection[UUID]) -> Mapping[UUID, datetime]:
        """When the rows of these records were last changed, as far as there are rows. Raises `RowsUnknown`."""
        if self._store is None:
            raise RowsUnknown("DATABASE_URL is not set")
        wanted, found = sorted(set(records)), dict[UUID, datetime]()
        try:
            for start in range(0, len(wanted), _AT_A_TIME):
                found |= await self._store.modified(wanted[start : start + _AT_A_TIME])
        except Unavailable as error:
            raise RowsUnknown(error.reason) from None
        return found

    async def close(self) -> None:
        """Close the connection."""
        if self._store is not None:
            await self._store.close()
