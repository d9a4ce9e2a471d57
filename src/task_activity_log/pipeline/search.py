"""The search for the rows at fault in a wave that does not pass as a whole."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Generic

from task_activity_log.pipeline.groups import TRIAL_SECONDS, Groups
from task_activity_log.pipeline.parking import Parking
from task_activity_log.pipeline.ports import OWN_ROWS_SECONDS, D, Patience, Store
from task_activity_log.pipeline.request import Request
from task_activity_log.pipeline.timing import OWN_ROWS, Step, next_step
from task_activity_log.pipeline.waves import halve
from task_activity_log.problem import Failed, Refused, TimedOut
from task_activity_log.record import Applied

_LOCK_SECONDS, _LEAST_SECONDS = 0.5, 1.0
"""For a wave: the longest wait for a lock, and the least limit of its statement. Everybody in the batch, and in the batches
behind it, waits for that and for the search. What is not found by then waits for trials apart."""
_WARNED_LOCK_SECONDS = 0.1
"""While rows are parked. Somebody locks rows, and may lock more: each would cost the others a second."""
_WARNED_LEAST_SECONDS = 0.25
"""While slow rows are parked, for the same reason."""
_SEARCH_SECONDS = 0.5
"""How long rows that fail are searched for here."""

_STATEMENT_BYTES = 2**20
"""How long the bodies of one statement may be together. Long texts take long on a busy machine. If a statement takes too long,
its rows are searched for slow ones: of 32 rows with the longest bodies, all were parked, batch after batch. Shorter
statements cost next to nothing more."""
_LOST_MAX = 2
"""So often may the connection be lost while the same part is written. Then the part is at fault: one of its rows may crash the
server, and the probe that follows does not pass until the server has recovered."""
_DISK_FULL = "53100"

_UNUSUAL_SECONDS = 0.05
"""If rows of the worker's own take longer, they are timed twice."""


class PartFailed(Exception):
    """The database works, and a part of a wave failed: it is too large, or one of its rows is locked, slow or at fault."""

    def __init__(self, cause: Failed) -> None:
        self.cause = cause


