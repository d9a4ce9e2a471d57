"""The search for the rows at fault in a wave that does not pass as a whole."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Generic

from task_activity_log.pipeline.parking import Parking
from task_activity_log.pipeline.ports import PATIENT, D, Patience
from task_activity_log.pipeline.request import Request
from task_activity_log.pipeline.waves import halve
from task_activity_log.problem import Failed, Refused, TimedOut

_WARNED = Patience(lock_seconds=0.1)
"""For a wave while rows are parked. Somebody locks rows, and may lock more: each would cost the others a second."""
_HURRIED = Patience(lock_seconds=0.1, seconds=2.0)
"""For parts of a wave that has failed, because the other requests of the batch, and all later batches, wait meanwhile."""
_SEARCH_SECONDS = 2.0
"""How long rows that fail are searched for. A row that is refused is searched for until it is found."""


class PartFailed(Exception):
    """The database works, and a part of a wave failed: it is too large, or one of its rows is locked or at fault."""

    def __init__(self, cause: Failed) -> None:
        self.cause = cause


class Search(Generic[D]):
    """The parts of one wave that are still to be tried.

    A wave that does not pass is halved until the row at fault is alone: O(log n) statements for one row among n, and all
    other rows are stored. If it has timed out, the rows that are locked are found by one statement. What fails alone is
    parked. What is not found in time is parked as well: there each row is tried alone, and nobody else waits.
    """

    def __init__(self, wave: Sequence[Request[D]], parking: Parking[D]) -> None:
        """Begin with the whole wave, which may be empty."""
        self.patience = _WARNED if parking.records else PATIENT
        """For the next part."""
        self._parking = parking
        self._passes = parking.refusals.passes
        self._parts = [wave]
        self._until = math.inf

    def next(self) -> Sequence[Request[D]]:
        """The part that is tried next; empty if there are no more."""
        return self._parts.pop() if self._parts else ()

    def passed(self, part: Sequence[Request[D]]) -> None:
        """This was stored of the part: all of it, or nothing if everything was requeued meanwhile."""
        if part:
            self._parking.passed(part[-1].record)

    async def refused(self, part: Sequence[Request[D]], cause: Refused) -> None:
        """The database refuses the part. A single row is rejected, unless the database refuses every row."""
        if (everybodys := self._parking.refusals.everybodys) is not None:
            await self._parking.park(part, everybodys, self._passes)
        elif len(part) > 1:
            self._parts += reversed(halve(part))
        else:
            await self._parking.reject(part[0], cause, self._passes)

    async def failed(self, part: Sequence[Request[D]], cause: Failed) -> None:
        """The part failed although the database works."""
        if self.patience is not _HURRIED:
            self.patience, self._until = _HURRIED, time.monotonic() + _SEARCH_SECONDS
        in_time = time.monotonic() < self._until and self._parking.refusals.everybodys is None
        locked = await self._parking.locked(part) if in_time and isinstance(cause, TimedOut) else set()
        if locked:
            await self._parking.park([request for request in part if request.record.id in locked], cause, self._passes)
            if free := [request for request in part if request.record.id not in locked]:
                self._parts.append(free)
        elif len(part) > 1 and in_time:
            self._parts += reversed(halve(part))
        else:
            await self._parking.park(part, cause, self._passes)
