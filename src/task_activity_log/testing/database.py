"""The tables task_activity_log and task_activity_log_inbox in memory."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from task_activity_log.message import Delivery
from task_activity_log.pipeline.request import Request, UpdateMode
from task_activity_log.record import FIELDS, Applied, Outcome, StoredTaskActivityLog


class FakeDatabase:
    """The two tables in memory. Implements what the contract promises (section 7) in plain code."""

    def __init__(self) -> None:
        self.rows: dict[UUID, StoredTaskActivityLog] = {}
        self.versions: dict[UUID, int] = {}
        self.inbox: set[UUID] = set()
        self.writes: list[Request[Delivery]] = []
        """The requests that wrote a row, in order."""
        self._now = datetime.now(UTC)

    def apply(self, wave: Sequence[Request[Delivery]]) -> list[Applied]:
        """Take a wave, as one transaction. Raises `ValueError` for one that the database would not take."""
        if len({request.record.id for request in wave}) != len(wave):
            raise ValueError("SQLSTATE 21000: an id twice")
        if len({request.mode for request in wave}) > 1:
            raise ValueError("a wave has one mode")
        return [self._apply(request) for request in wave]

    def _apply(self, request: Request[Delivery]) -> Applied:
        identifier = request.record.id
        before = self.rows.get(identifier)
        if request.key is not None:
            if request.key in self.inbox:
                return Applied(Outcome.DUPLICATE, before)
            self.inbox.add(request.key)
        if request.version is not None:
            if before is not None and request.version <= self.versions.get(identifier, request.version - 1):
                return Applied(Outcome.STALE, before)
            self.versions[identifier] = request.version
        elif before is None:
            self.versions.pop(identifier, None)
        asked = {name: getattr(request.record, name) for name in FIELDS}
        if request.mode is UpdateMode.MERGE and before is not None:
            asked |= {name: getattr(before, name) for name in FIELDS if name not in request.record.model_fields_set}
        self._now = max(self._now + timedelta(microseconds=1), datetime.now(UTC))
        row = StoredTaskActivityLog.model_construct(**asked, modified_dateutc=self._now)
        self.rows[identifier] = row
        self.writes.append(request)
        return Applied(Outcome.UPDATED if before else Outcome.INSERTED, row)