class Search(Generic[D]):
    """The parts of one wave that are still to be tried.

    A wave that does not pass is divided until the row at fault is alone, and all other rows are stored. If it fails at
    once, it is halved: O(log n) statements for one row among n. If it has timed out, the rows that are locked are found by
    one statement; and if there are none, it is divided as `Groups` says, and each part has a short limit. What fails alone is
    parked. When the time is over, all parts that are left are parked as well, and are tried there: later batches go on.
    """

    def __init__(self, wave: Sequence[Request[D]], parking: Parking[D]) -> None:
        """Begin with the whole wave, which may be empty."""
        self._parking, self._timing = parking, parking.timing
        self._passes = parking.refusals.passes
        self._some_passed = False  # of this wave
        self._known = 0  # `Refusals.findings` when the part was written that was tried last
        self._doubted: Request[D] | None = None  # it was refused, and is tried once more
        self._parts = self._of_usual_size(wave)
        self._trials = Groups[Request[D]]()  # parts of those that have timed out; tried behind the others
        self._warned, self._slow_rows = bool(parking.records), parking.has_slow
        self._typical = parking.is_first
        self._cause: Failed = TimedOut()  # of the last failure
        self._losses = 0  # how often the connection was lost while a part was written
        self._lost: Failed | None = None  # how it was lost the last time
        self._until = math.inf  # when the search ends; set by the first failure
        self._limit: float | None = None  # of the part that was tried last
        self._least = _WARNED_LEAST_SECONDS if self._slow_rows else _LEAST_SECONDS

    def _of_usual_size(self, part: Sequence[Request[D]]) -> list[Sequence[Request[D]]]:
        """A part in parts that a statement may have, in reverse."""
        rows, sizes = self._timing.rows(len(part)), [len(request.delivery.body) for request in part]
        if len(part) <= rows and sum(sizes) <= _STATEMENT_BYTES:
            return [part] if part else []
        parts: list[list[Request[D]]] = []
        left = 0
        for request, size in zip(part, sizes, strict=True):
            if not parts or len(parts[-1]) >= rows or size > left:
                parts.append([])
                left = _STATEMENT_BYTES
            parts[-1].append(request)
            left -= size
        return list[Sequence[Request[D]]](reversed(parts))

    async def next(self) -> Sequence[Request[D]]:
        """The part that is tried next; empty if there are no more. When the time is over, all that is left is parked."""
        if time.monotonic() > self._until:
            rest = [*reversed(self._parts), *self._trials.rest()]
            self._parts = []
            await self._parking.park_untried(rest, self._cause, self._passes)
        return self._parts.pop() if self._parts else self._trials.next()

    @property
    def _failed(self) -> bool:
        return self._until < math.inf

    def patience(self, rows: int) -> Patience:
        """For a part of this number of rows, now."""
        self._limit = self._timing.limit(rows, TRIAL_SECONDS if self._failed else self._least)
        return Patience(_WARNED_LOCK_SECONDS if self._failed or self._warned else _LOCK_SECONDS, self._limit)

    async def write(self, store: Store, part: Sequence[Request[D]]) -> list[Applied]:
        """Write a part, or what is left of it, and remember how long that took. Raises as `Store.apply`."""
        if self._lost is not None and self._losses >= _LOST_MAX:
            raise self._lost.with_traceback(None)  # it is raised again, and would collect tracebacks
        started, self._known = time.monotonic(), self._parking.refusals.findings
        try:
            applied = await store.apply(part, self.patience(len(part)))
        except Failed as failed:
            if failed.lost_connection:
                self._losses, self._lost = self._losses + 1, failed
            raise
        self._losses = min(self._losses, _LOST_MAX - 1)
        if self._typical:  # later waves of a batch have the same few records again, which may be costly ones
            self._timing.passed(len(part), time.monotonic() - started)
        return applied

    async def probe(self, store: Store, cause: Failed) -> None:
        """Prove that the database works although a part has failed. Raises `Unavailable` if it does not.

        If it was the first to take too long, rows are timed too with which nothing is wrong. If the disk is said to be full,
        rows of the worker's own are written and rolled back.
        """
        started, passed = time.monotonic(), False
        try:
            await store.probe()
            passed = True
            if cause.sqlstate == _DISK_FULL:
                await store.try_own_rows(self._parking.refusals.accepted)
        finally:
            if passed:
                self._timing.probed(time.monotonic() - started)
            elif isinstance(cause, TimedOut):
                self._timing.outage()
        if isinstance(cause, TimedOut) and not cause.locked and not self._failed:
            self._timing.own_rows(await _time_own_rows(store))

    def passed(self, part: Sequence[Request[D]]) -> None:
        """This was stored of the part: all of it, or nothing if everything was requeued meanwhile."""
        self._trials.passed()
        if part:
            self._some_passed = True
            self._parking.passed(part[-1].record)

    async def refused(self, part: Sequence[Request[D]], cause: Refused) -> None:
        """The database refuses the part. A single row is rejected, unless the database refuses every row."""
        if (everybodys := self._parking.refusals.everybodys) is not None:
            await self._parking.park(part, everybodys, self._passes)
        elif len(part) > 1:
            self._parts += reversed(halve(part))
        else:
            await self._refused_alone(part[0], cause)

    async def _refused_alone(self, request: Request[D], cause: Refused) -> None:
        refusals, known = self._parking.refusals, self._known
        if request is not self._doubted:
            # What was parked before may have passed meanwhile, before the database began to refuse every row.
            since = self._passes if self._some_passed else refusals.passes
            if not await self._parking.is_at_fault(request, cause, since):
                return
            if refusals.findings != known:  # what refused every row may have been removed since this one was tried
                self._doubted = request
                self._parts.append([request])
                return
        self._parking.reject(request, cause)

    async def failed(self, part: Sequence[Request[D]], cause: Failed) -> None:
        """The part failed although the database works."""
        limit, self._cause = self._limit, cause
        self._losses = min(self._losses, _LOST_MAX - 1)  # each half may be tried once
        if (everybodys := self._parking.refusals.everybodys) is not None:
            await self._parking.park(part, everybodys, self._passes)
            return
        failed, timed_out = self._failed, isinstance(cause, TimedOut)
        exceeded = limit if isinstance(cause, TimedOut) and not cause.locked else None
        now = self._timing.limit(len(part), TRIAL_SECONDS if failed else self._least)
        step = next_step(len(part), exceeded, now)
        if step is Step.AGAIN:  # also if it has failed before: with more time it may pass
            self._parts += self._of_usual_size(part)
            return
        if not failed:
            self._until = time.monotonic() + _SEARCH_SECONDS
        if isinstance(cause, TimedOut) and (locked := await self._parking.locked(part, waited=cause.locked)):
            await self._parking.park([request for request in part if request.record.id in locked], cause, self._passes)
            self._trials.add([request for request in part if request.record.id not in locked])
        elif step is Step.PARK:
            if exceeded is None:
                await self._parking.park(part, cause, self._passes)
            else:
                await self._parking.park_untried([part], cause, self._passes)
        elif timed_out:
            self._trials.exceeded(part)
        else:
            self._parts += reversed(halve(part))


async def _time_own_rows(store: Store) -> tuple[int, float]:
    """A number of rows of the worker's own, and how long they take together."""
    took = await store.time_own_rows(OWN_ROWS)
    if took >= OWN_ROWS_SECONDS:
        return 1, await store.time_own_rows(1)
    if took > _UNUSUAL_SECONDS:  # perhaps by chance
        took = min(took, await store.time_own_rows(OWN_ROWS))
    return OWN_ROWS, took
