"""The pipeline: take, decode, store, reply, settle. The only control flow that matters.

Two stages run at the same time: `Storing` writes a batch while the broker confirms the replies of those before to `Answering`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Generic, Literal

import structlog

from task_activity_log.aio import SharedLock, meanwhile
from task_activity_log.pipeline import settling
from task_activity_log.pipeline.answering import Answering
from task_activity_log.pipeline.batches import Decoding, Parts
from task_activity_log.pipeline.forwarding import Forwarding
from task_activity_log.pipeline.hold import Abandoned, Hold, Requeued
from task_activity_log.pipeline.lines import USUAL, Limits
from task_activity_log.pipeline.parking import Parking
from task_activity_log.pipeline.ports import (
    D,
    DeadLetters,
    Forwarder,
    Intake,
    Replies,
    Store,
    Stored,
    Watch,
)
from task_activity_log.pipeline.refusals import Refusals
from task_activity_log.pipeline.request import Request, Rules
from task_activity_log.pipeline.search import PartFailed, Search
from task_activity_log.pipeline.stage import Stage
from task_activity_log.pipeline.timing import Timing
from task_activity_log.pipeline.trials import Trials
from task_activity_log.pipeline.waves import waves
from task_activity_log.problem import Failed, Refused, TimedOut, Unavailable
from task_activity_log.record import Applied, Outcome, Unread

log = structlog.get_logger(__name__)


class Worker(Generic[D]):
    """Moves batches through both stages until its intake drains."""

    def __init__(
        self,
        *,
        intake: Intake[D],
        store: Store,
        dead_letters: DeadLetters[D],
        replies: Replies[D],
        watch: Watch,
        rules: Rules,
        batch_max: int,
        part_bytes: int = 8 * 2**20,
        nulls: Literal["emit", "omit"] = "emit",
        hold_limit_seconds: float = 600.0,
        parked_store: Store | None = None,
        slow_store: Store | None = None,
        park: Limits = USUAL,
        refused_in_a_row: int = 10,
        forwarder: Forwarder[D] | None = None,
    ) -> None:
        stored: Stored[D] = asyncio.Queue(maxsize=1)
        self.store_hold, self.reply_hold = Hold("store"), Hold("reply")
        self.writes = SharedLock()
        """Shared by each write to the database or to a partition; see `Storing`."""
        common = (intake, watch, hold_limit_seconds, self.writes)
        self.forwarding = None if forwarder is None else Forwarding.with_hold(intake, watch, self.writes, forwarder)
        self.trials: Trials[D] = Trials(store, intake, batch_max)
        self.parking: Parking[D] = Parking(
            intake, parked_store or store, slow_store or parked_store or store, stored, part_bytes, self.writes, nulls,
            Refusals(refused_in_a_row), Timing(), park,
        )  # fmt: skip
        parts = Parts(stored, part_bytes)
        self._storing = Storing(
            self.store_hold, *common, store=store, parts=parts, decoding=Decoding(rules, parts.slices),
            batch_max=batch_max, nulls=nulls, parking=self.parking, forwarding=self.forwarding, trials=self.trials,
        )  # fmt: skip
        self.parking.on_outage, self.parking.on_answer = self._storing.show, self._storing.release
        self.parking.before_parking = self._storing.parts.flush
        # Outages of the dead-letter queue are shown as `reply` too.
        self._answering = Answering(self.reply_hold, *common, dead_letters=dead_letters, replies=replies, stored=stored)

    @property
    def holds(self) -> tuple[Hold, ...]:
        """Where work may wait, one for each stage."""
        forward_hold = () if self.forwarding is None else (self.forwarding.hold,)
        return (self.store_hold, self.reply_hold, *forward_hold)

    def drain(self) -> None:
        """End each hold after one more attempt, so that `run` returns soon after the intake has no more batches."""
        for hold in self.holds:
            hold.drain()

    async def run(self) -> None:
        """Work until the intake drains."""
        async with asyncio.TaskGroup() as stages:
            stages.create_task(self._storing.run(), name="store")
            stages.create_task(self.parking.run(), name="park")
            if self.forwarding is not None:
                stages.create_task(self.forwarding.run(), name="forward")
            stages.create_task(self._answering.run(), name="answer")


@dataclass(eq=False, kw_only=True)
class Storing(Stage[D]):
    """The first stage: takes batches, decodes them, stores them, and passes on what must be settled."""

    store: Store
    parts: Parts[D]
    decoding: Decoding[D]
    batch_max: int
    nulls: Literal["emit", "omit"]
    parking: Parking[D]
    forwarding: Forwarding[D] | None
    trials: Trials[D]

    async def run(self) -> None:
        """Store batch after batch until the intake drains."""
        try:
            while (batch := await self._take()) is not None:
                try:
                    await (self._store_batch(batch) if batch else self._renew())
                except Requeued:
                    self.parts.clear()
                    await self.until_done(self.store.probe)
                    await self.until_done(self.trials.undo)
                    await self.intake.resume("store")
        except Abandoned:
            log.info("batch_abandoned", stage="store")
        await self.parking.stop()
        if self.forwarding is not None:
            self.forwarding.stop()
        await self.parts.stored.put(None)

    def release(self) -> None:
        """End the hold, if there is one.

        While too much is parked, or the database refuses every row, it goes on, although the database answers.
        """
        if self.parking.full():
            return
        if (everybodys := self.parking.refusals.everybodys) is None:
            super().release()
        elif self.hold.reason is not None:
            self.hold.begin(everybodys.reason)

    async def _take(self) -> list[D] | None:
        """The next batch. While too many messages are parked, it waits: others would find no room in the prefetch."""
        if self.parking.full():
            self.show(outage := Unavailable("parked", self.parking.reason))
            while self.parking.full():
                await self.hold.wait(outage.reason, seconds=0.5)
            self.release()
        return await self.intake.take(self.batch_max)

    async def _store_batch(self, batch: Sequence[D]) -> None:
        """Store a batch; in parts, if some of its messages may have crashed a worker."""
        until_done = partial(self.until_done, repeatable=False)
        async with aclosing(self.trials.parts(batch, until_done, self.parts.stored.join)) as parts:
            async for part in parts:
                if len(part) < len(batch) and self.hold.draining:
                    raise Abandoned  # what is not begun is returned, and nothing behind it may be stored
                await (self._store_all(part) if part else self._renew())

    async def _renew(self) -> None:
        """Finish what was taken before the rest is requeued."""
        await self.parts.stored.join()
        async with self.writes.alone():
            await self.intake.renew()

    async def _store_all(self, batch: Sequence[D]) -> None:
        """Decode and store a batch, and pass on what must be settled."""
        self.parking.begin()
        requests, rejected = await self.decoding.all(batch)
        self.watch.took("decode", self.decoding.seconds())
        await self.parts.add_all(rejected)
        started = time.perf_counter()
        if self.forwarding is not None:
            requests = self.forwarding.take_out(requests)
        for wave in waves(requests):
            await self._apply(await self.parking.admit(wave, self.parts.pass_on))
        await self.parts.add_all(self.parking.rejected())
        self.watch.took("store", time.perf_counter() - started)
        await self.parts.pass_on()

    async def _apply(self, wave: Sequence[Request[D]]) -> None:
        """Store a wave and pass on what must be settled. What does not pass is parked or rejected by the search."""
        search = Search(wave, self.parking)
        while part := await search.next():
            try:
                stored = await self.until_done(partial(self._try, part, search), repeatable=False)
            except Refused as refused:
                await search.refused(part, refused)
            except PartFailed as failed:
                await search.failed(part, failed.cause)
            else:
                search.passed([request for request, _ in stored])
                await self._answer(stored)

    async def _answer(self, stored: Sequence[tuple[Request[D], Applied]]) -> None:
        """Build the replies to requests that were stored, and pass them on. What takes long to answer is answered apart."""
        apart: list[tuple[Request[D], Outcome]] = []
        for request, each in stored:
            if isinstance(each, Unread) or self.parking.answers_apart(each):
                apart.append((request, each.outcome))
                continue
            settlement = settling.stored(request, each, self.nulls)
            self.parking.answered(request, len(settlement.reply.body))
            if self.parts.add(settlement):
                await self.parts.relieve()
        if apart:
            await self.parking.park_unread(apart)

    async def _try(self, part: Sequence[Request[D]], search: Search[D]) -> list[tuple[Request[D], Applied]]:
        """Write a part of a wave, without what was requeued meanwhile: another worker may have stored later requests."""
        try:
            async with self.writes.shared():
                # Not all or nothing: the requests may be of several queues, and one of these was handed over.
                here = [request for request in part if self.intake.has(request.delivery)]
                async with meanwhile(
                    self.decoding.ahead(() if self.trials.under_way else self.intake.coming(self.batch_max))
                ):
                    return list(zip(here, await search.write(self.store, here), strict=True)) if here else []
        except Failed as failed:
            with self.parking.others.asking() if isinstance(failed, TimedOut) else nullcontext():
                await search.probe(self.store, failed)  # if this fails too, the database is unavailable
            raise PartFailed(failed) from failed
