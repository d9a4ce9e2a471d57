"""Parking: requests whose row is locked, slow or fails for now wait here, so that they delay their own record alone.

A record is parked with the request that did not pass. While it is parked, all later requests of it join behind, so that
they keep their order. The others go on. One task tries the parked records again, each about once a second, over a
connection of its own, and passes on what must be settled. Records whose statement takes long are tried by another one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Generic, NamedTuple
from uuid import UUID

import structlog

from task_activity_log import wire
from task_activity_log.aio import SharedLock, end
from task_activity_log.pipeline import settling
from task_activity_log.pipeline.batches import Parts
from task_activity_log.pipeline.lines import Lane, Limits, Line, Lines, Parked, quick
from task_activity_log.pipeline.ports import D, Intake, Settlement, Store, Stored
from task_activity_log.pipeline.refusals import TRY_AGAIN_SECONDS, Refusals
from task_activity_log.pipeline.request import Request, UpdateMode
from task_activity_log.pipeline.suspects import is_suspect
from task_activity_log.pipeline.timing import Repeats, Timing
from task_activity_log.problem import Failed, Refused, Rule, TimedOut, Unavailable
from task_activity_log.record import Applied, TaskActivityLog

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 1.0
"""How often a record is tried again."""
_REFUSED_SECONDS = 30.0
"""How often a record is tried again, in the end, while the database refuses every row."""
_SETTLED_AT_ONCE = 100
"""Number of requests of one record after which other records are tried."""
_AT_ONCE_SECONDS = 1.0
"""How long requests of one record are tried one after the other before other records are tried: its share of this time."""
_SETTLING_SECONDS = 0.05
"""How often a suspect looks whether the request before it is settled."""
_STOP_SECONDS = 1.0
_SHOWN = 20


class Rejection(NamedTuple, Generic[D]):
    """A request that the database refuses, and the number of statements that had passed then."""

    request: Request[D]
    cause: Refused
    passes: int


async def _at_once() -> None:
    pass


@dataclass(eq=False)
class Parking(Generic[D]):
    """The records that are parked.

    `Storing` parks them, and asks before each wave which records are parked. `run` tries them again.
    """

    intake: Intake[D]
    store: Store
    """Over a connection of its own, so that nobody waits for a statement that waits for a lock."""
    slow_store: Store
    """Over another one, so that other parked records do not wait for a statement that is slow."""
    stored: Stored[D]
    part_bytes: int
    writes: SharedLock
    """Shared by each write to the database. Had alone to requeue."""
    nulls: wire.Nulls
    refusals: Refusals
    timing: Timing
    limits: Limits
    on_outage: Callable[[Failed], None] = lambda _: None
    """Called when requests are parked while no others pass: it may be an outage, although a probe passes."""
    before_parking: Callable[[], Awaitable[None]] = _at_once
    """Awaited before requests are parked. It passes on what is stored of their batch: later requests of the same records are
    answered from here, and their replies must not come first."""
    on_answer: Callable[[], None] = lambda: None
    """Called when a parked request was stored or refused: the database answers."""

    def __post_init__(self) -> None:
        self._lines: Lines[D] = Lines()
        self._rejected: list[Rejection[D]] = []  # of the batch that `Storing` works on
        self._repeats = Repeats()  # of the batch that `Storing` works on
        self._modes: set[UpdateMode] = set()  # of its waves so far
        self.is_first = True
        """Whether the wave that was admitted last is the first one of its update mode in the batch."""
        self._quick = Lane[D](self.store, Parts(self.stored, self.part_bytes), slow=False)
        self._slow = Lane[D](self.slow_store, Parts(self.stored, self.part_bytes), slow=True)
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    # what others ask

    @property
    def messages(self) -> int:
        """How many messages are parked. What was requeued meanwhile does not count, as it is not in hand any more."""
        return len(self._parked()) + len(self._quick.parts) + len(self._slow.parts)

    def _parked(self) -> list[D]:
        return [delivery for delivery in self._lines.deliveries() if self.intake.has(delivery)]

    @property
    def records(self) -> int:
        """How many records are parked."""
        return len(self._lines)

    @property
    def has_slow(self) -> bool:
        """Whether a record is parked whose statement takes long."""
        return any(line.slow for line in self._lines.values())

    @property
    def oldest_seconds(self) -> float:
        """How long the oldest message has been parked; 0 if there is none."""
        return time.monotonic() - min(self._lines.since(), default=time.monotonic())

    def full(self) -> bool:
        """Whether the worker must take no more because too much is parked."""
        return (
            self.messages >= self.limits.messages or sum(each.weight for each in self._parked()) >= self.limits.weight
        )

    @property
    def reason(self) -> str:
        """How much is parked and why, in a few words."""
        return f"{self.messages} messages of {self.records} records wait for their rows ({self._lines.causes})"

    def report(self) -> dict[str, object]:
        """What is parked, for /status."""
        return {
            "messages": self.messages,
            "records": self.records,
            "oldest_seconds": round(self.oldest_seconds, 1),
            "some": self._lines.some(_SHOWN),
        }

    # what Storing calls

    async def admit(self, wave: Sequence[Request[D]], pass_on: Callable[[], Awaitable[None]]) -> Sequence[Request[D]]:
        """The requests of a wave that are to be stored now.

        The others join behind the earlier requests of their records, which are parked. If the same records have taken too
        long again and again in this batch, so do they: records that are costly to write, and come hundreds of times, delay
        themselves alone. Their earlier requests must be settled before: `pass_on` passes on what was stored.
        """
        now = time.monotonic()
        self._repeats.end(now)
        free: list[Request[D]] = []
        joining: list[Request[D]] = []
        for request in wave:
            line = self._lines.get(request.record.id)
            if line is None:
                free.append(request)
            else:
                line.waiting.append(Parked(request, now))
                joining.append(request)
        await self._prove(joining)
        if not free:
            return free
        self.is_first = free[0].mode not in self._modes
        self._modes.add(free[0].mode)
        if not self.is_first:
            if self._repeats.long and await self._are_costly():
                await pass_on()
                await self.park(free, TimedOut("costly, and requested many times"), self.refusals.passes)
                return ()
            self._repeats.begin(len(free), time.monotonic())
        return free

    async def _are_costly(self) -> bool:
        """Whether the waves of this batch take long because of their records. If a probe takes as long, it is the database."""
        try:
            async with self._quick.use() as store:
                await store.probe()  # opens the connection
                started = time.monotonic()
                await store.probe()
                took = time.monotonic() - started
        except Unavailable:
            return False
        return self._repeats.costly(took)

    async def park(self, requests: Sequence[Request[D]], cause: Failed, passes: int, *, slow: bool = False) -> None:
        """Park these requests.

        Args:
            requests: their records are not parked.
            cause: why they did not pass.
            passes: what it was before they were tried.
            slow: whether it is known that a statement with them takes long.
        """
        await self.before_parking()
        if passes == self.refusals.passes and not isinstance(cause, TimedOut):
            self.on_outage(cause)
        now = time.monotonic()
        for request in requests:
            identifier = request.record.id
            line = self._lines.setdefault(identifier, Line[D](identifier, cause, passes, due=now, slow=slow))
            line.waiting.append(Parked(request, now))
        self._wake()
        log.warning(
            "parked",
            records=[str(request.record.id) for request in requests[:_SHOWN]],
            count=len(requests),
            reason=cause.reason,
            parked=self.messages,
        )
        await self._prove(requests)

    def passed(self, record: TaskActivityLog) -> None:
        """A statement has stored this record, perhaps with others."""
        if self.refusals.passed(record):  # what waits was refused by its own fault, and need not wait any more
            for line in self._lines.values():
                line.due = 0.0
            self._wake()
            self.on_answer()

    async def reject(self, request: Request[D], cause: Refused, passes: int) -> None:
        """Reject a request of the current batch, or park it if the database refuses every row."""
        if (everybodys := await self._everybodys(cause.rule, passes, lasting=False)) is None:
            self._rejected.append(Rejection(request, cause, self.refusals.passes))
            return
        # What was rejected since the last pass, a moment ago, was not at fault either. If a record is parked for another
        # reason, later requests of it are waiting already: an earlier one must not come behind them.
        now_passes = self.refusals.passes
        waiting = [
            one for one in self._rejected if one.passes == now_passes and one.request.record.id not in self._lines
        ]
        self._rejected = [one for one in self._rejected if one not in waiting]
        await self.park([*(one.request for one in waiting), request], everybodys, passes)

    def begin(self) -> None:
        """A batch begins. What was rejected of one that was given up comes again."""
        self._rejected.clear()
        self._repeats = Repeats()
        self._modes.clear()

    def rejected(self) -> list[Settlement[D]]:
        """The settlements of what is rejected of the batch."""
        return [settling.rejected(request, cause.problem) for request, cause, _ in self._rejected]

    async def _everybodys(self, rule: Rule, since: int, *, lasting: bool) -> Failed | None:
        """Why the database refuses every row; None if it is the fault of the row that it has refused by this rule."""
        if self.refusals.must_try(rule, since, time.monotonic(), lasting=lasting):
            try:
                async with self._quick.use() as store:
                    found = await store.try_own_rows(self.refusals.accepted)
            except Unavailable as outage:
                return outage if isinstance(outage, Failed) else Failed(outage.label, rule.sqlstate)
            self.refusals.tried(rule, since, time.monotonic(), found)
        return self.refusals.everybodys if since == self.refusals.passes else None

    async def locked(self, requests: Sequence[Request[D]]) -> set[UUID]:
        """The records whose rows are locked now, as far as the database tells."""
        try:
            async with self._quick.use() as store:
                return await store.locked([request.record.id for request in requests])
        except Unavailable:
            return set()

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

    async def _prove(self, requests: Sequence[Request[D]]) -> None:
        """They were processed safely: a new consumer, which delivers little at first, need not wait for them."""
        if requests:
            await self.intake.prove([request.delivery for request in requests])

    # the tasks

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
            line = min(lane.lines(self._lines), key=lambda line: line.due, default=None)
            due = inf if line is None else line.due
            returned_at = inf if lane.slow else min(self._lines.since(), default=inf) + self.limits.seconds
            if min(due, returned_at) == inf:
                await lane.close()
                await lane.changed.wait()
            elif returned_at <= now:
                await self._return_all()
            elif line is not None and due <= now:
                await self._try(line, lane)
            else:
                await _until_changed(lane, min(due, returned_at) - now)

    async def _try(self, line: Line[D], lane: Lane[D]) -> None:
        """Store the requests of one record in order, until one of them does not pass."""
        count, pause, slow = 0, 0.0, False
        until = time.monotonic() + _AT_ONCE_SECONDS / max(1, len(lane.lines(self._lines)))
        while count < _SETTLED_AT_ONCE and time.monotonic() < until and not self._stopping:
            if self._is_too_early(line):
                pause = _SETTLING_SECONDS
                break
            try:
                settlement = await self._try_first(line, lane)
            except Unavailable as outage:
                pause = self._did_not_pass(line, outage)
                slow = not outage.locked if isinstance(outage, TimedOut) else line.slow
                break
            if settlement is None:
                break
            count += 1
            if lane.parts.add(settlement):
                break
        if count:
            self.on_answer()
            await lane.parts.pass_on()
        line.due = time.monotonic() + pause  # behind the records that are due by now
        # If nothing has joined meanwhile, the next request of the record need not wait any more.
        if not line.waiting and self._lines.get(line.record) is line:
            del self._lines[line.record]
            log.info("unparked", record=str(line.record), count=count)
        if line.slow is not slow:  # another lane may begin with it now
            line.slow = slow
            self._wake()
        await lane.parts.slices.next()

    def _did_not_pass(self, line: Line[D], outage: Unavailable) -> float:
        """Note why the first request of a line did not pass; in how many seconds it is tried again."""
        line.cause = outage if isinstance(outage, Failed) else line.cause
        line.tries += 1
        return min(2.0**line.tries, _REFUSED_SECONDS) if outage is self.refusals.everybodys else _RETRY_SECONDS

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
            settlement = await self._settlement(line, line.waiting[0].request, lane)
            line.last = line.waiting.popleft().request.delivery
            line.tries, line.passes = 0, self.refusals.passes
            return settlement

    async def _settlement(self, line: Line[D], request: Request[D], lane: Lane[D]) -> Settlement[D]:
        doubted = False
        while True:
            try:
                [applied] = await self._apply(request, lane)
            except Refused as refused:
                cause: Refused | Failed = refused
            except Failed as failed:
                line.cause = cause = failed
                if not failed.lasting:
                    raise
            else:
                self.passed(request.record)
                return settling.stored(request, applied, self.nulls)
            everybodys = await self._everybodys(cause.rule, line.passes, lasting=isinstance(cause, Failed))
            if everybodys is not None:
                self.on_outage(everybodys)
                raise everybodys.with_traceback(None)  # it is raised for each row, and would collect their tracebacks
            if doubted:
                return settling.rejected(request, Refused(cause.sqlstate).problem)
            doubted = True  # it may have been fixed since the row was tried, and before our own was

    async def _apply(self, request: Request[D], lane: Lane[D]) -> list[Applied]:
        if not lane.slow:
            patience = quick(len(lane.lines(self._lines)), self.timing.limit(1, least=0.0))
            return await lane.store.apply([request], patience)
        statement = asyncio.ensure_future(lane.store.apply([request]))
        wanted = asyncio.ensure_future(self.writes.wanted.wait())
        try:
            await asyncio.wait({statement, wanted}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            wanted.cancel()
            if not statement.done():  # everything is requeued, or the worker stops: nobody waits for a slow statement
                await end(statement)
                _ = statement.cancelled() or statement.exception()  # read, or asyncio reports it
                await lane.store.close()  # returns when the server has cancelled it
        if statement.cancelled():
            raise TimedOut
        return statement.result()

    async def _return_all(self) -> None:
        """Return everything in hand to the queue, in order: the broker does not wait for ever for what is parked."""
        seconds = self.oldest_seconds
        await self.intake.pause("parked")
        await self.stored.join()
        async with self.writes.alone():
            given_back = await self.intake.requeue()
            self._lines.clear()
        log.warning("parked_too_long", given_back=given_back, seconds=round(seconds, 1))
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
