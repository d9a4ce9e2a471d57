"""Trying again what is parked, in two lanes, over a connection of its own each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import compress
from math import inf
from operator import not_
from typing import Generic
from uuid import UUID

import structlog

from task_activity_log import wire
from task_activity_log.aio import SharedLock, end
from task_activity_log.pipeline import settling
from task_activity_log.pipeline.batches import Parts
from task_activity_log.pipeline.groups import TRIAL_SECONDS, Groups
from task_activity_log.pipeline.lines import Lane, Limits, Line, Lines, Others, quick, slow
from task_activity_log.pipeline.ports import D, Intake, Patience, Settlement, Store, Stored
from task_activity_log.pipeline.refusals import TRY_AGAIN_SECONDS, Refusals
from task_activity_log.pipeline.request import Request
from task_activity_log.pipeline.suspects import is_suspect
from task_activity_log.pipeline.timing import Timing
from task_activity_log.pipeline.waves import halve
from task_activity_log.problem import Failed, Refused, Rule, TimedOut, Unavailable
from task_activity_log.record import Applied, TaskActivityLog, Unread

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 1.0
"""How often a record is tried again."""
_REFUSED_SECONDS = 30.0
"""How often a record is tried again, in the end, while the database refuses every row; how often one is with which the
connection is lost each time, because it may crash the server; and one whose statement was ended because others waited."""
CRASHES_MAX = 3
"""A row with which the database server has crashed this often in a row, while it was tried alone and after rows of the worker's
own had passed, is given up. Otherwise it would crash the server for ever."""
_SETTLED_AT_ONCE = 100
"""Number of requests of one record after which other records are tried."""
_AT_ONCE_SECONDS = 1.0
"""How long requests of one record are tried one after the other before other records are tried: its share of this time."""
_SETTLING_SECONDS = 0.05
"""How often a suspect looks whether the request before it is settled."""
_STOP_SECONDS = 1.0
SHOWN = 20
"""How many records an event or /status names."""


@dataclass(eq=False)
class Retrying(Generic[D]):
    """Tries the records that are parked (see `Parking`, which adds them), and passes on what must be settled."""

    intake: Intake[D]
    store: Store
    """Over a connection of its own, so that nobody waits for a statement that waits for a lock."""
    slow_store: Store
    """Over another one, so that other parked records do not wait for a statement that is slow."""
    stored: Stored[D]
    part_bytes: int
    writes: SharedLock
    """Shared by each write to the database. Held alone to requeue."""
    nulls: wire.Nulls
    refusals: Refusals
    timing: Timing
    limits: Limits
    on_outage: Callable[[Failed], None] = lambda _: None
    """Called when requests are parked while no others pass: it may be an outage, although a probe passes."""
    on_answer: Callable[[], None] = lambda: None
    """Called when a parked request was stored or refused: the database answers."""

    def __post_init__(self) -> None:
        self._lines: Lines[D] = Lines()
        self._untried = Groups[Line[D]]()  # those that are tried together
        self._quick = Lane[D](self.store, Parts(self.stored, self.part_bytes), slow=False)
        self._slow = Lane[D](self.slow_store, Parts(self.stored, self.part_bytes), slow=True)
        self.others = Others()
        self._judging = asyncio.Lock()  # who is refused while rows of our own are tried waits for what is found
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    @property
    def oldest_seconds(self) -> float:
        """How long the oldest message has been parked; 0 if there is none."""
        now = time.monotonic()
        return now - min(self._lines.since(), default=now)

    def passed(self, record: TaskActivityLog) -> None:
        """A statement has stored this record, perhaps with others."""
        if self.refusals.passed(record):  # what waits was refused by its own fault, and need not wait any more
            for line in self._lines.values():
                line.due = 0.0
            self._wake()
            self.on_answer()

    async def _everybodys(self, rule: Rule, since: int, *, lasting: bool) -> Failed | None:
        """Why the database refuses every row; None if it is the fault of the row that it has refused by this rule.

        If the database cannot even be asked, it is not the row's fault, nor that of those behind it.
        """
        async with self._judging:
            if self.refusals.must_try(rule, since, time.monotonic(), lasting=lasting):
                try:
                    async with self._quick.use() as store:
                        found = await store.try_own_rows(self.refusals.accepted)
                except Unavailable as outage:
                    found = [Failed(outage.label, rule.sqlstate, outage.detail, name=rule.name, lasting=True)]
                self.refusals.tried(rule, since, time.monotonic(), found)
            return self.refusals.everybodys

    async def locked(self, requests: Sequence[Request[D]], *, waited: bool = True) -> set[UUID]:
        """The records whose rows are locked now, as far as the database tells.

        If their statement has `waited` for a lock that is on none of these rows, a slow statement may hold it, and is ended: a
        trigger may lock something for every row, such as a counter.
        """
        found = set[UUID]()
        with self.others.asking(), suppress(Unavailable):
            async with self._quick.use() as store:
                found = await store.locked([request.record.id for request in requests])
        if waited and not found:
            self.others.set()
        return found

    async def stop(self) -> None:
        """Try nothing more. What is parked stays unsettled, and is returned to the queue with everything else."""
        self._stopping = True
        self._wake()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=_STOP_SECONDS)
            await end(self._task)
        await asyncio.gather(self.store.close(), self.slow_store.close())

    def _wake(self) -> None:
        self._quick.changed.set()
        self._slow.changed.set()

    async def run(self) -> None:
        """Try what is parked again, until `stop` is called."""
        self._task = asyncio.current_task()
        async with asyncio.TaskGroup() as lanes:
            for lane in (self._quick, self._slow):
                lanes.create_task(self._run(lane), name="park slow" if lane.slow else "park")

    async def _run(self, lane: Lane[D]) -> None:
        while not self._stopping:
            lane.changed.clear()
            now = time.monotonic()
            line = lane.next(self._lines, now)
            due = inf if line is None else line.due
            returned_at = inf if lane.slow else min(self._lines.since(), default=inf) + self.limits.seconds
            own_rows_at = self.refusals.next_trial if self._lines and not lane.slow else inf
            if returned_at <= now:
                await self._return_all()
            elif own_rows_at <= now:
                await self._try_own_rows()
            elif untried := self._untried.next():
                await self._try_together(untried, lane)
            elif min(due, returned_at, own_rows_at) == inf:
                await lane.close()
                await lane.changed.wait()
            elif line is not None and due <= now:
                await self._try(line, lane)
            else:
                await _until_changed(lane, min(due, returned_at, own_rows_at) - now)

    async def _try_own_rows(self) -> None:
        """Find out whether the database still refuses every row, sooner than what is parked is due."""
        everybodys, since = self.refusals.everybodys, self.refusals.passes
        if everybodys is None:
            return
        found: Sequence[Failed] = [everybodys]
        with suppress(Unavailable):
            async with self._quick.use() as store:
                found = await store.try_own_rows(self.refusals.accepted)
        self.refusals.tried(everybodys.rule, since, time.monotonic(), found)
        if self.refusals.everybodys is None:
            for line in self._lines.values():
                line.due = 0.0
            self._wake()

    async def _try(self, line: Line[D], lane: Lane[D]) -> None:
        """Store the requests of one record in order, until one of them does not pass."""
        count, pause, line.taken = 0, 0.0, True
        until = time.monotonic() + _AT_ONCE_SECONDS / (1 + len(lane.lines(self._lines)))
        while count < _SETTLED_AT_ONCE and time.monotonic() < until and not self._stopping:
            if self._is_too_early(line):
                pause = _SETTLING_SECONDS
                break
            try:
                settlement = await self._try_first(line, lane)
            except Unavailable as outage:
                pause = self._did_not_pass(line, outage, lane)
                break
            if settlement is None:
                break
            count += 1
            if lane.parts.add(settlement):
                break
        if count:
            self.on_answer()
            await lane.parts.pass_on()
        self._put_back([line], pause)
        await lane.parts.slices.next()

    def _did_not_pass(self, line: Line[D], outage: Unavailable, lane: Lane[D]) -> float:
        """Note why the first request of a line did not pass; in how many seconds it is tried again."""
        line.did_not_pass(outage)
        line.tries += 1
        line.passes = line.passes if isinstance(outage, Failed) and outage.lasting else None  # it was not refused
        if isinstance(outage, TimedOut):
            line.rounds = 0 if outage.locked else lane.exceeded(line.rounds)
        ended = lane.slow and self.others.is_set()
        if ended or outage is self.refusals.everybodys or (isinstance(outage, Failed) and outage.lost_connection):
            return min(2.0**line.tries, _REFUSED_SECONDS)
        return min(TRIAL_SECONDS * 2.0**line.rounds, _RETRY_SECONDS) if line.rounds else _RETRY_SECONDS

    def _put_back(self, lines: Sequence[Line[D]], pause: float = 0.0) -> None:
        """These were tried. Each is tried again in `pause` seconds, by any lane; or ends, if nothing has joined meanwhile."""
        due = time.monotonic() + pause  # behind the records that are due by now
        ended = [line for line in lines if not line.waiting and self._lines.get(line.record) is line]
        for line in lines:
            line.due, line.taken = due, False
        for line in ended:
            del self._lines[line.record]
        if ended:
            log.info("unparked", records=[str(line.record) for line in ended[:SHOWN]], count=len(ended))
        if len(ended) < len(lines):  # another lane may begin with them now
            self._wake()

    async def _try_together(self, group: Sequence[Line[D]], lane: Lane[D]) -> None:
        """Store the first requests of these records with one statement. If it takes too long, they are divided."""
        if self.refusals.everybodys is not None:  # each is tried less and less often
            self._put_back(group)
            return
        stored: list[tuple[Request[D], Applied]] = []
        async with self.writes.shared():
            # What was requeued comes again, behind, and may have another update mode.
            here = [bool(line.waiting) and self.intake.has(line.waiting[0].request.delivery) for line in group]
            self._put_back(list(compress(group, map(not_, here))))
            lines = list(compress(group, here))
            requests = [line.waiting[0].request for line in lines]
            if not requests:
                return
            patience = Patience(TRIAL_SECONDS / 2, self.timing.limit(len(requests), TRIAL_SECONDS))
            try:
                stored = list(zip(requests, await lane.store.apply(requests, patience), strict=True))
            except (Refused, Unavailable) as error:
                failure: Refused | Unavailable | None = error
            else:
                failure = None
                self.passed(requests[-1].record)
                for line in lines:
                    line.last = line.waiting.popleft().request.delivery
                    line.tries, line.rounds, line.crashes, line.passes = 0, 0, 0, None
        if failure is not None:
            await self._divide(lines, failure, lane)
            return
        self._untried.passed()
        self.on_answer()
        await self._answer(stored, lane)
        self._put_back(lines)

    async def _divide(self, lines: Sequence[Line[D]], failure: Refused | Unavailable, lane: Lane[D]) -> None:
        """The first requests of these records did not pass together: who is at fault, and who is tried again without them?"""
        if isinstance(failure, Unavailable):
            for line in lines:
                line.did_not_pass(failure)
        if isinstance(failure, TimedOut):
            ask = failure.locked and len(lines) > 1  # one alone waits, whatever the lock is on
            locked = await self.locked([line.waiting[0].request for line in lines]) if ask else set()
            if locked:
                self._put_back([line for line in lines if line.record in locked], _RETRY_SECONDS)
                self._untried.add([line for line in lines if line.record not in locked])
            elif not self._untried.exceeded(lines):
                self._exceeded_alone(lines[0], locked=failure.locked)
        elif isinstance(failure, Refused | Failed):
            if len(lines) == 1:  # it is tried once more, and judged
                self._put_back(lines)
            else:
                for half in halve(lines):
                    self._untried.add(half)
        else:
            self._untried.add(lines)
            await _until_changed(lane, _RETRY_SECONDS)
            return
        self._wake()

    def _exceeded_alone(self, line: Line[D], *, locked: bool) -> None:
        line.rounds = 0 if locked else line.rounds + 1
        if line.rounds == 1:
            self._untried.add_again([line])
        else:
            self._put_back([line], _RETRY_SECONDS if locked else 0.0)

    async def _answer(self, stored: Sequence[tuple[Request[D], Applied]], lane: Lane[D]) -> None:
        """Pass on what was stored."""
        for request, each in stored:
            while isinstance(each, Unread):
                try:
                    each = await lane.store.read(request, each.outcome)  # noqa: PLW2901 - now it is read
                except Unavailable:
                    await asyncio.sleep(_RETRY_SECONDS)
            if lane.parts.add(settling.stored(request, each, self.nulls)):
                await lane.parts.relieve()
        await lane.parts.pass_on()

    def _is_too_early(self, line: Line[D]) -> bool:
        """Whether the first request is a suspect, and the one before it is not settled yet.

        If a suspect crashes the process, it must be the oldest message in hand.
        """
        if not line.waiting or line.last is None or not is_suspect(line.waiting[0].request.delivery):
            return False
        return self.intake.has(line.last)

    async def _try_first(self, line: Line[D], lane: Lane[D]) -> Settlement[D] | None:
        """Store the first request of a record, and take it from its line. None: there is none.

        Raises:
            Unavailable: it did not pass, and stays where it is.
        """
        async with self.writes.shared():
            # Another worker may have stored later requests of the record by now. What was requeued comes again, behind.
            while line.waiting and not self.intake.has(line.waiting[0].request.delivery):
                line.waiting.popleft()
            if not line.waiting:
                return None
            first = line.waiting[0]
            if first.outcome is None:
                settlement = await self._settlement(line, first.request, lane)
            else:
                settlement = settling.stored(
                    first.request, await lane.store.read(first.request, first.outcome), self.nulls
                )
            line.last = line.waiting.popleft().request.delivery
            line.tries, line.rounds, line.crashes, line.passes = 0, 0, 0, None
            return settlement

    async def _settlement(self, line: Line[D], request: Request[D], lane: Lane[D]) -> Settlement[D]:
        doubted = False
        while True:
            passes = self.refusals.passes
            try:
                [applied] = await self._write(request, line, lane)
            except Refused as refused:
                cause: Refused | Failed = refused
            except Failed as failed:
                cause = failed
                if line.crashes >= CRASHES_MAX:
                    return settling.rejected(request, Refused(failed.sqlstate).problem)
                if not failed.lasting:
                    raise
            else:
                self.passed(request.record)
                if isinstance(applied, Unread):
                    # From now on it is to be read, and not to be written again.
                    line.waiting[0] = line.waiting[0]._replace(outcome=applied.outcome)
                    applied = await lane.store.read(request, applied.outcome)
                return settling.stored(request, applied, self.nulls)
            since = line.refused(cause.rule, passes)
            everybodys = await self._everybodys(cause.rule, since, lasting=isinstance(cause, Failed))
            if everybodys is not None:
                self.on_outage(everybodys)
                raise everybodys.with_traceback(None)  # it is raised for each row, and would collect their tracebacks
            if doubted:
                return settling.at_fault(request, cause)
            doubted = True  # it may have been fixed since the row was tried, and before our own was

    async def _write(self, request: Request[D], line: Line[D], lane: Lane[D]) -> list[Applied]:
        """Store the first request of a line, and count how often the server has crashed meanwhile.

        A lost connection alone says nothing: a trigger may ask another server, or end its own session. So another connection is
        opened before, where rows of the worker's own pass. If the server crashes, that one ends as well.

        Raises:
            Unavailable: these do not pass, and the request was not tried; or as `Store.apply`.
        """
        if lane.slow or not line.cause.lost_connection:
            return await self._apply(request, line.rounds, lane)
        async with self._slow.use() as witness:
            for failure in await witness.try_own_rows(self.refusals.accepted):
                raise Unavailable(failure.label, failure.detail)
            try:
                return await self._apply(request, line.rounds, lane)
            except Failed as failed:
                with suppress(Unavailable):
                    await lane.store.probe()  # the server ends the other sessions before it takes a new one
                crashed = failed.lost_connection and not await witness.survives()
                line.crashes = line.crashes + 1 if crashed else 0
                raise

    async def _apply(self, request: Request[D], rounds: int, lane: Lane[D]) -> list[Applied]:
        records = 1 + len(lane.lines(self._lines))
        if not lane.slow:
            return await lane.store.apply([request], quick(records, self.timing.limit(1, least=0.0), rounds))
        self.others.clear()
        statement = asyncio.ensure_future(lane.store.apply([request], slow(records, rounds)))
        wanted = asyncio.ensure_future(self.writes.wanted.wait())
        others = asyncio.ensure_future(self.others.wait())
        try:
            await asyncio.wait({statement, wanted, others}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            wanted.cancel()
            others.cancel()
            if not statement.done():  # everything is requeued, others wait, or the worker stops
                await end(statement)
                _ = statement.cancelled() or statement.exception()  # read, or asyncio reports it
                await lane.store.close()  # returns when the server has cancelled it
        if statement.cancelled():
            raise TimedOut
        return statement.result()

    async def _return_all(self) -> None:
        """Return everything in hand to the queue, in order: the broker does not wait for ever for what is parked."""
        seconds, reason = self.oldest_seconds, self._lines.causes
        await self.intake.pause("parked")
        await self.stored.join()
        async with self.writes.alone():
            given_back = await self.intake.requeue()
            self._lines.clear()
            self._untried.rest()
        log.warning("parked_too_long", given_back=given_back, seconds=round(seconds, 1), reason=reason)
        await self._until_accepted()
        await self.intake.resume("parked")

    async def _until_accepted(self) -> None:
        """While the database refuses every row, take nothing: each time the messages come again, it counts as a delivery."""
        waited = False
        while not self._stopping and (everybodys := self.refusals.everybodys) is not None:
            waited = True
            self._quick.changed.clear()
            await _until_changed(self._quick, TRY_AGAIN_SECONDS)
            with suppress(Unavailable):
                found = await self.store.try_own_rows(self.refusals.accepted)
                self.refusals.tried(everybodys.rule, self.refusals.passes, time.monotonic(), found)
        if waited:
            self.on_answer()


async def _until_changed(lane: Lane[D], seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await lane.changed.wait()
